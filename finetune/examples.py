"""What a night learns from: pure values, before any tokens. Knows neither the store nor the model."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from assistant.engine import Message

Method = Literal["auto", "sft", "dpo"]
METHODS: tuple[Method, ...] = ("auto", "sft", "dpo")


@dataclass(frozen=True)
class Example:
    """One prompt with its completions, best first: two make a preference pair, one is a demonstration."""

    key: str
    """Names prompt and completions by content."""
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    demonstrated: bool
    """A person wrote the first completion: it is imitated at full weight."""
    weight: float
    """1 for a vote of today, halved every half-life."""
    person: str
    conversation: str
    created_at: str
    source: str
    """comparison, thumbs, rewrite or file."""
    ids: tuple[str, ...]
    """Ids of the stored rows behind it."""

    @property
    def is_pair(self) -> bool:
        """Whether one completion is preferred to another."""
        return len(self.completions) == 2


def content_key(prompt: Sequence[Message], completions: Iterable[str]) -> str:
    """Name an example by what it says."""
    turns = [[turn["role"], turn["content"]] for turn in prompt]
    text = json.dumps([turns, list(completions)], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def data_hash(train: Sequence[Example], heldout: Sequence[Example]) -> str:
    """Name a night's data: texts, weights and which side of the split each example is on."""
    digest = hashlib.sha256()
    for part, examples in (("train", train), ("heldout", heldout)):
        for example in sorted(examples, key=lambda e: e.key):
            digest.update(repr((part, example.key, example.demonstrated, example.weight)).encode())
    return digest.hexdigest()


def select_method(examples: Sequence[Example], method: Method) -> list[Example]:
    """Keep what a method learns from: `sft` the demonstrations alone, `dpo` the choices alone, `auto` both."""
    if method == "sft":
        return [replace(e, completions=e.completions[:1]) for e in examples if e.demonstrated]
    if method == "dpo":
        return [replace(e, demonstrated=False) for e in examples if e.is_pair]
    return list(examples)
