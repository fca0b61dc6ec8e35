"""The losses: pure functions of tensors, and the log-probabilities they rest on.

Numbered differences from the papers:
1. DPO (Rafailov et al. 2023) with label smoothing is the conservative DPO of its authors' note (Mitchell 2023).
2. The NLL term beside DPO is a mean over the completion's tokens (Llama 3, section 4.1.4; Pang et al. 2024, eq. 2).
3. Log-probabilities are computed at completion positions only, in chunks, with a float32 logsumexp; the
   gradient by the hidden states is formed in the same pass, so that no (B, T, V) tensor exists or is kept.
4. IPO (Azar et al. 2023) takes per-token means, as TRL does and as its authors ran it.
5. Plackett-Luce (Rafailov et al. 2023, appendix A.3) is divided by its stages, so that a ranking of nine weighs what a
   pair weighs, and tied completions do not compete with each other.

The K-wise loss is the mean of the losses of a ranking's pairs, which `examples.ordered_pairs` lists; KTO is in kto.py.
Does not cover heads that are themselves trained, nor a softcap on the logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from assistant.arithmetic import turned_linear

CHUNK = 64
"""Positions of one head product, whose 64 × 49,152 float32 logits, 13 MB, come on top of all that a step keeps."""


def dpo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float | Tensor = 0.0,
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
        label_smoothing: ε, one for all or (P,).

    Returns:
        (P,) losses, not weighted.
    """
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    right, wrong = _sides(beta * (chosen_logratios - rejected_logratios), label_smoothing)
    return right + wrong


def robust_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float | Tensor,
) -> Tensor:
    """Compute the robust DPO loss of each pair: in the mean over slips it is what DPO would be without them.

    Source: (-(1-ε) log σ(β d) + ε log σ(-β d)) / (1 - 2ε), d as in `dpo_losses`.
    Chowdhury et al. 2024, "Provably Robust DPO", arXiv:2403.00409.

    Args:
        policy_chosen_logps: (P,) summed over the completion's tokens, as are the other three.
        policy_rejected_logps: (P,)
        reference_chosen_logps: (P,)
        reference_rejected_logps: (P,)
        beta: strength of the pull back to the reference.
        label_smoothing: ε below 0.5, one for all or (P,).

    Returns:
        (P,) losses, not weighted; without bound below.
    """
    assert bool(torch.as_tensor(label_smoothing < 0.5).all()), "at 0.5 a choice says nothing"
    chosen_logratios = policy_chosen_logps - reference_chosen_logps
    rejected_logratios = policy_rejected_logps - reference_rejected_logps
    right, wrong = _sides(beta * (chosen_logratios - rejected_logratios), label_smoothing)
    return (right - wrong) / (1 - 2 * torch.as_tensor(label_smoothing, device=right.device)).to(right.dtype)


def ipo_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    tau: float,
) -> Tensor:
    """Compute the IPO loss of each pair: the margin a token is drawn to 1 / 2τ and not beyond.

    Source: (d̄ - 1 / 2τ)², d̄ = (log π_c - log ref_c) / |y_c| - (log π_r - log ref_r) / |y_r|.
    Azar et al. 2023, arXiv:2310.12036 eq. 17; means over tokens as in TRL 1.16, DPOTrainer `ipo`.

    Args:
        policy_chosen_logps: (P,) summed over the completion's tokens, as are the other three.
        policy_rejected_logps: (P,)
        reference_chosen_logps: (P,)
        reference_rejected_logps: (P,)
        chosen_tokens: (P,) |y_c|.
        rejected_tokens: (P,) |y_r|.
        tau: τ; TRL calls it beta.

    Returns:
        (P,) losses, not weighted.
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / chosen_tokens
    rejected = (policy_rejected_logps - reference_rejected_logps) / rejected_tokens
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def norm_losses(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Compute the length-normalised DPO loss of each pair: a longer reply wins nothing by its length.

    Source: -(1-ε) log σ(β d̄) - ε log σ(-β d̄), d̄ as in `ipo_losses`.
    Lambert et al. 2024, "Tülu 3", arXiv:2411.15124, length-normalised DPO; TRL 1.16, DPOTrainer `sigmoid_norm` (ε = 0).

    Args:
        policy_chosen_logps: (P,) summed over the completion's tokens, as are the other three.
        policy_rejected_logps: (P,)
        reference_chosen_logps: (P,)
        reference_rejected_logps: (P,)
        chosen_tokens: (P,) |y_c|.
        rejected_tokens: (P,) |y_r|.
        beta: of the margin a token, so many times that of `dpo_losses`.
        label_smoothing: ε, one for all or (P,).

    Returns:
        (P,) losses, not weighted.
    """
    chosen = (policy_chosen_logps - reference_chosen_logps) / chosen_tokens
    rejected = (policy_rejected_logps - reference_rejected_logps) / rejected_tokens
    right, wrong = _sides(beta * (chosen - rejected), label_smoothing)
    return right + wrong


def reward_losses(chosen_rewards: Tensor, rejected_rewards: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """Compute the loss of each pair under a reward model; a ranking's is the mean over its pairs.

    Source: -(1-ε) log σ(r_c - r_r) - ε log σ(r_r - r_c). Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155 eq. 1, with
    the probability of a slip as in `dpo_losses`.

    Args:
        chosen_rewards: (P,)
        rejected_rewards: (P,)
        label_smoothing: ε, one for all or (P,).

    Returns:
        (P,) losses, not weighted.
    """
    right, wrong = _sides(chosen_rewards - rejected_rewards, label_smoothing)
    return right + wrong


def plackett_luce_loss(rewards: Tensor, ranks: Sequence[int]) -> Tensor:
    """Compute the Plackett-Luce loss of one ranking: stage by stage the best of those left is drawn.

    Source: -1/S Σ_i (s_i - log(exp s_i + Σ_{rank_j > rank_i} exp s_j)) over the S completions with a worse one.
    Rafailov et al. 2023, arXiv:2305.18290 appendix A.3, divided by S; without ties it is theirs.

    Args:
        rewards: (K,) s = β (log π - log ref).
        ranks: of the K completions; not all equal.

    Returns:
        A scalar.
    """
    place = torch.tensor(ranks, device=rewards.device)
    worse = place[None, :] > place[:, None]  # (K, K)
    left = worse | torch.eye(len(place), dtype=torch.bool, device=rewards.device)
    drawn = rewards - rewards[None, :].masked_fill(~left, float("-inf")).logsumexp(dim=1)
    return -drawn[worse.any(dim=1)].mean()


def _sides(logits: Tensor, label_smoothing: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return -(1-ε) log σ(x) and -ε log σ(-x); 1-ε is formed before ε is rounded to the logits' type."""
    slip = torch.as_tensor(label_smoothing, dtype=torch.float64, device=logits.device)
    right = -(1 - slip).to(logits.dtype) * functional.logsigmoid(logits)
    return right, -slip.to(logits.dtype) * functional.logsigmoid(-logits)


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
        _chosen_logits(logits_of(states, head), ids)[0]
        for states, ids in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def logits_of(states: Tensor, head: nn.Module) -> Tensor:
    """Compute the logits of a chunk: (n, H) to (n, V), the head's rows turned where that is faster."""
    if type(head) is nn.Linear:
        return turned_linear(states, head.weight, head.bias)
    logits: Tensor = head(states)
    return logits


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
            logps[part], logits = _chosen_logits(turned_linear(hidden[part], weight, bias), ids)
            by_logits = logits.exp_().neg_()
            by_logits[torch.arange(len(ids), device=ids.device), ids] += 1
            gradients[part] = by_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradients)
        return logps

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (outputs[0][:, None] * gradients).to(gradients.dtype), None, None, None
