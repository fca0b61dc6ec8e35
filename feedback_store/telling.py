"""What the commands tell where nobody asked for JSON: a line a fact, and a table where there are many of a kind."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

_HEADS = {"disabled": "state", "teach": "teaching", "seen_at": "last seen", "created_at": "created"}
_STATES = {True: "disabled", False: "active"}


def in_words(result: Mapping[str, Any]) -> str:
    """Return what a command found as lines of text; times are this machine's."""
    lines: list[str] = []
    for name, value in result.items():
        head = name.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{head}:", *(f"  {line}" for line in table(value))]
        elif isinstance(value, list):
            lines += [f"{head}: {_words(part)}" for part in value] or [f"{head}: none"]
        else:
            lines.append(f"{head}: {_words(value)}")
    return "".join(f"{line}\n" for line in lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with aligned columns, the first row's names as its heads."""
    heads = [_HEADS.get(name, name) for name in rows[0]]
    cells = [heads, *([_cell(name, value) for name, value in row.items()] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(name: str, value: Any) -> str:
    if value is not None and name.endswith("_at"):
        return f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M}"
    return _STATES[value] if name == "disabled" else _words(value)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_words(part)}" for name, part in value.items())
    return "-" if value is None else str(value)
