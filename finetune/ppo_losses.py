"""What PPO is made of: pure functions of tensors and numbers.

Numbered differences from the papers:
1. Tokens of all replies stand in one row, reply after reply: (N,) with the length of each. No padding, no mask.
2. γ is 1 throughout: a reply is judged as a whole, and when a token came does not matter.
3. The clipped losses are means over tokens, as in TRL's last PPO; a long reply counts for more than a short one.
4. β is adapted once an iteration, in proportion to the excess, and never below where it began (`adapt_beta`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.losses import CHUNK, logits_of


def compare_tokens(policy: Tensor, reference: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Compare two models' predictions of each token.

    Source: KL_t = Σ_v π(v) log(π(v) / ref(v)), over the whole vocabulary. Its mean over sampled places estimates the KL
    with less noise than the sampled tokens' log(π / ref). Amini et al. 2025, arXiv:2504.10637.

    Args:
        policy: (N, H) hidden states at the positions that predict.
        reference: (N, H)
        head: makes logits of both.
        targets: (N,) token ids.

    Returns:
        (N, 3) float32: the target's log-probability under the policy, under the reference, and KL_t.
    """
    parts = []
    for ours, theirs, ids in zip(policy.split(CHUNK), reference.split(CHUNK), targets.split(CHUNK), strict=True):
        logps, reference_logps = (logits_of(states, head).float().log_softmax(dim=-1) for states in (ours, theirs))
        chosen = [found.gather(1, ids[:, None])[:, 0] for found in (logps, reference_logps)]
        parts.append(torch.stack([*chosen, (logps.exp() * (logps - reference_logps)).sum(dim=-1)], dim=1))
    return torch.cat(parts)


def token_rewards(
    scores: Tensor, policy_logps: Tensor, reference_logps: Tensor, lengths: Sequence[int], beta: float
) -> Tensor:
    """Compute each token's reward: the pull back to the reference, and the reply's score at its last token.

    Source: R(x, y) = r(x, y) - β log(π(y|x) / ref(y|x)), token by token. Ouyang et al. 2022 (InstructGPT),
    arXiv:2203.02155 eq. 2; Ziegler et al. 2019, arXiv:1909.08593 eq. 2.

    Args:
        scores: (R,) of the replies.
        policy_logps: (N,) of the sampled tokens under the policy that sampled them.
        reference_logps: (N,)
        lengths: (R,) tokens of each reply, at least 1; they add up to N.
        beta: β.

    Returns:
        (N,)
    """
    rewards = -beta * (policy_logps - reference_logps)
    ends = torch.tensor(lengths, device=rewards.device).cumsum(0) - 1
    return rewards.index_add(0, ends, scores.to(rewards))


def advantages(rewards: Tensor, values: Tensor, lengths: Sequence[int], decay: float) -> Tensor:
    """Compute each token's advantage by generalised advantage estimation; the return is advantage + value.

    Source: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} - V_t, V = 0 after the last token, γ = 1.
    Schulman et al. 2016, arXiv:1506.02438 eq. 16.

    Args:
        rewards: (N,)
        values: (N,) the expected rest of the reward before each token.
        lengths: (R,) tokens of each reply; they add up to N.
        decay: λ.

    Returns:
        (N,) float32 on the CPU.
    """
    found: list[float] = []
    for reply_rewards, reply_values in zip(rewards.split(list(lengths)), values.split(list(lengths)), strict=True):
        gained = next_value = 0.0
        backwards: list[float] = []
        for reward, value in zip(reversed(reply_rewards.tolist()), reversed(reply_values.tolist()), strict=True):
            gained = reward + next_value - value + decay * gained
            next_value = value
            backwards.append(gained)
        found += reversed(backwards)
    return torch.tensor(found, dtype=torch.float32)


def against_others(numbers: Tensor, group: int) -> Tensor:
    """Hold each reply's number against the mean of the other replies to its prompt; exactly 0 where all are equal.

    Source: R_i - 1 / (K-1) Σ_{j≠i} R_j. Kool et al. 2019; Ahmadian et al. 2024 (RLOO), arXiv:2402.14740 eq. 7.

    Args:
        numbers: (R,) those of one prompt side by side.
        group: K, 2 or more; R is a multiple of it.

    Returns:
        (R,)
    """
    assert group > 1 and len(numbers) % group == 0, "whole groups"
    grouped = numbers.view(-1, group)
    return ((grouped[:, :, None] - grouped[:, None]).sum(dim=2) / (group - 1)).flatten()


def whiten(values: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1; values that are all equal become 0."""
    return (values - values.mean()) / (values.std(correction=0) + 1e-8)


def policy_losses(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Compute PPO's clipped loss of each token.

    Source: -min(ρ A, clip(ρ, 1-ε, 1+ε) A), ρ = π / π_old. Schulman et al. 2017, arXiv:1707.06347 eq. 7.

    Args:
        logps: (N,) under the policy that learns.
        old_logps: (N,) under the policy that sampled; no gradient goes through them.
        advantages: (N,)
        clip: ε.

    Returns:
        (N,) losses, and (N,) whether a token's gradient is cut off.
    """
    ratios = (logps - old_logps).exp()
    plain, clipped = -ratios * advantages, -ratios.clamp(1 - clip, 1 + clip) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Compute the clipped loss of each token's value.

    Source: ½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²). As in TRL's last PPO and OpenAI's baselines.

    Args:
        values: (N,) under the value model that learns.
        old_values: (N,) before this iteration's first step.
        returns: (N,)
        clip: ε, in the units of the reward.

    Returns:
        (N,)
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def adapt_beta(beta: float, divergence: float, target: float, least: float) -> float:
    """Raise β where the policy is farther from the reference than wanted, and lower it again, never below the least.

    Source: Ziegler et al. 2019, arXiv:1909.08593 section 2.2, whose controller moves by at most 2 % a step for
    thousands of steps; here by at most a quarter, for tens of them.

    Args:
        beta: β of this iteration.
        divergence: KL to the reference, nats a token.
        target: the KL wanted.
        least: the β that training began with.
    """
    return max(least, beta * min(max(divergence / target, 4 / 5), 5 / 4))
