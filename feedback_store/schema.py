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


def create_accounts(db: Database) -> None:
    """Add passwords, and the sessions and API tokens that stand for them; of tokens only the SHA-256 is stored."""
    db.execute("ALTER TABLE person ADD COLUMN disabled_at TEXT")
    db.execute("""
        CREATE TABLE credential(
            person_id INTEGER PRIMARY KEY REFERENCES person(id) ON DELETE CASCADE,
            password_hash TEXT NOT NULL,
            changed_at TEXT NOT NULL
        ) STRICT""")
    db.execute("""
        CREATE TABLE access(
            token_hash TEXT PRIMARY KEY,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            kind TEXT NOT NULL CHECK (kind IN ('session', 'api')),
            label TEXT NOT NULL,
            created_at TEXT NOT NULL,
            seen_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX access_person ON access(person_id)")


def add_consent(db: Database) -> None:
    """Add whether chats may teach the assistant: asked of people who log in, on for the local owner and made-up ones.

    A conversation's own answer stands before its person's.
    """
    db.execute(
        "ALTER TABLE person ADD COLUMN teach TEXT NOT NULL DEFAULT 'unanswered'"
        " CHECK (teach IN ('on', 'off', 'unanswered'))"
    )
    db.execute("ALTER TABLE person ADD COLUMN teach_at TEXT")
    db.execute("UPDATE person SET teach = 'on', teach_at = created_at WHERE kind <> 'account'")
    db.execute("ALTER TABLE conversation ADD COLUMN teach TEXT CHECK (teach IN ('on', 'off'))")
    db.execute("ALTER TABLE conversation ADD COLUMN teach_at TEXT")


def add_training_record(db: Database) -> None:
    """Add what each run learned from, and which runs learned from somebody erased since.

    Neither says anything about an erased person. Moves of the live pointer get the reason `withdrawn`: a tainted
    adapter gave way to the base.
    """
    db.execute("""
        CREATE TABLE train_item(
            id INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            message_id TEXT REFERENCES message(id) ON DELETE SET NULL,
            UNIQUE (run_id, person_id, message_id)
        ) STRICT""")
    db.execute("CREATE INDEX train_item_person ON train_item(person_id)")
    db.execute("CREATE INDEX train_item_message ON train_item(message_id)")
    db.execute("""
        CREATE TABLE run_erasure(
            id INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL REFERENCES run(id) ON DELETE CASCADE,
            at TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX run_erasure_run ON run_erasure(run_id)")
    db.execute("ALTER TABLE live_event RENAME TO live_event_old")
    db.execute("""
        CREATE TABLE live_event(
            generation INTEGER PRIMARY KEY,
            adapter_id TEXT REFERENCES adapter(id),
            at TEXT NOT NULL,
            why TEXT NOT NULL CHECK (why IN ('promote', 'rollback', 'withdrawn'))
        ) STRICT""")
    db.execute("INSERT INTO live_event SELECT generation, adapter_id, at, why FROM live_event_old")
    db.execute("DROP TABLE live_event_old")


def add_rankings(db: Database) -> None:
    """Add replies to one prompt put in order, with their history; equal ranks are ties, 1 is best.

    `position` is the order in which they were shown. Replacing a ranking keeps the old one as an event.
    """
    db.execute("""
        CREATE TABLE ranking(
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            conversation_id TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            prompt_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            none_is_good INTEGER NOT NULL CHECK (none_is_good IN (0, 1)),
            version INTEGER NOT NULL CHECK (version >= 1),
            ranked_at TEXT NOT NULL
        ) STRICT""")
    for column in ("person_id", "conversation_id", "prompt_message_id"):
        db.execute(f"CREATE INDEX ranking_{column} ON ranking({column})")
    db.execute("""
        CREATE TABLE ranked_reply(
            ranking_id TEXT NOT NULL REFERENCES ranking(id) ON DELETE CASCADE,
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            position INTEGER NOT NULL CHECK (position BETWEEN 0 AND 8),
            rank INTEGER NOT NULL CHECK (rank BETWEEN 1 AND 9),
            PRIMARY KEY (ranking_id, message_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX ranked_reply_message ON ranked_reply(message_id)")
    db.execute("""
        CREATE TABLE ranking_event(
            id INTEGER PRIMARY KEY,
            ranking_id TEXT NOT NULL REFERENCES ranking(id) ON DELETE CASCADE,
            ranks TEXT NOT NULL CHECK (json_valid(ranks)),
            none_is_good INTEGER NOT NULL CHECK (none_is_good IN (0, 1)),
            at TEXT NOT NULL
        ) STRICT""")
    db.execute("CREATE INDEX ranking_event_ranking ON ranking_event(ranking_id)")


def add_imports(db: Database) -> None:
    """Add what came from files: under which names there, from which file, and two kinds that no page produces.

    A preference has no sides and a demonstration no original, so they are neither comparisons nor rewrites.
    """
    db.execute(
        "ALTER TABLE conversation ADD COLUMN provenance TEXT NOT NULL DEFAULT 'local'"
        " CHECK (provenance IN ('local', 'imported'))"
    )
    db.execute("""
        CREATE TABLE annotator(
            person_id INTEGER PRIMARY KEY REFERENCES person(id) ON DELETE CASCADE,
            name TEXT NOT NULL UNIQUE  -- as the file has it; the person's own name may differ
        ) STRICT""")
    db.execute("""
        CREATE TABLE import_file(
            id INTEGER PRIMARY KEY,
            sha256 TEXT NOT NULL,
            kind TEXT NOT NULL,
            format TEXT NOT NULL,
            at TEXT NOT NULL
        ) STRICT""")
    db.execute("""
        CREATE TABLE imported(
            kind TEXT NOT NULL,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            name TEXT NOT NULL,  -- the line's id
            row_id TEXT NOT NULL,  -- the id of the row it became
            conversation_id TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
            content_hash TEXT NOT NULL,
            file_id INTEGER NOT NULL REFERENCES import_file(id),
            PRIMARY KEY (kind, person_id, name)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE UNIQUE INDEX imported_row ON imported(kind, row_id)")
    for column in ("person_id", "conversation_id", "file_id"):
        db.execute(f"CREATE INDEX imported_{column} ON imported({column})")
    db.execute("""
        CREATE TABLE preference(
            id TEXT PRIMARY KEY,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            chosen_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            rejected_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            created_at TEXT NOT NULL,
            CHECK (chosen_message_id <> rejected_message_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("""
        CREATE TABLE demonstration(
            id TEXT PRIMARY KEY,
            person_id INTEGER NOT NULL REFERENCES person(id) ON DELETE CASCADE,
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            created_at TEXT NOT NULL
        ) STRICT, WITHOUT ROWID""")
    for table, column in (
        ("preference", "person_id"),
        ("preference", "chosen_message_id"),
        ("preference", "rejected_message_id"),
        ("demonstration", "person_id"),
        ("demonstration", "message_id"),
    ):
        db.execute(f"CREATE INDEX {table}_{column} ON {table}({column})")


def add_row_hashes(db: Database) -> None:
    """Add a hash to every row that somebody said, judged or decided; a later table gets one by naming the column so.

    Who opens the file for writing keeps the hashes (sealing.py); the migration fills in those of older rows.
    """
    for table in (
        *("run", "adapter", "live", "live_event", "person", "credential", "conversation", "message", "system_prompt"),
        *("origin", "vote", "vote_event", "rewrite", "comparison", "comparison_event", "ranking", "ranked_reply"),
        *("ranking_event", "annotator", "import_file", "imported", "preference", "demonstration"),
    ):
        db.execute(f"ALTER TABLE {table} ADD COLUMN row_hash BLOB")


def add_choice_details(db: Database) -> None:
    """Add what was hidden until a choice and what it was about, and rankings that were taken back.

    `item` names what was judged by its content, `left_first` says which of its replies stood left: items.py. Older
    choices get theirs after the step, which knows nothing of how prompts are read.
    """
    db.execute("ALTER TABLE comparison ADD COLUMN hidden TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(hidden))")
    db.execute("ALTER TABLE comparison ADD COLUMN item TEXT")
    db.execute("ALTER TABLE comparison ADD COLUMN left_first INTEGER CHECK (left_first IN (0, 1))")
    for table in ("ranking", "ranking_event"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN retracted INTEGER NOT NULL DEFAULT 0 CHECK (retracted IN (0, 1))")


def add_ai_feedback(db: Database) -> None:
    """Add what AI judges said, apart from what people did; it goes with the replies that it is about.

    The shares are of the answers in which the first reply, the older one, was preferred: once shown first and once
    shown second; none where no answer could be read. A rewrite without a text found nothing to better.
    """
    db.execute("""
        CREATE TABLE ai_judge(
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE CHECK (substr(name, 1, 3) = 'ai:'),
            model TEXT NOT NULL,
            constitution TEXT NOT NULL,
            created_at TEXT NOT NULL,
            row_hash BLOB
        ) STRICT""")
    db.execute("""
        CREATE TABLE ai_choice(
            judge_id INTEGER NOT NULL REFERENCES ai_judge(id) ON DELETE CASCADE,
            first_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            second_message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            shown_first REAL CHECK (shown_first BETWEEN 0 AND 1),
            shown_second REAL CHECK (shown_second BETWEEN 0 AND 1),
            unparsable INTEGER NOT NULL CHECK (unparsable >= 0),
            judged_at TEXT NOT NULL,
            row_hash BLOB,
            PRIMARY KEY (judge_id, first_message_id, second_message_id),
            CHECK (first_message_id <> second_message_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("""
        CREATE TABLE ai_rewrite(
            judge_id INTEGER NOT NULL REFERENCES ai_judge(id) ON DELETE CASCADE,
            message_id TEXT NOT NULL REFERENCES message(id) ON DELETE CASCADE,
            critique TEXT NOT NULL,
            text TEXT,
            written_at TEXT NOT NULL,
            row_hash BLOB,
            PRIMARY KEY (judge_id, message_id)
        ) STRICT, WITHOUT ROWID""")
    db.execute("CREATE INDEX ai_choice_first ON ai_choice(first_message_id)")
    db.execute("CREATE INDEX ai_choice_second ON ai_choice(second_message_id)")
    db.execute("CREATE INDEX ai_rewrite_message ON ai_rewrite(message_id)")


def add_rank_conversations(db: Database) -> None:
    """Let a conversation be of the rank page too."""
    _allow_conversation_kinds(db, "'chat', 'compare', 'rank'")


def add_api_conversations(db: Database) -> None:
    """Let a conversation be one that another program held over /v1."""
    _allow_conversation_kinds(db, "'chat', 'compare', 'rank', 'api'")


def _allow_conversation_kinds(db: Database, kinds: str) -> None:
    """Let a conversation be of these kinds, written as SQL strings.

    A column takes its check with it when it is dropped, so the table itself stays, and with it all that names its rows.
    """
    db.execute("DROP INDEX conversation_person")
    db.execute("ALTER TABLE conversation RENAME COLUMN kind TO old_kind")
    db.execute(f"ALTER TABLE conversation ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat' CHECK (kind IN ({kinds}))")
    db.execute("UPDATE conversation SET kind = old_kind")
    db.execute("ALTER TABLE conversation DROP COLUMN old_kind")
    db.execute("CREATE INDEX conversation_person ON conversation(person_id, kind, updated_at)")


STEPS: tuple[Callable[[Database], None], ...] = (
    create_registry,
    create_people,
    create_conversations,
    create_votes,
    create_comparisons,
    create_accounts,
    add_consent,
    add_training_record,
    add_rankings,
    add_imports,
    add_row_hashes,
    add_choice_details,
    add_ai_feedback,
    add_rank_conversations,
    add_api_conversations,
)
VERSION = len(STEPS)


def migrations() -> Migrations:
    """Return the steps in the form that sqlite-utils applies and records."""
    steps = Migrations("feedback_store")
    for step in STEPS:
        steps()(step)
    return steps
