"""Files of judgements into the store: whole or nothing, each line once, under people of kind `imported`.

A line becomes a conversation of its own, marked as imported, whose replies say that they were; so nothing from a file
is ever taken for what somebody said here, and no file can speak for an account. Every line is checked before the
database is locked; the writing is one transaction, during which others wait (about a second for 2,000 lines).
"""

import hashlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from feedback_store.checks import check_choice, to_json
from feedback_store.connection import one_row
from feedback_store.conversations import TITLE_CHARS
from feedback_store.errors import BadInput, StoreError
from feedback_store.exchange import KINDS, Judgement, Reply, check_line, parse_line
from feedback_store.foreign import FORMATS, in_their_words, read_foreign
from feedback_store.items import Item, find_item
from feedback_store.rankings import write_ranking
from feedback_store.records import utc_now
from feedback_store.store import Store

MAX_LINE_BYTES = 32 * 2**20
_SHOWN_PROBLEMS = 20
_PERSON_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{1,31}")
_HERE = {"thumbs": "message", "comparisons": "comparison", "rankings": "ranking", "conversations": "conversation"}
_MADE_OF = {"comparison": "comparison", "thumbs": "message", "rewrite": "message"}
"""Where a pair or demonstration exported from this very store has its row, by the first word of its id."""


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    added: int
    repeated: int
    """Lines whose judgement was here already."""
    skipped: int
    """Bad lines that were left out."""
    other: int
    """Records of another program's file that are no votes."""
    problems: tuple[str, ...]
    """One sentence a line that was left out; of many, the first."""


def import_file(
    store: Store, path: Path, kind: str, *, format: str = "nightschool", skip_bad: bool = False
) -> Imported:
    """Store every judgement of a file; the same file again changes nothing.

    Args:
        path: JSON lines; of the other formats also one JSON list.
        kind: what the lines are, one of KINDS.
        format: nightschool, openwebui (thumbs) or arena (comparisons, thumbs).
        skip_bad: keep the good lines, and say in the result what was wrong with the others.

    Raises:
        BadInput: a line is bad and skip_bad is false, or none is good; nothing was stored, because half of a broken
            export, or the wrong file, would look like a success.
        StoreError: the file cannot be read.
    """
    check_choice(kind, KINDS, "The kind")
    check_choice(format, FORMATS, "The format")
    if kind not in FORMATS[format]:
        raise BadInput(f"The format {format} holds {' or '.join(FORMATS[format])}; name one of them with --kind.")
    try:
        problems = _check_all(path, kind, format, skip_bad)
        with store.connections.write() as db:
            return _write_all(db, path, kind, format, problems, skip_bad)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); give the path of a JSONL file.") from error


def _check_all(path: Path, kind: str, format: str, skip_bad: bool) -> dict[int, str]:
    """Return what is wrong, by line number."""
    problems: dict[int, str] = {}
    for number, found in _read(path, kind, format):
        if isinstance(found, BadInput):
            problems[number] = f"Line {number} of {path.name}: {found}"
    if problems and not skip_bad:
        first = next(iter(problems.values()))
        more = f" ({len(problems) - 1} more bad lines)" if len(problems) > 1 else ""
        raise BadInput(f"{first}{more} Correct it, or leave bad lines out with --skip-bad.")
    return problems


def _write_all(db: Database, path: Path, kind: str, format: str, problems: dict[int, str], skip_bad: bool) -> Imported:
    writer = _Writer(db, _register_file(db, path, kind, format))
    added = repeated = other = 0
    for number, found in _read(path, kind, format):
        if found is None:
            other += 1
        elif isinstance(found, Judgement):
            try:
                new = writer.add(found)
            except BadInput as error:
                problems[number] = f"Line {number} of {path.name}: {error}"
                if not skip_bad:
                    raise BadInput(f"{problems[number]} Correct it, or leave it out with --skip-bad.") from None
                continue
            added, repeated = added + new, repeated + (not new)
    shown = [problems[number] for number in sorted(problems)][:_SHOWN_PROBLEMS]
    if not added and not repeated:
        why = f"the first problem: {shown[0]}" if shown else "name the file that does."
        raise BadInput(f"{path} holds no {kind} that can be stored; {why}")
    if len(problems) > len(shown):
        shown.append(f"{len(problems) - len(shown)} more bad lines were left out.")
    return Imported(added, repeated, len(problems), other, tuple(shown))


def _read(path: Path, kind: str, format: str) -> Iterator[tuple[int, Judgement | BadInput | None]]:
    """Yield each line's number with what it says, what is wrong with it, or None when it is no vote."""
    with path.open("rb") as file:
        if format != "nightschool" and file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            file.seek(0)
            records = enumerate(_lines_of_list(file.read()), 1)
        else:
            file.seek(0)
            records = enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1)
        for number, line in records:
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if len(line) > MAX_LINE_BYTES:
                raise BadInput(f"Line {number} of {path.name} is longer than {MAX_LINE_BYTES} bytes; split it.")
            if line.strip():
                yield number, _judgement(line, kind, format)


def _judgement(line: bytes, kind: str, format: str) -> Judgement | BadInput | None:
    try:
        record = parse_line(line)
        if format == "nightschool":
            return check_line(record, kind)
        ours = read_foreign(record, kind, format)
    except BadInput as error:
        return error
    try:
        return None if ours is None else check_line(ours, kind)
    except BadInput as error:
        return BadInput(in_their_words(str(error), record, format))


def _lines_of_list(text: bytes) -> Iterator[bytes]:
    records = parse_line(b'{"records":' + text.removeprefix(b"\xef\xbb\xbf") + b"}")["records"]
    for record in records:
        yield to_json(record, "A record").encode()


def _register_file(db: Database, path: Path, kind: str, format: str) -> int:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    db.execute("DELETE FROM import_file WHERE id NOT IN (SELECT file_id FROM imported)")
    cursor = db.execute(
        "INSERT INTO import_file(sha256, kind, format, at) VALUES (?, ?, ?, ?)", [digest, kind, format, utc_now()]
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


class _Writer:
    """Writes the lines of one file inside one transaction."""

    def __init__(self, db: Database, file_id: int) -> None:
        self._db = db
        self._file_id = file_id
        self._now = utc_now()
        self._people: dict[str, int] = {}
        self._systems: set[str] = set()

    def add(self, judgement: Judgement) -> bool:
        """Store a judgement, and say whether it is new.

        Raises:
            BadInput: its id stands for another judgement of that person already.
        """
        person_id = self._person(judgement.annotator)
        name = judgement.id or f"line-{judgement.content_hash}"
        if self._is_here(judgement, person_id, name):
            return False
        at = judgement.created_at or self._now
        conversation_id, last = self._conversation(judgement, person_id, at)
        replies = [self._reply(conversation_id, last, reply, at) for reply in judgement.replies]
        row_id = self._judge(judgement, person_id, (conversation_id, last), replies, at)
        self._db.execute(
            "INSERT INTO imported(kind, person_id, name, row_id, conversation_id, content_hash, file_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [judgement.kind, person_id, name, row_id, conversation_id, judgement.content_hash, self._file_id],
        )
        return True

    def _is_here(self, judgement: Judgement, person_id: int, name: str) -> bool:
        sql = "SELECT content_hash FROM imported WHERE kind = ? AND person_id = ? AND name = ?"
        row = one_row(self._db, sql, [judgement.kind, person_id, name])
        if row is not None:
            if row["content_hash"] != judgement.content_hash:
                raise BadInput(f"Its id {name!r:.80} stands for another judgement of {judgement.annotator!r:.60}.")
            return True
        table, key = _HERE.get(judgement.kind), name
        if table is None:
            first, _, rest = name.partition(":")
            table, key = _MADE_OF.get(first), rest.partition(":")[0]
        return table is not None and one_row(self._db, f"SELECT 1 FROM {table} WHERE id = ?", [key]) is not None

    def _person(self, annotator: str) -> int:
        if annotator not in self._people:
            sql = "SELECT person_id FROM annotator WHERE name = ?"
            row = one_row(self._db, sql, [annotator])
            self._people[annotator] = row["person_id"] if row else self._new_person(annotator)
        return self._people[annotator]

    def _new_person(self, annotator: str) -> int:
        """Name a person as the file does, unless that is no name here or somebody else's."""
        name = annotator
        if not _PERSON_NAME.fullmatch(name) or one_row(self._db, "SELECT 1 FROM person WHERE name = ?", [name]):
            letters = re.sub(r"[^a-z0-9]+", "-", annotator.lower()).strip("-")[:20]
            name = f"{letters or 'imported'}-{hashlib.sha256(annotator.encode()).hexdigest()[:8]}"
        cursor = self._db.execute(
            "INSERT INTO person(name, role, kind, created_at, teach, teach_at)"
            " VALUES (?, 'member', 'imported', ?, 'on', ?)",
            [name, self._now, self._now],
        )
        person_id = cursor.lastrowid
        assert person_id is not None
        self._db.execute("INSERT INTO annotator(person_id, name) VALUES (?, ?)", [person_id, annotator])
        return person_id

    def _conversation(self, judgement: Judgement, person_id: int, at: str) -> tuple[str, str]:
        """Store the messages before the judged replies, and return the ids of conversation and last message."""
        conversation_id = secrets.token_hex(16)
        first = next((node.text for node in judgement.nodes if node.reply is None), "")
        title = judgement.details.get("title") or " ".join(first[: 4 * TITLE_CHARS].split())[:TITLE_CHARS]
        kind = judgement.details.get("kind", "chat")
        self._db.execute(
            "INSERT INTO conversation(id, person_id, title, kind, created_at, updated_at, provenance)"
            " VALUES (?, ?, ?, ?, ?, ?, 'imported')",
            [conversation_id, person_id, title, kind, at, max([at, *(n.created_at or at for n in judgement.nodes)])],
        )
        ids: list[str] = []
        for node in judgement.nodes:
            parent = None if node.parent is None else ids[node.parent]
            moment = node.created_at or at
            if node.reply is None:
                ids.append(self._message(conversation_id, parent, "user", node.text, "done", moment))
            else:
                ids.append(self._reply(conversation_id, parent, node.reply, moment))
        return conversation_id, ids[-1] if ids else ""

    def _message(self, conversation_id: str, parent: str | None, role: str, text: str, state: str, at: str) -> str:
        message_id = secrets.token_hex(16)
        self._db.execute(
            "INSERT INTO message(id, conversation_id, parent_id, role, text, state, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [message_id, conversation_id, parent, role, text, state, at],
        )
        return message_id

    def _reply(self, conversation_id: str, parent: str | None, reply: Reply, at: str) -> str:
        message_id = self._message(conversation_id, parent, "assistant", reply.text, reply.state, at)
        if reply.finish is not None or reply.new_tokens is not None:
            sql = "UPDATE message SET finish = ?, new_tokens = ? WHERE id = ?"
            self._db.execute(sql, [reply.finish, reply.new_tokens, message_id])
        system_id = hashlib.sha256(reply.system.encode()).hexdigest()
        if system_id not in self._systems:
            self._systems.add(system_id)
            sql = "INSERT OR IGNORE INTO system_prompt(id, text) VALUES (?, ?)"
            self._db.execute(sql, [system_id, reply.system])
        self._db.execute(
            "INSERT INTO origin(message_id, base_id, numeric_form, preset, system_id, temperature, top_p,"
            " max_new_tokens, seed) VALUES (:message_id, :model, :numeric_form, :preset, :system_id, :temperature,"
            " :top_p, :max_new_tokens, :seed)",
            {**reply.origin, "message_id": message_id, "system_id": system_id},
        )
        return message_id

    def _judge(self, judgement: Judgement, person_id: int, prompt: tuple[str, str], replies: list[str], at: str) -> str:
        """Store the judgement itself, and return its row's id."""
        details, key = judgement.details, secrets.token_hex(16)
        if judgement.kind == "thumbs":
            thumb = [details["value"], to_json(details["reasons"], "Reasons"), details["comment"], at]
            _add_thumb(self._db, replies[0], person_id, thumb)
            return replies[0]
        if judgement.kind == "comparisons":
            sides = [person_id, *prompt, *replies, details["choice"], details["shown_at"] or at, at]
            _add_comparison(self._db, key, sides, find_item(self._db, prompt[1], *replies))
        elif judgement.kind == "rankings":
            ranks = dict(zip(replies, details["ranks"], strict=True))
            write_ranking(self._db, key, prompt, person_id, ranks, details["none_is_good"], at)
        elif judgement.kind == "preferences":
            self._db.execute(
                "INSERT INTO preference(id, person_id, chosen_message_id, rejected_message_id, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                [key, person_id, *replies, at],
            )
        elif judgement.kind == "demonstrations":
            sql = "INSERT INTO demonstration(id, person_id, message_id, created_at) VALUES (?, ?, ?, ?)"
            self._db.execute(sql, [key, person_id, *replies, at])
        else:
            return prompt[0]
        return key


def _add_thumb(db: Database, message_id: str, person_id: int, thumb: list[object]) -> None:
    db.execute(
        "INSERT INTO vote(message_id, person_id, version, value, reasons, comment, updated_at)"
        " VALUES (?, ?, 1, ?, ?, ?, ?)",
        [message_id, person_id, *thumb],
    )
    db.execute(
        "INSERT INTO vote_event(message_id, person_id, new, reasons, comment, at) VALUES (?, ?, ?, ?, ?, ?)",
        [message_id, person_id, *thumb],
    )


def _add_comparison(db: Database, comparison_id: str, sides: list[object], item: Item) -> None:
    db.execute(
        "INSERT INTO comparison(id, person_id, conversation_id, prompt_message_id, left_message_id,"
        " right_message_id, choice, shown_at, chosen_at, item, left_first) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [comparison_id, *sides, item.id, item.left_first],
    )
    choice, at = sides[-3], sides[-1]
    sql = "INSERT INTO comparison_event(comparison_id, new, at) VALUES (?, ?, ?)"
    db.execute(sql, [comparison_id, choice, at])
