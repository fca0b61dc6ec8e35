"""Nights, adapters, and which adapter is live.

Knows nothing of adapter folders: their ids are names here. The live pointer moves by compare-and-swap in one
transaction, so at every moment it names one registered adapter or the bare base.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlite_utils import Database

from feedback_store.checks import check_choice, check_key, check_text, to_json
from feedback_store.connection import Connections, Row, one_row, rows
from feedback_store.errors import BadInput, NothingToRollBack, StaleGeneration, StoreError, UnknownAdapter
from feedback_store.processes import boot_id, is_alive, process_start
from feedback_store.records import Adapter, AdapterState, Live, LiveMove, Outcome, Run, TrainItem, utc_now
from feedback_store.taint import check_untainted, is_overdue, read_taint, record_items

OUTCOMES: tuple[Outcome, ...] = ("promoted", "refused", "skipped", "failed")
_NO_METRICS: Mapping[str, Any] = MappingProxyType({})


def _run(row: Row) -> Run:
    return Run(
        id=row["id"],
        state=row["state"],
        outcome=row["outcome"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        pid=row["pid"],
        boot_id=row["boot_id"],
        adapter_id=row["adapter_id"],
        data_hash=row["data_hash"],
        reasons=tuple(json.loads(row["reasons"])),
        metrics=json.loads(row["metrics"]),
    )


def _find_run(db: Database, run_id: str) -> Run:
    row = one_row(db, "SELECT * FROM run WHERE id = ?", [run_id])
    if row is None:
        raise BadInput(f"There is no run {run_id!r:.140}; list the runs to see their names.")
    return _run(row)


def _adapter(row: Row) -> Adapter:
    return Adapter(
        row["id"], row["run_id"], row["base_id"], row["state"], row["created_at"], json.loads(row["metrics"])
    )


def _find_adapter(db: Database, adapter_id: str) -> Adapter:
    row = one_row(db, "SELECT * FROM adapter WHERE id = ?", [adapter_id])
    if row is None:
        raise UnknownAdapter(f"No adapter {adapter_id!r:.140} is registered; list the adapters to see their names.")
    return _adapter(row)


def _read_live(db: Database) -> Live:
    row = one_row(db, "SELECT adapter_id, previous_id, generation FROM live WHERE slot = 'chat'")
    assert row is not None, "the schema creates the pointer"
    return Live(**row)


def _move(db: Database, before: Live, adapter_id: str | None, why: str) -> Live:
    if adapter_id is not None and _find_adapter(db, adapter_id).state != "ready":
        raise BadInput(f"Adapter {adapter_id} was refused or retired; promote one that is ready.")
    if adapter_id is not None:
        check_untainted(db, adapter_id)
    generation = before.generation + 1
    db.execute(
        "UPDATE live SET adapter_id = ?, previous_id = ?, generation = ? WHERE slot = 'chat'",
        [adapter_id, before.adapter_id, generation],
    )
    db.execute(
        "INSERT INTO live_event(generation, adapter_id, at, why) VALUES (?, ?, ?, ?)",
        [generation, adapter_id, utc_now(), why],
    )
    return _read_live(db)


class Registry:
    """The nights, the adapters they made, and the live pointer."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def start_run(self, run_id: str) -> Run:
        """Store that this process begins a night.

        Raises:
            BadInput: a run of that name exists; two nights would share one folder.
        """
        check_key(run_id, "A run's id")
        pid = os.getpid()
        with self._connections.write() as db:
            if one_row(db, "SELECT 1 FROM run WHERE id = ?", [run_id]):
                raise BadInput(f"There is a run {run_id} already; choose another name.")
            db.execute(
                "INSERT INTO run(id, state, started_at, pid, boot_id, process_start, reasons, metrics)"
                " VALUES (?, 'running', ?, ?, ?, ?, '[]', '{}')",
                [run_id, utc_now(), pid, boot_id(), process_start(pid)],
            )
            return _find_run(db, run_id)

    def finish_run(
        self,
        run_id: str,
        outcome: Outcome,
        *,
        adapter_id: str | None = None,
        data_hash: str | None = None,
        reasons: Sequence[str] = (),
        metrics: Mapping[str, Any] = _NO_METRICS,
    ) -> Run:
        """Store how a night ended.

        Args:
            adapter_id: the registered adapter it made, whatever became of it.
            reasons: sentences, for people.

        Raises:
            BadInput: there is no such run, or a value cannot be stored.
            UnknownAdapter: the adapter is not registered.
            StoreError: the run has ended already; its record stays as it was written.
        """
        check_choice(outcome, OUTCOMES, "A run's outcome")
        for reason in reasons:
            check_text(reason, "A reason")
        stored_reasons, stored_metrics = to_json(list(reasons), "Reasons"), to_json(dict(metrics), "Metrics")
        with self._connections.write() as db:
            if _find_run(db, run_id).state != "running":
                raise StoreError(f"Run {run_id} has ended already; start a new one.")
            if adapter_id is not None:
                _find_adapter(db, adapter_id)
            db.execute(
                "UPDATE run SET state = 'done', outcome = ?, finished_at = ?, adapter_id = ?, data_hash = ?,"
                " reasons = ?, metrics = ? WHERE id = ?",
                [outcome, utc_now(), adapter_id, data_hash, stored_reasons, stored_metrics, run_id],
            )
            return _find_run(db, run_id)

    def get_run(self, run_id: str) -> Run:
        """Return one night.

        Raises:
            BadInput: there is no such run.
        """
        with self._connections.read() as db:
            return _find_run(db, run_id)

    def runs(self, limit: int = 20) -> list[Run]:
        """Return the nights, newest first."""
        with self._connections.read() as db:
            return [_run(row) for row in rows(db, "SELECT * FROM run ORDER BY seq DESC LIMIT ?", [limit])]

    def mark_crashed_runs(self) -> list[str]:
        """Mark the runs whose process is gone as crashed, and return their ids."""
        reasons = to_json(["The process ended before the night did."], "Reasons")
        with self._connections.write() as db:
            running = list(rows(db, "SELECT * FROM run WHERE state = 'running' ORDER BY seq"))
            dead = [row["id"] for row in running if not is_alive(row["pid"], row["boot_id"], row["process_start"])]
            for run_id in dead:
                db.execute(
                    "UPDATE run SET state = 'crashed', finished_at = ?, reasons = ? WHERE id = ?",
                    [utc_now(), reasons, run_id],
                )
        return dead

    def record_training(self, run_id: str, items: Iterable[TrainItem]) -> int:
        """Store what a run is about to learn from, before it does; return how many replies that is.

        Raises:
            BadInput: there is no such run.
            Withdrawn: some of it was erased or withdrawn after it was read; nothing is stored.
        """
        with self._connections.write() as db:
            _find_run(db, run_id)
            return record_items(db, run_id, items)

    def tainted(self, adapter_id: str) -> tuple[str, ...]:
        """Return why an adapter may not be used any more, one sentence a reason; empty when it may."""
        with self._connections.read() as db:
            return read_taint(db, adapter_id)[1]

    def retire_tainted(self, nights: int = 3, now: datetime | None = None) -> Live | None:
        """Let the base take over from a live adapter that stayed tainted for too long.

        Args:
            nights: so many runs that began and ended since, or so many days, whichever comes first.
            now: the moment to count from, UTC.

        Returns:
            Where the live pointer stands now; None when it stayed where it was.
        """
        with self._connections.write() as db:
            live = _read_live(db)
            if live.adapter_id is None or not is_overdue(db, live.adapter_id, nights, now):
                return None
            return _move(db, live, None, "withdrawn")

    def register_adapter(
        self,
        adapter_id: str,
        base_id: str,
        run_id: str | None = None,
        metrics: Mapping[str, Any] = _NO_METRICS,
        state: AdapterState = "ready",
    ) -> Adapter:
        """Make an adapter known; one that is known already stays as it is.

        Args:
            adapter_id: the name of its folder.
            base_id: the weights it belongs to.

        Raises:
            BadInput: the name is not allowed, the run is unknown, or the same name belongs to another base.
        """
        check_key(adapter_id, "An adapter's id")
        if adapter_id in ("live", "base"):
            raise BadInput(f"An adapter cannot be called {adapter_id}, which names something else; rename it.")
        check_text(base_id, "The base's id", max_chars=200, may_be_empty=False)
        check_choice(state, ("ready", "refused", "retired"), "An adapter's state")
        stored_metrics = to_json(dict(metrics), "Metrics")
        with self._connections.write() as db:
            if run_id is not None:
                _find_run(db, run_id)
            db.execute(
                "INSERT INTO adapter(id, run_id, base_id, state, created_at, metrics) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT(id) DO NOTHING",
                [adapter_id, run_id, base_id, state, utc_now(), stored_metrics],
            )
            adapter = _find_adapter(db, adapter_id)
            if adapter.base_id != base_id:
                raise BadInput(f"Adapter {adapter_id} is registered for another base; give this one its own name.")
            return adapter

    def set_adapter_state(self, adapter_id: str, state: AdapterState) -> Adapter:
        """Change what may be done with an adapter: only a ready one can be promoted.

        Raises:
            UnknownAdapter: it is not registered.
            BadInput: it is live; chats would answer with an adapter nobody may use.
        """
        check_choice(state, ("ready", "refused", "retired"), "An adapter's state")
        with self._connections.write() as db:
            _find_adapter(db, adapter_id)
            if state != "ready" and _read_live(db).adapter_id == adapter_id:
                raise BadInput(f"Adapter {adapter_id} is live; promote another one first.")
            db.execute("UPDATE adapter SET state = ? WHERE id = ?", [state, adapter_id])
            return _find_adapter(db, adapter_id)

    def get_adapter(self, adapter_id: str) -> Adapter:
        """Return one adapter.

        Raises:
            UnknownAdapter: it is not registered.
        """
        with self._connections.read() as db:
            return _find_adapter(db, adapter_id)

    def adapters(self) -> list[Adapter]:
        """Return the adapters, newest first."""
        with self._connections.read() as db:
            return [_adapter(row) for row in rows(db, "SELECT * FROM adapter ORDER BY seq DESC")]

    def live(self) -> Live:
        """Return where the live pointer stands."""
        with self._connections.read() as db:
            return _read_live(db)

    def promote(self, adapter_id: str | None, expected_generation: int) -> Live:
        """Move the live pointer if it still is where the caller saw it.

        Args:
            adapter_id: a ready adapter, or None for the bare base. What is live already is not moved.
            expected_generation: what `live()` said when the decision was made.

        Raises:
            StaleGeneration: somebody moved it meanwhile; their decision would be undone unseen.
            UnknownAdapter: it is not registered.
            BadInput: it was refused or retired.
            TaintedAdapter: it learned from somebody who has been erased or has withdrawn since.
        """
        with self._connections.write() as db:
            before = _read_live(db)
            if before.generation != expected_generation:
                raise StaleGeneration("The live adapter was changed meanwhile; look at it again, then decide.")
            if before.adapter_id == adapter_id:
                if adapter_id is not None:
                    check_untainted(db, adapter_id)
                return before
            return _move(db, before, adapter_id, "promote")

    def rollback(self, expected_generation: int | None = None) -> Live:
        """Move the live pointer back to what was live before; doing so twice returns to where it was.

        Args:
            expected_generation: what `live()` said when the decision was made; None takes what is live now.

        Raises:
            StaleGeneration: somebody moved it meanwhile; going back would undo their decision unseen.
            NothingToRollBack: nothing was ever promoted.
            BadInput: what was live before has been retired since.
            TaintedAdapter: it learned from somebody who has been erased or has withdrawn since.
        """
        with self._connections.write() as db:
            before = _read_live(db)
            if expected_generation not in (None, before.generation):
                raise StaleGeneration("The live adapter was changed meanwhile; look at it again, then decide.")
            if before.generation == 0:
                raise NothingToRollBack("Nothing was promoted yet, so there is nothing to go back to.")
            return _move(db, before, before.previous_id, "rollback")

    def was_live(self, adapter_id: str) -> bool:
        """Say whether an adapter has ever been live."""
        with self._connections.read() as db:
            return one_row(db, "SELECT 1 FROM live_event WHERE adapter_id = ? LIMIT 1", [adapter_id]) is not None

    def history(self, limit: int = 20) -> list[LiveMove]:
        """Return the moves of the live pointer, newest first."""
        with self._connections.read() as db:
            found = rows(db, "SELECT * FROM live_event ORDER BY generation DESC LIMIT ?", [limit])
            return [LiveMove(row["generation"], row["adapter_id"], row["at"], row["why"]) for row in found]
