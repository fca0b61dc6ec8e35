"""Messages as the Chatbot component takes them: what people typed stays text, what the model wrote is Markdown."""

import re
from collections.abc import Sequence
from typing import Any

from feedback_store.records import Message, Vote
from ui.texts import Texts

FENCE = re.compile(r"(\s*(?:(?:[-*+]|\d+[.)])\s+)*)(`{3,}|~{3,})")


def thumb(vote: Vote | None) -> str | None:
    """A vote as the Chatbot component names it."""
    return {1: "Like", -1: "Dislike"}.get(vote.value) if vote else None


def bubbles(path: Sequence[Message], texts: Texts) -> list[dict[str, Any]]:
    """Messages as the Chatbot component takes them, with a note under replies that did not end by themselves."""
    notes = {"stopped": texts.note_stopped, "failed": texts.note_failed, "interrupted": texts.note_interrupted}
    shown = []
    for message in path:
        note = notes.get(message.state, "") if message.role == "assistant" else ""
        text = as_typed(message.text) if message.role == "user" else message.text
        content = f"{close_fence(text)}\n\n*{note}*" if note else text
        shown.append({"role": message.role, "content": content})
    return shown


def as_typed(text: str) -> str:
    """What a person wrote, for a component that renders Markdown: nothing in it is markup, and every space stays."""
    # On one line, since the component takes common indentation away.
    kept = Texts.escape(text).replace("\n", "&#10;").replace("\t", "&#9;")
    return f"<pre class='typed'>{kept}</pre>"


def close_fence(text: str) -> str:
    """End a block of code that a reply broke off in, so that what follows stands outside of it."""
    fence, indent = "", 0
    for line in text.splitlines():
        found = FENCE.match(line)
        if not fence and found:
            fence, indent = found[2], len(found[1])
        elif fence and not line.strip().strip(fence[0]) and len(line.strip()) >= len(fence):
            fence = ""
    return f"{text}\n{' ' * indent}{fence}" if fence else text
