"""Slips: what two reward models say of choices, in numbers, on a tiny model, and in a night's report."""

import hashlib
import random
from dataclasses import replace

import pytest
import torch

from assistant.settings import NightSettings
from finetune import slips as module
from finetune.batches import Encoded
from finetune.errors import TrainingAborted
from finetune.notes import explain
from finetune.slips import ENOUGH, NOT_SEARCHED, Doubt, doubt_choices, halve, weigh_doubt
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


def reckon(agree: torch.Tensor, supported: torch.Tensor, least: float = 0.05) -> Doubt | None:
    """With choices that all weigh the same."""
    return weigh_doubt(agree, supported, torch.ones(len(agree)), least)


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
    doubt = reckon(torch.arange(100) < 82, torch.arange(100) < 66)
    assert doubt
    assert doubt.sureness == pytest.approx(0.858330, abs=1e-5) and doubt.slip_rate == pytest.approx(0.276742, abs=1e-5)
    assert doubt.contradicted == pytest.approx(0.698644, abs=1e-5) and doubt.outweighs
    assert doubt.supported == pytest.approx(0.059403, abs=1e-5)


@pytest.mark.parametrize(("sureness", "slips"), [(0.9, 0.3), (0.8, 0.2), (0.7, 0.35)])
def test_what_made_the_verdicts_is_found_again(sureness: float, slips: float) -> None:
    doubt = reckon(*verdicts(20_000, sureness, slips))
    assert doubt
    assert doubt.sureness == pytest.approx(sureness, abs=0.01) and doubt.slip_rate == pytest.approx(slips, abs=0.03)


def test_models_that_know_nothing_conclude_nothing() -> None:
    found = [reckon(*verdicts(400, 0.5, 0.3, seed)) for seed in range(100)]
    assert found.count(None) >= 98


def test_models_that_agree_on_what_people_do_not_go_by_conclude_nothing() -> None:
    """Both prefer the longer reply, say: the square root takes them for sure, and half of the choices for slips."""
    places = torch.arange(1000)
    agree = places < 950
    assert reckon(agree, places % 2 == 0) is None, "no better than chance at what people choose"
    assert reckon(agree, places % 20 < 11) is None, "better than chance, but nobody slips in 43 % of their choices"
    assert reckon(agree, places % 20 < 15) is not None


def test_choices_that_weigh_little_decide_little() -> None:
    agree, supported = verdicts(400, 0.9, 0.2)
    light = torch.arange(800) >= 400
    weights = torch.where(light, 1e-6, 1.0)
    alone = reckon(agree, supported)
    among = weigh_doubt(torch.cat([agree, ~agree]), torch.cat([supported, ~supported]), weights, 0.05)
    assert alone and among and among.slip_rate == pytest.approx(alone.slip_rate, abs=1e-4)
    assert weigh_doubt(agree, supported, torch.zeros(400), 0.05) is None


def test_careful_people_are_hardly_doubted() -> None:
    """Where nobody slips the least slip rate holds, and a contradicted choice still counts."""
    doubt = reckon(*verdicts(400, 0.8, 0.0))
    assert doubt and doubt.slip_rate == 0.05 and doubt.contradicted < 0.2 and not doubt.outweighs


def test_a_choice_is_sure_only_where_models_are_right_more_often_than_people() -> None:
    """q = 0.858330 as above. With 80 supported, ε is the least slip rate, 0.1, and below 1 - q; with 66 it is 0.28."""
    choice = encoded(1)[0]
    agree, places = torch.arange(100) < 82, torch.arange(100)
    careful, careless = (reckon(agree, places < count, 0.1) for count in (80, 66))
    assert careful and careless
    assert not any(careful.weigh(choice, supported=said).sure for said in (True, False))
    assert careless.weigh(choice, supported=True) == replace(choice, flip=careless.supported, sure=True)


def test_slips_are_told_from_choices_by_what_the_others_have_in_common() -> None:
    examples, wrong = choices(800, 0.3)
    found, counts = doubt_choices(tiny_model(), examples, NIGHT)
    kept = {e.key for e in found}
    doubted = {e.key for e in examples} - kept
    assert len(doubted & wrong) > 0.75 * len(wrong) and len(doubted - wrong) < 0.25 * (len(examples) - len(wrong))
    assert counts == {"doubted": len(doubted)} and 200 < len(wrong) < 280
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


def test_only_choices_that_people_clicked_are_doubted() -> None:
    examples, _ = choices(200, 0.3)
    judged = [replace(e, key=f"judged-{e.key}", flip=0.2) for e in encoded(5, seed=4)]
    written = [replace(e, key=f"{source}-{e.key}", source=source) for source in NOT_SEARCHED for e in examples[:3]]
    others = [*encoded(5, seed=3, demonstrated=True), *encoded_rankings(4, 3), *encoded_thumbs(4), *judged, *written]
    found, counts = doubt_choices(tiny_model(), [*others, *examples], NIGHT)
    assert found[: len(others)] == others and all(e.flip is not None for e in found[len(others) :])
    assert counts["doubted"] > 0


def test_choices_on_one_prompt_are_judged_by_a_model_that_saw_none_of_them() -> None:
    examples, _ = choices(90, 0.3)
    examples = [replace(e, prompt=examples[n // 3].prompt) for n, e in enumerate(examples)]
    halves = halve(examples, seed=0)
    assert {e.prompt for e in halves[0]}.isdisjoint(e.prompt for e in halves[1])
    assert len(halves[0]) == len(halves[1]) == 45 and {e.key for half in halves for e in half} == {
        e.key for e in examples
    }


def test_a_search_that_breaks_off_leaves_the_choices_to_the_night(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*args: object) -> torch.Tensor:
        raise TrainingAborted("not finite")

    examples, _ = choices(60, 0.3)
    monkeypatch.setattr(module, "_judge", break_off)
    found, counts = doubt_choices(tiny_model(), examples, NIGHT)
    assert (found, counts) == (examples, {"doubted": 0, "not_searched": 60})
    assert explain(counts) == [
        "The search for slips came to numbers that are not finite, so all 60 choices count alike; a lower "
        "NIGHTSCHOOL_NIGHT__REWARD_LEARNING_RATE may help."
    ]


@pytest.mark.parametrize("change", [{"find_slips": False}, {"pair_loss": "robust"}, {"pair_loss": "ipo"}])
def test_a_loss_that_knows_no_slips_or_the_settings_leave_everything_as_it_is(change: dict[str, object]) -> None:
    examples, _ = choices(60, 0.3)
    assert doubt_choices(tiny_model(), examples, NIGHT.model_copy(update=change)) == (examples, {"doubted": 0})


def test_too_few_choices_are_left_as_they_are() -> None:
    examples, _ = choices(ENOUGH - 1, 0.3)
    assert doubt_choices(tiny_model(), examples, NIGHT) == (examples, {"doubted": 0})
