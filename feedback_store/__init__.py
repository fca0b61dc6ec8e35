"""Conversations, votes, runs and the live pointer in one SQLite file.

Imports none of the other packages, and never torch. The database library is loaded at the first use of `open_store`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feedback_store.store import Store, open_store

__all__ = ["Store", "open_store"]


def __getattr__(name: str) -> Any:
    """Load what the package offers when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from feedback_store import store

    return {"Store": store.Store, "open_store": store.open_store}[name]
