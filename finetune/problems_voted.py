"""VOTED_KINDS: the kinds of problem that simulated people vote on."""

from finetune.problems import Kind
from finetune.problems_sums import SUM_KINDS
from finetune.problems_thinking import THINKING_KINDS

VOTED_KINDS: tuple[Kind, ...] = SUM_KINDS + THINKING_KINDS
