"""The training loop: a fresh LoRA on the frozen base, from votes of every kind in any mixture.

    step loss = Σ w · example loss / Σ w, each example in the loss that fits it (mixture.py)

The result is a function of (base, examples, settings, seed): on a CPU with the same number of threads, bit for bit.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assistant.settings import NightSettings
from finetune.batches import Encoded, make_batch, micro_batches, plan_steps
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.lora import Lora, attach_lora
from finetune.mixture import Sums, add_up, step_divergence
from finetune.progress import Progress, silent
from finetune.scoring import batch_token_logps

TOKEN_BUDGET = 1024
"""Padded tokens of one micro-batch: bounds the memory of activations; more brought no speed on two cores."""
WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    tensors: dict[str, Tensor]
    """PEFT's names to float32 factors."""
    target_modules: list[str]
    history: list[dict[str, float]]
    """One entry a step: loss, accuracy, margin, chosen_logp (of pairs), kl (of thumbs), grad_norm, learning_rate."""
    seconds: float


def train_adapter(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    reference: Mapping[str, float],
    night: NightSettings,
    progress: Progress = silent,
) -> Trained:
    """Train a fresh adapter from the frozen base.

    Args:
        model: the base; the same, bit for bit, afterwards.
        examples: what to learn from.
        reference: row key to the base's log-probability, for every reference row of every example.
        night: rank, alpha, learning_rate, epochs, beta and the other training settings.
        progress: told after each step.

    Raises:
        NothingToLearn: no example at all.
        TrainingAborted: a loss, gradient or weight is not finite; names the step.
    """
    if not examples:
        raise NothingToLearn("There is no example to train on. Vote on replies or rewrite some, then train again.")
    started = time.monotonic()
    model.eval()
    steps = plan_steps(len(examples), night.epochs, night.batch_examples, night.seed)
    history: list[dict[str, float]] = []
    head = model.get_output_embeddings()
    with attach_lora(model, head, rank=night.rank, alpha=night.alpha, seed=night.seed) as lora:
        optimizer = torch.optim.AdamW(lora.parameters, lr=night.learning_rate, weight_decay=0.0)
        for number, members in enumerate(steps, 1):
            rate = night.learning_rate * schedule(number, len(steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            sums = accumulate_gradients(model, [examples[i] for i in members], reference, night)
            _require_finite(sums.loss, "loss", number)
            norm = float(torch.nn.utils.clip_grad_norm_(lora.parameters, night.max_grad_norm))
            _require_finite(norm, "gradient", number)
            optimizer.step()
            _require_finite(_magnitude(lora), "adapter's weight", number)
            history.append({**sums.numbers(), "grad_norm": norm, "learning_rate": rate})
            progress("train", number, len(steps), **history[-1])
        return Trained(lora.tensors(), lora.target_modules, history, time.monotonic() - started)


def accumulate_gradients(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    reference: Mapping[str, float],
    night: NightSettings,
    token_budget: int = TOKEN_BUDGET,
) -> Sums:
    """Add the gradients of one step's loss, micro-batch by micro-batch.

    Args:
        model: with a trainable adapter attached.
        examples: the step's.
        reference: row key to the base's log-probability.
        night: the loss settings.
        token_budget: padded tokens of a micro-batch; changes memory and speed, no gradient.
    """
    total_weight = sum(e.weight for e in examples)
    sums = Sums()
    divergence = step_divergence(model, examples, reference, token_budget, sums)
    for members in micro_batches(examples, token_budget):
        batch = make_batch([row for e in members for row in e.rows], model.device)
        logps = batch_token_logps(model, batch)
        loss = add_up(logps, batch, members, reference, divergence, night, sums) / total_weight
        loss.backward()
        sums.loss += float(loss.detach())
    return sums


def schedule(step: int, steps: int) -> float:
    """Give the part of the learning rate used in a step: linear warm-up over a tenth, then half a cosine to zero."""
    warm_up = max(1, math.ceil(WARM_UP_SHARE * steps))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up + 1)))


def _magnitude(lora: Lora) -> float:
    norms = torch._foreach_norm([p.detach() for p in lora.parameters])
    return float(torch.stack(norms).max())


def _require_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingAborted(
            f"Training stopped at step {step}: the {what} is not finite. Lower the learning rate and train again."
        )
