"""Strings and bodies that break things, sent to the running app raw: none is an error of ours, none changes on its way.

Refused in words, and not stored: what is blank, since it says nothing, and what holds a NUL, which other programs cut
texts at. Half a surrogate pair has no bytes; the guard refuses it.
"""

import html
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from httpx import Client

from feedback_store.integrity import verify
from feedback_store.records import Message
from tests.door_support import Browser, events_of, open_app, open_live, session_of
from tests.shared_data import hostile_bodies, hostile_strings, needs_data
from tests.test_ui_persons import told_by
from tests.ui_support import World
from ui.texts import ENGLISH

pytestmark = [needs_data, pytest.mark.long]
FORM = "application/x-www-form-urlencoded"
AT_ONCE = 8
NUL = "before\0after"


def test_every_body_gets_an_answer_that_is_no_error_of_ours(home: Path) -> None:
    """Each as JSON and as what it says it is not, where events and forms are awaited."""
    with open_app(home, events_per_minute=1_000_000) as (world, client):
        olga, nobody = session_of(world, client, "olga"), Browser(client)
        for body in (*hostile_bodies(), *(text.encode() for text in hostile_strings())):
            for path in ("queue/join", "run/predict"):
                statuses = [olga.raw(body, path).status_code, olga.raw(body, path, "text/plain").status_code]
                assert all(400 <= status < 500 for status in statuses), body[:80]
            for content_type in (FORM, "application/json"):
                answer = nobody.ask("POST", "/login", content=body, headers={"content-type": content_type})
                assert 400 <= answer.status_code < 500, body[:80]
        token = nobody.token_for("/login")["token"]
        for text in hostile_strings():
            fields = f"token={token}&name={quote(text)}&password={quote(text)}".encode()
            answer = nobody.ask("POST", "/login", content=fields, headers={"content-type": FORM})
            assert 400 <= answer.status_code < 500, text
            assert f"value='{html.escape(text[:100])}'" in answer.text, text
        assert olga.get("/config").status_code == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Client]]:
    home = tmp_path_factory.mktemp("app") / "home"
    with open_live(home, events_per_minute=1_000_000, generations_per_account=AT_ONCE) as opened:
        yield opened


def queued(browser: Browser, event: dict[str, Any], data: list[Any]) -> list[Any]:
    """Send an event and return what it fills in the end; a stream's lines end only where its protocol says."""
    assert browser.event(event["id"], data, queued=True).status_code == 200
    told = b""
    path = f"/gradio_api/queue/data?session_hash={browser.page}"
    with browser.client.stream("GET", path, headers=browser._headers({})) as stream:
        for part in stream.iter_bytes():
            told += part
            if b'"process_completed"' in told and told.endswith(b"\n\n"):
                break
    last = next(line for line in told.split(b"\n") if b'"process_completed"' in line)
    completed = json.loads(last.removeprefix(b"data:"))
    assert completed["success"], last
    filled: list[Any] = completed["output"]["data"]
    return filled


def stored(world: World, name: str) -> list[tuple[Message, Message]]:
    """Every question of somebody's chats with its answer."""
    person = world.store.people.get(name).id
    talks = world.store.conversations.list(person, limit=10_000)
    threads = [world.store.conversations.thread(talk.id, person) for talk in talks]
    return [(thread[0], thread[1]) for thread in threads]


def test_every_string_is_stored_and_shown_byte_for_byte(served: tuple[World, Client]) -> None:
    world, client = served
    strings = [*hostile_strings(), NUL]
    ask = next(event for event in events_of(session_of(world, client, "ada")) if event["api_name"] == "ask")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = pool.map(
            lambda text: queued(session_of(world, client, "ada"), ask, [text, "plain", "", "", "", ""]), strings
        )
        answers = dict(zip(strings, sent, strict=True))
    blank = [text for text in strings if not text.strip()]
    kept = [text for text in strings if text.strip() and text != NUL]
    for text in (*blank, NUL):
        says = "cannot be stored" if text == NUL else ENGLISH.empty_message
        assert says in str(answers[text][2]) and answers[text][3] == text
    pairs = stored(world, "ada")
    assert Counter(question.text.encode() for question, _ in pairs) == Counter(text.encode() for text in kept)
    for question, reply in pairs:
        assert reply.origin and reply.text == f"You said: {question.text} (base, seed {reply.origin.seed})"
    for text in set(kept):
        shown = answers[text][0]["value"][0]["content"][0]["text"]
        assert html.unescape(shown) == f"<pre class='typed'>{text}</pre>"
    assert verify(world.store) == []


def test_strings_are_kept_as_comments_and_as_better_answers(served: tuple[World, Client]) -> None:
    """By turns the one and the other."""
    world, client = served
    ben, person = session_of(world, client, "ben"), world.store.people.get("ben").id
    events = {event["api_name"]: event for event in events_of(ben)}
    queued(ben, events["ask"], ["hello", "plain", "", "", "", ""])
    [(_, reply)] = stored(world, "ben")
    told_by(ben, events["thumb_up"], ["", reply.id, ""])
    strings = hostile_strings()
    for comment, text in zip(strings[::2], strings[1::2], strict=False):
        told_by(ben, events["explain"], ["", reply.id, ["other"], comment])
        given = world.store.votes.get(reply.id, person)
        assert given and given.comment == comment
        answer = told_by(ben, events["rewrite"], ["", reply.id, text])
        written = world.store.votes.get_rewrite(reply.id, person)
        assert (written and written.text == text) or (not text.strip() and "is empty" in answer)
    assert verify(world.store) == []
