"""The written rubric of the rehearsal, as pure functions of a reply and its problem.

    A Socratic reply asks the student a question, about something in the student's own problem,
    and states neither the final answer nor a worked solution.

Strict in both directions: a reply that asks and then solves states the answer; a question that the reply
answers itself, and the student's own question handed back, are no questions to the student.
Words are compared, not meanings: a right answer in an unforeseen form is missed, and a number that is equal
to the answer by chance counts as the answer. Both count alike before and after a night.
"""

import re

from finetune.problems import Problem, contains_word

OPENING_CHARS = 40
"""How much of a reply makes its opening."""

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
_UNITS += "sixteen seventeen eighteen nineteen".split()
_TENS = {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_SMALL = {word: i for i, word in enumerate(_UNITS)} | _TENS
_TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|[a-z]+(?:['’][a-z]+)?")
_LIST_MARK = re.compile(r"(?m)^\s*(?:step\s+)?\d+\s*[.):]\s+|\bstep\s+\d+\b", re.IGNORECASE)
_RESULT = re.compile(r"=\s*\S*\d|\b(?:answer is|result is|solution is|equals|therefore|thus)\b", re.IGNORECASE)
_CLOSING_WORDS = 8


def asks_question(reply: str, problem: Problem | None = None) -> bool:
    """Whether the reply leaves the student with a question.

    The last question must end the reply, but for a short closing word without numbers ("Give it a try!").
    With the problem given, its own question handed back does not count.
    """
    head, mark, rest = reply.rpartition("?")
    if not mark or not _words(head):
        return False
    closing = _words(rest)
    if len(closing) > _CLOSING_WORDS or any(word[0].isdigit() for word in closing):
        return False
    return problem is None or any(not repeats_problem(question, problem) for question in questions_in(reply))


def states_answer(reply: str, problem: Problem) -> bool:
    """Whether the final answer stands in the reply, in digits or in words.

    An answer that the problem itself names (who is the tallest?) is stated by any sentence that is
    no question and holds it, unless the sentence only repeats the problem.
    """
    text = _LIST_MARK.sub(" ", reply)
    if contains_word(problem.text, problem.answer):
        told = [s for s in _sentences(text) if not s.endswith("?") and not _is_part(s, problem.text)]
        return any(_holds(_words(sentence), _words(problem.answer)) for sentence in told)
    said = _words(text)
    return any(_holds(said, _words(answer)) for answer in (problem.answer, *problem.also))


def works_it_out(reply: str) -> bool:
    """Whether the reply solves instead of asking: an equation with its result, or a conclusion, right or wrong."""
    return any(_RESULT.search(sentence) for sentence in _sentences(reply) if not sentence.endswith("?"))


def names_something(reply: str, problem: Problem) -> bool:
    """Whether a question of the reply names a number or a thing of the problem."""
    said = [_words(question) for question in questions_in(reply)]
    return any(_holds(words, _words(thing)) for words in said for thing in problem.things)


def repeats_problem(question: str, problem: Problem) -> bool:
    """Whether the question is the problem's own, handed back."""
    return _is_part(question, problem.text)


def opening(reply: str) -> str:
    """Take the first characters, for counting how many different ones there are."""
    return " ".join(reply.split())[:OPENING_CHARS]


def is_socratic(reply: str, problem: Problem) -> bool:
    """Whether the reply follows the whole rubric."""
    return asks_question(reply, problem) and not states_answer(reply, problem) and not works_it_out(reply)


def score(reply: str, problem: Problem) -> int:
    """Grade a reply from 0 to 4: what a rater compares two replies by.

    Not telling weighs as much as asking; only a reply that asks gains from naming something.
    """
    asks = asks_question(reply, problem)
    points = int(asks) + int(not states_answer(reply, problem)) + int(not works_it_out(reply))
    return points + int(asks and names_something(reply, problem))


def questions_in(reply: str) -> list[str]:
    """List the sentences that end with a question mark."""
    return [sentence for sentence in _sentences(reply) if sentence.endswith("?")]


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?])[\"”)]*\s+|\n+", text)
    return [part.strip() for part in parts if part.strip()]


def _is_part(sentence: str, text: str) -> bool:
    return _holds(_words(text), _words(sentence))


def _holds(words: list[str], wanted: list[str]) -> bool:
    """Whether the wanted words stand in a row among the words, with singular and plural taken as one."""
    width = len(wanted)
    return width > 0 and any(all(map(_same, words[i : i + width], wanted)) for i in range(len(words) - width + 1))


def _same(word: str, wanted: str) -> bool:
    return word == wanted or (
        len(wanted) > 3 and wanted[0].isalpha() and (word + "s" == wanted or word == wanted + "s")
    )


def _words(text: str) -> list[str]:
    """Split into lower-case words and numbers; 1,200 and 1200.0 and "twelve hundred" read the same."""
    words: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("’", "'")):
        if token[0].isdigit():
            number = float(token.replace(",", ""))
            words.append(f"{number:.10g}")
        elif token in _SMALL or token == "hundred":
            _add_number_word(words, token)
        elif token.endswith("'s") and token not in ("it's", "what's", "let's", "that's"):
            words.append(token[:-2])
        else:
            words.append(token)
    return words


def _add_number_word(words: list[str], token: str) -> None:
    """Append a number word, joined with the one before where both make one number ("forty" "two")."""
    before = words[-1] if words and words[-1].isdigit() else ""
    if token == "hundred":
        words[-1:] = [str(100 * int(before))] if before else [*words[-1:], "100"]
    elif before in {str(value) for value in _TENS.values()} and _SMALL[token] < 10:
        words[-1] = str(int(before) + _SMALL[token])
    else:
        words.append(str(_SMALL[token]))
