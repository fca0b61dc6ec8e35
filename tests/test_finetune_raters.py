"""What one person's votes may do to a night."""

import math
from datetime import UTC, datetime
from pathlib import Path

from assistant.settings import NightSettings
from feedback_store.agreement import Judged, Verdict
from finetune.collect import gather
from finetune.examples import Example
from finetune.raters import bound_influence, contrary_people, tonights_votes
from tests.finetune_support import fill_store, pair
from tests.new_store import open_in

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
WORDS = ("apple", "river", "copper", "violin", "glacier", "saddle", "tunnel", "orchid", "magnet", "pepper")


def bounded(*raw: Example, judged: tuple[Judged, ...] = (), **limits: float) -> tuple[Example, ...]:
    votes = gather(raw, now=NOW, half_life_days=math.inf)
    return bound_influence(votes, judged, NightSettings(**limits), NOW).examples  # type: ignore[arg-type]


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
        gather([old, new], now=NOW, half_life_days=math.inf), (), NightSettings(quarantine_hours=24), NOW
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
