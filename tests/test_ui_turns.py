"""How much one person may have written at once: one reply is, another waits its turn, a third is refused in words."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from assistant.errors import EngineBusy
from assistant.fake import FakeEngine, echo_script
from feedback_store.errors import StoreError
from tests.ui_support import RefusingEngine, World, leave_after, make_world, play
from ui.texts import ENGLISH

Shown = TypeVar("Shown")


@pytest.fixture
def single(home: Path) -> Iterator[World]:
    home.mkdir(parents=True)
    (home / "settings.toml").write_text("[door]\ngenerations_per_account = 1\n")
    world = make_world(home, FakeEngine(seconds_per_word=0.02))
    yield world
    world.engine.close()
    world.store.close()


async def last_of(views: AsyncGenerator[Shown]) -> Shown:
    return [view async for view in views][-1]


def test_one_reply_too_many_is_refused_in_words_and_its_text_stays(single: World) -> None:
    ada, ben = single.store.people.add("ada").id, single.store.people.add("ben").id

    async def play_it() -> None:
        under_way = single.chat.ask(ada, "long " * 100, "plain", "")
        await anext(under_way)
        stored = single.store.conversations.list(ada)
        refused = await last_of(single.chat.ask(ada, "one more", "plain", ""))
        assert (refused.notice, refused.keep) == (ENGLISH.too_many_replies, "one more")
        compared = await last_of(single.compare.ask(ada, "one more", "plain"))
        assert (compared.notice, compared.keep) == (ENGLISH.too_many_replies, "one more")
        ranked = await last_of(single.rank.ask(ada, "one more", "plain"))
        assert (ranked.stage, ranked.notice, ranked.keep) == ("same", ENGLISH.too_many_replies, "one more")
        assert single.store.conversations.list(ada) == stored
        assert (await last_of(single.chat.ask(ben, "mine", "plain", ""))).notice == ""
        assert (await last_of(single.chat.ask(ada, "free", "plain", "", limited=False))).notice == ""
        await under_way.aclose()
        answered = await last_of(single.chat.ask(ada, "now", "plain", ""))
        assert answered.notice == ""
        assert (await last_of(single.chat.retry(ada, "plain", answered.shown))).notice == ""

    asyncio.run(play_it())


@pytest.fixture
def slow(home: Path) -> Iterator[World]:
    world = make_world(home, FakeEngine(seconds_per_word=0.02))
    yield world
    world.engine.close()
    world.store.close()


def test_of_one_persons_replies_one_is_written_and_one_waits_its_turn(slow: World) -> None:
    """Both were written at once, though the setting said one and one that waits. A comparison's two count as one."""
    ada, ben = slow.store.people.add("ada").id, slow.store.people.add("ben").id
    asked: list[str] = []
    slow.engine.script = lambda request: (asked.append(request.messages[-1]["content"]), echo_script(request))[1]

    async def play_it() -> None:
        first, second = slow.chat.ask(ada, "long " * 100, "plain", ""), slow.compare.ask(ada, "two", "plain")
        await anext(first)
        waiting = await anext(second)
        assert (waiting.stage, waiting.left + waiting.right) == ("running", 2 * " ▍")
        assert waiting.notice == ENGLISH.waits_its_turn
        assert (await last_of(slow.chat.ask(ada, "a third", "plain", ""))).notice == ENGLISH.too_many_replies
        assert (await last_of(slow.chat.ask(ben, "mine", "plain", ""))).path[-1].state == "done"
        assert asked == ["long " * 100, "mine"], "the engine has not heard of the comparison"
        slow.chat.stop(ada, slow.chat.open(ada).shown)
        assert (await last_of(first)).path[-1].state == "stopped"
        ended = await last_of(second)
        assert (ended.stage, ended.notice) == ("choosing", "")

    asyncio.run(play_it())


def test_a_reply_that_waits_is_shown_as_such_and_can_be_stopped_and_left(slow: World) -> None:
    ada = slow.store.people.add("ada").id

    async def play_it() -> None:
        first = slow.compare.ask(ada, "long " * 100, "plain")
        await anext(first)
        second = slow.chat.ask(ada, "two", "plain", "")
        waiting = await anext(second)
        assert waiting.busy and waiting.path[-1].text.startswith(ENGLISH.waits_its_turn)
        slow.chat.stop(ada, waiting.shown)
        stopped = (await last_of(second)).path[-1]
        assert (stopped.state, stopped.text) == ("stopped", "")
        left = slow.chat.ask(ada, "three", "plain", "")
        await anext(left)
        await left.aclose()
        retried = slow.chat.retry(ada, "plain", waiting.shown)
        assert (await anext(retried)).path[-1].text.startswith(ENGLISH.waits_its_turn)
        await first.aclose()
        ended = (await last_of(retried)).path[-1]
        assert (ended.state, ended.text[:13]) == ("done", "You said: two")

    asyncio.run(play_it())


def test_what_the_engine_refuses_when_its_turn_comes_ends_as_failed_and_says_why(slow: World) -> None:
    ada = slow.store.people.add("ada").id

    async def play_it() -> None:
        first = slow.compare.ask(ada, "long " * 100, "plain")
        await anext(first)
        second = slow.chat.ask(ada, "two", "plain", "")
        await anext(second)
        slow.engine.max_chars = 0
        await first.aclose()
        ended = await last_of(second)
        why = "The message is longer than the model's context. Shorten it and send it again."
        assert (ended.path[-1].state, ended.notice) == ("failed", why)

    asyncio.run(play_it())


def test_a_retry_too_many_is_refused_too(single: World) -> None:
    ada = single.store.people.add("ada").id

    async def play_it() -> None:
        answered = await last_of(single.chat.ask(ada, "one", "plain", ""))
        under_way = single.compare.ask(ada, "long " * 100, "plain")
        await anext(under_way)
        refused = await last_of(single.chat.retry(ada, "plain", answered.shown))
        assert (refused.notice, refused.path) == (ENGLISH.too_many_replies, answered.path)
        await under_way.aclose()

    asyncio.run(play_it())


def test_a_round_counts_as_one_and_a_place_is_always_given_back(single: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = single.store.people.add("ada").id
    assert play(single.compare.ask(ada, "which", "plain"))[-1].stage == "choosing"
    leave_after(single.chat.ask(ada, "a closed tab " * 20, "plain", ""), 2)
    leave_after(single.compare.ask(ada, "a closed tab " * 20, "plain"), 2)
    leave_after(single.rank.ask(ada, "a closed tab " * 20, "plain"), 2)
    for fails in ("add_user_message", "begin_reply"):
        with monkeypatch.context() as patch:
            patch.setattr(single.store.conversations, fails, full)
            assert "full" in play(single.chat.ask(ada, "no room", "plain", ""))[-1].notice
            assert "full" in play(single.compare.ask(ada, "no room", "plain"))[-1].notice
            assert "full" in play(single.rank.ask(ada, "no room", "plain"))[-1].notice
    with monkeypatch.context() as patch:
        patch.setattr(single.store.conversations, "finish_reply", full)
        with pytest.raises(StoreError):
            play(single.chat.ask(ada, "no room for its end", "plain", ""))
    assert play(single.chat.ask(ada, "and now", "plain", ""))[-1].notice == ""


def full(*_: object, **__: object) -> None:
    raise StoreError("The disk is full.")


def test_what_the_engine_refuses_gives_its_place_back(home: Path) -> None:
    world = make_world(home, RefusingEngine(EngineBusy("Too many.")))
    for _ in range(world.settings.door.generations_per_account + 1):
        assert play(world.chat.ask(world.person, "hello", "plain", ""))[-1].notice == "Too many."
        assert play(world.compare.ask(world.person, "hello", "plain"))[-1].notice == "Too many."
    world.store.close()
