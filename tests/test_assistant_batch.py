"""Many at once on a tiny model in fp32: whoever joins when, each reply is the one it would be alone."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.engine import Message, Place, Reply, Request, Sampling
from assistant.errors import EngineBusy, GenerationFailed
from assistant.local import LocalEngine
from assistant.rows import OneRow, Rows
from assistant.settings import Settings, load_settings
from tests.test_assistant_adapters import random_adapter
from tests.test_assistant_engine import say, served

GREEDY = Sampling(temperature=0, max_new_tokens=24)
WARM = Sampling(temperature=1.2, max_new_tokens=40, seed=7)
ENDLESS = Sampling(temperature=1.9, max_new_tokens=900)


def settings_with(**serving: Any) -> Settings:
    settings = load_settings()
    return settings.model_copy(update={"serving": settings.serving.model_copy(update=serving)})


def engine_with(endless: bool = False, **serving: Any) -> LocalEngine:
    """An engine over a tiny model; `endless` replies end at their limit alone."""
    engine = LocalEngine(served(), settings_with(**serving))
    if endless:
        engine.stop_ids = set()
    return engine


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = engine_with()
    yield engine
    engine.close()


@pytest.fixture
def forgetful() -> Iterator[LocalEngine]:
    """Keeps no prefixes: every reply computes all of its own."""
    engine = engine_with(prefix_cache_mb=0)
    yield engine
    engine.close()


def alone(engine: LocalEngine, requests: Sequence[Request]) -> list[str]:
    return [engine.submit([request])[0].wait(60) for request in requests]


class Counted(Rows):
    """Rows that count the forwards and the tokens of them."""

    shapes: list[tuple[int, int]] = []

    def compute(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """As ever."""
        Counted.shapes.append((ids.shape[0], ids.shape[1]))
        return super().compute(model, ids)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (rows, tokens) of every forward."""
    Counted.shapes = []
    monkeypatch.setattr("assistant.local.Rows", Counted)
    return Counted.shapes


def test_eight_joining_at_different_times_write_what_each_writes_alone(forgetful: LocalEngine) -> None:
    draw = random.Random(3)
    requests = [
        Request(say("apples " * draw.randrange(1, 60)), Sampling(draw.choice([0, 0.8]), 1.0, 40, seed))
        for seed in range(24)
    ]
    expected = alone(forgetful, requests)
    replies: list[Reply] = []
    for request in requests:
        replies += forgetful.submit([request])
        time.sleep(draw.random() * 0.02)
    assert [reply.wait(60) for reply in replies] == expected and len(set(expected)) > 12


def test_replies_to_different_people_share_their_steps(shapes: list[tuple[int, int]]) -> None:
    engine = engine_with(endless=True)
    try:
        for reply in [engine.submit([Request(say(f"question {i}"), ENDLESS)])[0] for i in range(6)]:
            while reply.new_tokens < 30:
                time.sleep(0.001)
        assert max(rows for rows, _ in shapes) == 6
    finally:
        engine.close()


def test_rows_of_three_adapters_in_one_batch_each_equal_their_adapter_alone(shapes: list[tuple[int, int]]) -> None:
    settings = settings_with(prefix_cache_mb=0)
    one, two = (random_adapter(settings.adapters_dir, seed).id for seed in (1, 2))
    engine = LocalEngine(served(), settings)
    try:
        requests = [Request(say("hello"), WARM, adapter) for adapter in (None, one, two, one, None, two)]
        expected = alone(engine, requests)
        shapes.clear()
        together = [reply.wait(60) for reply in engine.submit(requests)]
    finally:
        engine.close()
    assert together == expected and len(set(expected)) == 3 and max(rows for rows, _ in shapes) == 6


def test_two_replies_to_one_question_share_its_reading(shapes: list[tuple[int, int]]) -> None:
    engine = engine_with(prefix_cache_mb=0)
    try:
        left, right = engine.submit([Request(say("apples " * 40), Sampling(1.5, 1.0, 30, seed)) for seed in (1, 2)])
        assert left.wait(60) != right.wait(60)
        assert sum(tokens for _, tokens in shapes if tokens > 1) == left.prompt_tokens == right.prompt_tokens
        assert (2, 1) in shapes
    finally:
        engine.close()


def test_the_next_turn_computes_only_what_is_new(engine: LocalEngine, forgetful: LocalEngine) -> None:
    talk = say("the number of apples " * 20)
    first = engine.submit([Request(talk, GREEDY)])[0]
    turns: list[Message] = [*talk, {"role": "assistant", "content": first.wait(60)}, *say("and then")]
    before = engine.prefixes.found_tokens
    again = engine.submit([Request(turns, GREEDY)])[0]
    assert again.wait(60) == forgetful.submit([Request(turns, GREEDY)])[0].wait(60)
    assert engine.prefixes.found_tokens - before >= first.prompt_tokens
    assert forgetful.prefixes.found_tokens == 0 and forgetful.prefixes.bytes == 0


def test_an_adapter_never_goes_on_from_what_another_has_read() -> None:
    settings = load_settings()
    adapters = [None, *(random_adapter(settings.adapters_dir, seed).id for seed in (1, 2))]
    requests = [Request(say("the number of apples " * 9), GREEDY, adapter) for adapter in adapters]
    fresh = LocalEngine(served(), settings_with(prefix_cache_mb=0))
    engine = LocalEngine(served(), settings)
    try:
        assert alone(engine, requests) == alone(fresh, requests)
        assert engine.prefixes.found_tokens == 0
        assert alone(engine, requests) == alone(fresh, requests)
        assert engine.prefixes.found_tokens > 0
    finally:
        engine.close()
        fresh.close()


def test_what_was_read_longest_ago_is_forgotten_first() -> None:
    engine = engine_with(prefix_cache_mb=1)
    try:
        for number in range(40):  # each takes about 64 KiB
            engine.submit([Request(say(f"{number} " * 40), Sampling(0, 1.0, 4))])[0].wait(60)
            assert engine.prefixes.bytes <= 2**20
        found = engine.prefixes.found_tokens
        for number, is_kept in ((39, True), (0, False)):
            engine.submit([Request(say(f"{number} " * 40), Sampling(0, 1.0, 4))])[0].wait(60)
            assert (engine.prefixes.found_tokens - found > 60) == is_kept
            found = engine.prefixes.found_tokens
    finally:
        engine.close()


def test_a_long_prompt_does_not_hold_up_a_reply_being_written(
    shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assistant.local.READ_BESIDE", 16)
    engine = engine_with(endless=True, prefix_cache_mb=0)
    try:
        written = engine.submit([Request(say("hello"), ENDLESS)])[0]
        while written.new_tokens < 5:
            time.sleep(0.001)
        shapes.clear()
        long = engine.submit([Request(say("apples " * 100), GREEDY)])[0]
        long.wait(60)
        pieces = [tokens for _, tokens in shapes if tokens > 1]
        assert len(pieces) > 5 and max(pieces) <= 16
        between = [i for i, (_, tokens) in enumerate(shapes) if tokens > 1]
        assert all(b - a == 2 for a, b in zip(between, between[1:], strict=False))  # a step between any two pieces
    finally:
        engine.close()


def test_what_is_submitted_together_is_computed_alike_each_time(shapes: list[tuple[int, int]]) -> None:
    """A night's examination and a rehearsal rest on it: no clock decides who is in which batch."""
    requests = [Request(say(f"question {i} " * (1 + i % 7)), WARM) for i in range(50)]
    runs = []
    for pause in (0.0, 0.003):
        shapes.clear()
        engine = engine_with()
        engine._served.model.register_forward_pre_hook(lambda *_, pause=pause: time.sleep(pause))
        try:
            runs.append(([reply.wait(60) for reply in engine.submit(requests)], list(shapes)))
        finally:
            engine.close()
    assert runs[0] == runs[1]


def test_those_who_wait_know_how_many_are_before_them() -> None:
    engine = engine_with(endless=True, at_once=1)
    try:
        replies = [engine.submit([Request(say(f"hello {i}"), ENDLESS)])[0] for i in range(4)]
        while [reply.place for reply in replies] != [None, Place(0, None), Place(1, None), Place(2, None)]:
            time.sleep(0.001)
        replies[0].cancel()
        replies[2].cancel()
        while replies[1].place or not replies[3].place or replies[3].place.ahead:
            time.sleep(0.001)
        assert replies[3].place.seconds and replies[3].place.seconds < 60
        assert replies[2].wait(10) == "" and replies[2].finish == "cancelled"
    finally:
        engine.close()


def test_a_full_queue_tells_how_many_wait() -> None:
    settings = settings_with(at_once=1).model_copy(update={"queue_limit": 2})
    engine = LocalEngine(served(), settings)
    engine.stop_ids = set()
    try:
        with pytest.raises(EngineBusy, match="2 others are waiting"):
            for i in range(20):
                engine.submit([Request(say(f"hello {i}"), ENDLESS)])
                time.sleep(0.05)
    finally:
        engine.close()


def test_a_reply_that_takes_too_long_ends_and_the_others_go_on() -> None:
    engine = engine_with(endless=True)
    try:
        long, short = engine.submit([Request(say("hello"), ENDLESS), Request(say("bye"), GREEDY)])
        while not long.new_tokens:
            time.sleep(0.001)
        next(one for one in engine._writing if one.reply is long)._seconds = 0.0
        assert short.wait(30)
        with pytest.raises(GenerationFailed, match="took longer than it may"):
            long.wait(30)
        assert long.text and engine.submit([Request(say("bye"), GREEDY)])[0].wait(30) == short.text
    finally:
        engine.close()


def test_whoever_stops_leaves_the_others_as_they_were() -> None:
    engine = engine_with(endless=True)
    long = Sampling(1.2, 1.0, 120, 7)
    try:
        requests = [Request(say(f"hello {i} " + "again " * i), long) for i in range(4)]
        expected = alone(engine, requests)
        replies = engine.submit(requests)
        while replies[3].new_tokens < 5:
            time.sleep(0.001)
        replies[0].cancel()
        replies[2].cancel()
        assert [replies[1].wait(30), replies[3].wait(30)] == [expected[1], expected[3]]
        assert [reply.finish for reply in replies] == ["cancelled", "length", "cancelled", "length"]
    finally:
        engine.close()


def test_memory_that_runs_out_in_a_step_costs_the_newest_reply_alone(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request(say(f"hello {i}"), WARM) for i in range(3)]
    expected = alone(engine, requests)
    original = Rows.compute

    def tight(self: Rows, model: Any, ids: torch.Tensor) -> torch.Tensor:
        if ids.shape[0] > 2:
            raise torch.OutOfMemoryError("planted")
        return original(self, model, ids)

    monkeypatch.setattr(Rows, "compute", tight)
    replies = engine.submit(requests)
    assert [reply.wait(30) for reply in replies[:2]] == expected[:2]
    with pytest.raises(GenerationFailed, match="out of memory"):
        replies[2].wait(30)


def test_a_fault_of_the_engine_itself_fails_what_is_under_way_and_no_more(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.submit([Request(say("hello"), GREEDY)])[0].wait(30)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_write", lambda: 1 / 0)
        with pytest.raises(GenerationFailed, match="ZeroDivisionError"):
            engine.submit([Request(say("hello"), GREEDY)])[0].wait(30)
    assert engine.submit([Request(say("hello"), GREEDY)])[0].wait(30) == expected


def test_models_that_cannot_be_joined_answer_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(say(f"hello {i}"), WARM) for i in range(3)]
    joined = engine_with()
    expected = alone(joined, requests)
    joined.close()
    monkeypatch.setattr("assistant.local.can_be_joined", lambda _: False)
    engine = engine_with()
    try:
        replies = engine.submit(requests)
        while not replies[0].new_tokens:
            time.sleep(0.001)
        assert isinstance(engine._rows, OneRow) or replies[0].done
        assert [reply.wait(30) for reply in replies] == expected
    finally:
        engine.close()


@pytest.mark.long
def test_two_hundred_replies_while_the_adapter_is_swapped_each_keep_their_own() -> None:
    """Every 100 ms another adapter is asked for; each reply is the one that its adapter writes alone."""
    settings = load_settings()
    one, two = (random_adapter(settings.adapters_dir, seed).id for seed in (1, 2))
    engine = LocalEngine(served(), settings.model_copy(update={"queue_limit": 200}))
    live, over = [one], threading.Event()

    def swap() -> None:
        while not over.wait(0.1):
            live[0] = two if live[0] == one else one

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        asked: list[tuple[str, int, Reply]] = []
        for number in range(200):
            adapter = live[0]
            asked.append((adapter, number, engine.submit([Request(say(f"q {number}"), WARM, adapter)])[0]))
            time.sleep(0.01)
        texts = [reply.wait(120) for _, _, reply in asked]
    finally:
        over.set()
        swapper.join()
    assert {adapter for adapter, _, _ in asked} == {one, two}
    expected = alone(engine, [Request(say(f"q {number}"), WARM, adapter) for adapter, number, _ in asked])
    engine.close()
    assert texts == expected


def test_unused_adapters_are_forgotten_and_those_in_use_are_not(tmp_path: Path) -> None:
    settings = load_settings()
    ids = [random_adapter(settings.adapters_dir, seed).id for seed in range(7)]
    model = served()
    engine = LocalEngine(model, settings)
    engine.stop_ids = set()
    try:
        first = engine.submit([Request(say("hello"), ENDLESS, ids[0])])[0]
        while not first.new_tokens:
            time.sleep(0.001)
        for adapter in ids[1:]:
            engine.submit([Request(say("hello"), GREEDY, adapter)])[0].wait(30)
        assert len(model.adapters.loaded) <= 4 + 1 and ids[0] in model.adapters.loaded and not first.done
    finally:
        engine.close()
