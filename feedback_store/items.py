"""What a side-by-side choice was about, by content: the same prompt with the same two replies, on whichever side.

The name of an item is kept with each choice, so that who agrees with whom is counted without reading a text again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from feedback_store.connection import one_row, rows
from feedback_store.examples import read_prompt
from feedback_store.records import Turn

_SHOWN = """
    SELECT l.text AS left, r.text AS right, system_prompt.text AS system,
        coalesce(l_origin.adapter_id, l_origin.base_id) AS left_model,
        coalesce(r_origin.adapter_id, r_origin.base_id) AS right_model
    FROM message AS l JOIN message AS r ON r.id = :right
    JOIN origin AS l_origin ON l_origin.message_id = l.id
    JOIN origin AS r_origin ON r_origin.message_id = r.id AND r_origin.system_id = l_origin.system_id
    JOIN system_prompt ON system_prompt.id = l_origin.system_id
    WHERE l.id = :left"""


@dataclass(frozen=True)
class Item:
    """What two replies to a prompt are together."""

    id: str | None
    """A hash of the content; None where the replies answered different system prompts, and so different prompts."""
    left_first: bool | None
    """Whether the left reply is the item's first; None where both are the same."""


def name_item(prompt: Sequence[Turn], left: str, right: str, models: tuple[str, str] = ("", "")) -> Item:
    """Return what is judged when these replies are compared.

    Args:
        models: what made the left and the right reply, where equal words of different models are different items.
    """
    shown = ((left, models[0]), (right, models[1]))
    first, second = sorted(shown)
    text = json.dumps([list(prompt), first, second], ensure_ascii=False)
    key = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return Item(key, None if first == second else shown[0] == first)


def find_item(db: Database, prompt_message_id: str, left_message_id: str, right_message_id: str) -> Item:
    """Return what is judged when these stored replies are compared; equal words of two adapters are told apart."""
    row = one_row(db, _SHOWN, {"left": left_message_id, "right": right_message_id})
    if row is None:
        return Item(None, None)
    prompt = read_prompt(db, row["system"], prompt_message_id)
    return name_item(prompt, row["left"], row["right"], (row["left_model"], row["right_model"]))


def name_older_choices(db: Database) -> None:
    """Name the items of choices that were made before they were kept."""
    sql = """SELECT id, prompt_message_id, left_message_id, right_message_id FROM comparison
        WHERE choice IS NOT NULL AND item IS NULL"""
    for row in list(rows(db, sql)):
        item = find_item(db, row["prompt_message_id"], row["left_message_id"], row["right_message_id"])
        sql = "UPDATE comparison SET item = ?, left_first = ? WHERE id = ?"
        db.execute(sql, [item.id, item.left_first, row["id"]])
