"""/v1 through the `openai` client over a socket: replies, streams, refusals, votes, and what is stored of it."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from assistant.engine import Request
from assistant.errors import EngineBusy, PromptTooLong
from assistant.fake import echo_script
from feedback_store.records import Message
from tests.app_process import running_app
from tests.browser_support import eventually
from tests.door_support import open_live
from tests.new_store import open_in
from tests.ui_support import World, fixed_script

pytestmark = pytest.mark.long
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
Opened = tuple[World, httpx.Client]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """An app without accounts."""
    with open_live(tmp_path / "home", accounts=False) as opened:
        yield opened


@pytest.fixture
def world(opened: Opened) -> World:
    return opened[0]


def client_of(opened: Opened, key: str = "anything") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{opened[1].base_url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture
def client(opened: Opened) -> Iterator[openai.OpenAI]:
    with client_of(opened) as client:
        yield client


def stored(world: World, message_id: str) -> list[Message]:
    return world.store.conversations.path_to(message_id)


def test_a_reply_is_that_of_the_engine_counted_and_stored(client: openai.OpenAI, world: World) -> None:
    answer = client.chat.completions.create(model="live", messages=HELLO, seed=5, temperature=0.3, max_tokens=50)
    said = answer.choices[0]
    assert said.message.content == "You said: hello (base, seed 5)" and said.finish_reason == "stop"
    assert answer.model == "base" and answer.usage and answer.usage.completion_tokens == 6
    question, reply = stored(world, answer.id)
    assert (question.text, reply.text, reply.state) == ("hello", said.message.content, "done")
    assert reply.origin and (reply.origin.seed, reply.origin.temperature, reply.origin.preset) == (5, 0.3, "api")


def test_a_stream_comes_word_by_word_with_usage_where_it_is_asked_for(client: openai.OpenAI, world: World) -> None:
    world.engine.seconds_per_word = 0.05
    options: Any = {"include_usage": True}
    start, times, parts, usage, finish = time.monotonic(), [], [], None, None
    for part in client.chat.completions.create(model="base", messages=HELLO, stream=True, stream_options=options):
        usage = part.usage or usage
        if part.choices and part.choices[0].delta.content:
            times.append(time.monotonic() - start)
            parts.append(part.choices[0].delta.content)
        finish = part.choices[0].finish_reason if part.choices else finish
    assert "".join(parts).startswith("You said: hello (base") and len(parts) >= 6 and finish == "stop"
    assert times[-1] - times[0] > 0.15 and usage and usage.completion_tokens == len(parts)
    assert stored(world, part.id)[-1].state == "done"


def test_a_system_message_reaches_the_model_and_is_stored_with_what_it_made(
    client: openai.OpenAI, world: World
) -> None:
    world.engine.script = lambda request: " | ".join(f"{m['role']}: {m['content']}" for m in request.messages)
    turns: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "uno"},
        {"role": "user", "content": "two"},
    ]
    answer = client.chat.completions.create(model="live", messages=turns)
    assert answer.choices[0].message.content == "system: Be brief. | user: one | assistant: uno | user: two"
    path = stored(world, answer.id)
    assert [message.text for message in path[:3]] == ["one", "uno", "two"]
    assert path[1].origin and path[1].origin.base_id == "caller" and path[3].origin
    assert path[3].origin.system == "Be brief." and path[3].origin.base_id == "fake"


def test_a_stop_text_ends_the_reply_before_it(client: openai.OpenAI, world: World) -> None:
    world.engine.script = fixed_script("one two three END four")
    for stop in ("END", ["nowhere", "END"]):
        answer = client.chat.completions.create(model="live", messages=HELLO, stop=stop)
        assert answer.choices[0].message.content == "one two three " and answer.choices[0].finish_reason == "stop"


def test_several_replies_have_seeds_and_ids_of_their_own(client: openai.OpenAI, world: World) -> None:
    answer = client.chat.completions.create(model="live", messages=HELLO, n=3, seed=10)
    assert [c.message.content for c in answer.choices] == [
        f"You said: hello (base, seed {seed})" for seed in (10, 11, 12)
    ]
    ids = [choice.message_id for choice in answer.choices]  # type: ignore[attr-defined]
    assert ids[0] == answer.id and len({stored(world, i)[0].id for i in ids}) == 1
    texts, named = {0: "", 1: ""}, {}
    for part in client.chat.completions.create(model="live", messages=HELLO, n=2, seed=10, stream=True):
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
        named[part.choices[0].index] = part.choices[0].message_id  # type: ignore[attr-defined]
    assert texts == {0: "You said: hello (base, seed 10)", 1: "You said: hello (base, seed 11)"}
    assert {stored(world, message_id)[1].text: place for place, message_id in named.items()} == {
        text: place for place, text in texts.items()
    }


def test_a_reply_is_rated_by_its_id_and_by_who_received_it(opened: Opened, world: World, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="live", messages=HELLO)
    rated = {"message_id": answer.id, "rating": "down", "reasons": ["wrong"], "comment": "no"}
    assert opened[1].post("/v1/feedback", json=rated).json() == rated
    vote = world.store.votes.get(answer.id, world.person)
    assert vote and (vote.value, vote.reasons, vote.comment) == (-1, ("wrong",), "no")
    taken_back = opened[1].post("/v1/feedback", json={"message_id": answer.id, "rating": None})
    assert taken_back.json()["rating"] is None
    for body, status in (
        ({"message_id": "nonesuch", "rating": "up"}, 404),
        ({"message_id": answer.id, "rating": "sideways"}, 400),
        ({"message_id": answer.id, "rating": "up", "reasons": ["wrong"]}, 400),
        ({"message_id": answer.id}, 400),
        ({"message_id": stored(world, answer.id)[0].id, "rating": "up"}, 400),
    ):
        refused = opened[1].post("/v1/feedback", json=body)
        assert refused.status_code == status and refused.json()["error"]["message"].endswith((".", "not")), body


@pytest.mark.parametrize("teaches", [False, True])
def test_votes_on_turns_that_a_caller_supplied_teach_only_where_the_operator_says_so(
    teaches: bool, tmp_path: Path
) -> None:
    with open_live(tmp_path / "home", accounts=False, api_teaches=teaches) as opened, client_of(opened) as client:
        world = opened[0]
        answer = client.chat.completions.create(model="live", messages=HELLO)
        opened[1].post("/v1/feedback", json={"message_id": answer.id, "rating": "up"})
        assert len(list(world.store.votes.thumbs())) == int(teaches)
        assert not world.store.conversations.list(world.person), "it stands in no page's list"


def test_models_are_what_may_answer(opened: Opened, world: World, client: openai.OpenAI) -> None:
    for adapter in ("adapter-a", "adapter-b"):
        world.store.registry.register_adapter(adapter, base_id="fake")
    world.store.registry.set_adapter_state("adapter-b", "refused")
    world.store.registry.register_adapter("adapter-c", base_id="another")
    assert [model.id for model in client.models.list()] == ["live", "base", "adapter-a"]
    answer = client.chat.completions.create(model="adapter-a", messages=HELLO, seed=1)
    assert answer.model == "adapter-a" and answer.choices[0].message.content == "You said: hello (adapter-a, seed 1)"
    for name in ("gpt-4o", "adapter-b", "adapter-c", "../adapter-a"):
        with pytest.raises(openai.NotFoundError, match="There is no model") as caught:
            client.chat.completions.create(model=name, messages=HELLO)
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "`messages` is wrong"),
        ({"messages": [{"role": "user", "content": "a\ud83d"}]}, "half a surrogate pair"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "`messages.0.role` is wrong"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "in turns"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "in turns"),
        ({"messages": [{"role": "system", "content": "a"}]}, "in turns"),
        ({"messages": HELLO, "temperature": "warm"}, "`temperature` is wrong"),
        ({"messages": HELLO, "temperature": 9}, "`temperature` is wrong"),
        ({"messages": HELLO, "n": 99}, "`n` is wrong"),
        ({"messages": HELLO, "max_tokens": 0}, "`max_tokens` is wrong"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "`tools` is not supported"),
        ({"messages": HELLO, "top_k": 40}, "`top_k` is not supported"),
        ({"messages": HELLO, "repetition_penalty": 1.1}, "`repetition_penalty` is not supported"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "`response_format"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, "half a surrogate"),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, "shorten it"),
        ([1], "not a JSON object"),
    ],
)
def test_what_cannot_be_served_gets_one_sentence_and_stores_nothing(
    opened: Opened, world: World, body: Any, said: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = opened[1].post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"] and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and not world.store.conversations.list(world.person, kind="api")


def test_an_oversize_body_and_one_that_is_no_json_are_refused(opened: Opened) -> None:
    big = opened[1].post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x" * 2_000_000}]})
    assert big.status_code == 413 and "send less" in big.json()["error"]["message"]
    assert opened[1].post("/v1/chat/completions", content=b"{nonsense").status_code == 400
    assert opened[1].get("/v1/chat/completions").status_code == 405
    assert opened[1].get("/v1/nothing").json()["error"]["message"] == "There is nothing here."


def test_another_sites_page_is_refused(opened: Opened) -> None:
    answer = opened[1].post(
        "/v1/chat/completions", json={"messages": HELLO}, headers={"Origin": "https://evil.example"}
    )
    assert answer.status_code == 403 and "another site" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"), [(EngineBusy("Too many wait."), 503), (PromptTooLong("Too long. Shorten it."), 400)]
)
def test_what_the_engine_refuses_is_told(
    opened: Opened, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr(world.engine, "submit", refuse)
    answer = opened[1].post("/v1/chat/completions", json={"messages": HELLO})
    assert answer.status_code == status and answer.json()["error"]["message"] == str(error)
    assert not world.store.conversations.list(world.person, kind="api")


def test_a_reply_that_fails_says_so_whole_and_streamed(opened: Opened, world: World, client: openai.OpenAI) -> None:
    def script(_: Request) -> str:
        raise RuntimeError("planted")

    world.engine.script = script
    with pytest.raises(openai.InternalServerError, match="planted"):
        client.chat.completions.create(model="live", messages=HELLO)
    with pytest.raises(openai.APIError, match="planted"):
        list(client.chat.completions.create(model="live", messages=HELLO, stream=True))
    world.engine.script = echo_script
    assert client.chat.completions.create(model="live", messages=HELLO).choices[0].message.content


def test_what_a_server_behind_finds_too_long_is_the_callers_to_mend(world: World, client: openai.OpenAI) -> None:
    def script(_: Request) -> str:
        raise PromptTooLong("Shorten it.")

    world.engine.script = script
    with pytest.raises(openai.BadRequestError, match="Shorten it") as caught:
        client.chat.completions.create(model="live", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_what_asks_for_nothing_is_taken(opened: Opened) -> None:
    neutral = {"messages": HELLO, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "tools": [], "logprobs": False}
    assert opened[1].post("/v1/chat/completions", json=neutral).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_frees_the_model_and_stores_what_was_said(opened: Opened, world: World, stream: bool) -> None:
    world.engine.script, world.engine.seconds_per_word = fixed_script("word " * 500), 0.02
    body = {"messages": HELLO, "stream": stream, "max_tokens": 500}
    url = f"{opened[1].base_url}/v1/chat/completions"
    with httpx.Client() as other, pytest.raises(httpx.ReadTimeout):
        with other.stream("POST", url, json=body, timeout=5 if stream else 0.5) as answer:
            for _ in answer.iter_lines():
                if stream:
                    raise httpx.ReadTimeout("enough")
    [talk] = world.store.conversations.list(world.person, kind="api")

    def reply_is_stopped() -> bool:
        return world.store.conversations.thread(talk.id, world.person)[-1].state == "stopped"

    eventually(lambda: reply_is_stopped() and not world.engine._running, "the reply goes on without its reader")


def test_a_stream_cut_by_the_apps_end_says_so(home: Path) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 400}], "stream": True}  # 20 s of the script's words
    with running_app(home) as (address, process):
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.terminate()
            events = [line for line in lines if line.startswith("data: ")]
        process.join(10)
        assert process.exitcode is not None
    assert "The reply was stopped; ask again." in events[-2] and events[-1] == "data: [DONE]"
    assert "Cancelled" not in (home.parent / "app.errors").read_text()
    with contextlib.closing(open_in(home / "nightschool.db")) as store:
        owner = store.people.owner().id
        talk = store.conversations.list(owner, kind="api")[0]
        assert [message.state for message in store.conversations.thread(talk.id, owner)] == ["done", "stopped"]


def test_with_accounts_a_token_says_who_asks(tmp_path: Path) -> None:
    with open_live(tmp_path / "home") as opened:
        world = opened[0]
        people = [world.store.people.get(name) for name in ("ada", "ben")]
        tokens = [world.store.sessions.new_token(person.id) for person in people]
        with client_of(opened, tokens[0]) as mine, client_of(opened, tokens[1]) as other:
            answer = mine.chat.completions.create(model="live", messages=HELLO)
            assert world.store.conversations.list(people[0].id, kind="api")
            rating = {"message_id": answer.id, "rating": "up"}
            theirs = opened[1].post("/v1/feedback", json=rating, headers={"Authorization": f"Bearer {tokens[1]}"})
            assert theirs.status_code == 404
            session = world.store.sessions.new_session(people[0].id)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"nightschool_session={session}"}):
                refused = opened[1].post("/v1/feedback", json=rating, headers=headers)
                assert refused.status_code == 401 and "token" in refused.json()["error"]["message"]
            world.store.sessions.revoke_tokens(people[1].id)
            with pytest.raises(openai.AuthenticationError):
                other.models.list()


def test_an_account_has_so_many_replies_under_way(tmp_path: Path) -> None:
    with open_live(tmp_path / "home", generations_per_account=1) as opened:
        world = opened[0]
        world.engine.seconds_per_word = 0.1
        token = world.store.sessions.new_token(world.store.people.get("ada").id)
        with client_of(opened, token) as client:
            first = client.chat.completions.create(model="live", messages=HELLO, stream=True)
            next(iter(first))
            with pytest.raises(openai.RateLimitError, match="under way"):
                client.chat.completions.create(model="live", messages=HELLO)
            list(first)
            assert client.chat.completions.create(model="live", messages=HELLO).choices


def test_turns_that_did_not_fit_are_told_whole_and_streamed(
    opened: Opened, world: World, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program could not know that the model had not seen the beginning."""
    submit = world.engine.submit

    def forget(requests: Any) -> Any:
        replies = submit(requests)
        for reply in replies:
            reply.dropped_turns = 4
        return replies

    def streamed(**options: Any) -> list[Any]:
        body = {"messages": HELLO, "n": 2, "stream": True, **options}
        lines = opened[1].post("/v1/chat/completions", json=body).text.splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]

    assert not any("dropped_turns" in part for part in streamed(stream_options={"include_usage": True}))
    assert "dropped_turns" not in opened[1].post("/v1/chat/completions", json={"messages": HELLO}).json()
    monkeypatch.setattr(world.engine, "submit", forget)
    answer = client.chat.completions.create(model="live", messages=HELLO)
    assert answer.usage and answer.dropped_turns == 4  # type: ignore[attr-defined]
    for options in ({}, {"stream_options": {"include_usage": True}}):
        parts = streamed(**options)
        told = [part for part in parts if part.get("dropped_turns") == 4]
        ends = [part for part in parts if not part["choices"] or part["choices"][0]["finish_reason"]]
        assert told == ends and told[-1] == parts[-1] and len(told) == 2 + len(options)


def test_nothing_is_kept_of_replies_whose_readers_went_elsewhere(world: World) -> None:
    """Their ids were, for as long as the app ran."""
    world.engine.seconds_per_word, replies = 0.05, world.replies
    talk = world.store.conversations.start(world.person).id

    def record() -> Message:
        return world.store.conversations.add_user_message(talk, world.person, "hello")

    _, [draft] = replies.ask([], "hello " * 100, "plain", world.person, record, None)
    replies.leave(draft.message.id, world.person)
    replies.close(draft)
    assert replies.is_left(draft) and draft.reply.cancelled
    assert not any(draft.message.id in held for held in vars(replies).values() if isinstance(held, set | dict))
