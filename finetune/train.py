"""The training loop: a fresh LoRA on the frozen base, from votes of every kind in any mixture.

    step loss = Σ w · example loss / Σ w, each example in the loss that fits it (mixture.py)

The result is a function of (base, examples, settings, seed): on a CPU with the same number of threads, bit for bit,
whether it was killed and went on or not.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assistant.settings import NightSettings
from finetune.batches import Encoded, make_batch, micro_batches, plan_steps, step_weight
from finetune.checkpoints import Checkpoints
from finetune.errors import NothingToLearn, TrainingAborted
from finetune.lora import Lora, attach_lora
from finetune.mixture import Sums, add_up, step_divergence
from finetune.processes import ALONE, World
from finetune.progress import Progress, silent
from finetune.scoring import batch_token_logps, how_to_share, token_budget

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
    """Of all steps, those before a kill included."""
    resumed_at_step: int
    """The first step after a kill; 0 where there was none."""


def train_adapter(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    reference: Mapping[str, float],
    night: NightSettings,
    progress: Progress = silent,
    checkpoints: Checkpoints | None = None,
    world: World = ALONE,
) -> Trained:
    """Train a fresh adapter from the frozen base.

    Args:
        model: the base; the same, bit for bit, afterwards.
        examples: what to learn from.
        reference: row key to the base's log-probability, for every reference row of every example.
        night: rank, alpha, learning_rate, epochs, beta and the other training settings.
        progress: told after each step, and first of all the step done last where a killed training goes on.
        checkpoints: of this very training, to go on from and to write; None keeps none. Rank 0's alone count.
        world: who computes a part of each step; all end with the same factors.

    Raises:
        NothingToLearn: no example at all.
        TrainingAborted: a loss, gradient or weight is not finite; names the step, and the examples or the factor.
    """
    if not examples:
        raise NothingToLearn("There is no example to train on. Vote on replies or rewrite some, then train again.")
    started = time.monotonic()
    model.eval()
    times = [times_seen(e, night) for e in examples]
    steps = plan_steps(times, night.batch_examples, night.seed)
    mean_weight = sum(n * e.weight for n, e in zip(times, examples, strict=True)) / sum(times)
    history: list[dict[str, float]] = []
    resumed_at_step = 0
    head = model.get_output_embeddings()
    with attach_lora(model, head, rank=night.rank, alpha=night.alpha, seed=night.seed) as lora:
        optimizer = torch.optim.AdamW(lora.parameters, lr=night.learning_rate, weight_decay=0.0)
        if saved := world.tell(checkpoints.newest() if checkpoints else None):
            saved.restore(lora, optimizer)
            history, started = saved.history, started - saved.seconds
            resumed_at_step = len(history) + 1
            progress("train", len(history), len(steps), resumed_at_step=resumed_at_step)
        for number, members in enumerate(steps[len(history) :], len(history) + 1):
            part = [examples[i] for i in members]
            rate = night.learning_rate * schedule(number, len(steps))
            optimizer.zero_grad(set_to_none=True)
            sums = accumulate_gradients(model, part, reference, night, world=world, mean_weight=mean_weight)
            if not math.isfinite(sums.loss):
                raise _aborted(number, f"the loss of {_not_finite_examples(model, part, reference, night)}")
            norm = _move(lora, optimizer, rate, night.max_grad_norm, number)
            history.append({**sums.numbers(), "grad_norm": norm, "learning_rate": rate})
            if checkpoints and number < len(steps):
                checkpoints.save(history, time.monotonic() - started, lora, optimizer)
            progress("train", number, len(steps), **history[-1])
        seconds = time.monotonic() - started
        return Trained(lora.tensors(), lora.target_modules, history, seconds, resumed_at_step)


def times_seen(example: Encoded, night: NightSettings) -> int:
    """Say how often a training goes through an example; what an AI judge said is never doubled, its share is capped."""
    sure = (example.demonstrated or example.sure) and not example.source.startswith("ai-")
    return max(night.epochs, night.sure_epochs) if sure else night.epochs


def accumulate_gradients(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    reference: Mapping[str, float],
    night: NightSettings,
    budget: int | None = None,
    world: World = ALONE,
    mean_weight: float | None = None,
) -> Sums:
    """Add the gradients of one step's loss, micro-batch by micro-batch; of several processes each adds its share.

    Args:
        model: with a trainable adapter attached.
        examples: the step's.
        reference: row key to the base's log-probability.
        night: the loss settings.
        budget: padded tokens of a micro-batch, which change no gradient; None is `scoring.token_budget`.
        world: who else computes a part; KTO's divergence, of the whole step, is computed by each.
        mean_weight: of all examples of the training; a step of light ones gets a gradient as light. None is the step's.
    """
    total_weight = sum(e.weight for e in examples)
    counts = step_weight(examples, mean_weight)
    sums = Sums()
    budget = budget or token_budget(model)
    divergence = step_divergence(model, examples, reference, budget, sums)
    sharing = how_to_share(model)
    mine = world.share(examples, lambda e: len(e.completions) * e.width)
    for members in micro_batches(mine, budget, sharing):
        batch = make_batch([row for e in members for row in e.packed(sharing)], model.device)
        logps = batch_token_logps(model, batch)
        loss = add_up(logps, batch, members, reference, divergence, night, sums) / total_weight
        (counts * loss).backward()
        sums.loss += float(loss.detach())
    if world.size > 1:
        _add_up_ranks(world, model, sums)
    return sums


def schedule(step: int, steps: int) -> float:
    """Give the part of the learning rate used in a step: linear warm-up over a tenth, then half a cosine to zero."""
    warm_up = max(1, math.ceil(WARM_UP_SHARE * steps))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up + 1)))


def _add_up_ranks(world: World, model: PreTrainedModel, sums: Sums) -> None:
    """Make the gradients and the numbers of one step's shares those of the step."""
    gradients = []
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # None: no example of this share reaches it
            gradients.append(p.grad)
    world.add(gradients)
    numbers = torch.tensor([sums.loss, sums.pairs, sums.right, sums.margin, sums.chosen_logp], dtype=torch.float64)
    world.add([numbers])
    sums.loss, sums.pairs, sums.right, sums.margin, sums.chosen_logp = numbers.tolist()


def _move(lora: Lora, optimizer: torch.optim.AdamW, rate: float, max_grad_norm: float, step: int) -> float:
    """Shorten the gradients, move the factors, and return the norm that the gradients had."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    gradients = {name: p.grad for name, p in _factors(lora).items() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    if not norm.isfinite():
        raise _aborted(step, f"the gradient of {_first_not_finite(gradients)}")
    torch.nn.utils.clip_grads_with_norm_(lora.parameters, max_grad_norm, norm)
    optimizer.step()
    if not torch.stack(torch._foreach_norm([p.detach() for p in lora.parameters])).isfinite().all():
        raise _aborted(step, f"the weight of {_first_not_finite(_factors(lora))}")
    return float(norm)


def _factors(lora: Lora) -> dict[str, Tensor]:
    layers = lora.layers.items()
    return {f"{name}.lora_{part}": p for name, layer in layers for part, p in (("A", layer.a), ("B", layer.b))}


def _first_not_finite(factors: Mapping[str, Tensor]) -> str:
    """Name a factor; all of them where each is finite and only their norm is not."""
    return next((name for name, tensor in factors.items() if not tensor.isfinite().all()), "all factors together")


def _not_finite_examples(
    model: PreTrainedModel, examples: Sequence[Encoded], reference: Mapping[str, float], night: NightSettings
) -> str:
    """Name the examples of a step whose loss is not finite; all of them where each is finite alone."""
    losses = {e.key: accumulate_gradients(model, [e], reference, night).loss for e in examples}
    keys = [key for key, loss in losses.items() if not math.isfinite(loss)] or list(losses)
    return f"{len(keys)} of {len(losses)} examples ({', '.join(keys)})"


def _aborted(step: int, what: str) -> TrainingAborted:
    return TrainingAborted(
        f"Training stopped at step {step}: {what} is not finite. Lower the learning rate and train again."
    )
