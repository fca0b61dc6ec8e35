"""A store that checks itself, and safe copies of it.

The tables refuse most nonsense when it is written; this looks for what only a damaged disk, another program or a bug
of ours can have left behind. Does not repair anything.
"""

import hashlib
from pathlib import Path

from sqlite_utils import Database

from feedback_store.connection import rows
from feedback_store.errors import BadInput, StoreDamaged, StoreError
from feedback_store.opening import copy_database, expected_schema, read_schema
from feedback_store.schema import VERSION
from feedback_store.sealing import find_altered
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
    "A rewrite, preference or demonstration is about something that is no reply.": """
        SELECT message.id FROM (
            SELECT message_id, person_id FROM rewrite UNION SELECT message_id, person_id FROM demonstration
            UNION SELECT chosen_message_id, person_id FROM preference
            UNION SELECT rejected_message_id, person_id FROM preference
        ) AS judged JOIN message ON message.id = message_id JOIN conversation ON conversation.id = conversation_id
        WHERE role <> 'assistant' OR conversation.person_id <> judged.person_id""",
    "A preference is between replies to different messages.": """
        SELECT preference.id FROM preference JOIN message AS c ON c.id = chosen_message_id
        JOIN message AS r ON r.id = rejected_message_id
        WHERE (c.conversation_id, c.parent_id) IS NOT (r.conversation_id, r.parent_id)""",
    "A ranking does not hold 2 to 9 replies to its prompt in its person's conversation.": """
        SELECT ranking.id FROM ranking JOIN conversation ON conversation.id = ranking.conversation_id
        LEFT JOIN ranked_reply ON ranking_id = ranking.id
        LEFT JOIN message ON message.id = message_id AND message.role = 'assistant'
            AND message.conversation_id = conversation.id AND message.parent_id = prompt_message_id
        GROUP BY ranking.id
        HAVING count(message.id) NOT BETWEEN 2 AND 9 OR count(message.id) <> count(*)
            OR conversation.person_id <> ranking.person_id OR count(DISTINCT rank) <> max(rank)""",
    "A ranking differs from the end of its history.": """
        SELECT id FROM ranking WHERE (none_is_good, retracted, (
            SELECT json_group_object(message_id, rank ORDER BY position) FROM ranked_reply WHERE ranking_id = ranking.id
        )) IS NOT (
            SELECT none_is_good, retracted, json(ranks) FROM ranking_event WHERE ranking_id = ranking.id
            ORDER BY ranking_event.id DESC LIMIT 1)""",
    "A step of a vote's history does not follow the one before.": """
        SELECT message_id FROM (
            SELECT message_id, old, lag(new) OVER (PARTITION BY message_id, person_id ORDER BY id) AS before
            FROM vote_event) WHERE old IS NOT before""",
    "A step of a comparison's history does not follow the one before.": """
        SELECT comparison_id FROM (
            SELECT comparison_id, old, lag(new) OVER (PARTITION BY comparison_id ORDER BY id) AS before
            FROM comparison_event) WHERE old IS NOT before""",
    "An AI judge's choice is not between two replies to one message, the older one first.": """
        SELECT first.id FROM ai_choice JOIN message AS first ON first.id = first_message_id
        JOIN message AS second ON second.id = second_message_id
        WHERE first.role <> 'assistant' OR second.role <> 'assistant' OR first.seq > second.seq
            OR (first.conversation_id, first.parent_id) IS NOT (second.conversation_id, second.parent_id)""",
    "An AI judge rewrote something that is no reply.": """
        SELECT message.id FROM ai_rewrite JOIN message ON message.id = message_id WHERE role <> 'assistant'""",
    "An imported line names a row that is not there.": """
        SELECT name FROM imported WHERE row_id NOT IN (
            SELECT id FROM conversation UNION ALL SELECT message_id FROM vote UNION ALL SELECT id FROM comparison
            UNION ALL SELECT id FROM ranking UNION ALL SELECT id FROM preference
            UNION ALL SELECT id FROM demonstration)""",
    "An imported conversation has no line it came from, or one of somebody else.": """
        SELECT conversation.id FROM conversation LEFT JOIN imported ON imported.conversation_id = conversation.id
        WHERE provenance = 'imported' AND imported.person_id IS NOT conversation.person_id""",
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
    return [*_altered_problems(db), *_key_problems(db), *_reference_problems(db), *_prompt_problems(db)]


def _check(db: Database) -> None:
    problems = find_problems(db)
    if problems:
        raise StoreDamaged(f"The copy is not whole and was removed ({problems[0]}); run verify.")


def _schema_problems(db: Database) -> list[str]:
    expected, found = expected_schema(VERSION), read_schema(db)
    return [
        f"The table or index {name} is not as this program made it."
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _altered_problems(db: Database) -> list[str]:
    sentence = "A row of {} was changed by a damaged disk or another program. ({})"
    return [sentence.format(table, name) for table, name in find_altered(db)]


def _key_problems(db: Database) -> list[str]:
    broken = rows(db, "PRAGMA foreign_key_check")
    return [f"A row of {row['table']} names a row of {row['parent']} that is not there." for row in broken]


def _reference_problems(db: Database) -> list[str]:
    return [f"{sentence} ({found})" for sentence, sql in _REFERENCES.items() for (found,) in db.execute(sql)]


def _prompt_problems(db: Database) -> list[str]:
    prompts = rows(db, "SELECT id, text FROM system_prompt")
    altered = [row["id"] for row in prompts if hashlib.sha256(row["text"].encode()).hexdigest() != row["id"]]
    return [f"A system prompt's text is not the one it was stored under. ({name})" for name in altered]
