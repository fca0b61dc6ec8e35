"""The rules that text and names must meet before they reach the database."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from feedback_store.errors import BadInput

MAX_TEXT_CHARS = 100_000
MAX_COMMENT_CHARS = 2_000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,127}")


def check_text(text: str, what: str, *, max_chars: int = MAX_TEXT_CHARS, may_be_empty: bool = True) -> str:
    """Return the text unchanged if it can be stored and read back byte for byte.

    Raises:
        BadInput: it is no text, empty where it may not be, too long, or holds a NUL or half a surrogate pair,
            which other tools would cut or refuse long after the person who wrote it has gone.
    """
    if not isinstance(text, str):
        raise BadInput(f"{what} must be text; send a string.")
    if not may_be_empty and not text.strip():
        raise BadInput(f"{what} is empty; write something first.")
    if len(text) > max_chars:
        raise BadInput(f"{what} has {len(text)} characters and may have {max_chars}; shorten it.")
    if _UNSTORABLE.search(text):
        raise BadInput(f"{what} holds a character that cannot be stored (NUL or half a surrogate pair); remove it.")
    return text


def check_key(key: str, what: str) -> str:
    """Return the id unchanged if it may name a row and a folder.

    Raises:
        BadInput: it could lead out of the folder it will name, or cannot be typed in a command.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise BadInput(f"{what} must be 1 to 128 letters, digits or any of _.:+- and begin with a letter or digit.")
    return key


def check_choice(value: str, allowed: Collection[str], what: str) -> str:
    """Return the word unchanged if it is one of those allowed.

    Raises:
        BadInput: it is not, and would be refused by the table with a worse sentence.
    """
    if value not in allowed:
        raise BadInput(f"{what} must be one of {', '.join(allowed)}; it was {value!r:.60}.")
    return value


def to_json(value: Mapping[str, Any] | Collection[str], what: str) -> str:
    """Return the value as JSON text.

    Raises:
        BadInput: it holds something that JSON lacks (NaN, infinity, objects), so other tools could not read it.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{what} must be plain JSON without NaN or infinity ({error}).") from None
    return text
