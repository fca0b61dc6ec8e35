"""The local engine: one thread owns the model and takes turns between the groups of replies under way.

Requests submitted together run as one batch; groups take turns token by token, each with its own adapter,
so a long reply does not hold up a short one and an adapter never changes under a reply. Rows of different
groups do not share a forward pass yet.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from assistant.engine import Reply, Request
from assistant.errors import EngineBusy
from assistant.loading import ServedModel
from assistant.prompt import end_of_turn, fit_prompt
from assistant.sampling import sample
from assistant.settings import Settings

log = logging.getLogger(__name__)

BATCH_ROWS = 32
ACTIVE_GROUPS = 8
PREFILL_CHUNK = 512
"""Tokens of one prompt computed before other replies get their turn."""
KEPT_ADAPTERS = 4


class LocalEngine:
    """The engine over a loaded model.

    Args:
        served: the model; from now on only this engine's thread may run it.
        settings: context budget, queue limit and the adapters' folder.
    """

    def __init__(self, served: ServedModel, settings: Settings) -> None:
        self.base_id = served.base_id
        self.numeric_form = served.numeric_form
        self._served = served
        self._adapters_dir = settings.adapters_dir
        self._queue_limit = settings.queue_limit
        self._context = min(settings.context_tokens, served.model.config.get_text_config().max_position_embeddings)
        self._stop_ids = {end_of_turn(served.tokenizer), served.tokenizer.eos_token_id}
        self._waiting: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._active: list[_Group] = []
        self._encoding = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Encode, check adapters, and queue the requests; those with the same adapter run as one batch.

        Raises:
            PromptTooLong, AdapterError: a request cannot be served; none of them starts.
            EngineBusy: too many groups are waiting.
        """
        if self._closed.is_set():
            raise EngineBusy("The assistant is shutting down. Try again in a minute.")
        if self._waiting.qsize() >= self._queue_limit:
            raise EngineBusy("Too many replies are waiting. Try again in a moment.")
        with self._encoding:  # fast tokenizers are not made for several threads
            rows = [self._row(request) for request in requests]
            adapters = {request.adapter for request in requests}
            for adapter in adapters - {None}:
                self._ready(str(adapter))
        for adapter in adapters:
            same = [row for row, request in zip(rows, requests, strict=True) if request.adapter == adapter]
            same.sort(key=lambda row: len(row.ids))  # less padding in each batch
            for start in range(0, len(same), BATCH_ROWS):
                self._waiting.put(_Group(self._served, same[start : start + BATCH_ROWS], adapter, self._stop_ids))
        return [row.reply for row in rows]

    def close(self) -> None:
        """Stop the model's thread; replies under way end as cancelled."""
        self._closed.set()
        self._waiting.put(None)
        self._thread.join(timeout=30)

    def _row(self, request: Request) -> "_Row":
        room = min(request.sampling.max_new_tokens, self._context // 2)
        prompt = fit_prompt(self._served.tokenizer, request.messages, self._context - room)
        reply = Reply()
        reply.prompt_tokens = len(prompt.ids)
        reply.dropped_turns = prompt.dropped_turns
        reply.control_tokens = prompt.control_tokens
        limit = min(request.sampling.max_new_tokens, self._context - len(prompt.ids))
        return _Row(request, reply, prompt.ids, limit, self._served.tokenizer)

    def _ready(self, adapter_id: str) -> None:
        """Load an adapter, and forget the oldest ones that no reply uses."""
        bank = self._served.adapters
        if adapter_id not in bank.loaded:
            bank.load(Path(self._adapters_dir) / Path(adapter_id).name)
            in_use = {group.adapter for group in list(self._active)} | {adapter_id}
            spare = [name for name in bank.loaded if name not in in_use]
            for name in spare[: max(0, len(bank.loaded) - KEPT_ADAPTERS)]:
                bank.unload(name)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._admit()
            for group in list(self._active):
                self._turn(group)
        while not self._waiting.empty():
            waiting = self._waiting.get()
            if waiting:
                self._active.append(waiting)
        for group in self._active:
            group.end_all("cancelled")

    def _admit(self) -> None:
        while len(self._active) < ACTIVE_GROUPS:
            if self._active and self._waiting.empty():
                return
            group = self._waiting.get()
            if group is None:
                return
            self._active.append(group)

    def _turn(self, group: "_Group") -> None:
        try:
            with torch.inference_mode(), self._served.adapters.use(group.adapter):
                group.step()
        except Exception as error:  # the edge of the model's thread: this group fails, the engine lives on
            log.exception("a reply failed")
            what = (
                "the machine ran out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
            )
            group.end_all("failed", f"The reply failed ({what}). Try again; the details are in the log.")
        if group.finished:
            self._active.remove(group)


class _Row:
    """One reply being written: its prompt, its sampler and the text so far."""

    def __init__(
        self, request: Request, reply: Reply, ids: list[int], limit: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.reply = reply
        self.ids = ids
        self._sampling = request.sampling
        self._generator = torch.Generator().manual_seed(request.sampling.seed)
        self._limit = limit
        self._tokenizer = tokenizer
        self._new: list[int] = []
        self._shown = 0  # index in _new up to which text was sent
        self._context = 0  # index from which text is decoded, so that spaces come out right

    def draw(self, logits: torch.Tensor, stop_ids: set[int]) -> int:
        """Take the next token from logits (V,) and end the reply where it ends."""
        token = sample(logits.cpu(), self._sampling, self._generator)
        if token in stop_ids:
            self._send(final=True)
            self.reply.end("stop")
            return token
        self._new.append(token)
        self._send(final=False)
        if len(self._new) >= self._limit:
            self._send(final=True)
            self.reply.end("length")
        return token

    def _send(self, final: bool) -> None:
        """Pass on the text that is complete: half an emoji waits for its other half."""
        before = self._decode(self._new[self._context : self._shown])
        now = self._decode(self._new[self._context :])
        if now.endswith("\ufffd") and not final:
            return self.reply.grow("")
        self.reply.grow(now[len(before) :], tokens=0 if final else 1)
        self._context, self._shown = self._shown, len(self._new)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _Group:
    """Rows that run as one batch under one adapter. Prompts are padded on the left."""

    def __init__(self, served: ServedModel, rows: list[_Row], adapter: str | None, stop_ids: set[int]) -> None:
        self.adapter = adapter
        self._model = served.model
        self._pad = served.tokenizer.pad_token_id or 0
        self._rows = rows
        self._stop_ids = stop_ids
        self._cache = DynamicCache(config=served.model.config)
        self._input, self._mask = self._padded_prompts()

    @property
    def finished(self) -> bool:
        """Whether every reply has ended."""
        return all(row.reply.done for row in self._rows)

    def end_all(self, finish: str, error: str = "") -> None:
        """End what has not ended."""
        for row in self._rows:
            row.reply.end("failed" if finish == "failed" else "cancelled", error)

    def step(self) -> None:
        """Compute one chunk of the prompt, or one token for every row."""
        for row in self._rows:
            if row.reply.cancelled:
                row.reply.end("cancelled")
        if self.finished:
            return
        self._shrink()
        chunk, rest = self._input, None
        if len(self._rows) == 1 and chunk.shape[1] > PREFILL_CHUNK:
            chunk, rest = chunk[:, :PREFILL_CHUNK], chunk[:, PREFILL_CHUNK:]
        logits = self._forward(chunk)
        if rest is not None:
            self._input = rest
            return
        tokens = [
            self._pad if row.reply.done else row.draw(logits[i], self._stop_ids) for i, row in enumerate(self._rows)
        ]
        self._input = torch.tensor(tokens, device=self._input.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        past = self._cache.get_seq_length()
        mask = self._mask[:, : past + ids.shape[1]]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        padded = len(self._rows) > 1
        output = self._model(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _shrink(self) -> None:
        """Leave ended replies behind, a few at a time: copying the cache has its price too."""
        alive = [i for i, row in enumerate(self._rows) if not row.reply.done]
        if len(self._rows) - len(alive) < max(1, len(self._rows) // 8):
            return
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(torch.tensor(alive, device=self._input.device))
        self._rows = [self._rows[i] for i in alive]
        self._input, self._mask = self._input[alive], self._mask[alive]

    def _padded_prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(row.ids) for row in self._rows)
        padding = [longest - len(row.ids) for row in self._rows]
        ids = [[self._pad] * n + row.ids for n, row in zip(padding, self._rows, strict=True)]
        mask = [[0] * n + [1] * len(row.ids) for n, row in zip(padding, self._rows, strict=True)]
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
