"""The project's own problems: hundreds of them, in groups that share nothing."""

from itertools import combinations

from finetune.problems import Kind, contains_word, make_problems, problem_of
from finetune.problems_dev import DEV_KINDS
from finetune.problems_unseen import TEST_KINDS
from finetune.problems_voted import VOTED_KINDS
from finetune.rubric import asks_question, names_something, states_answer

GROUPS: tuple[tuple[Kind, ...], ...] = (VOTED_KINDS, DEV_KINDS, TEST_KINDS)
ALL_KINDS = VOTED_KINDS + DEV_KINDS + TEST_KINDS


def test_the_groups_share_no_kind() -> None:
    names = [kind.name for kind in ALL_KINDS]
    assert len(set(names)) == len(names) >= 45


def test_the_groups_share_no_wording_no_question_and_no_text() -> None:
    for one, two in combinations(GROUPS, 2):
        assert not {w for kind in one for w in kind.wordings} & {w for kind in two for w in kind.wordings}
        assert not {q for kind in one for q in kind.questions} & {q for kind in two for q in kind.questions}
        assert not {p.text for p in make_problems(one, 300, 0)} & {p.text for p in make_problems(two, 300, 0)}


def test_hundreds_of_texts_are_distinct_and_repeatable() -> None:
    problems = make_problems(VOTED_KINDS, 600, 3)
    assert len({problem.text for problem in problems}) == 600
    assert make_problems(VOTED_KINDS, 600, 3) == problems
    assert make_problems(VOTED_KINDS, 50, 3) == problems[:50]
    assert make_problems(VOTED_KINDS, 50, 4) != problems[:50]


def test_the_kinds_take_turns() -> None:
    problems = make_problems(TEST_KINDS, 2 * len(TEST_KINDS), 0)
    assert [problem.kind for problem in problems] == 2 * [kind.name for kind in TEST_KINDS]


def test_a_text_names_its_things_and_never_its_answer() -> None:
    may_name_it = {kind.name for kind in ALL_KINDS if kind.answer_in_text}
    for problem in make_problems(ALL_KINDS, 500, 1):
        assert problem.things
        assert all(contains_word(problem.text, thing) for thing in problem.things)
        assert problem.kind in may_name_it or not states_answer(problem.text, problem)


def test_a_teachers_question_asks_about_the_problem_and_tells_nothing() -> None:
    for problem in make_problems(VOTED_KINDS, 300, 2):
        assert len(problem.questions) >= 5
        for question in problem.questions:
            assert asks_question(question, problem), question
            assert names_something(question, problem), (question, problem)
            assert not states_answer(question, problem), (question, problem)


def test_no_value_is_left_unfilled() -> None:
    for problem in make_problems(ALL_KINDS, 300, 5):
        for text in (problem.text, problem.answer, *problem.questions):
            assert text.strip()
            assert "{" not in text


def test_answers_hold_for_hand_worked_problems() -> None:
    known = {
        "shopping total": lambda p: _numbers(p)[0] * _numbers(p)[1] + _numbers(p)[2],
        "travel": lambda p: _numbers(p)[0] * _numbers(p)[1],
        "tiles": lambda p: _numbers(p)[0] * _numbers(p)[1],
    }
    for problem in make_problems(ALL_KINDS, 300, 7):
        if problem.kind in known:
            wording = problem.text.split()[0]
            if problem.kind == "shopping total" and wording == "A":
                price, count, extra = _numbers(problem)
                assert int(problem.answer) == price * count + extra
            else:
                assert int(problem.answer) == known[problem.kind](problem)


def _numbers(problem: object) -> list[int]:
    import re

    return [int(number) for number in re.findall(r"\d+", problem.text)]  # type: ignore[attr-defined]


def test_drawing_does_not_depend_on_what_was_drawn_elsewhere() -> None:
    import random

    kind = VOTED_KINDS[0]
    random.random()
    assert problem_of(kind, random.Random("x")) == problem_of(kind, random.Random("x"))
