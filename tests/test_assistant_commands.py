"""ask, chat and batch: what they print, and what bad input gets."""

import json
from pathlib import Path

import pytest

from assistant.__main__ import main
from assistant.live import live_adapter
from tests.new_store import open_in


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "fake")


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ask_prints_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "hello", "--adapter", "base"]) == 0
    assert capsys.readouterr().out == "You said: hello (base, seed 0)\n"


def test_ask_uses_the_live_adapter_of_the_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_in(home / "nightschool.db")
    store.registry.register_adapter("adapter-1", "fake")
    store.registry.promote("adapter-1", expected_generation=store.registry.live().generation)
    assert live_adapter(home / "nightschool.db") == store.registry.live().adapter_id == "adapter-1"
    assert main(["ask", "hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == "adapter-1"


def test_batch_answers_in_order(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"line {i}"}]} for i in range(5)]
    out = tmp_path / "out.jsonl"
    assert main(["batch", str(lines(tmp_path / "in.jsonl", *rows)), str(out), "--adapter", "base"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["messages"] for answer in answers] == [row["messages"] for row in rows]
    assert all(f"line {i}" in answer["reply"] for i, answer in enumerate(answers))
    assert all(answer["adapter"] is None and answer["new_tokens"] > 0 for answer in answers)


@pytest.mark.parametrize("seed", ["9" * 30, "one", "1.5"])
def test_a_seed_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ask", "hello", "--seed", seed])
    assert ended.value.code == 2 and f"argument --seed: {seed} is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}\nnot json\n', "line 2"),
        ('{"messages": []}\n', "line 1"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "must be the user's"),
        ('{"messages": [{"role": "wizard", "content": "a"}, {"role": "user", "content": "a"}]}\n', "role"),
        ('{"messages": [{"role": "user", "content": null}]}\n', "not of the form"),
        ("", "empty"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    assert main(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("text", ["", "  \n ", "x" * 100_000])
def test_an_empty_or_endless_message_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main(["ask", text]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", "many"), ("beta", "inf"), ("nll_weight", "nan"), ("anchor_share", "1e9")]
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(f"NIGHTSCHOOL_NIGHT__{name.upper()}", value)
    assert main(["ask", "hello"]) == 1
    assert f"night.{name}" in capsys.readouterr().err


def test_an_unknown_setting_in_the_file_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "settings.toml").write_text("quantisation = 'nf4'\n")
    assert main(["ask", "hello", "--json"]) == 1
    said = capsys.readouterr()
    assert "There is no setting quantisation." in said.err
    assert json.loads(said.out) == {"error": said.err.strip()}


def test_the_file_gives_settings_and_the_environment_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from assistant.settings import load_settings

    home.mkdir()
    (home / "settings.toml").write_text("[night]\nmin_votes = 40\nepochs = 3\n")
    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "5")
    assert load_settings().night.min_votes == 40 and load_settings().night.epochs == 5


def test_wrong_usage_is_exit_status_two() -> None:
    for argv in (["ask"], ["sing"], ["ask", "hi", "--preset", "pirate"], ["ask", "hi", "--max-new-tokens", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2


def test_chat_ends_with_its_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nbye\n"))
    assert main(["chat", "--adapter", "base"]) == 0
    out = capsys.readouterr().out
    assert "You said: hello" in out and "You said: bye" in out


def test_a_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_MODLE", "embedded")
    assert main(["ask", "hello"]) == 1
    assert "NIGHTSCHOOL_MODLE" in capsys.readouterr().err


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty NIGHTSCHOOL_HOME once made the current folder the home."""
    from assistant.settings import load_settings

    monkeypatch.setenv("NIGHTSCHOOL_HOME", "")
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", "")
    assert load_settings().home != Path() and load_settings().model == "embedded"


def test_an_unreadable_store_is_no_reason_to_answer_as_the_base(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "nightschool.db").write_bytes(b"not a database" * 400)
    assert main(["ask", "hello"]) == 1
    assert "--adapter base" in capsys.readouterr().err
    assert main(["ask", "hello", "--adapter", "base"]) == 0


def test_an_adapter_name_of_any_length_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.tiny import save_tiny

    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "local")
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(save_tiny(tmp_path / "tiny")))
    assert main(["ask", "hello", "--adapter", "x" * 300]) == 1
    assert "no adapter" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    from assistant.errors import SettingsError
    from assistant.loading import resolve_base
    from assistant.settings import load_settings

    (tmp_path / "file").write_text("")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    settings = load_settings().model_copy(update={"model": str(tmp_path / "some.gguf"), "cache": tmp_path / "file"})
    with pytest.raises(SettingsError, match="Choose another home"):
        resolve_base(settings)


def test_every_setting_is_listed_with_its_meaning_and_the_value_that_holds(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from assistant.settings import describe, load_settings

    monkeypatch.setenv("NIGHTSCHOOL_NIGHT__EPOCHS", "7")
    assert main(["settings"]) == 0
    assert "NIGHTSCHOOL_NIGHT__EPOCHS=7  (else 1)" in capsys.readouterr().out
    assert main(["settings", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["NIGHTSCHOOL_NIGHT__EPOCHS"] == 7 and listed["NIGHTSCHOOL_HOME"] == str(home)
    assert all(one.meaning for one in describe(load_settings()))
