"""/readyz is proved by a token, /metrics counts what happened and is for operators."""

import asyncio
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from assistant.engine import Reply, Request
from assistant.errors import EngineBusy
from tests.door_support import open_app, open_live
from tests.ui_support import World, make_world
from ui.health import Readiness


def counted(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that the engine gets from now on."""
    asked: list[Request] = []
    submit = world.engine.submit
    monkeypatch.setattr(world.engine, "submit", lambda requests: (asked.extend(requests), submit(requests))[1])
    return asked


def test_a_token_is_asked_for_once_and_proves_for_a_while(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_app(home) as (world, client):
        asked = counted(world, monkeypatch)
        for _ in range(5):
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        assert len(asked) == 1 and asked[0].adapter is None and asked[0].sampling.max_new_tokens == 1
        monkeypatch.setattr("ui.health.LATELY_S", 0.0)
        client.get("/readyz")
        assert len(asked) == 2
        assert not world.store.conversations.list(world.person), "a proof is nobody's conversation"


def test_a_model_that_writes_nothing_is_not_ready(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_app(home) as (world, client):
        monkeypatch.setattr("ui.health.PROOF_S", 0.2)
        stuck = Reply()
        monkeypatch.setattr(world.engine, "submit", lambda requests: [stuck])
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "no token within" in answer.json()["reason"]
        assert stuck.cancelled, "nobody waits for it any more"


def test_why_the_app_cannot_answer_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(requests: Sequence[Request]) -> list[Reply]:
        raise EngineBusy("7 others are waiting.")

    with open_app(home) as (world, client):
        monkeypatch.setattr(world.engine, "submit", refuse)
        assert client.get("/readyz").json() == {"status": "not ready", "reason": "7 others are waiting."}
        world.engine.pulse.at = time.monotonic()
        assert client.get("/readyz").status_code == 200, "whoever writes tokens is ready, however many wait"


@pytest.mark.long
def test_metrics_count_what_happened_and_are_for_operators(home: Path) -> None:
    with open_live(home) as (world, client):
        tokens = {n: world.store.sessions.new_token(world.store.people.get(n).id) for n in ("olga", "ada")}
        mine, operators = ({"Authorization": f"Bearer {tokens[name]}"} for name in ("ada", "olga"))
        assert client.get("/metrics").status_code == 401 and client.get("/metrics", headers=mine).status_code == 403
        body = {"messages": [{"role": "user", "content": "hello"}], "n": 2}
        answer = client.post("/v1/chat/completions", json=body, headers=mine).json()
        client.post("/v1/feedback", json={"message_id": answer["id"], "rating": "up"}, headers=mine)
        text = client.get("/metrics", headers=operators).text
        found = dict(re.findall(r"^(nightschool_[^ ]+) (\S+)$", text, re.MULTILINE))
    assert found['nightschool_replies_total{finish="stop"}'] == "2.0"
    assert float(found["nightschool_reply_tokens_total"]) == answer["usage"]["completion_tokens"] == 12
    assert found["nightschool_first_token_seconds_count"] == "2.0"
    assert found["nightschool_between_tokens_seconds_count"] == "10.0"
    assert found["nightschool_replies_under_way"] == found["nightschool_replies_waiting"] == "0.0"
    assert found["nightschool_adapter_generation"] == "0.0" and found['nightschool_stored{what="thumbs_up"}'] == "1.0"


def test_a_submit_that_waits_holds_up_nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an adapter is loaded a submit waits; on the event loop, every stream would stop for as long."""
    world = make_world(home)
    submit, asked, loaded = world.engine.submit, threading.Event(), threading.Event()

    def wait_then_submit(requests: Sequence[Request]) -> list[Reply]:
        asked.set()
        assert loaded.wait(5), "the loop stood still"
        return submit(requests)

    async def check() -> str:
        checking = asyncio.create_task(Readiness(world.engine).check())
        while not asked.is_set():
            await asyncio.sleep(0.01)
        loaded.set()
        return await checking

    monkeypatch.setattr(world.engine, "submit", wait_then_submit)
    try:
        assert asyncio.run(check()) == ""
    finally:
        world.store.close()
