"""What the store hands out: frozen values that know nothing of the database.

Times are UTC, ISO 8601 with microseconds and a final Z, so that text order is time order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

Role = Literal["operator", "member"]
Teach = Literal["on", "off", "unanswered"]
"""Whether a person's chats may teach the assistant; unanswered means off."""
PersonKind = Literal["owner", "account", "simulated", "imported"]
ConversationKind = Literal["chat", "compare", "rank", "api"]
Speaker = Literal["user", "assistant"]
MessageState = Literal["streaming", "done", "stopped", "failed", "interrupted"]
Choice = Literal["left", "right", "tie", "both-bad"]
RunState = Literal["running", "done", "crashed"]
Outcome = Literal["promoted", "refused", "skipped", "failed"]
AdapterState = Literal["ready", "refused", "retired"]
PairSource = Literal["comparison", "thumbs", "rewrite", "preference"]

CONVERSATION_KINDS: tuple[ConversationKind, ...] = ("chat", "compare", "rank", "api")
"""The page that a conversation belongs to; `api` is held by another program over /v1."""
REASONS_UP = ("correct", "clear", "complete", "right_tone", "other")
REASONS_DOWN = ("wrong", "unclear", "too_long", "ignored_instruction", "told_the_answer", "bad_tone", "other")


def utc_now() -> str:
    """Return this moment the way the store writes it."""
    return as_text(datetime.now(UTC))


def as_text(moment: datetime) -> str:
    """Return a moment, which must know its time zone, the way the store writes it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Turn(TypedDict):
    """One message of a prompt, in the shape that chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Person:
    """Somebody who chats or votes."""

    id: int
    name: str
    role: Role
    kind: PersonKind
    disabled: bool = False
    teach: Teach = "unanswered"


@dataclass(frozen=True)
class Origin:
    """What produced a reply."""

    adapter_id: str | None
    """A registered adapter, or None for the bare base."""
    base_id: str
    numeric_form: str
    """How the base was quantised while it answered."""
    preset: str
    system: str
    """The system prompt's text; may be empty."""
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Message:
    """One node of a conversation's tree; retried replies are siblings."""

    id: str
    conversation_id: str
    parent_id: str | None
    role: Speaker
    text: str
    state: MessageState
    finish: str | None
    """Why generation ended, in the engine's words."""
    new_tokens: int | None
    created_at: str
    origin: Origin | None
    """Set on every reply, never on what a person wrote."""


@dataclass(frozen=True)
class Conversation:
    """A tree of messages that belongs to one person."""

    id: str
    person_id: int
    title: str
    kind: ConversationKind
    created_at: str
    updated_at: str


@dataclass(frozen=True)
class Vote:
    """A thumb: one a person and reply, the last one counts."""

    message_id: str
    person_id: int
    value: Literal[-1, 0, 1]
    """1 up, -1 down, 0 taken back."""
    reasons: tuple[str, ...]
    comment: str
    version: int
    """1 for the first choice, one more for each change."""
    updated_at: str


@dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt as they were shown, and the choice once there is one."""

    id: str
    person_id: int
    conversation_id: str
    prompt_message_id: str
    left_message_id: str
    right_message_id: str
    choice: Choice | None
    shown_at: str
    chosen_at: str | None
    hidden: tuple[str, ...]
    """What the person did not see until the choice."""
    decided_s: float | None
    """Seconds from being shown to the first choice."""


@dataclass(frozen=True)
class Ranking:
    """Replies to one prompt put in order by one person; the last order counts."""

    id: str
    person_id: int
    conversation_id: str
    prompt_message_id: str
    ranks: Mapping[str, int]
    """By message id, in the order shown; 1 is best, equal is a tie, no gaps."""
    none_is_good: bool
    version: int
    ranked_at: str
    retracted: bool
    """Taken back; it teaches nothing until the replies are ranked again."""


@dataclass(frozen=True)
class Rewrite:
    """What a person would have answered instead of a reply."""

    message_id: str
    person_id: int
    text: str
    updated_at: str


@dataclass(frozen=True)
class Run:
    """One night."""

    id: str
    state: RunState
    outcome: Outcome | None
    started_at: str
    finished_at: str | None
    pid: int
    boot_id: str
    adapter_id: str | None
    data_hash: str | None
    reasons: tuple[str, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """An adapter that a night made; its folder bears the same id."""

    id: str
    run_id: str | None
    base_id: str
    state: AdapterState
    created_at: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Live:
    """Where the live pointer stands; None is the bare base."""

    adapter_id: str | None
    previous_id: str | None
    generation: int
    """0 until the first promotion; every move adds one."""


@dataclass(frozen=True)
class LiveMove:
    """One move of the live pointer."""

    generation: int
    adapter_id: str | None
    at: str
    why: Literal["promote", "rollback", "withdrawn"]
    """Withdrawn: a tainted adapter gave way to the base."""


@dataclass(frozen=True)
class TrainItem:
    """One example that a run learns from: whose it is, and the replies it is made of."""

    person_id: int
    message_ids: tuple[str, ...]


@dataclass(frozen=True)
class PreferencePair:
    """One reply preferred to another after the same prompt, by one person."""

    key: str
    """Names the choice it comes from; stays the same while the choice is there."""
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: PairSource
    person_id: int
    conversation_id: str
    created_at: str
    ids: tuple[str, ...]
    """The replies it is made of: chosen, rejected; the one reply when it was rewritten."""


@dataclass(frozen=True)
class Demonstration:
    """What a person would have answered to a prompt."""

    key: str
    prompt: tuple[Turn, ...]
    completion: str
    person_id: int
    conversation_id: str
    created_at: str
    ids: tuple[str, ...]
    """The reply that was rewritten."""


@dataclass(frozen=True)
class RatedReply:
    """A reply with the thumb that one person gave it."""

    key: str
    prompt: tuple[Turn, ...]
    completion: str
    up: bool
    person_id: int
    conversation_id: str
    created_at: str
    ids: tuple[str, ...]
    """The reply."""


@dataclass(frozen=True)
class RankedReplies:
    """Two to nine replies to a prompt with the ranks that one person gave them."""

    key: str
    prompt: tuple[Turn, ...]
    completions: tuple[str, ...]
    """In the order shown."""
    ranks: tuple[int, ...]
    """One a completion; 1 is best, equal is a tie."""
    none_is_good: bool
    """Even the best is not worth imitating."""
    person_id: int
    conversation_id: str
    created_at: str
    ids: tuple[str, ...]
    """The replies, one a completion."""
