"""The local engine: one thread owns the model and writes all replies under way as rows of one batch.

A reply joins the batch once its prompt is read and leaves it at its end, between two steps; each row has its own
adapter, sampler and seed. Prompts are read in pieces between the steps, so that a long one does not hold up what is
written. What was read lately is kept: the next turn of a conversation computes only what is new.
"""

import logging
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from assistant.arithmetic import memory_bytes
from assistant.engine import Place, Pulse, Reply, Request
from assistant.errors import EngineBusy
from assistant.kernels import shapes_of
from assistant.loading import ServedModel
from assistant.own_layers import numeric_form, take_own_products
from assistant.prefixes import Prefixes
from assistant.prompt import end_of_turn, fit_prompt
from assistant.replying import Written
from assistant.rows import OneRow, Rows, can_be_joined
from assistant.settings import Settings

log = logging.getLogger(__name__)

READ_AT_ONCE = 512
"""The most tokens of prompts read between two steps."""
READ_BESIDE = 128
"""The same while replies are being written, which wait for it: 0.06 s at 2,000 tokens a second, 0.4 s at 300. By
tokens, not by the clock: what is submitted together to an idle engine is computed alike each time."""
MEMORY_SHARE = 4
"""The part of the memory, one in so many, that keys and values of replies under way may take."""
KEPT_ADAPTERS = 4


class Prompt:
    """A prompt to be read once for all the replies to it."""

    def __init__(self, ids: list[int], adapter: str | None, replies: list[Written]) -> None:
        self.ids = ids
        self.adapter = adapter
        self.replies = replies
        self.rows: Rows | OneRow | None = None
        """What has been read of it."""


class LocalEngine:
    """The engine over a loaded model.

    Args:
        served: the model; from now on only this engine's thread may run it.
        settings: context budget, limits and the adapters' folder.
    """

    def __init__(self, served: ServedModel, settings: Settings) -> None:
        self.base_id = served.base_id
        self.numeric_form = served.numeric_form
        self.pulse = Pulse()
        self.shapes = shapes_of(served.model)
        """Of the layers in 4 bits, by which the faster products for them are known."""
        self._served = served
        self._adapters_dir = settings.adapters_dir
        self._queue_limit = settings.queue_limit
        self._seconds = settings.serving.deadline_s
        self._context = min(settings.context_tokens, served.model.config.get_text_config().max_position_embeddings)
        self._joined = can_be_joined(served.model.config)
        self._most_rows = settings.serving.at_once if self._joined else 1
        self.stop_ids = {end_of_turn(served.tokenizer), served.tokenizer.eos_token_id}
        """Tokens that end a reply; a bench takes them out."""
        self._arrived: queue.SimpleQueue[list[Prompt]] = queue.SimpleQueue()
        self._when_idle: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._encoding = threading.Lock()
        self._in_use: Counter[str | None] = Counter()
        self._arriving = 0  # prompts that the model's thread has not heard of yet
        self._count_lock = threading.Lock()
        self._closed = threading.Event()
        # from here on: of the model's thread alone
        self.prefixes = Prefixes(settings.serving.prefix_cache_mb * 2**20)
        self._most_bytes = memory_bytes() // MEMORY_SHARE
        self._waiting: deque[Prompt] = deque()
        self._read: Prompt | None = None
        self._writing: list[Written] = []
        self._rows: Rows | OneRow = Rows()
        self._reply_s: float | None = None  # how long replies of late took
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> list[Reply]:
        """Encode, check adapters, and queue the requests; the same prompt under the same adapter is read once.

        Raises:
            PromptTooLong, AdapterError: a request cannot be served; none of them starts.
            EngineBusy: too many prompts are waiting.
        """
        if self._closed.is_set():
            raise EngineBusy("The assistant is shutting down. Try again in a minute.")
        with self._encoding:  # fast tokenizers are not made for several threads; and each counts those before it
            self._refuse_if_full()
            written = [self._written(request) for request in requests]
            self._make_ready(written)
            prompts = self._prompts(written)
            with self._count_lock:
                self._arriving += len(prompts)
            self._arrived.put(prompts)
        if self._closed.is_set():  # the thread may have gone before it saw them
            self._end_all()
        return [one.reply for one in written]

    def take_own_products(self, few_rows: int) -> None:
        """Multiply up to so many rows by the project's own products, once no reply is under way; they are loaded."""

        def take() -> None:
            before, self.numeric_form = self.numeric_form, numeric_form(few_rows)
            try:
                with self._encoding:  # an adapter that is loaded meanwhile would be held in the form of before
                    take_own_products(self._served.model, self._served.adapters, few_rows)
            except Exception:  # the edge of the model's thread: it goes on as it was
                log.exception("the own products were not taken")
                self.numeric_form = before
            self.prefixes.clear()

        self._when_idle.put(take)
        self._arrived.put([])

    @property
    def busy(self) -> bool:
        """Whether a reply is under way or waits."""
        return any(self._in_use.values())

    def counters(self) -> Mapping[str, int]:
        """How much of the prompts was known from what was read lately, in tokens, and the memory that takes."""
        prefixes = self.prefixes
        return {
            "prompt_tokens_asked_total": prefixes.asked_tokens,
            "prompt_tokens_known_total": prefixes.found_tokens,
            "prefix_cache_bytes": prefixes.bytes,
        }

    def close(self) -> None:
        """Stop the model's thread; replies under way end as cancelled."""
        self._closed.set()
        self._arrived.put([])
        self._thread.join(timeout=30)

    def _written(self, request: Request) -> Written:
        room = min(request.sampling.max_new_tokens, self._context // 2)
        prompt = fit_prompt(self._served.tokenizer, request.messages, self._context - room)
        reply = Reply(self.pulse)
        reply.prompt_tokens = len(prompt.ids)
        reply.dropped_turns = prompt.dropped_turns
        reply.control_tokens = prompt.control_tokens
        limit = min(request.sampling.max_new_tokens, self._context - len(prompt.ids))
        return Written(request, reply, prompt.ids, limit, self._seconds, self._served.tokenizer)

    def _prompts(self, written: Sequence[Written]) -> list[Prompt]:
        """Put replies to the same prompt under the same adapter together, as many as are written at once."""
        same: dict[tuple[str | None, tuple[int, ...]], list[Written]] = {}
        for one in written:
            same.setdefault((one.adapter, tuple(one.ids)), []).append(one)
        return [
            Prompt(list(ids), adapter, replies[start : start + self._most_rows])
            for (adapter, ids), replies in same.items()
            for start in range(0, len(replies), self._most_rows)
        ]

    def _refuse_if_full(self) -> None:
        """See that there is a place in the line.

        Raises:
            EngineBusy: there is none; whoever came in spite of it would wait for longer than people do.
        """
        with self._count_lock:
            waiting = len(self._waiting) + self._arriving
        if waiting < self._queue_limit:
            return
        seconds = self._expected_s(waiting)
        when = "Try again in a minute." if seconds is None else f"Try again in about {math.ceil(seconds)} s."
        others = "Somebody else is" if waiting == 1 else f"{waiting} others are"
        raise EngineBusy(f"{others} waiting for a reply already. {when}")

    def _make_ready(self, written: Sequence[Written]) -> None:
        """Load the adapters of these replies, which use them from now on.

        Raises:
            AdapterError: one cannot be loaded; none of them is used.
        """
        with self._count_lock:  # all of them first: loading one must not forget another
            self._in_use.update(one.adapter for one in written)
        try:
            for adapter in {one.adapter for one in written} - {None}:
                self._ready(str(adapter))
        except BaseException:
            for one in written:
                self._release(one)
            raise

    def _ready(self, adapter_id: str) -> None:
        """Load an adapter, and forget the oldest ones that no reply uses."""
        bank = self._served.adapters
        if adapter_id not in bank.loaded:
            bank.load(Path(self._adapters_dir) / Path(adapter_id).name)
            with self._count_lock:
                spare = [name for name in bank.loaded if name != adapter_id and not self._in_use[name]]
            for name in spare[: max(0, len(bank.loaded) - KEPT_ADAPTERS)]:
                bank.unload(name)

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._hear()
                self._let_go()
                self._read_prompts()
                self._write()
            except Exception as error:  # a fault of the engine's own: it begins afresh rather than fall silent
                for one in self._under_way():
                    _fail(one, error)
                    self._release(one)
                self._read, self._writing, self._rows = None, [], Rows()
                self._waiting.clear()
        self._end_all()

    def _end_all(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._waiting.extend(self._arrived.get_nowait())
        for one in self._under_way():
            one.reply.end("cancelled")

    def _under_way(self) -> list[Written]:
        prompts = [*([self._read] if self._read else []), *self._waiting]
        return [*self._writing, *(one for prompt in prompts for one in prompt.replies)]

    def _hear(self) -> None:
        """Take in what arrived; wait for it where there is nothing else to do."""
        idle = not (self._waiting or self._read or self._writing)
        if idle:
            with suppress(queue.Empty):
                self._when_idle.get_nowait()()
        while idle or not self._arrived.empty():
            prompts = self._arrived.get()
            with self._count_lock:
                self._waiting.extend(prompts)
                self._arriving -= len(prompts)
            idle = False
            self._number()

    def _number(self) -> None:
        """Tell those who wait how many are before them, and how long that takes."""
        for number, prompt in enumerate(self._waiting):
            for one in prompt.replies:
                one.reply.wait_at(Place(number, self._expected_s(number)))

    def _expected_s(self, ahead: int) -> float | None:
        """How long it takes to be begun behind so many others, if replies go on as of late; None before the first."""
        return None if self._reply_s is None else (ahead + 1) * self._reply_s / self._most_rows

    def _let_go(self) -> None:
        """Leave those behind that nobody waits for any more."""
        for number in reversed(range(len(self._writing))):
            if self._writing[number].ended_by_others():
                self._leave(number)
        for prompt in [*([self._read] if self._read else []), *self._waiting]:
            self._drop(prompt, [one for one in prompt.replies if one.ended_by_others()])
        if self._read and not self._read.replies:
            self._read = None
        self._waiting = deque(prompt for prompt in self._waiting if prompt.replies)

    def _drop(self, prompt: Prompt, ended: list[Written]) -> None:
        for one in ended:
            prompt.replies.remove(one)
            self._release(one)

    def _release(self, one: Written) -> None:
        with self._count_lock:
            self._in_use[one.adapter] -= 1

    def _read_prompts(self) -> None:
        """Read pieces of prompts, as much as may be between two steps."""
        left = READ_BESIDE if self._writing else READ_AT_ONCE
        while left > 0 and (self._read or self._begin_next()):
            assert self._read
            left -= self._read_piece(self._read, left)

    def _begin_next(self) -> bool:
        """Begin with the prompt that waits longest, where there is a place for its replies."""
        if not self._waiting or not self._has_room(self._waiting[0]):
            return False
        self._read = self._waiting.popleft()
        for one in self._read.replies:
            one.reply.wait_at(None)
            one.begin()
        self._number()
        return True

    def _has_room(self, prompt: Prompt) -> bool:
        """Whether keys and values fit beside the others', each row as long as any may become or has room for."""
        if not self._writing:
            return True
        replies = [*self._writing, *prompt.replies]
        longest = max(self._rows.room[1], *(len(one.ids) + one.limit for one in replies))
        bytes_at_end = len(replies) * longest * self._rows.bytes_a_token
        return len(replies) <= self._most_rows and bytes_at_end <= self._most_bytes

    def _read_piece(self, prompt: Prompt, most: int) -> int:
        """Read a piece of a prompt; at its end its replies get their first token and join the batch.

        Returns:
            How many tokens were read.
        """
        try:
            if prompt.rows is None:
                prompt.rows = self._new_rows(prompt)
            rows = prompt.rows
            done = rows.lengths[0]
            ids = prompt.ids[done : done + most]
            logits = self._compute(rows, [ids], [prompt.adapter])
            if done + len(ids) == len(prompt.ids):
                self._read = None
                self._join(prompt, rows, logits[0])
            return len(ids)
        except Exception as error:  # the edge of the model's thread: these replies fail, those that are joined live on
            self._read = None
            lost = [one for one in prompt.replies if one not in self._writing]
            for one in lost:
                _fail(one, error)
            self._drop(prompt, lost)
            return most

    def _new_rows(self, prompt: Prompt) -> Rows | OneRow:
        """Make a row for a prompt, with what was read of it lately."""
        if not self._joined:
            return OneRow(self._served.model.config)
        return Rows.after(*self.prefixes.find(prompt.adapter, prompt.ids))

    def _join(self, prompt: Prompt, rows: Rows | OneRow, logits: Tensor) -> None:
        for one in list(prompt.replies):
            self._draw(one, logits)
            if one.reply.done:
                self._remember(one, rows, 0)
                self._drop(prompt, [one])
                continue
            if not self._writing:
                self._rows = rows
            elif isinstance(self._rows, Rows) and isinstance(rows, Rows):
                self._rows.join(rows)
            self._writing.append(one)

    def _write(self) -> None:
        """Write one token of every reply."""
        if not self._writing:
            return
        try:
            last = [one.new[-1:] for one in self._writing]
            logits = self._compute(self._rows, last, [one.adapter for one in self._writing])
        except Exception as error:  # one of them goes, and the others try again: what they have is as before
            return _fail(max(self._writing, key=lambda one: one.reply.created), error)
        for one, row in zip(self._writing, logits, strict=True):
            self._draw(one, row)
        for number in reversed(range(len(self._writing))):
            if self._writing[number].reply.done:
                self._leave(number)

    def _compute(self, rows: Rows | OneRow, ids: list[list[int]], adapters: list[str | None]) -> Tensor:
        """Read so many tokens behind each row; (rows, vocabulary)."""
        with self._served.adapters.use_rows(adapters):
            return rows.compute(self._served.model, torch.tensor(ids, device=self._served.model.device)).cpu()

    def _draw(self, one: Written, logits: Tensor) -> None:
        try:
            one.draw(logits, self.stop_ids)
        except Exception as error:  # of this reply alone
            _fail(one, error)

    def _leave(self, number: int) -> None:
        """Take a reply out of the batch; the last one takes its number."""
        one = self._writing[number]
        self._remember(one, self._rows, number)
        if isinstance(self._rows, Rows):
            self._rows.leave(number)
        last = self._writing.pop()  # only now: whatever fails before must find all of them here, to end them
        if one is not last:
            self._writing[number] = last
        took = time.monotonic() - one.begun
        self._reply_s = took if self._reply_s is None else self._reply_s + 0.2 * (took - self._reply_s)
        self._release(one)

    def _remember(self, one: Written, rows: Rows | OneRow, number: int) -> None:
        """Keep what was read of a reply for its next turn; where there is no memory for it, forget all that is kept."""
        length = rows.lengths[number]
        failed = one.reply.finish == "failed"
        if not isinstance(rows, Rows) or failed or not self.prefixes.fits(length, rows.bytes_a_token):
            return
        try:
            self.prefixes.keep(one.adapter, [*one.ids, *one.new][:length], rows.keep(number))
        except (MemoryError, RuntimeError) as error:  # torch's own, too; no reply needs what is kept
            log.warning("what was read lately is forgotten, since no more of it could be kept", exc_info=error)
            self.prefixes.clear()


def _fail(one: Written, error: Exception) -> None:
    log.error("a reply failed", exc_info=error)
    what = "the machine ran out of memory" if _is_memory(error) else type(error).__name__
    one.reply.end("failed", f"The reply failed ({what}). Try again; the details are in the log.")


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so of a CPU's in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
