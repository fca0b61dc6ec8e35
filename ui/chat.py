"""The chat page: handlers over engine and store above, wiring below; its layout is in chat_layout.py.

The browser sends ids and choices; who said what comes from the database. `shown` is the id of the last message
on screen: the path from it up to the root is the page.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync

from assistant.errors import AssistantError
from assistant.presets import PRESETS
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import NotYours, StoreError
from feedback_store.records import Message
from ui.bubbles import bubbles, thumb
from ui.chat_layout import ChatParts
from ui.door import is_limited, visitor
from ui.events import CLOSE_SIDEBAR_JS, KEEP_DRAFT_JS, LEAVE_JS, REMEMBER_JS, SHORT, STREAMED
from ui.feedback import (
    FeedbackDesk,
    Panel,
    meanwhile_updates,
    notice_update,
    panel_updates,
    settled_updates,
    wire_votes,
)
from ui.history import history_update
from ui.own import NOBODY, own_path, own_versions
from ui.replies import Draft, Replies, TooManyReplies
from ui.teaching import TeachDesk, TeachPage, wire_teaching
from ui.texts import Texts
from ui.view import View

CURSOR = " ▍"
Begun = tuple[Message, Draft]
"""A question and its reply under way."""


class ChatDesk:
    """What the chat page can do for the person who asks, without the page."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, texts: Texts) -> None:
        self._replies = replies
        self._store = store
        self._max_chars = settings.max_message_chars
        self._texts = texts

    def open(self, person: int, conversation_id: str = "") -> View:
        """Show a conversation's newest branch; without an id, or with a foreign one, the latest conversation."""
        if conversation_id:
            try:
                return self._view(person, self._store.conversations.thread(conversation_id, person))
            except StoreError:
                pass  # an old link: the latest conversation is a better answer than an error
        for conversation in self._store.conversations.list(person, limit=1):
            return self._view(person, self._store.conversations.thread(conversation.id, person))
        return View()

    def at(self, person: int, shown: str) -> View:
        """Show the path that ends in a message of this person.

        Raises:
            StoreError: there is no such message of theirs.
        """
        return self._view(person, own_path(self._store, person, shown)) if shown else View()

    async def ask(
        self, person: int, text: str, preset: str, shown: str, *, limited: bool = True
    ) -> AsyncGenerator[View]:
        """Store the message, then stream its reply. Refusals are sentences in `notice` and keep the text.

        Args:
            limited: whether this person may have only so many replies under way.
        """
        with ExitStack() as held:
            begin = partial(self._begin_ask, held, person, text, preset, shown, limited=limited)
            begun = await self._replies.in_thread(begin)
            if isinstance(begun, View):
                yield begun
                return
            async with aclosing(self._stream(person, *begun, clear="")) as views:
                async for view in views:
                    yield view

    def _begin_ask(
        self, held: ExitStack, person: int, text: str, preset: str, shown: str, *, limited: bool
    ) -> Begun | View:
        """Store the message and begin its reply, or say why not; `held` is what a reply under way holds."""
        with self._replies.one_by_one:
            try:
                if refusal := self._refusal(person, text, shown):
                    return replace(self.at(person, shown), notice=refusal, keep=text, own=None)
                if newest := self._gone_on(person, shown):
                    return replace(newest, keep=text)
                path = own_path(self._store, person, shown) if shown else []
                turn = held.enter_context(self._replies.place(person, limited=limited))
                record = partial(self._record, person, text, path)
                question, [draft] = self._replies.ask(path, text, preset, person, record, turn)
                return question, draft
            except TooManyReplies:
                return replace(self.at(person, shown), notice=self._texts.too_many_replies, keep=text)
            except AssistantError as error:
                return replace(self.at(person, shown), notice=self._texts.error(error), keep=text)
            except StoreError as error:
                return replace(self.open(person), notice=self._texts.error(error), keep=text)

    async def retry(self, person: int, preset: str, shown: str, *, limited: bool = True) -> AsyncGenerator[View]:
        """Stream another version of the last reply; the earlier ones stay.

        Args:
            limited: whether this person may have only so many replies under way.
        """
        with ExitStack() as held:
            begin = partial(self._begin_retry, held, person, preset, shown, limited=limited)
            begun = await self._replies.in_thread(begin)
            if isinstance(begun, View):
                yield begun
                return
            async with aclosing(self._stream(person, *begun, clear=None)) as views:
                async for view in views:
                    yield view

    def _begin_retry(self, held: ExitStack, person: int, preset: str, shown: str, *, limited: bool) -> Begun | View:
        """Begin another version of the last reply, or say why not."""
        with self._replies.one_by_one:
            try:
                path = own_path(self._store, person, shown) if shown else []
                newest = self._gone_on(person, shown)
            except StoreError as error:
                return replace(self.open(person), notice=self._texts.error(error))
            if newest:
                return newest
            if not path or self.writing(person, shown):
                return replace(self.at(person, shown), notice=self._texts.nothing_to_retry)
            question = path[-1] if path[-1].role == "user" else path[-2]
            try:
                turn = held.enter_context(self._replies.place(person, limited=limited))
                return question, self._replies.retry(question, person, preset, turn)
            except TooManyReplies:
                return replace(self.at(person, shown), notice=self._texts.too_many_replies)
            except (AssistantError, StoreError) as error:
                return replace(self.at(person, shown), notice=self._texts.error(error))

    def follow(self, person: int, shown: str) -> View | None:
        """Show how far a reply is; None while its end is being written down."""
        view = self.at(person, shown)
        return None if view.path and view.path[-1].state == "streaming" and not view.busy else view

    def stop(self, person: int, shown: str) -> None:
        """Stop the reply on screen; its partial text is kept."""
        self._replies.stop(shown, person)

    def leave(self, person: int, shown: str) -> None:
        """Stop the reply on screen because its reader goes elsewhere."""
        self._replies.leave(shown, person)

    def writing(self, person: int, shown: str) -> bool:
        """Whether the reply on screen is being written."""
        return self._replies.text_so_far(shown, person) is not None

    def turn(self, person: int, shown: str, step: int) -> View:
        """Show the version before (-1) or after (+1) of the last reply."""
        ids = [message.id for message in own_versions(self._store, person, shown)]
        place = min(max(ids.index(shown) + step, 0), len(ids) - 1)
        return self.at(person, ids[place])

    def _refusal(self, person: int, text: str, shown: str) -> str:
        if not text.strip():
            return self._texts.empty_message
        if len(text) > self._max_chars:
            return self._texts.too_long.format(chars=len(text), limit=self._max_chars)
        if self.writing(person, shown):
            return self._texts.still_writing
        return ""

    def _record(self, person: int, text: str, path: Sequence[Message]) -> Message:
        conversations = self._store.conversations
        if not path:
            with self._store.connections.write():  # both or neither: no empty conversation in the list
                return conversations.add_user_message(conversations.start(person).id, person, text)
        return conversations.add_user_message(path[-1].conversation_id, person, text, path[-1].id)

    def _gone_on(self, person: int, shown: str) -> View | None:
        """The newest state of a conversation whose last message on screen, or a sibling of it, was continued since.

        Asking from there would begin a branch beside the one of the other tab, and nothing on the page leads back.
        """
        if not shown:
            return None
        versions = own_versions(self._store, person, shown)
        newest = self.open(person, versions[0].conversation_id)
        beside = {message.id for message in versions}
        return None if newest.shown in beside else replace(newest, notice=self._texts.went_on)

    async def _stream(self, person: int, question: Message, draft: Draft, clear: str | None) -> AsyncGenerator[View]:
        """Show a reply as it grows; `clear` empties the message box at its beginning."""
        try:
            with suppress(NotYours):  # erased already, which is told below
                before = await self._replies.in_thread(partial(self.at, person, question.id))
                async for text in draft.reply.snapshots():
                    if self._replies.is_left(draft):
                        continue  # the page shows something else by now
                    shown = text or self._texts.waiting(draft.waits, draft.reply.place)
                    path = (*before.path, replace(draft.message, text=shown + CURSOR))
                    yield replace(before, path=path, votes=(*before.votes, None), busy=True, own=True, keep=clear)
                    clear = None
        finally:
            await self._replies.end(draft)
        if self._replies.is_left(draft):
            yield View(gone=True)  # the framework sends the last view once more at the end: it must change nothing
            return
        yield await self._replies.in_thread(partial(self._ended, person, draft))

    def _ended(self, person: int, draft: Draft) -> View:
        """Show the reply that has ended; nothing to somebody who is not let in any more."""
        if self._store.people.is_let_in(person):
            with suppress(NotYours):  # erased in this very moment
                return replace(self.at(person, draft.message.id), notice=self._told(draft))
        return View(shut_out=True, notice=self._texts.shut_out)

    def _told(self, draft: Draft) -> str:
        reply = draft.reply
        if reply.refusal:
            return self._texts.error(reply.refusal)
        if reply.finish == "failed":
            return self._texts.failed_reply
        if reply.dropped_turns:
            return self._texts.dropped_turns.format(count=reply.dropped_turns)
        if reply.finish == "length":
            return self._texts.cut_at_limit
        return ""

    def _view(self, person: int, path: Sequence[Message]) -> View:
        live = tuple(self._with_running_text(person, message) for message in path)
        replies = [message.id for message in live if message.role == "assistant"]
        votes = self._store.votes.for_messages(replies, person)
        ids = [m.id for m in own_versions(self._store, person, replies[-1])] if replies else []
        last_is_reply = bool(ids) and live[-1].id in ids
        return View(
            path=live,
            busy=bool(live) and self.writing(person, live[-1].id),
            votes=tuple(thumb(votes.get(reply)) for reply in replies),
            version=ids.index(live[-1].id) + 1 if last_is_reply else 1,
            versions=len(ids) if last_is_reply else 1,
        )

    def _with_running_text(self, person: int, message: Message) -> Message:
        text = self._replies.text_so_far(message.id, person)
        return message if text is None else replace(message, text=text + CURSOR)


class ChatPage:
    """Turns views and vote panels into component updates."""

    def __init__(self, desk: ChatDesk, votes: FeedbackDesk, store: Store, texts: Texts, size: int) -> None:
        """Keep what fills the page.

        Args:
            size: how many outputs the page has.
        """
        self._size = size
        self._desk = desk
        self._votes = votes
        self._store = store
        self._texts = texts
        self.teaching = TeachPage(TeachDesk(store, texts), texts)

    def updates(
        self, person: int, view: View, preset: str = "", panel: list[Any] | None = None, kept: str = ""
    ) -> list[Any]:
        """Fill every output of the chat page; the preset only when one is given, the vote panel also otherwise.

        Args:
            kept: a better answer that is left unsaved, of `FeedbackDesk.leave`; without one an earlier one stays.
        """
        texts, ended = self._texts, bool(view.path) and not view.busy
        followed = view.busy and not view.own
        if panel is None:
            panel = panel_updates(self._votes.panel(person, "", view.shown) if ended else Panel(), texts)
        return [
            gr.update(value=bubbles(view.path, texts), feedback_value=list(view.votes)),
            view.shown,
            notice_update(view.notice),
            gr.skip() if view.keep is None else view.keep,
            gr.update(visible=not view.busy),
            gr.update(visible=view.busy),
            gr.update(visible=ended),
            gr.update(visible=view.versions > 1, interactive=view.version > 1),
            gr.update(
                visible=view.versions > 1, value=texts.version.format(version=view.version, versions=view.versions)
            ),
            gr.update(visible=view.versions > 1, interactive=view.version < view.versions),
            preset or gr.skip(),
            gr.skip() if view.own is None else view.shown if followed else "",
            gr.update(active=followed),
            *panel,
            history_update(self._store, texts, person, view.conversation_id),
            self.teaching.here(person, view.shown),
            kept or gr.skip(),
        ]

    def growing(self, view: View) -> list[Any]:
        """Fill only the chat itself: what changes while a reply grows."""
        return [bubbles(view.path, self._texts), *[gr.skip()] * (self._size - 1)]

    async def stream(self, person: int, views: AsyncGenerator[View], typed: Sequence[str]) -> AsyncGenerator[list[Any]]:
        """Fill the whole page at the start and the end, and the chat in between; `settle` follows it."""
        async with aclosing(views):
            last = None
            async for view in views:
                if view.gone:
                    yield [gr.skip()] * self._size
                elif last and last.busy and view.busy:
                    yield self.growing(view)
                else:
                    yield await run_sync(self._updates_while_streaming, person, view, typed)
                last = view

    def _updates_while_streaming(self, person: int, view: View, typed: Sequence[str]) -> list[Any]:
        if view.shut_out:
            return self.updates(NOBODY, view)
        panel = meanwhile_updates(self._votes, self._texts, person, view.shown, view.busy, typed)
        return self.updates(person, view, panel=panel)

    async def ask(
        self, text: str, preset: str, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request
    ) -> AsyncGenerator[list[Any]]:
        """Send a message; the last three are what the vote panel is about and what is typed there."""
        person = visitor(request).id
        views = self._desk.ask(person, text, preset, shown, limited=is_limited(request))
        async with aclosing(self.stream(person, views, (selected, comment, rewrite))) as pages:
            async for page in pages:
                yield page

    async def retry(
        self, preset: str, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request
    ) -> AsyncGenerator[list[Any]]:
        """Ask for another version of the last reply."""
        person = visitor(request).id
        views = self._desk.retry(person, preset, shown, limited=is_limited(request))
        async with aclosing(self.stream(person, views, (selected, comment, rewrite))) as pages:
            async for page in pages:
                yield page

    def settle(self, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request) -> list[Any]:
        """Bring the vote panel to the reply that has ended, with what was typed meanwhile in view."""
        return settled_updates(self._votes, self._texts, visitor(request).id, shown, (selected, comment, rewrite))

    def follow(self, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request) -> list[Any]:
        """Show how far a reply is that another page started, and its end."""
        person = visitor(request).id
        try:
            view = self._desk.follow(person, shown) if shown else None  # nothing while the browser leaves it
        except StoreError as error:
            return self.updates(person, replace(self._desk.open(person), notice=self._texts.error(error)))
        if view is None:
            return [gr.skip()] * self._size
        if view.busy:
            return self.growing(view)
        return self.updates(person, view, panel=self.settle(shown, selected, comment, rewrite, request))

    def too_early(self, shown: str, request: gr.Request) -> Any:
        """Say why a message is not sent while the reply on screen is being written; its text stays in the box."""
        writing = self._desk.writing(visitor(request).id, shown)
        return notice_update(self._texts.still_writing) if writing else gr.skip()

    def stop(self, shown: str, request: gr.Request) -> None:
        """Stop the reply on screen."""
        self._desk.stop(visitor(request).id, shown)

    def open(
        self,
        conversation_id: str | None,
        shown: str,
        followed: str,
        selected: str,
        comment: str,
        rewrite: str,
        request: gr.Request,
    ) -> list[Any]:
        """Leave what is shown for a conversation, or for the latest."""
        person = visitor(request).id
        self._leave(person, shown, followed)
        kept = self._votes.leave(person, selected, comment, rewrite)
        view = self._desk.open(person, conversation_id or "")
        return self.updates(person, view, view.preset if view.preset in PRESETS else "", kept=kept)

    def new(
        self, shown: str, followed: str, selected: str, comment: str, rewrite: str, request: gr.Request
    ) -> list[Any]:
        """Leave what is shown for an empty page; the conversation begins in the store with its first message."""
        person = visitor(request).id
        self._leave(person, shown, followed)
        return self.updates(person, View(), kept=self._votes.leave(person, selected, comment, rewrite))

    def _leave(self, person: int, shown: str, followed: str) -> None:
        if shown != followed:
            self._desk.leave(person, shown)

    def tab(self) -> gr.Tabs:
        """Bring the chat to the front."""
        return gr.Tabs(selected="chat")

    def before(self, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request) -> list[Any]:
        """Show the version before of the last reply."""
        return self._turn(visitor(request).id, shown, -1, (selected, comment, rewrite))

    def after(self, shown: str, selected: str, comment: str, rewrite: str, request: gr.Request) -> list[Any]:
        """Show the version after of the last reply."""
        return self._turn(visitor(request).id, shown, 1, (selected, comment, rewrite))

    def _turn(self, person: int, shown: str, step: int, typed: tuple[str, str, str]) -> list[Any]:
        try:
            view = self._desk.turn(person, shown, step)
            panel = settled_updates(self._votes, self._texts, person, view.shown, typed)
            return self.updates(person, view, panel=panel)
        except StoreError as error:
            return self.updates(person, replace(self._desk.open(person), notice=self._texts.error(error)))

    def vote(self, person: int, panel: Panel, shown: str, writing: bool | None) -> list[Any]:
        """Fill the vote panel, the Chatbot's thumbs and the notice; see `panel_updates` for `writing`."""
        try:
            view = self._desk.at(person, shown)
        except StoreError:  # the panel says why
            view = View()
        return [
            gr.update(feedback_value=list(view.votes)),
            notice_update(panel.notice),
            *panel_updates(panel, self._texts, writing),
        ]


def wire_chat(
    parts: ChatParts, new: gr.Button, conversations: gr.Radio, tabs: gr.Tabs, desk: ChatDesk, votes: FeedbackDesk,
    store: Store, texts: Texts,
) -> tuple[ChatPage, list[Any]]:  # fmt: skip
    """Connect the chat's components; returns the page and its outputs, for the load event."""
    outputs = [
        parts.chatbot, parts.shown, parts.notice, parts.box, parts.send, parts.stop, parts.actions, parts.before,
        parts.version, parts.after, parts.preset, parts.followed, parts.timer, *parts.feedback.outputs, conversations,
        parts.teaching.here, parts.feedback.kept,
    ]  # fmt: skip
    page = ChatPage(desk, votes, store, texts, len(outputs))
    typed = [parts.feedback.selected, parts.feedback.comment, parts.feedback.rewrite]
    sent = [parts.box.submit, parts.send.click]
    asked = gr.on(sent, page.ask, [parts.box, parts.preset, parts.shown, *typed], outputs, **STREAMED)
    # An event of its own: the browser drops a second `ask` while one runs, and would tell the person nothing.
    parts.box.submit(page.too_early, [parts.shown], [parts.notice], **SHORT)
    retried = parts.retry.click(page.retry, [parts.preset, parts.shown, *typed], outputs, **STREAMED)
    for streamed in (asked, retried):
        streamed.then(page.settle, [parts.shown, *typed], parts.feedback.outputs, **SHORT)
    parts.timer.tick(page.follow, [parts.shown, *typed], outputs, **SHORT)
    parts.stop.click(page.stop, [parts.shown], None, **SHORT)
    parts.before.click(page.before, [parts.shown, *typed], outputs, **SHORT)
    parts.after.click(page.after, [parts.shown, *typed], outputs, **SHORT)
    to_chat: dict[str, Any] = {"fn": page.tab, "outputs": tabs, "js": CLOSE_SIDEBAR_JS, **SHORT}
    # Leaving a conversation stops the reply being written there. Not by `cancels`: that cancels by session and
    # function, and so may hit the message that is sent next.
    # First in the browser, at once: a message sent before the answer comes must not land in the old conversation.
    leaves = new.click(None, [parts.shown], [parts.left, parts.shown], js=LEAVE_JS, api_visibility="private")
    leaves.then(page.new, [parts.left, parts.followed, *typed], outputs, **SHORT).then(**to_chat)
    opened = [conversations, parts.shown, parts.followed, *typed]
    conversations.input(page.open, opened, outputs, **SHORT).then(**to_chat)
    parts.box.change(None, [parts.box, parts.who], None, js=KEEP_DRAFT_JS, api_visibility="private")
    # The address names the conversation, so that a reload shows the same one and each tab its own.
    conversations.change(None, [conversations], None, js=REMEMBER_JS, api_visibility="private")
    wire_votes(parts.feedback, parts.chatbot, parts.shown, parts.notice, votes, page.vote)
    wire_teaching(parts.teaching, page.teaching, parts.shown, parts.notice)
    return page, outputs
