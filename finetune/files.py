"""A file of votes from elsewhere: JSON lines of any kind, also mixed, to examples. Knows no store and no tokens."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from assistant.engine import Message
from feedback_store.errors import BadInput
from feedback_store.rankings import check_ranks
from finetune.errors import BadData
from finetune.examples import Example, new_example

ROLES = ("system", "user", "assistant")
FIELDS = {
    *("prompt", "chosen", "rejected", "completion", "label", "completions", "ranks", "none_is_good", "left", "right"),
    *("choice", "annotator", "created_at", "id"),
}


class FileVotes(NamedTuple):
    """What a file of votes holds."""

    examples: list[Example]
    """In file order; a comparison without a preference is a ranking of ties."""
    problems: list[str]
    """One sentence a bad line."""
    unread: list[str]
    """The names of fields that say nothing here, a weight for example; alphabetical."""

    @property
    def notes(self) -> list[str]:
        """What a person should know of it, in sentences."""
        names = ", ".join(f'"{name[:40]}"' for name in self.unread[:8])
        return [f"Fields that are not read: {names}."] if names else []


def read_examples(path: Path, *, skip_bad: bool = False, bare_prompts: bool = False) -> FileVotes:
    """Read votes of any kind from JSON lines in the conversational format.

    Args:
        path: lines `{"prompt":[…],"chosen":[…],"rejected":[…]}` (a preference), `{"prompt","completion"}` (a
            demonstration), `{"prompt","completion","label":true|false}` (a thumb),
            `{"prompt","completions":[[…],…],"ranks":[1,2,…]}` (a ranking) or `{"prompt","left","right","choice"}`
            (a comparison), each with optional `annotator`, `created_at`, `id`.
        skip_bad: keep the good lines and return what was wrong with the others.
        bare_prompts: a line may hold a prompt alone, which gives an example without a completion.

    Raises:
        BadData: the file cannot be read, holds no example, or holds a bad line and skip_bad is
            false: training on half of a broken export would look like a success.
    """
    examples: list[Example] = []
    problems: list[str] = []
    fields: set[str] = set()
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadData(f"The file {path} cannot be read ({error.strerror}). Give the path of a JSONL file.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _row(line)
            examples.append(_example(row, number, bare_prompts))
            fields |= row.keys()
        except BadData as error:
            problems.append(f"Line {number} of {path.name}: {error}")
    if problems and not skip_bad:
        more = f" ({len(problems) - 1} more bad lines)" if len(problems) > 1 else ""
        raise BadData(f"{problems[0]}{more} Correct it, or leave bad lines out with --skip-bad.")
    if not examples:
        raise BadData(f"The file {path} holds no example that can be used. Give a JSONL file of votes.")
    return FileVotes(examples, problems, sorted(fields - FIELDS))


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadData(f"it is not JSON ({str(error)[:80] or 'too deep'}).") from error
    if not isinstance(row, dict):
        raise BadData("it is not a JSON object.")
    return row


def _example(row: dict[str, Any], number: int, bare_prompts: bool) -> Example:
    said = _Said(person=_text(row, "annotator"), created_at=_time(row), ids=(_text(row, "id") or f"line-{number}",))
    prompt = _prompt(row)
    if "completions" in row:
        return _ranking(row, prompt, said)
    if "choice" in row:
        return _comparison(row, prompt, said)
    if "chosen" in row or "rejected" in row:
        texts = (_completion(row, "chosen"), _completion(row, "rejected"))
        return new_example(prompt, texts, source="file", **said)
    if "completion" not in row and bare_prompts:
        return new_example(prompt, (), source="file", **said)
    if "completion" not in row:
        raise BadData(
            'it has neither "chosen" and "rejected" nor "completion", "completions" or "left", "right" and "choice"; '
            "a prompt alone is for --method ppo."
        )
    text = _completion(row, "completion")
    if "label" not in row:
        return new_example(prompt, (text,), source="file", demonstrated=True, **said)
    if not isinstance(row["label"], bool):
        raise BadData('"label" is neither true nor false.')
    return new_example(prompt, (text,), source="file", thumb=row["label"], **said)


class _Said(TypedDict):
    person: str
    created_at: str
    ids: tuple[str, ...]


def _ranking(row: dict[str, Any], prompt: tuple[Message, ...], said: _Said) -> Example:
    given, ranks = row["completions"], row.get("ranks")
    if not isinstance(given, list) or not isinstance(ranks, list) or len(given) != len(ranks):
        raise BadData('"completions" and "ranks" are not two lists of one length.')
    if not isinstance(row.get("none_is_good", False), bool):
        raise BadData('"none_is_good" is neither true nor false.')
    texts = tuple(_completion({"completions": turns}, "completions") for turns in given)
    try:
        checked = check_ranks({str(place): rank for place, rank in enumerate(ranks)})
    except BadInput as error:
        raise BadData(str(error)) from error
    none_is_good = row.get("none_is_good", False)
    return new_example(prompt, texts, source="file", ranks=tuple(checked.values()), none_is_good=none_is_good, **said)


def _comparison(row: dict[str, Any], prompt: tuple[Message, ...], said: _Said) -> Example:
    left, right = _completion(row, "left"), _completion(row, "right")
    if row["choice"] in ("left", "right"):
        texts = (left, right) if row["choice"] == "left" else (right, left)
        return new_example(prompt, texts, source="file", **said)
    if row["choice"] in ("tie", "both-bad"):
        none_is_good = row["choice"] == "both-bad"
        return new_example(prompt, (left, right), source="file", ranks=(1, 1), none_is_good=none_is_good, **said)
    raise BadData('"choice" is none of "left", "right", "tie" and "both-bad".')


def _turns(row: dict[str, Any], name: str) -> tuple[Message, ...]:
    if name not in row:
        raise BadData(f'there is no "{name}".')
    value = row[name]
    if not isinstance(value, list):
        raise BadData(f'"{name}" is not a list of messages.')
    if not value:
        raise BadData(f'"{name}" is empty.')
    for turn in value:
        well_formed = isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
        if not well_formed:
            raise BadData(f'"{name}" holds a message without a known role and a text "content".')
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:
            raise BadData(f'"{name}" holds half of a surrogate pair, which is no text.') from error
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)


def _prompt(row: dict[str, Any]) -> tuple[Message, ...]:
    turns = _turns(row, "prompt")
    if turns[-1]["role"] != "user":
        raise BadData('"prompt" does not end with a user message.')
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadData('"prompt" has a system message that is not its first.')
    return turns


def _completion(row: dict[str, Any], name: str) -> str:
    turns = _turns(row, name)
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
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # a zone may lead out of the calendar
        raise BadData('"created_at" is not an ISO-8601 time.') from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
