"""Problems that the project writes for its rehearsals: text, answer, and what a teacher would ask about it.

Every kind is a set of wordings and teacher's questions around drawn values, so that hundreds of distinct
texts follow from one seed. The kinds fall into three fixed groups that share nothing: simulated people vote
on VOTED_KINDS, the recipe was tuned on DEV_KINDS, and the reported table is measured on TEST_KINDS.

Knows nothing of models, stores or votes.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, str | int]

NAMES = (
    "Amara Bence Chidi Dalia Emre Farah Goran Hana Idris Jonas Kavya Leila Mateo Nadia Oskar Priya Quinn Rosa "
    "Sami Tuula Uma Viktor Wanjiru Ximena Yusuf Zofia Aiko Bruno Carmen Dmitri Elif Femi Greta Hugo Ines Jamal "
    "Katya Lars Mina Noor"
).split()

PATIENCE = 100
"""Draws without a new text after which a kind counts as used up."""


@dataclass(frozen=True)
class Problem:
    """One problem as a student would type it.

    `things` are the numbers and names in the text that a question can be about; `also` are other ways to
    write the answer; `questions` are what a teacher would ask about this very problem instead of solving it.
    """

    text: str
    answer: str
    kind: str
    things: tuple[str, ...]
    questions: tuple[str, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A family of problems. `draw` returns the values of one of them, `answer` and perhaps `also` among them.

    `topics` are the words of the wordings that name what the problem is about, beside the drawn values.
    `answer_in_text` is for problems that ask which of the given things it is.
    """

    name: str
    wordings: tuple[str, ...]
    questions: tuple[str, ...]
    draw: Callable[[random.Random], Values]
    topics: tuple[str, ...] = ()
    answer_in_text: bool = False


def problem_of(kind: Kind, rng: random.Random) -> Problem:
    """Draw one problem whose answer does not stand in its own text."""
    while True:
        values = dict(kind.draw(rng))
        answer, also = str(values.pop("answer")), str(values.pop("also", ""))
        text = rng.choice(kind.wordings).format(**values)
        if kind.answer_in_text or not contains_word(text, answer):
            break
    named = [str(value) for value in values.values()] + list(kind.topics)
    return Problem(
        text=text,
        answer=answer,
        kind=kind.name,
        things=tuple(dict.fromkeys(thing for thing in named if contains_word(text, thing))),
        questions=tuple(question.format(**values) for question in kind.questions),
        also=tuple(also.split("|")) if also else (),
    )


def make_problems(kinds: Sequence[Kind], count: int, seed: int) -> list[Problem]:
    """Write `count` problems with distinct texts, the kinds taking turns.

    A kind that has no new text left sits out.

    Returns:
        The same list for the same arguments; a longer list begins with the shorter one.

    Raises:
        ValueError: the kinds have fewer texts.
    """
    turns = {kind.name: (kind, random.Random(f"{seed} {kind.name}")) for kind in kinds}
    seen: set[str] = set()
    problems: list[Problem] = []
    while len(problems) < count:
        for name, (kind, rng) in list(turns.items()):
            drawn = (problem_of(kind, rng) for _ in range(PATIENCE))
            problem = next((problem for problem in drawn if problem.text not in seen), None)
            if problem is None:
                del turns[name]
                continue
            seen.add(problem.text)
            problems.append(problem)
        if not turns:
            raise ValueError(f"These kinds have {len(problems)} problems, and {count} are wanted. Ask for fewer.")
    return problems[:count]


def contains_word(text: str, word: str) -> bool:
    """Whether the word stands in the text by itself, not as part of a longer word or number."""
    return re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text, re.IGNORECASE) is not None


def some_names(rng: random.Random, count: int) -> list[str]:
    """Draw different first names."""
    return rng.sample(NAMES, count)


def listed(values: Sequence[object]) -> str:
    """Write values as a list in a sentence."""
    return ", ".join(str(value) for value in values)
