"""What goes live is loaded on the server first and seen to answer; against a stand-in that speaks vLLM's routes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assistant.build import build_engine
from assistant.engine import Request, Sampling
from assistant.errors import AdapterNotServed, GenerationFailed
from assistant.remote import RemoteEngine, server_url
from assistant.server_adapters import serve_adapter
from assistant.settings import ServerSettings, load_settings
from feedback_store import Store
from finetune.__main__ import main as finetune
from tests.door_support import open_live
from tests.model_server import ModelServer, refusal, running_server
from tests.test_ui_operate import add_adapter
from tests.ui_support import World, make_world
from ui.operate import OperateDesk
from ui.texts import ENGLISH

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[[], ModelServer]]:
    with running_server() as fresh:
        yield fresh


@pytest.fixture
def server(fresh: Callable[[], ModelServer], monkeypatch: pytest.MonkeyPatch) -> ModelServer:
    """A server that loads adapters, which the settings name."""
    server = fresh()
    server.adapters, server.answer = {}, server.with_adapters
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", server.url)
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__LOADS_ADAPTERS", "true")
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__API_KEY", "secret-1")
    return server


@pytest.fixture
def world(home: Path, server: ModelServer) -> Iterator[World]:
    """A home with two adapters, over the server."""
    engine = build_engine(load_settings())
    world = make_world(home, engine)  # type: ignore[arg-type]
    for name in ("adapter-1", "adapter-2"):
        add_adapter(world, name, "base-1")
    yield world
    world.store.close()
    engine.close()


@pytest.fixture
def desk(world: World) -> OperateDesk:
    return OperateDesk(world.store, world.nights, load_settings(), world.engine.base_id, ENGLISH)


def live_of(store: Store) -> tuple[int, str | None]:
    live = store.registry.live()
    return live.generation, live.adapter_id


def test_the_page_loads_what_it_promotes_and_what_it_goes_back_to(
    world: World, desk: OperateDesk, server: ModelServer
) -> None:
    folder = world.settings.adapters_dir
    desk.promote("adapter-1", "0")
    assert server.adapters == {"adapter-1": str(folder / "adapter-1")}
    assert [asked["model"] for asked in server.asked] == ["adapter-1"] and server.asked[0]["max_tokens"] == 1
    assert set(server.keys) == {"Bearer secret-1"}
    desk.promote("adapter-2", "1")
    assert live_of(world.store) == (2, "adapter-2") and set(server.adapters) == {"adapter-1", "adapter-2"}
    server.adapters = {}  # it was started anew
    desk.roll_back("2")
    assert live_of(world.store) == (3, "adapter-1") and set(server.adapters) == {"adapter-1"}
    desk.promote("base", "3")
    assert live_of(world.store) == (4, None) and set(server.adapters) == {"adapter-1"}


@pytest.mark.parametrize(
    "fault, words",
    [
        ("no route", "Start vLLM with --enable-lora"),
        ("elsewhere", "NIGHTSCHOOL_SERVER__ADAPTERS_DIR says where"),
        ("mute", "does not answer under it (HTTP 500: broken)"),
        ("garbage", "does not answer under it (HTTP 200)"),
        ("away", "cannot be reached to load adapter-1"),
        ("key", "refuses the API key (HTTP 401)"),
        ("echo", "(HTTP 400: not with …)"),
    ],
)
def test_what_the_server_does_not_answer_under_stays_off(
    fault: str, words: str, world: World, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "no route":
        server.adapters = None
    elif fault == "elsewhere":
        monkeypatch.setenv("NIGHTSCHOOL_SERVER__ADAPTERS_DIR", "/mnt/nowhere/")
    elif fault == "mute":
        server.answer = lambda _: refusal(500, "broken")
    elif fault in ("key", "echo"):
        status = 401 if fault == "key" else 400
        server.load = lambda _: refusal(status, "not with secret-1")  # type: ignore[method-assign]
    elif fault == "garbage":
        server.answer = server.echo
    else:
        monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "http://127.0.0.1:9")
    desk = OperateDesk(world.store, world.nights, load_settings(), world.engine.base_id, ENGLISH)
    assert words in desk.promote("adapter-1", "0")
    assert live_of(world.store) == (0, None)


def test_the_command_loads_what_it_promotes(
    world: World, server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(["promote", "adapter-2"]) == 0
    assert set(server.adapters or {}) == {"adapter-2"}
    server.adapters = None
    assert finetune(["promote", "adapter-1"]) == 1
    assert "Start vLLM with --enable-lora" in capsys.readouterr().err
    assert live_of(world.store)[1] == "adapter-2"


def test_a_server_that_forgot_an_adapter_is_told_to_load_it_again(
    world: World, server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request(HELLO, Sampling(0.0, 1.0, 8), "adapter-1")  # type: ignore[arg-type]
    assert world.engine.submit([request])[0].wait(10) == "You said: hello (adapter-1)"
    assert set(server.adapters or {}) == {"adapter-1"}
    server.adapters = None
    failed = world.engine.submit([request])[0]
    with pytest.raises(GenerationFailed):
        failed.wait(10)
    assert failed.error == "The model's server does not know adapter-1 and does not load it. Tell the operator."
    assert "Start vLLM with --enable-lora" in caplog.text
    server.adapters = {}
    (world.settings.adapters_dir / "adapter-1" / "adapter_model.safetensors").write_bytes(b"altered")
    again = world.engine.submit([request, request])
    for reply in again:
        with pytest.raises(GenerationFailed):
            reply.wait(10)
    assert server.adapters == {} and "is damaged" in caplog.text


@pytest.mark.usefixtures("world")
def test_nothing_is_loaded_where_the_server_loads_none(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__LOADS_ADAPTERS", "false")
    serve_adapter(load_settings(), "adapter-1")
    monkeypatch.setenv("NIGHTSCHOOL_SERVER__LOADS_ADAPTERS", "true")
    serve_adapter(load_settings(), None)
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "local")
    serve_adapter(load_settings(), "adapter-1")
    assert server.adapters == {} and not server.asked
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", server.url)
    serve_adapter(load_settings(), "adapter-1")
    serve_adapter(load_settings(), "adapter-1")  # loaded already: its name is its content
    with pytest.raises(AdapterNotServed):
        serve_adapter(load_settings(), "adapter-3")


@pytest.mark.long
def test_one_app_can_be_the_server_of_another(tmp_path: Path) -> None:
    with open_live(tmp_path / "home", accounts=False) as (world, client):
        engine = RemoteEngine(server_url(str(client.base_url)), "base", ServerSettings(), 8)
        try:
            reply = engine.submit([Request(HELLO, Sampling(0.0, 1.0, 64))])[0]  # type: ignore[arg-type]
            assert "hello" in reply.wait(20) and reply.finish == "stop" and reply.new_tokens > 0
        finally:
            engine.close()
        assert len(world.store.conversations.list(world.person, kind="api")) == 1
