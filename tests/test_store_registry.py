"""Nights and adapters are recorded, and the live pointer moves by compare-and-swap only."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.errors import BadInput, NothingToRollBack, StaleGeneration, StoreError, UnknownAdapter
from feedback_store.integrity import verify
from feedback_store.processes import boot_id, is_alive, process_start
from feedback_store.records import Live
from feedback_store.store import Store
from tests.new_store import open_in


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store with two ready adapters, found whole after each test."""
    opened = open_in(tmp_path / "nightschool.db")
    for name in ("a", "b"):
        opened.registry.register_adapter(name, "base-1")
    yield opened
    assert verify(opened) == []
    opened.close()


def test_a_night_is_recorded_from_start_to_end(store: Store) -> None:
    started = store.registry.start_run("2026-11-20")
    assert (started.state, started.outcome, started.pid, started.boot_id) == ("running", None, os.getpid(), boot_id())
    ended = store.registry.finish_run(
        "2026-11-20",
        "refused",
        adapter_id="a",
        data_hash="f00",
        reasons=["Too long.", "음."],
        metrics={"accuracy": 0.5, "n": [1, None]},
    )
    assert (ended.state, ended.outcome, ended.adapter_id, ended.data_hash) == ("done", "refused", "a", "f00")
    assert (ended.reasons, ended.metrics) == (("Too long.", "음."), {"accuracy": 0.5, "n": [1, None]})
    assert ended.finished_at is not None and ended.finished_at >= ended.started_at
    assert store.registry.get_run("2026-11-20") == ended


def test_runs_are_listed_newest_first(store: Store) -> None:
    for name in ("one", "two", "three"):
        store.registry.start_run(name)
    assert [run.id for run in store.registry.runs(limit=2)] == ["three", "two"]


def test_a_run_has_one_start_and_one_end(store: Store) -> None:
    store.registry.start_run("one")
    with pytest.raises(BadInput, match="already"):
        store.registry.start_run("one")
    store.registry.finish_run("one", "skipped")
    with pytest.raises(StoreError, match="ended already"):
        store.registry.finish_run("one", "promoted")
    assert store.registry.get_run("one").outcome == "skipped"
    with pytest.raises(BadInput, match="no run"):
        store.registry.finish_run("two", "skipped")


def test_a_runs_end_that_cannot_be_stored_is_refused_and_leaves_it_running(store: Store) -> None:
    store.registry.start_run("one")
    with pytest.raises(BadInput, match="NaN"):
        store.registry.finish_run("one", "refused", metrics={"loss": float("nan")})
    with pytest.raises(BadInput, match="outcome"):
        store.registry.finish_run("one", "perfect")  # type: ignore[arg-type]
    with pytest.raises(UnknownAdapter):
        store.registry.finish_run("one", "refused", adapter_id="c")
    assert store.registry.get_run("one").state == "running"


def test_only_runs_whose_process_is_gone_are_marked_crashed(store: Store) -> None:
    """A recycled process id, another boot, and a killed child nobody has collected yet all count as gone."""
    for name in ("alive", "recycled", "rebooted", "zombie"):
        store.registry.start_run(name)
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    assert is_alive(child.pid, boot_id(), start)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with store.connections.write() as db:
        db.execute("UPDATE run SET process_start = '1' WHERE id = 'recycled'")
        db.execute("UPDATE run SET boot_id = 'another' WHERE id = 'rebooted'")
        db.execute("UPDATE run SET pid = ?, process_start = ? WHERE id = 'zombie'", [child.pid, start])
    assert store.registry.mark_crashed_runs() == ["recycled", "rebooted", "zombie"]
    child.communicate()
    assert store.registry.mark_crashed_runs() == []
    crashed = store.registry.get_run("zombie")
    assert (crashed.state, crashed.outcome, len(crashed.reasons)) == ("crashed", None, 1)
    assert crashed.finished_at is not None
    assert store.registry.get_run("alive").state == "running"
    assert not is_alive(child.pid, boot_id(), "")


def test_registering_again_changes_nothing(store: Store) -> None:
    first = store.registry.register_adapter("c", "base-1", metrics={"n": 1}, state="refused")
    assert store.registry.register_adapter("c", "base-1", metrics={"n": 2}) == first
    assert [adapter.id for adapter in store.registry.adapters()] == ["c", "b", "a"]
    with pytest.raises(BadInput, match="another base"):
        store.registry.register_adapter("c", "base-2")


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a b", "live", "base", "x" * 129, "a\n", "é"])
def test_adapter_names_that_could_lead_elsewhere_are_refused(store: Store, name: str) -> None:
    with pytest.raises(BadInput):
        store.registry.register_adapter(name, "base-1")


def test_an_adapter_names_a_run_that_exists(store: Store) -> None:
    with pytest.raises(BadInput, match="no run"):
        store.registry.register_adapter("c", "base-1", run_id="nowhere")
    store.registry.start_run("one")
    assert store.registry.register_adapter("c", "base-1", run_id="one").run_id == "one"


def test_the_pointer_starts_at_the_bare_base_and_keeps_its_history(store: Store) -> None:
    registry = store.registry
    assert registry.live() == Live(None, None, 0)
    with pytest.raises(NothingToRollBack):
        registry.rollback()
    assert registry.promote("a", 0) == Live("a", None, 1)
    assert registry.promote("b", 1) == Live("b", "a", 2)
    assert registry.rollback() == Live("a", "b", 3)
    assert registry.rollback() == Live("b", "a", 4)
    assert registry.promote(None, 4) == Live(None, "b", 5)
    assert registry.live() == Live(None, "b", 5)
    moves = [(move.generation, move.adapter_id, move.why) for move in registry.history()]
    assert moves == [
        (5, None, "promote"),
        (4, "b", "rollback"),
        (3, "a", "rollback"),
        (2, "b", "promote"),
        (1, "a", "promote"),
    ]
    assert [move.generation for move in registry.history(limit=1)] == [5]


def test_a_rollback_decided_on_an_older_state_is_refused(store: Store) -> None:
    registry = store.registry
    registry.promote("a", 0)
    registry.rollback(1)
    with pytest.raises(StaleGeneration):
        registry.rollback(1)
    assert registry.live() == Live(None, "a", 2)
    assert registry.was_live("a") and not registry.was_live("b")


def test_the_first_rollback_leads_to_the_bare_base(store: Store) -> None:
    store.registry.promote("a", 0)
    assert store.registry.rollback() == Live(None, "a", 2)


def test_promoting_what_is_live_does_not_lose_the_way_back(store: Store) -> None:
    store.registry.promote("a", 0)
    assert store.registry.promote("a", 1) == Live("a", None, 1)


def test_a_stale_promotion_moves_nothing(store: Store) -> None:
    store.registry.promote("a", 0)
    with pytest.raises(StaleGeneration):
        store.registry.promote("b", 0)
    assert store.registry.live() == Live("a", None, 1)


def test_only_a_ready_adapter_goes_live_and_a_live_one_stays_ready(store: Store) -> None:
    registry = store.registry
    with pytest.raises(UnknownAdapter):
        registry.promote("c", 0)
    registry.set_adapter_state("b", "refused")
    with pytest.raises(BadInput, match="refused or retired"):
        registry.promote("b", 0)
    assert registry.live() == Live(None, None, 0)
    registry.promote("a", 0)
    with pytest.raises(BadInput, match="is live"):
        registry.set_adapter_state("a", "retired")
    registry.promote(None, 1)
    assert registry.set_adapter_state("a", "retired").state == "retired"
    with pytest.raises(BadInput, match="refused or retired"):
        registry.rollback()
    assert registry.live() == Live(None, "a", 2)


def test_of_two_racing_promotions_one_wins(store: Store) -> None:
    for generation in range(10):
        ready, results = threading.Barrier(2), []

        def promote(name: str, ready: threading.Barrier, results: list[str], seen: int) -> None:
            ready.wait()
            try:
                store.registry.promote(name, seen)
            except StaleGeneration:
                return
            results.append(name)

        names = (f"{generation}-x", f"{generation}-y")
        for name in names:
            store.registry.register_adapter(name, "base-1")
        racers = [threading.Thread(target=promote, args=(name, ready, results, generation)) for name in names]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(results) == 1
        live = store.registry.live()
        assert (live.adapter_id, live.generation) == (results[0], generation + 1)
