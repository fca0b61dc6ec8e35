"""The losses against hand-worked numbers, and the head in chunks against the dense one."""

import math

import pytest
import torch

from finetune import kto, losses
from finetune.examples import ordered_pairs


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_of_a_policy_equal_to_its_reference_is_log_two() -> None:
    loss = losses.dpo_losses(tensor(-5), tensor(-7), tensor(-5), tensor(-7), beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2)])


def test_conservative_dpo_equals_the_numbers_worked_by_hand() -> None:
    """d = (-4 - -6) - (-9 - -8) = 3, β d = 1.5; -log σ(1.5) = 0.2014133, -log σ(-1.5) = 1.7014133."""
    loss = losses.dpo_losses(tensor(-4), tensor(-9), tensor(-6), tensor(-8), beta=0.5, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([0.9 * 0.2014132779827524 + 0.1 * 1.7014132779827524])


def test_conservative_dpo_stops_pushing_where_the_margin_says_what_the_smoothing_says() -> None:
    """The gradient is zero at σ(β d) = 1 - ε, so a slip cannot push a pair without end."""
    beta, epsilon = 0.1, 0.2
    logratio = math.log((1 - epsilon) / epsilon) / beta
    policy = tensor(logratio).requires_grad_()
    losses.dpo_losses(policy, tensor(0), tensor(0), tensor(0), beta, epsilon).sum().backward()
    assert policy.grad is not None and abs(policy.grad.item()) < 1e-12


def test_every_pair_may_have_a_flip_probability_of_its_own() -> None:
    four = tensor(-4, -4), tensor(-9, -9), tensor(-6, -6), tensor(-8, -8)
    each = losses.dpo_losses(*four, beta=0.5, label_smoothing=tensor(0.1, 0.3))
    alone = [losses.dpo_losses(*four, beta=0.5, label_smoothing=epsilon)[0].item() for epsilon in (0.1, 0.3)]
    assert each.tolist() == alone
    assert alone == pytest.approx([0.3514132780, 0.6514132780])


def test_robust_dpo_equals_the_numbers_worked_by_hand() -> None:
    """β d = 1.5 as above: (0.9 · 0.2014133 - 0.1 · 1.7014133) / 0.8 = 0.0139133."""
    loss = losses.robust_losses(tensor(-4), tensor(-9), tensor(-6), tensor(-8), beta=0.5, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([0.0139132780])


def test_robust_dpo_over_its_slips_is_dpo_without_them() -> None:
    chosen, rejected, known = tensor(-4), tensor(-9), tensor(-6)
    epsilon = 0.3
    right = losses.robust_losses(chosen, rejected, known, known, 0.5, epsilon)
    slipped = losses.robust_losses(rejected, chosen, known, known, 0.5, epsilon)
    assert torch.allclose(
        (1 - epsilon) * right + epsilon * slipped, losses.dpo_losses(chosen, rejected, known, known, 0.5)
    )


def test_ipo_equals_the_numbers_worked_by_hand() -> None:
    """d̄ = 2 / 4 - -1 / 2 = 1; target 1 / (2 · 0.25) = 2; (1 - 2)² = 1."""
    four = tensor(-4), tensor(-9), tensor(-6), tensor(-8)
    assert losses.ipo_losses(*four, tensor(4), tensor(2), tau=0.25).tolist() == [1.0]
    assert losses.ipo_losses(*four, tensor(4), tensor(2), tau=0.5).tolist() == [0.0]


def test_length_normalised_dpo_equals_the_numbers_worked_by_hand() -> None:
    """d̄ = 1 as above, β d̄ = 1.5: the same numbers as conservative DPO at a margin of 1.5."""
    four = tensor(-4), tensor(-9), tensor(-6), tensor(-8)
    loss = losses.norm_losses(*four, tensor(4), tensor(2), beta=1.5, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([0.3514132780])


def test_kto_equals_the_numbers_worked_by_hand() -> None:
    """r = 2 and -1, z = 0.5, β = 2: 1 - σ(3) = 0.0474259 up; 1 - σ(3) for -1 down, since z - r = 1.5."""
    loss = kto.kto_losses(tensor(-4, -9), tensor(-6, -8), torch.tensor([True, False]), 0.5, beta=2)
    assert loss.tolist() == pytest.approx([0.0474258732, 0.0474258732])


def test_no_gradient_goes_through_the_divergence_and_it_is_never_below_zero() -> None:
    policy = tensor(-2, -5).requires_grad_()
    divergence = kto.kto_divergence(policy, tensor(-4, -4))
    assert divergence.item() == 0.5 and not divergence.requires_grad
    assert kto.kto_divergence(policy, tensor(-1, -1)).item() == 0
    assert kto.kto_divergence(tensor(), tensor()).item() == 0
    away = policy.mean()
    kto.kto_losses(tensor(-3), tensor(-3), torch.tensor([True]), away, beta=1).requires_grad_().sum().backward()
    assert policy.grad is None


@pytest.mark.parametrize(
    ("up", "down", "factors"),
    [(3, 1, (1 / 3, 1)), (0.5, 2, (1, 0.25)), (2, 2, (1, 1)), (5, 0, (0, 0)), (0, 5, (0, 0)), (0, 0, (0, 0))],
)
def test_both_sides_weigh_the_same_none_more_than_it_was_given_and_one_alone_nothing(
    up: float, down: float, factors: tuple[float, float]
) -> None:
    assert kto.balance_sides(up, down) == pytest.approx(factors)


def test_the_reward_loss_equals_the_numbers_worked_by_hand() -> None:
    """r_c - r_r = 1.5: -log σ(1.5) = 0.2014133; with slips of 0.1 the number of conservative DPO at that margin."""
    assert losses.reward_losses(tensor(2), tensor(0.5)).tolist() == pytest.approx([0.2014132780])
    slips = tensor(0, 0.1)
    assert losses.reward_losses(tensor(2, 2), tensor(0.5, 0.5), slips).tolist() == pytest.approx(
        [0.2014132780, 0.3514132780]
    )


def test_the_pairs_of_a_ranking_are_all_that_are_in_order_and_no_ties() -> None:
    assert ordered_pairs((1, 2, 2, 3)) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert ordered_pairs((1, 1)) == []
    assert len(ordered_pairs(range(9))) == 36


def test_plackett_luce_equals_the_numbers_worked_by_hand() -> None:
    """s = ln 4, ln 2, ln 1, best first: 4 of 7 draw the first, 2 of 3 the second; the last is drawn by itself."""
    rewards = tensor(math.log(4), math.log(2), 0)
    expected = -(math.log(4 / 7) + math.log(2 / 3)) / 2
    assert losses.plackett_luce_loss(rewards, (1, 2, 3)).item() == pytest.approx(expected)


def test_tied_completions_do_not_compete_with_each_other() -> None:
    """Both best are drawn against the last alone: 4 of 5 and 2 of 3."""
    rewards = tensor(math.log(4), math.log(2), 0)
    expected = -(math.log(4 / 5) + math.log(2 / 3)) / 2
    assert losses.plackett_luce_loss(rewards, (1, 1, 2)).item() == pytest.approx(expected)


def test_plackett_luce_of_two_is_dpo() -> None:
    rewards = 0.5 * (tensor(-4, -9) - tensor(-6, -8))
    dpo = losses.dpo_losses(tensor(-4), tensor(-9), tensor(-6), tensor(-8), beta=0.5)
    assert losses.plackett_luce_loss(rewards, (1, 2)).item() == pytest.approx(dpo.item())


def test_the_token_mean_of_each_row_equals_the_numbers_worked_by_hand() -> None:
    logps, rows = tensor(-1, -3, -2, -2, -5), torch.tensor([0, 0, 2, 2, 2])
    assert losses.token_mean_nll(logps, rows, 3).tolist() == [2, 0, 3]
    assert losses.sum_by_row(logps, rows, 3).tolist() == [-4, 0, -9]


@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_chunks_equals_the_dense_head_in_values_and_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden, targets = torch.randn(2 * losses.CHUNK + 7, 16), torch.randint(0, 50, (2 * losses.CHUNK + 7,))
    weights = torch.rand(len(hidden))
    mine, dense = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    chunked = losses.token_logps(mine, head, targets)
    expected = torch.log_softmax(head(dense), dim=-1).gather(1, targets[:, None])[:, 0]
    (chunked * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(chunked, expected, atol=1e-5)
    assert mine.grad is not None and dense.grad is not None
    assert torch.allclose(mine.grad, dense.grad, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(losses.token_logps(hidden, head, targets), expected, atol=1e-5)


def test_a_confident_head_in_bf16_keeps_its_small_gradient() -> None:
    """Subtracting two large bf16 sums would leave rounding noise where the probability is near one."""
    head = torch.nn.Linear(8, 4, bias=False).requires_grad_(False).to(torch.bfloat16)
    head.weight.copy_(torch.eye(4, 8) * 10)
    hidden = torch.zeros(1, 8, dtype=torch.bfloat16)
    hidden[0, 0] = 1
    mine, exact = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    losses.token_logps(mine, head, torch.tensor([0])).sum().backward()
    torch.log_softmax(exact @ head.weight.float().T, -1)[0, 0].backward()
    assert mine.grad is not None and exact.grad is not None
    assert torch.allclose(mine.grad.float(), exact.grad, rtol=0.02, atol=1e-7)
