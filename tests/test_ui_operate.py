"""The operate page: counts, nights, adapters; it reads run folders and never writes them."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save

from assistant.adapters import LORA_A, LORA_B, PREFIX
from assistant.engine import SERVER
from assistant.fake import FakeEngine
from finetune.gate import Limits, Measures, decide
from tests.test_store_overview import choose
from tests.ui_support import World, make_world, play, request_of
from ui.nights import Nights
from ui.operate import OperateDesk, OperatePage, gate_table
from ui.texts import ENGLISH, KOREAN, Texts


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    made = make_world(home)
    yield made
    made.store.close()


def add_run(world: World, run_id: str) -> Path:
    world.store.registry.start_run(run_id)
    folder = world.settings.runs_dir / run_id
    folder.mkdir(parents=True)
    return folder


def desk_in(world: World, texts: Texts) -> OperateDesk:
    """The operate page's desk in a language."""
    return OperateDesk(world.store, world.nights, world.settings, world.engine.base_id, texts)


@pytest.fixture
def night(world: World) -> Iterator[None]:
    """A night under way holds the lock."""
    with FileLock(world.settings.home / "night.lock"):
        yield


def add_adapter(world: World, adapter_id: str, base_id: str = "fake") -> Path:
    """Write a folder that is whole and register it."""
    folder = world.settings.adapters_dir / adapter_id
    folder.mkdir(parents=True)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    factors = {LORA_A: np.zeros((8, 4), np.float32), LORA_B: np.zeros((4, 8), np.float32)}
    tensors = save({f"{PREFIX}model.layers.0.self_attn.q_proj{half}": factor for half, factor in factors.items()})
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": tensors}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"id": adapter_id, "base_id": base_id, "run_id": "r", "created_at": "2026-11-20", "sha256": sums}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    world.store.registry.register_adapter(adapter_id, base_id)
    return folder


def damage(folder: Path) -> None:
    """Flip one bit of the tensors."""
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_page_says_how_many_votes_are_missing(world: World) -> None:
    assert "30 more until a night can train." in world.operate.votes_html()
    shown = play(world.chat.ask(world.person, "hello", "plain", ""))[-1].shown
    world.votes.rewrite(world.person, "", shown, "A better one")
    assert "29 more until a night can train." in world.operate.votes_html()


@pytest.mark.parametrize("texts", [ENGLISH, KOREAN])
def test_the_page_says_how_people_vote_where_anything_is_known(world: World, texts: Texts) -> None:
    assert desk_in(world, texts).votes_html().count("<p ") == 1
    for name, says in (("ada", "left"), ("ben", "left"), ("cem", "right")):
        choose(world.store, world.store.people.add(name, kind="simulated").id, 1, says)  # type: ignore[arg-type]
    world.store.people.add("dan")
    shown = desk_in(world, texts).votes_html()
    agree = texts.people_agree.format(percent=100 / 3, items=1, kappa="-0.50")
    left = texts.left_chosen.format(percent=200 / 3, low=20.8, high=93.9)
    assert texts.escape(f"{agree} {left} {texts.not_teaching.format(people=1)}") in shown


def test_promotion_and_rollback_move_the_pointer(world: World) -> None:
    add_adapter(world, "night-1")
    generation = world.operate.generation()
    assert "night-1 answers from the next message on" in world.operate.promote("night-1", generation)
    assert world.store.registry.live().adapter_id == "night-1"
    assert "changed meanwhile" in world.operate.promote("base", generation)
    assert world.store.registry.live().adapter_id == "night-1"
    assert "Base model answers" in world.operate.roll_back(world.operate.generation())
    assert world.store.registry.live().adapter_id is None


def test_over_a_server_an_adapter_is_checked_against_the_base_it_was_made_on(home: Path) -> None:
    engine = FakeEngine()
    engine.base_id = f"{SERVER}tiny"
    world = make_world(home, engine)
    folder = add_adapter(world, "night-1", "gguf-1")
    assert "night-1 answers from the next message on" in world.operate.promote("night-1", "0")
    world.operate.promote("base", "1")
    damage(folder)
    assert "is damaged" in world.operate.promote("night-1", "2")
    world.store.close()


def test_promoting_what_answers_already_says_so_and_moves_nothing(world: World) -> None:
    assert world.operate.promote("base", "0") == "Base model answers already; nothing was changed."
    add_adapter(world, "night-1")
    world.operate.promote("night-1", "0")
    before = world.store.registry.live()
    assert world.operate.promote("night-1", "1") == "Adapter night-1 answers already; nothing was changed."
    assert world.store.registry.live() == before


def test_a_damaged_or_foreign_adapter_goes_live_neither_way(world: World) -> None:
    first, second = add_adapter(world, "night-1"), add_adapter(world, "night-2")
    add_adapter(world, "elsewhere", "another-base")
    world.operate.promote("night-1", "0")
    damage(second)
    before = world.store.registry.live()
    assert "The adapter night-2 is damaged" in world.operate.promote("night-2", world.operate.generation())
    assert "trained on another model" in world.operate.promote("elsewhere", world.operate.generation())
    assert world.store.registry.live() == before
    world.operate.promote("base", world.operate.generation())
    damage(first)
    before = world.store.registry.live()
    assert "The adapter night-1 is damaged" in world.operate.roll_back(world.operate.generation())
    assert world.store.registry.live() == before


def test_a_night_that_was_killed_stands_in_nobodys_way(world: World) -> None:
    script = (
        "import sys; from feedback_store import open_store;"
        "open_store(sys.argv[1]).registry.start_run('20261120T213000Z-dead')"
    )
    subprocess.run([sys.executable, "-c", script, str(world.settings.database_path)], check=True)
    assert world.store.registry.get_run("20261120T213000Z-dead").state == "running"
    assert not world.operate.working()
    assert world.store.registry.get_run("20261120T213000Z-dead").state == "crashed"
    assert "crashed" in world.operate.runs_html()
    assert ENGLISH.night_ends["crashed"] in world.operate.night_html()


def test_what_cannot_be_promoted_gets_a_sentence(world: World) -> None:
    assert world.operate.promote(None, "0") == ENGLISH.reload_page
    assert world.operate.promote("base", "x") == ENGLISH.reload_page
    assert "No adapter" in world.operate.promote("unknown", "0")
    assert "nothing to go back to" in world.operate.roll_back(world.operate.generation())
    world.store.registry.register_adapter("weak", "fake", state="refused")
    assert world.operate.adapters() == ([("Base model", "base")], "base")


def test_a_night_under_way_shows_its_progress(world: World, night: None) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    lines = [{"phase": "train", "step": step, "total": 40, "seconds": 1.0, "eta_s": 90.0} for step in (9, 10)]
    (folder / "progress.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"phase": "tr')
    assert "Learning from the votes: 10 of 40, about 2 min left for this step" in world.operate.night_html()
    assert world.operate.working()
    assert world.operate.retrain() == ENGLISH.retrain_running


@pytest.mark.parametrize("texts", [ENGLISH, KOREAN])
@pytest.mark.parametrize(
    "phase", ["anchors", "slips", "reference", "train", "examine base", "examine adapter-0a1b", "promote"]
)
def test_every_step_of_a_night_has_words(world: World, night: None, texts: Texts, phase: str) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    (folder / "progress.jsonl").write_text(json.dumps({"phase": phase, "step": 1, "total": 2, "eta_s": None}) + "\n")
    shown = desk_in(world, texts).night_html()
    assert phase not in shown
    assert any(f"{words}: " in shown for words in texts.night_steps.values())
    (folder / "progress.jsonl").write_text(json.dumps({"phase": "of tomorrow", "step": 1, "total": 2}) + "\n")
    assert texts.night_step in desk_in(world, texts).night_html()


@pytest.mark.parametrize("texts", [ENGLISH, KOREAN])
def test_a_night_s_end_is_told_in_words(world: World, texts: Texts) -> None:
    desk = desk_in(world, texts)
    assert desk.night_html() == ""
    for number, outcome in enumerate(("promoted", "refused", "skipped", "failed")):
        world.store.registry.start_run(f"night-{number}")
        world.store.registry.finish_run(f"night-{number}", outcome)  # type: ignore[arg-type]
        assert texts.night_ends[outcome] in desk.night_html()


def test_the_page_never_says_started_again_while_a_night_that_has_ended_closes_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row tells the end before its process is gone; the page then said that training had started."""
    gate = stand_in_night(world, monkeypatch)
    world.store.registry.start_run("of-yesterday")
    world.store.registry.finish_run("of-yesterday", "skipped")
    page = OperatePage(world.operate, ENGLISH)
    assert str(page.retrain(request_of(world))).count(ENGLISH.retrain_started) == 1
    world.store.registry.start_run("of-tonight")
    world.store.registry.finish_run("of-tonight", "refused")
    shown = world.operate.night_html()
    assert ENGLISH.retrain_started not in shown
    assert ENGLISH.night_ends["refused"] in shown
    gate.write_text("go\n")
    world.nights.wait()
    assert ENGLISH.night_ends["refused"] in world.operate.night_html()


def test_a_finished_night_shows_its_gate_and_plots_and_escapes_them(world: World) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    check = {"check": "<b>accuracy</b>", "live": 0.5, "candidate": 0.81234, "limit": -0.02, "passed": True, "note": "n"}
    (folder / "report.json").write_text(json.dumps({"gate": [check]}))
    (folder / "loss.png").write_bytes(b"png")
    world.store.registry.finish_run("20261120T213000Z-abcd", "refused", reasons=["<i>worse</i>"])
    shown = world.operate.runs_html()
    assert "<b>accuracy" not in shown
    assert "<i>worse" not in shown
    assert "0.8123" in shown
    assert ">passed<" in shown
    assert "<p class='muted'>n</p>" in shown
    assert "The limit is what" in shown
    assert "/plots/20261120T213000Z-abcd/loss.png" in shown
    assert not world.operate.working()


def test_a_damaged_or_missing_report_leaves_the_page_whole(world: World, night: None) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    assert world.operate.night_html()
    for text in ("{", "[]", '{"gate": 3}', '{"gate": [1, {}]}'):
        (folder / "report.json").write_text(text)
        (folder / "progress.jsonl").write_text(text)
        assert "refused" not in world.operate.runs_html()
    assert gate_table(None, ENGLISH) == ""


def test_only_plots_of_runs_are_files(world: World, home: Path) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    (folder / "loss.png").write_bytes(b"png")
    (folder / "run.json").write_text("{}")
    (folder / "sneaky.png").symlink_to(home / "nightschool.db")
    nights = Nights(home, world.settings.runs_dir)
    assert nights.plot_path(folder.name, "loss.png") == folder / "loss.png"
    for run, name in (
        (folder.name, "run.json"),
        (folder.name, "sneaky.png"),
        (folder.name, "../loss.png"),
        ("..", "loss.png"),
        ("../runs", "loss.png"),
    ):
        assert nights.plot_path(run, name) is None


def stand_in_night(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a script stand in for the nightly command; it ends when something is written to the gate."""
    stand_in = world.settings.home / "night.sh"
    stand_in.write_text("#!/bin/sh\necho 30 votes are missing\nread line < $(dirname $0)/gate\n")
    stand_in.chmod(0o755)
    gate = world.settings.home / "gate"
    os.mkfifo(gate)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    return gate


def test_retrain_starts_one_process_that_outlives_the_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = stand_in_night(world, monkeypatch)
    page = OperatePage(world.operate, ENGLISH)
    assert ENGLISH.retrain_started in str(page.retrain(request_of(world)))
    assert ENGLISH.retrain_running in str(page.retrain(request_of(world)))
    gate.write_text("go\n")
    assert world.nights.wait() == 0
    assert "30 votes are missing" in world.operate.night_html()
    assert page.tick("", request_of(world))[0]


def gate_of_a_night(passed: bool) -> list[dict[str, object]]:
    """Gate rows as the night writes them."""
    good, bad = Measures((1.0, 1.0), 10.0, 20, 0), Measures((0.0, 0.0), 12.5, 20, 3)
    return list(decide(good if passed else bad, good, Limits(0.02, 0.02, 10.0, ("a", "b"))).table())


@pytest.mark.parametrize("passed", [True, False])
def test_the_korean_page_says_the_gate_in_korean(world: World, passed: bool) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    rows = gate_of_a_night(passed)
    (folder / "report.json").write_text(json.dumps({"gate": rows, "outcome": "refused"}))
    reasons = [str(row["note"]) for row in rows if not row["passed"]] or [
        "adapter-0a1b passed every check and is live."
    ]
    outcome, made = ("promoted", "adapter-0a1b") if passed else ("refused", None)
    world.store.registry.register_adapter("adapter-0a1b", "fake")
    world.store.registry.finish_run(folder.name, outcome, adapter_id=made, reasons=reasons)  # type: ignore[arg-type]
    shown = desk_in(world, KOREAN).runs_html()
    words = re.sub(r"<[^>]*>|adapter-\w+|UTC", " ", shown)
    assert re.findall(r"[A-Za-z]{2,}", words) == []
    assert ("12.5" in words) is not passed


def test_a_night_skipped_for_too_few_votes_says_so_in_korean(world: World) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    (folder / "report.json").write_text(json.dumps({"counts": {"usable": 3}}))
    world.store.registry.finish_run(folder.name, "skipped", reasons=["A night needs 30 usable votes and has 3: ..."])
    shown = desk_in(world, KOREAN).runs_html()
    assert "A night" not in shown
    assert KOREAN.run_reasons["too_few"].format(needed=30, usable=3) in shown


def test_what_only_the_night_can_say_is_marked_as_english_on_the_korean_page(world: World) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    world.store.registry.finish_run(folder.name, "failed", reasons=["The disk is full."])
    shown = desk_in(world, KOREAN).runs_html()
    assert "<span lang='en'>The disk is full.</span>" in shown
    assert KOREAN.in_english in shown
    assert "lang=" not in world.operate.runs_html()


def test_a_rollback_from_a_page_that_is_out_of_date_moves_nothing(world: World) -> None:
    """It once took back what somebody else had put live meanwhile."""
    add_adapter(world, "night-1")
    add_adapter(world, "night-2")
    world.operate.promote("night-1", "0")
    stale = world.operate.generation()
    world.operate.promote("night-2", stale)
    before = world.store.registry.live()
    page = OperatePage(world.operate, ENGLISH)
    filled = page.roll_back(stale, request_of(world))
    assert "The live adapter was changed meanwhile" in str(filled)
    assert world.store.registry.live() == before
    assert "night-2" in filled[1]
    assert world.operate.roll_back("") == ENGLISH.reload_page
    assert "Adapter night-1 answers" in world.operate.roll_back(world.operate.generation())


def test_every_part_of_the_page_tells_of_a_night_s_end_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end once stood beside what had answered before, and the list went on saying that it was running."""
    gate = stand_in_night(world, monkeypatch)
    add_adapter(world, "night-1")
    page = OperatePage(world.operate, ENGLISH)
    filled = page.retrain(request_of(world))
    assert ENGLISH.no_runs not in str(filled)
    run = add_run(world, "20261120T213000Z-abcd").name
    began = page.tick(filled[6], request_of(world))
    assert "badge running" in began[3]
    assert began[:2] == [gr.skip()] * 2
    world.store.registry.promote("night-1", 0)
    world.store.registry.finish_run(run, "promoted", adapter_id="night-1")
    ended = page.tick(began[6], request_of(world))
    assert "night-1" in ended[1]
    assert ENGLISH.night_ends["promoted"] in ended[2]
    assert "badge promoted" in ended[3]
    assert (ended[4]["value"], ended[5]) == ("night-1", "1")
    assert ended[8].active  # the process takes seconds to go
    gate.write_text("go\n")
    world.nights.wait()
    assert not page.tick(ended[6], request_of(world))[8].active


def test_a_poll_leaves_what_has_not_changed_as_a_person_left_it(world: World, night: None) -> None:
    folder = add_run(world, "20261120T213000Z-abcd")
    page = OperatePage(world.operate, ENGLISH)
    filled = page.fill()
    (folder / "progress.jsonl").write_text(json.dumps({"phase": "train", "step": 1, "total": 2}) + "\n")
    ticked = page.tick(filled[6], request_of(world))
    assert "1 of 2" in ticked[2]
    assert [part for place, part in enumerate(ticked[:6]) if place != 2] == [gr.skip()] * 5
    play(world.chat.ask(world.person, "hello", "plain", ""))
    again = page.tick(ticked[6], request_of(world))
    assert again[0] == world.operate.votes_html()
    assert again[1:6] == [gr.skip()] * 5


@pytest.mark.parametrize(
    ("texts", "before", "after"),
    [
        (ENGLISH, "1 of 2 usable examples. 1 more", "2 usable examples (2 are needed). Enough"),
        (KOREAN, "쓸 수 있는 예시 2개 중 1개. 1개가 더", "쓸 수 있는 예시 2개 (2개 필요). 밤에"),
    ],
)
def test_more_examples_than_needed_are_no_part_of_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, texts: Texts, before: str, after: str
) -> None:
    """It once said 14 of 5 usable examples."""
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__MIN_VOTES", "2")
    world = make_world(home)
    for place, expected in enumerate((before, after)):
        shown = play(world.chat.ask(world.person, f"hello {place}", "plain", ""))[-1].shown
        world.votes.rewrite(world.person, "", shown, "A better one")
        assert expected in desk_in(world, texts).votes_html()
    world.store.close()
