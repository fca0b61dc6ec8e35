"""What the training bench learns from: pairs of Anthropic's hh-rlhf, or of the project's own making in like lengths.

Source: Bai et al. 2022, arXiv:2204.05862; https://github.com/anthropics/hh-rlhf, files `helpful-base/*.jsonl.gz`.
"""

import gzip
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from assistant.engine import Message
from finetune.anchors import PLAIN_SYSTEM
from finetune.examples import Example, new_example
from finetune.problems import Problem, make_problems
from finetune.problems_voted import VOTED_KINDS

DATA = Path(__file__).parents[2] / "shared" / "data"
FILE = Path("hh_rlhf") / "helpful-base-test.jsonl.gz"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def find_file() -> Path | None:
    """Name the data where NIGHTSCHOOL_TEST_DATA says or beside the checkout, as the tests find it; None without it."""
    file = Path(os.environ.get("NIGHTSCHOOL_TEST_DATA") or DATA) / FILE
    return file if file.is_file() else None


def example_of(messages: Sequence[Message], completions: Sequence[str], ranks: Sequence[int] = ()) -> Example:
    """Make an example of weight 1 that nobody in particular said."""
    return new_example(
        tuple(messages), tuple(completions), ranks=tuple(ranks), person="bench", created_at="", source="file", ids=()
    )


def plain_prompt(text: str) -> list[Message]:
    """Ask a text under the plain preset."""
    return [PLAIN_SYSTEM, Message(role="user", content=text)]


def read_pairs(file: Path) -> Iterator[Example]:
    """Yield the pairs of a file; those whose two sides are not replies to one conversation are passed over."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)
            chosen, rejected = read_turns(said["chosen"]), read_turns(said["rejected"])
            replies = chosen[-1]["content"], rejected[-1]["content"]
            answers = chosen[-1]["role"] == rejected[-1]["role"] == "assistant" and all(replies)
            if answers and chosen[:-1] == rejected[:-1] and replies[0] != replies[1]:
                yield example_of(chosen[:-1], replies)


def read_turns(text: str) -> list[Message]:
    """Take a conversation apart that is one text."""
    parts = _TURN.split(text)[1:]
    return [
        Message(role="user" if who == "Human" else "assistant", content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def make_pairs(count: int, seed: int = 0) -> list[Example]:
    """Write pairs from the project's own problems: a long prompt, a longer and a shorter reply, as in the file."""
    rng = random.Random(seed)
    problems = make_problems(VOTED_KINDS, count, seed)
    pairs = []
    for problem in problems:
        others = rng.sample(problems, 3)
        prompt = " ".join(part.text for part in [problem, *others[: rng.randint(0, 2)]])
        replies = [_reply(others, rng.randint(15, 60), rng), _reply([problem], rng.randint(10, 40), rng)]
        pairs.append(example_of([Message(role="user", content=prompt)], replies))
    return pairs


def _reply(problems: Sequence[Problem], words: int, rng: random.Random) -> str:
    sentences = [question for problem in problems for question in (*problem.questions, problem.text)]
    rng.shuffle(sentences)
    return " ".join(" ".join(sentences * words).split()[:words])


def make_rankings(pairs: Sequence[Example]) -> list[Example]:
    """Make rankings of four replies to one prompt, each of two pairs whose replies are of like length."""
    by_length = sorted(pairs, key=lambda pair: sum(map(len, pair.completions)))
    return [
        example_of(one.prompt, (*one.completions, *other.completions), range(1, 5))
        for one, other in zip(by_length[::2], by_length[1::2], strict=False)
        if len({*one.completions, *other.completions}) == 4
    ]
