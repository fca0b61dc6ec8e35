"""A slow database and a flood of logins hold up nobody's stream, and every reply is closed whoever leaves when."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from assistant.fake import FakeEngine
from feedback_store.records import Message
from tests.app_process import running_app
from tests.door_support import PASSWORD, Browser, events_of, open_live, session_of
from tests.new_store import open_in
from tests.ui_support import World, make_world
from ui.chat import View
from ui.door import FORM_COOKIE, form_token

pytestmark = pytest.mark.long
SLOW_S = 0.2
WRITES = ("add_user_message", "begin_reply", "finish_reply")
LONG = " ".join(f"word{number}" for number in range(150))


def slow_down(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, by_s: float) -> None:
    """Let a write of the store take its time first, as one that waits for the disk or for another program."""
    write = getattr(owner, name)

    def slow(*values: Any, **more: Any) -> Any:
        time.sleep(by_s)
        return write(*values, **more)

    monkeypatch.setattr(owner, name, slow)


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An app's parts whose every write is slow, and in which a person may have one reply under way."""
    home.mkdir(parents=True)
    (home / "settings.toml").write_text("[door]\ngenerations_per_account = 1\n")
    made = make_world(home, FakeEngine(seconds_per_word=0.02))
    for name in WRITES:
        slow_down(monkeypatch, made.store.conversations, name, SLOW_S)
    yield made
    made.engine.close()
    made.store.close()


def first_reply(world: World, person: int | None = None) -> Message:
    """The end of somebody's first conversation; of the local owner's, where nobody is named."""
    person = person or world.person
    talk = world.store.conversations.list(person)[-1]
    return world.store.conversations.thread(talk.id, person)[-1]


async def is_closed(world: World) -> bool:
    """Wait for the first reply's end in the store and for its place, and say whether both came."""
    for _ in range(100):
        await asyncio.sleep(0.05)
        if first_reply(world).state != "streaming":
            break
    for _ in range(10):  # the place is given back after the end was stored
        after = world.chat.ask(world.person, "and now", "plain", "")
        refused = (await anext(after)).notice
        await after.aclose()
        if not refused:
            return first_reply(world).state == "stopped"
        await asyncio.sleep(0.05)
    return False


async def follow(views: AsyncGenerator[View]) -> None:
    """Read a stream to its end, as the framework's task does."""
    async for _ in views:
        pass


@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.6])
def test_whoever_is_cancelled_while_a_reply_begins_or_grows_leaves_it_closed(world: World, after_s: float) -> None:
    """In the middle of storing the question, of storing the reply, and of its stream."""

    async def cancel() -> bool:
        task = asyncio.create_task(follow(world.chat.ask(world.person, LONG, "plain", "")))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await is_closed(world)

    assert asyncio.run(cancel())


def test_a_second_cancellation_does_not_stop_the_closing(world: World) -> None:
    async def cancel() -> bool:
        task = asyncio.create_task(follow(world.chat.ask(world.person, LONG, "plain", "")))
        await asyncio.sleep(0.6)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.CancelledError):
            await task
        return await is_closed(world)

    assert asyncio.run(cancel())


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_stream_that_nobody_reads_to_its_end_is_closed(world: World, how: str) -> None:
    async def leave() -> bool:
        views = world.chat.ask(world.person, LONG, "plain", "")
        await anext(views)
        if how == "closed":
            await views.aclose()
        del views
        gc.collect()
        return await is_closed(world)

    assert asyncio.run(leave())


def test_a_loop_that_ends_waits_for_the_closing(world: World) -> None:
    """As when the app is stopped: what is under way is cancelled, and the process must not go before it is stored."""

    async def end_early() -> None:
        task = asyncio.create_task(follow(world.chat.ask(world.person, LONG, "plain", "")))
        await asyncio.sleep(0.6)
        assert not task.done()

    asyncio.run(end_early())
    assert first_reply(world).state == "stopped"


def test_of_two_messages_at_once_one_is_stored_and_the_other_hears_why_not(home: Path) -> None:
    """Both see the same last message; neither may begin a branch beside the other."""
    world = make_world(home, FakeEngine(seconds_per_word=0.02))

    async def ask_twice() -> list[View]:
        first = [view async for view in world.chat.ask(world.person, "one", "plain", "")][-1]
        both = [world.chat.ask(world.person, text, "plain", first.shown) for text in ("two", "three")]
        views = await asyncio.gather(*(anext(views) for views in both))
        for views_left in both:
            await views_left.aclose()
        return list(views)

    views = asyncio.run(ask_twice())
    assert sorted(bool(view.notice) for view in views) == [False, True]
    (talk,) = world.store.conversations.list(world.person)
    assert len(world.store.conversations.thread(talk.id, world.person)) == 4
    world.engine.close()
    world.store.close()


# --- over HTTP


class Stream:
    """Reads somebody's stream in a thread and keeps when each part came."""

    def __init__(self, browser: Browser, text: str) -> None:
        self.came: list[float] = []
        self.ended = False
        self._browser = browser
        ask = next(event for event in events_of(browser) if event["api_name"] == "ask")
        assert browser.event(ask["id"], [text, "plain", "", "", "", ""], queued=True).status_code == 200
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        path = f"/gradio_api/queue/data?session_hash={self._browser.page}"
        headers = self._browser._headers({})
        with self._browser.client.stream("GET", path, headers=headers) as stream:
            for line in stream.iter_lines():
                if "process_generating" in line:
                    self.came.append(time.monotonic())
                if "process_completed" in line:
                    self.ended = True
                    return

    def wait(self, parts: int) -> None:
        """Wait until so many parts have come."""
        deadline = time.monotonic() + 30
        while len(self.came) < parts:
            assert time.monotonic() < deadline, "the stream did not grow"
            time.sleep(0.01)

    def longest_gap(self, since: float, until: float) -> float:
        """The longest time within these in which nothing came, in seconds."""
        times = [since, *(when for when in self.came if since < when < until), until]
        return max(after - before for before, after in zip(times, times[1:], strict=False))

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        assert self.ended


@pytest.fixture
def served(home: Path) -> Iterator[tuple[World, httpx.Client]]:
    with open_live(home, events_per_minute=100_000, requests_at_once=1000) as (world, client):
        world.engine.seconds_per_word = 0.03
        yield world, client


def slowest_health(client: httpx.Client, until: Callable[[], bool]) -> float:
    """Ask for /healthz again and again; returns the longest that it took, in seconds."""
    longest = 0.0
    while not until():
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.02)
    return longest


@pytest.mark.timed
def test_a_slow_database_stops_neither_health_nor_another_persons_stream(
    served: tuple[World, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's question, its reply and their vote each wait for the disk."""
    world, client = served
    ada, ben = session_of(world, client, "ada"), session_of(world, client, "ben")
    Stream(ada, "which reply").join()
    reply = first_reply(world, world.store.people.get("ada").id)
    other = Stream(ben, LONG)
    other.wait(3)
    for name in WRITES:
        slow_down(monkeypatch, world.store.conversations, name, 1.0)
    slow_down(monkeypatch, world.store.votes, "rate", 1.0)
    began = time.monotonic()
    asked = Stream(ada, "short")
    with ThreadPoolExecutor(1) as aside:
        vote = aside.submit(ada.event, thumb_up(ada), ["", reply.id, ""])
        health = slowest_health(client, lambda: asked.ended)
        assert vote.result().status_code == 200
    ended, under_way = time.monotonic(), not other.ended
    world.engine.close()
    asked.join()
    other.join()
    assert ended - began > 3, "the writes were slow"
    assert under_way
    assert health < 0.8
    assert other.longest_gap(began, ended) < 0.8


@pytest.mark.timed
def test_votes_that_wait_for_the_database_keep_nobody_elses_question_waiting(
    served: tuple[World, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than the framework has threads, as when a class votes while a large file is being imported."""
    world, client = served
    ada, ben = session_of(world, client, "ada"), session_of(world, client, "ben")
    Stream(ada, "which reply").join()
    reply = first_reply(world, world.store.people.get("ada").id)
    slow_down(monkeypatch, world.store.votes, "rate", 3.0)
    number = thumb_up(ada)
    with ThreadPoolExecutor(48) as pool:
        votes = [pool.submit(ada.event, number, ["", reply.id, ""]) for _ in range(48)]
        time.sleep(1)  # until all wait
        began = time.monotonic()
        answer = Stream(ben, "hello")
        health = slowest_health(client, lambda: answer.ended)
        took = time.monotonic() - began
        assert not all(vote.done() for vote in votes)
        assert {vote.result().status_code for vote in votes} == {200}
    answer.join()
    assert took < 2.5, "ten words at thirty in a second"
    assert health < 1.5


def thumb_up(browser: Browser) -> int:
    """The number of the page's event for a thumb up."""
    return next(int(event["id"]) for event in events_of(browser) if event["api_name"] == "thumb_up")


@pytest.mark.timed
def test_fifty_logins_at_once_do_not_hold_up_a_stream(home: Path) -> None:
    """In a process of its own, so that what is measured is the app and not this test."""
    store = open_in(home / "nightschool.db")
    store.accounts.add("olga", PASSWORD, "operator")
    store.accounts.add("ada", PASSWORD)
    store.close()
    (home / "settings.toml").write_text("[door]\nlogins_per_address = 1000\n")
    # one client for the flood, made before: fifty would keep this process too busy to read the stream
    with running_app(home) as (address, _), make_client(address) as client, make_client(address) as flood:
        ada = Browser(client)
        assert ada.log_in("ada").status_code == 303
        stream = Stream(ada, LONG)
        stream.wait(5)
        began = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            tries = [pool.submit(fail_to_log_in, flood, f"name{number}") for number in range(50)]
            statuses = [one.result() for one in tries]
        ended = time.monotonic()
        under_way = not stream.ended
        stream.join()
        assert under_way
        assert set(statuses) <= {401, 503}
        assert statuses.count(401) >= 20
        assert stream.longest_gap(began, ended) < 1, "between two tokens"


def make_client(address: str) -> httpx.Client:
    """A client with patience."""
    return httpx.Client(base_url=address, timeout=60)


def fail_to_log_in(client: httpx.Client, name: str) -> int:
    """Try a wrong password; returns the status."""
    fields = {"name": name, "password": "a wrong one", "token": form_token("key", "/login")}
    return client.post("/login", data=fields, headers={"cookie": f"{FORM_COOKIE}=key"}).status_code
