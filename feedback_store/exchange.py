"""One line of a file from elsewhere, checked: JSON text in, a plain value out. Knows nothing of the database.

The shapes are those that `export` writes. A conversation's `messages` are a plain list unless a message names its
`parent` by place; a first message of role system is the system prompt of all its replies.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from feedback_store.ai import PREFIX
from feedback_store.checks import MAX_COMMENT_CHARS, check_choice, check_text
from feedback_store.comparisons import CHOICES
from feedback_store.errors import BadInput
from feedback_store.rankings import check_ranks
from feedback_store.records import CONVERSATION_KINDS, REASONS_DOWN, REASONS_UP, Turn, as_text

KINDS = ("preferences", "thumbs", "comparisons", "rankings", "demonstrations", "conversations")
ANNOTATOR = "imported"
"""Who judged when a line does not say."""
_NAME_CHARS = 300
_DEFAULTS = {
    "model": "imported",
    "numeric_form": "unknown",
    "preset": "unknown",
    "temperature": 0.0,
    "top_p": 1.0,
    "max_new_tokens": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class Reply:
    """A reply of an imported line, with what is known of its making."""

    text: str
    origin: Mapping[str, Any] = field(default_factory=lambda: dict(_DEFAULTS))
    system: str = ""
    state: str = "done"
    finish: str | None = None
    new_tokens: int | None = None


@dataclass(frozen=True)
class Node:
    """A message of an imported conversation."""

    parent: int | None
    text: str
    created_at: str | None
    reply: Reply | None
    """None for what a person wrote."""


@dataclass(frozen=True)
class Judgement:
    """One checked line."""

    kind: str
    annotator: str
    id: str | None
    created_at: str | None
    content_hash: str
    """Of everything but id, annotator, title and times: the same line again has the same."""
    nodes: tuple[Node, ...]
    """The prompt, root first; the whole conversation where that is the kind."""
    replies: tuple[Reply, ...] = ()
    """What was judged: chosen and rejected; left and right; the completions."""
    details: Mapping[str, Any] = field(default_factory=dict)


def parse_line(text: bytes) -> dict[str, Any]:
    """Return the object that a line of JSON holds.

    Raises:
        BadInput: it is not one.
    """
    try:
        line = json.loads(text.decode(), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise BadInput("It is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"It is no JSON ({str(error)[:80] or 'too deep'}).") from None
    if not isinstance(line, dict):
        raise BadInput("It is no JSON object.")
    return line


def check_line(line: Mapping[str, Any], kind: str) -> Judgement:
    """Return the checked line.

    Raises:
        BadInput: a field is absent or cannot be stored; the sentence names the field.
    """
    if kind == "conversations":
        nodes, details = _conversation(line)
        replies: tuple[Reply, ...] = ()
    else:
        system, turns = _prompt(line)
        replies = _replies(line, kind, system)
        nodes = tuple(_prompt_nodes(turns, system))
        details = _DETAILS[kind](line) if kind in _DETAILS else {}
    annotator = _name(line, "annotator") or ANNOTATOR
    if annotator.startswith(PREFIX):
        raise BadInput("Its `annotator` is an AI judge, and what an AI said is not imported among people's judgements.")
    said = [replace(node, created_at=None) for node in nodes]
    told = {name: value for name, value in details.items() if name not in ("shown_at", "title")}
    return Judgement(
        kind=kind,
        annotator=annotator,
        id=_name(line, "id"),
        created_at=_moment(line, "created_at"),
        content_hash=hashlib.sha256(repr((said, replies, sorted(told.items()))).encode()).hexdigest()[:32],
        nodes=nodes,
        replies=replies,
        details=details,
    )


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _name(line: Mapping[str, Any], field_name: str) -> str | None:
    value = line.get(field_name)
    if value is None:
        return None
    if type(value) is int:
        value = str(value)
    return check_text(value, f"Its `{field_name}`", max_chars=_NAME_CHARS, may_be_empty=False)


def _moment(line: Mapping[str, Any], field_name: str) -> str | None:
    value = line.get(field_name)
    if value is None:
        return None
    try:
        if type(value) in (int, float):
            return as_text(datetime.fromtimestamp(value, UTC))
        moment = datetime.fromisoformat(value)
        return as_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (TypeError, ValueError, OverflowError, OSError):
        raise BadInput(f"Its `{field_name}` is no time, in ISO 8601 or in seconds since 1970.") from None


def _turn(value: Any, what: str, roles: tuple[str, ...]) -> Turn:
    if not isinstance(value, dict) or value.get("role") not in roles:
        raise BadInput(f"{what} must be an object whose `role` is {' or '.join(roles)}.")
    content: Any = value.get("content")
    return Turn(role=value["role"], content=check_text(content, f"{what}'s `content`"))


def _prompt(line: Mapping[str, Any]) -> tuple[str, list[Turn]]:
    """Return the system prompt, empty when there is none, and the turns up to a person's message."""
    value = line.get("prompt")
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadInput("Its `prompt` must be a list of messages.")
    turns = [_turn(turn, "A message of its `prompt`", ("system", "user", "assistant")) for turn in value]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    roles = [turn["role"] for turn in turns]
    alternate = all(role == "user" or before == "user" for before, role in zip([None, *roles], roles, strict=False))
    if "system" in roles or not alternate or roles[-1:] != ["user"]:
        raise BadInput("Its `prompt` must begin and end with the user, and only the first message may be the system's.")
    if not all(turn["content"].strip() for turn in turns):
        raise BadInput("A message of its `prompt` is empty.")
    return system, turns


def _prompt_nodes(turns: list[Turn], system: str) -> list[Node]:
    replies = [Reply(turn["content"], system=system) if turn["role"] == "assistant" else None for turn in turns]
    return [
        Node(place - 1 if place else None, turn["content"], None, reply)
        for place, (turn, reply) in enumerate(zip(turns, replies, strict=True))
    ]


def _replies(line: Mapping[str, Any], kind: str, system: str) -> tuple[Reply, ...]:
    if kind == "rankings":
        completions = line.get("completions")
        if not isinstance(completions, list):
            raise BadInput("Its `completions` must be a list.")
        found = [(value, "completions") for value in completions]
    else:
        found = [(line.get(name), name) for name in _COMPLETIONS[kind]]
    models = line.get("models")  # the importers of other programs' files name them
    known = models if isinstance(models, list) and len(models) == len(found) else [_DEFAULTS["model"]] * len(found)
    replies = []
    for (value, name), model in zip(found, known, strict=True):
        text = _completion(value, name)
        if kind != "comparisons" and not (text.strip(" ") if kind == "preferences" else text.strip()):
            raise BadInput(f"Its `{name}` is empty.")
        replies.append(Reply(text, {**_DEFAULTS, "model": check_text(model, "A model's name", max_chars=200)}, system))
    if kind == "preferences" and replies[0].text == replies[1].text:
        raise BadInput("Its `chosen` and `rejected` are the same, so it prefers nothing.")
    return tuple(replies)


def _completion(value: Any, name: str) -> str:
    if isinstance(value, str):
        return check_text(value, f"Its `{name}`")
    if not isinstance(value, list) or len(value) != 1:
        raise BadInput(f"Its `{name}` must be a list of one message of the assistant.")
    return _turn(value[0], f"Its `{name}`", ("assistant",))["content"]


def _thumb(line: Mapping[str, Any]) -> dict[str, Any]:
    if type(line.get("label")) is not bool:
        raise BadInput("Its `label` must be true or false.")
    reasons = line.get("reasons", [])
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise BadInput("Its `reasons` must be a list of words.")
    for reason in reasons:
        check_choice(reason, REASONS_UP if line["label"] else REASONS_DOWN, "A reason")
    comment = check_text(line.get("comment", ""), "Its `comment`", max_chars=MAX_COMMENT_CHARS)
    return {"value": 1 if line["label"] else -1, "reasons": list(dict.fromkeys(reasons)), "comment": comment}


def _choice(line: Mapping[str, Any]) -> dict[str, Any]:
    choice = line.get("choice")
    if not isinstance(choice, str):
        raise BadInput(f"Its `choice` must be one of {', '.join(CHOICES)}.")
    return {"choice": check_choice(choice, CHOICES, "Its `choice`"), "shown_at": _moment(line, "shown_at")}


def _ranks(line: Mapping[str, Any]) -> dict[str, Any]:
    ranks, none_is_good = line.get("ranks"), line.get("none_is_good", False)
    if not isinstance(ranks, list) or len(ranks) != len(line["completions"]):
        raise BadInput("Its `ranks` must be a list, one number a completion.")
    if type(none_is_good) is not bool:
        raise BadInput("Its `none_is_good` must be true or false.")
    checked = check_ranks({str(place): rank for place, rank in enumerate(ranks)})
    return {"ranks": list(checked.values()), "none_is_good": none_is_good}


def _conversation(line: Mapping[str, Any]) -> tuple[tuple[Node, ...], dict[str, Any]]:
    messages = line.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadInput("Its `messages` must be a list of objects.")
    system = ""
    if messages and messages[0].get("role") == "system":
        system = _turn(messages[0], "Its system prompt", ("system",))["content"]
        messages = messages[1:]
    nodes: list[Node] = []
    for message in messages:
        nodes.append(_node(message, nodes, system))
    title = check_text(line.get("title", ""), "Its `title`", max_chars=_NAME_CHARS)
    kind = check_choice(line.get("kind", "chat"), CONVERSATION_KINDS, "Its `kind`")
    return tuple(nodes), {"title": title, "kind": kind}


def _node(message: Mapping[str, Any], before: list[Node], system: str) -> Node:
    turn = _turn(message, "A message", ("user", "assistant"))
    parent = message.get("parent", len(before) - 1 if before else None)
    if parent is not None and (type(parent) is not int or not 0 <= parent < len(before)):
        raise BadInput("A message's `parent` must be the place of an earlier one.")
    created_at = _moment(message, "created_at")
    if turn["role"] == "user":
        return Node(parent, check_text(turn["content"], "A user's message", may_be_empty=False), created_at, None)
    if parent is None or before[parent].reply is not None:
        raise BadInput("A reply must answer a message of the user.")
    return Node(parent, turn["content"], created_at, _made_reply(message, turn["content"], system))


def _made_reply(message: Mapping[str, Any], text: str, system: str) -> Reply:
    origin = {name: message.get(name, default) for name, default in _DEFAULTS.items()}
    for name, default in _DEFAULTS.items():
        value = origin[name]
        if isinstance(default, str):
            check_text(value, f"A reply's `{name}`", max_chars=_NAME_CHARS)
        elif type(value) not in (int, float) or not math.isfinite(value):
            raise BadInput(f"A reply's `{name}` must be a number.")
        elif isinstance(default, int) and (type(value) is not int or not -(2**63) <= value < 2**63):
            raise BadInput(f"A reply's `{name}` must be a whole number of 64 bits.")
    new_tokens, finish = message.get("new_tokens"), message.get("finish")
    if new_tokens is not None and (type(new_tokens) is not int or not 0 <= new_tokens < 2**31):
        raise BadInput("A reply's `new_tokens` must be a whole number.")
    state = message.get("state", "done")
    return Reply(
        text=text,
        origin=origin,
        system=check_text(message.get("system", system), "A reply's `system`"),
        state=check_choice(state, ("done", "stopped", "failed", "interrupted"), "A reply's `state`"),
        finish=None if finish is None else check_text(finish, "A reply's `finish`", max_chars=200),
        new_tokens=new_tokens,
    )


_COMPLETIONS = {
    "preferences": ("chosen", "rejected"),
    "thumbs": ("completion",),
    "comparisons": ("left", "right"),
    "demonstrations": ("completion",),
}
_DETAILS = {"thumbs": _thumb, "comparisons": _choice, "rankings": _ranks}
