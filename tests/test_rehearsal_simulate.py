"""Simulated raters: they vote by the rubric, store what the page would store, and stay away from real people."""

import random
from pathlib import Path

import pytest

from assistant.engine import Request
from assistant.fake import FakeEngine
from assistant.presets import SOCRATIC
from assistant.settings import Settings, load_settings
from feedback_store import Store
from feedback_store.records import Origin
from finetune.problems import Problem, make_problems
from finetune.problems_voted import VOTED_KINDS
from finetune.rubric import is_socratic, states_answer
from finetune.simulate import (
    MAX_NEW_TOKENS,
    RATERS,
    NotForRealPeople,
    choose_side,
    refuse_real_people,
    request_for,
    simulate_votes,
)
from tests.new_store import open_in

PROBLEMS = make_problems(VOTED_KINDS, 90, 5)
ANSWERS = {problem.text: problem for problem in PROBLEMS}


def ask_or_tell(request: Request) -> str:
    """Ask about the problem for an even seed, tell the answer for an odd one."""
    problem = ANSWERS[request.messages[-1]["content"]]
    return f"What about {problem.things[0]}?" if request.sampling.seed % 2 == 0 else f"The answer is {problem.answer}."


@pytest.fixture
def settings(home: Path) -> Settings:
    """Settings of the test's own home."""
    return load_settings(home)


@pytest.fixture
def store(settings: Settings) -> Store:
    """An empty store."""
    settings.home.mkdir(parents=True)
    return open_in(settings.database_path)


def replies_of(store: Store, name: str) -> list[tuple[Problem, str, str, Origin]]:
    """List problem, reply id, text and origin of a rater's replies."""
    person = store.people.get(name)
    found = []
    for kind in ("chat", "compare"):
        for conversation in store.conversations.list(person.id, limit=1000, kind=kind):
            for reply in store.conversations.siblings(store.conversations.thread(conversation.id, person.id)[-1].id):
                problem = ANSWERS[store.conversations.path_to(reply.id)[0].text]
                assert reply.origin is not None
                found.append((problem, reply.id, reply.text, reply.origin))
    return found


@pytest.mark.long
def test_a_rater_without_slips_votes_by_the_rubric(settings: Settings, store: Store) -> None:
    simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS, seed=1)
    person = store.people.get("simulated-ada")
    votes = 0
    for problem, reply_id, text, _ in replies_of(store, "simulated-ada"):
        vote = store.votes.get(reply_id, person.id)
        if vote:
            votes += 1
            assert (vote.value == 1) == is_socratic(text, problem)
            assert vote.value == 1 or vote.reasons
    assert votes > 3


@pytest.mark.long
def test_comparisons_prefer_the_question_and_shuffle_the_sides(settings: Settings, store: Store) -> None:
    simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS, seed=2)
    pairs = [pair for pair in store.votes.pairs() if pair.source == "comparison"]
    right = sum(pair.chosen.endswith("?") and not pair.rejected.endswith("?") for pair in pairs)
    assert len(pairs) > 5
    assert right >= 0.8 * len(pairs)
    choices = [c.choice for p in store.people.all() for c in store.votes.comparisons(p.id)]
    assert {"left", "right"} <= set(choices)


def test_rewrites_are_different_questions_of_the_problem_that_tell_nothing(settings: Settings, store: Store) -> None:
    simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS, seed=3)
    rewrites = list(store.votes.demonstrations())
    for rewrite in rewrites:
        problem = ANSWERS[rewrite.prompt[-1]["content"]]
        assert rewrite.completion in problem.questions
        assert not states_answer(rewrite.completion, problem)
    assert len({rewrite.completion for rewrite in rewrites}) == len(rewrites) > 20


def test_a_reply_is_stored_with_all_that_produced_it(settings: Settings, store: Store) -> None:
    simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS[:30], seed=4)
    origins = [origin for rater in RATERS for *_, origin in replies_of(store, rater.name)]
    assert len(origins) >= 30
    for origin in origins:
        assert origin == Origin(
            adapter_id=None,
            base_id="fake",
            numeric_form="script",
            preset=SOCRATIC.key,
            system=SOCRATIC.system,
            temperature=settings.sampling.temperature,
            top_p=settings.sampling.top_p,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=origin.seed,
        )
    assert len({origin.seed for origin in origins}) == len(origins)


def test_everybody_who_votes_is_marked_as_simulated(settings: Settings, store: Store) -> None:
    counts = simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS[:40], seed=5)
    assert counts["conversations"] == 40
    assert counts["thumbs_up"] and counts["thumbs_down"] and counts["rewrites"]
    simulated = {person.id for person in store.people.all() if person.kind == "simulated"}
    assert {pair.person_id for pair in store.votes.pairs()} <= simulated
    assert not store.conversations.list(store.people.owner().id)


@pytest.mark.long
def test_the_same_seed_casts_the_same_votes(tmp_path: Path, settings: Settings) -> None:
    stores = [open_in(tmp_path / name) for name in ("one.db", "two.db", "three.db")]
    for store, seed in zip(stores, (6, 6, 7), strict=True):
        simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS[:40], seed=seed)
    one, two, three = ([(p.prompt, p.chosen, p.rejected) for p in store.votes.pairs()] for store in stores)
    assert one == two != three


def test_a_second_day_goes_on_with_the_same_people(settings: Settings, store: Store) -> None:
    for part in (PROBLEMS[:20], PROBLEMS[20:40]):
        simulate_votes(FakeEngine(ask_or_tell), store, settings, part, seed=8)
    assert len(store.people.all()) == 1 + len(RATERS)


def test_empty_replies_get_no_vote(settings: Settings, store: Store) -> None:
    counts = simulate_votes(FakeEngine(lambda request: ""), store, settings, PROBLEMS[:20], seed=9)
    assert counts["replies"] >= 20
    assert counts["thumbs_down"] == counts["rewrites"] == counts["comparisons"] == 0


def test_a_store_with_conversations_of_real_people_is_refused_and_left_as_it_was(
    settings: Settings, store: Store
) -> None:
    owner = store.people.owner()
    store.conversations.add_user_message(store.conversations.start(owner.id).id, owner.id, "Hello")
    before = store.votes.counts()
    with pytest.raises(NotForRealPeople, match="Name another home"):
        simulate_votes(FakeEngine(ask_or_tell), store, settings, PROBLEMS, seed=0)
    assert store.votes.counts() == before
    assert len(store.people.all()) == 1


def test_a_real_persons_comparison_alone_is_reason_enough_to_refuse(store: Store) -> None:
    person = store.people.add("maria")
    refuse_real_people(store)
    store.conversations.start(person.id, kind="compare")
    with pytest.raises(NotForRealPeople):
        refuse_real_people(store)


@pytest.mark.parametrize(
    ("left", "right", "choice"), [(4, 1, "left"), (0, 3, "right"), (3, 3, "tie"), (4, 4, "tie"), (2, 2, "both-bad")]
)
def test_a_choice_follows_the_scores(left: int, right: int, choice: str) -> None:
    assert choose_side(left, right, good=3) == choice


def test_the_raters_slip_rates_are_small_and_their_names_say_simulated() -> None:
    assert len(RATERS) >= 4
    assert all(0 <= rater.slip_rate <= 0.1 and rater.name.startswith("simulated-") for rater in RATERS)


def test_replies_end_where_the_raters_stop_reading(settings: Settings) -> None:
    problem = random.Random(0).choice(PROBLEMS)
    short = settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"max_new_tokens": 10})})
    assert request_for(problem, settings, 3, None).sampling.max_new_tokens == MAX_NEW_TOKENS
    assert request_for(problem, short, 3, "a").sampling.max_new_tokens == 10
