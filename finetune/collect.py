"""Votes to weighted examples, and the frozen manifest of a night.

Knows the store's records and the JSON lines that other tools exchange; knows no tokens. Does not judge
raters: caps, reliability and conflicts between people are not looked at here, contradictions are counted.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assistant.engine import Message
from feedback_store import Store
from finetune.errors import BadData
from finetune.examples import Example, Method, content_key, data_hash, select_method
from finetune.split import Split, split_examples

ROLES = ("system", "user", "assistant")


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
    """Preference pairs only."""
    data_hash: str
    counts: dict[str, int]


def collect_votes(store: Store, *, now: datetime, half_life_days: float) -> Votes:
    """Read every vote that can be learned from.

    Args:
        store: the open store.
        now: the moment that ages are counted from, UTC.
        half_life_days: a vote this old weighs half.
    """
    return gather(_stored_examples(store), now=now, half_life_days=half_life_days)


def gather(raw: Iterable[Example], *, now: datetime, half_life_days: float) -> Votes:
    """Drop repetitions and pairs of equal texts, weigh by age, and join a rewrite's pair with its demonstration.

    Of identical examples the newest counts. Ages are whole days, so that a night repeated on the
    same day is the same night.

    Args:
        raw: examples of weight 1, in any order.
        now: the moment that ages are counted from, UTC.
        half_life_days: a vote this old weighs half.
    """
    newest: dict[str, Example] = {}
    equal = seen = 0
    for example in raw:
        seen += 1
        if example.is_pair and example.completions[0] == example.completions[1]:
            equal += 1
            continue
        known = newest.get(example.key)
        if known is None or example.created_at > known.created_at:
            newest[example.key] = example
    weighed = [replace(e, weight=_recency(e.created_at, now, half_life_days)) for e in newest.values()]
    examples = _join_demonstrations(weighed)
    counts = {
        "pairs": sum(e.is_pair for e in weighed),
        "demonstrations": sum(e.demonstrated for e in weighed),
        "usable": len(examples),
        "repeated": seen - equal - len(weighed),
        "equal": equal,
        "contradictions": _contradictions(weighed),
        "people": len({e.person for e in examples}),
        "conversations": len({(e.person, e.conversation) for e in examples}),
    }
    return Votes(tuple(sorted(examples, key=lambda e: e.key)), counts)


def divide_votes(votes: Votes, method: Method, share: float, seed: int) -> NightData:
    """Freeze what a night uses.

    Args:
        votes: from collect_votes.
        method: what to learn from.
        share: wanted part of the examples in the held-out part.
        seed: of the split.
    """
    split: Split = split_examples(votes.examples, share, seed)
    train = tuple(select_method(split.train, method))
    heldout = tuple(e for e in split.heldout if e.is_pair)
    counts = {
        **votes.counts,
        "train": len(train),
        "heldout": len(heldout),
        "heldout_conversations": len({(e.person, e.conversation) for e in heldout}),
        "heldout_people": len(split.people),
        "set_aside": len(split.aside),
    }
    return NightData(train, heldout, data_hash(train, heldout), counts)


def write_manifest(path: Path, data: NightData) -> None:
    """Write one line an example: ids, weight and part, and no text, so that a run folder tells nobody's words."""
    with path.open("w", encoding="utf-8") as file:
        for part, examples in (("train", data.train), ("heldout", data.heldout)):
            for e in examples:
                kind = "pair" if e.is_pair else "demonstration"
                line = {"key": e.key, "ids": e.ids, "kind": kind, "demonstrated": e.demonstrated}
                file.write(json.dumps({**line, "source": e.source, "weight": e.weight, "part": part}) + "\n")


def read_examples(path: Path, *, skip_bad: bool = False) -> tuple[list[Example], list[str]]:
    """Read preferences and demonstrations from JSON lines in the conversational format.

    Args:
        path: lines `{"prompt":[…],"chosen":[…],"rejected":[…]}` or `{"prompt":[…],"completion":[…]}`,
            each with optional `annotator`, `created_at`, `id`.
        skip_bad: keep the good lines and return what was wrong with the others.

    Returns:
        The examples in file order, and one sentence a bad line.

    Raises:
        BadData: the file cannot be read, holds no example, or holds a bad line and skip_bad is
            false: training on half of a broken export would look like a success.
    """
    examples: list[Example] = []
    problems: list[str] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadData(f"The file {path} cannot be read ({error.strerror}). Give the path of a JSONL file.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            examples.append(_parse_line(line, number))
        except BadData as error:
            problems.append(f"Line {number} of {path.name}: {error}")
    if problems and not skip_bad:
        more = f" ({len(problems) - 1} more bad lines)" if len(problems) > 1 else ""
        raise BadData(f"{problems[0]}{more} Correct it, or leave bad lines out with --skip-bad.")
    if not examples:
        raise BadData(f"The file {path} holds no example that can be used. Give preferences or demonstrations.")
    return examples, problems


def _stored_examples(store: Store) -> Iterator[Example]:
    for pair in store.votes.pairs():
        prompt = tuple(Message(role=t["role"], content=t["content"]) for t in pair.prompt)
        yield Example(
            key=content_key(prompt, (pair.chosen, pair.rejected)),
            prompt=prompt,
            completions=(pair.chosen, pair.rejected),
            demonstrated=False,
            weight=1.0,
            person=str(pair.person_id),
            conversation=pair.conversation_id,
            created_at=pair.created_at,
            source=pair.source,
            ids=pair.ids,
        )
    for shown in store.votes.demonstrations():
        prompt = tuple(Message(role=t["role"], content=t["content"]) for t in shown.prompt)
        yield Example(
            key=content_key(prompt, (shown.completion,)),
            prompt=prompt,
            completions=(shown.completion,),
            demonstrated=True,
            weight=1.0,
            person=str(shown.person_id),
            conversation=shown.conversation_id,
            created_at=shown.created_at,
            source="rewrite",
            ids=shown.ids,
        )


def _join_demonstrations(examples: Sequence[Example]) -> list[Example]:
    """Let a pair whose chosen text somebody wrote carry the demonstration: the text is computed once, not twice."""
    written = {e.key: e for e in examples if not e.is_pair}
    carried: set[str] = set()
    joined: list[Example] = []
    for example in (e for e in examples if e.is_pair):
        key = content_key(example.prompt, example.completions[:1])
        if key in written and key not in carried:
            carried.add(key)
            example = replace(example, demonstrated=True)
        joined.append(example)
    return joined + [e for key, e in written.items() if key not in carried]


def _contradictions(examples: Sequence[Example]) -> int:
    """Count the pairs whose very opposite was also chosen; both stay, and their pulls cancel."""
    keys = {e.key for e in examples}
    return sum(e.is_pair and content_key(e.prompt, reversed(e.completions)) in keys for e in examples) // 2


def _recency(created_at: str, now: datetime, half_life_days: float) -> float:
    if not created_at:
        return 1.0
    age_days = max(0, (now - datetime.fromisoformat(created_at)).days)
    return math.pow(0.5, age_days / half_life_days)


def _parse_line(line: bytes, number: int) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadData(f"it is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise BadData("it is not a JSON object.")
    prompt = _prompt(row.get("prompt"))
    if "completion" in row:
        completions: tuple[str, ...] = (_completion(row, "completion"),)
    elif "chosen" in row or "rejected" in row:
        completions = (_completion(row, "chosen"), _completion(row, "rejected"))
    else:
        raise BadData('it has neither "chosen" and "rejected" nor "completion".')
    key = content_key(prompt, completions)
    return Example(
        key=key,
        prompt=prompt,
        completions=completions,
        demonstrated=len(completions) == 1,
        weight=1.0,
        person=_text(row, "annotator"),
        conversation=content_key(prompt, ()),
        created_at=_time(row),
        source="file",
        ids=(_text(row, "id") or f"line-{number}",),
    )


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadData(f'"{name}" is not a list of messages.')
    for turn in value:
        well_formed = isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
        if not well_formed:
            raise BadData(f'"{name}" holds a message without a known role and a text "content".')
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:
            raise BadData(f'"{name}" holds half of a surrogate pair, which is no text.') from error
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)


def _prompt(value: Any) -> tuple[Message, ...]:
    turns = _turns(value, "prompt")
    if turns[-1]["role"] != "user":
        raise BadData('"prompt" does not end with a user message.')
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadData('"prompt" has a system message that is not its first.')
    return turns


def _completion(row: dict[str, Any], name: str) -> str:
    turns = _turns(row.get(name), name)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise BadData(f'"{name}" is not exactly one assistant message.')
    if not turns[0]["content"].strip():
        raise BadData(f'"{name}" is empty.')
    return turns[0]["content"]


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str | int):
        raise BadData(f'"{name}" is not a text.')
    return "" if value is None else str(value)


def _time(row: dict[str, Any]) -> str:
    text = _text(row, "created_at")
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadData('"created_at" is not an ISO-8601 time.') from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
