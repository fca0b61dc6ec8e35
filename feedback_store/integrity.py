"""A store that checks itself, and safe copies of it.

The tables refuse most nonsense when it is written; this looks for what only a damaged disk, another program or a bug
of ours can have left behind. Does not repair anything.
"""

import hashlib
from pathlib import Path

from sqlite_utils import Database

from feedback_store.connection import rows
from feedback_store.errors import BadInput, StoreDamaged, StoreError
from feedback_store.opening import copy_database
from feedback_store.schema import migrations
from feedback_store.store import Store

_REFERENCES = {
    "There is no local owner.": "SELECT 'owner' WHERE NOT EXISTS (SELECT 1 FROM person WHERE kind = 'owner')",
    "A reply does not answer a person's message.": """
        SELECT reply.id FROM message AS reply JOIN message AS parent ON parent.id = reply.parent_id
        WHERE reply.role = 'assistant' AND parent.role <> 'user'""",
    "A reply lacks what produced it, or a person's message has it.": """
        SELECT id FROM message LEFT JOIN origin ON origin.message_id = message.id
        WHERE (role = 'assistant') <> (origin.message_id IS NOT NULL)""",
    "A vote or rewrite is about something that is not a finished reply.": """
        SELECT message.id FROM (SELECT message_id FROM vote UNION SELECT message_id FROM rewrite)
        JOIN message ON message.id = message_id WHERE role <> 'assistant' OR state NOT IN ('done', 'stopped')""",
    "A vote or rewrite is in somebody else's conversation.": """
        SELECT message.id FROM (SELECT message_id, person_id FROM vote UNION SELECT message_id, person_id FROM rewrite)
            AS judged
        JOIN message ON message.id = message_id JOIN conversation ON conversation.id = conversation_id
        WHERE conversation.person_id <> judged.person_id""",
    "A vote differs from the end of its history.": """
        SELECT message_id FROM vote WHERE (value, reasons, comment) IS NOT (
            SELECT new, reasons, comment FROM vote_event
            WHERE vote_event.message_id = vote.message_id AND vote_event.person_id = vote.person_id
            ORDER BY id DESC LIMIT 1)""",
    "A vote is gone while its history is there.": """
        SELECT DISTINCT message_id FROM vote_event AS event WHERE NOT EXISTS (
            SELECT 1 FROM vote WHERE vote.message_id = event.message_id AND vote.person_id = event.person_id)""",
    "A comparison does not show two replies to its prompt in its person's conversation.": """
        SELECT comparison.id FROM comparison
        JOIN conversation ON conversation.id = comparison.conversation_id
        JOIN message AS prompt ON prompt.id = prompt_message_id
        JOIN message AS l ON l.id = left_message_id JOIN message AS r ON r.id = right_message_id
        WHERE conversation.person_id <> comparison.person_id OR prompt.conversation_id <> conversation.id
            OR l.parent_id IS NOT prompt.id OR r.parent_id IS NOT prompt.id
            OR l.role <> 'assistant' OR r.role <> 'assistant'""",
    "A comparison's choice differs from the end of its history.": """
        SELECT id FROM comparison WHERE choice IS NOT (
            SELECT new FROM comparison_event WHERE comparison_id = comparison.id
            ORDER BY comparison_event.id DESC LIMIT 1)""",
    "The live pointer is missing or differs from the end of its history.": """
        SELECT 'live' WHERE NOT EXISTS (
            SELECT 1 FROM live LEFT JOIN (SELECT * FROM live_event ORDER BY generation DESC LIMIT 1) AS last
            WHERE live.generation = coalesce(last.generation, 0) AND live.adapter_id IS last.adapter_id)""",
    "The live adapter is not one that may be used.": """
        SELECT adapter.id FROM live JOIN adapter ON adapter.id = live.adapter_id WHERE adapter.state <> 'ready'""",
}


def verify(store: Store) -> list[str]:
    """Return what is wrong with the store, one sentence each; an empty list when everything is whole."""
    with store.connections.read() as db:
        return find_problems(db)


def backup(store: Store, target: Path) -> None:
    """Copy the store as it is at this moment, while others go on writing, and check the copy.

    Args:
        target: a file that is not there yet; it needs no companion files.

    Raises:
        BadInput: something of that name exists; an older backup would be lost.
        StoreDamaged: the copy is not whole; it was removed again.
        StoreError: the place cannot be written to.
    """
    target = target.absolute()
    if target.exists():
        raise BadInput(f"{target} exists already; name a new file.")
    try:
        with store.connections.read() as db:
            copy_database(db, target, check=_check)
    except OSError as error:
        raise StoreError(f"{target} cannot be written ({error.strerror}); name a file in a folder of yours.") from error


def find_problems(db: Database) -> list[str]:
    """Return what is wrong with an open database, one sentence each."""
    pages = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
    if pages:  # what tables say cannot be relied on then
        return [f"The file is damaged: {text.strip().replace(chr(10), '; ')}." for text in pages]
    schema = _schema_problems(db)
    if schema:
        return schema
    return [*_key_problems(db), *_reference_problems(db), *_prompt_problems(db)]


def _check(db: Database) -> None:
    problems = find_problems(db)
    if problems:
        raise StoreDamaged(f"The copy is not whole and was removed ({problems[0]}); run verify.")


def _schema_problems(db: Database) -> list[str]:
    fresh = Database(memory=True, execute_plugins=False)
    try:
        migrations().apply(fresh)
        expected, found = _schema(fresh), _schema(db)
    finally:
        fresh.close()
    return [
        f"The table or index {name} is not as this program made it."
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _schema(db: Database) -> dict[str, str | None]:
    sql = "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite%' AND tbl_name <> '_sqlite_migrations'"
    return {row["name"]: row["sql"] for row in rows(db, sql)}


def _key_problems(db: Database) -> list[str]:
    broken = rows(db, "PRAGMA foreign_key_check")
    return [f"A row of {row['table']} names a row of {row['parent']} that is not there." for row in broken]


def _reference_problems(db: Database) -> list[str]:
    return [f"{sentence} ({found})" for sentence, sql in _REFERENCES.items() for (found,) in db.execute(sql)]


def _prompt_problems(db: Database) -> list[str]:
    prompts = rows(db, "SELECT id, text FROM system_prompt")
    altered = [row["id"] for row in prompts if hashlib.sha256(row["text"].encode()).hexdigest() != row["id"]]
    return [f"A system prompt's text is not the one it was stored under. ({name})" for name in altered]
