"""Desks over the scripted engine and a real store, for the quick tests of the web app."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from assistant.engine import Reply, Request
from assistant.fake import FakeEngine, echo_script
from assistant.settings import Settings, load_settings
from feedback_store import Store
from feedback_store.records import Person
from tests.new_store import open_in
from ui.chat import ChatDesk
from ui.compare import CompareDesk
from ui.door import Visit
from ui.feedback import FeedbackDesk
from ui.nights import Nights
from ui.operate import OperateDesk
from ui.rank import RankDesk
from ui.replies import Replies
from ui.texts import ENGLISH

Shown = TypeVar("Shown")


class RefusingEngine(FakeEngine):
    """Refuses every request with one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Refuse."""
        raise self.error


@dataclass
class World:
    """One app's parts without the app."""

    engine: FakeEngine
    store: Store
    settings: Settings
    replies: Replies
    chat: ChatDesk
    votes: FeedbackDesk
    compare: CompareDesk
    rank: RankDesk
    operate: OperateDesk
    nights: Nights

    @property
    def person(self) -> int:
        """The local owner."""
        return self.store.people.owner().id


def make_world(home: Path, engine: FakeEngine | None = None) -> World:
    """Put an app's parts together over a home folder."""
    settings = load_settings(home)
    store = open_in(settings.database_path)
    engine = engine or FakeEngine()
    replies = Replies(engine, store, settings)
    nights = Nights(settings.home, settings.runs_dir)
    return World(
        engine,
        store,
        settings,
        replies,
        ChatDesk(replies, store, settings, ENGLISH),
        FeedbackDesk(store, ENGLISH),
        CompareDesk(replies, store, settings, ENGLISH),
        RankDesk(replies, store, settings, ENGLISH),
        OperateDesk(store, nights, settings, engine.base_id, ENGLISH),
        nights,
    )


def request_of(world: World, person: Person | None = None) -> Any:
    """A request as the guard lets it through to a handler: the local owner's, or that of somebody logged in."""
    visit = Visit(person, "token") if person else Visit(world.store.people.owner(), is_local_owner=True)
    return SimpleNamespace(request=SimpleNamespace(scope={"state": {"person": visit.person, "visit": visit}}))


def play(views: AsyncGenerator[Shown], after_each: Callable[[Shown], None] = lambda _: None) -> list[Shown]:
    """Run a streaming handler to its end and return all that it showed."""

    async def collect() -> list[Shown]:
        shown = []
        async for view in views:
            shown.append(view)
            after_each(view)
        return shown

    return asyncio.run(collect())


def leave_after(views: AsyncGenerator[Shown], count: int) -> None:
    """Run a streaming handler for some steps, then close it as a closed tab does."""

    async def look() -> None:
        for _ in range(count):
            await anext(views)
        await views.aclose()

    asyncio.run(look())


def fixed_script(*texts: str) -> Callable[[Request], str]:
    """Replies one after the other; the last one for ever."""
    left = list(texts)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def socratic_script(request: Request) -> str:
    """Tell the system prompt that was read."""
    return f"{echo_script(request)} | {request.messages[0]['content'][:20]}"
