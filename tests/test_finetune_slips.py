"""Slips: what two reward models say of choices, in numbers, on a tiny model, and in a night's report."""

import hashlib
import random
from dataclasses import replace

import pytest
import torch

from assistant.settings import NightSettings
from finetune.batches import Encoded
from finetune.notes import explain
from finetune.slips import ENOUGH, Doubt, doubt_choices, weigh_doubt
from tests.finetune_support import encoded, encoded_rankings, encoded_thumbs
from tests.tiny import tiny_model

NIGHT = NightSettings(rank=4, alpha=8, batch_examples=8, reward_learning_rate=1e-2)
GOOD, BAD = 7, 9
"""The last tokens of the two replies of a choice."""


def choices(count: int, slips: float) -> tuple[list[Encoded], set[str]]:
    """Choices of replies that end with GOOD, and the keys of those that went wrong."""
    rng, made, wrong = random.Random(5), [], set()
    for number, pair in enumerate(encoded(count, seed=2)):
        good, bad = (text[:-1] + (last,) for text, last in zip(pair.completions, (GOOD, BAD), strict=True))
        slipped = rng.random() < slips
        made.append(replace(pair, key=f"choice-{number}", completions=(bad, good) if slipped else (good, bad)))
        wrong |= {made[-1].key} if slipped else set()
    return made, wrong


def verdicts(count: int, sureness: float, slips: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether two models agree on choices, and whether the first supports them."""
    rng = random.Random(seed)
    right = [[rng.random() < sureness for _ in range(2)] for _ in range(count)]
    slipped = [rng.random() < slips for _ in range(count)]
    agree = torch.tensor([one == other for one, other in right])
    return agree, torch.tensor([one != slip for (one, _), slip in zip(right, slipped, strict=True)])


def test_sureness_and_slip_rate_are_the_numbers_worked_by_hand() -> None:
    """100 choices, 82 agreements: g = 0.82 - 1.645 √(0.82 · 0.18 / 100) = 0.756801, q = (1 + √0.513602) / 2 = 0.858330.

    66 supported: ε = 0.198330 / 0.716660 = 0.276742; p = ε q / (ε q + (1 - ε) (1 - q)) = 0.237534 / 0.340 = 0.698644 of
    a contradicted choice; of a supported one ε (1 - q) / (ε (1 - q) + (1 - ε) q) = 0.039206 / 0.660 = 0.059403.
    """
    doubt = weigh_doubt(torch.arange(100) < 82, torch.arange(100) < 66, 0.05)
    assert doubt.sureness == pytest.approx(0.858330, abs=1e-5) and doubt.slip_rate == pytest.approx(0.276742, abs=1e-5)
    assert doubt.contradicted == pytest.approx(0.698644, abs=1e-5) and doubt.outweighs
    assert doubt.supported == pytest.approx(0.059403, abs=1e-5)


@pytest.mark.parametrize(("sureness", "slips"), [(0.9, 0.3), (0.8, 0.2), (0.7, 0.4)])
def test_what_made_the_verdicts_is_found_again(sureness: float, slips: float) -> None:
    doubt = weigh_doubt(*verdicts(20_000, sureness, slips), 0.05)
    assert doubt.sureness == pytest.approx(sureness, abs=0.01) and doubt.slip_rate == pytest.approx(slips, abs=0.03)


def test_models_that_know_nothing_change_nothing() -> None:
    surenesses = [weigh_doubt(*verdicts(400, 0.5, 0.3, seed), 0.05).sureness for seed in range(50)]
    assert surenesses.count(0.5) >= 45 and max(surenesses) < 0.7
    assert weigh_doubt(torch.arange(60) < 30, torch.arange(60) < 40, 0.05) == Doubt(0.5, 0.05, 0.05, 0.05)


def test_careful_people_are_hardly_doubted() -> None:
    """Where nobody slips the least slip rate holds, and a contradicted choice still counts."""
    doubt = weigh_doubt(*verdicts(400, 0.8, 0.0), 0.05)
    assert doubt.slip_rate == 0.05 and doubt.contradicted < 0.2 and not doubt.outweighs


def test_a_choice_is_sure_only_where_models_are_right_more_often_than_people() -> None:
    """q = 0.858330 as above. With 80 supported, ε is the least slip rate, 0.1, and below 1 - q; with 66 it is 0.28."""
    choice = encoded(1)[0]
    agree, places = torch.arange(100) < 82, torch.arange(100)
    careful, careless = (weigh_doubt(agree, places < count, 0.1) for count in (80, 66))
    assert not careful.weigh(choice, supported=True).sure and not careful.weigh(choice, supported=False).sure
    assert careless.weigh(choice, supported=True) == replace(choice, flip=careless.supported, sure=True)


def test_slips_are_told_from_choices_by_what_the_others_have_in_common() -> None:
    examples, wrong = choices(400, 0.3)
    found, counts = doubt_choices(tiny_model(), examples, NIGHT)
    kept = {e.key for e in found}
    doubted = {e.key for e in examples} - kept
    assert len(doubted & wrong) > 0.75 * len(wrong) and len(doubted - wrong) < 0.25 * (len(examples) - len(wrong))
    assert counts == {"doubted": len(doubted)} and 100 < len(wrong) < 140
    assert all(e.flip is not None and 0 < e.flip < 0.2 and e.sure for e in found)
    assert [replace(e, flip=None, sure=False) for e in found] == [e for e in examples if e.key in kept]
    assert explain(counts) == [
        f"{len(doubted)} choices contradict what the other choices have in common, and count less or not at all."
    ]


def test_the_same_seed_doubts_the_same_choices_and_leaves_the_base_bit_identical() -> None:
    model, (examples, _) = tiny_model(), choices(60, 0.3)

    def digest() -> str:
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()

    before = digest()
    assert doubt_choices(model, examples, NIGHT) == doubt_choices(tiny_model(), examples, NIGHT)
    assert digest() == before


def test_only_choices_between_two_replies_are_doubted() -> None:
    examples, _ = choices(200, 0.3)
    judged = [replace(e, key=f"judged-{e.key}", flip=0.2) for e in encoded(5, seed=4)]
    others = [*encoded(5, seed=3, demonstrated=True), *encoded_rankings(4, 3), *encoded_thumbs(4), *judged]
    found, counts = doubt_choices(tiny_model(), [*others, *examples], NIGHT)
    assert found[: len(others)] == others and all(e.flip is not None for e in found[len(others) :])
    assert counts["doubted"] > 0


@pytest.mark.parametrize("change", [{"find_slips": False}, {"pair_loss": "robust"}, {"pair_loss": "ipo"}])
def test_a_loss_that_knows_no_slips_or_the_settings_leave_everything_as_it_is(change: dict[str, object]) -> None:
    examples, _ = choices(60, 0.3)
    assert doubt_choices(tiny_model(), examples, NIGHT.model_copy(update=change)) == (examples, {"doubted": 0})


def test_too_few_choices_are_left_as_they_are() -> None:
    examples, _ = choices(ENOUGH - 1, 0.3)
    assert doubt_choices(tiny_model(), examples, NIGHT) == (examples, {"doubted": 0})
