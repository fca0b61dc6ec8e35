"""The rehearsal: what is measured on what, what is written, and the whole of it in a tiny form."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assistant.engine import Request
from assistant.fake import FakeEngine
from assistant.settings import load_settings
from finetune import rehearse as rehearsal
from finetune.__main__ import main
from finetune.problems import Problem
from finetune.problems_dev import DEV_KINDS
from finetune.problems_unseen import TEST_KINDS
from finetune.rehearse import Measures, Rehearsal, choose_problems, measure, peak_memory, rehearse, report_lines
from finetune.simulate import NotForRealPeople
from tests.new_store import open_in

SKIPPED = {"outcome": "skipped", "run": "r", "adapter": None, "reasons": ["too few"]}


def tell(request: Request) -> str:
    """Work it out, whatever it is."""
    return "The answer is 7."


@pytest.fixture
def no_night(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the model and the night out: a scripted engine, and a night that is skipped."""
    monkeypatch.setattr(rehearsal, "build_engine", lambda settings: FakeEngine(tell))
    monkeypatch.setattr(rehearsal, "run_night", lambda home: SKIPPED)


def test_the_table_uses_no_text_that_was_voted_on_and_no_kind_that_tuned_the_recipe() -> None:
    voted, groups = choose_problems(160, 102, 0)
    texts = {problem.text for problem in voted}
    assert len(texts) == 160
    assert len(groups["other kinds"]) == 102
    assert not texts & {problem.text for problems in groups.values() for problem in problems}
    assert {problem.kind for problem in groups["other kinds"]} == {kind.name for kind in TEST_KINDS}
    assert not {problem.kind for problem in groups["other kinds"]} & {problem.kind for problem in voted}
    assert not {kind.name for kind in DEV_KINDS} & {p.kind for p in [*voted, *sum(groups.values(), [])]}


def test_measures_count_in_a_hundred_replies() -> None:
    problem = Problem("Leila has 4 lemons and 5 limes. How many is that?", "9", "sum", ("Leila", "4", "5"), ())
    replies = ["How many lemons has Leila?", "What do you think?", "It is 9.", "It is 9."]
    assert measure([problem] * 4, replies) == Measures(4, asks=50, states=50, works=0, names=25, openings=3)


def test_openings_are_counted_in_the_first_hundred_replies() -> None:
    problem = Problem("x 1", "2", "k", ("1",), ())
    replies = [f"Why {i}?" for i in range(150)]
    assert measure([problem] * 150, replies).openings == 100


def test_peak_memory_is_that_of_this_process_and_of_the_largest_child() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    peak = peak_memory()
    assert 0.02 < peak["own"] < 100
    assert peak["both_at_most"] >= max(peak["own"], peak["night"]) > 0


@pytest.mark.usefixtures("no_night")
def test_a_rehearsal_measures_before_and_after_and_says_that_it_is_simulated(home: Path) -> None:
    result = rehearse(load_settings(home), problems=8, test=4, seed=0)
    assert {group: set(table) for group, table in result.table.items()} == {
        "other kinds": {"before", "after"},
        "voted kinds": {"before", "after"},
        "plain preset": {"before", "after"},
    }
    assert result.table["other kinds"]["before"] == result.table["other kinds"]["after"]
    assert result.votes["conversations"] == 8
    assert list(result.seconds) == ["load", "before", "votes", "night", "after"]
    assert result.adapter is None
    text = "\n".join(report_lines(result))
    assert "simulated" in text.splitlines()[0]
    assert "| asks a question | 0 |" in text


@pytest.mark.usefixtures("no_night")
def test_the_command_writes_json_markdown_and_a_plot_into_the_home(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "--problems", "6", "--test", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["simulated"] is True
    assert f"simulated raters in {home}" in err
    assert json.loads((home / "rehearsal.json").read_text()) == printed
    assert (home / "rehearsal.md").read_text().startswith("# Rehearsal with simulated raters")
    assert (home / "rehearsal.png").stat().st_size > 5000


@pytest.mark.usefixtures("no_night")
def test_without_a_home_a_fresh_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NIGHTSCHOOL_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["rehearse", "--problems", "3", "--test", "3"]) == 0
    (folder,) = tmp_path.glob("nightschool-rehearsal-*")
    out, _ = capsys.readouterr()
    assert str(folder) in out
    assert (folder / "rehearsal.json").exists()


@pytest.mark.parametrize("command", [["rehearse"], ["simulate"]])
def test_a_home_where_real_people_talk_is_refused_before_a_model_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    def no_model(settings: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(rehearsal, "build_engine", no_model)
    monkeypatch.setattr("finetune.simulate.build_engine", no_model)
    home.mkdir()
    store = open_in(home / "nightschool.db")
    store.conversations.start(store.people.owner().id)
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("The store ")
    assert "Name another home" in err and "Traceback" not in err + out


def test_simulated_votes_are_never_cast_in_the_users_own_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NIGHTSCHOOL_HOME")
    assert main(["simulate"]) == 1
    assert "need a home of their own" in capsys.readouterr().err


def test_simulate_prints_one_json_object_that_says_simulated(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.simulate.build_engine", lambda settings: FakeEngine(tell))
    assert main(["simulate", "--problems", "10", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["simulated"] is True
    assert printed["conversations"] == 10
    assert printed["home"] == str(home)


def test_numbers_below_one_are_wrong_usage() -> None:
    for arguments in (["rehearse", "--problems", "0"], ["simulate", "--problems", "-3"], ["rehearse", "--test", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_real_people_stop_a_rehearsal_with_nothing_written(home: Path) -> None:
    home.mkdir()
    store = open_in(home / "nightschool.db")
    store.conversations.start(store.people.owner().id)
    with pytest.raises(NotForRealPeople):
        rehearse(load_settings(home), problems=3, test=3, seed=0)
    assert len(store.people.all()) == 1


def test_a_report_can_be_written_for_any_measures() -> None:
    half = Measures(n=2, asks=50, states=0, works=0, names=50, openings=2)
    table = {group: {"before": half, "after": half} for group in ("other kinds", "voted kinds", "plain preset")}
    votes = dict.fromkeys(("thumbs_up", "thumbs_down", "comparisons", "rewrites"), 1)
    result = Rehearsal(home="h", votes=votes, night={"outcome": "promoted"}, adapter="a", table=table)
    assert any("Live now: a" in line for line in report_lines(result))


@pytest.mark.model
def test_the_tiny_rehearsal_runs_with_the_real_model_and_its_night_is_skipped(home: Path) -> None:
    command = [sys.executable, "-m", "finetune", "rehearse", "--problems", "1", "--test", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["night"]["outcome"] == "skipped"
    assert printed["home"] == str(home)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(2400)
def test_one_rehearsal_reaches_the_target_figures(home: Path) -> None:
    command = [sys.executable, "-m", "finetune", "rehearse", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=2300, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    before, after = (printed["table"]["other kinds"][when] for when in ("before", "after"))
    assert printed["night"]["outcome"] == "promoted"
    assert after["n"] >= 100
    assert after["asks"] >= 90
    assert after["states"] <= before["states"]
    assert after["openings"] >= 30
    assert after["names"] >= 70
