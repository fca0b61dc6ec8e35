"""/v1 for other programs, in the forms of OpenAI's API: replies as people get them, stored, and open to votes.

The guard says who asks. What a caller supplies as earlier turns is stored as the caller's, in conversations of a kind
of their own that teach only where the operator allows it.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from assistant.engine import SERVER, Reply, Sampling
from assistant.errors import AssistantError, EngineBusy, PromptTooLong
from assistant.settings import Settings
from assistant.wire import OVERFLOW
from feedback_store import Store
from feedback_store.checks import check_text
from feedback_store.errors import BadInput, NotYours, StoreError
from feedback_store.records import Message, Origin, Person
from ui.api_wire import (
    MOST_CHOICES,
    Asked,
    BadRequest,
    choice,
    chunk,
    completion,
    error_body,
    event,
    read_completion,
    read_feedback,
    usage_of,
)
from ui.door import Visit
from ui.replies import API_PRESET, Draft, Replies, TooManyReplies, distinct_seeds

CALLER: Final = "caller"
"""The base of a reply that a caller supplied: who wrote it is not known."""
POLL_S: Final = 0.02
"""How soon an end or a hang-up is heard where nothing is streamed."""
WHOLE: Final = ("stop", "length")
"""How a reply ends that neither failed nor was stopped; clients know them by the same words."""
Handler = Callable[[Request], Awaitable[Response]]
Told = tuple[int, str, str | None, str | None]
"""Status, sentence, code and parameter of an error."""


def add_api_routes(app: FastAPI, replies: Replies, store: Store, settings: Settings, base_id: str) -> None:
    """Add the routes of /v1 to an app whose guard says who asks; `base_id` is the engine's."""
    api = Api(replies, store, settings, base_id)
    app.get("/v1/models")(_answered(api.models))
    app.post("/v1/chat/completions")(_answered(api.completions))
    app.post("/v1/feedback")(_answered(api.feedback))


class Api:
    """What /v1 can do for whoever asks."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, base_id: str) -> None:
        self._replies = replies
        self._store = store
        self._base_id = base_id
        self._sampling = settings.sampling
        self._max_chars = settings.max_message_chars
        self._teaches = settings.door.api_teaches

    async def models(self, request: Request) -> Response:
        """List what may be asked for: what is live, the base, and every adapter that may answer."""
        found = await self._replies.in_thread(self._models)
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "nightschool"} for name in found]
        return JSONResponse({"object": "list", "data": listed})

    async def feedback(self, request: Request) -> Response:
        """Store a thumb on a reply that this caller received."""
        message_id, value, reasons, comment = read_feedback(await request.body())
        rate = functools.partial(self._store.votes.rate, message_id, _person(request).id, value, reasons, comment)
        vote = await self._replies.in_thread(rate)
        rating = {1: "up", -1: "down", 0: None}[vote.value]
        return JSONResponse(
            {"message_id": message_id, "rating": rating, "reasons": list(vote.reasons), "comment": vote.comment}
        )

    async def completions(self, request: Request) -> Response:
        """Answer with a reply or several, streamed or whole."""
        wanted = self._sampling
        defaults = Sampling(wanted.temperature, wanted.top_p, wanted.max_new_tokens)
        asked = read_completion(await request.body(), defaults, distinct_seeds(MOST_CHOICES))
        with ExitStack() as held:
            begin = functools.partial(self._begin, held, asked, _person(request), limited=not _is_owner(request))
            drafts = await self._replies.in_thread(begin)
            about = _about(drafts)
            if asked.streams:
                ending = AsyncExitStack()
                ending.enter_context(held.pop_all())
                ending.push_async_callback(self._replies.end, *drafts)
                return EndedStream(_streamed(drafts, about, ending, usage_at_end=asked.usage_at_end), ending)
            try:
                return await _whole(request, drafts, about)
            finally:
                await self._replies.end(*drafts)

    def _begin(self, held: ExitStack, asked: Asked, person: Person, *, limited: bool) -> list[Draft]:
        """Store the turns and begin the replies; `held` is what replies under way hold.

        Raises:
            BadRequest, TooManyReplies, AssistantError, StoreError: nothing was begun.
        """
        question = asked.turns[-1]["content"]
        if len(question) > self._max_chars:
            said = f"The last message has {len(question):,} characters and {self._max_chars:,} fit; shorten it."
            raise BadRequest(said, code=OVERFLOW, param="messages")
        for text in (asked.system, *(turn["content"] for turn in asked.turns)):
            check_text(text, "The message")  # the engine would fail on what the store refuses
        adapter = self._adapter(asked.model)
        turn = held.enter_context(self._replies.place(person.id, limited=limited))
        record = functools.partial(self._record, asked, person)
        return self._replies.answer(asked.turns, asked.system, asked.samplings, adapter, person.id, record, turn)

    def _record(self, asked: Asked, person: Person) -> Message:
        """Store the caller's turns as a conversation; returns the question."""
        conversations = self._store.conversations
        with self._store.connections.write():  # all or nothing
            talk = conversations.start(person.id, kind="api").id
            if not self._teaches:
                self._store.consent.set_conversation(talk, person.id, "off")
            last: Message | None = None
            for turn in asked.turns:
                before = last.id if last else None
                if turn["role"] == "user":
                    last = conversations.add_user_message(talk, person.id, turn["content"], before)
                else:
                    assert before, "a reply follows a question"
                    last = conversations.begin_reply(before, person.id, _callers_own(asked.system))
                    conversations.finish_reply(last.id, turn["content"], "done", None, None)
            assert last, "there is a question"
            return last

    def _adapter(self, model: str) -> str | None:
        """Find the adapter that a caller names.

        Raises:
            BadRequest: there is none of that name that may answer.
        """
        if model == "base":
            return None
        if model == "live":
            return self._store.registry.live().adapter_id
        if model not in self._models():
            raise BadRequest(
                f"There is no model {model[:100]!r} here; GET /v1/models lists those there are.",
                404,
                "model_not_found",
                "model",
            )
        return model

    def _models(self) -> list[str]:
        registry = self._store.registry
        fitting = [a for a in registry.adapters() if a.base_id == self._base_id or self._base_id.startswith(SERVER)]
        return ["live", "base", *(a.id for a in fitting if a.state == "ready" and not registry.tainted(a.id))]


class EndedStream(StreamingResponse):
    """A stream whose end is heard however it comes: also where its reader is gone before it begins."""

    def __init__(self, parts: AsyncIterator[bytes], ending: AsyncExitStack) -> None:
        super().__init__(parts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and end what it shows."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._ending.aclose()


async def _whole(request: Request, drafts: list[Draft], about: Mapping[str, Any]) -> Response:
    """Wait for all replies; a caller who hangs up ends them."""
    while not all(draft.reply.done for draft in drafts):
        if await request.is_disconnected():
            return Response(status_code=499)
        await asyncio.sleep(POLL_S)
    failed = next((draft.reply for draft in drafts if draft.reply.finish not in WHOLE), None)
    if failed:
        return _error(*_why(failed))
    choices = [choice(i, d.message.id, d.reply.text, str(d.reply.finish)) for i, d in enumerate(drafts)]
    return JSONResponse(completion({**about, **_left_out(drafts)}, choices, _usage(drafts)))


async def _streamed(
    drafts: list[Draft], about: Mapping[str, Any], ending: AsyncExitStack, *, usage_at_end: bool
) -> AsyncIterator[bytes]:
    """The parts of all replies, token by token as they come, and their ends.

    The replies are stored and their place is free before the last word: whoever reads it may rate or ask at once.
    """
    parts: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def follow(index: int, message_id: str, reply: Reply) -> None:
        part = functools.partial(chunk, about, index, message_id)
        parts.put_nowait(event(part({"role": "assistant", "content": ""})))
        async for text in reply.growth():
            parts.put_nowait(event(part({"content": text})))
        if reply.finish in WHOLE:
            parts.put_nowait(event({**part({}, reply.finish), **_left_out(drafts)}))
        else:
            parts.put_nowait(event(error_body(*_why(reply))))
        parts.put_nowait(None)

    followers = [
        asyncio.create_task(follow(index, draft.message.id, draft.reply)) for index, draft in enumerate(drafts)
    ]
    try:
        left = len(followers)
        while left:
            part = await parts.get()
            if part is None:
                left -= 1
            else:
                yield part
    finally:
        for follower in followers:
            follower.cancel()
    await ending.aclose()
    if usage_at_end:
        last = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(drafts)}
        yield event({**about, **_left_out(drafts), **last})
    yield event("[DONE]")


def _why(reply: Reply) -> Told:
    """What is told of a reply that failed or was stopped."""
    if reply.refusal:
        return _refused(reply.refusal)
    return 500, reply.error or "The reply was stopped; ask again.", None, None


def _refused(error: AssistantError) -> Told:
    """What is told of what the engine does not begin."""
    if isinstance(error, EngineBusy):
        return 503, str(error), "overloaded", None
    if isinstance(error, PromptTooLong):
        return 400, str(error), OVERFLOW, "messages"
    return 500, str(error), None, None


def _usage(drafts: list[Draft]) -> dict[str, int]:
    return usage_of(drafts[0].reply.prompt_tokens, sum(draft.reply.new_tokens for draft in drafts))


def _left_out(drafts: list[Draft]) -> dict[str, int]:
    """How many of the earliest turns the model did not see, where the conversation outgrew its context."""
    most = max(draft.reply.dropped_turns for draft in drafts)
    return {"dropped_turns": most} if most else {}


def _about(drafts: list[Draft]) -> dict[str, Any]:
    """What every part of an answer says: its id is the first reply's."""
    origin = drafts[0].message.origin
    model = (origin.adapter_id if origin else None) or "base"
    return {"id": drafts[0].message.id, "created": int(time.time()), "model": model}


def _callers_own(system: str) -> Origin:
    """The origin of a reply that the caller supplied."""
    return Origin(None, CALLER, "unknown", API_PRESET, system, 0.0, 1.0, 0, 0)


def _person(request: Request) -> Person:
    person: Person = request.scope["state"]["person"]
    return person


def _is_owner(request: Request) -> bool:
    visit: Visit = request.scope["state"]["visit"]
    return visit.is_local_owner


def _answered(handler: Handler) -> Handler:
    """Let a handler's refusals be answers in the form that clients read."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(error.status, str(error), error.code, error.param)
        except TooManyReplies:
            said = "As many replies as one account may have are under way; wait for one to end."
            return _error(429, said, "rate_limit_exceeded")
        except AssistantError as error:
            return _error(*_refused(error))
        except NotYours:
            return _error(404, "You have received no such reply; name the id of one.", None, "message_id")
        except BadInput as error:
            return _error(400, str(error), None)
        except StoreError as error:
            return _error(503, str(error), None)

    return answer


def _error(status: int, sentence: str, code: str | None, param: str | None = None) -> JSONResponse:
    headers = {"Retry-After": "5"} if status in (429, 503) else None
    return JSONResponse(error_body(status, sentence, code, param), status, headers)
