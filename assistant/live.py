"""Which adapter is live, for commands that serve without the app.

The pointer is a row of the feedback store's file. The app and the night read it through the store; this
room imports none of the others, so it reads the one row itself, read-only. A test holds both readings together.
"""

from pathlib import Path


def live_adapter(database: Path) -> str | None:
    """Return the live adapter's id, or None for the base or where there is no store yet."""
    from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # pysqlite3 where it is installed

    if not database.is_file():
        return None
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    try:
        row = connection.execute("SELECT adapter_id FROM live").fetchone()
    except sqlite3.DatabaseError:
        return None
    finally:
        connection.close()
    return row[0] if row else None
