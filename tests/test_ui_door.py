"""Logging in and out: who is known again, for how long, and what a password change ends."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

from assistant.settings import DoorSettings
from feedback_store.accounts import MIN_PASSWORD_CHARS
from feedback_store.sessions import SESSION_IDLE, SESSION_LIFETIME
from tests.door_support import PASSWORD, Browser, events_of, open_app, session_of
from tests.ui_support import World
from ui.door import FORM_COOKIE, SESSION_COOKIE, Door, NobodyThere, Visit, form_token, is_limited, visitor
from ui.login_texts import ENGLISH_DOOR, KOREAN_DOOR

Running = tuple[World, TestClient]


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with open_app(tmp_path_factory.mktemp("app") / "home", logins_per_address=1000) as opened:
        yield opened


@pytest.fixture
def ada(running: Running) -> str:
    """The name of a member whom no other test has changed."""
    name = f"ada-{uuid.uuid4().hex[:8]}"
    running[0].store.accounts.add(name, PASSWORD)
    return name


@pytest.fixture
def alone(home: Path) -> Iterator[Running]:
    with open_app(home, accounts=False) as opened:
        yield opened


def test_without_accounts_whoever_sits_at_the_machine_is_the_owner(alone: Running) -> None:
    browser = Browser(alone[1])
    assert browser.get("/").status_code == 200
    assert browser.get("/login").headers["location"] == "/"
    assert browser.get("/password").headers["location"] == "/"
    assert browser.log_in("anybody", "anything").headers["location"] == "/"
    assert "nightschool_session" not in browser.cookies


def test_once_there_are_accounts_the_machine_itself_needs_a_login_too(alone: Running) -> None:
    world, client = alone
    browser = Browser(client)
    assert browser.get("/config").status_code == 200
    world.store.accounts.add("olga", PASSWORD, "operator")
    assert browser.get("/config").status_code == 401
    assert browser.get("/").headers["location"] == "/login"


def test_behind_a_proxy_nobody_is_the_owner(home: Path) -> None:
    """A proxy that nobody named would hand everything to whoever comes."""
    with open_app(home, accounts=False) as (_, client):
        assert Browser(client).get("/", headers={"x-forwarded-for": "203.0.113.9"}).status_code == 403


def test_a_named_proxy_makes_even_loopback_ask_for_a_login(home: Path) -> None:
    with open_app(home, accounts=False, public_url="https://school.example") as (_, client):
        assert Browser(client).get("/").headers["location"] == "/login"


def test_a_login_leads_to_the_question_first_and_to_the_chat_once_it_is_answered(running: Running, ada: str) -> None:
    world, client = running
    browser = Browser(client)
    assert browser.get("/").headers["location"] == "/login"
    assert browser.log_in(ada).headers["location"] == "/consent"
    assert ENGLISH_DOOR.consent_answer["unanswered"] in browser.get("/consent").text
    assert browser.form("/consent", teach="perhaps").headers["location"] == "/consent"
    assert world.store.people.get(ada).teach == "unanswered"
    assert browser.form("/consent", teach="on").headers["location"] == "/"
    assert world.store.people.get(ada).teach == "on"
    assert browser.get("/").status_code == 200
    assert browser.log_in(ada).headers["location"] == "/"
    browser.form("/consent", teach="off")
    assert world.store.people.get(ada).teach == "off"


def test_capitals_and_spaces_around_a_name_do_not_matter(running: Running, ada: str) -> None:
    assert Browser(running[1]).log_in(f"  {ada.upper()} ").status_code == 303


def test_an_unknown_name_and_a_wrong_password_get_the_same_answer_in_the_same_time(running: Running, ada: str) -> None:
    _, client = running
    took: dict[str, list[float]] = {ada: [], "nobody-here": []}
    for _ in range(4):
        for name, times in took.items():
            began = time.perf_counter()
            answer = Browser(client).log_in(name, "wrong password")
            times.append(time.perf_counter() - began)
            assert answer.status_code == 401
            assert ENGLISH_DOOR.wrong_login in answer.text
            assert SESSION_COOKIE not in answer.cookies
    assert min(took["nobody-here"]) > min(took[ada]) / 3
    assert min(took[ada]) > min(took["nobody-here"]) / 3


def test_what_was_typed_as_a_name_comes_back_as_text(running: Running) -> None:
    answer = Browser(running[1]).log_in("'><script>alert(1)</script>", "x")
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text


def test_the_cookie_is_for_this_site_and_no_script(running: Running, ada: str) -> None:
    cookie = Browser(running[1]).log_in(ada).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie


def test_with_a_public_https_address_the_cookie_is_for_https_only(home: Path) -> None:
    with open_app(home, public_url="https://school.example/") as (_, client):
        browser = Browser(client)
        fields = {"name": "ada", "password": PASSWORD, **browser.token_for("/login")}
        headers = {"host": "school.example", "origin": "https://school.example"}
        answer = browser.ask("POST", "/login", data=fields, headers=headers)
        assert answer.status_code == 303
        assert "Secure" in answer.headers["set-cookie"]


def test_a_login_never_goes_on_in_a_session_that_was_there_before(running: Running, ada: str) -> None:
    """A token that somebody planted in the browser, or that an earlier login left, ends with the login."""
    world, client = running
    for planted in ("a-token-chosen-by-somebody", world.store.sessions.new_session(world.store.people.get("ben").id)):
        browser = Browser(client, planted)
        assert browser.log_in(ada).status_code == 303
        assert browser.cookies[SESSION_COOKIE] != planted
        assert Browser(client, planted).get("/config").status_code == 401
        assert browser.get("/config").status_code == 200


def test_only_a_hash_of_the_token_is_stored(running: Running, ada: str) -> None:
    world, client = running
    browser = Browser(client)
    browser.log_in(ada)
    token = browser.cookies[SESSION_COOKIE].encode()
    files = [path for path in world.settings.home.rglob("*") if path.is_file()]
    assert files
    assert not any(token in path.read_bytes() for path in files)


def test_logging_out_ends_the_session_and_is_never_a_link(running: Running, ada: str) -> None:
    world, client = running
    browser, elsewhere = session_of(world, client, ada), session_of(world, client, ada)
    assert browser.get("/logout").status_code == 405
    assert browser.get("/config").status_code == 200
    token = browser.cookies[SESSION_COOKIE]
    answer = browser.form("/logout")
    assert answer.headers["location"] == "/login"
    assert f'{SESSION_COOKIE}=""' in answer.headers["set-cookie"]
    assert Browser(client, token).get("/config").status_code == 401
    assert elsewhere.get("/config").status_code == 200


def test_a_form_without_the_token_of_this_session_and_form_changes_nothing(running: Running, ada: str) -> None:
    """A reply on the chat page held a form for /consent and a button over the whole page: one click changed it.

    It came from the app's own origin, with the person's cookie; what it could not have is what the app's forms bring.
    """
    world, client = running
    browser, other = session_of(world, client, ada), session_of(world, client, "ben")
    wrong = ["", "x", "한국어", other.token_for("/consent")["token"], browser.token_for("/logout")["token"]]
    changed = {"current": PASSWORD, "new": "another horse", "again": "another horse"}
    for token in wrong:
        answer = browser.ask("POST", "/consent", data={"teach": "on", "token": token})
        assert answer.status_code == 403
        assert ENGLISH_DOOR.form_too_old in answer.text
        assert browser.ask("POST", "/password", data={**changed, "token": token}).status_code == 403
    for token in ("", "x", browser.token_for("/consent")["token"]):
        answer = browser.ask("POST", "/logout", data={"token": token})
        assert answer.status_code == 403
        assert "action='/logout'" in answer.text, "the way out stays open"
        login = {"name": "ben", "password": PASSWORD, "token": token}
        assert browser.ask("POST", "/login", data=login).status_code == 403
    assert world.store.people.get(ada).teach == "unanswered"
    assert browser.get("/config").status_code == 200
    assert Browser(client).log_in(ada).status_code == 303
    assert browser.form("/consent", teach="off").status_code == 303
    assert world.store.people.get(ada).teach == "off"


def test_the_owner_without_a_session_needs_the_form_too(alone: Running) -> None:
    world, client = alone
    owner = Browser(client)
    assert owner.ask("POST", "/consent", data={"teach": "off"}).status_code == 403
    assert world.store.people.owner().teach == "on"
    assert owner.form("/consent", teach="off").status_code == 303
    assert world.store.people.owner().teach == "off"


@pytest.mark.parametrize("age", [SESSION_LIFETIME, SESSION_IDLE])
def test_a_session_ends_by_itself(running: Running, age: timedelta, ada: str) -> None:
    world, client = running
    person = world.store.people.get(ada).id
    long_ago = datetime.now(UTC) - age - timedelta(minutes=1)
    assert Browser(client, world.store.sessions.new_session(person, long_ago)).get("/config").status_code == 401
    shortly_before = datetime.now(UTC) - SESSION_IDLE + timedelta(hours=1)
    assert Browser(client, world.store.sessions.new_session(person, shortly_before)).get("/config").status_code == 200


def test_a_new_role_and_a_disabled_account_count_from_the_next_request(running: Running, ada: str) -> None:
    world, client = running
    browser = session_of(world, client, ada)
    refresh = next(event["id"] for event in events_of(browser) if event["api_name"] == "refresh")
    assert browser.event(refresh, []).status_code == 403
    assert browser.get("/plots/run/loss.png").status_code == 403
    world.store.accounts.set_role(ada, "operator")
    assert browser.event(refresh, []).status_code == 200
    assert browser.get("/plots/run/loss.png").status_code == 404
    world.store.accounts.set_role(ada, "member")
    assert browser.event(refresh, []).status_code == 403
    world.store.accounts.disable(ada)
    assert browser.event(refresh, []).status_code == 401
    assert browser.log_in(ada).status_code == 401
    world.store.accounts.enable(ada)
    assert browser.get("/config").status_code == 401, "its session ended for good"


def test_a_changed_password_ends_every_other_session(running: Running, ada: str) -> None:
    world, client = running
    browser, elsewhere = session_of(world, client, ada), session_of(world, client, ada)
    before = browser.cookies[SESSION_COOKIE]
    fields = {"current": PASSWORD, "new": "another horse", "again": "another horse"}
    answer = browser.form("/password", **fields)
    assert ENGLISH_DOOR.password_changed in answer.text
    assert browser.get("/config").status_code == 200
    for token in (before, elsewhere.cookies[SESSION_COOKIE]):
        assert Browser(client, token).get("/config").status_code == 401
    assert Browser(client).log_in(ada).status_code == 401
    assert Browser(client).log_in(ada, "another horse").status_code == 303


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"current": "wrong one", "new": "another horse", "again": "another horse"}, 401, ENGLISH_DOOR.wrong_password),
        ({"current": PASSWORD, "new": "another horse", "again": "another hose"}, 422, ENGLISH_DOOR.passwords_differ),
        ({"current": PASSWORD, "new": PASSWORD, "again": PASSWORD}, 422, ENGLISH_DOOR.same_password),
        ({"current": "wrong one", "new": PASSWORD, "again": PASSWORD}, 401, ENGLISH_DOOR.wrong_password),
        ({"current": PASSWORD, "new": "short", "again": "short"}, 422, f"{MIN_PASSWORD_CHARS} to"),
        ({}, 422, f"{MIN_PASSWORD_CHARS} to"),
    ],
)
def test_a_password_change_that_is_refused_changes_nothing(
    running: Running, fields: dict[str, str], status: int, said: str, ada: str
) -> None:
    browser = session_of(*running, ada)
    answer = browser.form("/password", **fields)
    assert answer.status_code == status
    assert said in answer.text
    assert browser.get("/config").status_code == 200
    assert Browser(running[1]).log_in(ada).status_code == 303


def test_the_pages_speak_the_readers_language_and_remember_a_choice(running: Running) -> None:
    browser = Browser(running[1])
    assert KOREAN_DOOR.login_title in browser.get("/login", headers={"accept-language": "ko"}).text
    answer = browser.get("/login?lang=ko")
    assert answer.headers["location"] == "/login"
    browser.cookies["lang"] = answer.cookies["lang"]
    assert KOREAN_DOOR.login_title in browser.get("/login").text
    browser.cookies = {}
    reader = Browser(running[1], running[0].store.sessions.new_session(running[0].store.people.get("olga").id))
    assert reader.get("/login", headers={"accept-language": "ko"}).headers["location"] == "/ko/"


def test_both_languages_have_the_same_words() -> None:
    for name in ("consent_answer", "refusals"):
        assert ENGLISH_DOOR.__dict__[name].keys() == KOREAN_DOOR.__dict__[name].keys()
    assert all(ENGLISH_DOOR.__dict__.values())
    assert all(KOREAN_DOOR.__dict__.values())
    assert all(
        "{least}" in texts.password_rule and "{most}" in texts.password_rule for texts in (KOREAN_DOOR, ENGLISH_DOOR)
    )


def test_the_pages_work_without_scripts_and_load_nothing(running: Running, ada: str) -> None:
    for path in ("/login", "/consent", "/password"):
        answer = (Browser(running[1]) if path == "/login" else session_of(*running, ada)).get(path)
        assert answer.status_code == 200
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    "body", [b"", b"name=ada", b"&" * 5000, b"a=1&" * 50, b"\xff\xfe%ff%00=1", b"name=%00&password=%00"]
)
def test_a_form_that_no_page_sends_is_no_login(running: Running, body: bytes) -> None:
    browser = Browser(running[1])
    assert browser.raw(b"", "nothing").status_code == 404
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert browser.ask("POST", "/login", content=body, headers=headers).status_code == 403


def test_a_bearer_token_is_its_persons_and_a_cookie_is_not_one(running: Running) -> None:
    anyio.run(asks_with_tokens, running[0])


async def asks_with_tokens(world: World) -> None:
    door = Door(world.store, DoorSettings(), local=True)
    ada = world.store.people.get("ada")
    token = world.store.sessions.new_token(ada.id)
    assert (await door.visit_of_bearer({"authorization": f"Bearer {token}"})).person == ada
    assert (await door.visit_of_bearer({"authorization": f"bearer {token}"})).person == ada
    session = world.store.sessions.new_session(ada.id)
    cookie = {"cookie": f"{SESSION_COOKIE}={session}"}
    assert await door.person_of(cookie) == ada
    for headers in ({}, cookie, {"authorization": f"Bearer {session}"}, {"authorization": token}):
        assert (await door.visit_of_bearer(headers)).person is None
    assert await door.person_of({"cookie": f"{SESSION_COOKIE}={token}"}) is None


def test_a_handler_learns_for_whom_it_works_and_works_for_nobody_else(running: Running) -> None:
    ada = running[0].store.people.get("ada")

    def request(state: dict[str, Any]) -> Any:
        return SimpleNamespace(request=SimpleNamespace(scope={"state": state}))

    assert visitor(request({"person": ada})) == ada
    assert is_limited(request({"person": ada, "visit": Visit(ada, "token")}))
    assert not is_limited(request({"person": ada, "visit": Visit(ada, is_local_owner=True)}))
    for nobody in (None, SimpleNamespace(request=None), request({}), request({"person": None})):
        with pytest.raises(NobodyThere):
            visitor(nobody)


@pytest.mark.timed
def test_fifty_logins_at_once_keep_the_app_answering(home: Path) -> None:
    """Hashing happens in two threads of its own; whoever does not fit into their queue is told to come back."""
    with open_app(home, logins_per_address=1000, logins_per_account=1000) as (_, client):
        with ThreadPoolExecutor(40) as pool:
            fields = {"password": "x", "token": form_token("key", "/login")}
            cookie = {"cookie": f"{FORM_COOKIE}=key"}
            tries = [
                pool.submit(client.post, "/login", data={"name": f"ada{n}", **fields}, headers=cookie)
                for n in range(50)
            ]
            slowest = 0.0
            while not all(one.done() for one in tries):
                began = time.perf_counter()
                assert client.get("/healthz").status_code == 200
                slowest = max(slowest, time.perf_counter() - began)
            assert {one.result().status_code for one in tries} <= {401, 503}
    assert slowest < 1
