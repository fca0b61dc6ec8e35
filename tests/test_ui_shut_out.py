"""Somebody is erased or disabled while a reply of theirs is being written: one sentence, a free model, no trace."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Client

from feedback_store.erasure import erase_user
from feedback_store.integrity import verify
from tests.door_support import events_of, open_live, session_of
from tests.test_ui_persons import told_by
from tests.ui_support import World, make_world, play
from ui.replies import Replies
from ui.texts import ENGLISH, KOREAN, Texts

pytestmark = pytest.mark.long
CANARY = "the canary of ada counts the tiles"
PAGES: list[tuple[str, Texts]] = [("", ENGLISH), ("/ko", KOREAN)]
HOW: dict[str, Callable[[World], Any]] = {
    "erased": lambda world: erase_user(world.store, "ada"),
    "disabled": lambda world: world.store.accounts.disable("ada"),
}


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Client]]:
    monkeypatch.setattr(Replies, "keep_every_s", 0.2)
    with open_live(home) as (world, client):
        yield world, client


def wait_until(check: Callable[[], bool], why: str) -> None:
    """Wait for something that the app does."""
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def begin(world: World, client: Client, mount: str, name: str) -> tuple[threading.Thread, list[str]]:
    """Let ada ask something whose reply takes minutes; returns when it is being written.

    Args:
        name: of the event.

    Returns:
        Who reads the stream, and where all that came of it will be.
    """
    ada, told = session_of(world, client, "ada"), list[str]()
    events = {event["api_name"]: event for event in events_of(ada, mount)}
    data: dict[str, list[Any]] = {"ask": [f"{CANARY} " * 200, "plain", "", "", "", ""]}
    data["ask_1"] = data["ask_2"] = data["ask"][:2]
    if name == "retry":
        told_by(ada, events["ask"], [CANARY, "plain", "", "", "", ""], mount)
        (talk,) = world.store.conversations.list(world.store.people.get("ada").id)
        reply = world.store.conversations.thread(talk.id, talk.person_id)[-1]
        data["retry"] = ["plain", reply.id, "", "", ""]
    world.engine.seconds_per_word = 0.3
    reader = threading.Thread(target=lambda: told.append(told_by(ada, events[name], data[name], mount)))
    reader.start()
    wait_until(lambda: any(reply.new_tokens > 1 for reply in world.engine._running), "nothing is being written")
    return reader, told


@pytest.mark.parametrize(("mount", "texts"), PAGES)
@pytest.mark.parametrize("name", ["ask", "retry", "ask_1", "ask_2"])
@pytest.mark.parametrize("how", HOW)
def test_a_reply_to_somebody_who_is_shut_out_ends_in_one_sentence_and_frees_the_model(
    served: tuple[World, Client], mount: str, texts: Texts, name: str, how: str
) -> None:
    """It ran to its end, minutes later, and then the page showed the framework's own error."""
    world, client = served
    reader, told = begin(world, client, mount, name)
    HOW[how](world)
    wait_until(lambda: not world.engine._running, "the model is still writing")
    reader.join(20)
    (came,) = told
    last = came.splitlines()[-1]
    assert texts.escape(texts.shut_out) in last
    assert CANARY not in last
    if how == "erased":
        # in another process: whoever opens a file that SQLite has open drops its locks
        found = subprocess.run(["grep", "-rlF", CANARY, str(world.settings.home)], capture_output=True, text=True)
        assert (found.returncode, found.stdout) == (1, "")
    assert verify(world.store) == []


def test_what_somebody_was_told_until_they_were_disabled_is_kept(served: tuple[World, Client]) -> None:
    world, client = served
    reader, _ = begin(world, client, "", "ask")
    world.store.accounts.disable("ada")
    reader.join(20)
    ada = world.store.people.get("ada").id
    (talk,) = world.store.conversations.list(ada)
    reply = world.store.conversations.thread(talk.id, ada)[-1]
    assert reply.state == "stopped" and reply.text.startswith("You said:")


@pytest.mark.parametrize("page", ["chat", "compare", "rank"])
@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("conversations", "begin_reply"),
        ("conversations", "path_to"),
        ("conversations", "finish_reply"),
        ("people", "is_let_in"),
    ],
)
@pytest.mark.parametrize("first", ["the erasure", "the store"])
def test_an_erasure_at_any_moment_of_a_reply_leaves_a_sentence_and_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, page: str, subject: str, name: str, first: str
) -> None:
    world = make_world(home)
    ada = world.store.people.add("ada").id
    owner = getattr(world.store, subject)
    work, erased = getattr(owner, name), []

    def erase() -> None:
        if not erased:
            erased.append(erase_user(world.store, "ada"))

    def beside(*values: Any) -> Any:
        if first == "the erasure":
            erase()
        done = work(*values)
        erase()
        return done

    monkeypatch.setattr(owner, name, beside)
    if page == "chat":
        notice = play(world.chat.ask(ada, CANARY, "plain", ""))[-1].notice
    elif page == "rank":
        notice = play(world.rank.ask(ada, CANARY, "plain"))[-1].notice
    else:
        notice = play(world.compare.ask(ada, CANARY, "plain"))[-1].notice
    assert erased and notice
    assert world.store.votes.counts()["conversations"] == 0
    world.store.close()
