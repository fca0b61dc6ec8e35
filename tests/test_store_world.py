"""What the store's tests share: a question, an answer, a whole small world; and that this world is what it seems."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from feedback_store.integrity import verify
from feedback_store.records import Conversation, Message, Origin
from feedback_store.store import Store
from tests.new_store import open_in

ORIGIN = Origin(
    adapter_id=None,
    base_id="base-1",
    numeric_form="nf4",
    preset="plain",
    system="Be kind.",
    temperature=0.7,
    top_p=0.95,
    max_new_tokens=64,
    seed=1,
)


@contextmanager
def whole_store(path: Path) -> Iterator[Store]:
    """Open a store, and find it whole at the end."""
    opened = open_in(path)
    yield opened
    assert verify(opened) == []
    opened.close()


def ask(store: Store, text: str = "What is 2 + 2?", person_id: int = 1, within: Conversation | None = None) -> Message:
    """Ask a question, in a conversation of its own unless one is given."""
    conversation = within or store.conversations.start(person_id)
    return store.conversations.add_user_message(conversation.id, person_id, text)


def answer(store: Store, question: Message, text: str, person_id: int = 1, **origin: Any) -> Message:
    """Answer a question and return the finished reply."""
    reply = store.conversations.begin_reply(question.id, person_id, replace(ORIGIN, **origin))
    store.conversations.finish_reply(reply.id, text, "done", "end", 3)
    return store.conversations.path_to(reply.id)[-1]


def fill(store: Store) -> Message:
    """Put one of everything into the store, and return the reply that was liked."""
    store.registry.start_run("run-1")
    store.registry.register_adapter("adapter-1", "base-1", "run-1")
    store.registry.finish_run("run-1", "promoted", adapter_id="adapter-1", metrics={"accuracy": 0.75})
    store.registry.promote("adapter-1", 0)
    question = ask(store)
    liked = answer(store, question, "4", adapter_id="adapter-1", seed=1)
    disliked = answer(store, question, "5", adapter_id="adapter-1", seed=2)
    store.votes.rate(liked.id, 1, 1, ["correct"], "Short.")
    store.votes.rate(disliked.id, 1, -1, ["wrong"])
    shown = store.votes.show_comparison(1, question.id, disliked.id, liked.id)
    store.votes.choose(shown.id, 1, "right")
    store.votes.rewrite(disliked.id, 1, "What do you get when you count on from 2?")
    return liked


def test_a_filled_store_is_whole_and_counts_what_was_put_in(tmp_path: Path) -> None:
    store = open_in(tmp_path / "nightschool.db")
    fill(store)
    assert verify(store) == []
    assert store.votes.counts() == {
        "thumbs_up": 1,
        "thumbs_down": 1,
        "retracted": 0,
        "comparisons": 1,
        "ties": 0,
        "both_bad": 0,
        "unanswered_comparisons": 0,
        "rankings": 0,
        "rewrites": 1,
        "pairs": 3,
        "demonstrations": 1,
        "people": 1,
        "conversations": 1,
        "replies": 2,
        "imported": 0,
    }
    store.close()
