"""What other programs send to /v1 and get from it, in the forms of OpenAI's API. Pure: knows no engine and no store.

Source: https://platform.openai.com/docs/api-reference/chat

Does not cover tools, pictures, log-probabilities and penalties: each is refused by name, never ignored in silence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.engine import MOST_SEED, Message, Sampling

MOST_CHOICES: Final = 8
NOT_HERE: Final = (
    *("tools", "tool_choice", "functions", "function_call", "logprobs", "top_logprobs", "logit_bias"),
    *("frequency_penalty", "presence_penalty", "audio", "modalities", "prediction", "web_search_options"),
)
"""What would change the reply and is not there; null, false, 0 and empty ask for nothing."""
OTHERS: Final = {"top_k": -1, "min_p": 0, "repetition_penalty": 1}
"""What other servers know and this one does not, with the value that asks for nothing."""
INVALID: Final = "invalid_request_error"
Form = TypeVar("Form", bound=BaseModel)


class BadRequest(Exception):
    """A request that cannot be served; its sentence goes to whoever sent it.

    Args:
        sentence: what is wrong and what to do.
        status: of the answer.
        code: OpenAI's own word for it, where there is one.
        param: the field that is meant.
    """

    def __init__(self, sentence: str, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.param = param


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _TextFormat(BaseModel):
    type: Literal["text"]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)
    model: str = Field("live", max_length=200)
    messages: list[_Turn] = Field(min_length=1, max_length=1000)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    seed: int | None = Field(None, ge=-MOST_SEED, le=MOST_SEED)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    response_format: _TextFormat | None = None


class _Feedback(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    message_id: str = Field(max_length=200)
    rating: Literal["up", "down"] | None
    reasons: list[str] = Field([], max_length=20)
    comment: str = ""


@dataclass(frozen=True)
class Asked:
    """A request for replies, checked."""

    model: str
    system: str
    turns: Sequence[Message]
    """User and assistant in turns, the last one the user's."""
    samplings: Sequence[Sampling]
    """One for each reply wanted."""
    streams: bool
    usage_at_end: bool


def read_completion(body: bytes, defaults: Sampling, seeds: Sequence[int]) -> Asked:
    """Check a request for replies.

    Args:
        body: as it was sent.
        defaults: for what it does not say.
        seeds: one for each reply that may be asked for.

    Raises:
        BadRequest: it asks for what is not there, or cannot be read.
    """
    fields = _object(body)
    for name in (*NOT_HERE, *OTHERS):
        if fields.get(name) and fields[name] != OTHERS.get(name):
            raise BadRequest(f"`{name}` is not supported here; leave it out.", param=name)
    sent = _checked(_Body, fields)
    system, turns = _conversation(sent.messages)
    most = sent.max_completion_tokens or sent.max_tokens or defaults.max_new_tokens
    drawn = (
        seeds
        if sent.seed is None
        else [min(sent.seed, MOST_SEED - len(seeds)) + number for number in range(len(seeds))]
    )
    stop = (sent.stop,) if isinstance(sent.stop, str) else tuple(sent.stop or ())
    samplings = [
        Sampling(
            defaults.temperature if sent.temperature is None else sent.temperature,
            defaults.top_p if sent.top_p is None else sent.top_p,
            most,
            seed,
            tuple(text for text in stop if text),
        )
        for seed in drawn[: sent.n or 1]
    ]
    usage = bool(sent.stream_options and sent.stream_options.include_usage)
    return Asked(sent.model, system, turns, samplings, bool(sent.stream), usage)


def read_feedback(body: bytes) -> tuple[str, int, list[str], str]:
    """Check a rating; returns message id, value (1, -1 or 0), reasons and comment.

    Raises:
        BadRequest: it cannot be read.
    """
    sent = _checked(_Feedback, _object(body))
    return sent.message_id, {"up": 1, "down": -1, None: 0}[sent.rating], sent.reasons, sent.comment


def error_body(status: int, sentence: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Put an error in the form that clients read."""
    kind = INVALID if 400 <= status < 500 and status != 429 else "rate_limit_error" if status == 429 else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}


def completion(about: Mapping[str, Any], choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> Any:
    """A whole answer; `about` holds id, created and model."""
    return {**about, "object": "chat.completion", "choices": list(choices), "usage": dict(usage)}


def choice(index: int, message_id: str, text: str, finish: str) -> dict[str, Any]:
    """One reply of a whole answer; `message_id` is what feedback names."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "index": index, "message": message, "logprobs": None, "finish_reason": finish, "message_id": message_id,
    }  # fmt: skip


def chunk(
    about: Mapping[str, Any], index: int, message_id: str, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    """A part of a streamed answer; `message_id` is what feedback names."""
    one = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish, "message_id": message_id}
    return {**about, "object": "chat.completion.chunk", "choices": [one]}


def usage_of(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Count tokens in the form that clients read."""
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": prompt_tokens + new_tokens,
    }  # fmt: skip


def event(data: Any) -> bytes:
    """Write one server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BadRequest("The body is not a JSON object; send one.")
    return fields


def _checked(form: type[Form], fields: dict[str, Any]) -> Form:
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = str(first["msg"])
        raise BadRequest(f"`{place}` is wrong: {what[0].lower()}{what[1:]}.", param=place) from None


def _conversation(messages: Sequence[_Turn]) -> tuple[str, list[Message]]:
    """Divide messages into the system prompt and the turns after it.

    Raises:
        BadRequest: they do not take turns, or the last one is not the user's.
    """
    said = list(messages)
    system = []
    while said and said[0].role in ("system", "developer"):
        system.append(said.pop(0).text)
    roles = [turn.role for turn in said]
    if not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)] or roles[-1] != "user":
        raise BadRequest(
            "`messages` must be system messages, if any, and then user and assistant in turns, beginning and ending"
            " with the user; join what one of them says twice.",
            param="messages",
        )
    return "\n\n".join(system), [Message(role=turn.role, content=turn.text) for turn in said]
