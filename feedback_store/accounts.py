"""Who may log in: names, roles and passwords.

The local owner is there from the start and has no password. The first operator takes the owner's row over, name and
all, and so inherits every conversation, vote and setting without a row being moved; its kind stays `owner`. Everybody
after that is a row of kind `account`. An owner who never chatted was told nothing about teaching, so the operator who
takes over is asked at the first login like everybody.

Hashing is slow on purpose and needs no database: `hash_password` and `password_matches` are pure, and every method
that calls them belongs in a worker thread. Does not cover sessions, or how often somebody may try.
"""

import unicodedata
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlite_utils import Database

from feedback_store.checks import check_choice, check_text
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.errors import BadInput, SamePassword
from feedback_store.people import check_name, find_person, person_from
from feedback_store.records import Person, Role, Teach, utc_now

MIN_PASSWORD_CHARS = 8
MAX_PASSWORD_CHARS = 1_000
ROLES: tuple[Role, ...] = ("member", "operator")
# 19 MiB, 2 passes, 1 lane: OWASP's floor, about 20 ms, so that a flood of logins cannot take a small machine's memory
# Source: https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# of a password nobody knows: checked where there is no account, so that the answer takes as long
_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$HGdsz7aKlstJeowyTxZk+A$qZBUhDIhQBKPW5w4e/XzSD0ud/qHKPSMpIgOngdoJ2Q"
_OPERATORS = """
    SELECT person.id FROM person JOIN credential ON credential.person_id = person.id
    WHERE role = 'operator' AND disabled_at IS NULL"""
_UNCLAIMED = "SELECT * FROM person WHERE kind = 'owner' AND id NOT IN (SELECT person_id FROM credential)"
_FIRST_ID = 1
"""Of the owner that every database begins with; one who follows an erased owner has a later number."""


@dataclass(frozen=True)
class Account:
    """Somebody who can log in, as the operator sees them."""

    person: Person
    created_at: str
    seen_at: str | None
    """When a session or token of theirs was last used, to within ten minutes."""
    tokens: int


def hash_password(password: str) -> str:
    """Return what may be stored in a password's place; takes tens of milliseconds.

    Raises:
        BadInput: it is too short to be worth hashing, too long, or cannot be encoded.
    """
    if not isinstance(password, str) or not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
        raise BadInput(f"A password must have {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters.")
    return _HASHER.hash(_normal(check_text(password, "The password")))


def password_matches(stored: str | None, password: str) -> bool:
    """Say whether this is the password; takes as long where none is stored, so that the time tells nothing.

    Args:
        stored: from `Accounts.stored_password`; None for somebody who cannot log in.
    """
    try:
        _HASHER.verify(stored or _NOBODY, _normal(password[:MAX_PASSWORD_CHARS]))
    except (VerificationError, InvalidHashError, UnicodeEncodeError):
        return False
    return stored is not None


class Accounts:
    """The people who log in."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def add(self, name: str, password: str, role: Role = "member") -> Person:
        """Add an account; the first operator takes over the local owner's row with all that is the owner's.

        Args:
            name: 2 to 32 of a-z 0-9 _ . - beginning with a letter or digit.

        Raises:
            BadInput: the name is taken or not allowed, or the password is too short; nothing is written.
        """
        check_choice(role, ROLES, "A role")
        self.check_new(name, role)
        stored = hash_password(password)
        with self._connections.write() as db:
            owner = _claimed(db, role)
            _check_free(db, name, owner)
            if owner:
                db.execute(
                    "UPDATE person SET name = ?, role = 'operator', disabled_at = NULL, teach = ?, teach_at = ?"
                    " WHERE id = ?",
                    [name, *_inherited_teach(db, owner), owner["id"]],
                )
            else:
                db.execute(
                    "INSERT INTO person(name, role, kind, created_at) VALUES (?, ?, 'account', ?)",
                    [name, role, utc_now()],
                )
            person = find_person(db, name)
            _store_password(db, person.id, stored)
        return person

    def check_new(self, name: str, role: Role = "member") -> None:
        """Check that somebody may be added under a name, before a password is asked for.

        Raises:
            BadInput: the name is taken or not allowed.
        """
        check_name(name)
        with self._connections.read() as db:
            _check_free(db, name, _claimed(db, role))

    def role_of_next(self) -> Role:
        """Return what an account becomes that is added without a role: operator where the home is still new.

        Only the first account of all takes the local owner's place unasked; an operator who is missing later is
        appointed, so that what the last one had goes to nobody by accident.
        """
        sql = f"SELECT 1 FROM ({_UNCLAIMED}) WHERE id = ? AND NOT EXISTS (SELECT 1 FROM credential)"
        with self._connections.read() as db:
            return "member" if one_row(db, sql, [_FIRST_ID]) is None else "operator"

    def get(self, name: str) -> Person:
        """Return the account of that name.

        Raises:
            BadInput: there is no such account; a password or token for anybody else would open nothing.
        """
        with self._connections.read() as db:
            return _find_account(db, name)

    def list(self) -> "list[Account]":
        """Return everybody who can log in or could before they were disabled, in the order they came."""
        sql = """
            SELECT person.*, (
                    SELECT max(seen_at) FROM access
                    WHERE person_id = person.id AND (kind = 'session' OR seen_at <> created_at)) AS seen_at,
                (SELECT count(*) FROM access WHERE person_id = person.id AND kind = 'api') AS tokens
            FROM person JOIN credential ON credential.person_id = person.id ORDER BY person.id"""
        with self._connections.read() as db:
            return [
                Account(person_from(row), row["created_at"], row["seen_at"], row["tokens"]) for row in rows(db, sql)
            ]

    def has_operator(self) -> bool:
        """Say whether some operator can log in; without one only this machine's own address may be served."""
        with self._connections.read() as db:
            return bool(_operators(db))

    def has_accounts(self) -> bool:
        """Say whether anybody has a password, disabled or not."""
        with self._connections.read() as db:
            return one_row(db, "SELECT 1 FROM credential LIMIT 1") is not None

    def set_role(self, name: str, role: Role) -> Person:
        """Change what somebody may do, from their next request on.

        A member who becomes the first operator takes over the local owner's row too, and keeps what was theirs.

        Raises:
            BadInput: there is no such account, or nobody would be left to operate.
        """
        check_choice(role, ROLES, "A role")
        with self._connections.write() as db:
            person = _find_account(db, name)
            if role != "operator":
                check_not_last(db, person)
            elif not _operators(db):
                _take_over(db, person)
            db.execute("UPDATE person SET role = ? WHERE name = ?", [role, name])
            return find_person(db, name)

    def disable(self, name: str) -> Person:
        """Shut somebody out at once; their conversations, votes and API tokens stay for when they are let in again.

        Raises:
            BadInput: there is no such account, or nobody would be left to operate.
        """
        with self._connections.write() as db:
            person = _find_account(db, name)
            check_not_last(db, person)
            db.execute("UPDATE person SET disabled_at = ? WHERE id = ?", [utc_now(), person.id])
            db.execute("DELETE FROM access WHERE person_id = ? AND kind = 'session'", [person.id])
            return find_person(db, name)

    def enable(self, name: str) -> Person:
        """Let somebody in again.

        Raises:
            BadInput: there is no such account.
        """
        with self._connections.write() as db:
            db.execute("UPDATE person SET disabled_at = NULL WHERE id = ?", [_find_account(db, name).id])
            return find_person(db, name)

    def set_password(self, name: str, password: str) -> None:
        """Change a password and end all of that person's sessions.

        Raises:
            BadInput: there is no such account, or the password is too short; the old one stays.
            SamePassword: it is the one until now.
        """
        stored = hash_password(password)
        with self._connections.read() as db:
            row = one_row(db, "SELECT password_hash FROM credential WHERE person_id = ?", [_find_account(db, name).id])
        if row and password_matches(row["password_hash"], password):
            raise SamePassword
        with self._connections.write() as db:
            person = _find_account(db, name)
            _store_password(db, person.id, stored)
            db.execute("DELETE FROM access WHERE person_id = ? AND kind = 'session'", [person.id])

    def stored_password(self, name: str) -> str | None:
        """Return what `password_matches` compares with; None for anybody who may not log in."""
        sql = """SELECT password_hash FROM credential JOIN person ON person.id = person_id
            WHERE name = ? AND disabled_at IS NULL"""
        with self._connections.read() as db:
            row = one_row(db, sql, [_login_name(name)])
        return str(row["password_hash"]) if row else None

    def check_password(self, name: str, password: str) -> Person | None:
        """Return whose name and password these are, or None; takes as long for a name that nobody has.

        Args:
            name: as typed; capitals and spaces around it do not matter.
        """
        stored = self.stored_password(name)
        if not password_matches(stored, password):
            return None
        # read again: hashing took a while, and the account may have been disabled or its password changed meanwhile
        if self.stored_password(name) != stored:
            return None
        with self._connections.read() as db:
            row = one_row(db, "SELECT * FROM person WHERE name = ?", [_login_name(name)])
        return person_from(row) if row else None


def _normal(password: str) -> bytes:
    """Encode a password the same way whichever keyboard composed its letters."""
    return unicodedata.normalize("NFC", password).encode()


def _login_name(name: str) -> str:
    typed = name[:100].strip().lower()
    return typed if typed.isascii() else ""


def _operators(db: Database) -> list[int]:
    return [row["id"] for row in rows(db, _OPERATORS)]


def _find_account(db: Database, name: str) -> Person:
    person = find_person(db, name)
    if person.kind not in ("account", "owner"):
        raise BadInput(f"{name} is {person.kind} and never logs in; name an account.")
    if one_row(db, "SELECT 1 FROM credential WHERE person_id = ?", [person.id]) is None:
        raise BadInput(f"{name} has no password and never logs in; add an account with `users add`.")
    return person


def _check_free(db: Database, name: str, owner: Row | None) -> None:
    taken = one_row(db, "SELECT id FROM person WHERE name = ?", [name])
    if taken and not (owner and taken["id"] == owner["id"]):
        raise BadInput(f"There is a person named {name} already; choose another name.")


def _claimed(db: Database, role: Role) -> Row | None:
    """Return the local owner's row if an account of that role is to take it over."""
    return None if role != "operator" or _operators(db) else one_row(db, _UNCLAIMED)


def _inherited_teach(db: Database, owner: Row) -> tuple[Teach, str]:
    """Return what the local owner answered about teaching and when; on without a chat was never an answer."""
    if owner["teach"] == "on" and not one_row(db, "SELECT 1 FROM conversation WHERE person_id = ?", [owner["id"]]):
        return "unanswered", utc_now()
    return owner["teach"], owner["teach_at"]


def check_not_last(db: Database, person: Person) -> None:
    """Refuse to take away the only operator.

    Raises:
        BadInput: nobody would be left to operate.
    """
    if _operators(db) == [person.id]:
        raise BadInput(f"{person.name} is the only operator; make somebody else operator first.")


def _take_over(db: Database, person: Person) -> None:
    """Make the first operator, who was a member before, the local owner with all that both have."""
    owner = one_row(db, _UNCLAIMED)
    if owner is None:
        return
    teach, teach_at = _inherited_teach(db, owner) if person.teach == "unanswered" else (person.teach, utc_now())
    change = {"old": person.id, "new": owner["id"], "disabled_at": utc_now() if person.disabled else None}
    # chats that taught nothing teach nothing, though yes may hold for all the others from now on
    db.execute(
        "UPDATE conversation SET teach = 'off' FROM person WHERE person.id = person_id"
        " AND person.id IN (:old, :new) AND person.teach <> 'on' AND :teach = 'on' AND conversation.teach IS NULL",
        {**change, "teach": teach},
    )
    db.execute(
        "UPDATE vote_event SET request_id = NULL WHERE person_id = :old"
        " AND request_id IN (SELECT request_id FROM vote_event WHERE person_id = :new)",
        change,
    )
    sql = """SELECT child.name AS child, link."from" AS name FROM sqlite_schema AS child
        JOIN pragma_foreign_key_list(child.name) AS link WHERE child.type = 'table' AND link."table" = 'person'"""
    for link in list(rows(db, sql)):
        db.execute(f"UPDATE {link['child']} SET {link['name']} = :new WHERE {link['name']} = :old", change)
    db.execute("DELETE FROM person WHERE id = :old", change)
    db.execute(
        "UPDATE person SET name = :name, disabled_at = :disabled_at, teach = :teach, teach_at = :teach_at"
        " WHERE id = :new",
        {**change, "name": person.name, "teach": teach, "teach_at": teach_at},
    )


def _store_password(db: Database, person_id: int, stored: str) -> None:
    db.execute(
        "INSERT INTO credential(person_id, password_hash, changed_at) VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
        " SET password_hash = excluded.password_hash, changed_at = excluded.changed_at",
        [person_id, stored, utc_now()],
    )
