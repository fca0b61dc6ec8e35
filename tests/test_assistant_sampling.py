"""One token from logits: as often as its probability says, and the same whatever rounding does."""

import torch

from assistant.engine import Sampling
from assistant.sampling import sample

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, -3.0, -9.0])


def test_tokens_come_as_often_as_the_nucleus_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([sample(LOGITS, Sampling(temperature=0.8, top_p=0.95), generator) for _ in range(20_000)])
    expected = (LOGITS / 0.8).softmax(0)
    expected[[2, 4, 5]] = 0  # the others make up 0.95
    expected /= expected.sum()
    shares = draws.bincount(minlength=6) / len(draws)
    assert torch.allclose(shares, expected, atol=4 * (0.25 / len(draws)) ** 0.5) and (shares[expected == 0] == 0).all()


def test_rounding_hardly_ever_changes_what_is_drawn() -> None:
    """Logits of a batch differ by rounding from those alone; a draw by ranks would follow every near tie."""
    torch.manual_seed(0)
    logits = torch.randn(300, 3000)
    other = logits + 1e-5 * torch.randn_like(logits)
    sampling = Sampling(temperature=1.0, top_p=1.0)
    pairs = (
        [sample(row, sampling, torch.Generator().manual_seed(seed)) for row in (logits[seed], other[seed])]
        for seed in range(len(logits))
    )
    assert sum(one != two for one, two in pairs) <= 2


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(LOGITS, Sampling(temperature=0), torch.Generator()) == 1


def test_next_to_no_temperature_takes_the_likeliest_too() -> None:
    for temperature in (1e-300, 1e-40, 1e-7):
        assert sample(LOGITS * 20, Sampling(temperature=temperature), torch.Generator()) == 1


def test_without_a_nucleus_any_token_may_come() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([sample(LOGITS, Sampling(temperature=1.0, top_p=1.0), generator) for _ in range(20_000)])
    shares = draws.bincount(minlength=6) / len(draws)
    assert torch.allclose(shares, LOGITS.softmax(0), atol=4 * (0.25 / len(draws)) ** 0.5) and shares[4] > 0


def test_a_nucleus_of_unlikely_tokens_is_found_whole() -> None:
    """One token of a sixth and a hundred thousand alike: the candidates alone are far from the nucleus."""
    logits = torch.cat([torch.tensor([10.0]), torch.zeros(100_000)])
    draws = [sample(logits, Sampling(temperature=1.0, top_p=0.5), torch.Generator().manual_seed(s)) for s in range(200)]
    assert len(set(draws)) > 90
