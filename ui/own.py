"""Reading messages by id for somebody: only their own, and the same answer for somebody else's as for none.

The one place of the web app that asks the store for a message by its id, which comes from a browser.
"""

from typing import Final

from feedback_store import Store
from feedback_store.records import Message

NOBODY: Final = 0
"""A number that no person has: a page filled for it is empty."""


def own_path(store: Store, person_id: int, message_id: str) -> list[Message]:
    """Return the messages from the root to one of a person's own, itself included.

    Raises:
        NotYours: absent or somebody else's; what that person wrote would be shown.
    """
    path = store.conversations.path_to(message_id)
    store.conversations.get(path[-1].conversation_id, person_id)
    return path


def own_versions(store: Store, person_id: int, message_id: str) -> list[Message]:
    """Return the messages beside one of a person's own, oldest first, itself included.

    Raises:
        NotYours: absent or somebody else's.
    """
    own_path(store, person_id, message_id)
    return store.conversations.siblings(message_id)
