"""By which names the app answers, to whose pages, and when it may be opened to others at all."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from assistant.errors import SettingsError
from assistant.settings import load_settings
from tests.app_process import running_app
from tests.door_support import HOST, PASSWORD, Browser, make_app, make_door_world, open_app, serving, session_of
from tests.new_store import open_in
from ui.__main__ import CannotServe, main, reserve
from ui.hosts import Hosts, host_name, is_loopback, reachable

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:80", "localhost"),
        ("127.0.0.1:7860", "127.0.0.1"),
        ("[::1]:7860", "::1"),
        ("::1", None),
        ("", None),
        ("a b", None),
        ("127.0.0.1/evil", None),
        ("127.0.0.1@evil.example", None),
        ("evil.example#127.0.0.1", None),
        ("127.0.0.1:99999", None),
        ("127.0.0.1:x", None),
    ],
)
def test_a_host_header_is_a_name_or_nothing(header: str, name: str | None) -> None:
    assert host_name(header) == name


def test_bound_to_this_machine_only_its_own_names_are_known() -> None:
    hosts = Hosts("127.0.0.1")
    assert all(hosts.knows(host) for host in ("127.0.0.1:7860", "localhost", "[::1]:7860"))
    assert not hosts.knows("evil.example")
    assert not hosts.knows("192.0.2.5", arrived_at="192.0.2.5")


def test_bound_to_an_address_it_and_the_one_a_request_arrived_at_are_known() -> None:
    hosts = Hosts("0.0.0.0")
    assert hosts.knows("192.0.2.5:7860", arrived_at="192.0.2.5")
    assert not hosts.knows("192.0.2.6:7860", arrived_at="192.0.2.5")
    assert not hosts.knows("evil.example", arrived_at="192.0.2.5")
    assert Hosts("192.0.2.9").knows("192.0.2.9")


def test_with_a_public_address_its_name_takes_the_place_of_the_machines_own() -> None:
    hosts = Hosts("0.0.0.0", "https://school.example", ["School.Internal"])
    assert hosts.knows("school.example")
    assert hosts.knows("school.internal:8000")
    assert hosts.knows("localhost")
    assert not hosts.knows("192.0.2.5", arrived_at="192.0.2.5")


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"origin": "http://127.0.0.1:7860"}, False),
        ({"origin": "http://127.0.0.1:7861"}, True),
        ({"origin": "https://127.0.0.1:7860"}, True),
        ({"origin": "http://localhost:7860"}, True),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": ""}, True),
        ({"origin": "https://school.example"}, False),
        ({"origin": "https://school.example.evil.example"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "same-origin", "origin": "http://evil.example"}, True),
        ({"referer": "http://evil.example/page"}, True),
        ({"referer": "http://127.0.0.1:7860/?c=x"}, False),
    ],
)
def test_what_comes_from_another_sites_page_is_foreign(headers: dict[str, str], foreign: bool) -> None:
    hosts = Hosts("127.0.0.1", "https://school.example")
    assert hosts.is_foreign({"host": "127.0.0.1:7860", **headers}, "http") is foreign


def test_a_request_from_another_site_changes_nothing_and_its_page_reads_nothing(home: Path) -> None:
    with open_app(home) as (world, client):
        ada = session_of(world, client, "ada")
        foreign = {"origin": "https://evil.example"}
        for path in ("/consent", "/logout", "/login", "/gradio_api/queue/join", "/gradio_api/cancel"):
            assert ada.ask("POST", path, data={"teach": "on"}, headers=foreign).status_code == 403, path
        assert world.store.people.get("ada").teach == "unanswered"
        for method in ("GET", "OPTIONS"):
            answer = ada.ask(method, "/config", headers={**foreign, "access-control-request-method": "POST"})
            assert answer.status_code == (200 if method == "GET" else 405)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert ada.get("/config").status_code == 200


def test_what_a_stranger_says_a_proxy_said_is_not_believed(home: Path) -> None:
    with open_app(home) as (world, client):
        lies = {
            "x-forwarded-host": "evil.example",
            "x-forwarded-proto": "https",
            "x-gradio-server": "http://evil.example",
        }
        page = session_of(world, client, "ada").get("/", headers=lies)
        assert page.status_code == 200
        assert "evil.example" not in page.text
        assert HOST in page.text


def test_only_a_trusted_proxy_says_who_is_asking_and_how_they_came(home: Path) -> None:
    world = make_door_world(home, True, {"public_url": "https://school.example"})
    app = make_app(world)
    said = {"host": "school.example", "origin": "https://school.example"}
    with serving(app, proxy_headers=True, forwarded_allow_ips=["127.0.0.1"]) as client:
        browser = Browser(client)
        wrong = {"name": "ada", "password": "guess", **browser.token_for("/login")}
        statuses = [
            browser.ask("POST", "/login", data=wrong, headers={**said, "x-forwarded-for": address}).status_code
            for address in ["203.0.113.5"] * 6 + ["203.0.113.6"]
        ]
        assert statuses == [401] * 5 + [429, 401]
        page = session_of(world, client, "ada").get("/", headers={"host": "school.example"})
        assert "https://school.example" in page.text
    world.store.close()


def test_the_app_is_opened_to_nobody_while_nobody_can_keep_them_out(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide_open = (["--host", "0.0.0.0"], ["--public-url", "https://school.example"], ["--trusted-proxy", "127.0.0.1"])
    for arguments in wide_open:
        assert main([*arguments, "--port", "0"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "users add NAME --role operator" in said
    store = open_in(home / "nightschool.db")
    store.accounts.add("ada", PASSWORD, "member")
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 1, "a member operates nothing"
    store.accounts.add("olga", PASSWORD, "operator")
    store.close()
    with reserve(None, "0.0.0.0", 0, "https://school.example", ["127.0.0.1"]) as (settings, listener):
        assert settings.door.public_url == "https://school.example"
        assert settings.door.trusted_proxies == ["127.0.0.1"]
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize(
    "url",
    [
        "school.example",
        "https://school.example/app",
        "ftp://x",
        "https://u@h",
        "https://h x",
        "https://h:99999",
        "https://h:0",
    ],
)
def test_a_public_address_is_scheme_and_host(url: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--public-url", url]) == 1
    assert "give --public-url as https://HOST" in capsys.readouterr().err
    with pytest.raises(CannotServe), reserve(None, "127.0.0.1", 0, url):
        raise AssertionError("was let in")


@pytest.mark.parametrize("proxy", ["nonsense", "", "127.0.0.1:80", "1.2.3", "*", "fe80::/200"])
def test_a_trusted_proxy_is_an_address_or_a_network(
    proxy: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped one was taken, and believed of nobody."""
    assert main(["--trusted-proxy", "10.0.0.1", "--trusted-proxy", proxy]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{proxy} is no proxy that could be trusted") and said.count("\n") == 1
    monkeypatch.setenv("NIGHTSCHOOL_DOOR__TRUSTED_PROXIES", json.dumps(["10.0.0.0/8", "::1"]))
    assert load_settings().door.trusted_proxies == ["10.0.0.0/8", "::1"]
    monkeypatch.setenv("NIGHTSCHOOL_DOOR__TRUSTED_PROXIES", json.dumps([proxy]))
    with pytest.raises(SettingsError, match="door.trusted_proxies"):
        load_settings()


def test_what_is_said_to_be_opened_can_be_opened() -> None:
    """It said http://0.0.0.0, which names no machine to anybody else."""
    name = socket.gethostname()
    assert reachable("0.0.0.0", 7860) == ("http://127.0.0.1:7860", f"http://{name}:7860")
    assert reachable("::", 7860) == ("http://[::1]:7860", f"http://{name}:7860")
    assert reachable("127.0.0.1", 7860) == ("http://127.0.0.1:7860", "")
    assert reachable("2001:db8::1", 7860) == ("http://[2001:db8::1]:7860", "")
    assert Hosts("0.0.0.0").knows(f"{name}:7860")


def test_the_door_is_set_by_variables_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_DOOR__TRUSTED_HOSTS", json.dumps(["school.internal"]))
    assert load_settings().door.trusted_hosts == ["school.internal"]
    monkeypatch.setenv("NIGHTSCHOOL_DOOR__PUBLIC_URL", "nonsense")
    with pytest.raises(SettingsError, match="door.public_url"):
        load_settings()


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
     ("192.0.2.1", False), ("school.example", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


@pytest.mark.long
def test_the_real_command_opens_to_others_with_a_login_and_short_answers_do_not_wait(home: Path) -> None:
    store = open_in(home / "nightschool.db")
    store.accounts.add("olga", PASSWORD, "operator")
    store.close()
    with running_app(home, "--host", "0.0.0.0") as (url, _):
        # a process of its own: requests of this one could not be timed beside the other tests
        code = (
            "import httpx, re, sys, time\n"
            "with httpx.Client(base_url=sys.argv[1]) as client:\n"
            "    assert client.get('/').status_code == 303\n"
            "    assert client.get('/', headers={'host': 'evil.example'}).status_code == 400\n"
            "    assert client.get('/healthz').headers.get('server') is None\n"
            "    took = []\n"
            "    for _ in range(9):\n"
            "        began = time.perf_counter()\n"
            "        client.get('/healthz')\n"
            "        took.append(time.perf_counter() - began)\n"
            "    assert sorted(took)[4] < 0.03, took\n"
            "    token = re.search(\"name='token' value='(.*?)'\", client.get('/login').text).group(1)\n"
            "    fields = {'name': 'olga', 'password': 'correct horse', 'token': token}\n"
            "    answer = client.post('/login', data=fields)\n"
            "    assert answer.status_code == 303, answer.text\n"
            "    assert client.get('/config').status_code == 200\n"
        )
        subprocess.run([sys.executable, "-c", code, url], check=True)
