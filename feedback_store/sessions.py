"""What stands for a password between requests: browser sessions and API tokens.

Both are random and stored as their SHA-256 only, so that a copied database opens no door. Whose they are is read from
the people's table at every use: a new role or a disabled account counts from the next request on. Sessions end after a
time without use and after an absolute time; API tokens last until they are revoked. Does not cover cookies.
"""

import contextlib
import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from feedback_store.checks import check_text
from feedback_store.connection import Connections, one_row, rows
from feedback_store.errors import BadInput, StoreError
from feedback_store.people import person_from
from feedback_store.records import Person, as_text

SESSION_IDLE = timedelta(days=7)
SESSION_LIFETIME = timedelta(days=30)
API_TOKEN_PREFIX = "nsk_"
"""Lets programs that look for leaked secrets recognise one."""
_SEEN_EVERY = timedelta(minutes=10)
"""How long a use goes unwritten, so that not every request is a write."""
_MAX_LABEL_CHARS = 60
_TOKEN_ID = "substr(token_hash, 1, 10)"
"""A piece of the hash, which is random already: too short to find a token by, long enough to be one person's only."""


@dataclass(frozen=True)
class ApiToken:
    """An API token without its secret."""

    id: str
    """Names it when it is revoked; tells nothing of the token itself."""
    label: str
    created_at: str
    seen_at: str | None
    """When it was last used, to within ten minutes; None before the first use."""


class Sessions:
    """The sessions and API tokens of everybody."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def new_session(self, person_id: int, now: datetime | None = None) -> str:
        """Begin a session after a login and return its token, which cannot be read again.

        Raises:
            BadInput: there is no such person, or they are disabled.
        """
        moment = now or datetime.now(UTC)
        with self._connections.write() as db:
            db.execute(
                "DELETE FROM access WHERE kind = 'session' AND (seen_at < ? OR created_at < ?)",
                [as_text(moment - SESSION_IDLE), as_text(moment - SESSION_LIFETIME)],
            )
        return self._new(person_id, "session", "", secrets.token_urlsafe(32), moment)

    def person_of_session(self, token: str, now: datetime | None = None) -> Person | None:
        """Return whose session this is; None when it has ended, was never begun, or its person is disabled."""
        moment = now or datetime.now(UTC)
        return self._person(token, "session", moment, moment - SESSION_IDLE, moment - SESSION_LIFETIME)

    def revoke_session(self, token: str) -> None:
        """End a session; ending it again changes nothing."""
        with self._connections.write() as db:
            db.execute("DELETE FROM access WHERE token_hash = ? AND kind = 'session'", [_hash(token)])

    def revoke_sessions(self, person_id: int, keep: str | None = None) -> int:
        """End a person's sessions and return how many there were.

        Args:
            keep: the token of the one that goes on.
        """
        kept = _hash(keep) if keep is not None else ""
        with self._connections.write() as db:
            sql = "DELETE FROM access WHERE person_id = ? AND kind = 'session' AND token_hash <> ?"
            return db.execute(sql, [person_id, kept]).rowcount

    def new_token(self, person_id: int, label: str = "api") -> str:
        """Make an API token and return it; it cannot be read again.

        Args:
            label: says what it is for.

        Raises:
            BadInput: there is no such person, they are disabled, or the label is empty or too long.
        """
        check_text(label, "The label", max_chars=_MAX_LABEL_CHARS, may_be_empty=False)
        token = API_TOKEN_PREFIX + secrets.token_urlsafe(32)
        return self._new(person_id, "api", label, token, datetime.now(UTC))

    def person_of_token(self, token: str) -> Person | None:
        """Return whose API token this is; None when it was revoked, never made, or its person is disabled."""
        return self._person(token, "api", datetime.now(UTC), None, None)

    def tokens(self, person_id: int) -> list[ApiToken]:
        """Return a person's API tokens without their secrets, oldest first."""
        sql = f"""SELECT {_TOKEN_ID} AS id, label, created_at, nullif(seen_at, created_at) AS seen_at FROM access
            WHERE person_id = ? AND kind = 'api' ORDER BY created_at"""
        with self._connections.read() as db:
            return [ApiToken(**row) for row in rows(db, sql, [person_id])]

    def revoke_token(self, person_id: int, token_id: str) -> None:
        """Revoke one of a person's API tokens.

        Args:
            token_id: as `tokens` gives it.

        Raises:
            BadInput: there is none; the one that leaked would go on working.
        """
        with self._connections.write() as db:
            sql = f"DELETE FROM access WHERE person_id = ? AND kind = 'api' AND {_TOKEN_ID} = ?"
            revoked = db.execute(sql, [person_id, token_id]).rowcount
        if not revoked:
            raise BadInput(f"There is no token {token_id!r:.80} of theirs; list them to see their ids.")

    def revoke_tokens(self, person_id: int) -> int:
        """Revoke all of a person's API tokens, and return how many there were."""
        with self._connections.write() as db:
            return db.execute("DELETE FROM access WHERE person_id = ? AND kind = 'api'", [person_id]).rowcount

    def _new(self, person_id: int, kind: str, label: str, token: str, moment: datetime) -> str:
        with self._connections.write() as db:
            if not one_row(db, "SELECT 1 FROM person WHERE id = ? AND disabled_at IS NULL", [person_id]):
                raise BadInput("There is no such account, or it is disabled; ask an operator.")
            db.execute(
                "INSERT INTO access(token_hash, person_id, kind, label, created_at, seen_at) VALUES (?, ?, ?, ?, ?, ?)",
                [_hash(token), person_id, kind, label, as_text(moment), as_text(moment)],
            )
        return token

    def _person(
        self, token: str, kind: str, moment: datetime, seen_after: datetime | None, made_after: datetime | None
    ) -> Person | None:
        sql = """
            SELECT person.*, access.created_at AS made_at, seen_at FROM access JOIN person ON person.id = person_id
            WHERE token_hash = ? AND access.kind = ? AND disabled_at IS NULL"""
        with self._connections.read() as db:
            row = one_row(db, sql, [_hash(token), kind])
        if row is None:
            return None
        if seen_after and row["seen_at"] <= as_text(seen_after):
            return None
        if made_after and row["made_at"] <= as_text(made_after):
            return None
        unused = kind == "api" and row["seen_at"] == row["made_at"]
        if unused or row["seen_at"] < as_text(moment - _SEEN_EVERY):
            self._note_use(token, moment)
        return person_from(row)

    def _note_use(self, token: str, moment: datetime) -> None:
        """Write when a token was used; a full disk or a busy file must not shut anybody out."""
        with contextlib.suppress(StoreError), self._connections.write() as db:
            db.execute("UPDATE access SET seen_at = ? WHERE token_hash = ?", [as_text(moment), _hash(token)])


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
