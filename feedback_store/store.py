"""The open store: one object a subject, all over the same connections."""

from pathlib import Path

from feedback_store.accounts import Accounts
from feedback_store.ai import AiFeedback
from feedback_store.connection import Connections
from feedback_store.consent import Consent
from feedback_store.conversations import Conversations
from feedback_store.opening import prepare
from feedback_store.people import People
from feedback_store.registry import Registry
from feedback_store.sessions import Sessions
from feedback_store.votes import Votes


class Store:
    """Everything that is stored; safe to share between threads."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.path = connections.path
        self.people = People(connections)
        self.accounts = Accounts(connections)
        self.sessions = Sessions(connections)
        self.consent = Consent(connections)
        self.conversations = Conversations(connections)
        self.votes = Votes(connections)
        self.ai = AiFeedback(connections)
        self.registry = Registry(connections)

    def close(self) -> None:
        """Close the connections of all threads; the store cannot be used afterwards."""
        self.connections.close()


def open_store(path: Path, *, create: bool = True, check: bool = True) -> Store:
    """Open the database file, creating or migrating it first where needed.

    Args:
        path: the file, usually HOME/nightschool.db.
        create: make a new one if there is none.
        check: look through the whole file first; without it, damage shows where it is read. For who only counts.

    Raises:
        NotOurFile: another program's file, or no database at all; writing would destroy it.
        NewerStore: a later version's file; writing would break what that version relies on.
        StoreDamaged: the file cannot be trusted; an empty one in its place would hide the loss.
        StoreError: there is none and `create` is False, or the folder cannot be used.
    """
    path = Path(path).absolute()
    prepare(path, create=create, check=check)
    return Store(Connections(path))
