"""The whole night on a tiny model: how it ends, and that what is live survives whatever happens to it."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from assistant.adapters import TENSORS, verify_adapter
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.erasure import erase_user
from feedback_store.errors import TaintedAdapter
from finetune import evaluate, nightly, workshop
from finetune.errors import TrainingAborted
from finetune.examples import Method
from finetune.nightly import NightResult, hours_until_due, run_nightly
from tests.finetune_support import fill_store, rate_both_ways, rate_store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("lenient")]

QUESTIONS = [f"How much is {n} and {n + 1}?" for n in range(30)]


def add_votes(store: Store, words: str = "What is asked?") -> None:
    fill_store(store, QUESTIONS, chosen=words)


def report_of(settings: Settings, result: NightResult) -> dict[str, Any]:
    assert result.run is not None
    report: dict[str, Any] = json.loads((settings.runs_dir / result.run / "report.json").read_text())
    return report


def test_a_night_puts_a_better_adapter_live_and_leaves_its_papers(settings: Settings, store: Store) -> None:
    add_votes(store)
    heard: list[str] = []
    result = run_nightly(settings, store, progress=lambda phase, step, total, **numbers: heard.append(phase))
    assert result.outcome == "promoted" and result.run and result.adapter, result.reasons
    live = store.registry.live()
    assert (live.adapter_id, live.generation) == (result.adapter, 1)
    folder = settings.runs_dir / result.run
    start = json.loads((folder / "run.json").read_text())
    assert verify_adapter(settings.adapters_dir / result.adapter, start["base_id"]).run_id == result.run
    assert {"settings", "versions", "seed", "base_id", "data_hash"} <= set(start)
    report = report_of(settings, result)
    assert (report["outcome"], report["adapter"]) == ("promoted", result.adapter)
    assert [row["passed"] for row in report["gate"]] == [True] * 3
    assert report["counts"]["train"] + report["counts"]["heldout"] == len(QUESTIONS)
    steps = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert {"phase", "step", "total", "seconds", "eta_s"} <= set(steps[0])
    assert {"train", "promote"} <= set(heard) and {step["phase"] for step in steps} == set(heard)
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "manifest.jsonl", "progress.jsonl", "report.json", "report.md", "training.png"
    }  # fmt: skip
    run = store.registry.get_run(result.run)
    assert (run.state, run.outcome, run.data_hash) == ("done", "promoted", start["data_hash"])
    assert "| check | live | candidate |" in (folder / "report.md").read_text()


def test_nothing_that_people_wrote_stands_in_the_run_folder(settings: Settings, store: Store) -> None:
    add_votes(store, "Zanzibar?")
    result = run_nightly(settings, store)
    for path in (settings.runs_dir / str(result.run)).iterdir():
        assert b"Zanzibar" not in path.read_bytes() and b"How much is" not in path.read_bytes(), path


def test_the_same_votes_give_the_same_adapter_and_the_night_says_that_nothing_changed(
    settings: Settings, store: Store
) -> None:
    add_votes(store)
    first, second = run_nightly(settings, store), run_nightly(settings, store)
    assert (first.outcome, second.outcome) == ("promoted", "skipped")
    assert first.adapter == second.adapter and "Nothing has changed" in second.reasons[0]
    assert store.registry.live().generation == 1


def test_a_home_keeps_its_anchors_where_no_other_home_drops_them(settings: Settings, store: Store) -> None:
    assert settings.cache_dir != settings.own_cache_dir
    shared = settings.cache_dir / "anchors"
    before = sorted(shared.iterdir()) if shared.exists() else []
    add_votes(store)
    run_nightly(settings, store)
    assert list((settings.home / "cache" / "anchors").iterdir())
    assert (sorted(shared.iterdir()) if shared.exists() else []) == before


def test_what_is_live_is_examined_again_once_where_it_is_served_in_another_form(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_votes(store)
    first = run_nightly(settings, store)
    monkeypatch.setattr(nightly, "served_form", lambda served: "another form")
    second, third = run_nightly(settings, store), run_nightly(settings, store)
    assert (first.outcome, second.outcome, third.outcome) == ("promoted", "skipped", "skipped")
    again = f"{first.adapter}, which is live, was examined again, because it is served in another numeric form now"
    assert second.reasons[1] == f"{again} (another form), and passed." and len(third.reasons) == 1
    assert store.registry.live().adapter_id == first.adapter


def test_what_is_live_and_fails_in_another_form_is_taken_out_of_service(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_votes(store)
    run_nightly(settings, store)
    monkeypatch.setattr(nightly, "served_form", lambda served: "another form")
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: True)
    second = run_nightly(settings, store)
    assert second.outcome == "skipped" and store.registry.live().adapter_id is None
    assert "empty or looping replies" in second.reasons[1] and second.reasons[1].endswith("answers from now on.")
    third = run_nightly(settings, store)
    assert third.outcome == "skipped" and "taken out of service" in third.reasons[0]


def test_a_candidate_that_is_refused_leaves_what_is_live_examined_in_its_new_form(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_votes(store)
    first = run_nightly(settings, store)
    fill_store(store, [f"And {n}?" for n in range(10)])
    monkeypatch.setattr(nightly, "served_form", lambda served: "another form")
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: True)
    second = run_nightly(settings, store)
    assert second.outcome == "refused" and second.adapter != first.adapter
    assert str(first.adapter) in second.reasons[-1] and store.registry.live().adapter_id is None


def test_votes_that_a_method_does_not_learn_from_are_told(settings: Settings, store: Store) -> None:
    add_votes(store)
    rate_store(store, [f"Rated {n}?" for n in range(4)])
    notes = report_of(settings, run_nightly(settings, store, method="dpo"))["notes"]
    assert any(note.startswith("--method dpo does not learn from") for note in notes), notes


def test_a_night_learns_from_thumbs_and_rankings_and_records_whose_they_were(settings: Settings, store: Store) -> None:
    fill_store(store, QUESTIONS[:15], person="ana")
    rate_store(store, [f"What is {n} for?" for n in range(30)])
    result = run_nightly(settings, store)
    assert result.outcome == "promoted" and result.adapter, result.reasons
    report = report_of(settings, result)
    counts = report["counts"]
    assert (counts["pairs"], counts["thumbs_up"], counts["rankings"]) == (15 + 10, 10, 10)
    assert counts["one_sided_thumbs"] == 10 and any("same way" in note for note in report["notes"])
    assert "same way" in (settings.runs_dir / str(result.run) / "report.md").read_text()
    lines = [
        json.loads(text) for text in (settings.runs_dir / str(result.run) / "manifest.jsonl").read_text().splitlines()
    ]
    ranked = {message for line in lines if line["kind"] == "ranking" for message in line["ids"]}
    with store.connections.read() as db:
        recorded = {row[0] for row in db.execute("SELECT message_id FROM train_item")}
    assert ranked and recorded == {message for line in lines for message in line["ids"]}


def test_who_only_gave_thumbs_taints_the_adapter_when_erased(settings: Settings, store: Store) -> None:
    fill_store(store, QUESTIONS[:20])
    rater = store.people.add("rater")
    store.consent.set_person(rater.id, "on")
    rate_both_ways(store, rater.id, 6)
    result = run_nightly(settings, store)
    assert result.outcome == "promoted" and result.adapter
    assert report_of(settings, result)["counts"]["one_sided_thumbs"] == 0
    assert erase_user(store, "rater").adapters == (result.adapter,)
    with pytest.raises(TaintedAdapter):
        store.registry.promote(result.adapter, store.registry.live().generation)


@pytest.mark.parametrize("method", ["kto", "rankings", "ipo", "robust", "norm"])
def test_a_night_of_one_method_takes_its_loss_and_its_votes(settings: Settings, store: Store, method: Method) -> None:
    rate_store(store, [f"What is {n} for?" for n in range(36)])
    result = run_nightly(settings, store, method=method)
    assert result.outcome in ("promoted", "refused"), result.reasons
    run = json.loads((settings.runs_dir / str(result.run) / "run.json").read_text())
    assert run["method"] == method
    assert run["settings"]["night"]["pair_loss"] == ("dpo" if method in ("kto", "rankings") else method)


def test_a_night_of_thumbs_alone_says_that_there_is_nothing_to_examine_with(settings: Settings, store: Store) -> None:
    rate_both_ways(store, store.people.owner().id, 12)
    result = run_nightly(settings, store)
    assert result.outcome == "skipped" and "nothing to examine" in result.reasons[0]


def test_a_night_of_thumbs_that_all_point_the_same_way_says_so(settings: Settings, store: Store) -> None:
    for n in range(12):
        rate_store(store, [f"What is {n} for?"])
    result = run_nightly(settings, store)
    assert result.outcome == "skipped"
    assert "has 0: 10 are missing" in result.reasons[0] and "same way" in result.reasons[0]


def test_too_few_votes_skip_the_night_and_say_how_many_are_missing(settings: Settings, store: Store) -> None:
    fill_store(store, QUESTIONS[:7])
    result = run_nightly(settings, store)
    assert result.outcome == "skipped" and "3 are missing" in result.reasons[0]
    assert report_of(settings, result)["counts"]["usable"] == 7
    assert not settings.adapters_dir.exists()
    assert store.registry.get_run(str(result.run)).outcome == "skipped"


def test_a_night_without_any_vote_is_skipped(settings: Settings, store: Store) -> None:
    result = run_nightly(settings, store)
    assert result.outcome == "skipped" and "10 are missing" in result.reasons[0]


def test_votes_of_one_question_cannot_be_examined_and_are_said_so(settings: Settings, store: Store) -> None:
    for n in range(12):
        fill_store(store, ["Always the same?"], chosen=f"Is it {n}?")
    result = run_nightly(settings, store)
    assert result.outcome == "skipped" and "other conversations" in result.reasons[0]


def test_a_candidate_that_fails_the_gate_is_kept_and_not_promoted(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: True)
    add_votes(store)
    result = run_nightly(settings, store)
    assert result.outcome == "refused" and "looping" in result.reasons[0]
    assert store.registry.live().adapter_id is None
    assert store.registry.get_adapter(str(result.adapter)).state == "refused"
    assert (settings.adapters_dir / str(result.adapter)).is_dir()


def test_a_damaged_candidate_never_goes_live(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_votes(store)

    def train_then_damage(*args: Any) -> workshop.TrainingRun:
        made = workshop.train_and_write(*args)
        path = made.adapter.folder / TENSORS
        data = bytearray(path.read_bytes())
        data[-1] ^= 255
        path.write_bytes(data)
        return made

    monkeypatch.setattr(nightly, "train_and_write", train_then_damage)
    result = run_nightly(settings, store)
    assert result.outcome == "refused" and "damaged" in result.reasons[0]
    assert store.registry.live().adapter_id is None


def test_a_training_that_aborts_fails_the_night_with_its_sentence(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_votes(store)

    def abort(*args: Any) -> None:
        raise TrainingAborted("Training stopped at step 3.")

    monkeypatch.setattr(nightly, "train_and_write", abort)
    result = run_nightly(settings, store)
    assert (result.outcome, result.reasons) == ("failed", ("Training stopped at step 3.",))
    assert report_of(settings, result)["outcome"] == "failed"


def test_an_unexpected_error_fails_the_night_and_its_traceback_is_logged(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_votes(store)
    monkeypatch.setattr(nightly, "train_and_write", lambda *args: 1 / 0)
    result = run_nightly(settings, store)
    assert result.outcome == "failed" and "ZeroDivisionError" in result.reasons[0]
    assert "Traceback" in caplog.text


def test_a_pointer_that_somebody_moved_meanwhile_is_left_where_they_put_it(settings: Settings, store: Store) -> None:
    add_votes(store)
    first = run_nightly(settings, store)
    fill_store(store, [f"And {n}?" for n in range(10)])

    def roll_back_at_the_end(phase: str, step: int, total: int, **numbers: float) -> None:
        if phase == "promote" and step == 0:
            store.registry.rollback()

    result = run_nightly(settings, store, progress=roll_back_at_the_end)
    assert first.outcome == "promoted" and result.outcome == "refused" and "by hand" in result.reasons[0]
    assert store.registry.live().adapter_id is None
    assert store.registry.get_adapter(str(result.adapter)).state == "ready"


def test_a_live_adapter_that_cannot_be_read_is_replaced_after_comparison_with_the_base(
    settings: Settings, store: Store
) -> None:
    add_votes(store)
    first = run_nightly(settings, store)
    (settings.adapters_dir / str(first.adapter) / TENSORS).write_bytes(b"broken")
    fill_store(store, [f"And {n}?" for n in range(10)])
    result = run_nightly(settings, store)
    assert result.outcome == "promoted" and "damaged" in report_of(settings, result)["live_unusable"]


def test_a_second_night_beside_a_running_one_says_so(settings: Settings, store: Store) -> None:
    with FileLock(settings.home / "night.lock"):
        result = run_nightly(settings, store)
    assert result.outcome == "already-running" and result.run is None
    assert store.registry.runs() == []


def test_a_night_is_due_a_day_after_the_last_one_that_ended(settings: Settings, store: Store) -> None:
    now = datetime.now(UTC)
    assert hours_until_due(store, now) == 0
    run_nightly(settings, store)
    assert 23.9 < hours_until_due(store, now) < 24.1
    assert hours_until_due(store, now + timedelta(hours=25)) == 0


def test_after_a_night_that_was_killed_the_next_one_is_due_at_once(settings: Settings, store: Store) -> None:
    store.registry.start_run("killed")
    with store.connections.write() as db:
        db.execute("UPDATE run SET boot_id = 'another'")
    assert store.registry.mark_crashed_runs()
    assert hours_until_due(store, datetime.now(UTC)) == 0


def test_what_a_killed_training_left_goes_with_the_next_one_once_somebody_was_erased(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    """The checkpoints were made from their words, though they hold none; other votes make another training."""

    class Killed(BaseException):
        pass

    def kill(phase: str, step: int, total: int, **numbers: float) -> None:
        if phase == "train":
            raise Killed

    settings = settings.model_copy(update={"cache": tmp_path / "cache"})
    add_votes(store)
    fill_store(store, [f"Where does Zanzibar lie, try {n}?" for n in range(8)], person="ana")  # not all held out
    with pytest.raises(Killed):
        run_nightly(settings, store, progress=kill)
    [left] = (tmp_path / "cache" / "checkpoints").iterdir()
    assert len(list(left.iterdir())) == 2 and all(b"Zanzibar" not in path.read_bytes() for path in left.iterdir())
    erase_user(store, "ana")
    result = run_nightly(settings, store)
    assert report_of(settings, result)["training"]["resumed_at_step"] == 0
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


KILLED_NIGHT = """
import os, signal, sys
from assistant.settings import Settings
from feedback_store import open_store
from finetune import evaluate
from finetune.nightly import run_nightly

evaluate.is_flawed = lambda text: False
settings = Settings.model_validate_json(sys.argv[1])
phase, step = sys.argv[2], int(sys.argv[3])

def kill(now, at, total, **numbers):
    if (now, at) == (phase, step):
        os.kill(os.getpid(), signal.SIGKILL)

run_nightly(settings, open_store(settings.database_path), progress=kill)
"""


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("train", 2),
        ("promote", 0),
        pytest.param("examine", 0, marks=pytest.mark.slow),
        pytest.param("promote", 1, marks=pytest.mark.slow),
    ],
)
def test_a_night_killed_at_any_point_leaves_a_live_adapter_and_the_next_night_runs(
    settings: Settings, store: Store, phase: str, step: int
) -> None:
    add_votes(store)
    before = run_nightly(settings, store)
    assert before.outcome == "promoted", before.reasons
    fill_store(store, [f"And {n}?" for n in range(10)])
    command = [sys.executable, "-c", KILLED_NIGHT, settings.model_dump_json(), phase, str(step)]
    ended = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parents[1])
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()

    live = store.registry.live()
    assert live.adapter_id is not None
    base_id = store.registry.get_adapter(live.adapter_id).base_id
    verify_adapter(settings.adapters_dir / live.adapter_id, base_id)
    assert (live.adapter_id == before.adapter) == ((phase, step) != ("promote", 1))

    after = run_nightly(settings, store)
    assert after.outcome == ("skipped" if (phase, step) == ("promote", 1) else "promoted")
    assert after.adapter == store.registry.live().adapter_id != before.adapter
    assert (report_of(settings, after)["training"]["resumed_at_step"] > 1) == (phase == "train")
    assert [run.state for run in store.registry.runs()] == ["done", "crashed", "done"]
