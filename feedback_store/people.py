"""Who chats and votes. Does not cover passwords or sessions."""

import re

from feedback_store.checks import check_choice
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.errors import BadInput
from feedback_store.records import Person, PersonKind, Role, utc_now

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{1,31}")


def _person(row: Row) -> Person:
    return Person(row["id"], row["name"], row["role"], row["kind"])


class People:
    """The table of people."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def owner(self) -> Person:
        """Return the local owner, who is there from the first opening on."""
        with self._connections.read() as db:
            row = one_row(db, "SELECT * FROM person WHERE kind = 'owner'")
        assert row is not None, "the schema creates the owner"
        return _person(row)

    def add(self, name: str, role: Role = "member", kind: PersonKind = "account") -> Person:
        """Add somebody.

        Args:
            name: 2 to 32 of a-z 0-9 _ . - beginning with a letter or digit, so that no two names look alike.

        Raises:
            BadInput: the name is taken or not allowed; two people under one name could vote for each other.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadInput("A name must be 2 to 32 of a-z, 0-9, _ . - and begin with a letter or digit.")
        check_choice(role, ("operator", "member"), "A role")
        check_choice(kind, ("account", "simulated", "imported"), "A person's kind")
        with self._connections.write() as db:
            if one_row(db, "SELECT 1 FROM person WHERE name = ?", [name]):
                raise BadInput(f"There is a person named {name} already; choose another name.")
            db.execute(
                "INSERT INTO person(name, role, kind, created_at) VALUES (?, ?, ?, ?)", [name, role, kind, utc_now()]
            )
            row = one_row(db, "SELECT * FROM person WHERE name = ?", [name])
        assert row is not None
        return _person(row)

    def get(self, name: str) -> Person:
        """Return the person of that name.

        Raises:
            BadInput: there is nobody of that name.
        """
        with self._connections.read() as db:
            row = one_row(db, "SELECT * FROM person WHERE name = ?", [name])
        if row is None:
            raise BadInput(f"There is nobody named {name!r:.60}; check the spelling.")
        return _person(row)

    def all(self) -> list[Person]:
        """Return everybody, in the order they came."""
        with self._connections.read() as db:
            return [_person(row) for row in rows(db, "SELECT * FROM person ORDER BY id")]
