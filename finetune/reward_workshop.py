"""Steps that train and examine reward models: from examples to a folder, and from a folder to an accuracy.

A reward model computes on the base as it is trained, not as people are served: it answers nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.loading import Base, dtype_name, load_tokenizer, load_trainable
from assistant.prompt import template_hash
from assistant.settings import Settings
from finetune.attention import short_rows
from finetune.batches import Encoded, encode_examples
from finetune.errors import NothingToLearn
from finetune.examples import Example
from finetune.intervals import share_interval
from finetune.progress import Progress, silent
from finetune.reward import RewardModel, TrainedReward, train_reward
from finetune.reward_folder import attach_reward, read_reward, write_reward
from finetune.workshop import context_tokens, encode_for_training


@dataclass(frozen=True)
class RewardRun:
    """A written reward model and how its training went."""

    id: str
    trained: TrainedReward
    counts: dict[str, int]
    pairs: int
    """Those of rankings counted one by one."""


@dataclass(frozen=True)
class RewardFindings:
    """How a reward model ranks pairs."""

    id: str
    accuracy: float
    low: float
    high: float
    """95 % interval of the accuracy, clustered by conversation."""
    n: int
    length_baseline: float
    numeric_form: str
    counts: dict[str, int]


def train_and_write_reward(
    base: Base, settings: Settings, examples: Sequence[Example], folder: Path, run_id: str, progress: Progress = silent
) -> RewardRun:
    """Train a reward model on examples and write its folder.

    Args:
        base: the frozen base.
        settings: the training settings.
        examples: pairs, rankings and demonstrations, already weighted.
        folder: absent or empty.
        run_id: the run that makes it.
        progress: told after each step.

    Raises:
        NothingToLearn, TrainingAborted: nothing was written.
        ModelUnavailable: the base cannot be had.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    night = settings.night
    tokenizer, model = load_tokenizer(base), load_trainable(base)
    max_tokens = min(night.max_tokens, context_tokens(model))
    encoded, counts = encode_for_training(tokenizer, examples, max_tokens, night.seed)
    with short_rows(model):
        trained = train_reward(model, encoded, night, progress)
    reward_id = write_reward(
        folder,
        trained,
        rank=night.rank,
        alpha=night.alpha,
        base_id=base.id,
        base_name=base.name,
        template_hash=template_hash(tokenizer),
        run_id=run_id,
    )
    return RewardRun(reward_id, trained, counts, sum(len(e.pairs) for e in encoded))


def examine_reward(
    base: Base, settings: Settings, pairs: Sequence[Example], folder: Path, progress: Progress = silent
) -> RewardFindings:
    """Measure how often a reward model prefers what people did.

    Args:
        base: the frozen base.
        settings: max_tokens and threads.
        pairs: held-out preference pairs.
        folder: the reward model's.
        progress: told as rows are scored.

    Raises:
        BadReward: it is absent, damaged or for another base.
        NothingToLearn: no pair fits the model's context.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    saved = read_reward(folder, base.id)
    tokenizer, model = load_tokenizer(base), load_trainable(base)
    max_tokens = min(settings.night.max_tokens, context_tokens(model))
    encoded, counts = encode_examples(tokenizer, pairs, max_tokens)
    if not encoded:
        raise NothingToLearn("Every pair to examine on is longer than the model's context. Give shorter ones.")
    with short_rows(model), attach_reward(model, saved) as reward:
        outcomes = compare_rewards(reward, encoded, progress)
    low, high = share_interval(outcomes, [pair.cluster for pair in encoded])
    lengths = torch.tensor([[float(len(c)) for c in pair.completions] for pair in encoded])
    longer = sum(_wins(lengths)) / len(encoded)
    return RewardFindings(
        saved.id,
        sum(outcomes) / len(outcomes),
        low,
        high,
        len(encoded),
        longer,
        f"{dtype_name(model.dtype)}, as trained",
        counts,
    )


def compare_rewards(reward: RewardModel, pairs: Sequence[Encoded], progress: Progress = silent) -> list[float]:
    """Tell for each pair whether the reward model prefers what the person did: 1, or 0, or 0.5 for a tie."""
    rows = [row for pair in pairs for row in pair.rows]
    return _wins(reward.rewards(rows, progress).view(-1, 2))


def _wins(values: torch.Tensor) -> list[float]:
    """1 where the first of two (P, 2) is larger, 0.5 where they are equal."""
    won: list[float] = torch.heaviside(values[:, 0] - values[:, 1], torch.tensor(0.5)).tolist()
    return won
