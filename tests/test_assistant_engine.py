"""The local engine on a tiny model: replies are the same alone and together, and faults stay where they happen."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from assistant.engine import Message, Reply, Request, Sampling
from assistant.errors import AdapterMissing, EngineBusy, GenerationFailed, PromptTooLong
from assistant.fake import FakeEngine
from assistant.loading import ServedModel
from assistant.local import LocalEngine
from assistant.lora import AdapterBank
from assistant.settings import load_settings
from tests.test_assistant_adapters import random_adapter
from tests.tiny import tiny_model, tiny_tokenizer

GREEDY = Sampling(temperature=0, max_new_tokens=24)


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def served() -> ServedModel:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocabulary=len(tokenizer))
    return ServedModel(model, tokenizer, "base-1", "fp32", "fp32", AdapterBank(model, "base-1"))


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(served(), load_settings())
    yield engine
    engine.close()


def test_a_reply_streams_in_pieces_that_make_the_whole(engine: LocalEngine) -> None:
    reply = engine.submit([Request(say("hello"), GREEDY)])[0]
    pieces = list(reply.pieces())
    assert "".join(pieces) == reply.text and reply.finish in ("stop", "length")
    assert reply.new_tokens <= 24 and reply.prompt_tokens > 0 and reply.first_token_s is not None


def test_greedy_replies_alone_and_in_a_batch_are_the_same(engine: LocalEngine) -> None:
    requests = [Request(say(f"question {'again ' * i}"), GREEDY) for i in range(5)]
    alone = [engine.submit([request])[0].wait(30) for request in requests]
    together = [reply.wait(30) for reply in engine.submit(requests)]
    assert alone == together and len(set(alone)) > 1


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(engine: LocalEngine) -> None:
    def draw(seed: int) -> str:
        return engine.submit([Request(say("hello"), Sampling(temperature=1.5, max_new_tokens=24, seed=seed))])[0].wait(
            30
        )

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_a_long_prompt_in_chunks_gives_the_reply_of_one_piece(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(say("the number of apples " * 20), GREEDY)
    whole = engine.submit([request])[0].wait(30)
    monkeypatch.setattr("assistant.local.READ_AT_ONCE", 7)
    assert engine.submit([request])[0].wait(30) == whole


def test_rows_under_different_adapters_each_equal_their_adapter_alone(tmp_path: Path) -> None:
    settings = load_settings()
    one, two = (random_adapter(settings.adapters_dir, seed).id for seed in (1, 2))
    engine = LocalEngine(served(), settings)
    try:
        requests = [Request(say("hello"), GREEDY, adapter) for adapter in (None, one, two)]
        alone = [engine.submit([request])[0].wait(30) for request in requests]
        together = [reply.wait(30) for reply in engine.submit(requests)]
    finally:
        engine.close()
    assert alone == together and len(set(alone)) == 3


@pytest.mark.long
def test_a_reply_under_way_finishes_on_its_adapter_while_another_begins(tmp_path: Path) -> None:
    settings = load_settings()
    one, two = (random_adapter(settings.adapters_dir, seed).id for seed in (1, 2))
    engine = LocalEngine(served(), settings)
    slow = Sampling(temperature=0, max_new_tokens=200)
    try:
        expected = [engine.submit([Request(say("go"), slow, adapter)])[0].wait(60) for adapter in (one, two)]
        first = engine.submit([Request(say("go"), slow, one)])[0]
        while not first.new_tokens:
            time.sleep(0.001)
        second = engine.submit([Request(say("go"), slow, two)])[0]
        assert [first.wait(60), second.wait(60)] == expected
    finally:
        engine.close()


def test_cancelling_frees_the_model_at_the_next_token(engine: LocalEngine) -> None:
    reply = engine.submit([Request(say("hello"), Sampling(temperature=1.9, max_new_tokens=900))])[0]
    while reply.new_tokens < 3:
        time.sleep(0.001)
    reply.cancel()
    before = reply.new_tokens
    reply.wait(10)
    assert reply.finish == "cancelled" and reply.new_tokens - before <= 2 and reply.text


def test_an_unknown_adapter_is_refused_before_anything_starts(engine: LocalEngine) -> None:
    with pytest.raises(AdapterMissing, match="no adapter nonesuch"):
        engine.submit([Request(say("hello"), GREEDY), Request(say("hello"), GREEDY, "nonesuch")])


def test_an_adapter_name_cannot_lead_out_of_its_folder(engine: LocalEngine, tmp_path: Path) -> None:
    outside = random_adapter(tmp_path / "outside")
    with pytest.raises(AdapterMissing):
        engine.submit([Request(say("hello"), GREEDY, f"../../outside/{outside.id}")])


def test_a_message_larger_than_the_context_is_refused_in_words(engine: LocalEngine) -> None:
    with pytest.raises(PromptTooLong, match="Shorten it"):
        engine.submit([Request(say("word " * 5000), GREEDY)])


def test_left_out_turns_are_told(engine: LocalEngine) -> None:
    history: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": "word " * 60} for i in range(21)]
    reply = engine.submit([Request(history, GREEDY)])[0]
    reply.wait(60)
    assert reply.dropped_turns > 0 and reply.prompt_tokens + reply.new_tokens <= 1024


def test_a_fault_in_one_reply_leaves_the_engine_alive(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise torch.OutOfMemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("assistant.replying.sample", broken)
        with pytest.raises(GenerationFailed, match="out of memory"):
            engine.submit([Request(say("hello"), GREEDY)])[0].wait(30)
    assert engine.submit([Request(say("hello"), GREEDY)])[0].wait(30)


def test_a_full_queue_says_so(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_queue_limit", 0)
    with pytest.raises(EngineBusy, match="Try again"):
        engine.submit([Request(say("hello"), GREEDY)])


def test_closing_ends_what_is_under_way(engine: LocalEngine) -> None:
    replies = engine.submit([Request(say("hello"), Sampling(temperature=1.9, max_new_tokens=900)) for _ in range(3)])
    engine.close()
    assert all(reply.done for reply in replies)
    with pytest.raises(EngineBusy):
        engine.submit([Request(say("hello"), GREEDY)])


def test_half_an_emoji_is_never_shown(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte-level tokenizer spends four tokens on one emoji; a page must never see a part of it."""
    tokenizer = tiny_tokenizer()
    script = iter([*tokenizer.encode("ok 😀 안녕", add_special_tokens=False), 2])
    monkeypatch.setattr("assistant.replying.sample", lambda *_: next(script))
    pieces = list(engine.submit([Request(say("hello"), Sampling(max_new_tokens=100))])[0].pieces())
    assert "".join(pieces) == "ok 😀 안녕"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("most", range(4, 9))
def test_a_reply_that_is_cut_in_an_emoji_ends_before_it(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    script = iter(tiny_tokenizer().encode("ok 😀😀😀", add_special_tokens=False))
    monkeypatch.setattr("assistant.replying.sample", lambda *_: next(script))
    reply = engine.submit([Request(say("hello"), Sampling(max_new_tokens=most))])[0]
    text = "".join(reply.pieces())
    assert reply.finish == "length" and text.startswith("ok") and "\ufffd" not in text


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two. END three", ("END",), "one two. "),
        ("one EN two E", ("END",), "one EN two E"),
        ("a # b ## c", ("##", "###"), "a # b "),
        ("cat dog", ("dog", "at d"), "c"),
        ("안녕 😀 그만", ("😀",), "안녕 "),
    ],
)
def test_a_reply_ends_before_a_stop_text_and_no_part_of_it_is_shown(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, text: str, stop: tuple[str, ...], shown: str
) -> None:
    script = iter([*tiny_tokenizer().encode(text, add_special_tokens=False), 2])
    monkeypatch.setattr("assistant.replying.sample", lambda *_: next(script))
    reply = engine.submit([Request(say("hello"), Sampling(max_new_tokens=100, stop=stop))])[0]
    so_far = ""
    for piece in reply.pieces():
        so_far += piece
        assert shown.startswith(so_far), "what is shown is never taken back"
    assert so_far == shown == reply.text and reply.finish == "stop"


def test_a_character_that_nothing_can_hold_is_left_out() -> None:
    reply = Reply()
    reply.grow("a\0b")
    reply.end("stop")
    assert reply.wait() == "ab" and reply.new_tokens == 1


def test_growth_comes_part_by_part_and_ends_with_the_whole() -> None:
    async def read(reply: Reply) -> list[str]:
        return [part async for part in reply.growth()]

    reply = FakeEngine(lambda _: "one two three", seconds_per_word=0.05).submit([Request(say("hello"))])[0]
    assert asyncio.run(read(reply)) == ["one", " two", " three"]
    assert asyncio.run(read(reply)) == ["one two three"], "a late reader gets it at once"


@pytest.mark.parametrize("kind", ["local", "fake"])
def test_both_engines_keep_the_promise(kind: str, engine: LocalEngine) -> None:
    subject = engine if kind == "local" else FakeEngine()
    first, second = subject.submit([Request(say("hello"), GREEDY), Request(say("bye"), GREEDY)])
    assert first.wait(30) == first.text and second.wait(30) == second.text
    assert first.done and first.new_tokens > 0 and subject.base_id and subject.numeric_form


def test_a_fake_fault_reaches_the_reader() -> None:
    def script(_: Request) -> str:
        raise RuntimeError("planted")

    with pytest.raises(GenerationFailed, match="planted"):
        FakeEngine(script).submit([Request(say("hello"))])[0].wait(10)


def test_snapshots_come_at_most_so_often_and_end_with_the_whole() -> None:
    async def read(reply: Reply) -> tuple[list[str], float]:
        start = time.monotonic()
        return [text async for text in reply.snapshots(at_most_per_s=20)], time.monotonic() - start

    reply = FakeEngine(lambda _: "word " * 60, seconds_per_word=0.005).submit([Request(say("hello"))])[0]
    shown, seconds = asyncio.run(read(reply))
    assert shown[-1] == reply.text and len(shown) <= seconds * 20 + 2


def test_the_end_is_told_at_once_however_seldom_the_text_is() -> None:
    async def read(reply: Reply) -> list[str]:
        return [text async for text in reply.snapshots(at_most_per_s=0.01)]

    reply = FakeEngine(lambda _: "word " * 20, seconds_per_word=0.01).submit([Request(say("hello"))])[0]
    shown = asyncio.run(asyncio.wait_for(read(reply), 30))
    assert shown[-1] == reply.text and len(shown) == 2
