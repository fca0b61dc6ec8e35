"""Which adapter is live, for commands that serve without the app.

The pointer is a row of the feedback store's file. The app and the night read it through the store; this
room imports none of the others, so it reads the one row itself, read-only. A test holds both readings together.
"""

from pathlib import Path

from assistant.errors import SettingsError


def live_adapter(database: Path) -> str | None:
    """Return the live adapter's id, or None for the base or where there is no store yet.

    Raises:
        SettingsError: the file cannot be read; answering as the base instead would pass for what is live.
    """
    from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # pysqlite3 where it is installed

    if not database.is_file():
        return None
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    try:
        row = connection.execute("SELECT adapter_id FROM live").fetchone()
    except sqlite3.DatabaseError as error:
        raise SettingsError(
            f"What is live cannot be read from {database} ({error}). "
            "Check it with: python -m feedback_store verify, or give --adapter base."
        ) from error
    finally:
        connection.close()
    return row[0] if row else None
