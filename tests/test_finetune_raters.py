"""What one person's votes may do to a night."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assistant.settings import NightSettings
from feedback_store.agreement import Judged, Verdict
from feedback_store.importers import import_file
from finetune.collect import gather
from finetune.examples import Example
from finetune.notes import explain
from finetune.raters import (
    Sides,
    bound_influence,
    coin_probability,
    contrary_people,
    count_sides,
    one_sided_people,
    read_sides,
    tonights_votes,
)
from tests.finetune_support import fill_store, pair
from tests.new_store import open_in

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WORDS = ("apple", "river", "copper", "violin", "glacier", "saddle", "tunnel", "orchid", "magnet", "pepper")


def bounded(*raw: Example, judged: tuple[Judged, ...] = (), **limits: float) -> tuple[Example, ...]:
    votes = gather(raw, now=NOW, half_life_days=math.inf)
    return bound_influence(votes, judged, {}, NightSettings(**limits), NOW).examples  # type: ignore[arg-type]


def weight_by_person(examples: tuple[Example, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for example in examples:
        weights[example.person] = weights.get(example.person, 0) + example.weight
    return weights


def test_nobody_has_more_than_the_largest_share() -> None:
    busy = [pair(i, prompt=f"{word} one", person="busy") for i, word in enumerate(WORDS)]
    others = [pair(20 + i, prompt=f"{word} two", person=f"p{i}") for i, word in enumerate(WORDS[:5])]
    weights = weight_by_person(bounded(*busy, *others, largest_share=0.25))
    assert abs(weights["busy"] / sum(weights.values()) - 0.25) < 1e-6
    assert {weights[f"p{i}"] for i in range(5)} == {1.0}


def test_one_person_alone_keeps_the_whole_weight() -> None:
    alone = [pair(i, prompt=word) for i, word in enumerate(WORDS)]
    assert weight_by_person(bounded(*alone)) == {"1": 10.0}


def test_the_newest_votes_wait_and_do_not_count_as_usable() -> None:
    old = pair(1, prompt="apple", created_at="2026-11-18T12:00:00+00:00")
    new = pair(2, prompt="river", created_at="2026-11-20T11:00:00+00:00")
    votes = bound_influence(
        gather([old, new], now=NOW, half_life_days=math.inf), (), {}, NightSettings(quarantine_hours=24), NOW
    )
    assert [e.conversation for e in votes.examples] == ["c1"]
    assert (votes.counts["waiting"], votes.counts["usable"]) == (1, 1)


def test_a_question_asked_again_and_again_counts_once() -> None:
    same = [pair(i, f"answer {i}", prompt="What is the capital of France?") for i in range(4)]
    other = pair(9, prompt="How do magnets work?")
    weights = {e.conversation: e.weight for e in bounded(*same, other)}
    assert [weights[f"c{i}"] for i in range(4)] == [0.25] * 4 and weights["c9"] == 1.0


def verdicts(said: dict[int, Verdict], items: int = 20) -> tuple[Judged, ...]:
    return tuple(Judged(f"item{i}", person, verdict) for i in range(items) for person, verdict in said.items())


def test_who_contradicts_everybody_is_not_heard() -> None:
    judged = verdicts({1: "first", 2: "first", 3: "second", 4: "first"})
    assert contrary_people(judged) == {3}
    heard = bounded(pair(1, person="1"), pair(2, prompt="river", person="3"), judged=judged)
    assert {example.person for example in heard} == {"1"}


def test_of_two_who_contradict_each_other_both_are_heard() -> None:
    assert contrary_people(verdicts({1: "first", 2: "second"})) == set()


def test_a_few_contradictions_prove_nothing() -> None:
    assert contrary_people(verdicts({1: "first", 2: "first", 3: "second"}, items=4)) == set()


def test_the_night_reads_its_votes_with_tonights_weights(home: Path) -> None:
    home.mkdir()
    store = open_in(home / "nightschool.db")
    fill_store(store, ["What is an apple?", "What is an apple??", "Where do rivers end?"])
    votes = tonights_votes(store, NightSettings(), datetime.now(UTC))
    assert sorted(example.weight for example in votes.examples) == [0.5, 0.5, 1.0]
    assert votes.counts["alike"] == 2
    store.close()


def test_the_probability_of_a_coin_is_that_of_both_sides() -> None:
    assert coin_probability(Sides(10, 0)) == pytest.approx(2 / 1024)
    assert coin_probability(Sides(0, 11)) == pytest.approx(2 / 2048)
    assert coin_probability(Sides(3, 1)) == pytest.approx(2 * (4 + 1) / 16)
    assert coin_probability(Sides(2, 2)) == coin_probability(Sides(0, 0)) == 1
    assert 0 < coin_probability(Sides(600, 400)) < 1e-9


def test_who_always_takes_one_side_is_known_after_eleven_choices() -> None:
    assert one_sided_people({1: Sides(10, 0), 2: Sides(11, 0), 3: Sides(0, 11), 4: Sides(0, 0)}) == {2, 3}


def test_a_slight_leaning_to_one_side_silences_nobody_however_sure_it_is() -> None:
    assert coin_probability(Sides(700, 300)) < 1e-30
    assert one_sided_people({1: Sides(700, 300), 2: Sides(800, 200)}) == {2}


def test_ties_and_open_comparisons_are_no_sides() -> None:
    assert count_sides(["left", "tie", "right", "both-bad", None, "left"]) == (2, 1)


def test_who_takes_one_side_is_not_heard_is_counted_and_explained() -> None:
    raw = [pair(i, prompt=word, person="1" if i < 3 else "2") for i, word in enumerate(WORDS)]
    votes = gather(raw, now=NOW, half_life_days=math.inf)
    heard = bound_influence(votes, (), {1: Sides(40, 2), 2: Sides(20, 22)}, NightSettings(), NOW)
    assert {example.person for example in heard.examples} == {"2"}
    assert (heard.counts["by_side"], heard.counts["usable"]) == (3, 7)
    assert explain(heard.counts) == ["3 are by people who choose one side whatever stands there; left out."]


def test_sides_are_read_of_people_who_vote_here_and_not_of_those_in_files(home: Path) -> None:
    home.mkdir()
    store = open_in(home / "nightschool.db")
    lines = [
        {"prompt": f"{n}?", "left": "yes", "right": "no", "choice": "left", "annotator": "file"} for n in range(20)
    ]
    (home / "file.jsonl").write_text("\n".join(map(json.dumps, lines)))
    import_file(store, home / "file.jsonl", "comparisons")
    fill_store(store, [f"What of {word}?" for word in WORDS], person="ana")
    assert {sum(sides) for sides in read_sides(store).values()} == {0, 10}
    votes = tonights_votes(store, NightSettings(), datetime.now(UTC))
    assert votes.counts["by_side"] == 0 and votes.counts["usable"] == 30
    store.close()
