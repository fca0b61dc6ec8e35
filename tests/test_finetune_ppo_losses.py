"""PPO's parts against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn, tensor

from finetune.ppo_losses import (
    adapt_beta,
    advantages,
    against_others,
    compare_tokens,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)


def test_the_score_stands_at_each_replys_last_token_and_the_leash_at_every_token() -> None:
    """β = 0.1; the first reply has two tokens, the second one."""
    rewards = token_rewards(
        tensor([1.0, -2.0]), tensor([-1.0, -2.0, -3.0]), tensor([-2.0, -2.0, -1.0]), [2, 1], beta=0.1
    )
    torch.testing.assert_close(rewards, tensor([-0.1, 1.0, -1.8]))


def test_two_predictions_of_a_vocabulary_of_two_compared_by_hand() -> None:
    """π = (3/4, 1/4), ref = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2 = 0.130812; then the same twice: 0."""
    policy = tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    reference = tensor([[1.0, 1.0], [3.0, 1.0]]).log()
    found = compare_tokens(policy, reference, nn.Identity(), tensor([1, 0]))
    expected = [[math.log(1 / 4), math.log(1 / 2), 0.130812], [math.log(3 / 4), math.log(3 / 4), 0.0]]
    torch.testing.assert_close(found, tensor(expected))


def test_the_compared_kl_is_the_mean_of_the_log_ratios_of_what_the_policy_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(1, 6, generator=generator).expand(20_000, 6) for _ in range(2))
    drawn = torch.multinomial(policy[:1].softmax(-1), 20_000, replacement=True, generator=generator)[0]
    logps, reference_logps, divergences = compare_tokens(policy, reference, nn.Identity(), drawn).unbind(dim=1)
    ratios = logps - reference_logps
    assert float(ratios.mean()) == pytest.approx(float(divergences[0]), abs=3 * float(ratios.std()) / 20_000**0.5)


def test_advantages_of_three_tokens_worked_by_hand() -> None:
    """λ = 0.5: δ = (0.5 - 0.2, 1 - 0.5, 2 - 1) = (0.3, 0.5, 1); A = (0.3 + 0.25 + 0.25, 0.5 + 0.5, 1)."""
    found = advantages(tensor([0.0, 0.0, 2.0]), tensor([0.2, 0.5, 1.0]), [3], decay=0.5)
    torch.testing.assert_close(found, tensor([0.8, 1.0, 1.0]))


def test_no_advantage_flows_from_one_reply_into_the_one_before_it() -> None:
    found = advantages(tensor([0.0, 1.0, 100.0]), torch.zeros(3), [2, 1], decay=1.0)
    torch.testing.assert_close(found, tensor([1.0, 1.0, 100.0]))


def test_whitened_numbers_have_mean_zero_and_deviation_one_and_equal_ones_become_zero() -> None:
    torch.testing.assert_close(whiten(tensor([1.0, 3.0])), tensor([-1.0, 1.0]))
    torch.testing.assert_close(whiten(tensor([2.0, 2.0])), torch.zeros(2))


def test_a_ratio_is_clipped_only_where_it_would_gain_by_going_on() -> None:
    """ρ = 1.5, 1.5, 0.5, 0.5, 1.1 with A = 1, -1, 1, -1, 1 and ε = 0.2."""
    ratios, gained = tensor([1.5, 1.5, 0.5, 0.5, 1.1]), tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    losses, clipped = policy_losses(ratios.log(), torch.zeros(5), gained, clip=0.2)
    torch.testing.assert_close(losses, tensor([-1.2, 1.5, -0.5, 0.8, -1.1]))
    assert clipped.tolist() == [True, False, False, True, False]


def test_at_the_policy_that_sampled_the_gradient_is_the_policy_gradient() -> None:
    """d loss / d log π = -A where ρ is 1."""
    logps, gained = tensor([-1.0, -2.0, -0.5], requires_grad=True), tensor([0.5, -2.0, 3.0])
    policy_losses(logps, logps.detach(), gained, clip=0.2)[0].sum().backward()
    torch.testing.assert_close(logps.grad, -gained)


def test_a_value_that_moved_past_the_clip_toward_its_return_is_judged_at_the_clip() -> None:
    """Old 0, return 1, ε 0.2: at 0.5 the loss is ½ · 0.8²; at -0.5, away from the return, it is ½ · 1.5²."""
    losses = value_losses(tensor([0.5, -0.5, 0.1]), torch.zeros(3), torch.ones(3), clip=0.2)
    torch.testing.assert_close(losses, tensor([0.32, 1.125, 0.405]))


@pytest.mark.parametrize(
    ("beta", "divergence", "expected"),
    [(0.1, 0.06, 0.12), (0.1, 9.0, 0.125), (0.1, 0.045, 0.09), (0.1, 0.0, 0.08), (0.02, 0.0, 0.02)],
)
def test_beta_follows_the_divergence_by_a_quarter_at_most_and_not_below_its_start(
    beta: float, divergence: float, expected: float
) -> None:
    assert adapt_beta(beta, divergence, target=0.05, least=0.02) == pytest.approx(expected)


def test_a_reply_is_held_against_the_mean_of_the_others_to_its_prompt() -> None:
    """1, 2, 6 to one prompt and 0, 0, 3 to another."""
    found = against_others(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    assert found.tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]


def test_replies_that_are_equal_gain_exactly_nothing() -> None:
    """A rounding error of the mean would be whitened to a full-size advantage."""
    assert against_others(torch.tensor([0.13, 0.13, 0.13, 0.53, 0.53, 0.53]), 3).tolist() == [0.0] * 6
