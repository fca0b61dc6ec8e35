"""`python -m ui`: refusals come before any model is loaded, one sentence each."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.new_store import open_in
from ui.__main__ import CannotServe, main, reserve


def test_a_second_app_over_the_same_home_is_refused(home: Path) -> None:
    home.mkdir()
    with FileLock(home / "app.lock"), pytest.raises(CannotServe, match="Another app is serving"):
        with reserve(None, "127.0.0.1", 0):
            raise AssertionError("was let in")


def test_a_used_port_is_refused_and_the_home_is_free_again(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CannotServe, match=f"Port {port} is taken"):
            with reserve(None, "127.0.0.1", port):
                raise AssertionError("was let in")
    with reserve(None, "127.0.0.1", 0) as (settings, listener):
        assert settings.home == home
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["nonsense.invalid", "192.0.2.7", "not a name", "x" * 300])
def test_an_address_that_is_none_of_ours_is_told_from_a_taken_port(home: Path, host: str) -> None:
    """For a mistyped name it said that the port was taken."""
    store = open_in(home / "nightschool.db")
    store.accounts.add("olga", "correct horse", "operator")
    store.close()
    with pytest.raises(CannotServe, match="is no address of this machine; give --host"):
        with reserve(None, host, 0):
            raise AssertionError("was let in")


def test_other_machines_are_refused_until_there_are_accounts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "0.0.0.0"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "no accounts yet" in said.err


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--home", str(tmp_path / "file")]) == 1
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "70000"], ["--nonsense"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_importing_the_package_loads_neither_torch_nor_gradio() -> None:
    code = "import sys, ui, ui.__main__; sys.exit(bool({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
