"""The chat page: handlers over engine and store above, layout and wiring below.

The browser sends ids and choices; who said what comes from the database. `shown` is the id of the last message
on screen: the path from it up to the root is the page.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from assistant.errors import AssistantError
from assistant.presets import PRESETS
from assistant.settings import Settings
from feedback_store import Store
from feedback_store.errors import StoreError
from feedback_store.records import Message
from ui.bubbles import bubbles, thumb
from ui.events import CLOSE_SIDEBAR_JS, KEEP_DRAFT_JS, LEAVE_JS, MAX_TYPED, REMEMBER_JS, SHORT, STREAMED
from ui.feedback import (
    FeedbackDesk,
    FeedbackParts,
    Panel,
    build_feedback,
    build_vote_bar,
    meanwhile_updates,
    notice_update,
    panel_updates,
    settled_updates,
)
from ui.history import history_update
from ui.replies import Draft, Replies
from ui.texts import Texts
from ui.view import View

CURSOR = " ▍"


class ChatDesk:
    """What the chat page can do, without the page."""

    def __init__(self, replies: Replies, store: Store, settings: Settings, texts: Texts) -> None:
        self._replies = replies
        self._store = store
        self._max_chars = settings.max_message_chars
        self._texts = texts

    def open(self, conversation_id: str = "") -> View:
        """Show a conversation's newest branch; without an id, or with a foreign one, the latest conversation."""
        person = self._store.people.owner().id
        if conversation_id:
            try:
                return self._view(self._store.conversations.thread(conversation_id, person))
            except StoreError:
                pass  # an old link: the latest conversation is a better answer than an error
        for conversation in self._store.conversations.list(person, limit=1):
            return self._view(self._store.conversations.thread(conversation.id, person))
        return View()

    def at(self, shown: str) -> View:
        """Show the path that ends in a message of this person.

        Raises:
            StoreError: there is no such message here.
        """
        return self._view(self._own_path(shown)) if shown else View()

    async def ask(self, text: str, preset: str, shown: str) -> AsyncGenerator[View]:
        """Store the message, then stream its reply. Refusals are sentences in `notice` and keep the text."""
        refusal = self._refusal(text, shown)
        try:
            if refusal:
                yield replace(self.at(shown), notice=refusal, keep=text, own=None)
                return
            if newest := self._gone_on(shown):
                yield replace(newest, keep=text)
                return
            path, person = self._own_path(shown) if shown else [], self._store.people.owner().id
            question, [draft] = self._replies.ask(path, text, preset, person, partial(self._record, text, path))
        except AssistantError as error:
            yield replace(self.at(shown), notice=self._texts.error(error), keep=text)
            return
        except StoreError as error:
            yield replace(self.open(), notice=self._texts.error(error), keep=text)
            return
        async with aclosing(self._stream(question, draft, clear="")) as views:
            async for view in views:
                yield view

    async def retry(self, preset: str, shown: str) -> AsyncGenerator[View]:
        """Stream another version of the last reply; the earlier ones stay."""
        try:
            path = self._own_path(shown) if shown else []
            newest = self._gone_on(shown)
        except StoreError as error:
            yield replace(self.open(), notice=self._texts.error(error))
            return
        if newest:
            yield newest
            return
        if not path or self._replies.text_so_far(shown) is not None:
            yield replace(self.at(shown), notice=self._texts.nothing_to_retry)
            return
        question = path[-1] if path[-1].role == "user" else path[-2]
        try:
            draft = self._replies.retry(question, self._store.people.owner().id, preset)
        except (AssistantError, StoreError) as error:
            yield replace(self.at(shown), notice=self._texts.error(error))
            return
        async with aclosing(self._stream(question, draft, clear=None)) as views:
            async for view in views:
                yield view

    def follow(self, shown: str) -> View | None:
        """Show how far a reply is; None while its end is being written down."""
        view = self.at(shown)
        return None if view.path and view.path[-1].state == "streaming" and not view.busy else view

    def stop(self, shown: str) -> None:
        """Stop the reply on screen; its partial text is kept."""
        self._replies.stop(shown)

    def leave(self, shown: str) -> None:
        """Stop the reply on screen because its reader goes elsewhere."""
        if self.writing(shown):
            self._replies.leave(shown)

    def writing(self, shown: str) -> bool:
        """Whether the reply on screen is being written."""
        return bool(shown) and self._replies.text_so_far(shown) is not None

    def turn(self, shown: str, step: int) -> View:
        """Show the version before (-1) or after (+1) of the last reply."""
        path = self._own_path(shown)
        ids = [message.id for message in self._store.conversations.siblings(shown)]
        place = min(max(ids.index(path[-1].id) + step, 0), len(ids) - 1)
        return self.at(ids[place])

    def _refusal(self, text: str, shown: str) -> str:
        if not text.strip():
            return self._texts.empty_message
        if len(text) > self._max_chars:
            return self._texts.too_long.format(chars=len(text), limit=self._max_chars)
        if self.writing(shown):
            return self._texts.still_writing
        return ""

    def _record(self, text: str, path: Sequence[Message]) -> Message:
        conversations, person = self._store.conversations, self._store.people.owner().id
        if not path:
            return conversations.add_user_message(conversations.start(person).id, person, text)
        return conversations.add_user_message(path[-1].conversation_id, person, text, path[-1].id)

    def _gone_on(self, shown: str) -> View | None:
        """The newest state of a conversation whose last message on screen, or a sibling of it, was continued since.

        Asking from there would begin a branch beside the one of the other tab, and nothing on the page leads back.
        """
        if not shown:
            return None
        newest = self.open(self._own_path(shown)[-1].conversation_id)
        beside = {message.id for message in self._store.conversations.siblings(shown)}
        return None if newest.shown in beside else replace(newest, notice=self._texts.went_on)

    async def _stream(self, question: Message, draft: Draft, clear: str | None) -> AsyncGenerator[View]:
        """Show a reply as it grows; `clear` empties the message box at its beginning."""
        before = self._view(self._store.conversations.path_to(question.id))
        try:
            async for text in draft.reply.snapshots():
                if self._replies.is_left(draft):
                    continue  # the page shows something else by now
                path = (*before.path, replace(draft.message, text=text + CURSOR))
                yield replace(before, path=path, votes=(*before.votes, None), busy=True, own=True, keep=clear)
                clear = None
        finally:
            self._replies.close(draft)
        if self._replies.is_left(draft):
            yield View(gone=True)  # the framework sends the last view once more at the end: it must change nothing
            return
        yield replace(self.at(draft.message.id), notice=self._told(draft))

    def _told(self, draft: Draft) -> str:
        reply = draft.reply
        if reply.finish == "failed":
            return self._texts.failed_reply
        if reply.dropped_turns:
            return self._texts.dropped_turns.format(count=reply.dropped_turns)
        if reply.finish == "length":
            return self._texts.cut_at_limit
        return ""

    def _own_path(self, shown: str) -> list[Message]:
        path = self._store.conversations.path_to(shown)
        self._store.conversations.get(path[-1].conversation_id, self._store.people.owner().id)
        return path

    def _view(self, path: Sequence[Message]) -> View:
        live = tuple(self._with_running_text(message) for message in path)
        replies = [message.id for message in live if message.role == "assistant"]
        votes = self._store.votes.for_messages(replies, self._store.people.owner().id)
        ids = [m.id for m in self._store.conversations.siblings(replies[-1])] if replies else []
        last_is_reply = bool(ids) and live[-1].id in ids
        return View(
            path=live,
            busy=bool(live) and self._replies.text_so_far(live[-1].id) is not None,
            votes=tuple(thumb(votes.get(reply)) for reply in replies),
            version=ids.index(live[-1].id) + 1 if last_is_reply else 1,
            versions=len(ids) if last_is_reply else 1,
        )

    def _with_running_text(self, message: Message) -> Message:
        text = self._replies.text_so_far(message.id)
        return message if text is None else replace(message, text=text + CURSOR)


def preset_choices(texts: Texts) -> list[tuple[str, str]]:
    """Presets for a radio: the person's word for it, and the key that is stored."""
    return [(texts.presets.get(preset.key, preset.name), preset.key) for preset in PRESETS.values()]


@dataclass(frozen=True)
class ChatParts:
    """The chat page's own components."""

    chatbot: gr.Chatbot
    shown: gr.Textbox
    left: gr.Textbox
    """Id of the message that was on screen when its reader went elsewhere."""
    followed: gr.Textbox
    """Id of a reply on screen that another page started, or nothing: leaving it does not stop it."""
    timer: gr.Timer
    """Runs while a reply is followed."""
    notice: gr.HTML
    preset: gr.Radio
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    actions: gr.Row
    retry: gr.Button
    before: gr.Button
    version: gr.HTML
    after: gr.Button
    feedback: FeedbackParts


def build_chat(texts: Texts) -> ChatParts:
    """Lay out the chat page."""
    chatbot = gr.Chatbot(
        elem_id="chat", show_label=False, label=texts.chat_tab, height="auto", layout="bubble", buttons=["copy"],
        group_consecutive_messages=False, placeholder=texts.chat_placeholder, feedback_options=("Like", "Dislike"),
        allow_tags=False, container=False,
    )  # fmt: skip
    shown = gr.Textbox(visible=False, elem_id="shown")
    left = gr.Textbox(visible=False, elem_id="left")
    followed = gr.Textbox(visible=False, elem_id="followed")
    timer = gr.Timer(0.5, active=False)
    with gr.Row(elem_id="under-reply"):
        bar = build_vote_bar(texts)
        with gr.Row(visible=False, elem_id="reply-actions") as actions:
            before = gr.Button("‹", elem_id="version-before", size="sm", min_width=36, scale=0)
            version = gr.HTML(elem_id="version")
            after = gr.Button("›", elem_id="version-after", size="sm", min_width=36, scale=0)
            retry = gr.Button(texts.retry, elem_id="retry", size="sm", min_width=60, scale=0)
    feedback = build_feedback(texts, bar)
    notice = gr.HTML(elem_id="notice", elem_classes="notice", visible=False)
    with gr.Column(elem_id="composer", elem_classes="composer"):
        preset = gr.Radio(
            preset_choices(texts), value="plain", label=texts.preset_label, elem_id="preset", container=False,
            elem_classes="segments",
        )  # fmt: skip
        with gr.Row(equal_height=False, elem_classes="tight"):
            box = gr.Textbox(
                placeholder=texts.message_placeholder, label=texts.message_label, show_label=False, lines=1,
                max_lines=8, elem_id="message", container=False, autofocus=True, scale=8, max_length=MAX_TYPED,
            )  # fmt: skip
            send = gr.Button(texts.send, variant="primary", elem_id="send", size="md", min_width=80, scale=0)
            stop = gr.Button(
                texts.stop, variant="stop", elem_id="stop", size="md", min_width=80, scale=0, visible=False
            )
    return ChatParts(
        chatbot, shown, left, followed, timer, notice, preset, box, send, stop, actions, retry, before, version,
        after, feedback,
    )  # fmt: skip


class ChatPage:
    """Turns views and vote panels into component updates."""

    def __init__(self, desk: ChatDesk, votes: FeedbackDesk, store: Store, texts: Texts) -> None:
        self._desk = desk
        self._votes = votes
        self._store = store
        self._texts = texts

    def updates(self, view: View, preset: str = "", panel: list[Any] | None = None) -> list[Any]:
        """Fill every output of the chat page; the preset only when one is given, the vote panel also otherwise."""
        texts, ended = self._texts, bool(view.path) and not view.busy
        followed = view.busy and not view.own
        if panel is None:
            panel = panel_updates(self._votes.panel("", view.shown) if ended else Panel(), texts)
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
            gr.Timer(active=followed),
            *panel,
            history_update(self._store, texts, view.conversation_id),
        ]

    def growing(self, view: View, outputs: int) -> list[Any]:
        """Fill only the chat itself: what changes while a reply grows."""
        return [gr.update(value=bubbles(view.path, self._texts)), *[gr.skip()] * (outputs - 1)]

    async def stream(self, views: AsyncGenerator[View], typed: Sequence[str]) -> AsyncGenerator[list[Any]]:
        """Fill the whole page at the start and the end, and the chat in between; `settle` follows it."""
        async with aclosing(views):
            last, size = None, 0
            async for view in views:
                if view.gone:
                    yield [gr.skip()] * size
                elif last and last.busy and view.busy:
                    yield self.growing(view, size)
                else:
                    panel = meanwhile_updates(self._votes, self._texts, view.shown, view.busy, typed)
                    updates = self.updates(view, panel=panel)
                    size = len(updates)
                    yield updates
                last = view

    async def ask(self, text: str, preset: str, shown: str, *typed: str) -> AsyncGenerator[list[Any]]:
        """Send a message; `typed` is the vote panel's reply, comment and better answer."""
        async with aclosing(self.stream(self._desk.ask(text, preset, shown), typed)) as pages:
            async for page in pages:
                yield page

    async def retry(self, preset: str, shown: str, *typed: str) -> AsyncGenerator[list[Any]]:
        """Ask for another version of the last reply."""
        async with aclosing(self.stream(self._desk.retry(preset, shown), typed)) as pages:
            async for page in pages:
                yield page

    def settle(self, shown: str, selected: str, comment: str, rewrite: str) -> list[Any]:
        """Bring the vote panel to the reply that has ended, with what was typed meanwhile in view."""
        return settled_updates(self._votes, self._texts, shown, selected, comment, rewrite)

    def follow(self, shown: str, *typed: str, outputs: int) -> list[Any]:
        """Show how far a reply is that another page started, and its end."""
        try:
            view = self._desk.follow(shown) if shown else None  # nothing while the browser leaves it
        except StoreError as error:
            return self.updates(replace(self._desk.open(), notice=self._texts.error(error)))
        if view is None:
            return [gr.skip()] * outputs
        return self.growing(view, outputs) if view.busy else self.updates(view, panel=self.settle(shown, *typed))

    def too_early(self, shown: str) -> Any:
        """Say why a message is not sent while the reply on screen is being written; its text stays in the box."""
        return notice_update(self._texts.still_writing) if self._desk.writing(shown) else gr.skip()

    def open(self, conversation_id: str | None, shown: str = "", followed: str = "") -> list[Any]:
        """Leave what is shown for a conversation, or for the latest."""
        self._leave(shown, followed)
        view = self._desk.open(conversation_id or "")
        return self.updates(view, view.preset if view.preset in PRESETS else "")

    def new(self, shown: str, followed: str = "") -> list[Any]:
        """Leave what is shown for an empty page; the conversation begins in the store with its first message."""
        self._leave(shown, followed)
        return self.updates(View())

    def _leave(self, shown: str, followed: str) -> None:
        if shown != followed:
            self._desk.leave(shown)

    def tab(self) -> gr.Tabs:
        """Bring the chat to the front."""
        return gr.Tabs(selected="chat")

    def turn(self, shown: str, step: int) -> list[Any]:
        """Show another version of the last reply."""
        try:
            return self.updates(self._desk.turn(shown, step))
        except StoreError as error:
            return self.updates(replace(self._desk.open(), notice=self._texts.error(error)))

    def liked(self, selected: str, shown: str, comment: str, event: gr.LikeData) -> list[Any]:
        """Take a click on the Chatbot's own thumbs."""
        panel = self._votes.liked(shown, event.index, event.liked, selected, comment)
        return self.vote(panel, shown, writing=None if panel.selected == selected else False)

    def vote(self, panel: Panel, shown: str, writing: bool | None = None) -> list[Any]:
        """Fill the vote panel, the Chatbot's thumbs and the notice; a better answer being written stays."""
        view = self._desk.at(shown) if shown else View()
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
    page = ChatPage(desk, votes, store, texts)
    outputs = [
        parts.chatbot, parts.shown, parts.notice, parts.box, parts.send, parts.stop, parts.actions, parts.before,
        parts.version, parts.after, parts.preset, parts.followed, parts.timer, *parts.feedback.outputs, conversations,
    ]  # fmt: skip
    typed = [parts.feedback.selected, parts.feedback.comment, parts.feedback.rewrite]
    sent = [parts.box.submit, parts.send.click]
    asked = gr.on(sent, page.ask, [parts.box, parts.preset, parts.shown, *typed], outputs, **STREAMED)
    # An event of its own: the browser drops a second `ask` while one runs, and would tell the person nothing.
    parts.box.submit(page.too_early, [parts.shown], [parts.notice], **SHORT)
    retried = parts.retry.click(page.retry, [parts.preset, parts.shown, *typed], outputs, **STREAMED)
    for streamed in (asked, retried):
        streamed.then(page.settle, [parts.shown, *typed], parts.feedback.outputs, **SHORT)
    parts.timer.tick(partial(page.follow, outputs=len(outputs)), [parts.shown, *typed], outputs, **SHORT)
    parts.stop.click(desk.stop, [parts.shown], None, **SHORT)
    parts.before.click(partial(page.turn, step=-1), [parts.shown], outputs, **SHORT)
    parts.after.click(partial(page.turn, step=1), [parts.shown], outputs, **SHORT)
    to_chat: dict[str, Any] = {"fn": page.tab, "outputs": tabs, "js": CLOSE_SIDEBAR_JS, **SHORT}
    # Leaving a conversation stops the reply being written there. Not by `cancels`: that cancels by session and
    # function, and so may hit the message that is sent next.
    # First in the browser, at once: a message sent before the answer comes must not land in the old conversation.
    leaves = new.click(None, [parts.shown], [parts.left, parts.shown], js=LEAVE_JS, api_visibility="private")
    leaves.then(page.new, [parts.left, parts.followed], outputs, **SHORT).then(**to_chat)
    conversations.input(page.open, [conversations, parts.shown, parts.followed], outputs, **SHORT).then(**to_chat)
    parts.box.change(None, [parts.box], None, js=KEEP_DRAFT_JS, api_visibility="private")
    # The address names the conversation, so that a reload shows the same one and each tab its own.
    conversations.change(None, [conversations], None, js=REMEMBER_JS, api_visibility="private")
    wire_votes(parts, page, votes)
    return page, outputs


def wire_votes(parts: ChatParts, page: ChatPage, votes: FeedbackDesk) -> None:
    """Connect thumbs, reasons, comment, retraction and better answers."""
    panel = parts.feedback
    outputs = [parts.chatbot, parts.notice, *panel.outputs]
    chosen = [panel.selected, parts.shown]
    # One at a time, and the last click wins.
    ordered = {**SHORT, "trigger_mode": "always_last"}

    def thumb(value: int) -> Any:
        return lambda selected, shown, typed: page.vote(votes.thumb(selected, shown, value, typed), shown)

    def explain(selected: str, shown: str, reasons: list[str], comment: str) -> list[Any]:
        return page.vote(votes.explain(selected, shown, reasons, comment), shown)

    def retract(selected: str, shown: str) -> list[Any]:
        return page.vote(votes.retract(selected, shown), shown)

    def open_rewrite(selected: str, shown: str, text: str) -> list[Any]:
        panel = votes.panel(selected, shown)
        # A closed panel holds the stored answer or nothing: anything else is being written.
        return page.vote(replace(panel, rewrite=text if text.strip() else panel.rewrite), shown, writing=True)

    def rewrite(selected: str, shown: str, text: str) -> list[Any]:
        panel = votes.rewrite(selected, shown, text)
        return page.vote(panel, shown, writing=None if panel.refused else False)

    def give_reasons(selected: str, shown: str, reasons: list[str], comment: str) -> Any:
        return notice_update(votes.explain(selected, shown, reasons, comment).notice)

    typed = [*chosen, panel.comment]
    panel.bar.up.click(thumb(1), typed, outputs, **ordered)
    panel.bar.down.click(thumb(-1), typed, outputs, **ordered)
    parts.chatbot.like(page.liked, typed, outputs, **ordered)
    explained = [*chosen, panel.reasons, panel.comment]
    panel.reasons.input(give_reasons, explained, [parts.notice], **ordered)
    gr.on([panel.save.click, panel.comment.submit], explain, explained, outputs, **ordered)
    panel.retract.click(retract, chosen, outputs, **ordered)
    panel.bar.open_rewrite.click(open_rewrite, [*chosen, panel.rewrite], outputs, **ordered)
    panel.save_rewrite.click(rewrite, [*chosen, panel.rewrite], outputs, **ordered)
