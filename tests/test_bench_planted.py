"""The planted preference: what is voted on, who votes how, and what a night makes of it."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assistant.settings import NightSettings
from bench.planted import EXAMINED, PEOPLE, SLIP_RATE, VOTES, Learned, Planted, cast_votes, table, write_pairs
from feedback_store import Store, open_store
from finetune.examples import Example
from finetune.problems import make_problems
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.raters import read_sides, tonights_votes


@pytest.fixture(scope="module")
def pairs() -> list[Example]:
    return write_pairs(make_problems(VOTED_KINDS, VOTES, 7), random.Random(7))


@pytest.fixture
def store(home: Path, pairs: list[Example]) -> Iterator[Store]:
    home.mkdir()
    opened = open_store(home / "nightschool.db")
    cast_votes(opened, pairs, random.Random(7))
    yield opened
    opened.close()


def test_only_the_better_reply_ends_with_a_question(pairs: list[Example]) -> None:
    assert all(better.endswith("?") and worse.endswith(".") for better, worse in (p.completions for p in pairs))


def test_neither_a_question_mark_nor_the_length_nor_the_wording_tells_the_replies_apart(pairs: list[Example]) -> None:
    asked_before = sum("?" in pair.completions[1] for pair in pairs)
    longer = sum(len(better) > len(worse) for better, worse in (pair.completions for pair in pairs))
    assert 0.2 * VOTES < asked_before < 0.6 * VOTES
    assert 0.3 * VOTES < longer < 0.7 * VOTES
    assert len({text for pair in pairs for text in pair.completions}) > 1.95 * VOTES
    assert len({pair.completions[0].split(". ")[-1].split("? ")[-1] for pair in pairs}) > 0.8 * VOTES


def test_a_fifth_of_the_votes_are_always_left_and_three_in_ten_of_the_others_are_slips(
    store: Store, pairs: list[Example]
) -> None:
    sides = sorted(read_sides(store).values(), key=lambda one: one.left)
    assert sum(map(sum, sides)) == VOTES and sides[-1] == (VOTES // PEOPLE, 0)
    better = {pair.completions[0] for pair in pairs}
    [spammer] = {p.person_id for p in store.votes.pairs()} - {
        person for person, one in read_sides(store).items() if one.right
    }
    honest = [pair for pair in store.votes.pairs() if pair.person_id != spammer]
    slipped = sum(pair.chosen not in better for pair in honest) / len(honest)
    assert abs(slipped - SLIP_RATE) < 0.08
    assert all(person.kind == "simulated" for person in store.people.all() if person.kind != "owner")


def test_the_night_hears_everybody_but_the_one_who_always_takes_the_left(store: Store) -> None:
    votes = tonights_votes(store, NightSettings(), datetime.now(UTC))
    assert votes.counts["by_side"] == VOTES // PEOPLE and votes.counts["usable"] == VOTES - VOTES // PEOPLE
    assert votes.counts["people"] == PEOPLE


def test_examined_problems_are_of_kinds_that_nobody_voted_on() -> None:
    assert EXAMINED >= 100 and not {kind.name for kind in VOTED_KINDS} & {kind.name for kind in TEST_KINDS}


def test_the_table_has_both_trainings_side_by_side() -> None:
    found = Planted(1, 120, Learned(0.9, 0.84, 0.94, 256, 5.25), Learned(0.7, 0.6, 0.8, 320, 4.0), 80)
    assert table([found])[-1] == "| 1 | 120 | 90 % (84 to 94) | 256, 5.2 | 70 % (60 to 80) | 320, 4.0 | 80 |"
