"""Who is erased is gone from the file itself, and what is left of them elsewhere is said."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.erasure import erase_user, find_erasable
from feedback_store.errors import BadInput, NotYours, TaintedAdapter
from feedback_store.integrity import backup
from feedback_store.records import TrainItem
from feedback_store.store import Store
from tests.test_store_opening import dump
from tests.test_store_world import answer, ask, whole_store

CANARY = "The canary of Reykjavík sings at 04:17 in B flat"
LONG = f"{CANARY} and on. " * 700


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(home / "nightschool.db") as opened:
        yield opened


def talk(store: Store, person_id: int, text: str, runs: bool = False) -> None:
    """Let a person say the text in every way there is."""
    question = ask(store, text, person_id)
    system = f"Answer {text[:60]}"
    left, right = (answer(store, question, f"{text} {side}", person_id, system=system) for side in ("left", "right"))
    store.votes.rate(left.id, person_id, 1, ["other"], text[:200])
    store.votes.rate(left.id, person_id, 1, ["other"], f"{text[:200]} again")
    store.votes.rewrite(right.id, person_id, text)
    shown = store.votes.show_comparison(person_id, question.id, left.id, right.id)
    store.votes.choose(shown.id, person_id, "left")
    store.votes.choose(shown.id, person_id, "tie")


def learn(store: Store, run_id: str, adapter_id: str) -> None:
    """Make an adapter of everything there is to learn."""
    store.registry.start_run(run_id)
    store.registry.record_training(run_id, [TrainItem(pair.person_id, pair.ids) for pair in store.votes.pairs()])
    store.registry.register_adapter(adapter_id, "base-1", run_id)
    store.registry.finish_run(run_id, "promoted", adapter_id=adapter_id)


def files_with(home: Path, text: str) -> set[str]:
    """Return the names of the files under the home that hold the text."""
    return {path.name for path in home.rglob("*") if path.is_file() and text.encode() in path.read_bytes()}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["account", "imported", "simulated"])
def test_no_file_holds_an_erased_persons_words_while_the_app_goes_on(store: Store, home: Path, kind: str) -> None:
    person = store.people.add("canary", kind=kind)  # type: ignore[arg-type]
    token = store.sessions.new_token(person.id)
    for number in range(60):  # enough to split pages and move rows about
        talk(store, 1, f"Somebody else's question {number}?")
        talk(store, person.id, LONG if number % 7 == 0 else f"{CANARY} {number}")
    held = files_with(home, CANARY)
    assert {"nightschool.db-wal"} <= held
    done = erase_user(store, "canary")
    assert done.clean and done.rows["message"] == 180 and done.rows["person"] == 1 and done.rows["vote_event"] == 120
    assert files_with(home, "canary of Reykjav") == set()
    assert store.sessions.person_of_token(token) is None
    assert store.votes.counts()["rewrites"] == 60 and len(store.conversations.list(1)) == 60
    with pytest.raises(BadInput, match="nobody named"):
        erase_user(store, "canary")
    with pytest.raises(NotYours):
        store.conversations.thread("any", person.id)


@pytest.mark.long
def test_erasing_waits_for_readers_and_says_when_they_do_not_end(store: Store, home: Path) -> None:
    person = store.people.add("canary")
    talk(store, person.id, CANARY)
    with store.connections.snapshot() as db:
        assert db.execute("SELECT count(*) FROM message").fetchone()[0] == 3
        done = erase_user(store, "canary", wait_s=0)
        assert not done.clean and any("--finish" in sentence for sentence in done.remains)
    person = store.people.add("canary")
    talk(store, person.id, CANARY)
    started, release = threading.Event(), threading.Event()

    def read() -> None:
        with store.connections.snapshot() as db:
            db.execute("SELECT count(*) FROM message").fetchone()
            started.set()
            release.wait(30)

    reader = threading.Thread(target=read)
    reader.start()
    started.wait(30)
    threading.Timer(0.5, release.set).start()
    assert erase_user(store, "canary").clean
    reader.join()
    assert files_with(home, CANARY) == set()


def test_words_are_blotted_out_of_run_folders_caches_and_logs_but_not_of_adapters_weights(
    store: Store, home: Path
) -> None:
    person = store.people.add("canary")
    talk(store, person.id, f'{CANARY}, "quoted"\nand "quoted" again')
    others = "What somebody else said, which is long enough"
    run = home / "runs" / "one"
    run.mkdir(parents=True)
    quoted = {"reply": f'{CANARY}, "quoted"\nand "quoted" again', "other": others}
    (run / "report.json").write_text(json.dumps(quoted), encoding="utf-8")
    (home / "app.log").write_text(f"12:00 {CANARY}, cut of\n{others}\n", encoding="utf-8")
    (home / "adapter.safetensors").write_text(CANARY, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in (run / "report.json", home / "app.log")}
    with (home / "app.log").open("a", encoding="utf-8") as log:
        done = erase_user(store, "canary")
        log.write("12:01 goes on\n")
    assert {path.name for path in done.files} == {"report.json", "app.log"}
    assert files_with(home, CANARY[:30]) == {"adapter.safetensors"}
    assert files_with(home, json.dumps(CANARY)[1:-1]) == set() and files_with(home, others) >= {
        "report.json",
        "app.log",
    }
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["other"] == others
    assert (run / "report.json").stat().st_size == sizes["report.json"]
    assert (home / "app.log").read_text(encoding="utf-8").endswith("12:01 goes on\n")


def test_adapters_that_learned_from_them_are_tainted_for_good_and_others_are_not(store: Store) -> None:
    talk(store, 1, "The owner's question?")
    learn(store, "one", "clean")
    person = store.people.add("canary")
    store.consent.set_person(person.id, "on")
    talk(store, person.id, CANARY)
    learn(store, "two", "tainted")
    store.registry.register_adapter("made-by-hand", "base-1")
    store.registry.promote("clean", 0)
    store.registry.promote("tainted", 1)
    done = erase_user(store, "canary")
    assert done.adapters == ("tainted",) and done.live_tainted
    assert store.registry.tainted("clean") == () and len(store.registry.tainted("tainted")) == 1
    assert any("made-by-hand" in sentence for sentence in done.remains)
    assert store.registry.rollback().adapter_id == "clean"
    with pytest.raises(TaintedAdapter, match="erased"):
        store.registry.rollback()


def test_a_night_under_way_cannot_put_live_what_it_learned_from_somebody_erased_meanwhile(store: Store) -> None:
    person = store.people.add("canary", kind="imported")
    talk(store, person.id, CANARY)
    store.registry.start_run("one")
    store.registry.record_training("one", [TrainItem(person.id, pair.ids) for pair in store.votes.pairs()])
    erase_user(store, "canary")
    store.registry.register_adapter("late", "base-1", "one")
    with pytest.raises(TaintedAdapter):
        store.registry.promote("late", 0)


def test_a_backup_of_any_name_in_the_home_is_named_and_stays_whole(store: Store, home: Path) -> None:
    person = store.people.add("canary")
    talk(store, person.id, CANARY)
    (home / "copies").mkdir()
    copies = {home / "mine.db", home / "copies" / "old.sqlite"}
    for copy in copies:
        backup(store, copy)
    before = {copy: copy.read_bytes() for copy in copies}
    erased = erase_user(store, "canary")
    assert set(erased.backups) == copies and not copies & set(erased.files)
    assert {copy: copy.read_bytes() for copy in copies} == before


def test_backups_that_hold_them_are_named_and_others_are_not(store: Store, home: Path) -> None:
    backup(store, home / "nightschool.db.before-v1")
    person = store.people.add("canary")
    talk(store, person.id, CANARY)
    backup(store, home / "nightschool.db.before-v2")
    (home / "nightschool.db.before-v3").write_bytes(os.urandom(5000))
    (home / "nightschool.db.creating").write_bytes(b"")
    done = erase_user(store, "canary")
    assert [path.name for path in done.backups] == ["nightschool.db.before-v2", "nightschool.db.before-v3"]
    assert sum("until that file is deleted" in sentence for sentence in done.remains) == 2
    assert files_with(home, CANARY) == {"nightschool.db.before-v2"}


def test_an_erased_owner_is_followed_by_one_who_has_nothing(store: Store, home: Path) -> None:
    before = store.accounts.add("olga", "correct horse", "operator")
    talk(store, before.id, CANARY)
    backup(store, home / "nightschool.db.before-v9")
    done = erase_user(store, "olga")
    after = store.people.owner()
    assert after.id != before.id and (after.name, after.role, after.teach) == ("owner", "operator", "on")
    assert store.conversations.list(after.id) == [] and not store.accounts.has_accounts()
    assert [path.name for path in done.backups] == ["nightschool.db.before-v9"]


def test_an_erasure_that_fails_leaves_everything_as_it_was(store: Store) -> None:
    person = store.people.add("canary", kind="imported")
    talk(store, person.id, CANARY)
    learn(store, "one", "a")
    with store.connections.write() as db:
        db.execute("CREATE TEMP TRIGGER refuse BEFORE DELETE ON main.vote BEGIN SELECT raise(ABORT, 'stop'); END")
    with pytest.raises(Exception, match="stop"):
        erase_user(store, "canary")
    with store.connections.write() as db:
        db.execute("DROP TRIGGER refuse")
    assert store.people.get("canary") == person and store.registry.tainted("a") == ()
    assert store.votes.counts()["rewrites"] == 1


@pytest.mark.long
def test_erasing_from_the_command_line_while_another_process_has_the_file_open(store: Store, home: Path) -> None:
    person = store.people.add("canary")
    talk(store, person.id, CANARY)
    ended = subprocess.run(
        [sys.executable, "-m", "feedback_store", "erase-user", "canary", "--yes", "--json", "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["clean"] and told["rows"]["message"] == 3 and told["backups"] == [] and len(told["remains"]) == 1
    assert files_with(home, CANARY) == set()
    assert store.conversations.list(person.id) == []
    talk(store, 1, "And the app goes on?")


def test_an_annotator_is_erased_by_the_name_in_the_imported_file(store: Store) -> None:
    person = store.people.add("imported-0a1b", kind="imported")
    with store.connections.write() as db:
        db.execute("INSERT INTO annotator(person_id, name) VALUES (?, 'Ana Lucía <ana@example.org>')", [person.id])
    talk(store, person.id, CANARY)
    assert erase_user(store, "Ana Lucía <ana@example.org>").rows["annotator"] == 1
    assert [person.name for person in store.people.all()] == ["owner"]
    assert b"Ana Luc" not in store.path.read_bytes()


def test_everybody_of_a_name_is_erased_unless_one_kind_is_meant(store: Store, home: Path) -> None:
    """With an account ben and an imported annotator ben, one was erased, and the other's words stayed unmentioned."""
    account, annotator = store.people.add("ben"), store.people.add("ben-0a1b", kind="imported")
    with store.connections.write() as db:
        db.execute("INSERT INTO annotator(person_id, name) VALUES (?, 'ben')", [annotator.id])
    for person in (account, annotator):
        talk(store, person.id, f"{CANARY}, says {person.kind}")
    learn(store, "one", "of-the-annotator")
    assert find_erasable(store, "ben") == (account, annotator)
    with pytest.raises(BadInput, match="of kind simulated"):
        erase_user(store, "ben", "simulated")
    one = erase_user(store, "ben", "account")
    assert one.persons == (account,) and one.adapters == () and "ben-0a1b (imported" in one.remains[0]
    again = store.people.add("ben")
    talk(store, again.id, CANARY)
    both = erase_user(store, "ben")
    assert both.persons == (again, annotator) and both.adapters == ("of-the-annotator",)
    assert not any("not erased" in sentence for sentence in both.remains)
    assert [person.name for person in store.people.all()] == ["owner"]
    assert files_with(home, CANARY) == set()


def test_the_only_operator_cannot_be_erased_while_others_have_accounts(store: Store) -> None:
    """`role` and `disable` refused it; an erasure left people who log in and nobody who could help them."""
    olga, _ = store.accounts.add("olga", "correct horse", "operator"), store.accounts.add("mina", "correct horse")
    talk(store, olga.id, CANARY)
    for act in (lambda: erase_user(store, "olga"), lambda: find_erasable(store, "olga")):
        with pytest.raises(BadInput, match="olga is the only operator"):
            act()
    assert len(store.conversations.list(olga.id)) == 1
    store.accounts.set_role("mina", "operator")
    assert erase_user(store, "olga").persons == (olga,)
    assert erase_user(store, "mina").clean


def test_nothing_else_in_the_file_changes(store: Store) -> None:
    talk(store, 1, "The owner's question?")
    before = dump(store.path)
    person = store.people.add("canary")
    store.sessions.new_session(person.id)
    talk(store, person.id, CANARY)
    erase_user(store, "canary")
    after = dump(store.path)
    assert {name for name in before if before[name] != after[name]} == {"sqlite_sequence"}
