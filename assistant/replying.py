"""One reply being written by the local engine: its sampler, its end, and the text that may be shown so far."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assistant.engine import Reply, Request, until_stop
from assistant.sampling import sample


class Written:
    """A reply with the tokens it has.

    Args:
        request: what is asked for.
        reply: what its reader sees of it.
        ids: the prompt's tokens.
        limit: the most new tokens.
        seconds: how long it may take once it is begun.
        tokenizer: for the text.
    """

    def __init__(
        self,
        request: Request,
        reply: Reply,
        ids: list[int],
        limit: int,
        seconds: float,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.reply = reply
        self.adapter = request.adapter
        self.ids = ids
        self.new: list[int] = []
        self._sampling = request.sampling
        self._generator = torch.Generator().manual_seed(request.sampling.seed)
        self.limit = limit
        self._seconds = seconds
        self.begun = math.inf
        self._tokenizer = tokenizer
        self._held = ""  # text that a stop text may begin with
        self._shown = 0  # index in `new` up to which text was sent
        self._context = 0  # index from which text is decoded, so that spaces come out right

    def begin(self) -> None:
        """Its time runs from now on."""
        self.begun = time.monotonic()

    def ended_by_others(self) -> bool:
        """Whether nobody waits for it any more or its time is over; then it has ended."""
        if self.reply.cancelled:
            self.reply.end("cancelled")
        elif time.monotonic() - self.begun > self._seconds:
            self.reply.end("failed", "The reply took longer than it may. Try again, or ask for a shorter one.")
        return self.reply.done

    def draw(self, logits: Tensor, stop_ids: set[int]) -> None:
        """Take the next token from logits (V,) and end the reply where it ends."""
        token = sample(logits, self._sampling, self._generator)
        if token in stop_ids:
            self._send(self._complete(final=True), tokens=0)
            return self.reply.end("stop")
        self.new.append(token)
        if self._send(self._complete(final=False), tokens=1):
            return self.reply.end("stop")
        if len(self.new) >= self.limit:
            self._send(self._complete(final=True), tokens=0)
            self.reply.end("length")

    def _send(self, text: str, tokens: int) -> bool:
        """Pass on what no stop text may begin in any more, all of it with no token; say whether one has come."""
        text, stopped = until_stop(self._held + text, self._sampling.stop)
        held = 0 if stopped or not tokens else _begun(text, self._sampling.stop)
        self._held = text[len(text) - held :]
        self.reply.grow(text[: len(text) - held], tokens)
        return stopped

    def _complete(self, final: bool) -> str:
        """The text that is new and complete: half an emoji waits for its other half, and is left out at the end."""
        before = self._decode(self.new[self._context : self._shown])
        now = self._decode(self.new[self._context :])
        if now.endswith("\ufffd") and not final:
            return ""
        self._context, self._shown = self._shown, len(self.new)
        return now[len(before) :].rstrip("\ufffd") if final else now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _begun(text: str, stop: Sequence[str]) -> int:
    """How many characters at a text's end may be the beginning of a stop text."""
    longest = max((len(word) - 1 for word in stop), default=0)
    ends = range(min(longest, len(text)), 0, -1)
    return next((count for count in ends if any(word.startswith(text[-count:]) for word in stop)), 0)
