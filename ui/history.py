"""The list of past conversations: choose one to reopen it."""

from typing import Any

import gradio as gr

from feedback_store import Store
from ui.texts import Texts


def conversation_choices(store: Store, texts: Texts, person: int) -> list[tuple[str, str]]:
    """Titles and ids of a person's conversations, newest first, for the radio."""
    return [(item.title.strip() or texts.untitled, item.id) for item in store.conversations.list(person)]


def history_update(store: Store, texts: Texts, person: int, conversation_id: str) -> Any:
    """Refresh the list with one conversation marked."""
    choices = conversation_choices(store, texts, person)
    known = any(value == conversation_id for _, value in choices)
    return gr.update(choices=choices, value=conversation_id if known else None)


def build_history(texts: Texts) -> tuple[gr.Button, gr.Radio]:
    """Lay out the list; returns the button for a new conversation and the radio."""
    new = gr.Button(texts.new_conversation, elem_id="new-conversation", size="md", variant="primary")
    conversations = gr.Radio([], label=texts.conversations, elem_id="conversations", container=False)
    return new, conversations
