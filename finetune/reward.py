"""The reward model: an adapter and a scalar head on the frozen base, learned from pairs and rankings.

    r(x, y) = w · h + b, h the last layer's hidden state at the last token of y

Numbered differences from InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, section 3.5 and appendix C.2):
1. The base is frozen: what learns is a LoRA adapter, and w.
2. w begins at zero, so that every loss begins at log 2 and no reply has a lead by chance.
3. An example has a weight, and a choice may have been a slip.

All pairs of one prompt are in one element, tied ones dropped, and weigh together what one pair weighs. The last token
is found by its index: it ends the turn and is the padding as well in many models, so that the last token that is no
padding would be another one. The loss does not know b, which is set afterwards.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assistant.settings import NightSettings
from finetune.batches import (
    Batch,
    Encoded,
    Row,
    make_batch,
    micro_batches,
    micro_rows,
    plan_steps,
    share_rows,
    single_rows,
    step_weight,
)
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.lora import Lora, attach_lora
from finetune.losses import reward_losses
from finetune.progress import Progress, silent
from finetune.scoring import hidden_states, how_to_share, token_budget
from finetune.train import schedule

Centre = Literal["demonstrations", "preferred replies"]


@dataclass(frozen=True)
class RewardHead:
    """Hidden states to rewards; knows nothing of the adapter."""

    weight: Tensor
    """(H,) float32."""
    bias: float

    def rewards(self, hidden: Tensor) -> Tensor:
        """Compute the rewards of completions from their last tokens' hidden states: (C, H) to (C,) float32."""
        return hidden.float() @ self.weight + self.bias


@dataclass(frozen=True)
class RewardModel:
    """A head, and a model in which the adapter that belongs to it is attached and switched on."""

    model: PreTrainedModel
    head: RewardHead

    @torch.no_grad()
    def rewards(self, rows: Sequence[Row], progress: Progress = silent) -> Tensor:
        """Compute the reward of each row.

        Args:
            rows: prompt and completion ids.
            progress: told after each batch.

        Returns:
            (R,) float32, on the CPU.
        """
        distinct = list(dict.fromkeys(rows))
        found: dict[Row, float] = {}
        for part in micro_rows(share_rows(distinct, how_to_share(self.model)), token_budget(self.model)):
            rewards = self.head.rewards(end_states(self.model, make_batch(part, self.model.device)))
            found |= zip(single_rows(part), rewards.tolist(), strict=True)
            progress("rewards", len(found), len(distinct))
        return torch.tensor([found[row] for row in rows], dtype=torch.float32)


@dataclass(frozen=True)
class TrainedReward:
    """A finished training."""

    tensors: dict[str, Tensor]
    """PEFT's names to float32 factors."""
    target_modules: list[str]
    head: RewardHead
    centre: Centre
    """Whose rewards average zero."""
    history: list[dict[str, float]]
    """One entry a step: loss, accuracy, margin, grad_norm, learning_rate."""
    seconds: float


@dataclass(frozen=True)
class LearnedReward:
    """A reward model while its adapter is attached, not centred yet."""

    reward: RewardModel
    lora: Lora
    history: list[dict[str, float]]
    """As in TrainedReward."""


def train_reward(
    model: PreTrainedModel, examples: Sequence[Encoded], night: NightSettings, progress: Progress = silent
) -> TrainedReward:
    """Train a reward model from the frozen base.

    Args:
        model: the base; the same, bit for bit, afterwards.
        examples: pairs and rankings to learn from, and demonstrations to centre on.
        night: reward_learning_rate, reward_epochs, label_smoothing, and the adapter's settings.
        progress: told after each step.

    Raises:
        NothingToLearn: nothing is preferred to anything.
        TrainingAborted: a loss, gradient or weight is not finite; names the step.
    """
    started = time.monotonic()
    with learn_reward(model, examples, night, progress) as learned:
        head, centre = _centred(learned.reward, examples, progress)
        seconds = time.monotonic() - started
        return TrainedReward(
            learned.lora.tensors(), learned.lora.target_modules, head, centre, learned.history, seconds
        )


@contextmanager
def learn_reward(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    night: NightSettings,
    progress: Progress = silent,
    phase: str = "reward",
) -> Iterator[LearnedReward]:
    """Train a reward model for the time of the block; afterwards the base is as before.

    Args:
        model: the base.
        examples: the pairs and rankings among them are learned from.
        night: as for `train_reward`.
        progress: told after each step.
        phase: what is told.

    Raises:
        NothingToLearn, TrainingAborted: as `train_reward`.
    """
    compared = [e for e in examples if e.pairs]
    if not compared:
        raise NothingToLearn("No reply is preferred to another one. Compare or rank replies, then train again.")
    model.eval()
    steps = plan_steps([night.reward_epochs] * len(compared), night.batch_examples, night.seed)
    mean_weight = sum(e.weight for e in compared) / len(compared)
    history: list[dict[str, float]] = []
    output = model.get_output_embeddings()
    with attach_lora(model, output, rank=night.rank, alpha=night.alpha, seed=night.seed) as lora:
        weight = nn.Parameter(torch.zeros(model.config.get_text_config().hidden_size, device=model.device))
        head = RewardHead(weight, 0.0)
        learned = [*lora.parameters, weight]
        optimizer = torch.optim.AdamW(learned, weight_decay=0.0)
        for number, members in enumerate(steps, 1):
            rate = night.reward_learning_rate * schedule(number, len(steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            numbers = accumulate_reward_gradients(
                model, head, [compared[i] for i in members], night, mean_weight=mean_weight
            )
            _require_finite(numbers["loss"], "loss", number)
            norm = float(nn.utils.clip_grad_norm_(learned, night.max_grad_norm))
            _require_finite(norm, "gradient", number)
            optimizer.step()
            _require_finite(float(nn.utils.get_total_norm([p.detach() for p in learned])), "weight", number)
            history.append({**numbers, "grad_norm": norm, "learning_rate": rate})
            progress(phase, number, len(steps), **history[-1])
        yield LearnedReward(RewardModel(model, RewardHead(weight.detach(), 0.0)), lora, history)


def accumulate_reward_gradients(
    model: PreTrainedModel,
    head: RewardHead,
    examples: Sequence[Encoded],
    night: NightSettings,
    budget: int | None = None,
    mean_weight: float | None = None,
) -> dict[str, float]:
    """Add the gradients of one step's loss, micro-batch by micro-batch.

    Args:
        model: with a trainable adapter attached.
        head: with a trainable weight.
        examples: the step's pairs and rankings.
        night: label_smoothing.
        budget: padded tokens of a micro-batch, which change no gradient; None is `scoring.token_budget`.
        mean_weight: of all examples of the training; a step of light ones gets a gradient as light. None is the step's.

    Returns:
        The step's loss, and accuracy and margin of its pairs.
    """
    total_weight = sum(e.weight for e in examples)
    counts = step_weight(examples, mean_weight)
    sums = torch.zeros(3, device=model.device)
    sharing = how_to_share(model)
    for members in micro_batches(examples, budget or token_budget(model), sharing):
        batch = make_batch([row for e in members for row in e.packed(sharing)], model.device)
        losses, margins, weights = pair_losses(head.rewards(end_states(model, batch)), members, night.label_smoothing)
        shares = weights / total_weight
        loss = (shares * losses).sum()
        (counts * loss).backward()
        won = torch.heaviside(margins.detach(), margins.new_tensor(0.5))
        sums += torch.stack([loss.detach(), (shares * won).sum(), (shares * margins.detach()).sum()])
    return dict(zip(("loss", "accuracy", "margin"), sums.tolist(), strict=True))


def pair_losses(rewards: Tensor, members: Sequence[Encoded], label_smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of every pair of a micro-batch, those of rankings among them.

    Args:
        rewards: (C,) of the members' completions, in their order.
        members: pairs and rankings.
        label_smoothing: probability of a slip where an example knows no other.

    Returns:
        (P,) losses, (P,) margins r_c - r_r, and (P,) weights, which add up to an example's weight over its pairs.
    """
    firsts = accumulate((len(e.completions) for e in members[:-1]), initial=0)
    found = [(e, first + b, first + w) for e, first in zip(members, firsts, strict=True) for b, w in e.pairs]
    chosen, rejected = rewards[[b for _, b, _ in found]], rewards[[w for _, _, w in found]]
    slips = [label_smoothing if e.flip is None else e.flip for e, _, _ in found]
    losses = reward_losses(chosen, rejected, torch.tensor(slips, dtype=torch.float64, device=rewards.device))
    weights = torch.tensor([e.weight / len(e.pairs) for e, _, _ in found], device=rewards.device)
    return losses, chosen - rejected, weights


def end_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Compute the hidden state at each completion's last token: (C, H)."""
    return hidden_states(model, batch)[batch.owners, batch.ends]


def _centred(trained: RewardModel, examples: Sequence[Encoded], progress: Progress) -> tuple[RewardHead, Centre]:
    """Shift b so that demonstrations average zero; where there are none, the preferred replies."""
    shown = [e for e in examples if e.demonstrated]
    rows = [e.rows[0] for e in shown or (e for e in examples if e.pairs)]
    mean = float(trained.rewards(rows, progress).double().mean())
    return replace(trained.head, bias=-mean), "demonstrations" if shown else "preferred replies"


def _require_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingAborted(
            f"The reward model's training stopped at step {step}: the {what} is not finite. "
            "Lower NIGHTSCHOOL_NIGHT__REWARD_LEARNING_RATE and train again."
        )
