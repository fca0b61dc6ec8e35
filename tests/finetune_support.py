"""Examples, token rows and stores with votes in them: real parts, small."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from assistant.settings import NightSettings, Settings
from feedback_store import Store
from feedback_store.records import Origin
from finetune.batches import Encoded
from finetune.examples import Example, content_key


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


def fill_store(store: Store, questions: Sequence[str], person: str = "", chosen: str = "What is asked?") -> None:
    """Let a person compare two replies to each question, in conversations of their own; the first one is chosen."""
    who = store.people.add(person, kind="simulated") if person else store.people.owner()
    origin = Origin(None, "tiny", "bf16", "plain", "Be brief.", 0.7, 0.95, 64, 0)
    for number, question in enumerate(questions):
        talk = store.conversations.start(who.id, kind="compare")
        asked = store.conversations.add_user_message(talk.id, who.id, question)
        replies = []
        for text in (f"{chosen} {number}", f"It is {number}."):
            reply = store.conversations.begin_reply(asked.id, who.id, origin)
            store.conversations.finish_reply(reply.id, text, "done", "stop", 5)
            replies.append(reply.id)
        shown = store.votes.show_comparison(who.id, asked.id, *replies)
        store.votes.choose(shown.id, who.id, "left")
