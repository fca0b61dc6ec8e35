"""What was read lately, by adapter: the next turn of a conversation computes only what is new.

Only the thread that owns the model may use it. It is memory: a restart forgets it all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assistant.rows import Kept

SHORTEST = 16
"""Fewer tokens in common are computed again: copying has its price, too."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text's tokens, the adapter that read them, and what it made of them."""

    adapter: str | None
    ids: Tensor
    kept: Kept

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(tensor.nbytes for pair in self.kept for tensor in pair)


class Prefixes:
    """The least recently used ones go first when there are more than fit.

    Args:
        limit_bytes: the most memory taken; 0 keeps none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._known: list[Prefix] = []  # the latest used last
        self.bytes = 0
        """Memory taken now."""
        self.found_tokens = self.asked_tokens = 0
        """How many prompt tokens were found here, and of how many."""

    def find(self, adapter: str | None, ids: Sequence[int]) -> tuple[Kept, int]:
        """Look up the longest beginning of a prompt that this adapter has read.

        Returns:
            Its keys and values, which may go on beyond, and how many tokens are in common; never all of the prompt,
            since somebody must compute what comes after it.
        """
        wanted = torch.tensor(ids)
        found, common = None, SHORTEST - 1
        for prefix in self._known:
            if prefix.adapter == adapter and (here := _common(prefix.ids, wanted[:-1])) > common:
                found, common = prefix, here
        self.asked_tokens += len(ids)
        if found is None:
            return [], 0
        self.found_tokens += common
        self._known.remove(found)
        self._known.append(found)
        return found.kept, common

    def keep(self, adapter: str | None, ids: Sequence[int], kept: Kept) -> None:
        """Remember what an adapter has read; shorter beginnings of it are forgotten."""
        prefix = Prefix(adapter, torch.tensor(ids), kept)
        if prefix.bytes > self._limit:
            return
        others = [known for known in self._known if not _is_beginning(known, prefix)]
        self._known = [*others, prefix]
        self.bytes = sum(known.bytes for known in self._known)
        while self.bytes > self._limit:
            self.bytes -= self._known.pop(0).bytes

    def clear(self) -> None:
        """Forget all of it."""
        self._known, self.bytes = [], 0

    def fits(self, tokens: int, bytes_a_token: int) -> bool:
        """Whether a text of so many tokens would be remembered."""
        return tokens >= SHORTEST and 0 < tokens * bytes_a_token <= self._limit


def _common(one: Tensor, other: Tensor) -> int:
    """How many tokens two texts begin with in common."""
    length = min(len(one), len(other))
    differ = (one[:length] != other[:length]).nonzero()
    return int(differ[0]) if len(differ) else length


def _is_beginning(known: Prefix, prefix: Prefix) -> bool:
    return known.adapter == prefix.adapter and _common(known.ids, prefix.ids) == len(known.ids)
