"""The operator's numbers are those of the pure functions, and there before anybody gets impatient."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store import make_votes, operate_page
from feedback_store.__main__ import main
from feedback_store.agreement import Judged, judge, left_bias, measure
from feedback_store.records import Choice
from feedback_store.store import Store, open_store
from tests.test_store_world import answer, ask, whole_store

CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both-bad")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(tmp_path / "home" / "nightschool.db") as opened:
        yield opened


def choose(store: Store, person: int, number: int, choice: Choice, swapped: bool = False) -> Judged:
    """Let somebody choose between the two answers to a question, and return what that says."""
    question = ask(store, f"Question {number}", person)
    texts = (f"One {number}", f"Two {number}")
    left, right = reversed(texts) if swapped else texts
    sides = answer(store, question, left, person).id, answer(store, question, right, person).id
    store.votes.choose(store.votes.show_comparison(person, question.id, *sides).id, person, choice)
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {number}"}]
    return judge(prompt, left, right, choice, person, models=("base-1", "base-1"))  # type: ignore[arg-type]


def test_an_empty_store_has_nothing_to_tell(store: Store) -> None:
    found = store.votes.overview()
    assert (found.agreement.items, found.agreement.percent, found.agreement.kappa) == (0, None, None)
    assert (found.left.chosen, found.left.share, found.votes_a_minute, found.kept_from_teaching) == (0, None, None, 0)
    assert found.counts == store.votes.counts()


@pytest.mark.parametrize("seed", range(3))
def test_agreement_and_sides_are_those_of_the_judgements_themselves(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    people = [1, *(store.people.add(f"p{number}").id for number in range(3))]
    said, choices = [], []
    with store.connections.write():
        for _ in range(60):
            choices.append(chance.choice(CHOICES))
            said.append(
                choose(store, chance.choice(people), chance.randrange(12), choices[-1], swapped=chance.random() < 0.5)
            )
    found = store.votes.overview()
    assert found.agreement == measure(said) and found.agreement.items > 5
    assert found.left == left_bias(choices)


def test_of_two_choices_in_one_moment_the_later_counts(store: Store) -> None:
    other = store.people.add("other").id
    choose(store, 1, 1, "left")
    choose(store, 1, 1, "right")
    choose(store, other, 1, "left")
    with store.connections.write() as db:
        db.execute("UPDATE comparison SET chosen_at = (SELECT min(chosen_at) FROM comparison)")
    assert store.votes.overview().agreement.percent == 0.0


def test_the_pace_is_the_median_voters_and_machines_have_none(store: Store) -> None:
    paces = {"slow": 60, "usual": 20, "quick": 5, "machine": 1}
    with store.connections.write() as db:
        for name, pause_s in paces.items():
            person = store.people.add(name, kind="simulated" if name == "machine" else "account").id
            question = ask(store, "Why?", person)
            for place in range(3):
                reply = answer(store, question, f"Answer {place}", person)
                store.votes.rate(reply.id, person, 1)
                at = f"2026-01-01T00:{pause_s * place // 60:02}:{pause_s * place % 60:02}.000000Z"
                db.execute("UPDATE vote SET updated_at = ? WHERE message_id = ?", [at, reply.id])
    assert store.votes.overview().votes_a_minute == 3.0


def test_who_does_not_teach_is_counted(store: Store) -> None:
    people = [store.people.add(name).id for name in ("on", "off", "unanswered")]
    store.consent.set_person(people[0], "on")
    store.consent.set_person(people[1], "off")
    assert store.votes.overview().kept_from_teaching == 2


def test_stats_tell_how_people_vote(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    other = store.people.add("other").id
    for person, choice in ((1, "left"), (other, "left")):
        choose(store, person, 1, choice)  # type: ignore[arg-type]
    home = ["--home", str(store.path.parent)]
    assert main(["stats", "--json", *home]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["agreement"] == {"items": 1, "percent": 100.0, "kappa": None}
    assert told["left_side"] == {"chosen": 2, "percent": 100.0, "low": 34.2, "high": 100.0}
    assert (told["kept_from_teaching"], told["votes_a_minute"], told["comparisons"]) == (1, None, 2)
    assert main(["stats", *home]) == 0
    words = capsys.readouterr().out
    assert "agreement: items 1, percent 100.0, kappa -\n" in words and "kept from teaching: 1\n" in words


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("kind", ["comparisons", "thumbs"])
def test_a_hundred_thousand_votes_are_counted_within_a_second(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nightschool.db"
    make_votes(path, comparisons=0 if kind == "thumbs" else 100_000, thumbs=100_000 if kind == "thumbs" else 0)
    store = open_store(path, check=False)
    page = operate_page(store, tmp_path)
    taken, filled = [], []
    for _ in range(10):
        began = time.perf_counter()
        found = store.votes.overview()
        taken.append(time.perf_counter() - began)
        shown = page.fill()
        filled.append(time.perf_counter() - began - taken[-1])
    store.close()
    assert found.counts["comparisons"] + found.counts["thumbs_up"] + found.counts["thumbs_down"] == 100_000
    assert found.votes_a_minute == 3.0
    assert "The median voter gives 3.0 votes a minute." in shown[0]
    assert min(taken) < 1 and min(filled) < 1, (taken, filled)
