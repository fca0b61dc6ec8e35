"""The rubric, in both directions, by hand-written replies."""

import pytest

from finetune.problems import Problem
from finetune.rubric import (
    asks_question,
    is_socratic,
    names_something,
    opening,
    questions_in,
    repeats_problem,
    score,
    states_answer,
    works_it_out,
)

SHOP = Problem(
    text="Leila buys 4 lemons at 3 euros each and a lamp for 30 euros. How much is that in all?",
    answer="42",
    kind="shopping total",
    things=("Leila", "4", "lemons", "3", "lamp", "30"),
    questions=(),
)
TALLEST = Problem(
    text="Amara is taller than Sami. Hugo is taller than Amara. Who is the tallest?",
    answer="Hugo",
    kind="order",
    things=("Amara", "Sami", "Hugo"),
    questions=(),
)
CHANCE = Problem(
    text="A bag holds 3 red and 5 blue beads. How likely is red?",
    answer="3/8",
    kind="balls",
    things=("3", "red", "5", "blue", "beads"),
    questions=(),
    also=("3 out of 8",),
)
LIST = Problem(
    text="Do one pass of bubble sort on 7, 2, 9, 4.", answer="2, 7, 4, 9", kind="b", things=("7", "2"), questions=()
)


@pytest.mark.parametrize(
    "reply",
    [
        "How much do the lemons cost?",
        "Let's look at the lemons first. How much do 4 of them cost?",
        "What is the price of one lemon? Give it a try!",
        'What does "each" tell you?',
        "How much do the lemons cost?\n\nTake your time.",
    ],
)
def test_a_question_that_is_left_to_the_student_counts(reply: str) -> None:
    assert asks_question(reply, SHOP)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "?",
        "The lemons cost 12 euros.",
        "How much do the lemons cost? They cost 4 times 3, which is 12 euros.",
        "How much is it? 42",
        "What do we know? We know that Leila buys lemons and a lamp and pays for both of them at once.",
        "How much is that in all?",
    ],
)
def test_no_question_or_one_that_the_reply_answers_or_hands_back_does_not_count(reply: str) -> None:
    assert not asks_question(reply, SHOP)


@pytest.mark.parametrize(
    "reply",
    [
        "42",
        "The answer is 42 euros.",
        "That makes forty-two euros.",
        "That makes forty two euros.",
        "She pays 42.00 euros. Do you see why?",
        "Is it not 42?",
        "What is 4 times 3? It is 12, and 12 + 30 = 42.",
    ],
)
def test_the_answer_counts_as_stated_in_any_form_and_also_beside_a_question(reply: str) -> None:
    assert states_answer(reply, SHOP)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "How much do 4 lemons cost at 3 euros each, and how much is the lamp for 30?",
        "That makes 142 euros.",
        "It is 4.2 or 420 or 42.5.",
        "Four lemons and thirty euros.",
    ],
)
def test_numbers_of_the_problem_and_other_numbers_are_not_the_answer(reply: str) -> None:
    assert not states_answer(reply, SHOP)


def test_the_number_of_a_list_item_is_not_the_answer() -> None:
    problem = Problem("How many boats take 30 pupils?", "5", "groups", ("30",), ())
    assert not states_answer("5. Which boats are there?\nStep 5: what do you see?", problem)
    assert states_answer("They need 5 boats.", problem)


def test_a_large_answer_is_found_with_and_without_separators_and_in_words() -> None:
    problem = Problem("How many metres are 12 kilometres and 50 steps?", "1200", "k", ("12",), ())
    assert states_answer("It is 1,200 metres.", problem)
    assert states_answer("It is 1200.0 metres.", problem)
    assert states_answer("Twelve hundred metres.", problem)
    assert not states_answer("It is 1,2000 metres.", problem)


def test_a_fraction_is_found_in_each_of_its_forms_and_not_in_its_parts() -> None:
    assert states_answer("The chance is 3/8.", CHANCE)
    assert states_answer("The chance is three out of eight.", CHANCE)
    assert not states_answer("There are 3 red beads. How many are there in all, 8 or more?", CHANCE)


def test_a_list_is_stated_only_in_its_order() -> None:
    assert states_answer("The list is [2, 7, 4, 9] now.", LIST)
    assert not states_answer("Which comes first in 7, 2, 9, 4?", LIST)


def test_an_answer_among_the_problems_names_is_stated_by_a_sentence_and_not_by_a_question() -> None:
    assert states_answer("Hugo is the tallest.", TALLEST)
    assert states_answer("So it must be Hugo! Do you agree?", TALLEST)
    assert not states_answer("Is Hugo taller than Amara?", TALLEST)
    assert not states_answer("Hugo is taller than Amara. What follows?", TALLEST)


def test_an_equation_or_a_conclusion_works_the_problem_out_and_a_question_about_one_does_not() -> None:
    assert works_it_out("4 * 3 = 12. What next?")
    assert works_it_out("Therefore she pays 17 euros.")
    assert works_it_out("The answer is 17.")
    assert not works_it_out("What does 4 * 3 = ? mean here?")
    assert not works_it_out("How much do the lemons cost?")


def test_a_question_names_a_number_or_a_thing_of_its_problem_in_any_of_their_forms() -> None:
    for reply in (
        "What does one lemon cost?",
        "What are four times that?",
        "What does LEILA buy?",
        "The lamp's price?",
    ):
        assert names_something(reply, SHOP)


def test_a_constant_question_and_things_outside_of_questions_name_nothing() -> None:
    for reply in ("What do you think?", "Leila buys lemons. What do you think?", "What about 34 pears?", ""):
        assert not names_something(reply, SHOP)


def test_the_problems_own_question_is_recognised() -> None:
    assert repeats_problem("How much is that in all?", SHOP)
    assert not repeats_problem("How much is one lemon?", SHOP)


def test_questions_are_found_one_by_one() -> None:
    assert questions_in('Look. "Why?" Then how?\nNo. What is 3.5?') == ['"Why?', "Then how?", "What is 3.5?"]


def test_an_opening_is_forty_characters_on_one_line() -> None:
    assert (
        opening("How  much\ndo the lemons cost when you buy four of them?")
        == "How much do the lemons cost when you buy"
    )
    assert opening("Why?") == "Why?"


def test_replies_are_ranked_from_a_question_about_the_problem_down_to_a_told_answer() -> None:
    replies = [
        "What do 4 lemons cost?",
        "What do you think?",
        "Let us think about it.",
        "4 * 3 = 12, and so on.",
        "12 + 30 = 42",
    ]
    scores = [score(reply, SHOP) for reply in replies]
    assert scores == [4, 3, 2, 1, 0]
    assert [is_socratic(reply, SHOP) for reply in replies] == [True, True, False, False, False]
