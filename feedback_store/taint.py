"""What each night learned from, and which adapters learned from somebody who has since said no.

A night records its examples before it trains. Its adapters are tainted from the moment one of those people is erased,
for good, and for as long as a person or conversation among them no longer teaches. A tainted adapter is not promoted
again; one that is live gives way to the base when no night has replaced it in time.

Does not cover adapters whose nights recorded nothing, and conversations that their owner deletes without withdrawing.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlite_utils import Database

from feedback_store.connection import one_row, rows
from feedback_store.errors import TaintedAdapter, Withdrawn
from feedback_store.records import TrainItem, as_text, utc_now

_RUNS = """
    SELECT id FROM run WHERE adapter_id = :adapter
    UNION SELECT run_id FROM adapter WHERE id = :adapter AND run_id IS NOT NULL"""
_WITHDRAWN = f"""
    SELECT count(DISTINCT item.person_id) AS people,
        min(max(coalesce(conversation.teach_at, ''), coalesce(person.teach_at, ''))) AS since
    FROM train_item AS item JOIN person ON person.id = item.person_id
    LEFT JOIN message ON message.id = item.message_id
    LEFT JOIN conversation ON conversation.id = message.conversation_id
    WHERE item.run_id IN ({_RUNS}) AND coalesce(conversation.teach, person.teach) <> 'on'"""
_RECORD = """
    INSERT INTO train_item(run_id, person_id, message_id)
    SELECT ?, person.id, message.id FROM message
    JOIN conversation ON conversation.id = message.conversation_id JOIN person ON person.id = conversation.person_id
    WHERE message.id = ? AND person.id = ? AND coalesce(conversation.teach, person.teach) = 'on'
    ON CONFLICT DO UPDATE SET message_id = excluded.message_id"""


def record_items(db: Database, run_id: str, items: Iterable[TrainItem]) -> int:
    """Store what a run is about to learn from, and return how many replies that is.

    Raises:
        Withdrawn: some of it was erased or withdrawn after it was read; training would go against that.
    """
    wanted = {(item.person_id, message_id) for item in items for message_id in item.message_ids}
    for person_id, message_id in sorted(wanted):
        if not db.execute(_RECORD, [run_id, message_id, person_id]).rowcount:
            raise Withdrawn("Somebody withdrew or erased what this run was to learn from; start it again.")
    return len(wanted)


def record_erasure(db: Database, person_id: int) -> list[str]:
    """Taint every run that learned from a person who is about to be erased, and return the adapters they made."""
    runs = [
        row["run_id"] for row in rows(db, "SELECT DISTINCT run_id FROM train_item WHERE person_id = ?", [person_id])
    ]
    adapters: set[str] = set()
    for run_id in runs:
        db.execute("INSERT INTO run_erasure(run_id, at) VALUES (?, ?)", [run_id, utc_now()])
        sql = "SELECT id FROM adapter WHERE run_id = :run UNION SELECT adapter_id FROM run WHERE id = :run"
        adapters.update(row["id"] for row in rows(db, sql, {"run": run_id}) if row["id"])
    return sorted(adapters)


def read_unrecorded(db: Database) -> list[str]:
    """Return the adapters of which nobody can say whom they learned from."""
    sql = """
        SELECT adapter.id FROM adapter WHERE NOT EXISTS (
            SELECT 1 FROM run JOIN (SELECT run_id FROM train_item UNION SELECT run_id FROM run_erasure) AS known
                ON known.run_id = run.id
            WHERE run.id = adapter.run_id OR run.adapter_id = adapter.id)
        ORDER BY adapter.seq"""
    return [row["id"] for row in rows(db, sql)]


def read_taint(db: Database, adapter_id: str) -> tuple[str, tuple[str, ...]]:
    """Return since when an adapter is tainted and why, one sentence a reason; both empty when it is not."""
    found: list[tuple[str, str]] = []
    erased = one_row(db, f"SELECT min(at) AS since FROM run_erasure WHERE run_id IN ({_RUNS})", {"adapter": adapter_id})
    if erased and erased["since"]:
        found.append((erased["since"], "It learned from somebody whose data has been erased since."))
    withdrawn = one_row(db, _WITHDRAWN, {"adapter": adapter_id})
    if withdrawn and withdrawn["people"]:
        people = withdrawn["people"]
        whom = "somebody who has" if people == 1 else f"{people} people who have"
        found.append((withdrawn["since"], f"It learned from chats of {whom} withdrawn them since."))
    return min((since for since, _ in found), default=""), tuple(sentence for _, sentence in found)


def check_untainted(db: Database, adapter_id: str) -> None:
    """Refuse an adapter that learned from somebody who has since said no.

    Raises:
        TaintedAdapter: it did; using it again would go against what they asked for.
    """
    reasons = read_taint(db, adapter_id)[1]
    if reasons:
        raise TaintedAdapter(f"Adapter {adapter_id} may not be used any more ({reasons[0]}) Promote another one.")


def is_overdue(db: Database, adapter_id: str, nights: int, now: datetime | None = None) -> bool:
    """Say whether a tainted adapter has had its time: so many runs began and ended since, or so many days went by."""
    since = read_taint(db, adapter_id)[0]
    if not since:
        return False
    if since <= as_text((now or datetime.now(UTC)) - timedelta(days=nights)):
        return True
    row = one_row(db, "SELECT count(*) AS ended FROM run WHERE started_at >= ? AND state <> 'running'", [since])
    return row is not None and row["ended"] >= nights
