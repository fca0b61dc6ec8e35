"""Examples, token rows and stores with votes in them: real parts, small."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from assistant.settings import NightSettings, Settings
from feedback_store import Store
from feedback_store.records import Origin
from finetune.batches import Encoded
from finetune.examples import Example, content_key, new_example

ORIGIN = Origin(None, "tiny", "bf16", "plain", "Be brief.", 0.7, 0.95, 64, 0)


def tiny_settings(home: Path, model: Path, **night: Any) -> Settings:
    """Settings of a night that takes a second."""
    chosen = {"min_votes": 10, "epochs": 1, "max_tokens": 256, "gate_perplexity_rise": 10.0, **night}
    return Settings(home=home, model=str(model), night=NightSettings(**chosen))


def pair(number: int, chosen: str = "yes?", rejected: str = "no", **fields: Any) -> Example:
    """A preference pair of weight 1."""
    prompt = fields.pop("prompt", f"question {number}")
    turns = ({"role": "user", "content": prompt},)
    given = {
        "key": content_key(turns, (chosen, rejected)),
        "prompt": turns,
        "completions": (chosen, rejected),
        "demonstrated": False,
        "weight": 1.0,
        "person": "1",
        "conversation": f"c{number}",
        "created_at": f"2026-11-01T00:00:{number % 60:02d}.000000Z",
        "source": "comparison",
        "ids": (f"m{number}",),
    }
    return Example(**{**given, **fields})


def demonstration(number: int, text: str = "what do you know?", **fields: Any) -> Example:
    """A demonstration of weight 1."""
    example = pair(number, text, **fields)
    key = content_key(example.prompt, (text,))
    return Example(**{**vars(example), "key": key, "completions": (text,), "demonstrated": True, "source": "rewrite"})


def encoded(count: int, seed: int = 0, pairs: bool = True, demonstrated: bool = False) -> list[Encoded]:
    """Random token rows of different lengths and weights."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(3, 259, (length,), generator=generator).tolist())

    return [
        Encoded(
            key=f"e{i}",
            prompt=ids(3, 12),
            completions=(ids(2, 20), ids(2, 20)) if pairs else (ids(2, 20),),
            demonstrated=demonstrated or not pairs,
            weight=float(torch.rand(1, generator=generator)) + 0.1,
            cluster=f"c{i}",
        )
        for i in range(count)
    ]


def encoded_thumbs(count: int, seed: int = 7) -> list[Encoded]:
    """Random token rows, up and down in turn."""
    return [
        replace(row, key=f"t{seed}-{i}", demonstrated=False, thumb=i % 2 == 0)
        for i, row in enumerate(encoded(count, seed, pairs=False))
    ]


def encoded_rankings(count: int, replies: int, seed: int = 5) -> list[Encoded]:
    """Random token rows of so many replies each, best first."""
    parts = [encoded(count, seed + i, pairs=False) for i in range(replies)]
    return [
        replace(
            first,
            key=f"r{seed}-{i}",
            demonstrated=False,
            completions=tuple(part[i].completions[0] for part in parts),
            ranks=tuple(range(1, replies + 1)),
        )
        for i, first in enumerate(parts[0])
    ]


def thumb(number: int, text: str = "yes?", up: bool = True, **fields: Any) -> Example:
    """A thumb of weight 1."""
    prompt = ({"role": "user", "content": fields.pop("prompt", f"question {number}")},)
    given = {"conversation": f"c{number}", "person": "1", "source": "thumb", "ids": (f"t{number}",)}
    when = {"created_at": f"2026-11-01T00:00:{number % 60:02d}.000000Z"}
    return new_example(prompt, (text,), thumb=up, **{**given, **when, **fields})


def ranking(number: int, ranks: tuple[int, ...] = (1, 2, 3), **fields: Any) -> Example:
    """A ranking of weight 1."""
    prompt = ({"role": "user", "content": fields.pop("prompt", f"question {number}")},)
    texts = fields.pop("completions", tuple(f"reply {n} of {number}" for n in range(len(ranks))))
    given = {"conversation": f"c{number}", "person": "1", "source": "ranking", "ids": (f"r{number}",)}
    when = {"created_at": f"2026-11-01T00:00:{number % 60:02d}.000000Z"}
    return new_example(prompt, texts, ranks=ranks, **{**given, **when, **fields})


def fill_store(store: Store, questions: Sequence[str], person: str = "", chosen: str = "What is asked?") -> None:
    """Let a person compare two replies to each question, in conversations of their own; the first one is chosen.

    It stands left or right as it comes: who always takes one side is not heard.
    """
    who = store.people.add(person, kind="simulated") if person else store.people.owner()
    for number, question in enumerate(questions):
        talk = store.conversations.start(who.id, kind="compare")
        asked = store.conversations.add_user_message(talk.id, who.id, question)
        replies = []
        for text in (f"{chosen} {number}", f"It is {number}."):
            reply = store.conversations.begin_reply(asked.id, who.id, ORIGIN)
            store.conversations.finish_reply(reply.id, text, "done", "stop", 5)
            replies.append(reply.id)
        swapped = crc32(f"{question} {chosen}".encode()) % 2 == 1
        shown = store.votes.show_comparison(who.id, asked.id, *(replies[::-1] if swapped else replies))
        store.votes.choose(shown.id, who.id, "right" if swapped else "left")


def ask_and_answer(store: Store, person_id: int, question: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Put a question in a conversation of its own and let it be answered; return the ids."""
    talk = store.conversations.start(person_id)
    asked = store.conversations.add_user_message(talk.id, person_id, question)
    replies = []
    for text in texts:
        reply = store.conversations.begin_reply(asked.id, person_id, ORIGIN)
        store.conversations.finish_reply(reply.id, text, "done", "stop", 5)
        replies.append(reply.id)
    return asked.id, replies


def rate_store(store: Store, questions: Sequence[str]) -> None:
    """Let the owner judge replies in three ways in turn: a lone thumb up, opposite thumbs, a ranking with a tie."""
    owner = store.people.owner().id
    for number, question in enumerate(questions):
        asked, (good, best, worst) = ask_and_answer(store, owner, question, ("good", "best", "worst"))
        if number % 3 == 0:
            store.votes.rate(good, owner, 1)
        elif number % 3 == 1:
            store.votes.rate(best, owner, 1)
            store.votes.rate(worst, owner, -1)
        else:
            store.votes.rank(asked, owner, {good: 2, best: 1, worst: 2})


def rate_both_ways(store: Store, person_id: int, count: int) -> None:
    """Let a person give lone thumbs, up and down in turn."""
    for number in range(count):
        _, [reply] = ask_and_answer(store, person_id, f"What of {number}?", [f"It is {number}."])
        store.votes.rate(reply, person_id, 1 if number % 2 else -1)
