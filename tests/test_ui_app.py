"""The mount: health, languages, and that nothing of the framework's defaults leaks."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gradio.routes import App
from httpx import Response
from starlette.routing import Mount

from assistant import errors as assistant_errors
from feedback_store import errors as store_errors
from tests.ui_support import World, make_world
from ui.app import build_app
from ui.guard import is_closed
from ui.texts import ENGLISH, KOREAN, Texts, preferred_language

HOST = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = make_world(tmp_path_factory.mktemp("app"))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def started(world: World) -> Iterator[TestClient]:
    async def build() -> FastAPI:
        # Outside a running loop the framework makes loops of its own and leaves them open.
        return build_app(world.engine, world.store, world.settings)

    with TestClient(asyncio.run(build()), base_url=HOST) as client:
        yield client


@pytest.fixture
def client(started: TestClient) -> TestClient:
    started.cookies.clear()
    return started


def test_health_and_readiness_answer(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").status_code == 200


def test_the_page_is_there_and_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/", headers={"accept-language": "en"})
    assert answer.status_code == 200
    assert "Nightschool" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "fonts.googleapis.com" not in client.get("/theme.css").text


def call(client: TestClient, event: dict[str, Any], data: list[Any]) -> Response:
    """Send one event as the page does."""
    body = {"data": data, "fn_index": event["id"], "session_hash": uuid.uuid4().hex}
    return client.post("/gradio_api/run/predict", json=body)


def test_a_file_path_in_event_data_is_refused_and_nothing_is_served(client: TestClient, tmp_path: Path) -> None:
    """A mounted app skips the framework's own check unless it believes that it was launched."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    planted = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    events = [d for d in client.get("/config").json()["dependencies"] if d["backend_fn"] and not d["queue"]]
    stop = next(d for d in events if d["api_name"] == "stop")
    assert call(client, stop, ["an id"]).status_code == 200
    for event in events:
        if event["inputs"]:
            answer = call(client, event, [planted] * len(event["inputs"]))
            assert answer.status_code >= 400, event["api_name"]
            assert "the secret" not in answer.text
    assert client.get(f"/gradio_api/file={secret}").status_code == 404
    assert client.get(f"/file={secret}").status_code == 404


def test_every_page_believes_that_it_was_launched(client: TestClient) -> None:
    assert isinstance(client.app, FastAPI)
    mounted = [route.app for route in client.app.routes if isinstance(route, Mount)]
    pages = [app.get_blocks() for app in mounted if isinstance(app, App)]
    assert len(pages) == 2
    assert all(page.has_launched for page in pages)
    assert not any(page.analytics_enabled for page in pages)


def test_routes_that_the_app_does_not_use_are_closed(client: TestClient) -> None:
    for path in ("upload", "monitoring/summary", "token", "runs", "startup-events-not", "stream/x/1/2", "deep_link"):
        for root in ("/", "/gradio_api/", "/ko/gradio_api/"):
            assert client.get(root + path).status_code == 404, root + path
    assert not is_closed("/gradio_api/queue/join")
    assert not is_closed("/gradio_api/run/predict")


def test_another_origin_is_not_let_in(client: TestClient) -> None:
    answer = client.get("/config", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-credentials" not in answer.headers


def test_another_host_name_is_refused(client: TestClient) -> None:
    """A page elsewhere that points its own name at this machine gets nothing."""
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400


def test_the_framework_keeps_no_history_and_shows_no_errors(client: TestClient) -> None:
    config = client.get("/config").json()
    assert config["run_history"] is False
    assert config["show_error"] is False
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}


def test_the_chatbot_is_never_an_input(client: TestClient) -> None:
    config = client.get("/config").json()
    chatbots = {part["id"] for part in config["components"] if part["type"] == "chatbot"}
    assert chatbots
    assert not any(chatbots & set(dependency["inputs"]) for dependency in config["dependencies"])


def test_plots_are_served_and_nothing_beside_them(client: TestClient, world: World) -> None:
    folder = world.settings.runs_dir / "20261120T213000Z-abcd"
    folder.mkdir(parents=True)
    (folder / "loss.png").write_bytes(b"png")
    assert client.get(f"/plots/{folder.name}/loss.png").content == b"png"
    assert client.get(f"/plots/{folder.name}/run.json").status_code == 404


def test_korean_readers_are_sent_to_korean_and_a_choice_is_remembered(client: TestClient) -> None:
    answer = client.get("/?c=1", headers={"accept-language": "ko-KR,ko;q=0.9,en;q=0.8"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ko/?c=1")
    assert "보내기" in json.dumps(client.get("/ko/config").json(), ensure_ascii=False)
    chosen = client.get("/?lang=en", headers={"accept-language": "ko"}, follow_redirects=False)
    assert chosen.headers["location"] == "/"
    assert client.get("/", headers={"accept-language": "ko"}, follow_redirects=False).status_code == 200


@pytest.mark.parametrize(
    ("header", "language"),
    [("", "en"), ("ko", "ko"), ("fr,ko;q=0.5", "ko"), ("en;q=0.2,ko;q=0.9", "ko"), ("de", "en"), ("ko;q=x,en", "en")],
)
def test_the_first_language_that_is_spoken_wins(header: str, language: str) -> None:
    assert preferred_language(header) == language


def test_both_languages_have_the_same_places_for_values() -> None:
    def places(texts: Texts) -> dict[str, object]:
        words = {name: value for name, value in texts.__dict__.items() if isinstance(value, str)}
        return {name: sorted(re.findall(r"\{\w+", value)) for name, value in words.items()}

    assert places(ENGLISH) == places(KOREAN)
    for name in ("presets", "reasons", "choices", "counts", "run_outcomes", "night_steps", "night_ends"):
        assert ENGLISH.__dict__[name].keys() == KOREAN.__dict__[name].keys()


def test_every_error_that_a_page_may_meet_has_korean_words() -> None:
    at_start_only = {"AssistantError", "SettingsError", "ModelUnavailable", "NotOurFile", "NewerStore", "Withdrawn"}
    in_the_log_only = {"KernelsUnavailable"}
    by_the_password_form = {"SamePassword"}
    families = [kind for module in (assistant_errors, store_errors) for kind in vars(module).values()]
    met = {kind for kind in families if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {kind.__name__ for kind in met - set(KOREAN.errors)} == (
        at_start_only | by_the_password_form | in_the_log_only
    )
