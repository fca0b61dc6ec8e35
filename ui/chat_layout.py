"""The chat page's components and where they stand. Knows no handlers."""

from dataclasses import dataclass

import gradio as gr

from assistant.presets import PRESETS
from ui.events import MAX_TYPED
from ui.feedback import FeedbackParts, build_feedback, build_vote_bar
from ui.teaching import TeachParts, build_teaching
from ui.texts import Texts


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
    who: gr.Textbox
    """For whom the page was filled: whose draft the browser keeps."""
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
    teaching: TeachParts


def build_chat(texts: Texts) -> ChatParts:
    """Lay out the chat page."""
    chatbot = gr.Chatbot(
        elem_id="chat", show_label=False, label=texts.chat_tab, height="auto", layout="bubble", buttons=["copy"],
        group_consecutive_messages=False, placeholder=texts.chat_placeholder, feedback_options=("Like", "Dislike"),
        allow_tags=False, container=False,
    )  # fmt: skip
    shown = gr.Textbox(visible=False, elem_id="shown")
    left = gr.Textbox(visible=False, elem_id="left")
    who = gr.Textbox(visible=False, elem_id="who")
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
        chatbot, shown, left, who, followed, timer, notice, preset, box, send, stop, actions, retry, before, version,
        after, feedback, build_teaching(texts),
    )  # fmt: skip
