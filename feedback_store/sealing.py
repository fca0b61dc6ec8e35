"""A hash on every row, so that a row changed by a damaged disk or by another program is found and named.

SQLite's own check sees broken structure, not a changed letter. Every connection that writes has temporary triggers
which hash what was written, inside the same transaction, so that no writing place can forget it. A table takes part by
having a column `row_hash`. The hash is no signature: who can write the file on purpose can also write the hash.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlite_utils import Database

Value = bytes | int | float | None


@dataclass(frozen=True)
class Sealed:
    """A table whose rows are hashed."""

    table: str
    key: tuple[str, ...]
    """The primary key."""
    columns: tuple[str, ...]
    """Everything but the hash."""
    expression: str
    """SQL for the hash of a row."""
    name: str
    """SQL for what a row is called in a report, as bytes: a damaged name may be no text any more."""


def add_hash_function(db: Database) -> None:
    """Let the connection's SQL call row_hash(table, values...)."""
    db.conn.create_function("row_hash", -1, _row_hash, deterministic=True)


def seal_writes(db: Database) -> None:
    """Hash every row that this connection inserts or updates from now on."""
    for sealed in read_sealed(db):
        row = " AND ".join(f"{column} = NEW.{column}" for column in sealed.key)
        seal = f"BEGIN UPDATE {sealed.table} SET row_hash = {sealed.expression} WHERE {row}; END"
        for moment, when in (("insert", "INSERT"), ("update", f"UPDATE OF {', '.join(sealed.columns)}")):
            db.execute(f"CREATE TEMP TRIGGER seal_{sealed.table}_{moment} AFTER {when} ON main.{sealed.table} {seal}")


def find_altered(db: Database) -> Iterator[tuple[str, str]]:
    """Yield table and name of every row that does not fit its hash."""
    for sealed in read_sealed(db):
        sql = f"SELECT {sealed.name} FROM {sealed.table} WHERE row_hash IS NOT {sealed.expression}"
        for (name,) in db.execute(sql):
            yield sealed.table, name.decode(errors="replace")


def reseal(db: Database, altered: Collection[tuple[str, str]]) -> None:
    """Hash every row anew after a change of the tables, but for those that did not fit before it."""
    for sealed in read_sealed(db):
        db.conn.create_function(
            "was_altered", 1, lambda name, table=sealed.table: (table, name.decode(errors="replace")) in altered
        )
        db.execute(f"UPDATE {sealed.table} SET row_hash = {sealed.expression} WHERE NOT was_altered({sealed.name})")


def read_sealed(db: Database) -> list[Sealed]:
    """Return the tables that take part, as they are in this file."""
    columns: dict[str, list[tuple[str, str, int]]] = {}
    for table, column, kind, place in db.execute(
        "SELECT t.name, c.name, c.type, c.pk FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c"
        " WHERE t.type = 'table' ORDER BY t.name, c.cid"
    ):
        columns.setdefault(table, []).append((column, kind, place))
    return [_sealed(table, found) for table, found in columns.items() if any(c[0] == "row_hash" for c in found)]


def _sealed(table: str, columns: list[tuple[str, str, int]]) -> Sealed:
    data = [(column, kind) for column, kind, _ in columns if column != "row_hash"]
    key = tuple(column for _, column in sorted((place, column) for column, _, place in columns if place))
    # as bytes, because damaged text may be no UTF-8 and would stop the check that is to name it
    values = ", ".join(f"CAST({column} AS BLOB)" if kind == "TEXT" else column for column, kind in data)
    shown = ("id",) if any(column == "id" for column, _ in data) else key
    name = " || ' ' || ".join(f"coalesce({column}, '')" for column in shown)
    return Sealed(
        table=table,
        key=key,
        columns=tuple(column for column, _ in data),
        expression=f"row_hash('{table}', {values})",
        name=f"CAST({name} AS BLOB)",
    )


def _row_hash(table: str, *values: Value) -> bytes:
    return hashlib.blake2b(repr((table, values)).encode(), digest_size=16).digest()
