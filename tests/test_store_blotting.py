"""Quotes of an erased person's words are blotted out of other files, and nothing else is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.blotting import LARGEST_FILE_BYTES, Words
from feedback_store.erasure import erase_user
from feedback_store.store import Store
from tests.test_store_world import answer, ask, whole_store

WRITTEN = "Good evening. My sister lives at Kanaalstraat 12,\nand she sells „tulips“ to the king of Sweden."
ANSWERED = "I am happy to hear that, and I wish your sister all the best in Kanaalstraat."
WORDS = Words({WRITTEN, "short one"}, {ANSWERED})


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(home / "nightschool.db") as opened:
        yield opened


def blotted(path: Path, text: str) -> str:
    """Return what is left of a text in a file."""
    path.write_text(text, encoding="utf-8")
    size = path.stat().st_size
    assert WORDS.blot_out(path) == (path.read_text(encoding="utf-8") != text)
    assert path.stat().st_size == size
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("12:00 Kanaalstraat 12,\n", "12:00 xxxxxxxxxxxxxxxx\n"),
        ("said 'lives at Kanaalstraat 1' to", "said 'xxxxxxxxxxxxxxxxxxxxxxx' to"),
        ("Good evening. My brother", "xxxxxxxxxxxxxxxxxbrother"),
        ("\\nand she sells", "\\nand she sells"),
        ("the king of Sweden. The king of Norway.", "xxxxxxxxxxxxxxxxxxx The king of Norway."),
        ("12:00 at Kanaalstraat 12,\nand she sells", "12:00 xxxxxxxxxxxxxxxxxxx\nxxxxxxxxxxxxx"),
        ("short one", "short one"),
        ("Good evening.", "Good evening."),
        ("I am happy to hear that you", "xxxxxxxxxxxxxxxxxxxxxxx you"),
        ("your sister all the best in Kanaalstraat", "your sister all the best in Kanaalstraat"),
        ("nothing of anybody", "nothing of anybody"),
        ("", ""),
    ],
)
def test_what_was_written_is_found_in_pieces_and_what_was_answered_from_its_beginning(
    tmp_path: Path, line: str, left: str
) -> None:
    assert blotted(tmp_path / "nights.log", line) == left


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_piece_that_stands_in_json_is_found_too(tmp_path: Path, ascii_only: bool) -> None:
    quoted = WRITTEN[WRITTEN.index("she sells") :]
    line = json.dumps({"why": quoted, "n": 1}, ensure_ascii=ascii_only)
    read = json.loads(blotted(tmp_path / "nights.log", line))
    assert set(read["why"]) == {"x"} and read["n"] == 1


@pytest.mark.parametrize("name", ["settings.toml", "adapter_config.json", "votes.jsonl", "votes.csv"])
def test_a_phrase_in_a_file_that_programs_read_stays_and_a_beginning_does_not(tmp_path: Path, name: str) -> None:
    """Who had asked what `quarantine_hours = 48` does would have taken the setting along."""
    assert blotted(tmp_path / name, "lives at Kanaalstraat 12") == "lives at Kanaalstraat 12"
    assert blotted(tmp_path / name, "Good evening. My sister") == "x" * 23


def test_a_sentence_in_the_middle_of_what_was_said_is_blotted_out_of_a_log(store: Store, home: Path) -> None:
    """A log held a word out of somebody's message; only beginnings were looked for, so it stayed there."""
    person = store.people.add("ben")
    question = ask(store, "my secret CANARY-zebra-7731", person.id)
    reply = answer(store, question, "You said: my secret CANARY-zebra-7731", person.id)
    store.votes.rate(reply.id, person.id, 1, ["other"], "a comment on CANARY-heron-7731")
    store.votes.rewrite(reply.id, person.id, "a better CANARY-raven-7731")
    (home / "nights.log").write_text("something CANARY-zebra-7731, CANARY-heron-7731 and CANARY-raven-7731\n")
    done = erase_user(store, "ben")
    assert [path.name for path in done.files] == ["nights.log"]
    gone = "x" * 17
    assert (home / "nights.log").read_text() == f"something {gone}, {gone} and {gone}\n"


def test_a_file_that_could_not_be_looked_through_is_named(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log that nobody may read ended the erasure with a traceback, and the logs after it kept every word."""
    person = store.people.add("ben")
    ask(store, WRITTEN, person.id)
    for name in ("a.log", "b.log", "c.log"):
        (home / name).write_text(WRITTEN, encoding="utf-8")
    with (home / "b.log").open("ab") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    opened = Path.open

    def refuse(path: Path, *arguments: object, **more: object) -> object:
        if path.name == "a.log":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    done = erase_user(store, "ben")
    assert [path.name for path in done.files] == ["c.log"]
    named = [sentence for sentence in done.remains if "a.log" in sentence or "b.log" in sentence]
    assert "Permission denied" in named[0] and "too large" in named[1]
