"""The tables, as migrations: one commented function a step; a released step never changes, a change is a new step."""

from collections.abc import Callable

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from feedback_store.records import utc_now

APPLICATION_ID = 0x4E695363
"""Stands in the file's header, so that another program's file is never taken for ours."""


def create_registry(db: Database) -> None:
    """Step 1: runs, adapters, and the pointer to the live one.

    `seq` keeps the order of arrival even when the clock is set back.
    """
    db.execute("""
        CREATE TABLE run(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL CHECK (state IN ('running', 'done', 'crashed')),
            outcome TEXT CHECK (outcome IN ('promoted', 'refused', 'skipped', 'failed')),
            started_at TEXT NOT NULL,
            finished_at TEXT,
            pid INTEGER NOT NULL,
            boot_id TEXT NOT NULL,
            process_start TEXT NOT NULL,  -- tells the process from a later one with the same pid
            adapter_id TEXT REFERENCES adapter(id),
            data_hash TEXT,
            reasons TEXT NOT NULL CHECK (json_valid(reasons)),
            metrics TEXT NOT NULL CHECK (json_valid(metrics)),
            CHECK ((state = 'done') = (outcome IS NOT NULL)),
            CHECK ((state = 'running') = (finished_at IS NULL))
        ) STRICT""")
    db.execute("""
        CREATE TABLE adapter(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            run_id TEXT REFERENCES run(id),
            base_id TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('ready', 'refused', 'retired')),
            created_at TEXT NOT NULL,
            metrics TEXT NOT NULL CHECK (json_valid(metrics))
        ) STRICT""")
    db.execute("CREATE INDEX run_adapter ON run(adapter_id)")
    db.execute("CREATE INDEX adapter_run ON adapter(run_id)")
    db.execute("""
        CREATE TABLE live(
            slot TEXT PRIMARY KEY CHECK (slot = 'chat'),
            adapter_id TEXT REFERENCES adapter(id),
            previous_id TEXT REFERENCES adapter(id),
            generation INTEGER NOT NULL CHECK (generation >= 0)
        ) STRICT, WITHOUT ROWID""")
    db.execute("INSERT INTO live(slot, generation) VALUES ('chat', 0)")
    db.execute("""
        CREATE TABLE live_event(
            generation INTEGER PRIMARY KEY,
            adapter_id TEXT REFERENCES adapter(id),
            at TEXT NOT NULL,
            why TEXT NOT NULL CHECK (why IN ('promote', 'rollback'))
        ) STRICT""")


def create_people(db: Database) -> None:
    """Step 2: people; the local owner is there from the start.

    AUTOINCREMENT: an erased person's number never names somebody else.
    """
    db.execute("""
        CREATE TABLE person(
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            role TEXT NOT NULL CHECK (role IN ('operator', 'member')),
            kind TEXT NOT NULL CHECK (kind IN ('owner', 'account', 'simulated', 'imported')),
            created_at TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE UNIQUE INDEX person_one_owner ON person(kind) WHERE kind = 'owner'")
    db.execute(
        "INSERT INTO person(name, role, kind, created_at) VALUES ('owner', 'operator', 'owner', ?)",
        [utc_now()],
    )


def create_conversations(db: Database) -> None:
    """Step 3: who said what, and what produced each reply.

    A parent is in the same conversation by the compound key; it does not cascade, because a long chat would exceed
    SQLite's depth of nested triggers.
    """
    db.execute("""
        CREATE TABLE conversation(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            title TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('chat', 'compare')),
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX conversation_person ON conversation(person_id, kind, updated_at)")
    db.execute("""
        CREATE TABLE message(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            conversation_id TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            parent_id TEXT,
            role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
            text TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('streaming', 'done', 'stopped', 'failed', 'interrupted')),
            finish TEXT,
            new_tokens INTEGER CHECK (new_tokens >= 0),
            created_at TEXT NOT NULL,
            UNIQUE (conversation_id, id),
            FOREIGN KEY (conversation_id, parent_id) REFERENCES message(conversation_id, id),
            CHECK (role = 'assistant' OR state = 'done'),
            CHECK (role = 'user' OR parent_id IS NOT NULL)
        ) STRICT""")
    db.execute("CREATE INDEX message_parent ON message(conversation_id, parent_id)")
    db.execute("CREATE INDEX message_streaming ON message(state) WHERE state = 'streaming'")
    db.execute("CREATE TABLE system_prompt(id TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID")
    db.execute("""
        CREATE TABLE origin(
            message_id TEXT PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
            adapter_id TEXT REFERENCES adapter(id),
            base_id TEXT NOT NULL,
            numeric_form TEXT NOT NULL,
            preset TEXT NOT NULL,
            system_id TEXT NOT NULL REFERENCES system_prompt(id),
            temperature REAL NOT NULL,
            top_p REAL NOT NULL,
            max_new_tokens INTEGER NOT NULL,
            seed INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX origin_system ON origin(system_id)")
    db.execute("CREATE INDEX origin_adapter ON origin(adapter_id)")


def create_votes(db: Database) -> None:
    """Step 4: thumbs with their history, and rewritten replies.

    All of it goes with the conversation or the person it belongs to. A request id counts within one person, so that
    nobody can use up another's.
    """
    db.execute("""
        CREATE TABLE vote(
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
            reasons TEXT NOT NULL CHECK (json_valid(reasons)),
            comment TEXT NOT NULL,
            version INTEGER NOT NULL CHECK (version >= 1),
            updated_at TEXT NOT NULL,
            PRIMARY KEY (message_id, person_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX vote_person ON vote(person_id)")
    db.execute("""
        CREATE TABLE vote_event(
            id INTEGER PRIMARY KEY,
            request_id TEXT,
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            old INTEGER CHECK (old IN (-1, 0, 1)),
            new INTEGER NOT NULL CHECK (new IN (-1, 0, 1)),
            reasons TEXT NOT NULL CHECK (json_valid(reasons)),
            comment TEXT NOT NULL,
            at TEXT NOT NULL,
            UNIQUE (person_id, request_id)
        ) STRICT""")
    db.execute("CREATE INDEX vote_event_message ON vote_event(message_id)")
    db.execute("""
        CREATE TABLE rewrite(
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            text TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            PRIMARY KEY (message_id, person_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX rewrite_person ON rewrite(person_id)")


def create_comparisons(db: Database) -> None:
    """Step 5: pairs of replies as they were shown, and the choices between them with their history."""
    db.execute("""
        CREATE TABLE comparison(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            conversation_id TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            prompt_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            left_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            right_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            choice TEXT CHECK (choice IN ('left', 'right', 'tie', 'both-bad')),
            shown_at TEXT NOT NULL,
            chosen_at TEXT,
            CHECK (left_message_id <> right_message_id),
            CHECK ((choice IS NULL) = (chosen_at IS NULL))
        ) STRICT""")
    for column in ("person_id", "conversation_id", "prompt_message_id", "left_message_id", "right_message_id"):
        db.execute(f"CREATE INDEX comparison_{column} ON comparison({column})")
    db.execute("""
        CREATE TABLE comparison_event(
            id INTEGER PRIMARY KEY,
            comparison_id TEXT NOT NULL REFERENCES comparison(id) ON DELETE CASCADE,
            old TEXT,
            new TEXT NOT NULL CHECK (new IN ('left', 'right', 'tie', 'both-bad')),
            at TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX comparison_event_comparison ON comparison_event(comparison_id)")


STEPS: tuple[Callable[[Database], None], ...] = (
    create_registry,
    create_people,
    create_conversations,
    create_votes,
    create_comparisons,
)
VERSION = len(STEPS)


def migrations() -> Migrations:
    """Return the steps in the form that sqlite-utils applies and records."""
    steps = Migrations("feedback_store")
    for step in STEPS:
        steps()(step)
    return steps
