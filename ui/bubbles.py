"""Messages as the Chatbot component takes them: what people typed stays text, what a model wrote is Markdown only."""

from collections.abc import Sequence
from typing import Any

from feedback_store.records import Message, Vote
from ui.texts import Texts
from ui.written import as_written


def thumb(vote: Vote | None) -> str | None:
    """A vote as the Chatbot component names it."""
    return {1: "Like", -1: "Dislike"}.get(vote.value) if vote else None


def bubbles(path: Sequence[Message], texts: Texts) -> list[dict[str, Any]]:
    """Messages as the Chatbot component takes them, with a note under replies that did not end by themselves."""
    notes = {"stopped": texts.note_stopped, "failed": texts.note_failed, "interrupted": texts.note_interrupted}
    shown = []
    for message in path:
        note = notes.get(message.state, "") if message.role == "assistant" else ""
        text = as_typed(message.text) if message.role == "user" else as_written(message.text)
        content = f"{text}\n\n*{note}*" if note else text
        shown.append({"role": message.role, "content": content})
    return shown


def as_typed(text: str) -> str:
    """What a person wrote, for a component that renders Markdown: nothing in it is markup, and every space stays."""
    # On one line, since the component takes common indentation away.
    kept = Texts.escape(text).replace("\n", "&#10;").replace("\t", "&#9;")
    return f"<pre class='typed'>{kept}</pre>"
