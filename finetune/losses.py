"""The losses: pure functions of tensors, and the log-probabilities they rest on.

Numbered differences from the papers:
1. DPO (Rafailov et al. 2023) with label smoothing is the conservative DPO of its authors' note (Mitchell 2023).
2. The NLL term beside DPO is a mean over the completion's tokens (Llama 3, section 4.1.4; Pang et al. 2024, eq. 2).
3. Log-probabilities are computed at completion positions only, in chunks, with a float32 logsumexp; the
   gradient by the hidden states is formed in the same pass, so that no (B, T, V) tensor exists or is kept.

Does not cover heads that are themselves trained, nor a softcap on the logits.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 128
"""Positions of one head product: 128 × 49,152 float32 logits are 25 MB, which the allocator still hands out again."""


def dpo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the DPO loss of each pair, with the probability that the choice was a slip.

    Source: -(1-ε) log σ(β d) - ε log σ(-β d), d = (log π_c - log ref_c) - (log π_r - log ref_r).
    Rafailov et al. 2023, arXiv:2305.18290 eq. 7; Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.

    Args:
        policy_chosen_logps: (P,) summed over the completion's tokens, as are the other three.
        policy_rejected_logps: (P,)
        reference_chosen_logps: (P,)
        reference_rejected_logps: (P,)
        beta: strength of the pull back to the reference.
        label_smoothing: ε.

    Returns:
        (P,) losses, not weighted.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    logits = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * functional.logsigmoid(logits) - label_smoothing * functional.logsigmoid(-logits)


def sum_by_row(token_logps: Tensor, rows: Tensor, row_count: int) -> Tensor:
    """Add up token log-probabilities to log-probabilities of whole completions.

    Args:
        token_logps: (N,)
        rows: (N,) the row each token belongs to.
        row_count: R.

    Returns:
        (R,)
    """
    return token_logps.new_zeros(row_count).index_add(0, rows, token_logps)


def token_mean_nll(token_logps: Tensor, rows: Tensor, row_count: int) -> Tensor:
    """Compute each completion's negative log-likelihood a token, its end-of-turn token included.

    Source: -1/|y| Σ_t log π(y_t | x, y_<t).

    Args:
        token_logps: (N,)
        rows: (N,) the row each token belongs to.
        row_count: R; a row without tokens gives 0.

    Returns:
        (R,)
    """
    counts = sum_by_row(torch.ones_like(token_logps), rows, row_count)
    return -sum_by_row(token_logps, rows, row_count) / counts.clamp(min=1)


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Compute the log-probability of each target under the head's softmax.

    Source: log p(y) = z_y - logsumexp(z), z = W h + b.

    Args:
        hidden: (N, H) at the positions that predict.
        head: the output layer; frozen. With gradients its weight must be floating point.
        targets: (N,) token ids.

    Returns:
        (N,) float32, differentiable by `hidden`.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        result: Tensor = _TokenLogps.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
        return result
    parts = [
        _chosen_logits(head(states), ids)[0]
        for states, ids in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _chosen_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) log-probabilities of the targets and the (N, V) float32 log-softmax."""
    logits = logits.float()
    logits -= logits.logsumexp(dim=-1, keepdim=True)
    return logits.gather(1, targets[:, None])[:, 0], logits


class _TokenLogps(torch.autograd.Function):
    """Keep the gradient W_y - Σ_v p_v W_v of each log-probability, which depends on one hidden state alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradients = torch.empty_like(hidden)
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            ids = targets[part]
            logps[part], logits = _chosen_logits(functional.linear(hidden[part], weight, bias), ids)
            by_logits = logits.exp_().neg_()
            by_logits[torch.arange(len(ids), device=ids.device), ids] += 1
            gradients[part] = by_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradients)
        return logps

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (outputs[0][:, None] * gradients).to(gradients.dtype), None, None, None
