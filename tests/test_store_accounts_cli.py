"""The commands about people do what they say, in words or as JSON, and never show a password."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from feedback_store.__main__ import main
from feedback_store.store import Store, open_store
from tests.new_store import open_in
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
    """Only of a home that nobody has taken over yet; later ones are members, and no accident makes an heir."""
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
    """The second account of a home without operator became one unasked, and heir of all that was chatted there."""
    first = run("users", "add", "mina", "--role", "member", "--password-stdin")
    assert first["role"] == "member" and "`users role mina operator`" in first["note"]
    second = run("users", "add", "mike", "--password-stdin")
    assert (second["role"], second["inherits_local_owner"]) == ("member", False)
    assert "There is no operator" in second["note"]
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
    (listed,) = run("users", "token", "mina", "--list")["tokens"]
    assert set(listed) == {"id", "label", "created_at", "seen_at"} and made["token"] not in str(listed)
    assert listed["label"] == "laptop" and run("users", "token", "olga", "--list")["tokens"] == []
    assert "no token" in run("users", "token", "olga", "--revoke", listed["id"])
    assert run("users", "token", "mina", "--revoke", listed["id"])["revoked"] == 1
    assert store.sessions.person_of_token(made["token"]) is None
    more = [run("users", "token", "mina")["token"] for _ in range(2)]
    assert run("users", "token", "mina", "--revoke", "all") == {"ok": True, "name": "mina", "revoked": 2}
    assert [store.sessions.person_of_token(token) for token in more] == [None, None]
    store.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("users", "add", "Olga", "--password-stdin"), "A name must"),
        (("users", "add", "zoe"), "--password-stdin"),
        (("users", "password", "nobody", "--password-stdin"), "nobody named"),
        (("users", "token", "nobody"), "nobody named"),
        (("users", "role", "nobody", "member"), "nobody named"),
        (("users", "token", "olga", "--revoke", "0123456789"), "no token"),
        (("users", "add", "olga", "--password-stdin"), "already"),
        (("users", "password", "olga", "--password-stdin"), "until now"),
        (("erase-user", "olga", "--kind", "imported", "--yes"), "of kind imported; there is olga (owner)"),
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
    store = open_in(home / "nightschool.db")
    fill(store)
    store.close()
    run("users", "add", "olga", "--password-stdin")
    told = run("erase-user", "olga", "--yes")
    assert told["clean"] and told["rows"]["message"] == 3 and told["rows"]["credential"] == 1
    assert "adapter-1" in " ".join(told["remains"]), "nobody recorded what it learned from"
    assert run("users", "list") == {"users": []} and run("verify")["ok"]
    assert run("erase-user", "--finish") == {"clean": True}
    later = run("users", "add", "dan", "--password-stdin")
    assert (later["role"], later["inherits_local_owner"]) == ("member", False)
    assert "`users role dan operator`" in later["note"]


def test_the_only_operator_is_not_erased_from_under_the_others(run: Any) -> None:
    """Roles and doors refused to leave nobody, an erasure did it; the next account then became operator and heir."""
    for name in ("olga", "mina"):
        run("users", "add", name, "--password-stdin")
    said = run("erase-user", "olga", "--yes")
    assert said == run("users", "disable", "olga") and "only operator" in said
    assert [user["name"] for user in run("users", "list")["users"]] == ["olga", "mina"]
    run("users", "role", "mina", "operator")
    assert run("erase-user", "olga", "--yes")["persons"] == [{"name": "olga", "kind": "owner"}]
    assert run("erase-user", "mina", "--yes")["clean"], "who is alone leaves nobody behind"


def test_an_erasure_says_first_whom_it_means(
    run: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an account and an annotator who were both called ben, one was erased and the other kept without a word."""
    for name in ("olga", "ben"):
        run("users", "add", name, "--password-stdin")
    file = tmp_path / "votes.jsonl"
    file.write_text(json.dumps({"prompt": "Hi?", "completion": "Ho.", "label": True, "annotator": "ben"}))
    run("import", str(file), "--kind", "thumbs")
    assert re.search(r"ben \(account\) and ben-\w{8} \(imported, ben in its file\)", run("erase-user", "ben"))
    monkeypatch.setattr(sys, "stdin", Keyboard("olga\n"))
    assert main(["erase-user", "ben"]) == 1
    asked = capsys.readouterr().out
    assert "ben (account) and ben-" in asked and "Type ben to go on" in asked
    one = run("erase-user", "ben", "--kind", "account", "--yes")
    assert [person["kind"] for person in one["persons"]] == ["account"]
    assert any("imported, ben in its file" in sentence and "not erased" in sentence for sentence in one["remains"])
    run("users", "add", "ben", "--password-stdin")
    both = run("erase-user", "ben", "--yes")
    assert [person["kind"] for person in both["persons"]] == ["account", "imported"] and both["rows"]["person"] == 2
    assert "nobody named" in run("erase-user", "ben", "--yes")


def test_to_look_does_not_make_a_home(run: Any, home: Path) -> None:
    """`users list` with a misspelt --home made a database there and said that there were no accounts."""
    for command in (("users", "list"), ("users", "disable", "olga"), ("users", "token", "olga")):
        assert "no database" in run(*command)
    assert not home.exists()


def test_a_name_is_looked_at_before_a_password_is_asked_for(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A password was typed twice before `users add Ana` said that names have no capitals."""
    run("users", "add", "olga", "--password-stdin")
    monkeypatch.setattr("getpass.getpass", lambda prompt: pytest.fail("a password was asked for"))
    monkeypatch.setattr(sys, "stdin", Keyboard())
    for name, words in (("Ana", "A name must"), ("olga", "already")):
        assert main(["users", "add", name]) == 1
        assert words in capsys.readouterr().err


def test_who_breaks_off_at_a_prompt_gets_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("getpass.getpass", interrupt)
    monkeypatch.setattr(sys, "stdin", Keyboard())
    assert main(["users", "add", "olga"]) == 1
    assert capsys.readouterr().err == "Nothing was done, because nothing was typed.\n"


def test_a_list_is_readable_without_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each account was a line of words and microseconds that nobody could look down."""
    store = open_in(home / "nightschool.db")
    store.accounts.add("ana", GOOD, "operator")
    olga = store.accounts.add("olga.longer", GOOD)
    assert store.sessions.new_token(olga.id) != store.sessions.new_token(olga.id)
    store.accounts.disable("olga.longer")
    store.close()
    assert main(["users", "list"]) == 0
    title, heads, ana, line = capsys.readouterr().out.splitlines()
    assert title == "users:"
    assert heads.split() == ["name", "role", "state", "teaching", "created", "last", "seen", "tokens"]
    assert re.fullmatch(r"  ana          operator  active    unanswered  \d{4}-\d\d-\d\d \d\d:\d\d  -          0", ana)
    assert re.fullmatch(r"  olga.longer  member    disabled  unanswered  \d{4}-\d\d-\d\d \d\d:\d\d  -          2", line)


@pytest.mark.parametrize("arguments", [["users"], ["users", "add"], ["users", "role", "olga", "king"], ["erase-user"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err
