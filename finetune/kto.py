"""Thumbs: the KTO loss, and what each thumb needs for it beside its own completion.

Numbered differences from the paper (Ethayarajh et al. 2024) and from TRL 1.16:
1. The two sides are balanced by what their votes weigh, not by how many they are; the heavier side is lessened where
   the paper raises the rarer one, so that no vote ever counts more than it was given. Where only one side has weight
   nothing is learned from it: KTO would push every reply up, or every reply down.
2. A mismatched completion is one to another prompt that nobody gave as a reply to this one; TRL takes the neighbour's,
   whatever it answered. It is chosen once, so that its reference log-probability is computed once.
3. z is the mean over the thumbs of one optimiser step.

Knows neither votes nor text.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finetune.batches import Encoded


def prepare_thumbs(examples: Sequence[Encoded], max_tokens: int, seed: int) -> tuple[list[Encoded], dict[str, int]]:
    """Give each thumb its side's factor and a completion to another prompt; all else stays as it is.

    Args:
        examples: of every kind.
        max_tokens: longest prompt plus completion; a mismatched completion is cut to it.
        seed: decides which completion goes to which prompt.

    Returns:
        The examples in the same order, without thumbs where all point the same way, and counts: one_sided_thumbs
        (left out for that), thumbs_without_mismatch (there is no reply to another prompt, so z knows nothing of them).
    """
    thumbs = [e for e in examples if e.thumb is not None]
    up = sum(e.weight for e in thumbs if e.thumb)
    factor_up, factor_down = balance_sides(up, sum(e.weight for e in thumbs if not e.thumb))
    if thumbs and factor_up == 0:
        return [e for e in examples if e.thumb is None], {"one_sided_thumbs": len(thumbs), "thumbs_without_mismatch": 0}
    others = dict(zip((e.key for e in thumbs), _mismatches(thumbs, seed), strict=True))
    prepared = [
        e
        if e.thumb is None
        else replace(
            e,
            balance=factor_up if e.thumb else factor_down,
            mismatched=others[e.key][: max_tokens - len(e.prompt)],
        )
        for e in examples
    ]
    alone = sum(e.thumb is not None and not e.mismatched for e in prepared)
    return prepared, {"one_sided_thumbs": 0, "thumbs_without_mismatch": alone}


def _mismatches(thumbs: Sequence[Encoded], seed: int) -> list[tuple[int, ...]]:
    """Give each thumb the next completion, in an order that the seed decides, that never answered its prompt."""
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for thumb in thumbs:
        answers[thumb.prompt].add(thumb.completions[0])
    if len(answers) < 2:
        return [()] * len(thumbs)
    order = sorted(range(len(thumbs)), key=lambda place: thumbs[place].key)
    random.Random(f"{seed}/mismatches").shuffle(order)
    found: list[tuple[int, ...]] = [()] * len(thumbs)
    for position, place in enumerate(order):
        own = answers[thumbs[place].prompt]
        following = (thumbs[order[(position + n) % len(order)]].completions[0] for n in range(1, len(order)))
        found[place] = next((completion for completion in following if completion not in own), ())
    return found


def kto_losses(
    policy_logps: Tensor, reference_logps: Tensor, desirable: Tensor, divergence: Tensor | float, beta: float
) -> Tensor:
    """Compute the KTO loss of each completion that somebody gave a thumb.

    Source: 1 - σ(β (r - z)) where desirable, 1 - σ(β (z - r)) where not, r = log π - log ref.
    Ethayarajh et al. 2024, arXiv:2402.01306 section 4; λ is left to the caller (`balance_sides`). TRL 1.16, KTOTrainer.

    Args:
        policy_logps: (N,) summed over the completion's tokens.
        reference_logps: (N,)
        desirable: (N,) bool.
        divergence: z, from `kto_divergence`; no gradient goes through it.
        beta: how soon a completion is good or bad enough.

    Returns:
        (N,) losses between 0 and 1, not weighted.
    """
    away = policy_logps - reference_logps - torch.as_tensor(divergence).detach()
    return 1 - torch.sigmoid(beta * torch.where(desirable, away, -away))


def kto_divergence(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Estimate how far the policy is from its reference, from completions to other prompts.

    Source: z = max(0, mean(log π(y'|x) - log ref(y'|x))), y' a completion to a prompt other than x.
    Ethayarajh et al. 2024, arXiv:2402.01306 section 4; TRL 1.16, KTOTrainer.

    Args:
        policy_logps: (M,) of mismatched rows.
        reference_logps: (M,)

    Returns:
        A scalar without gradient; 0 where there is no row.
    """
    if not len(policy_logps):
        return torch.zeros((), device=policy_logps.device)
    return (policy_logps - reference_logps).mean().clamp(min=0).detach()


def balance_sides(desirable_weight: float, undesirable_weight: float) -> tuple[float, float]:
    """Give the factors that make both sides of the thumbs weigh the same: the heavier is lessened, none is raised.

    Source: λ_D Σw_D = λ_U Σw_U with the larger of λ_D and λ_U at 1; within the range that Ethayarajh et al. 2024,
    arXiv:2402.01306, advise for λ_D n_D / (λ_U n_U), which is 1 to 3/2, on weights in place of counts.

    Args:
        desirable_weight: Σw of the thumbs up.
        undesirable_weight: Σw of the thumbs down.

    Returns:
        λ_D and λ_U; both 0 where one side has no weight, since KTO would only push all replies up, or all down.
    """
    lighter = min(desirable_weight, undesirable_weight)
    if lighter <= 0:
        return 0.0, 0.0
    return lighter / desirable_weight, lighter / undesirable_weight
