"""Messages to tokens: the only place that does it, shared by serving, training and examination.

Control tokens that people type (`<|im_start|>system`) stay plain text here, whatever the template does
with them: a conversation has exactly the turns its messages say.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from assistant.engine import Message
from assistant.errors import AssistantError, PromptTooLong

ROLES = ("system", "user", "assistant")
HALF = re.compile("[\ud800-\udfff]")
PROBE = "nightschool"
"""A system text that no template writes by itself."""


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt within its budget: token ids, how many earlier turns were left out, control tokens kept as text."""

    ids: list[int]
    dropped_turns: int
    control_tokens: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Turn a conversation into the ids after which the model writes its reply.

    Where the template knows no system role, the system text goes in front of the first user message.

    Raises:
        ValueError: a role is none of system, user, assistant (a role is never taken from a person's text).
    """
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"A message has the role {message['role']!r}; use system, user or assistant.")
    if messages and messages[0]["role"] == "system" and not _knows_system_role(tokenizer):
        messages = _without_system_role(messages)
    return _apply_template(tokenizer, messages)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Turn a reply into the ids the model should have produced: its text, then the end of the turn."""
    return [*_encode_text(tokenizer, text), end_of_turn(tokenizer)]


def fit_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_tokens: int) -> FittedPrompt:
    """Encode the system prompt and as many of the latest turns as the budget holds.

    Args:
        tokenizer: gives the template.
        messages: the conversation, an optional system message first, the message to answer last.
        max_tokens: budget of the prompt in tokens.

    Raises:
        AssistantError: a message holds half a character, as of bytes that are not UTF-8.
        PromptTooLong: the last message does not fit by itself; cutting it in silence would answer
            a question that nobody asked.
    """
    if any(HALF.search(message["content"]) for message in messages):
        raise AssistantError("The message holds half a character, which no model can read; write it again as UTF-8.")
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])
    starts = [_first_turn_that_may_fit(tokenizer, system, turns, max_tokens)]
    while starts[-1] < len(turns) - 1:
        starts.append(_next_user_turn(turns, starts[-1]))
    encoded: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        encoded[start] = encode_prompt(tokenizer, [*system, *turns[start:]])
        return len(encoded[start]) <= max_tokens

    # nearly always the first does; else halving finds it, for a thousand short turns take seconds one by one
    found = 0 if fits(starts[0]) else bisect_left(starts, True, lo=1, key=fits)
    if found == len(starts):
        raise PromptTooLong(
            f"The message is {len(encoded[starts[-1]]):,} tokens long with its instructions, and {max_tokens:,} fit. "
            "Shorten it and send it again."
        )
    start = starts[found]
    return FittedPrompt(encoded[start], start, count_control_tokens(tokenizer, turns[start:]))


def count_control_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> int:
    """Count the control tokens that stand in people's text. They are reported, never a reason to drop a vote."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not names:
        return 0
    pattern = re.compile("|".join(re.escape(name) for name in names))
    return sum(len(pattern.findall(message["content"])) for message in messages)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the token that ends a reply, from what the template puts behind one."""
    question: Message = {"role": "user", "content": "a"}
    answer: Message = {"role": "assistant", "content": "b"}
    whole = _apply_template(tokenizer, [question, answer], add_generation_prompt=False)
    specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    last_text = max((i for i, token in enumerate(whole) if token in _encode_text(tokenizer, "b")), default=0)
    after = [token for token in whole[last_text + 1 :] if token in specials]
    return int(after[0] if after else tokenizer.eos_token_id)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the chat template and vocabulary, so that cached numbers are not used under another."""
    digest = hashlib.sha256((tokenizer.get_chat_template() or "").encode())
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = True
) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(  # type: ignore[assignment]
        [{"role": message["role"], "content": message["content"]} for message in messages],
        add_generation_prompt=add_generation_prompt,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _knows_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes a system message out; some refuse it, some leave it out without a word."""
    question = [{"role": "system", "content": PROBE}, {"role": "user", "content": "a"}]
    try:
        return PROBE in str(tokenizer.apply_chat_template(question, tokenize=False))
    except TemplateError:
        return False


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _first_turn_that_may_fit(
    tokenizer: PreTrainedTokenizerBase, system: Sequence[Message], turns: Sequence[Message], max_tokens: int
) -> int:
    """Skip the turns that cannot fit by their bare text, so that a very long history is not encoded whole."""
    room = max_tokens - sum(len(_encode_text(tokenizer, m["content"])) for m in system)
    start = len(turns)
    while start > 0 and room > 0:
        start -= 1
        room -= len(_encode_text(tokenizer, turns[start]["content"]))
    if room <= 0 and start < len(turns) - 1:
        start = _next_user_turn(turns, start)
    return min(start, max(len(turns) - 1, 0))


def _next_user_turn(turns: Sequence[Message], start: int) -> int:
    """Index of the next user turn after `start`: what is kept always begins with a person's words."""
    return next((i for i in range(start + 1, len(turns)) if turns[i]["role"] == "user"), len(turns) - 1)
