"""How often and how much at once: nobody starves the others, nobody locks somebody else out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.door_support import PASSWORD, Browser, events_of, open_app, open_live, session_of
from tests.ui_support import World
from ui.limits import GUESSED, PERIOD_S, Line, LoginLimits, Turnstile, Window, address_key
from ui.login_texts import ENGLISH_DOOR

HERE, THERE = "192.0.2.1", "198.51.100.7"


pytestmark = pytest.mark.long


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_window_allows_so_many_a_minute_and_counts_each_key_alone(clock: Clock) -> None:
    window = Window(3, clock)
    assert [window.take("a") for _ in range(4)] == [True, True, True, False]
    assert window.take("b")
    clock.now += PERIOD_S - 0.1
    assert not window.take("a")
    clock.now += 0.1
    assert window.take("a")
    window.give_back("a")
    assert window.count("a") == 0
    assert not window.take("b", limit=0)


def test_a_window_forgets_the_key_unused_for_longest_when_it_is_full(clock: Clock) -> None:
    window = Window(1, clock, max_keys=3)
    for key in ("a", "b", "c", "d"):
        assert window.take(key)
    assert window.count("d") == 1
    assert window.take("a"), "forgotten"


def test_a_turnstile_lets_so_many_in_and_remembers_nobody_who_left() -> None:
    turnstile = Turnstile(2)
    assert [turnstile.enter(7) for _ in range(3)] == [True, True, False]
    assert turnstile.enter(8)
    turnstile.leave(7)
    assert turnstile.enter(7)
    for _ in range(2):
        turnstile.leave(7)
    turnstile.leave(8)
    assert turnstile._inside == {}
    with pytest.raises(AssertionError):
        turnstile.leave(7)


def test_a_line_lets_one_through_at_a_time_in_the_order_they_came() -> None:
    line = Line(3)
    first, second, third, fourth = [line.join(7) for _ in range(4)]
    assert first and second and third and fourth is None
    assert [turn.is_set() for turn in (first, second, third)] == [True, False, False]
    other = line.join(8)
    assert other and other.is_set()
    line.leave(7, second)  # went while it waited
    assert not third.is_set()
    line.leave(7, first)
    assert third.is_set()
    line.leave(7, third)
    line.leave(8, other)
    assert line._lines == {}


def test_wrong_passwords_are_counted_by_account_and_address(clock: Clock) -> None:
    limits = LoginLimits(5, 30, clock)
    assert [limits.begin("ada", HERE) for _ in range(6)] == [True] * 5 + [False]
    assert limits.begin("ben", HERE)
    assert limits.begin("ada", THERE)
    clock.now += PERIOD_S
    assert limits.begin("ada", HERE)


def test_one_address_tries_many_names_no_more_often_than_allowed(clock: Clock) -> None:
    limits = LoginLimits(5, 30, clock)
    assert sum(limits.begin(f"name{number}", HERE) for number in range(50)) == 30


def test_an_attacker_at_many_addresses_gets_one_try_from_each_and_locks_nobody_out(clock: Clock) -> None:
    limits = LoginLimits(5, 30, clock)
    heard = sum(limits.begin("ada", f"203.0.113.{place}") for place in range(100) for _ in range(5))
    assert heard <= GUESSED + 100
    assert limits.begin("ada", HERE), "her own address has not failed"
    limits.succeed("ada", HERE)
    assert limits.begin("ada", HERE)


def test_a_right_password_takes_nothing_from_those_who_log_in_from_the_same_address(clock: Clock) -> None:
    """A class of pupils comes through one address at nine o'clock."""
    limits = LoginLimits(5, 30, clock)
    for pupil in range(100):
        assert limits.begin(f"pupil{pupil}", HERE)
        limits.succeed(f"pupil{pupil}", HERE)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("testclient", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_ipv6_household_counts_as_one_address(host: str, key: str) -> None:
    assert address_key(host) == key


def from_address(client: TestClient, address: str, name: str, password: str) -> int:
    """Log in as if from somewhere else; returns the status."""
    elsewhere = TestClient(client.app, base_url=str(client.base_url), client=(address, 50_000))
    return Browser(elsewhere).log_in(name, password).status_code


@pytest.fixture
def running(home: Path) -> Iterator[tuple[World, TestClient]]:
    with open_app(home, events_per_minute=3, requests_at_once=4) as opened:
        yield opened


def test_twenty_wrong_tries_elsewhere_do_not_keep_the_right_one_out(running: tuple[World, TestClient]) -> None:
    _, client = running
    statuses = [from_address(client, THERE, "ada", "guess") for _ in range(20)]
    assert statuses == [401] * 5 + [429] * 15
    assert from_address(client, THERE, "ada", PASSWORD) == 429
    assert from_address(client, HERE, "ada", PASSWORD) == 303
    assert from_address(client, HERE, "ada", PASSWORD) == 303


def test_a_password_change_cannot_be_guessed_faster_than_a_login(running: tuple[World, TestClient]) -> None:
    browser = session_of(*running, "ada")
    fields = {"current": "guess", "new": "another horse", "again": "another horse"}
    assert [browser.form("/password", **fields).status_code for _ in range(6)] == [401] * 5 + [429]


def test_one_person_sends_no_more_events_a_minute_than_allowed_and_hears_it_in_words(
    running: tuple[World, TestClient],
) -> None:
    ada, ben = session_of(*running, "ada"), session_of(*running, "ben")
    following = next(event["id"] for event in events_of(ada) if event["api_name"] == "next")
    assert [ada.event(following, []).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = ada.event(following, [])
    assert answer.json()["detail"] == ENGLISH_DOOR.refusals["too_often"]
    assert answer.headers["retry-after"] == "60"
    assert ada.event(following, [], mount="/ko").json()["detail"] != answer.json()["detail"]
    assert ben.event(following, []).status_code == 200


def test_the_owner_of_an_app_without_accounts_is_held_to_no_limits(home: Path) -> None:
    with open_app(home, accounts=False, events_per_minute=1) as (_, client):
        owner = Browser(client)
        following = next(event["id"] for event in events_of(owner) if event["api_name"] == "next")
        assert {owner.event(following, []).status_code for _ in range(5)} == {200}


def test_held_streams_of_one_account_leave_room_for_the_others(home: Path) -> None:
    with open_live(home, requests_at_once=3) as (world, client):
        ada, ben = session_of(world, client, "ada"), session_of(world, client, "ben")
        held = [client.stream("GET", f"/gradio_api/heartbeat/{place}", headers=ada._headers({})) for place in "abc"]
        for stream in held:
            assert stream.__enter__().status_code == 200
        assert ada.status("GET", "/config") == 429
        assert ben.status("GET", "/config") == 200
        for stream in held:
            stream.__exit__(None, None, None)


def test_five_hundred_anonymous_streams_are_turned_away_and_the_app_answers(home: Path) -> None:
    with open_live(home) as (_, client):
        nobody = Browser(client)
        assert {nobody.status("GET", f"/gradio_api/heartbeat/{number}") for number in range(500)} == {401}
        assert nobody.status("GET", "/healthz") == 200
