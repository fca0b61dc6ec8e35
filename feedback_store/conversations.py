"""Who said what: conversations as trees of messages, each reply with what produced it."""

import hashlib
import math
import secrets
from collections.abc import Sequence
from itertools import zip_longest

from sqlite_utils import Database

from feedback_store.checks import check_choice, check_text
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.errors import BadInput, NotYours, StoreError, UnknownAdapter
from feedback_store.records import (
    CONVERSATION_KINDS,
    Conversation,
    ConversationKind,
    Message,
    MessageState,
    Origin,
    utc_now,
)

TITLE_CHARS = 60
Messages = list[Message]
"""Named, because `Conversations.list` hides the built-in inside its class."""

_MESSAGE = """
    SELECT message.*, origin.adapter_id, base_id, numeric_form, preset, system_prompt.text AS system,
        temperature, top_p, max_new_tokens, seed
    FROM message LEFT JOIN origin ON origin.message_id = message.id
    LEFT JOIN system_prompt ON system_prompt.id = origin.system_id"""
_PATH = """
    WITH RECURSIVE path(id, parent_id, depth) AS (
        SELECT id, parent_id, 0 FROM message WHERE id = ?
        UNION ALL
        SELECT message.id, message.parent_id, depth + 1 FROM path JOIN message ON message.id = path.parent_id
    )"""


def read_path(db: Database, message_id: str) -> Messages:
    """Return the messages from the root to this one; empty when there is no such message."""
    sql = f"{_PATH} {_MESSAGE} JOIN path ON path.id = message.id ORDER BY depth DESC"
    return [_message(row) for row in rows(db, sql, [message_id])]


def read_by_model(path: Sequence[Message]) -> Messages:
    """Return the turns of a path that the model reads: those that hold text, without questions that got none back.

    Leaving out a question with its empty reply lets the roles alternate, as templates ask for.
    """
    told = [message for message in path if message.text.strip()]
    return [
        message
        for message, after in zip_longest(told, told[1:])
        if not (after and message.role == after.role == "user")
    ]


def own_message(db: Database, message_id: str, person_id: int) -> Message:
    """Return a message of that person's own conversations.

    Raises:
        NotYours: there is none; the same for absent and foreign, so that ids cannot be probed.
    """
    sql = f"{_MESSAGE} JOIN conversation ON conversation.id = conversation_id WHERE message.id = ? AND person_id = ?"
    row = one_row(db, sql, [message_id, person_id])
    if row is None:
        raise NotYours
    return _message(row)


def _message(row: Row) -> Message:
    origin = None
    if row["base_id"] is not None:
        origin = Origin(
            adapter_id=row["adapter_id"],
            base_id=row["base_id"],
            numeric_form=row["numeric_form"],
            preset=row["preset"],
            system=row["system"],
            temperature=row["temperature"],
            top_p=row["top_p"],
            max_new_tokens=row["max_new_tokens"],
            seed=row["seed"],
        )
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        parent_id=row["parent_id"],
        role=row["role"],
        text=row["text"],
        state=row["state"],
        finish=row["finish"],
        new_tokens=row["new_tokens"],
        created_at=row["created_at"],
        origin=origin,
    )


def _conversation(row: Row) -> Conversation:
    return Conversation(row["id"], row["person_id"], row["title"], row["kind"], row["created_at"], row["updated_at"])


def _own_conversation(db: Database, conversation_id: str, person_id: int) -> Conversation:
    row = one_row(db, "SELECT * FROM conversation WHERE id = ? AND person_id = ?", [conversation_id, person_id])
    if row is None:
        raise NotYours
    return _conversation(row)


def _touch(db: Database, conversation_id: str) -> None:
    db.execute("UPDATE conversation SET updated_at = ? WHERE id = ?", [utc_now(), conversation_id])


def _insert_message(db: Database, conversation_id: str, parent_id: str | None, role: str, text: str, state: str) -> str:
    message_id = secrets.token_hex(16)
    db.execute(
        "INSERT INTO message(id, conversation_id, parent_id, role, text, state, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [message_id, conversation_id, parent_id, role, text, state, utc_now()],
    )
    _touch(db, conversation_id)
    return message_id


def _check_origin(origin: Origin) -> None:
    for what, text in (
        ("The base's id", origin.base_id),
        ("The numeric form", origin.numeric_form),
        ("The preset", origin.preset),
        ("The system prompt", origin.system),
    ):
        check_text(text, what)
    if not (math.isfinite(origin.temperature) and math.isfinite(origin.top_p)):
        raise BadInput("Temperature and top_p must be finite numbers.")
    if not (0 <= origin.max_new_tokens < 2**31 and -(2**63) <= origin.seed < 2**63):
        raise BadInput("max_new_tokens must be below 2**31 and the seed must fit in 64 bits.")


def _insert_origin(db: Database, message_id: str, origin: Origin) -> None:
    if origin.adapter_id is not None and not one_row(db, "SELECT 1 FROM adapter WHERE id = ?", [origin.adapter_id]):
        raise UnknownAdapter(f"Adapter {origin.adapter_id!r:.80} is not registered; register it before it answers.")
    system_id = hashlib.sha256(origin.system.encode()).hexdigest()
    db.execute("INSERT OR IGNORE INTO system_prompt(id, text) VALUES (?, ?)", [system_id, origin.system])
    db.execute(
        "INSERT INTO origin(message_id, adapter_id, base_id, numeric_form, preset, system_id, temperature, top_p,"
        " max_new_tokens, seed) VALUES (:message_id, :adapter_id, :base_id, :numeric_form, :preset, :system_id,"
        " :temperature, :top_p, :max_new_tokens, :seed)",
        {**origin.__dict__, "message_id": message_id, "system_id": system_id},
    )


class Conversations:
    """The trees of messages, each of one person."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def start(self, person_id: int, kind: ConversationKind = "chat") -> Conversation:
        """Begin an empty conversation.

        Raises:
            BadInput: there is no such person.
        """
        check_choice(kind, CONVERSATION_KINDS, "A conversation's kind")
        conversation_id, now = secrets.token_hex(16), utc_now()
        with self._connections.write() as db:
            if not one_row(db, "SELECT 1 FROM person WHERE id = ?", [person_id]):
                raise BadInput("There is no such person; log in again.")
            db.execute(
                "INSERT INTO conversation(id, person_id, title, kind, created_at, updated_at)"
                " VALUES (?, ?, '', ?, ?, ?)",
                [conversation_id, person_id, kind, now, now],
            )
            return _own_conversation(db, conversation_id, person_id)

    def get(self, conversation_id: str, person_id: int) -> Conversation:
        """Return a person's own conversation.

        Raises:
            NotYours: absent or somebody else's.
        """
        with self._connections.read() as db:
            return _own_conversation(db, conversation_id, person_id)

    def add_user_message(
        self, conversation_id: str, person_id: int, text: str, parent_id: str | None = None
    ) -> Message:
        """Store what a person wrote, exactly.

        Args:
            parent_id: the message it answers; None makes it a root.

        Raises:
            NotYours: the conversation, or the parent within it, is absent or somebody else's.
            BadInput: nothing was written in it, or it cannot be stored.
        """
        check_text(text, "The message", may_be_empty=False)
        with self._connections.write() as db:
            conversation = _own_conversation(db, conversation_id, person_id)
            if parent_id is not None and own_message(db, parent_id, person_id).conversation_id != conversation_id:
                raise NotYours
            message_id = _insert_message(db, conversation_id, parent_id, "user", text, "done")
            if not conversation.title:
                title = " ".join(text[: 4 * TITLE_CHARS].split())[:TITLE_CHARS]
                db.execute("UPDATE conversation SET title = ? WHERE id = ?", [title, conversation_id])
            return own_message(db, message_id, person_id)

    def begin_reply(self, parent_id: str, person_id: int, origin: Origin) -> Message:
        """Store that a reply to a user message is under way, with all that will produce it.

        Raises:
            NotYours: the message is absent or in somebody else's conversation.
            BadInput: the parent is itself a reply, or a setting cannot be stored.
            UnknownAdapter: the adapter is not registered; the reply's votes could not be traced to it.
        """
        _check_origin(origin)
        with self._connections.write() as db:
            parent = own_message(db, parent_id, person_id)
            if parent.role != "user":
                raise BadInput("A reply answers a person's message, not another reply; reload the page.")
            message_id = _insert_message(db, parent.conversation_id, parent_id, "assistant", "", "streaming")
            _insert_origin(db, message_id, origin)
            return own_message(db, message_id, person_id)

    def save_partial(self, message_id: str, text: str) -> None:
        """Keep what a reply under way has said so far, in case this process ends before the reply does.

        A reply that has finished meanwhile stays as it is.
        """
        check_text(text, "The reply")
        with self._connections.write() as db:
            db.execute("UPDATE message SET text = ? WHERE id = ? AND state = 'streaming'", [text, message_id])

    def finish_reply(
        self, message_id: str, text: str, state: MessageState, finish: str | None, new_tokens: int | None
    ) -> None:
        """Store a reply's final text; doing so again with the same values changes nothing.

        Args:
            state: done, stopped (by the person) or failed.
            finish: why generation ended, in the engine's words.

        Raises:
            NotYours: there is no such reply.
            StoreError: it is finished already with other values, which votes may rest on.
        """
        check_text(text, "The reply")
        check_choice(state, ("done", "stopped", "failed"), "A finished reply's state")
        check_text(finish or "", "The finish reason", max_chars=200)
        if new_tokens is not None and new_tokens < 0:
            raise BadInput("A reply cannot have fewer than 0 new tokens.")
        with self._connections.write() as db:
            row = one_row(db, "SELECT * FROM message WHERE id = ? AND role = 'assistant'", [message_id])
            if row is None:
                raise NotYours
            if (row["text"], row["state"], row["finish"], row["new_tokens"]) == (text, state, finish, new_tokens):
                return
            if row["state"] != "streaming":
                raise StoreError("That reply is finished already and stays as it is; ask for a new one.")
            db.execute(
                "UPDATE message SET text = ?, state = ?, finish = ?, new_tokens = ? WHERE id = ?",
                [text, state, finish, new_tokens, message_id],
            )
            _touch(db, row["conversation_id"])

    def path_to(self, message_id: str) -> Messages:
        """Return the messages from the root to this one, itself included.

        Raises:
            NotYours: there is no such message.
        """
        with self._connections.read() as db:
            path = read_path(db, message_id)
        if not path:
            raise NotYours
        return path

    def thread(self, conversation_id: str, person_id: int) -> Messages:
        """Return the newest branch, root first: what the page shows when it is loaded again.

        Raises:
            NotYours: absent or somebody else's.
        """
        with self._connections.read() as db:
            _own_conversation(db, conversation_id, person_id)
            sql = "SELECT id FROM message WHERE conversation_id = ? ORDER BY seq DESC LIMIT 1"
            newest = one_row(db, sql, [conversation_id])  # nothing can answer it yet, so it is a leaf
            return read_path(db, newest["id"]) if newest else []

    def siblings(self, message_id: str) -> Messages:
        """Return the messages with the same parent, oldest first, itself included.

        Raises:
            NotYours: there is no such message.
        """
        with self._connections.read() as db:
            sql = f"""{_MESSAGE} JOIN message AS self ON self.conversation_id = message.conversation_id
                AND self.parent_id IS message.parent_id AND self.role = message.role
                WHERE self.id = ? ORDER BY message.seq"""
            found = [_message(row) for row in rows(db, sql, [message_id])]
        if not found:
            raise NotYours
        return found

    def interrupt_unfinished(self) -> int:
        """Mark every reply still under way as interrupted, and return how many; for the app's start only."""
        with self._connections.write() as db:
            return db.execute("UPDATE message SET state = 'interrupted' WHERE state = 'streaming'").rowcount

    def delete(self, conversation_id: str, person_id: int) -> None:
        """Remove a conversation with its messages and what was said of them.

        Raises:
            NotYours: absent or somebody else's.
        """
        with self._connections.write() as db:
            _own_conversation(db, conversation_id, person_id)
            db.execute("DELETE FROM conversation WHERE id = ?", [conversation_id])
            db.execute("DELETE FROM system_prompt WHERE id NOT IN (SELECT system_id FROM origin)")

    def list(self, person_id: int, limit: int = 100, kind: ConversationKind = "chat") -> list[Conversation]:
        """Return a person's conversations of one kind, the one with the latest message first."""
        sql = """SELECT * FROM conversation WHERE person_id = ? AND kind = ?
            ORDER BY updated_at DESC, seq DESC LIMIT ?"""
        with self._connections.read() as db:
            return [_conversation(row) for row in rows(db, sql, [person_id, kind, limit])]
