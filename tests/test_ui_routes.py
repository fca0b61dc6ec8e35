"""Every route of the mounted app, and every event, asked for by everybody; what may be is written in two files.

`fixtures/routes.txt` names each route of the app and of the framework inside it, open or closed. A framework upgrade
that brings a route fails here. `fixtures/authorisation.tsv` says what nobody, a member, another member and an
operator get from each way in; `?` stands where the answer depends on whose the named things are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from httpx import Client
from starlette.routing import Mount

from feedback_store.records import Origin
from tests.door_support import Browser, events_of, make_app, open_live, session_of
from tests.ui_support import World, make_world
from ui.routes import WrongMethod, find_rule

FIXTURES = Path(__file__).parent / "fixtures"
MOUNTS = ("", "/ko")
CALLERS = ("nobody", "user", "other", "operator")
# how the framework's patterns look when they are asked for
EXAMPLES = {
    "{path:path}": "x.js", "{run_id}": "run", "{name}": "loss.png", "{session_hash}": "abc", "{size}": "12",
    "{key}": "abc", "{api_name}": "predict", "{event_id}": "abc", "{url_path:path}": "http://x", "{run}": "1",
    "{component_id}": "2", "{segment_id}": "3", "{ext}": "ts", "{id}": "a", "{environment}": "b", "{type}": "c",
    "{file_name}": "d", "{path_or_url:path}": "etc/passwd", "{endpoint}": "e", "{record_id}": "f", "{asset_id}": "g",
}  # fmt: skip

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Client]]:
    with open_live(tmp_path_factory.mktemp("app") / "home", events_per_minute=10_000) as opened:
        yield opened


def routes_of(app: FastAPI, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every method and path that the app or an app mounted in it would answer."""
    for route in iter_route_contexts(app.routes):
        inner = route.original_route
        if isinstance(inner, Mount):
            yield from routes_of(inner.app, prefix + inner.path)
            continue
        assert route.path is not None, "a kind of route that this test does not know"
        for method in sorted(route.methods or ("ANY",)):
            yield method, prefix + route.path


def is_open(method: str, path: str) -> bool:
    for pattern, example in EXAMPLES.items():
        path = path.replace(pattern, example)
    assert "{" not in path, f"name an example for {path}"
    try:
        return find_rule(method, path) is not None
    except WrongMethod:
        return False


def test_every_route_of_the_app_is_known_and_open_or_closed_as_written(home: Path) -> None:
    """Compare with fixtures/routes.txt; a route that is new there must be looked at before it is written there."""
    world = make_world(home)
    found = {
        f"{'open' if is_open(method, path) else 'closed'} {method} {path}"
        for method, path in routes_of(make_app(world))
    }
    world.store.close()
    written = set((FIXTURES / "routes.txt").read_text().splitlines())
    assert sorted(found - written) == []
    assert sorted(written - found) == []


def test_a_closed_route_answers_an_operator_with_404_or_405(running: tuple[World, Client]) -> None:
    operator = session_of(*running, "olga")
    for line in (FIXTURES / "routes.txt").read_text().splitlines():
        state, method, path = line.split(" ", 2)
        for pattern, example in EXAMPLES.items():
            path = path.replace(pattern, example)
        if state == "closed":
            assert operator.ask(method, path).status_code in (404, 405), line


def rows() -> list[dict[str, str]]:
    lines = [line.split("\t") for line in (FIXTURES / "authorisation.tsv").read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def callers(running: tuple[World, Client]) -> dict[str, Browser]:
    world, client = running
    return {
        "nobody": Browser(client),
        "user": session_of(world, client, "ada"),
        "other": session_of(world, client, "ben"),
        "operator": session_of(world, client, "olga"),
    }


def a_reply_of(world: World, name: str) -> str:
    """A finished reply in somebody's conversation."""
    person = world.store.people.get(name).id
    question = world.store.conversations.add_user_message(
        world.store.conversations.start(person).id, person, "Whose is this?"
    )
    origin = Origin(None, world.engine.base_id, "float32", "plain", "", 0.0, 1.0, 16, 1)
    reply = world.store.conversations.begin_reply(question.id, person, origin)
    world.store.conversations.finish_reply(reply.id, "Yours.", "done", "stop", 2)
    return reply.id


def data_for(event: dict[str, Any], kinds: dict[int, str], reply: str) -> list[Any]:
    """What a page could send: the user's reply in every box, nothing chosen."""
    values = {"textbox": reply, "radio": None, "dropdown": None, "checkboxgroup": [], "checkbox": False}
    return [values[kinds[part]] for part in event["inputs"]]


FORMS = ("/login", "/logout", "/password", "/consent")


def test_every_route_gives_everybody_what_is_written(running: tuple[World, Client]) -> None:
    people = callers(running)
    for row in rows():
        if row["kind"] != "route":
            continue
        method, path = row["what"].split(" ")
        for caller in CALLERS:
            browser = people[caller]
            more: dict[str, Any] = {"json": {}} if "/gradio_api/" in path and method == "POST" else {}
            if method == "POST" and path in FORMS:
                more = {"data": browser.token_for(path)}
            status = browser.status(method, path.replace("{page}", browser.page), **more)
            assert str(status) == row[caller], f"{row['what']} as {caller}"
        people = callers(running) if path == "/logout" else people


def test_every_event_gives_everybody_what_is_written(running: tuple[World, Client]) -> None:
    """`other` names the user's things from a page of their own; `thief` uses the user's page."""
    world, _ = running
    people = callers(running)
    reply = a_reply_of(world, "ada")
    written = {row["what"]: row for row in rows() if row["kind"] == "event"}
    for mount in MOUNTS:
        config = people["operator"].get(f"{mount}/config").json()
        kinds = {part["id"]: part["type"] for part in config["components"]}
        events = [event for event in config["dependencies"] if event["backend_fn"]]
        assert {event["api_name"] for event in events} == set(written), "write each event into authorisation.tsv"
        for event in events:
            row = written[event["api_name"]]
            data = data_for(event, kinds, reply)
            told = {"index": 1, "value": "x", "liked": True} if event["targets"][0][1] == "like" else None
            for caller in CALLERS:
                if row[caller] == "?":
                    continue
                if caller == "operator" and row["acts"] == "yes":
                    continue  # it would start a night
                answer = people[caller].event(event["id"], data, queued=event["queue"], mount=mount, event_data=told)
                assert str(answer.status_code) == row[caller], f"{event['api_name']} as {caller}: {answer.text[:200]}"
            stolen = Browser(people["other"].client)
            stolen.cookies, stolen.page = people["other"].cookies, people["user"].page
            people["user"].event(event["id"], data, queued=event["queue"], mount=mount, event_data=told)
            theft = stolen.event(event["id"], data, queued=event["queue"], mount=mount, event_data=told)
            assert theft.status_code == 403, event["api_name"]


def test_the_operators_events_are_those_of_the_operate_page(running: tuple[World, Client]) -> None:
    """Handlers read from the file, so that one that is wired elsewhere by mistake shows as a change of this line."""
    closed = {row["what"] for row in rows() if row["kind"] == "event" and row["user"] == "403"}
    assert closed == {"refresh", "refresh_1", "tick", "promote", "roll_back", "retrain"}
    assert {row["what"] for row in rows() if row["kind"] == "event"} >= closed
    assert all(event["api_visibility"] == "private" for event in events_of(session_of(*running, "olga")))
