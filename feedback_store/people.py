"""Who chats and votes. Does not cover passwords or sessions."""

import re

from sqlite_utils import Database

from feedback_store.checks import check_choice
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.errors import BadInput
from feedback_store.records import Person, PersonKind, Role, utc_now

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{1,31}")


def person_from(row: Row) -> Person:
    """Return the person that a row of the table describes."""
    return Person(row["id"], row["name"], row["role"], row["kind"], row["disabled_at"] is not None, row["teach"])


def find_person(db: Database, name: str) -> Person:
    """Return the person of that name.

    Raises:
        BadInput: there is nobody of that name.
    """
    row = one_row(db, "SELECT * FROM person WHERE name = ?", [name])
    if row is None:
        raise BadInput(f"There is nobody named {name!r:.60}; check the spelling.")
    return person_from(row)


def check_name(name: str) -> None:
    """Check that a name can be typed and looks like no other.

    Raises:
        BadInput: it is not 2 to 32 of a-z 0-9 _ . - beginning with a letter or digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput("A name must be 2 to 32 of a-z, 0-9, _ . - and begin with a letter or digit.")


class People:
    """The table of people."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def owner(self) -> Person:
        """Return the local owner, who is there from the first opening on."""
        with self._connections.read() as db:
            row = one_row(db, "SELECT * FROM person WHERE kind = 'owner'")
        assert row is not None, "the schema creates the owner"
        return person_from(row)

    def add(self, name: str, role: Role = "member", kind: PersonKind = "account") -> Person:
        """Add somebody.

        Args:
            name: 2 to 32 of a-z 0-9 _ . - beginning with a letter or digit, so that no two names look alike.

        Raises:
            BadInput: the name is taken or not allowed; two people under one name could vote for each other.
        """
        check_name(name)
        check_choice(role, ("operator", "member"), "A role")
        check_choice(kind, ("account", "simulated", "imported"), "A person's kind")
        with self._connections.write() as db:
            if one_row(db, "SELECT 1 FROM person WHERE name = ?", [name]):
                raise BadInput(f"There is a person named {name} already; choose another name.")
            now = utc_now()
            teach = "unanswered" if kind == "account" else "on"  # only somebody who logs in can be asked
            db.execute(
                "INSERT INTO person(name, role, kind, created_at, teach, teach_at) VALUES (?, ?, ?, ?, ?, ?)",
                [name, role, kind, now, teach, now],
            )
            return find_person(db, name)

    def get(self, name: str) -> Person:
        """Return the person of that name.

        Raises:
            BadInput: there is nobody of that name.
        """
        with self._connections.read() as db:
            return find_person(db, name)

    def is_let_in(self, person_id: int) -> bool:
        """Say whether somebody is still here and not disabled. Numbers are never given to anybody else."""
        with self._connections.read() as db:
            return one_row(db, "SELECT 1 FROM person WHERE id = ? AND disabled_at IS NULL", [person_id]) is not None

    def all(self) -> list[Person]:
        """Return everybody, in the order they came."""
        with self._connections.read() as db:
            return [person_from(row) for row in rows(db, "SELECT * FROM person ORDER BY id")]
