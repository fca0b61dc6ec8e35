"""One step's loss: every example in the loss that fits what somebody said of it.

    demonstration   NLL(first)
    pair            dpo_weight · pair loss + nll_weight · NLL(chosen)
    ranking         dpo_weight · mean of its pairs' losses, or Plackett-Luce, + nll_weight · NLL(best)
    thumb           kto_weight · λ · KTO

The pair loss is conservative DPO unless the settings name another. A pair that carries a demonstration has NLL(first)
at weight 1 and the pair loss. All pairs of a ranking come from one computation of its completions and weigh together
what one pair weighs; the best that are tied share the NLL, and there is none where not even the best is good. Where an
example knows its flip probability p, its NLL counts 1 - 2p: nobody imitates what was chosen by a slip.
Only DPO, robust and length-normalised DPO know flip probabilities: IPO and KTO are bounded by themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assistant.settings import NightSettings
from finetune.batches import Batch, Encoded, make_batch, micro_rows, row_key
from finetune.kto import kto_divergence, kto_losses
from finetune.losses import (
    dpo_losses,
    ipo_losses,
    norm_losses,
    plackett_luce_loss,
    robust_losses,
    sum_by_row,
    token_mean_nll,
)
from finetune.scoring import batch_token_logps


@dataclass
class Sums:
    """Weighted sums over a step's micro-batches."""

    loss: float = 0.0
    pairs: float = 0.0
    right: float = 0.0
    margin: float = 0.0
    chosen_logp: float = 0.0
    kl: float | None = None
    """KTO's z of the step."""

    def numbers(self) -> dict[str, float]:
        """Means for the progress line; those of pairs and thumbs only where there are some."""
        numbers = {"loss": self.loss}
        if self.pairs:
            means = {"accuracy": self.right, "margin": self.margin, "chosen_logp": self.chosen_logp}
            numbers |= {name: value / self.pairs for name, value in means.items()}
        return numbers if self.kl is None else {**numbers, "kl": self.kl}


class Scored(NamedTuple):
    """Completions of a micro-batch, and where each member's begin."""

    sequence: Tensor
    """(C,) log π, summed over tokens."""
    known: Tensor
    """(C,) log ref; NaN where nobody needs it."""
    tokens: Tensor
    """(C,) completion lengths."""
    firsts: list[int]
    """The first completion of each member."""

    def compared(self, better: list[int], worse: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what every pair loss takes first: policy chosen and rejected, reference chosen and rejected."""
        return self.sequence[better], self.sequence[worse], self.known[better], self.known[worse]


@torch.no_grad()
def step_divergence(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    reference: Mapping[str, float],
    token_budget: int,
    sums: Sums,
) -> Tensor | None:
    """Estimate KTO's z from the mismatched rows of a step; None where the step has no thumb.

    Args:
        model: with its adapter attached.
        examples: the step's.
        reference: row key to the base's log-probability.
        token_budget: padded tokens of a micro-batch.
        sums: told z.
    """
    if all(e.thumb is None for e in examples):
        return None
    policy, known = [], []
    for rows in micro_rows([row for e in examples for row in e.mismatch], token_budget):
        batch = make_batch(rows, model.device)
        policy.append(sum_by_row(batch_token_logps(model, batch), batch.completion, len(rows)))
        known += [reference.get(row_key(row), math.nan) for row in rows]
    scores = torch.cat(policy) if policy else torch.zeros(0, device=model.device)
    divergence = kto_divergence(scores, torch.tensor(known, device=model.device))
    sums.kl = float(divergence)
    return divergence


def add_up(
    logps: Tensor,
    batch: Batch,
    members: Sequence[Encoded],
    reference: Mapping[str, float],
    divergence: Tensor | None,
    night: NightSettings,
    sums: Sums,
) -> Tensor:
    """Compute Σ w · loss over a micro-batch, and add its numbers to the sums.

    Args:
        logps: (N,) of every completion token.
        batch: where they belong.
        members: the examples, in the order of the batch's completions.
        reference: row key to the base's log-probability.
        divergence: KTO's z of the step.
        night: the loss settings.
        sums: grow.
    """
    rows = [row for e in members for row in e.rows]
    firsts = list(accumulate((len(e.completions) for e in members[:-1]), initial=0))
    loss = _imitation(token_mean_nll(logps, batch.completion, len(rows)), members, firsts, night.nll_weight)
    if not any(e.is_judged for e in members):
        return loss
    scored = Scored(
        sequence=sum_by_row(logps, batch.completion, len(rows)),
        known=torch.tensor([reference.get(row_key(row), math.nan) for row in rows], device=logps.device),
        tokens=torch.tensor([len(completion) for _, completion in rows], device=logps.device),
        firsts=firsts,
    )
    if any(e.pairs for e in members):
        loss = loss + night.dpo_weight * _preference(scored, members, night, sums)
    if divergence is not None and any(e.thumb is not None for e in members):
        loss = loss + night.kto_weight * _thumbs(scored, members, divergence, night.beta)
    return loss


def _imitation(nll: Tensor, members: Sequence[Encoded], firsts: Sequence[int], nll_weight: float) -> Tensor:
    """Σ w · NLL of what is imitated."""
    taken = [(e, first + place) for e, first in zip(members, firsts, strict=True) for place in e.imitated]
    weights = torch.tensor([e.weight for e, _ in taken], device=nll.device)
    shares = [1.0 if e.demonstrated else nll_weight * (1 - 2 * (e.flip or 0)) / len(e.imitated) for e, _ in taken]
    return (weights * torch.tensor(shares, device=nll.device) * nll[[row for _, row in taken]]).sum()


def _preference(scored: Scored, members: Sequence[Encoded], night: NightSettings, sums: Sums) -> Tensor:
    """Σ w · preference loss of pairs and rankings; all pairs count in the sums, whatever their loss."""
    found = [
        (e, first + better, first + worse)
        for e, first in zip(members, scored.firsts, strict=True)
        for better, worse in e.pairs
    ]
    better, worse = [b for _, b, _ in found], [w for _, _, w in found]
    weights = torch.tensor([e.weight / len(e.pairs) for e, _, _ in found], device=scored.sequence.device)
    _count(sums, night.beta, weights, *[t.detach() for t in scored.compared(better, worse)])
    whole = night.ranking_loss == "plackett-luce"
    single = [i for i, (e, _, _) in enumerate(found) if not (whole and e.ranks)]
    loss = scored.sequence.new_zeros(())
    if single:
        losses = _pair_losses(scored, [found[i] for i in single], night)
        loss = (weights[single] * losses).sum()
    if whole:
        for e, first in zip(members, scored.firsts, strict=True):
            if e.ranks:
                part = slice(first, first + len(e.ranks))
                rewards = night.beta * (scored.sequence[part] - scored.known[part])
                loss = loss + e.weight * plackett_luce_loss(rewards, e.ranks)
    return loss


def _pair_losses(scored: Scored, found: Sequence[tuple[Encoded, int, int]], night: NightSettings) -> Tensor:
    """(P,) losses of pairs, not weighted, in the loss that the settings name."""
    better, worse = [b for _, b, _ in found], [w for _, _, w in found]
    slips = [night.label_smoothing if e.flip is None else e.flip for e, _, _ in found]
    flips = torch.tensor(slips, dtype=torch.float64, device=scored.sequence.device)
    logps = scored.compared(better, worse)
    lengths = scored.tokens[better], scored.tokens[worse]
    if night.pair_loss == "ipo":
        return ipo_losses(*logps, *lengths, night.ipo_tau)
    if night.pair_loss == "norm":
        return norm_losses(*logps, *lengths, night.norm_beta, flips)
    if night.pair_loss == "robust":
        return robust_losses(*logps, night.beta, flips)
    return dpo_losses(*logps, night.beta, flips)


def _thumbs(scored: Scored, members: Sequence[Encoded], divergence: Tensor, beta: float) -> Tensor:
    """Σ w · λ · KTO of the thumbs."""
    rated = [(e, first) for e, first in zip(members, scored.firsts, strict=True) if e.thumb is not None]
    places = [first for _, first in rated]
    device = scored.sequence.device
    desirable = torch.tensor([bool(e.thumb) for e, _ in rated], device=device)
    weights = torch.tensor([e.weight * e.balance for e, _ in rated], device=device)
    return (weights * kto_losses(scored.sequence[places], scored.known[places], desirable, divergence, beta)).sum()


def _count(sums: Sums, beta: float, w: Tensor, chosen: Tensor, rejected: Tensor, ref_c: Tensor, ref_r: Tensor) -> None:
    margins = beta * ((chosen - ref_c) - (rejected - ref_r))
    sums.pairs += float(w.sum())
    sums.right += float((w * ((margins > 0).float() + 0.5 * (margins == 0).float())).sum())
    sums.margin += float((w * margins).sum())
    sums.chosen_logp += float((w * chosen).sum())
