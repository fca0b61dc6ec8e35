"""Blot a person's texts out of files that other programs made: logs, reports, caches.

A text is found where it begins, also when it is cut off later. What the person wrote is also found from any of its
words on, in files that people read: a log may quote one sentence of many. In files that programs read, such as
settings, only beginnings are looked for, because a single phrase stands there by chance sooner than as a quote.

Knows nothing of the database. Does not cover quotes of fewer than 16 bytes, files that hold no text, compressed ones,
or those too large to read at once.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

SHORTEST_BYTES = 16
"""Shorter texts are in files by chance."""
LARGEST_FILE_BYTES = 64 * 2**20
_NO_TEXT = frozenset({".safetensors", ".gguf", ".npz", ".pt", ".bin", ".png", ".lock"})
_FOR_PROGRAMS = frozenset({".json", ".jsonl", ".toml", ".csv"})
_WORD = re.compile(r"\b(?=\w)")
_INK = re.compile(rb"[^\n]")  # a log keeps its lines
Quotes = dict[bytes, list[tuple[bytes, int]]]
"""By the first bytes: which encoded text they are in, and where."""


class Words:
    """Somebody's texts, ready to be looked for in many files."""

    def __init__(self, written: set[str], answered: set[str]) -> None:
        """Index them.

        Args:
            written: what the person wrote, which is also looked for in pieces.
            answered: what the person was answered, and texts too many to be looked for in pieces.
        """
        self._beginnings = _index([[text] for text in written | answered])
        self._pieces = _index([[text] for text in answered] + [_WORD.split(text) for text in written])

    def blot_out(self, path: Path) -> bool:
        """Overwrite the texts in a file, and say whether there were any; in place, so that who writes to it goes on.

        Raises:
            OSError: it cannot be read or written; what it quotes stays.
        """
        with path.open("rb") as file:
            data = file.read()
        found = list(_find(data, self._beginnings if path.suffix in _FOR_PROGRAMS else self._pieces))
        if found:
            with path.open("r+b") as file:
                for at, length in found:
                    file.seek(at)
                    file.write(_INK.sub(b"x", data[at : at + length]))
        return bool(found)


def may_quote(path: Path) -> bool:
    """Say whether a file is one that may quote people."""
    return path.suffix not in _NO_TEXT and not path.is_symlink() and path.is_file()


def _index(texts: list[list[str]]) -> Quotes:
    """Return where to look for texts that are given in pieces, each of which a quote may begin with."""
    quotes: Quotes = {}
    for pieces in texts:
        for encoded in _forms(pieces):
            whole, at = b"".join(encoded), 0
            for piece in encoded:
                start = whole[at : at + SHORTEST_BYTES]
                if len(start) == SHORTEST_BYTES:
                    quotes.setdefault(start, []).append((whole, at))
                at += len(piece)
    return quotes


def _forms(pieces: list[str]) -> set[tuple[bytes, ...]]:
    """Return how a text may stand in a file: as it is, or as part of JSON."""
    return {
        tuple(piece.encode() for piece in pieces),
        tuple(json.dumps(piece)[1:-1].encode() for piece in pieces),
        tuple(json.dumps(piece, ensure_ascii=False)[1:-1].encode() for piece in pieces),
    }


def _find(data: bytes, quotes: Quotes) -> Iterator[tuple[int, int]]:
    """Yield where in a file quotes begin, and how many bytes they have."""
    at = 0
    while quotes and at <= len(data) - SHORTEST_BYTES:
        starts = quotes.get(data[at : at + SHORTEST_BYTES])
        length = max(_common(data, at, text, start) for text, start in starts) if starts else 0
        if length:
            yield at, length
        at += length or 1


def _common(data: bytes, at: int, text: bytes, start: int) -> int:
    """Return how many bytes are the same from there on, by halving."""
    same, most = SHORTEST_BYTES, min(len(text) - start, len(data) - at)
    while same < most:
        middle = (same + most + 1) // 2
        if data[at + same : at + middle] == text[start + same : start + middle]:
            same = middle
        else:
            most = middle - 1
    return same
