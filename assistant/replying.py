"""One reply being written by the local engine: its sampler, its end, and the text that may be shown so far."""

import math
import time

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assistant.engine import Reply, Request
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
        self._limit = limit
        self._seconds = seconds
        self._deadline = math.inf
        self._tokenizer = tokenizer
        self._shown = 0  # index in `new` up to which text was sent
        self._context = 0  # index from which text is decoded, so that spaces come out right

    def begin(self) -> None:
        """Its time runs from now on."""
        self._deadline = time.monotonic() + self._seconds

    def ended_by_others(self) -> bool:
        """Whether nobody waits for it any more or its time is over; then it has ended."""
        if self.reply.cancelled:
            self.reply.end("cancelled")
        elif time.monotonic() > self._deadline:
            self.reply.end("failed", "The reply took longer than it may. Try again, or ask for a shorter one.")
        return self.reply.done

    def draw(self, logits: Tensor, stop_ids: set[int]) -> None:
        """Take the next token from logits (V,) and end the reply where it ends."""
        token = sample(logits, self._sampling, self._generator)
        if token in stop_ids:
            self._send(final=True)
            return self.reply.end("stop")
        self.new.append(token)
        self._send(final=False)
        if len(self.new) >= self._limit:
            self._send(final=True)
            self.reply.end("length")

    def _send(self, final: bool) -> None:
        """Pass on the text that is complete: half an emoji waits for its other half."""
        before = self._decode(self.new[self._context : self._shown])
        now = self._decode(self.new[self._context :])
        if now.endswith("\ufffd") and not final:
            return self.reply.grow("")
        self.reply.grow(now[len(before) :], tokens=0 if final else 1)
        self._context, self._shown = self._shown, len(self.new)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
