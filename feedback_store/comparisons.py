"""Two replies to one prompt side by side: put there, chosen between, read back. Sides are as they were shown."""

import json
import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlite_utils import Database

from feedback_store.checks import check_choice, check_text, to_json
from feedback_store.connection import Row, one_row, rows
from feedback_store.conversations import own_message
from feedback_store.errors import BadInput, ChoiceStands, NotYours
from feedback_store.items import find_item
from feedback_store.records import Choice, Comparison, utc_now

CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both-bad")
HIDDEN = ("adapter", "seed")
"""What a page does not show until the choice, unless it says otherwise."""
_COMPARISON = """
    SELECT comparison.*, (
        SELECT at FROM comparison_event WHERE comparison_id = comparison.id ORDER BY comparison_event.id LIMIT 1
    ) AS first_chosen_at FROM comparison"""


def show(
    db: Database, person_id: int, prompt_message_id: str, sides: tuple[str, str], hidden: Sequence[str]
) -> Comparison:
    """Store that two replies, left and right, were put side by side; see Votes.show_comparison."""
    kept = tuple(dict.fromkeys(hidden))
    for name in kept:
        check_text(name, "The name of what was hidden", max_chars=40, may_be_empty=False)
    comparison_id = secrets.token_hex(16)
    prompt = own_message(db, prompt_message_id, person_id)
    left, right = (own_message(db, side, person_id) for side in sides)
    replies = {reply.id for reply in (left, right) if reply.parent_id == prompt.id and reply.role == "assistant"}
    if prompt.role != "user" or len(replies) != 2:
        raise BadInput("A comparison needs two different replies to the same message.")
    db.execute(
        "INSERT INTO comparison(id, person_id, conversation_id, prompt_message_id, left_message_id,"
        " right_message_id, shown_at, hidden) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(comparison_id, person_id, prompt.conversation_id, prompt.id, left.id, right.id),
            *(utc_now(), to_json(kept, "What was hidden")),
        ],
    )
    return _own(db, comparison_id, person_id)


def choose(db: Database, comparison_id: str, person_id: int, choice: Choice, named: bool) -> Comparison:
    """Store a choice with what it is about; the same again changes nothing. See Votes.choose."""
    check_choice(choice, CHOICES, "The choice")
    shown = _own(db, comparison_id, person_id)
    for message_id in (shown.left_message_id, shown.right_message_id):
        if own_message(db, message_id, person_id).state not in ("done", "stopped"):
            raise BadInput("Both replies must be finished before one is chosen; wait, or ask again.")
    if shown.choice == choice:
        return shown
    if shown.choice and named:
        raise ChoiceStands
    now = utc_now()
    item = find_item(db, shown.prompt_message_id, shown.left_message_id, shown.right_message_id)
    db.execute(
        "INSERT INTO comparison_event(comparison_id, old, new, at) VALUES (?, ?, ?, ?)",
        [comparison_id, shown.choice, choice, now],
    )
    db.execute(
        "UPDATE comparison SET choice = ?, chosen_at = ?, item = ?, left_first = ? WHERE id = ?",
        [choice, now, item.id, item.left_first, comparison_id],
    )
    return _own(db, comparison_id, person_id)


def read_comparisons(db: Database, person_id: int, limit: int) -> list[Comparison]:
    """Return a person's comparisons, newest first."""
    sql = f"{_COMPARISON} WHERE person_id = ? ORDER BY seq DESC LIMIT ?"
    return [_comparison(row) for row in rows(db, sql, [person_id, limit])]


def _own(db: Database, comparison_id: str, person_id: int) -> Comparison:
    row = one_row(db, f"{_COMPARISON} WHERE id = ? AND person_id = ?", [comparison_id, person_id])
    if row is None:
        raise NotYours
    return _comparison(row)


def _comparison(row: Row) -> Comparison:
    return Comparison(
        id=row["id"],
        person_id=row["person_id"],
        conversation_id=row["conversation_id"],
        prompt_message_id=row["prompt_message_id"],
        left_message_id=row["left_message_id"],
        right_message_id=row["right_message_id"],
        choice=row["choice"],
        shown_at=row["shown_at"],
        chosen_at=row["chosen_at"],
        hidden=tuple(json.loads(row["hidden"])),
        decided_s=_seconds(row["shown_at"], row["first_chosen_at"]),
    )


def _seconds(since: str, until: str | None) -> float | None:
    """Return the seconds between two times; 0 where the clock was set back meanwhile."""
    if until is None:
        return None
    return max(0.0, (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds())
