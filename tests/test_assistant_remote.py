"""The engine over a real socket: it streams, hangs up, waits no longer than it may, and fails in words."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import SecretStr

from assistant.__main__ import main
from assistant.build import build_engine
from assistant.engine import Message, Reply, Request, Sampling
from assistant.errors import (
    AssistantError,
    EngineBusy,
    GenerationFailed,
    ModelUnavailable,
    PromptTooLong,
    SettingsError,
)
from assistant.remote import RemoteEngine, server_url
from assistant.settings import ServerSettings, load_settings
from tests.model_server import DONE, Asked, ModelServer, chunk, event, refusal, running_server, usage
from tests.ui_support import make_world, play

HELLO = Request([{"role": "user", "content": "hello"}], Sampling(0.5, 0.9, 32, 7))
Make = Callable[..., RemoteEngine]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[[], ModelServer]]:
    with running_server() as fresh:
        yield fresh


@pytest.fixture
def server(fresh: Callable[[], ModelServer]) -> ModelServer:
    """A server that nobody has asked anything yet."""
    return fresh()


@pytest.fixture
def make(server: ModelServer) -> Iterator[Make]:
    """Makes engines over the server, and closes them."""
    made: list[RemoteEngine] = []

    def engine(url: str = "", queue_limit: int = 32, **limits: Any) -> RemoteEngine:
        made.append(RemoteEngine(server_url(url or server.url), "tiny", ServerSettings(**limits), queue_limit))
        return made[-1]

    yield engine
    for one in made:
        one.close()


def error_of(engine: RemoteEngine, request: Request = HELLO, kind: type[AssistantError] = GenerationFailed) -> str:
    """Let a reply fail and return the one sentence, or two, that it fails with."""
    reply = engine.submit([request])[0]
    with pytest.raises(kind):
        reply.wait(5)
    assert reply.finish == "failed" and reply.error.endswith(".") and "\n" not in reply.error
    return reply.error


def test_a_reply_streams_and_ends_with_the_servers_counts(server: ModelServer, make: Make) -> None:
    reply = make().submit([HELLO])[0]
    assert list(reply.pieces())[-1] and reply.text == "You said: hello (tiny)"
    assert (reply.finish, reply.prompt_tokens, reply.new_tokens, reply.dropped_turns) == ("stop", 7, 4, 0)
    assert reply.first_token_s is not None
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 32, "seed": 7, "model": "tiny", "stream": True}
    assert server.asked[0].items() >= wanted.items() and server.asked[0]["messages"] == HELLO.messages
    assert server.keys == [None]


def test_text_is_seen_while_the_server_still_writes(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("One"), 10.0, chunk(finish="stop"))
    reply = make().submit([HELLO])[0]
    assert next(reply.pieces()) == "One" and not reply.done


def test_an_adapter_is_asked_for_by_its_id(server: ModelServer, make: Make) -> None:
    reply = make().submit([Request(HELLO.messages, HELLO.sampling, "adapter-1")])[0]
    assert reply.wait(5).endswith("(adapter-1)")


def test_without_usage_the_chunks_are_counted(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("a"), chunk("b"), chunk(finish="length"), DONE)
    reply = make().submit([HELLO])[0]
    assert reply.wait(5) == "ab" and (reply.finish, reply.new_tokens) == ("length", 2)


def test_stopping_hangs_up_even_while_the_server_is_silent(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("One"), 30.0)
    engine = make()
    reply = engine.submit([HELLO])[0]
    assert next(reply.pieces()) == "One"
    began = time.monotonic()
    reply.cancel()
    assert reply.wait(5) == "One" and reply.finish == "cancelled" and time.monotonic() - began < 1
    assert server.wait_for(lambda: server.hung_up == 1)


def test_closing_ends_what_is_under_way_and_refuses_the_rest(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("One"), 30.0)
    engine = make()
    replies = engine.submit([HELLO, HELLO])
    assert server.wait_for(lambda: server.under_way == 2)
    engine.close()
    assert [reply.finish for reply in replies] == ["cancelled"] * 2
    with pytest.raises(EngineBusy, match="shutting down"):
        engine.submit([HELLO])


def test_replies_run_beside_each_other_and_the_others_wait_for_a_place(server: ModelServer, make: Make) -> None:
    server.answer = lambda asked: server.stream(chunk(str(asked["seed"])), 0.05, chunk(finish="stop"), DONE)
    requests = [Request(HELLO.messages, Sampling(seed=seed)) for seed in range(12)]
    engine = make(at_once=4, queue_limit=8)
    replies = engine.submit(requests)
    with pytest.raises(EngineBusy, match="Try again"):
        engine.submit([HELLO])
    assert [reply.wait(10) for reply in replies] == [str(seed) for seed in range(12)]
    assert server.most_at_once == 4
    assert engine.submit([HELLO])[0].wait(5) == "7"


def test_a_silent_server_and_an_endless_one_are_not_waited_for(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("One"), 30.0)
    assert "did not answer in time" in error_of(make(silence_s=0.2))
    server.answer = lambda _: server.stream(*[chunk("word "), 0.01] * 3000)
    assert "took longer" in error_of(make(deadline_s=0.3))
    assert server.wait_for(lambda: server.hung_up == 2)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def test_a_server_that_is_away_is_named_as_such(make: Make) -> None:
    assert "cannot be reached" in error_of(make(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (401, "Incorrect API key provided: sk-secret.", "refuses the API key"),
        (404, "The model `tiny` does not exist.", "does not know tiny"),
        (422, "seed must be positive", "HTTP 422: seed must be positive"),
        (429, "slow down", "too much to do"),
        (500, "CUDA error\nwith sk-secret in it", "HTTP 500: CUDA error with … in it"),
        (503, "", "HTTP 503"),
    ],
)
def test_a_refusal_is_one_sentence_without_the_key(
    server: ModelServer, make: Make, status: int, message: str, says: str
) -> None:
    server.answer = lambda _: refusal(status, message)
    error = error_of(make(api_key="sk-secret"))
    assert says in error and "sk-secret" not in error
    assert server.keys == ["Bearer sk-secret"]


GARBAGE: dict[str, tuple[bytes, ...]] = {
    "not JSON": (chunk("One"), event(b"{nonsense"), DONE),
    "no chunk": (event([1, 2]), DONE),
    "text of the wrong kind": (event({"choices": [{"delta": {"content": 7}}]}), DONE),
    "counts of the wrong kind": (event({"choices": [], "usage": {"completion_tokens": "many"}}), DONE),
    "not UTF-8": (b"data: \xff\xfe\n\n",),
    "an endless line": (b"x" * 700_000, b"x" * 700_000),
    "no end": (chunk("One"),),
    "an error in the middle": (chunk("One"), event({"error": {"message": "out of memory"}}), DONE),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_fails_the_reply_and_the_next_one_works(server: ModelServer, make: Make, kind: str) -> None:
    server.answer = lambda _: server.stream(*GARBAGE[kind])
    engine = make()
    assert "model's server" in error_of(engine)
    server.answer = server.echo
    assert engine.submit([HELLO])[0].wait(5) == "You said: hello (tiny)"


def test_a_stream_that_breaks_is_told_and_one_that_breaks_after_the_end_is_whole(
    server: ModelServer, make: Make
) -> None:
    engine = make()
    server.answer = lambda _: server.stream(chunk("One"), breaks=True)
    assert "broke off" in error_of(engine)
    server.answer = lambda _: server.stream(chunk("One"), chunk(finish="stop"), breaks=True)
    assert engine.submit([HELLO])[0].wait(5) == "One"


def test_a_page_instead_of_a_stream_is_no_reply(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: PlainTextResponse("<html>Welcome</html>")
    assert "no stream" in error_of(make())


def pieces_of(reply: Reply) -> str:
    for text in reply.pieces():
        text.encode()  # half a surrogate pair cannot be encoded
    return reply.text


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_no_character_is_cut_however_the_bytes_come(server: ModelServer, make: Make, size: int) -> None:
    """Lines may end in \\r\\n, U+2028 is a line's end for text libraries only, and emoji come in halves."""
    halves = rb'data: {"choices":[{"delta":{"content":"\ud83d"}}]}' + b"\r\n\r\n"
    halves += rb'data: {"choices":[{"delta":{"content":"\ude00!\ud83d"}}]}' + b"\n\n"
    whole = "data: " + json.dumps({"choices": [{"delta": {"content": "밤\u2028😀"}}]}, ensure_ascii=False) + "\n\n"
    sent = b": hello\n\n" + whole.encode() + halves + chunk(finish="stop") + b"data: [DONE]"
    parts = [sent[at : at + size] for at in range(0, len(sent), size)]
    server.answer = lambda _: server.stream(*parts)
    assert pieces_of(make().submit([HELLO])[0]) == "밤\u2028😀😀!\ufffd"


def test_half_an_emoji_in_a_message_reaches_the_server_as_json(server: ModelServer, make: Make) -> None:
    make().submit([Request([{"role": "user", "content": "\ud83d"}])])[0].wait(5)
    assert server.asked[0]["messages"][0]["content"] == "\ud83d"


def test_turns_that_the_server_finds_too_long_are_left_out_and_counted(server: ModelServer, make: Make) -> None:
    def three_fit(asked: Asked) -> Response:
        if len(asked["messages"]) > 4:
            return refusal(400, "This model's maximum context length is 64 tokens. Please shorten the messages.")
        return server.echo(asked)

    server.answer = three_fit
    turns: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(9)]
    reply = make().submit([Request([{"role": "system", "content": "Be kind."}, *turns])])[0]
    assert reply.wait(5) == "You said: turn 8 (tiny)"
    seen = server.asked[-1]["messages"]
    assert seen[0]["role"] == "system" and seen[1]["role"] == "user" and len(seen) + reply.dropped_turns == 10


@pytest.mark.parametrize("status", [400, 200])
def test_a_message_beyond_the_servers_context_is_refused_in_words(server: ModelServer, make: Make, status: int) -> None:
    server.answer = lambda _: refusal(status, "the request exceeds the available context size, try increasing it")
    assert "Shorten it" in error_of(make(), kind=PromptTooLong)
    server.answer = lambda _: server.stream(event({"error": {"message": "greater than the context length"}}))
    assert "Shorten it" in error_of(make(), kind=PromptTooLong)
    said = {"error": {"message": "The last message has 30,000 characters.", "code": "context_length_exceeded"}}
    server.answer = lambda _: JSONResponse(said, status)
    assert "Shorten it" in error_of(make(), kind=PromptTooLong)


@pytest.mark.parametrize(
    ("engine", "url"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/v1/", "http://host:8000/v1"),
        ("https://host/api", "https://host/api/v1"),
    ],
)
def test_the_address_may_end_in_v1_or_not(engine: str, url: str) -> None:
    assert server_url(engine) == url


@pytest.mark.parametrize("engine", ["http://", "http://me:secret@host/v1", "http://host:x/v1", "http://host/v1?a=b"])
def test_an_address_that_is_none_is_refused(engine: str) -> None:
    with pytest.raises(SettingsError, match="NIGHTSCHOOL_") as refused:
        server_url(engine)
    assert "secret" not in str(refused.value)


def test_the_settings_name_the_server_and_the_server_its_model(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models["data"].append({"id": "adapter-1", "parent": "tiny"})
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", server.url)
    assert main(["ask", "hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reply"] == "You said: hello (tiny)"
    server.models["data"].append({"id": "other"})
    assert main(["ask", "hello"]) == 1
    assert "offers 2 models (tiny, other)" in capsys.readouterr().err
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__MODEL", "other")
    assert main(["ask", "hello"]) == 0
    assert capsys.readouterr().out == "You said: hello (other)\n"
    server.answer = lambda _: refusal(500, "broken")
    assert main(["ask", "hello"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("models", [{"data": "none"}, [], {"data": []}])
def test_a_server_that_does_not_say_what_it_serves_is_refused(server: ModelServer, models: object) -> None:
    server.models = models
    with pytest.raises(ModelUnavailable):
        build_engine(load_settings().model_copy(update={"engine": server.url}))


def test_a_server_that_is_away_at_the_start_is_one_sentence() -> None:
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        build_engine(load_settings().model_copy(update={"engine": f"http://127.0.0.1:{free_port()}"}))


def test_the_key_is_neither_shown_nor_logged(
    server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", server.url)
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__API_KEY", "sk-secret\n")
    with caplog.at_level(logging.DEBUG):
        assert main(["ask", "hello"]) == main(["settings"]) == main(["settings", "--json"]) == 0
    assert "sk-secret" not in "".join(capsys.readouterr()) + caplog.text
    assert "sk-secret" not in json.dumps(load_settings().model_dump(mode="json"))  # what a night writes down
    assert server.keys == ["Bearer sk-secret"]
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__API_KEY", "sk-밤")
    with pytest.raises(AssistantError, match="server.api_key") as refused:
        load_settings()
    assert "밤" not in str(refused.value)


def test_usage_that_comes_after_the_end_is_waited_for(server: ModelServer, make: Make) -> None:
    server.answer = lambda _: server.stream(chunk("a"), chunk(finish="stop"), 0.1, usage(3, 9), DONE)
    reply = make(api_key=SecretStr("")).submit([HELLO])[0]
    assert reply.wait(5) == "a" and (reply.prompt_tokens, reply.new_tokens) == (3, 9)


def test_the_chat_page_works_over_a_server_and_says_what_answered(
    server: ModelServer, make: Make, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(home, make())  # type: ignore[arg-type]
    shown = play(world.chat.ask(world.person, "hello", "plain", ""))[-1].shown
    reply = world.store.conversations.path_to(shown)[-1]
    assert (reply.text, reply.state, reply.new_tokens) == ("You said: hello (tiny)", "done", 4)
    assert reply.origin is not None
    assert (reply.origin.base_id, reply.origin.numeric_form) == ("server:tiny", "server")
    server.answer = lambda _: refusal(500, "broken")
    failed = play(world.chat.ask(world.person, "and now?", "plain", shown))[-1]
    assert failed.notice and world.store.conversations.path_to(failed.shown)[-1].state == "failed"
    assert "HTTP 500: broken" in caplog.text
    world.store.close()
