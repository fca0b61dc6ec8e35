"""What gets past the guard: only what this app's own pages send, from the person whose page it is."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Client
from starlette.websockets import WebSocketDisconnect

from tests.door_support import Browser, events_of, open_app, open_live, session_of
from tests.shared_data import hostile_bodies, hostile_strings, needs_data
from tests.ui_support import World
from ui.bodies import MAX_BODY_BYTES
from ui.guard import CONTENT_POLICY, PageOwners
from ui.login_texts import ENGLISH_DOOR, KOREAN_DOOR

Running = tuple[World, TestClient]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with open_app(tmp_path_factory.mktemp("app") / "home", events_per_minute=100_000) as opened:
        yield opened


@pytest.fixture
def olga(running: Running) -> Browser:
    return session_of(*running, "olga")


def numbered(browser: Browser, name: str) -> int:
    """The number of the event of that name."""
    return next(int(event["id"]) for event in events_of(browser) if event["api_name"] == name)


def planted(secret: Path, url: str) -> list[Any]:
    """The shapes in which the framework takes an object for a file."""
    meta = {"_type": "gradio.FileData"}
    return [
        {"path": str(secret)},
        {"path": str(secret), "meta": meta},
        {"path": url, "url": url, "meta": meta, "orig_name": "x"},
        {"url": url, "meta": meta},
        {"_type": "gradio.FileData"},
        [{"deep": [{"er": {"path": str(secret), "meta": meta}}]}],
    ]


def test_no_event_takes_a_file_or_fetches_an_address(running: Running, olga: Browser, tmp_path: Path) -> None:
    """A mounted app would copy the server's file into its cache, which it serves, or fetch the address."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    asked: list[str] = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Listening) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        shapes = planted(secret, f"http://127.0.0.1:{server.server_port}/x")
        try:
            for mount in ("", "/ko"):
                for event in events_of(olga, mount):
                    for shape in shapes:
                        refuses_file(olga, event, shape, mount)
        finally:
            server.shutdown()
            thread.join()
    assert asked == []
    assert olga.get(f"/gradio_api/file={secret}").status_code == 404


def refuses_file(browser: Browser, event: dict[str, Any], shape: Any, mount: str) -> None:
    """Try one shape as data and beside it, on both ways in."""
    size = len(event["inputs"])
    for queued in (True, False):
        tries = [browser.event(event["id"], [], queued=queued, mount=mount, event_data={"value": shape})]
        if size:
            tries.append(browser.event(event["id"], [shape] * size, queued=queued, mount=mount))
        for answer in tries:
            if event["backend_fn"]:
                assert answer.status_code == 422, event["api_name"]
                page = KOREAN_DOOR if mount else ENGLISH_DOOR
                assert answer.json()["detail"] == page.refusals["file"]
            else:
                assert answer.status_code == 404
            assert "the secret" not in answer.text


def kinds_of(browser: Browser) -> dict[int, str]:
    """What kind each component of the page is of."""
    return {part["id"]: part["type"] for part in browser.get("/config").json()["components"]}


def empty(event: dict[str, Any], kinds: dict[int, str]) -> list[Any]:
    """An event's data as an empty page has it."""
    nothing = {"checkboxgroup": [], "textbox": ""}
    return [nothing.get(kinds[part]) for part in event["inputs"]]


def test_an_event_goes_only_the_way_its_page_sends_it(olga: Browser) -> None:
    kinds = kinds_of(olga)
    for event in events_of(olga):
        told = {"index": 0, "value": "", "liked": True}
        answer = olga.event(event["id"], empty(event, kinds), queued=not event["queue"], event_data=told)
        assert answer.status_code == 404, event["api_name"]


NEXT = {"data": [], "fn_index": -1, "session_hash": "abc"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b'{"fn_index":' + b"9" * 5000 + b"}", 400),
        (b'{"data": [NaN]}', 400),
        (b'{"data": [-Infinity]}', 400),
        (b"null", 422),
        (b"[1]", 422),
        (b'"text"', 422),
        (b"{}", 404),
        (b'{"data": [], "fn_index": 1e400, "session_hash": "a"}', 404),
        (b'{"data": [], "fn_index": true, "session_hash": "a"}', 404),
        (b'{"data": [], "fn_index": "0", "session_hash": "a"}', 404),
        (b'{"data": [], "fn_index": -1, "session_hash": "a"}', 404),
        (b'{"data": [], "fn_index": 9999, "session_hash": "a"}', 404),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(olga: Browser, body: bytes, status: int) -> None:
    for path in ("run/predict", "queue/join"):
        answer = olga.raw(body, path)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"] in ENGLISH_DOOR.refusals.values()
    assert 400 <= olga.raw(body, "cancel").status_code < 500


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {}},
        {"data": "x"},
        {"data": ["one too many"]},
        {"session_hash": None},
        {"session_hash": 5},
        {"session_hash": ""},
        {"session_hash": "a/b"},
        {"session_hash": "x" * 65},
        {"event_data": [1]},
        {"event_data": {"deep": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}},
        {"event_data": {"number": 2**60}},
        {"trigger_id": "5"},
        {"trigger_id": 1.5},
    ],
)
def test_an_event_that_no_page_sends_is_refused(olga: Browser, change: dict[str, Any]) -> None:
    body = {"data": [], "fn_index": numbered(olga, "next"), "session_hash": olga.page}
    assert olga.raw(json.dumps(body).encode()).status_code == 200
    answer = olga.raw(json.dumps({**body, **change}).encode())
    assert answer.status_code == 422, answer.text


def test_a_value_that_a_component_refuses_is_a_bad_request(olga: Browser) -> None:
    """The framework answers 500 to it."""
    opening = numbered(olga, "open")
    assert olga.event(opening, ["nosuchconversation", *[""] * 5]).status_code == 400
    assert olga.event(opening, [5, *[""] * 5]).status_code == 422


def test_no_value_of_a_wrong_kind_reaches_a_handler(olga: Browser) -> None:
    for event in events_of(olga):
        if event["backend_fn"] and event["inputs"]:
            for value in (5, 1.5, True, {}, ["x", 5], [[]]):
                answer = olga.event(event["id"], [value] * len(event["inputs"]), queued=event["queue"], event_data={
                    "index": 0, "value": "", "liked": True})  # fmt: skip
                assert answer.status_code == 422, (event["api_name"], value)


def sent_alone(events: list[dict[str, Any]], kinds: dict[int, str], values: tuple[Any, ...]) -> Iterator[Any]:
    """Each event with each value in each place, the others as an empty page has them."""
    for event in events:
        data = empty(event, kinds)
        for place in range(len(data)):
            for value in values:
                yield event, [*data[:place], value, *data[place + 1 :]], {"index": 0, "value": "", "liked": True}
        for bad in (None, [], {}, {"index": 0}, {"index": None, "value": None, "liked": None}):
            yield event, data, bad


def test_no_event_fails_on_what_is_empty_or_wrong_in_any_place(running: Running, olga: Browser) -> None:
    """Null for the reasons of a vote was a 500 without a word: a handler counted on a list."""
    values = (None, "", "\0", "x", "-1", "9" * 400, [], [None], ["x"], [""], {}, 0, -1, 1.5, False)
    events = [event for event in events_of(olga) if event["backend_fn"] and event["api_name"] != "retrain"]
    for event, data, told in sent_alone(events, kinds_of(olga), values):
        answer = olga.event(event["id"], data, queued=event["queue"], event_data=told)
        assert answer.status_code < 500, (event["api_name"], data, told)
        if answer.status_code != 200:
            assert answer.json()["error"], (event["api_name"], data, told)


def test_null_for_reasons_is_refused_in_words(olga: Browser) -> None:
    event = next(event for event in events_of(olga) if event["api_name"] == "give_reasons")
    answer = olga.event(event["id"], ["", "", None, ""])
    assert (answer.status_code, answer.json()["error"]) == (422, ENGLISH_DOOR.refusals["malformed"])


def test_no_text_that_is_sent_as_a_choice_gets_into_the_log(
    olga: Browser, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The framework wrote what was sent into a traceback; it may be anybody's words."""
    kinds = kinds_of(olga)
    for event in (event for event in events_of(olga) if event["backend_fn"]):
        for place, part in enumerate(event["inputs"]):
            if kinds[part] in ("radio", "dropdown", "checkboxgroup"):
                for secret in ("a secret of hers", "비밀", "x" * 101):
                    data = empty(event, kinds)
                    data[place] = [secret] if kinds[part] == "checkboxgroup" else secret
                    assert olga.event(event["id"], data, queued=event["queue"]).status_code == 422
    preset = next(event for event in events_of(olga) if event["api_name"] == "retry")
    assert olga.event(preset["id"], ["nosuchpreset", "", "", "", ""], queued=True).status_code == 422
    said = capfd.readouterr()
    assert said.out + said.err + caplog.text == ""


def test_json_is_read_as_json_only(olga: Browser) -> None:
    body = json.dumps({"data": [], "fn_index": numbered(olga, "next"), "session_hash": olga.page}).encode()
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert olga.raw(body, content_type=kind).status_code == 415
    assert olga.raw(body, content_type="application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ud83dx", "\udc00\ud83d"])
def test_half_a_character_is_refused_in_words(olga: Browser, text: str) -> None:
    """A browser may cut an emoji in two at a box's limit; a comment with half of it was stored as something else."""
    body = {"data": [text], "fn_index": numbered(olga, "too_early"), "session_hash": olga.page}
    for sent in (body, {**body, "data": [""], "event_data": {text: 1}}):
        answer = olga.raw(json.dumps(sent).encode())
        assert (answer.status_code, answer.json()["detail"]) == (422, ENGLISH_DOOR.refusals["half"])


def test_whole_characters_pass(olga: Browser) -> None:
    for text in ("😀", "한국어", "\x00", "\u2028"):
        body = {"data": [text], "fn_index": numbered(olga, "too_early"), "session_hash": olga.page}
        assert olga.raw(json.dumps(body).encode()).status_code == 200


def test_what_is_too_large_is_refused_by_its_word_and_in_fact(running: Running, olga: Browser) -> None:
    early = numbered(olga, "too_early")
    envelope = len(json.dumps({"data": [""], "fn_index": early, "session_hash": olga.page}))
    for path in ("/gradio_api/run/predict", "/login"):
        answer = olga.ask(
            "POST", path, content=b"x" * (MAX_BODY_BYTES + 1), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert ENGLISH_DOOR.refusals["too_large"] in answer.text
    fits = {"data": ["x" * (MAX_BODY_BYTES - envelope)], "fn_index": early, "session_hash": olga.page}
    assert olga.raw(json.dumps(fits).encode()).status_code == 200


def test_a_text_over_its_limit_still_reaches_the_page_that_says_so(running: Running, olga: Browser) -> None:
    text = "x" * (running[0].settings.max_message_chars + 1)
    event = next(event for event in events_of(olga) if event["api_name"] == "ask")
    assert olga.event(event["id"], [text, "plain", "", "", "", ""], queued=True).status_code == 200


def test_another_persons_page_is_nobodys_to_use(running: Running) -> None:
    ada, ben = session_of(*running, "ada"), session_of(*running, "ben")
    ask = next(event for event in events_of(ada) if event["api_name"] == "ask")
    assert ada.event(ask["id"], ["hello", "plain", "", "", "", ""], queued=True).status_code == 200
    thief = ben
    thief.page = ada.page
    following = numbered(ada, "next")
    refused = [
        thief.event(following, []),
        thief.event(ask["id"], ["hello", "plain", "", "", "", ""], queued=True),
        thief.get(f"/gradio_api/queue/data?session_hash={ada.page}"),
        thief.get(f"/ko/gradio_api/queue/data?session_hash={ada.page}"),
        thief.get(f"/gradio_api/heartbeat/{ada.page}"),
        thief.raw(json.dumps({"session_hash": ada.page, "fn_index": ask["id"], "event_id": "x"}).encode(), "cancel"),
    ]
    assert [answer.status_code for answer in refused] == [403] * 6
    assert "not_yours" in ENGLISH_DOOR.refusals
    assert ada.event(following, []).status_code == 200
    both = f"/gradio_api/queue/data?session_hash={uuid_of(thief)}&session_hash={ada.page}"
    assert thief.get(both).status_code == 422


def uuid_of(browser: Browser) -> str:
    """Some page's name that nobody used."""
    return browser.page[::-1]


def test_one_persons_many_pages_push_out_their_own_and_never_anothers() -> None:
    owners = PageOwners(per_person=3)
    assert owners.claim("hers", 1)
    assert all(owners.claim(f"page{number}", 2) for number in range(10))
    assert not owners.claim("hers", 2)
    assert not owners.claim("page9", 1)
    assert owners.claim("page0", 1), "forgotten long ago"


def test_a_page_may_load_nothing_that_a_model_wrote(running: Running, olga: Browser) -> None:
    for path in ("/", "/ko/", "/config", "/theme.css", "/nothing", "/logout", "/healthz"):
        headers = olga.get(path).headers
        assert headers["content-security-policy"] == CONTENT_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert olga.get("/").headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in CONTENT_POLICY
    assert "script-src-attr 'none'" in CONTENT_POLICY
    assert "http" not in CONTENT_POLICY


CLOSED = (
    "/assets/%2e%2e/config", "//etc/passwd", "/ko/ko/config", "/assets//x.js", "/static/.hidden", "/config/", "/Ko/",
    "/gradio_api/run/next", "/svelte/x.js", "/assets/..%2fconfig", "/assets/x%00.js", "/login/", "/login%0a",
)  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_a_path_that_only_looks_like_an_open_one_is_closed(olga: Browser, path: str) -> None:
    assert olga.get(path).status_code in (404, 405)


def test_a_body_without_a_length_is_counted_as_it_comes(home: Path) -> None:
    with open_live(home) as (world, client):
        olga = session_of(world, client, "olga")
        chunks = (b"x" * 65_536 for _ in range(64))
        headers = {"content-type": "application/json"}
        assert olga.ask("POST", "/gradio_api/run/predict", content=chunks, headers=headers).status_code == 413
        assert sends_raw(client, "Content-Length: 99999999999999999999999\r\n").startswith(b"HTTP/1.1 4")
        assert sends_raw(client, "Content-Length: 5\r\nContent-Length: 6\r\n").startswith(b"HTTP/1.1 4")
        assert olga.get("/config").status_code == 200


def sends_raw(client: Client, header: str) -> bytes:
    """Send a request by hand and return the beginning of the answer."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as connection:
        head = f"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
        connection.sendall(head.encode())
        return connection.recv(20)


def test_a_websocket_is_closed(running: Running) -> None:
    with pytest.raises(WebSocketDisconnect) as closed:
        with running[1].websocket_connect("/"):
            raise AssertionError("was opened")
    assert closed.value.code == 1008


@pytest.mark.long
@needs_data
def test_no_hostile_body_or_string_is_an_error_in_an_event_or_an_address(olga: Browser) -> None:
    for body in hostile_bodies():
        assert 400 <= olga.raw(body, "cancel").status_code < 500, body[:80]
        in_data = b'{"fn_index": %d, "session_hash": "abc", "data": [%s]}' % (numbered(olga, "too_early"), body)
        assert olga.raw(in_data).status_code < 500, body[:80]
    early, opening = numbered(olga, "too_early"), numbered(olga, "open")
    for text in hostile_strings():
        assert olga.event(early, [text]).status_code == 200, text
        assert olga.event(opening, [text] * 6).status_code < 500, text
        assert olga.get("/", params={"c": text, "lang": text}).status_code < 500, text
