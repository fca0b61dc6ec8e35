"""Votes of other programs, as lines of our own kinds: Open WebUI's feedback export and Chatbot Arena's vote log.

Pure: one record in, one line out, or None for a record that is no vote. Sources: Open WebUI
backend/open_webui/models/feedbacks.py; FastChat fastchat/serve/gradio_block_arena_anony.py and
fastchat/serve/monitor/clean_battle_data.py. Does not cover images, nor arena votes whose two sides had different turns
before the last: there is no one prompt then that both answered.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from feedback_store.errors import BadInput

FORMATS: Mapping[str, tuple[str, ...]] = {
    "nightschool": ("preferences", "thumbs", "comparisons", "rankings", "demonstrations", "conversations"),
    "openwebui": ("thumbs",),
    "arena": ("comparisons", "thumbs"),
}
"""The kinds that each format can hold, the usual one first."""
_REASONS = {
    "accurate_information": "correct",
    "followed_instructions_perfectly": "complete",
    "thorough_explanation": "complete",
    "attention_to_detail": "complete",
    "positive_attitude": "right_tone",
    "dont_like_the_style": "bad_tone",
    "too_verbose": "too_long",
    "not_factually_correct": "wrong",
    "didnt_fully_follow_instructions": "ignored_instruction",
}
"""Open WebUI's reasons by ours; all else becomes `other`."""
_CHOICES = {
    "leftvote": "left",
    "rightvote": "right",
    "tievote": "tie",
    "bothbad_vote": "both-bad",
    "model_a": "left",
    "model_b": "right",
    "tie": "tie",
    "tie (bothbad)": "both-bad",
}
_WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")
_LABELS = {"upvote": True, "downvote": False}
Line = dict[str, Any]


def read_foreign(record: Mapping[str, Any], kind: str, format: str) -> Line | None:
    """Return a record of another program as a line of ours, or None when it is no vote of that kind.

    Raises:
        BadInput: it is a vote, but lacks what a line needs.
    """
    if format == "openwebui":
        return _openwebui_thumb(record)
    return _arena_comparison(record) if kind == "comparisons" else _arena_thumb(record)


def in_their_words(problem: str, record: Mapping[str, Any], format: str) -> str:
    """Return what is wrong with a line of ours with the names of the fields that the record has it from."""
    if format == "openwebui":
        snapshot = "snapshot.chat.history.messages"
        theirs = {
            "annotator": "user_id",
            "created_at": "updated_at" if record.get("updated_at") else "created_at",
            "prompt": snapshot,
            "completion": snapshot,
            "comment": "data.comment",
        }
    else:
        sides = ("states",) * 2 if "states" in record else ("conversation_a", "conversation_b")
        names = ("prompt", "left", "right", "completion")
        theirs = {"id": "question_id", "annotator": "judge", "created_at": "tstamp"}
        theirs |= dict(zip(names, (sides[0], *sides, sides[0]), strict=True))
    return re.sub(r"(?<=`)\w+(?=`)", lambda name: theirs.get(name[0], name[0]), problem)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"Its `{what}` must be an object.")
    return value


def _openwebui_thumb(record: Mapping[str, Any]) -> Line | None:
    data = _object(record.get("data"), "data")
    if record.get("type", "rating") != "rating" or data.get("rating") not in (1, -1):
        return None
    meta = _object(record.get("meta"), "meta")
    chat = _object(_object(record.get("snapshot"), "snapshot").get("chat"), "snapshot.chat")
    chat = chat["chat"] if isinstance(chat.get("chat"), dict) else chat
    messages = _object(_object(chat.get("history"), "history").get("messages"), "history.messages")
    path = _openwebui_path(messages, meta.get("message_id"))
    system = _system(chat, path)
    label, reason, comment = data["rating"] == 1, data.get("reason"), data.get("comment")
    return {
        "id": record.get("id"),
        "annotator": record.get("user_id"),
        "created_at": record.get("updated_at") or record.get("created_at"),
        "prompt": [*system, *path[:-1]],
        "completion": [path[-1]],
        "label": label,
        "reasons": [_openwebui_reason(reason, label)] if isinstance(reason, str) and reason else [],
        "comment": comment if isinstance(comment, str) else "",
        "models": [data.get("model_id") or "imported"],
    }


def _openwebui_reason(reason: str, label: bool) -> str:
    ours = _REASONS.get(reason, "other")
    return ours if (ours in ("correct", "complete", "right_tone")) == label else "other"


def _openwebui_path(messages: Mapping[str, Any], message_id: Any) -> list[Line]:
    """Return the turns from the root to the rated message."""
    path: list[Line] = []
    seen: set[str] = set()
    while isinstance(message_id, str):
        if message_id in seen or message_id not in messages:
            raise BadInput("Its `snapshot` lacks the rated message or one before it.")
        seen.add(message_id)
        message = _object(messages[message_id], "history.messages")
        path.insert(0, {"role": message.get("role"), "content": message.get("content")})
        message_id = message.get("parentId")
    if not path:
        raise BadInput("Its `meta` does not name the rated message.")
    return path


def _system(chat: Mapping[str, Any], path: list[Line]) -> list[Line]:
    params = chat.get("params")
    text = params.get("system") if isinstance(params, dict) else None
    if path[0]["role"] == "system" or not isinstance(text, str) or not text:
        return []
    return [{"role": "system", "content": text}]


def _arena_vote(record: Mapping[str, Any]) -> str:
    """Return how a record says what was chosen, or which of the log's other events it is.

    Raises:
        BadInput: it says nothing, or names a winner that there is not: a vote lost unseen would tilt all the others.
    """
    if "winner" not in record:
        if not isinstance(record.get("type"), str):
            raise BadInput("It has no `winner`, and its `type` is no word.")
        return str(record["type"])
    winner = record["winner"]
    if winner not in _WINNERS:
        raise BadInput(f"Its `winner` must be one of {', '.join(_WINNERS)}; it was {winner!r:.60}.")
    return str(winner)


def _arena_comparison(record: Mapping[str, Any]) -> Line | None:
    choice = _CHOICES.get(_arena_vote(record))
    if choice is None:
        return None
    sides = _arena_sides(record)
    if len(sides) != 2:
        raise BadInput("It must hold two conversations.")
    prompts = [turns[:-1] for turns, _, _ in sides]
    if prompts[0] != prompts[1]:
        raise BadInput("Its two sides differ before the last reply, so they answered different prompts.")
    return {
        **_arena_common(record, "-".join(name for _, _, name in sides)),
        "prompt": prompts[0],
        "left": sides[0][0][-1:],
        "right": sides[1][0][-1:],
        "choice": choice,
        "models": [model for _, model, _ in sides],
    }


def _arena_thumb(record: Mapping[str, Any]) -> Line | None:
    label = _LABELS.get(_arena_vote(record))
    if label is None:
        return None
    sides = _arena_sides(record)
    if not sides:
        raise BadInput("It must hold a conversation.")
    turns, model, name = sides[0]
    common = _arena_common(record, name)
    return {**common, "prompt": turns[:-1], "completion": turns[-1:], "label": label, "models": [model]}


def _arena_common(record: Mapping[str, Any], name: str) -> Line:
    """Name the line and who judged; an address is shortened to a hash, for nobody here needs to know it."""
    judge, address = record.get("judge"), record.get("ip")
    if not isinstance(judge, str) and isinstance(address, str) and address:
        judge = f"arena-{hashlib.sha256(address.encode(errors='replace')).hexdigest()[:12]}"
    return {
        "id": record.get("question_id") or name or None,
        "annotator": judge if isinstance(judge, str) and judge else "arena",
        "created_at": record.get("tstamp"),
    }


def _arena_sides(record: Mapping[str, Any]) -> list[tuple[list[Line], str, str]]:
    """Return turns, model and id of each conversation, of the raw log or of the cleaned one."""
    if "states" in record:
        states = record["states"]
        if not isinstance(states, list):
            raise BadInput("Its `states` must be a list.")
        return [_arena_state(_object(state, "states")) for state in states]
    sides = []
    for side in ("a", "b"):
        turns = record.get(f"conversation_{side}")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise BadInput(f"Its `conversation_{side}` must be a list of messages.")
        plain = [{"role": turn.get("role"), "content": turn.get("content")} for turn in turns]
        sides.append((plain, str(record.get(f"model_{side}") or "imported"), ""))
    return sides


def _arena_state(state: Mapping[str, Any]) -> tuple[list[Line], str, str]:
    """Read a dumped conversation: its roles are the template's words, the user's first; what precedes `offset` is
    the template's own example."""
    messages, roles, offset = state.get("messages"), state.get("roles"), state.get("offset", 0)
    if not isinstance(messages, list) or not isinstance(roles, list) or type(offset) is not int:
        raise BadInput("Its `states` must each hold messages, roles and an offset.")
    turns: list[Line] = []
    for message in messages[offset:]:
        if not isinstance(message, list) or len(message) != 2:
            raise BadInput("A message of its `states` must be a role and a text.")
        turns.append({"role": "user" if message[0] == roles[0] else "assistant", "content": message[1]})
    system = state.get("system_message")
    if isinstance(system, str) and system:
        turns.insert(0, {"role": "system", "content": system})
    if not turns:
        raise BadInput("A conversation of it is empty.")
    return turns, str(state.get("model_name") or "imported"), str(state.get("conv_id") or "")
