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

g is taken at the lower end of its 90 % interval. All choices stay as they are where the models know nothing; where they
may be no better than chance at what people choose (the lower end of a reaches ½), since two models that agree may both
go by something that people do not; and where more than MOST_SLIPS would be slips. Shares are taken by the weight of the
choices, so that votes that count little decide little here, too. People of another taste than the many look like slips.
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
from finetune.errors import TrainingAborted
from finetune.intervals import TO_AN_END
from finetune.progress import Progress, silent
from finetune.reward import learn_reward

ENOUGH = 40
"""Choices from which half a reward model can learn something."""
SUREST = 0.95
"""No model is believed more often than this."""
MOST_SLIPS = 0.4
"""People who slip more often are not believable: rather do the models go by something else."""
NOT_SEARCHED = ("rewrite", "ai-choice", "ai-rewrite")
"""Sources whose choices are no slips of a click, and those that say nothing of how people slip."""


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
        not seen them contradicts, and that are left out or count less); not_searched (choices, where a model came to
        numbers that are not finite and the night goes on without them).
    """
    choices = [
        e for e in examples if e.is_pair and not e.demonstrated and e.flip is None and e.source not in NOT_SEARCHED
    ]
    unchanged = list(examples), {"doubted": 0}
    if not night.find_slips or night.pair_loss not in ("dpo", "norm") or len(choices) < ENOUGH:
        return unchanged
    halves = halve(choices, night.seed)
    try:
        verdicts = [_judge(model, half, choices, night, number, progress) for number, half in enumerate(halves)]
    except TrainingAborted:  # the night can go on without
        return list(examples), {"doubted": 0, "not_searched": len(choices)}
    first = {e.key for e in halves[0]}
    unseen = torch.where(torch.tensor([e.key in first for e in choices]), verdicts[1], verdicts[0])
    told = (verdicts[0] != 0) & (verdicts[1] != 0)
    weights = torch.tensor([e.weight for e in choices]) * told
    doubt = weigh_doubt(verdicts[0] == verdicts[1], unseen > 0, weights, night.label_smoothing)
    if doubt is None:
        return unchanged
    supported = {e.key: ok for e, ok, said in zip(choices, (unseen > 0).tolist(), told.tolist(), strict=True) if said}
    kept = [e for e in examples if supported.get(e.key, True) or not doubt.outweighs]
    kept = [doubt.weigh(e, supported[e.key]) if e.key in supported else e for e in kept]
    return kept, {"doubted": int((told & (unseen < 0)).sum())}


def halve(choices: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Divide choices by lot, those on one prompt together: a model has seen neither of the replies that it judges."""
    by_prompt: dict[tuple[int, ...], list[Encoded]] = {}
    for choice in choices:
        by_prompt.setdefault(choice.prompt, []).append(choice)
    groups = list(by_prompt.values())
    random.Random(f"{seed} slips").shuffle(groups)
    halves: tuple[list[Encoded], list[Encoded]] = [], []
    for group in groups:
        min(halves, key=len).extend(group)
    return halves


def weigh_doubt(agree: Tensor, supported: Tensor, weights: Tensor, least: float) -> Doubt | None:
    """Reckon from the verdicts of two models how sure they are and how often people slip.

    Args:
        agree: (C,) bool: whether both say the same.
        supported: (C,) bool: whether the one that has not seen the choice says what the person did.
        weights: (C,) of the choices.
        least: the slip rate where the models find a lower one.

    Returns:
        None where nothing can be concluded.
    """
    together, together_low = _share(agree, weights)
    seen, seen_low = _share(supported, weights)
    if together_low <= 0.5 or seen_low <= 0.5:
        return None
    sureness = min((1 + math.sqrt(2 * together_low - 1)) / 2, SUREST)
    slips = max((sureness - seen) / (2 * sureness - 1), least)
    if slips > MOST_SLIPS:
        return None
    contradicted = slips * sureness / (slips * sureness + (1 - slips) * (1 - sureness))
    kept = slips * (1 - sureness) / (slips * (1 - sureness) + (1 - slips) * sureness)
    return Doubt(sureness, slips, contradicted, kept)


def _share(true: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted share of what is true, and the lower end of its 90 % interval."""
    total = float(weights.sum())
    if not total:
        return 0.0, 0.0
    share = float((weights * true).sum()) / total
    error = math.sqrt(share * (1 - share) * float(weights.square().sum())) / total
    return share, share - TO_AN_END * error


def _judge(
    model: PreTrainedModel,
    half: Sequence[Encoded],
    choices: Sequence[Encoded],
    night: NightSettings,
    number: int,
    progress: Progress,
) -> Tensor:
    """Let a reward model learn from one half and judge all: (C,) 1 where it would choose so, -1, or 0 for a tie."""
    own = night.model_copy(update={"seed": night.seed + number, "reward_epochs": 1})
    with learn_reward(model, half, own, progress, "slips") as learned:
        rewards = learned.reward.rewards([row for e in choices for row in e.rows], progress).view(-1, 2)
    return (rewards[:, 0] - rewards[:, 1]).sign()
