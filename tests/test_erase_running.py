"""Somebody is erased while the app serves them and others: their words are in no file, and everybody else goes on."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback_store import Store
from finetune import evaluate
from finetune.nightly import run_nightly
from tests.app_process import running_app
from tests.browser_support import eventually
from tests.door_support import PASSWORD, Browser, events_of
from tests.finetune_support import fill_store, tiny_settings
from tests.new_store import open_in
from tests.test_store_erasure import files_with
from tests.test_ui_persons import told_by
from tests.tiny import save_tiny
from ui.texts import ENGLISH

pytestmark = pytest.mark.long
CANARY = "the canary of Zwolle sings at 04:17 in B flat"
OTHERS = "what ben said is ben's and stays"
KINDS = ("preferences", "thumbs", "comparisons", "rankings", "demonstrations", "conversations")


@pytest.fixture
def peopled(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with accounts, enough votes for a night, and its caches inside."""
    monkeypatch.delenv("NIGHTSCHOOL_CACHE")
    store = open_in(home / "nightschool.db")
    store.accounts.add("olga", PASSWORD, "operator")
    for name in ("ada", "ben"):
        store.consent.set_person(store.accounts.add(name, PASSWORD).id, "on")
    fill_store(store, [f"How much is {n} and {n + 1}?" for n in range(20)], person="simulated")
    store.close()
    return home


def log_in(client: httpx.Client, name: str) -> Browser:
    """A browser of somebody who typed their password."""
    browser = Browser(client)
    assert browser.log_in(name).headers["location"] in ("/", "/consent")
    return browser


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Run a command beside the app, as an operator does."""
    command = [sys.executable, "-m", module, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def live_a_day(browser: Browser, store: Store, name: str, words: str) -> None:
    """Say the words in every way that the pages offer."""
    events = {event["api_name"]: event for event in events_of(browser)}
    person = store.people.get(name).id
    told_by(browser, events["ask"], [words, "plain", "", "", "", ""])
    (talk,) = store.conversations.list(person)
    (_, reply) = store.conversations.thread(talk.id, person)
    told_by(browser, events["thumb_down"], ["", reply.id, ""])
    told_by(browser, events["explain"], ["", reply.id, ["other"], f"{words}, a comment"])
    told_by(browser, events["rewrite"], ["", reply.id, f"{words}, better"])
    told_by(browser, events["retry"], ["plain", reply.id, "", "", ""])
    told_by(browser, events["ask_1"], [words, "plain"])
    (comparison,) = store.votes.comparisons(person)
    told_by(browser, events["choose"], [comparison.id])


def night(home: Path, store: Store, model: Path) -> str:
    """Let a night learn from everybody; returns the adapter that it put live."""
    result = run_nightly(tiny_settings(home, model, gate_accuracy_margin=2), store, progress=lambda *_, **__: None)
    assert result.outcome == "promoted" and result.adapter, result.reasons
    return result.adapter


def test_who_is_erased_while_the_app_runs_is_in_no_file_and_the_others_go_on(
    peopled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: False)  # a random model may loop
    monkeypatch.setattr(evaluate, "REPLY_TOKENS", 8)
    home = peopled
    store = open_in(home / "nightschool.db")
    with running_app(home) as (address, process), httpx.Client(base_url=address, timeout=60) as client:
        ada, ben, olga = (log_in(client, name) for name in ("ada", "ben", "olga"))
        live_a_day(ada, store, "ada", CANARY)
        live_a_day(ben, store, "ben", OTHERS)
        backup = home / "nightschool.db.before-the-trip"
        run("feedback_store", "backup", str(backup))
        adapter = night(home, store, save_tiny(tmp_path / "model"))
        running = begin_long_reply(ada, store)
        assert {path.name for path in home.rglob("*.json*")} >= {"report.json", "manifest.jsonl"}
        held = files_with(home, CANARY)
        assert {backup.name} < held <= {backup.name, "nightschool.db", "nightschool.db-wal"}, "runs hold ids, not text"
        said = run("feedback_store", "erase-user", "ada", "--yes")
        assert said["clean"] and said["backups"] == [str(backup)]
        assert said["tainted_adapters"] == [adapter] and said["live_is_tainted"]
        assert files_with(home, CANARY) == {backup.name}
        answer = ada.get("/")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert ada.log_in("ada").status_code == 401
        running.join(60)
        assert not running.is_alive(), "the reply that was under way ended"
        goes_on(ben, olga, store)
        assert process.is_alive()
        exports_nothing(tmp_path)
    store.close()
    assert files_with(home, CANARY) == {backup.name}, "nor once the app has stopped"
    assert files_with(home, OTHERS) >= {"nightschool.db", backup.name}


def begin_long_reply(browser: Browser, store: Store) -> threading.Thread:
    """Let a reply full of the canary be under way, and somebody follow it."""
    person = store.people.get("ada").id
    before = len(store.conversations.list(person))
    ask = next(event for event in events_of(browser) if event["api_name"] == "ask")

    def follow() -> None:
        assert ENGLISH.shut_out in told_by(browser, ask, [f"{CANARY} " * 100, "plain", "", "", "", ""])

    thread = threading.Thread(target=follow)
    thread.start()

    def written() -> bool:
        talks = store.conversations.list(person)
        thread = store.conversations.thread(talks[0].id, person)
        return len(talks) > before and CANARY in thread[-1].text and thread[-1].state == "streaming"

    eventually(written, "no part of the reply was written down")
    return thread


def goes_on(ben: Browser, olga: Browser, store: Store) -> None:
    """Let the others chat, vote and operate."""
    events = {event["api_name"]: event for event in events_of(ben)}
    assert "You said: still here" in told_by(ben, events["ask"], ["still here", "plain", "", "", "", ""])
    person = store.people.get("ben").id
    reply = store.conversations.thread(store.conversations.list(person)[0].id, person)[-1]
    told_by(ben, events["thumb_up"], ["", reply.id, ""])
    given = store.votes.get(reply.id, person)
    assert given and given.value == 1
    operate = {event["api_name"]: event for event in events_of(olga)}
    assert "Preference pairs" in told_by(olga, operate["refresh"], [])


def exports_nothing(folder: Path) -> None:
    """Look for the canary in every export that can be made now."""
    exported = ""
    for kind in KINDS:
        path = folder / f"{kind}.jsonl"
        run("feedback_store", "export", kind, str(path))
        exported += path.read_text(encoding="utf-8")
    assert CANARY not in exported
    assert OTHERS in exported
