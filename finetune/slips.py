"""How probable it is that a choice was a slip, by two reward models that each learned from one half of the choices.

An adapter that learns from choices learns their slips as well, pair by pair. A reward model judges a reply as a whole
and finds what most choices have in common with far fewer of them. So each choice is judged by the model that has not
seen it, and one that it contradicts counts less; never against what its person said. Where the models are right more
often than people (q > 1 - ε, so p > ½), what they contradict is left out, and what they support is sure: training may
see it more than once.

How often the models are right, and how often people slip, follows from two shares alone (Dawid & Skene 1979, with the
errors of the models independent of each other):

    g: both models say the same             q = (1 + √(2g - 1)) / 2         a model is right
    a: the model says what the person did   ε = (q - a) / (2q - 1)          a choice was a slip
    of a choice that the model contradicts  p = ε q / (ε q + (1 - ε)(1 - q))
    of one that it supports                 p = ε (1 - q) / (ε (1 - q) + (1 - ε) q)

g is taken at the lower end of its 90 % interval: where the models know nothing, all choices stay as they are.
People of another taste than the many look like slips, too.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assistant.settings import NightSettings
from finetune.batches import Encoded
from finetune.intervals import TO_AN_END
from finetune.progress import Progress, silent
from finetune.reward import learn_reward

ENOUGH = 40
"""Choices from which half a reward model can learn something."""
SUREST = 0.95
"""No model is believed more often than this."""


@dataclass(frozen=True)
class Doubt:
    """What two reward models make of people's choices."""

    sureness: float
    """q, the probability that a model is right."""
    slip_rate: float
    """ε."""
    contradicted: float
    """p of a choice that the model contradicts."""
    supported: float
    """p of a choice that the model supports."""

    @property
    def outweighs(self) -> bool:
        """Whether a model is right more often than people are."""
        return self.contradicted > 0.5

    def weigh(self, choice: Encoded, supported: bool) -> Encoded:
        """Give a choice its flip probability."""
        return replace(
            choice, flip=self.supported if supported else self.contradicted, sure=supported and self.outweighs
        )


def doubt_choices(
    model: PreTrainedModel, examples: Sequence[Encoded], night: NightSettings, progress: Progress = silent
) -> tuple[list[Encoded], dict[str, int]]:
    """Give each choice between two replies its flip probability; all else stays as it is.

    Rewrites and rankings, and choices whose flip probability is known, are none of these choices.

    Args:
        model: the base; the same, bit for bit, afterwards.
        examples: of every kind.
        night: find_slips, pair_loss, label_smoothing as the least slip rate, and the reward model's settings.
        progress: told after each step.

    Returns:
        The examples in the same order, without those left out, and counts: doubted (choices that the model which had
        not seen them contradicts, and that are left out or count less).
    """
    choices = [e for e in examples if e.is_pair and not e.demonstrated and e.flip is None]
    if not night.find_slips or night.pair_loss not in ("dpo", "norm") or len(choices) < ENOUGH:
        return list(examples), {"doubted": 0}
    shuffled = random.Random(f"{night.seed} slips").sample(choices, len(choices))
    halves = shuffled[::2], shuffled[1::2]
    supports = [_judge(model, half, shuffled, night, progress) for half in halves]
    places = torch.arange(len(shuffled))
    unseen = torch.where(places % 2 == 0, supports[1], supports[0])
    doubt = weigh_doubt(supports[0] == supports[1], unseen, night.label_smoothing)
    if doubt.contradicted <= night.label_smoothing:
        return list(examples), {"doubted": 0}
    supported = dict(zip((e.key for e in shuffled), unseen.tolist(), strict=True))
    kept = [e for e in examples if supported.get(e.key, True) or not doubt.outweighs]
    kept = [doubt.weigh(e, supported[e.key]) if e.key in supported else e for e in kept]
    return kept, {"doubted": int((~unseen).sum())}


def weigh_doubt(agree: Tensor, supported: Tensor, least: float) -> Doubt:
    """Reckon from the verdicts of two models how sure they are and how often people slip.

    Args:
        agree: (C,) bool: whether both say the same.
        supported: (C,) bool: whether the one that has not seen the choice says what the person did.
        least: the slip rate where the models find no higher one.
    """
    share = float(agree.float().mean())
    share -= TO_AN_END * math.sqrt(share * (1 - share) / len(agree))
    sureness = min((1 + math.sqrt(max(0.0, 2 * share - 1))) / 2, SUREST)
    if sureness == 0.5:
        return Doubt(sureness, least, least, least)
    seen = float(supported.float().mean())
    slips = min(max((sureness - seen) / (2 * sureness - 1), least), 0.5)
    contradicted = slips * sureness / (slips * sureness + (1 - slips) * (1 - sureness))
    kept = slips * (1 - sureness) / (slips * (1 - sureness) + (1 - slips) * sureness)
    return Doubt(sureness, slips, contradicted, kept)


def _judge(
    model: PreTrainedModel,
    half: Sequence[Encoded],
    choices: Sequence[Encoded],
    night: NightSettings,
    progress: Progress,
) -> Tensor:
    """Let a reward model learn from one half and say of each choice whether it would choose the same: (C,) bool."""
    with learn_reward(model, half, night, progress, "slips") as learned:
        rewards = learned.reward.rewards([row for e in choices for row in e.rows], progress).view(-1, 2)
    return rewards[:, 0] > rewards[:, 1]
