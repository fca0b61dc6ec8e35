"""From judgements to what can be trained on: the queries behind pairs, demonstrations, thumbs and counts.

What people keep from teaching is in none of them but the counts of what is stored.
"""

from collections.abc import Iterator

from sqlite_utils import Database

from feedback_store.connection import one_row, rows
from feedback_store.consent import TEACHES, TEACHING
from feedback_store.conversations import read_by_model, read_path
from feedback_store.records import Demonstration, PreferencePair, RatedReply, Turn

ANNOTATOR = """(SELECT coalesce(annotator.name, person.name) FROM person
    LEFT JOIN annotator ON annotator.person_id = person.id WHERE person.id = {})"""
"""What an export calls a person, given SQL for the person's id; the same in every store that the lines go through."""

_NAME_OF_COMPARISON = """'comparison:' || coalesce(
                (SELECT name FROM imported WHERE kind = 'comparisons' AND row_id = comparison.id), id
            )"""
_PAIRS = f"""
    WITH judged(key, source, person_id, created_at, better_id, worse_id, better_text) AS (
        SELECT {_NAME_OF_COMPARISON}, 'comparison', person_id, chosen_at,
            iif(choice = 'left', left_message_id, right_message_id),
            iif(choice = 'left', right_message_id, left_message_id), NULL
        FROM comparison WHERE choice IN ('left', 'right')
        UNION ALL
        SELECT 'thumbs:' || up.message_id || ':' || down.message_id || ':' || up.person_id, 'thumbs', up.person_id,
            max(up.updated_at, down.updated_at), up.message_id, down.message_id, NULL
        FROM vote AS up
        JOIN message AS liked ON liked.id = up.message_id
        JOIN message AS other ON other.conversation_id = liked.conversation_id AND other.parent_id = liked.parent_id
        JOIN vote AS down ON down.message_id = other.id AND down.person_id = up.person_id
        WHERE up.value = 1 AND down.value = -1
        UNION ALL
        SELECT 'rewrite:' || message_id || ':' || person_id, 'rewrite', person_id, updated_at,
            message_id, message_id, text
        FROM rewrite
        UNION ALL
        SELECT mine.name, 'preference', preference.person_id, created_at, chosen_message_id, rejected_message_id, NULL
        FROM preference JOIN imported AS mine ON mine.kind = 'preferences' AND mine.row_id = preference.id
        WHERE NOT EXISTS (  -- the comparison it was exported from may have been imported too
            SELECT 1 FROM imported AS whole WHERE substr(mine.name, 1, 11) = 'comparison:'
                AND whole.kind = 'comparisons' AND whole.person_id = mine.person_id
                AND whole.name = substr(mine.name, 12))
    ), pair AS (
        SELECT key, source, person_id, judged.created_at, better_id, worse_id, better.parent_id AS prompt_id,
            better.conversation_id, coalesce(better_text, better.text) AS chosen, worse.text AS rejected,
            system_prompt.text AS system
        -- crossed, so that SQLite begins with what was judged: it knows nothing of how many rows there are
        FROM judged
        CROSS JOIN message AS better ON better.id = better_id
        CROSS JOIN message AS worse ON worse.id = worse_id
        CROSS JOIN origin AS better_origin ON better_origin.message_id = better_id
        CROSS JOIN origin AS worse_origin ON worse_origin.message_id = worse_id
            AND worse_origin.system_id = better_origin.system_id
        CROSS JOIN system_prompt ON system_prompt.id = better_origin.system_id
        WHERE chosen <> rejected AND trim(chosen) <> '' AND trim(rejected) <> ''
            AND {TEACHES.format("better.conversation_id")}
    )"""
_DEMONSTRATIONS = f"""
    SELECT 'rewrite:' || rewrite.message_id || ':' || person_id AS key, person_id, updated_at AS created_at,
        rewrite.message_id, rewrite.text AS completion, parent_id AS prompt_id, conversation_id,
        system_prompt.text AS system
    FROM rewrite
    JOIN message ON message.id = rewrite.message_id
    JOIN origin ON origin.message_id = rewrite.message_id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    WHERE conversation_id IN ({TEACHING})
    UNION ALL
    SELECT imported.name, demonstration.person_id, demonstration.created_at, demonstration.message_id, message.text,
        parent_id, message.conversation_id, system_prompt.text
    FROM demonstration
    JOIN imported ON imported.kind = 'demonstrations' AND imported.row_id = demonstration.id
    JOIN message ON message.id = demonstration.message_id
    JOIN origin ON origin.message_id = message.id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    WHERE message.conversation_id IN ({TEACHING})"""
_THUMBS = f"""
    SELECT coalesce(imported.name, vote.message_id) AS key, vote.person_id, updated_at AS created_at, value,
        vote.message_id, message.text AS completion, parent_id AS prompt_id, message.conversation_id,
        system_prompt.text AS system
    FROM vote
    JOIN message ON message.id = vote.message_id
    JOIN origin ON origin.message_id = message.id
    JOIN system_prompt ON system_prompt.id = origin.system_id
    LEFT JOIN imported ON imported.kind = 'thumbs' AND imported.row_id = vote.message_id
    WHERE value <> 0 AND trim(message.text) <> '' AND message.conversation_id IN ({TEACHING})"""
_IN_ORDER = f"ORDER BY created_at, key, {ANNOTATOR.format('example.person_id')}"
# to count them, the pairs need no names, which take a third of the time
_COUNTS = f"""{_PAIRS.replace(_NAME_OF_COMPARISON, "NULL")}
    SELECT
        (SELECT count(*) FROM vote WHERE value = 1) AS thumbs_up,
        (SELECT count(*) FROM vote WHERE value = -1) AS thumbs_down,
        (SELECT count(*) FROM vote WHERE value = 0) AS retracted,
        choices.comparisons, choices.ties, choices.both_bad, choices.unanswered_comparisons,
        (SELECT count(*) FROM ranking WHERE NOT retracted) AS rankings,
        (SELECT count(*) FROM rewrite) AS rewrites,
        (SELECT count(*) FROM pair) AS pairs,
        (SELECT count(*) FROM rewrite JOIN message ON message.id = message_id
            WHERE {TEACHES.format("conversation_id")}) + (
            SELECT count(*) FROM demonstration JOIN message ON message.id = message_id
            WHERE {TEACHES.format("conversation_id")}) AS demonstrations,
        (SELECT count(*) FROM person) AS people,
        (SELECT count(*) FROM conversation) AS conversations,
        (SELECT count(*) FROM message WHERE role = 'assistant') AS replies,
        (SELECT count(*) FROM imported) AS imported
    FROM (
        SELECT count(choice) AS comparisons, coalesce(sum(choice = 'tie'), 0) AS ties,
            coalesce(sum(choice = 'both-bad'), 0) AS both_bad,
            count(*) - count(choice) AS unanswered_comparisons
        FROM comparison
    ) AS choices"""


def read_prompt(db: Database, system: str, message_id: str) -> tuple[Turn, ...]:
    """Return what a reply answered: its system prompt unless empty, then the turns up to the person's message."""
    path = read_by_model(read_path(db, message_id))
    turns = [Turn(role=message.role, content=message.text) for message in path]
    return (Turn(role="system", content=system), *turns) if system else tuple(turns)


def read_pairs(db: Database) -> Iterator[PreferencePair]:
    """Yield the preferences one at a time, oldest first."""
    for row in rows(db, f"{_PAIRS} SELECT * FROM pair AS example {_IN_ORDER}"):
        rewritten = row["source"] == "rewrite"
        yield PreferencePair(
            key=row["key"],
            prompt=read_prompt(db, row["system"], row["prompt_id"]),
            chosen=row["chosen"],
            rejected=row["rejected"],
            source=row["source"],
            person_id=row["person_id"],
            conversation_id=row["conversation_id"],
            created_at=row["created_at"],
            ids=(row["better_id"],) if rewritten else (row["better_id"], row["worse_id"]),
        )


def read_demonstrations(db: Database) -> Iterator[Demonstration]:
    """Yield the rewritten replies one at a time, oldest first."""
    for row in rows(db, f"SELECT * FROM ({_DEMONSTRATIONS}) AS example {_IN_ORDER}"):
        yield Demonstration(
            key=row["key"],
            prompt=read_prompt(db, row["system"], row["prompt_id"]),
            completion=row["completion"],
            person_id=row["person_id"],
            conversation_id=row["conversation_id"],
            created_at=row["created_at"],
            ids=(row["message_id"],),
        )


def read_thumbs(db: Database) -> Iterator[RatedReply]:
    """Yield the thumbs that may teach one at a time, oldest first."""
    for row in rows(db, f"SELECT * FROM ({_THUMBS}) AS example {_IN_ORDER}"):
        yield RatedReply(
            key=row["key"],
            prompt=read_prompt(db, row["system"], row["prompt_id"]),
            completion=row["completion"],
            up=row["value"] == 1,
            person_id=row["person_id"],
            conversation_id=row["conversation_id"],
            created_at=row["created_at"],
            ids=(row["message_id"],),
        )


def read_counts(db: Database) -> dict[str, int]:
    """Return how much of everything there is, in one statement and so at one moment."""
    row = one_row(db, _COUNTS)
    assert row is not None
    return row
