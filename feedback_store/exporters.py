"""What the store holds, as JSON lines or CSV in the shapes that TRL and the Hugging Face datasets use.

One line at a time, oldest first, and the same lines in the same order from every store they go through. What people
keep from teaching is in no export.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from sqlite_utils import Database

from feedback_store.ai import read_ai_choices, read_ai_rewrites
from feedback_store.checks import check_choice
from feedback_store.connection import rows
from feedback_store.consent import TEACHING
from feedback_store.errors import BadInput, StoreError
from feedback_store.examples import ANNOTATOR, read_demonstrations, read_pairs, read_prompt
from feedback_store.rankings import read_rankings
from feedback_store.records import Demonstration, PreferencePair, RankedReplies
from feedback_store.store import Store

Line = dict[str, Any]
_THUMBS = f"""
    SELECT coalesce(imported.name, vote.message_id) AS id, {ANNOTATOR.format("vote.person_id")} AS annotator,
        updated_at AS created_at, value, reasons, comment, message.text, parent_id, system_prompt.text AS system
    FROM vote
    JOIN message ON message.id = vote.message_id
    JOIN origin ON origin.message_id = message.id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    LEFT JOIN imported ON imported.kind = 'thumbs' AND imported.row_id = vote.message_id
    WHERE value <> 0 AND message.conversation_id IN ({TEACHING})
    ORDER BY created_at, 1, annotator"""
_COMPARISONS = f"""
    SELECT coalesce(imported.name, comparison.id) AS id, {ANNOTATOR.format("comparison.person_id")} AS annotator,
        chosen_at AS created_at, shown_at, choice, l.text AS left, r.text AS right, prompt_message_id,
        system_prompt.text AS system
    FROM comparison
    JOIN message AS l ON l.id = left_message_id
    JOIN message AS r ON r.id = right_message_id
    JOIN origin AS l_origin ON l_origin.message_id = l.id
    JOIN origin AS r_origin ON r_origin.message_id = r.id AND r_origin.system_id = l_origin.system_id
    JOIN system_prompt ON system_prompt.id = l_origin.system_id
    LEFT JOIN imported ON imported.kind = 'comparisons' AND imported.row_id = comparison.id
    WHERE choice IS NOT NULL AND comparison.conversation_id IN ({TEACHING})
    ORDER BY created_at, 1, annotator"""
_CONVERSATIONS = f"""
    SELECT conversation.id AS key, coalesce(imported.name, conversation.id) AS id, title, conversation.kind, created_at,
        {ANNOTATOR.format("conversation.person_id")} AS annotator
    FROM conversation
    LEFT JOIN imported ON imported.kind = 'conversations' AND imported.row_id = conversation.id
    WHERE (provenance = 'local' OR imported.name IS NOT NULL) AND conversation.id IN ({TEACHING})
    ORDER BY created_at, 2, annotator"""
_MESSAGES = """
    SELECT message.id, parent_id, role, message.text, state, finish, new_tokens, created_at,
        coalesce(adapter_id, base_id) AS model, numeric_form, preset, temperature, top_p, max_new_tokens, seed,
        system_prompt.text AS system
    FROM message LEFT JOIN origin ON origin.message_id = message.id
    LEFT JOIN system_prompt ON system_prompt.id = origin.system_id
    WHERE conversation_id = ? ORDER BY message.seq"""
REPLY_FIELDS = ("model", "numeric_form", "preset", "temperature", "top_p", "max_new_tokens", "seed")
_RUNS_AS_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""What a spreadsheet takes for the beginning of a formula, in full width too."""


def export_lines(store: Store, kind: str) -> Iterator[Line]:
    """Yield everything of one kind, oldest first, as it is at the first step.

    Raises:
        BadInput: there is no such kind.
    """
    check_choice(kind, READERS, "The kind")
    with store.connections.snapshot() as db:
        yield from READERS[kind](db)


def export_file(store: Store, kind: str, target: Path, *, as_csv: bool = False) -> int:
    """Write everything of one kind to a new file, and return how many lines that was.

    Args:
        target: appears under its name only when it is complete.
        as_csv: one row a line, cells that a spreadsheet would run made harmless; for people, not for importing.

    Raises:
        BadInput: the file exists already, or there is no such kind.
        StoreError: the file cannot be written.
    """
    check_choice(kind, READERS, "The kind")
    if target.exists():
        raise BadInput(f"{target} exists already; name a new file.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _new_file(partial, target) as file:
            lines = export_lines(store, kind)
            return _write_csv(file, lines) if as_csv else _write_jsonl(file, lines)
    except OSError as error:
        raise StoreError(f"{target} cannot be written ({error.strerror}); name a file in a folder of yours.") from error


def export_to(store: Store, kind: str, out: BinaryIO, *, as_csv: bool = False) -> None:
    """Write what `export_file` writes to something that is open, such as standard output.

    Raises:
        BadInput: there is no such kind.
        StoreError: nobody reads it any more, or it cannot be written.
    """
    write = _write_csv if as_csv else _write_jsonl
    file = io.TextIOWrapper(out, encoding="utf-8", newline="")
    try:
        write(file, export_lines(store, kind))
        file.flush()
    except OSError as error:
        raise StoreError(f"The export was broken off ({error.strerror}); run it again.") from error
    finally:
        with suppress(OSError):
            file.detach()


def harmless(cell: str) -> str:
    """Return the text so that no spreadsheet takes it for a formula: an apostrophe before what looks like one."""
    return f"'{cell}" if cell.lstrip(" ").startswith(tuple(_RUNS_AS_FORMULA)) else cell


@contextmanager
def _new_file(partial: Path, target: Path) -> Iterator[IO[str]]:
    handle = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_jsonl(file: IO[str], lines: Iterator[Line]) -> int:
    count = 0
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        count += 1
    return count


def _write_csv(file: IO[str], lines: Iterator[Line]) -> int:
    """Write cells of plain text where a field is a single reply, and JSON where it is a list."""
    count = 0
    writer: csv.DictWriter[str] | None = None
    for line in lines:
        cells = {name: harmless(_cell(value)) for name, value in line.items()}
        if writer is None:
            extra = ("reasons", "comment", "none_is_good")  # a line has them only where they say something
            columns = dict.fromkeys([*cells, *extra])
            writer = csv.DictWriter(file, list(columns), quoting=csv.QUOTE_ALL, extrasaction="ignore")
            writer.writeheader()
        writer.writerow(cells)
        count += 1
    return count


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and set(value[0]) == _TURN:
        return str(value[0]["content"])
    return json.dumps(value, ensure_ascii=False)


_TURN = {"role", "content"}


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _names(db: Database) -> dict[int, str]:
    return {row["id"]: row["name"] for row in rows(db, f"SELECT id, {ANNOTATOR.format('p.id')} AS name FROM person p")}


def _head(example: PreferencePair | Demonstration | RankedReplies, names: dict[int, str]) -> Line:
    return {
        "id": example.key,
        "annotator": names[example.person_id],
        "created_at": example.created_at,
        "prompt": list(example.prompt),
    }


def _read_preferences(db: Database) -> Iterator[Line]:
    names = _names(db)
    for pair in read_pairs(db):
        yield {
            **_head(pair, names),
            "chosen": _reply(pair.chosen),
            "rejected": _reply(pair.rejected),
        }


def _read_demonstrations(db: Database) -> Iterator[Line]:
    names = _names(db)
    for shown in read_demonstrations(db):
        yield {
            **_head(shown, names),
            "completion": _reply(shown.completion),
        }


def _read_rankings(db: Database) -> Iterator[Line]:
    names = _names(db)
    for ranking in read_rankings(db):
        yield {
            **_head(ranking, names),
            "completions": [_reply(text) for text in ranking.completions],
            "ranks": list(ranking.ranks),
            **({"none_is_good": True} if ranking.none_is_good else {}),
        }


def _read_ai_preferences(db: Database) -> Iterator[Line]:
    """Yield what AI judges preferred, each under the judge's name; ties prefer nothing."""
    for choice in read_ai_choices(db):
        if choice.share == 0.5:
            continue
        pair, first = choice.pair, choice.share > 0.5
        yield {
            "id": f"{choice.judge}:{':'.join(pair.ids)}",
            "annotator": choice.judge,
            "created_at": choice.created_at,
            "prompt": list(pair.prompt),
            "chosen": _reply(pair.first if first else pair.second),
            "rejected": _reply(pair.second if first else pair.first),
            "share": round(max(choice.share, 1 - choice.share), 6),
        }


def _read_ai_demonstrations(db: Database) -> Iterator[Line]:
    for rewrite in read_ai_rewrites(db):
        yield {
            "id": f"{rewrite.judge}:{rewrite.reply.id}",
            "annotator": rewrite.judge,
            "created_at": rewrite.created_at,
            "prompt": list(rewrite.reply.prompt),
            "completion": _reply(rewrite.text),
        }


def _read_thumbs(db: Database) -> Iterator[Line]:
    for row in rows(db, _THUMBS):
        reasons = json.loads(row["reasons"])
        yield {
            "id": row["id"],
            "annotator": row["annotator"],
            "created_at": row["created_at"],
            "prompt": list(read_prompt(db, row["system"], row["parent_id"])),
            "completion": _reply(row["text"]),
            "label": row["value"] == 1,
            **({"reasons": reasons} if reasons else {}),
            **({"comment": row["comment"]} if row["comment"] else {}),
        }


def _read_comparisons(db: Database) -> Iterator[Line]:
    for row in rows(db, _COMPARISONS):
        yield {
            "id": row["id"],
            "annotator": row["annotator"],
            "created_at": row["created_at"],
            "shown_at": row["shown_at"],
            "prompt": list(read_prompt(db, row["system"], row["prompt_message_id"])),
            "left": _reply(row["left"]),
            "right": _reply(row["right"]),
            "choice": row["choice"],
        }


def _read_conversations(db: Database) -> Iterator[Line]:
    for row in rows(db, _CONVERSATIONS):
        messages = list(rows(db, _MESSAGES, [row["key"]]))
        system = next((m["system"] for m in messages if m["system"] is not None), "")
        yield {
            "id": row["id"],
            "annotator": row["annotator"],
            "created_at": row["created_at"],
            "title": row["title"],
            "kind": row["kind"],
            "messages": [
                *([{"role": "system", "content": system}] if system else []),
                *_tree(messages, system),
            ],
        }


def _tree(messages: list[Line], system: str) -> Iterator[Line]:
    """Yield the messages in order of arrival; `parent` counts them from 0, the system prompt apart."""
    places = {message["id"]: place for place, message in enumerate(messages)}
    for place, message in enumerate(messages):
        parent = places[message["parent_id"]] if message["parent_id"] is not None else None
        line: Line = {"role": message["role"], "content": message["text"]}
        if parent != (place - 1 if place else None):
            line["parent"] = parent
        line["created_at"] = message["created_at"]
        if message["role"] == "assistant":
            state = message["state"] if message["state"] != "streaming" else "interrupted"
            line |= {"state": state, "finish": message["finish"], "new_tokens": message["new_tokens"]}
            line |= {name: message[name] for name in REPLY_FIELDS}
            if message["system"] != system:
                line["system"] = message["system"]
        yield line


READERS: dict[str, Callable[[Database], Iterator[Line]]] = {
    "preferences": _read_preferences,
    "thumbs": _read_thumbs,
    "comparisons": _read_comparisons,
    "rankings": _read_rankings,
    "demonstrations": _read_demonstrations,
    "conversations": _read_conversations,
    "ai-preferences": _read_ai_preferences,
    "ai-demonstrations": _read_ai_demonstrations,
}
