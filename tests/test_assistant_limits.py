"""Where memory runs out, the line is full or adapters change, whoever is not concerned is answered as ever."""

import itertools
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import torch

from assistant.engine import Reply, Request, Sampling
from assistant.errors import AdapterMissing, EngineBusy, GenerationFailed
from assistant.local import LocalEngine
from assistant.rows import STEP, Rows, _larger
from assistant.settings import load_settings
from tests.test_assistant_adapters import random_adapter
from tests.test_assistant_batch import ENDLESS, GREEDY, alone, engine_with, settings_with
from tests.test_assistant_engine import say, served


def no_memory(*_: Any) -> None:
    raise MemoryError("planted")


def see_idle(engine: LocalEngine) -> None:
    """See that the engine comes to know that nothing is under way."""
    deadline = time.monotonic() + 10
    while engine.busy:
        assert time.monotonic() < deadline, "it never ends"
        time.sleep(0.001)


def lasting(*tokens: int) -> list[Request]:
    """Requests for replies that take so many tokens, from an endless engine."""
    return [Request(say(f"hello {i}"), Sampling(1.2, 1.0, most, 7)) for i, most in enumerate(tokens)]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_what_there_is_no_memory_to_keep_is_forgotten_and_every_reply_ends(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It failed every reply under way, and the last one of the batch, which had changed its place, never ended."""

    def keep(*_: Any) -> None:
        raise error("planted")

    engine = engine_with(endless=True)
    try:
        requests = lasting(30, 1, 10, 40)  # one ends as it joins, one that is not the last in the midst of the others
        expected = alone(engine, requests)
        assert engine.prefixes.bytes
        monkeypatch.setattr(Rows, "keep", keep)
        replies = engine.submit(requests)
        assert [reply.wait(30) for reply in replies] == expected
        assert {reply.finish for reply in replies} == {"length"}
        see_idle(engine)
        assert engine.prefixes.bytes == 0 and "no more of it could be kept" in caplog.text
    finally:
        engine.close()


def test_memory_that_runs_out_as_a_reply_joins_costs_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All replies to one question failed, those among them that were under way already."""
    original = Rows.join

    def tight(self: Rows, other: Rows) -> None:
        if len(self.lengths) == 2:
            no_memory()
        original(self, other)

    engine = engine_with(endless=True)
    try:
        requests = [Request(say("hello"), Sampling(1.2, 1.0, 30, seed)) for seed in range(3)]
        expected = alone(engine, requests)
        monkeypatch.setattr(Rows, "join", tight)
        replies = engine.submit(requests)
        assert [reply.wait(30) for reply in replies[:2]] == expected[:2]
        with pytest.raises(GenerationFailed, match="out of memory"):
            replies[2].wait(30)
        see_idle(engine)
    finally:
        engine.close()


def test_memory_that_runs_out_as_the_room_grows_costs_the_newest_reply_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    original, grown = _larger, itertools.count()

    def tight(old: torch.Tensor, most_rows: int, tokens: int) -> torch.Tensor:
        if tokens > STEP and most_rows > 2 and next(grown) == 2:
            no_memory()
        return original(old, most_rows, tokens)

    engine = engine_with(endless=True, prefix_cache_mb=0)
    try:
        requests = lasting(90, 90, 90)
        expected = alone(engine, requests)
        monkeypatch.setattr("assistant.rows._larger", tight)
        replies = engine.submit(requests)
        assert [reply.wait(30) for reply in replies[:2]] == expected[:2]
        with pytest.raises(GenerationFailed, match="out of memory"):
            replies[2].wait(30)
        see_idle(engine)
    finally:
        engine.close()


def test_keys_and_values_stay_in_their_part_of_the_memory_however_long_replies_become(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were counted as long as they were when one joined, and each of them was short then."""
    held: list[tuple[int, int]] = []

    class Weighed(Rows):
        def compute(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
            logits = super().compute(model, ids)
            held.append((len(self.lengths), sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)))
            return logits

    monkeypatch.setattr("assistant.local.Rows", Weighed)
    engine = engine_with(endless=True, prefix_cache_mb=0)
    try:
        engine.submit(lasting(1))[0].wait(30)
        bytes_a_token = held[0][1] // STEP
        engine._most_bytes = 2 * 3 * STEP * bytes_a_token  # two replies of up to 192 tokens
        replies = engine.submit(lasting(*[120] * 6))
        for reply in replies:
            reply.wait(30)
        assert {reply.finish for reply in replies} == {"length"}
        assert max(number for number, _ in held) == 2
        assert max(size for _, size in held) <= engine._most_bytes
    finally:
        engine.close()


def test_adapters_of_one_call_do_not_put_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the second one of a call could forget the first, and the reply under it failed."""
    monkeypatch.setattr("assistant.local.KEPT_ADAPTERS", 1)
    settings = load_settings()
    adapters = [random_adapter(settings.adapters_dir, seed).id for seed in range(3)]
    engine = LocalEngine(served(), settings)
    try:
        replies = engine.submit([Request(say("hello"), GREEDY, adapter) for adapter in adapters])
        assert len({reply.wait(30) for reply in replies}) == 3
        with pytest.raises(AdapterMissing):
            engine.submit([Request(say("hello"), GREEDY, adapter) for adapter in (adapters[0], "nonesuch")])
        see_idle(engine)
    finally:
        engine.close()


def test_an_adapter_is_loaded_before_all_change_their_form_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was loaded meanwhile was held in the form of before, which the own products take for another."""
    taking, go_on = threading.Event(), threading.Event()

    def take(*_: Any) -> None:
        taking.set()
        go_on.wait(10)

    monkeypatch.setattr("assistant.local.take_own_products", take)
    settings = load_settings()
    adapter = random_adapter(settings.adapters_dir).id
    engine = LocalEngine(served(), settings)
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.extend(engine.submit([Request(say("hello"), GREEDY, adapter)])))
    try:
        engine.take_own_products(8)
        assert taking.wait(10)
        asking.start()
        asking.join(0.3)
        assert asking.is_alive() and adapter not in engine._served.adapters.loaded
        go_on.set()
        asking.join(10)
        assert replies[0].wait(30)
    finally:
        go_on.set()
        engine.close()


def test_of_many_who_come_at_once_as_many_wait_as_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each saw an empty line before any other stood in it."""
    engine = LocalEngine(served(), settings_with(at_once=1).model_copy(update={"queue_limit": 2}))
    engine.stop_ids = set()
    waiting: list[Reply] = []
    original = engine._written

    def slowly(request: Request) -> Any:
        time.sleep(0.02)
        return original(request)

    def ask(number: int) -> None:
        with suppress(EngineBusy):
            waiting.extend(engine.submit([Request(say(f"hello {number}"), ENDLESS)]))

    try:
        first = engine.submit([Request(say("hello"), ENDLESS)])[0]
        while not first.new_tokens:
            time.sleep(0.001)
        monkeypatch.setattr(engine, "_written", slowly)
        crowd = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert len(waiting) == 2 and not first.done
    finally:
        engine.close()


def test_a_full_queue_tells_how_long_it_takes_once_that_is_known() -> None:
    engine = LocalEngine(served(), settings_with(at_once=1).model_copy(update={"queue_limit": 2}))
    engine.stop_ids = set()
    try:
        first = engine.submit([Request(say("hello"), ENDLESS)])[0]
        while not first.new_tokens:
            time.sleep(0.001)
        for number in range(2):
            engine.submit([Request(say(f"hello {number}"), ENDLESS)])
        with pytest.raises(EngineBusy, match="Try again in a minute"):
            engine.submit([Request(say("again"), ENDLESS)])
        engine._reply_s = 12.0
        with pytest.raises(EngineBusy, match="2 others are waiting for a reply already. Try again in about 36 s."):
            engine.submit([Request(say("again"), ENDLESS)])
    finally:
        engine.close()
