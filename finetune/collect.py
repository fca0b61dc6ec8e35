"""Votes to weighted examples, and the frozen manifest of a night.

Knows the store's records; knows no tokens. Does not judge raters: caps, reliability and conflicts between people are
not looked at here, contradictions are counted.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from assistant.engine import Message
from feedback_store import Store
from feedback_store.records import Demonstration, PreferencePair, RankedReplies, RatedReply, Turn
from finetune.examples import (
    Example,
    Method,
    as_pairs,
    content_key,
    count_one_sided,
    data_hash,
    new_example,
    select_method,
)
from finetune.split import Split, split_examples

LEAST_RECENCY = 2**-20
"""What an old vote is worth at least: a step of nothing but such votes divides by their weights."""


@dataclass(frozen=True)
class Votes:
    """The usable votes of one moment, without repetitions."""

    examples: tuple[Example, ...]
    counts: dict[str, int]

    def usable(self, method: Method) -> int:
        """Count the votes that a method learns from; a rewrite is one vote, its pair and demonstration together."""
        return len(select_method(self.examples, method))


@dataclass(frozen=True)
class NightData:
    """What one night trains and is examined on."""

    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    """Preference pairs only; a ranking as its pairs."""
    data_hash: str
    counts: dict[str, int]
    split: Split
    """How all votes were divided, whatever the method learns from."""


def collect_votes(store: Store, *, now: datetime, half_life_days: float) -> Votes:
    """Read every vote that can be learned from.

    Args:
        store: the open store.
        now: the moment that ages are counted from, UTC.
        half_life_days: a vote this old weighs half.
    """
    return gather(_stored_examples(store), now=now, half_life_days=half_life_days)


def gather(raw: Iterable[Example], *, now: datetime, half_life_days: float) -> Votes:
    """Drop repetitions and what prefers nothing, weigh by age, and join a rewrite's pair with its demonstration.

    Of identical examples of one person the newest counts; several people who say the same each count. Ages are whole
    days, so that a night repeated on the same day is the same night.

    Args:
        raw: examples of weight 1, in any order.
        now: the moment that ages are counted from, UTC.
        half_life_days: a vote this old weighs half.
    """
    newest: dict[tuple[str, str], Example] = {}
    equal = ties = seen = 0
    for example in raw:
        seen += 1
        if example.is_pair and example.completions[0] == example.completions[1]:
            equal += 1
            continue
        if example.judgement == "ranking" and len(set(example.ranks)) < 2:
            ties += 1
            continue
        known = newest.get(example.said)
        if known is None or example.created_at > known.created_at:
            newest[example.said] = example
    weighed = [replace(e, weight=_recency(e.created_at, now, half_life_days)) for e in newest.values()]
    examples = _join_demonstrations(weighed)
    counts = {
        "pairs": sum(e.is_pair for e in weighed),
        "demonstrations": sum(e.demonstrated for e in weighed),
        "thumbs_up": sum(e.thumb is True for e in weighed),
        "thumbs_down": sum(e.thumb is False for e in weighed),
        "rankings": sum(e.judgement == "ranking" for e in weighed),
        "usable": len(examples),
        "repeated": seen - equal - ties - len(weighed),
        "equal": equal,
        "ties": ties,
        "contradictions": _contradictions(weighed),
        "people": len({e.person for e in examples}),
        "conversations": len({(e.person, e.conversation) for e in examples}),
    }
    return Votes(tuple(sorted(examples, key=lambda e: (e.key, e.person))), counts)


def divide_votes(votes: Votes, method: Method, share: float, seed: int) -> NightData:
    """Freeze what a night uses.

    Args:
        votes: from collect_votes.
        method: what to learn from.
        share: wanted part of the examples in the held-out part.
        seed: of the split.
    """
    split = split_examples(votes.examples, share, seed)
    train = tuple(select_method(split.train, method))
    heldout = tuple(pair for e in split.heldout for pair in as_pairs(e))
    counts = {
        **votes.counts,
        "train": len(train),
        "one_sided_thumbs": count_one_sided(split.train, method),
        "heldout": len(heldout),
        "heldout_conversations": len({(e.person, e.conversation) for e in heldout}),
        "heldout_people": len(split.people),
        "set_aside": len(split.aside),
    }
    return NightData(train, heldout, data_hash(train, heldout), counts, split)


def write_manifest(path: Path, data: NightData) -> None:
    """Write one line an example: whose, ids, weight, part; no text, so that a run folder tells nobody's words."""
    with path.open("w", encoding="utf-8") as file:
        for part, examples in (("train", data.train), ("heldout", data.heldout)):
            for e in examples:
                line = {"key": e.key, "ids": e.ids, "kind": e.judgement, "demonstrated": e.demonstrated}
                whose = {"person": e.person, "conversation": e.conversation}
                file.write(json.dumps({**line, **whose, "source": e.source, "weight": e.weight, "part": part}) + "\n")


def _stored_examples(store: Store) -> Iterator[Example]:
    in_pairs: set[tuple[int, str]] = set()
    for pair in store.votes.pairs():
        if pair.source == "thumbs":
            in_pairs |= {(pair.person_id, message_id) for message_id in pair.ids}
        yield new_example(_messages(pair.prompt), (pair.chosen, pair.rejected), source=pair.source, **_said(pair))
    for shown in store.votes.demonstrations():
        prompt = _messages(shown.prompt)
        yield new_example(prompt, (shown.completion,), demonstrated=True, source="rewrite", **_said(shown))
    for rated in store.votes.thumbs():
        if (rated.person_id, rated.ids[0]) not in in_pairs:  # else it counts already, as half of a pair
            prompt = _messages(rated.prompt)
            yield new_example(prompt, (rated.completion,), thumb=rated.up, source="thumb", **_said(rated))
    for ranked in store.votes.rankings():
        yield new_example(
            _messages(ranked.prompt),
            ranked.completions,
            ranks=ranked.ranks,
            none_is_good=ranked.none_is_good,
            source="ranking",
            **_said(ranked),
        )


class _Said(TypedDict):
    person: str
    conversation: str
    created_at: str
    ids: tuple[str, ...]


def _said(vote: PreferencePair | Demonstration | RatedReply | RankedReplies) -> _Said:
    """Who said it, where and when."""
    return _Said(
        person=str(vote.person_id), conversation=vote.conversation_id, created_at=vote.created_at, ids=vote.ids
    )


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)


def _join_demonstrations(examples: Sequence[Example]) -> list[Example]:
    """Let a pair whose chosen text somebody wrote carry the demonstration: the text is computed once, not twice."""
    written = {e.said: e for e in examples if e.judgement == "demonstration"}
    carried: set[tuple[str, str]] = set()
    joined: list[Example] = []
    for example in (e for e in examples if e.is_pair):
        said = example.person, content_key(example.prompt, example.completions[:1])
        if said in written and said not in carried:
            carried.add(said)
            example = replace(example, demonstrated=True)
        joined.append(example)
    others = [e for e in examples if e.thumb is not None or e.ranks]
    return joined + [e for said, e in written.items() if said not in carried] + others


def _contradictions(examples: Sequence[Example]) -> int:
    """Count the pairs and thumbs whose very opposite was also said; both stay, and their pulls cancel."""
    said = {e.key: e for e in examples}
    distinct = said.values()
    pairs = sum(e.is_pair and content_key(e.prompt, reversed(e.completions)) in said for e in distinct)
    thumbs = sum(e.thumb is not None and content_key(e.prompt, e.completions, not e.thumb) in said for e in distinct)
    return pairs // 2 + thumbs // 2


def _recency(created_at: str, now: datetime, half_life_days: float) -> float:
    if not created_at:
        return 1.0
    age_days = max(0, (now - datetime.fromisoformat(created_at)).days)
    return max(LEAST_RECENCY, math.pow(0.5, age_days / half_life_days))
