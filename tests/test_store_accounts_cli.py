"""The commands about people do what they say, in words or as JSON, and never show a password."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from feedback_store.__main__ import main
from feedback_store.store import Store, open_store
from tests.test_store_world import fill

GOOD = "correct horse battery"


class Keyboard(io.StringIO):
    """A terminal on which somebody types."""

    def isatty(self) -> bool:
        """Say that somebody is there."""
        return True


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command with something on standard input, and returns its JSON or its failure."""

    def call(*arguments: str, typed: str = f"{GOOD}\n") -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        status = main([*arguments, "--json"])
        output = capsys.readouterr()
        assert GOOD not in output.out + output.err
        if status:
            assert output.err.count("\n") == 1
            return output.err
        return json.loads(output.out)

    return call


def opened(home: Path) -> Store:
    """Open what the commands left."""
    return open_store(home / "nightschool.db", create=False)


def test_the_first_one_added_is_operator_and_the_next_a_member(run: Any, home: Path) -> None:
    first = run("users", "add", "olga", "--password-stdin")
    assert first == {"name": "olga", "role": "operator", "disabled": False, "inherits_local_owner": True}
    second = run("users", "add", "mina", "--password-stdin")
    assert (second["role"], second["inherits_local_owner"]) == ("member", False)
    assert "already" in run("users", "add", "mina", "--password-stdin")
    assert [user["name"] for user in run("users", "list")["users"]] == ["olga", "mina"]
    store = opened(home)
    found = store.accounts.check_password("mina", GOOD)
    assert found is not None and found.name == "mina"
    store.close()


def test_a_member_may_come_first_and_become_operator(run: Any) -> None:
    assert run("users", "add", "mina", "--role", "member", "--password-stdin")["role"] == "member"
    assert run("users", "role", "mina", "operator")["role"] == "operator"
    assert "only operator" in run("users", "role", "mina", "member")


def test_roles_doors_passwords_and_tokens_change(run: Any, home: Path) -> None:
    for name in ("olga", "mina"):
        run("users", "add", name, "--password-stdin")
    assert run("users", "disable", "mina")["disabled"] and not run("users", "enable", "mina")["disabled"]
    assert run("users", "password", "mina", "--password-stdin", typed="another long one\n")["ok"]
    made = run("users", "token", "mina", "--label", "laptop")
    store = opened(home)
    person = store.sessions.person_of_token(made["token"])
    assert person is not None and (person.name, made["label"]) == ("mina", "laptop")
    assert store.accounts.check_password("mina", "another long one") == person
    assert run("users", "token", "mina", "--label", "laptop", "--revoke")["revoked"] == 1
    assert store.sessions.person_of_token(made["token"]) is None
    store.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("users", "add", "Olga", "--password-stdin"), "A name must"),
        (("users", "add", "zoe"), "--password-stdin"),
        (("users", "password", "nobody", "--password-stdin"), "nobody named"),
        (("users", "token", "nobody"), "nobody named"),
        (("users", "role", "nobody", "member"), "nobody named"),
        (("users", "token", "olga", "--revoke"), "labelled"),
        (("erase-user", "nobody", "--yes"), "nobody named"),
        (("erase-user", "olga"), "--yes"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(run: Any, arguments: tuple[str, ...], words: str) -> None:
    run("users", "add", "olga", "--password-stdin")
    assert words in run(*arguments)
    assert [user["name"] for user in run("users", "list")["users"]] == ["olga"]


def test_a_short_password_adds_nobody(run: Any) -> None:
    assert "8 to 1000" in run("users", "add", "olga", "--password-stdin", typed="short\n")
    assert "8 to 1000" in run("users", "add", "olga", "--password-stdin", typed="")
    assert run("users", "list") == {"users": []}


def test_on_a_terminal_the_password_is_asked_twice_and_an_erasure_confirmed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([GOOD, "something else", GOOD, GOOD])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    monkeypatch.setattr(sys, "stdin", Keyboard("no\nolga\n"))
    assert main(["users", "add", "olga"]) == 1
    assert "differ" in capsys.readouterr().err
    assert main(["users", "add", "olga"]) == 0
    assert capsys.readouterr().out == "name: olga\nrole: operator\ndisabled: False\ninherits local owner: True\n"
    assert main(["erase-user", "olga"]) == 1
    assert "Nothing was erased" in capsys.readouterr().err
    assert main(["erase-user", "olga"]) == 0
    assert "name: olga\n" in capsys.readouterr().out
    assert main(["erase-user", "owner"]) == 1
    assert "nothing was typed" in capsys.readouterr().err


def test_an_erasure_tells_what_went_and_what_remains(run: Any, home: Path) -> None:
    store = open_store(home / "nightschool.db")
    fill(store)
    store.close()
    run("users", "add", "olga", "--password-stdin")
    told = run("erase-user", "olga", "--yes")
    assert told["clean"] and told["rows"]["message"] == 3 and told["rows"]["credential"] == 1
    assert "adapter-1" in " ".join(told["remains"]), "nobody recorded what it learned from"
    assert run("users", "list") == {"users": []} and run("verify")["ok"]
    assert run("erase-user", "--finish") == {"clean": True}


def test_a_list_is_readable_without_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(home / "nightschool.db")
    store.accounts.add("olga", GOOD, "operator")
    store.close()
    assert main(["users", "list"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("users: name olga, role operator, disabled False, teach on, created at ")
    assert line.endswith("seen at -, tokens 0\n")


@pytest.mark.parametrize("arguments", [["users"], ["users", "add"], ["users", "role", "olga", "king"], ["erase-user"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err
