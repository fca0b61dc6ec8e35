"""An app with accounts, and people's browsers in front of it, for the tests of the door and the guard."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from feedback_store.records import Role
from tests.ui_support import World, make_world
from ui.app import build_app
from ui.door import FORM_COOKIE, SESSION_COOKIE

HOST = "http://127.0.0.1:7860"
PASSWORD = "correct horse"
PEOPLE: dict[str, Role] = {"olga": "operator", "ada": "member", "ben": "member"}


class Browser:
    """One person's browser, without a page: raw requests, with the cookies it was given."""

    def __init__(self, client: httpx.Client, token: str | None = None) -> None:
        self.client = client
        self.page = uuid.uuid4().hex
        self.cookies = {SESSION_COOKIE: token} if token else {}

    def ask(self, method: str, path: str, **more: Any) -> Response:
        """Send one request and follow no redirect."""
        answer = self.client.request(method, path, headers=self._headers(more), follow_redirects=False, **more)
        self.client.cookies.clear()
        return answer

    def status(self, method: str, path: str, **more: Any) -> int:
        """Send one request and hang up once its answer begins."""
        with self.client.stream(method, path, headers=self._headers(more), follow_redirects=False, **more) as answer:
            self.client.cookies.clear()
            return answer.status_code

    def _headers(self, more: dict[str, Any]) -> dict[str, str]:
        headers = {"accept-language": "en", **more.pop("headers", {})}
        if self.cookies:
            headers.setdefault("cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        return headers

    def get(self, path: str, **more: Any) -> Response:
        """Send a GET request."""
        return self.ask("GET", path, **more)

    def form(self, path: str, **fields: str) -> Response:
        """Fill in a form of ours, and keep the session that the answer gives or takes."""
        answer = self.ask("POST", path, data={**self.token_for(path), **fields})
        if SESSION_COOKIE in answer.cookies:
            self.cookies[SESSION_COOKIE] = answer.cookies[SESSION_COOKIE]
        return answer

    def token_for(self, path: str) -> dict[str, str]:
        """What the form that goes there brings beside what is typed, read from the page that shows it."""
        # whoever is in is not shown the login, but may have it in another tab from before
        alone = (
            {"headers": {"cookie": f"{FORM_COOKIE}={self.cookies.get(FORM_COOKIE, '')}"}} if path == "/login" else {}
        )
        page = self.get("/consent" if path == "/logout" else path, **alone)
        if FORM_COOKIE in page.cookies:
            self.cookies[FORM_COOKIE] = page.cookies[FORM_COOKIE]
        tokens = dict(re.findall(r"action='(/\w+)'[^>]*><input type='hidden' name='token' value='(\w+)'", page.text))
        return {"token": tokens[path]} if path in tokens else {}

    def log_in(self, name: str, password: str = PASSWORD) -> Response:
        """Send the login form."""
        return self.form("/login", name=name, password=password)

    def event(self, number: int, data: list[Any], *, queued: bool = False, mount: str = "", **more: Any) -> Response:
        """Send one of a page's events as the front end does."""
        body = {"data": data, "event_data": None, "fn_index": number, "trigger_id": None, "session_hash": self.page}
        path = "queue/join" if queued else "run/predict"
        return self.ask("POST", f"{mount}/gradio_api/{path}", json={**body, **more})

    def raw(self, body: bytes, path: str = "run/predict", content_type: str = "application/json") -> Response:
        """Send bytes where an event is awaited."""
        return self.ask("POST", f"/gradio_api/{path}", content=body, headers={"content-type": content_type})


def make_app(world: World, host: str = "127.0.0.1") -> FastAPI:
    """Build the app inside a loop: outside of one the framework makes loops of its own and leaves them open."""

    async def build() -> FastAPI:
        return build_app(world.engine, world.store, world.settings, host)

    return asyncio.run(build())


@contextlib.contextmanager
def open_app(home: Path, *, accounts: bool = True, **door: Any) -> Iterator[tuple[World, TestClient]]:
    """Start an app over a home of its own; with `accounts`, those of PEOPLE.

    Args:
        door: settings of the door.
    """
    host = door.pop("host", "127.0.0.1")
    world = make_door_world(home, accounts, door)
    try:
        with TestClient(make_app(world, host), base_url=HOST) as client:
            yield world, client
    finally:
        world.store.close()


def make_door_world(home: Path, accounts: bool, door: dict[str, Any]) -> World:
    """Put an app's parts together with these settings of the door."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in door.items()]
    (home / "settings.toml").write_text("[door]\n" + "".join(lines))
    # the settings are read from the home that the environment names
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSCHOOL_HOME", str(home))
        world = make_world(home)
    for name, role in PEOPLE.items() if accounts else ():
        world.store.accounts.add(name, PASSWORD, role)
    return world


@contextlib.contextmanager
def serving(app: FastAPI, **options: Any) -> Iterator[httpx.Client]:
    """Serve an app on a socket, for what an answer that never ends would block in the same process.

    Args:
        options: of uvicorn.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def open_live(home: Path, *, accounts: bool = True, **door: Any) -> Iterator[tuple[World, httpx.Client]]:
    """Like `open_app`, over HTTP."""
    world = make_door_world(home, accounts, door)
    try:
        with serving(make_app(world)) as client:
            yield world, client
    finally:
        world.store.close()


def session_of(world: World, client: httpx.Client, name: str) -> Browser:
    """A browser of somebody who is logged in."""
    return Browser(client, world.store.sessions.new_session(world.store.people.get(name).id))


def events_of(browser: Browser, mount: str = "") -> list[dict[str, Any]]:
    """The events of a page as its own front end reads them."""
    events: list[dict[str, Any]] = browser.get(f"{mount}/config").json()["dependencies"]
    return events
