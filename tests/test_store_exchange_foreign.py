"""Open WebUI's and Chatbot Arena's votes become ours; what cannot be one is named or passed over."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback_store.errors import BadInput
from feedback_store.exporters import export_lines
from feedback_store.importers import import_file
from feedback_store.store import Store
from tests.test_store_world import whole_store

MESSAGES = {
    "m1": {"id": "m1", "parentId": None, "childrenIds": ["m2", "m3"], "role": "user", "content": "What is 2 + 2?"},
    "m2": {"id": "m2", "parentId": "m1", "childrenIds": [], "role": "assistant", "content": "5", "model": "a"},
    "m3": {"id": "m3", "parentId": "m1", "childrenIds": ["m4"], "role": "assistant", "content": "4", "model": "b"},
    "m4": {"id": "m4", "parentId": "m3", "childrenIds": ["m5"], "role": "user", "content": "And 3?"},
    "m5": {"id": "m5", "parentId": "m4", "childrenIds": [], "role": "assistant", "content": "7", "model": "b"},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store; whole at the end."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


def feedback(message_id: str, rating: Any, **data: Any) -> dict[str, Any]:
    """Return a record of Open WebUI's feedback export."""
    chat = {"title": "Sums", "params": {"system": "Be kind."}, "history": {"messages": MESSAGES, "currentId": "m5"}}
    return {
        "id": f"feedback-{message_id}",
        "user_id": "0b1c-user",
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "llama", "tags": ["maths"], "details": {"rating": 7}, **data},
        "meta": {"arena": False, "model_id": "llama", "message_id": message_id, "message_index": 2, "chat_id": "c"},
        "snapshot": {"chat": {"id": "c", "user_id": "0b1c-user", "title": "Sums", "chat": chat}},
        "created_at": 1767225600,
        "updated_at": 1767225660,
    }


def battle(kind: str, texts: tuple[str, str] = ("4", "5"), **more: Any) -> dict[str, Any]:
    """Return a line of the arena's raw vote log."""
    states = [
        {
            "template_name": "vicuna_v1.1",
            "system_message": "",
            "roles": ["USER", "ASSISTANT"],
            "messages": [["USER", "What is 2 + 2?"], ["ASSISTANT", text]],
            "offset": 0,
            "conv_id": f"conv{place}",
            "model_name": f"model{place}",
        }
        for place, text in enumerate(texts)
    ]
    return {"tstamp": 1767225600.5, "type": kind, "models": ["", ""], "states": states, "ip": "192.0.2.7", **more}


def write(path: Path, *records: Any) -> Path:
    """Write one record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("as_list", [False, True])
def test_open_webui_ratings_become_thumbs_under_their_whole_prompt(store: Store, tmp_path: Path, as_list: bool) -> None:
    records = [
        feedback("m5", 1, reason="thorough_explanation", comment="Nice."),
        feedback("m2", -1, reason="too_verbose", comment=None),
        feedback("m3", 0),
    ]
    file = write(tmp_path / "in", *([records] if as_list else records))
    assert import_file(store, file, "thumbs", format="openwebui").__dict__ | {"problems": ()} == {
        "added": 2,
        "repeated": 0,
        "skipped": 0,
        "other": 1,
        "problems": (),
    }
    down, up = export_lines(store, "thumbs")
    assert [turn["content"] for turn in up["prompt"]] == ["Be kind.", "What is 2 + 2?", "4", "And 3?"]
    assert (up["completion"][0]["content"], up["label"], up["reasons"], up["comment"]) == (
        "7",
        True,
        ["complete"],
        "Nice.",
    )
    assert (down["completion"][0]["content"], down["label"], down["reasons"]) == ("5", False, ["too_long"])
    assert up["annotator"] == "0b1c-user" and up["created_at"] == "2026-01-01T00:01:00.000000Z"
    assert import_file(store, file, "thumbs", format="openwebui").added == 0


def test_a_rating_whose_chat_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    lost, bare = feedback("m9", 1), {**feedback("m5", 1), "snapshot": None}
    for record, reason in ((lost, "lacks the rated message"), (bare, "`snapshot` must be an object")):
        with pytest.raises(BadInput, match=reason):
            import_file(store, write(tmp_path / "in", record), "thumbs", format="openwebui")
    looping = feedback("m5", 1)
    looping["snapshot"] = json.loads(json.dumps(looping["snapshot"]))
    looping["snapshot"]["chat"]["chat"]["history"]["messages"]["m1"]["parentId"] = "m5"
    with pytest.raises(BadInput, match="lacks the rated message"):
        import_file(store, write(tmp_path / "in", looping), "thumbs", format="openwebui")


def test_arena_votes_become_comparisons_with_sides_and_models_and_no_address(store: Store, tmp_path: Path) -> None:
    kinds = {"leftvote": "left", "rightvote": "right", "tievote": "tie", "bothbad_vote": "both-bad"}
    records = [battle(kind, question_id=place) for place, kind in enumerate(kinds, 1)] + [
        battle("chat"),
        battle("share"),
    ]
    imported = import_file(store, write(tmp_path / "in", *records), "comparisons", format="arena")
    assert (imported.added, imported.other) == (4, 2)
    lines = list(export_lines(store, "comparisons"))
    assert [line["choice"] for line in lines] == list(kinds.values())
    assert {(line["left"][0]["content"], line["right"][0]["content"]) for line in lines} == {("4", "5")}
    with store.connections.read() as db:
        assert {row[0] for row in db.execute("SELECT base_id FROM origin")} == {"model0", "model1"}
        assert not any("192.0.2.7" in str(tuple(row)) for row in db.execute("SELECT * FROM person, annotator"))


def test_the_arenas_cleaned_records_and_its_thumbs_are_read_too(store: Store, tmp_path: Path) -> None:
    cleaned = {
        "question_id": "q1",
        "model_a": "alpaca",
        "model_b": "koala",
        "winner": "tie (bothbad)",
        "judge": "arena_user_3",
        "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "num_tokens": 1}],
        "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He", "num_tokens": 1}],
        "turn": 1,
        "anony": True,
        "tstamp": 1767225600.0,
    }
    file = tmp_path / "in"
    file.write_text(json.dumps([cleaned], indent=1))
    assert import_file(store, file, "comparisons", format="arena").added == 1
    (line,) = export_lines(store, "comparisons")
    assert (line["id"], line["annotator"], line["choice"]) == ("q1", "arena_user_3", "both-bad")
    thumbs = write(tmp_path / "thumbs", battle("downvote"), battle("leftvote"))
    imported = import_file(store, thumbs, "thumbs", format="arena")
    assert (imported.added, imported.other) == (1, 1)


def battle_won(winner: Any, **more: Any) -> dict[str, Any]:
    """Return one of the arena's cleaned records."""
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    other = [*said[:1], {"role": "assistant", "content": "He"}]
    return {"question_id": "q1", "winner": winner, "conversation_a": said, "conversation_b": other, **more}


@pytest.mark.parametrize("winner", ["model_c", "Model_a", "", None, 1, ["model_a"]])
def test_a_winner_that_there_is_not_makes_a_bad_line(store: Store, tmp_path: Path, winner: Any) -> None:
    """A misspelt winner was counted among the records that are no votes, so the vote was lost and nobody told."""
    file = write(tmp_path / "in", battle_won("model_a"), battle_won(winner, question_id="q2"))
    with pytest.raises(BadInput, match=r"^Line 2 of in: Its `winner` must be one of model_a, model_b, tie, "):
        import_file(store, file, "comparisons", format="arena")
    imported = import_file(store, file, "comparisons", format="arena", skip_bad=True)
    assert (imported.added, imported.skipped, imported.other) == (1, 1, 0) and "Line 2" in imported.problems[0]


def test_a_record_that_says_nothing_of_a_vote_is_bad_and_the_logs_other_events_are_not(
    store: Store, tmp_path: Path
) -> None:
    file = write(tmp_path / "in", battle("leftvote"), battle("chat"), {"tstamp": 1}, {"type": 7})
    imported = import_file(store, file, "comparisons", format="arena", skip_bad=True)
    assert (imported.added, imported.skipped, imported.other) == (1, 2, 1)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tstamp": "yesterday"}, "`tstamp` is no time"),
        ({"tstamp": True}, "`tstamp` is no time"),
        ({"question_id": " "}, "`question_id` is empty"),
        ({"judge": "x" * 400}, "`judge` has 400"),
        ({"conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}, "`conversation_b`'s"),
        (
            {side: [{"role": "assistant", "content": "Ho"}] * 2 for side in ("conversation_a", "conversation_b")},
            "`conversation_a` must begin",
        ),
    ],
)
def test_what_is_wrong_is_named_as_the_file_names_it(
    store: Store, tmp_path: Path, more: dict[str, Any], named: str
) -> None:
    """Of a bad `tstamp` it was said that `created_at` was wrong, which the file does not have."""
    file = write(tmp_path / "in", battle_won("tie", **more))
    with pytest.raises(BadInput) as raised:
        import_file(store, file, "comparisons", format="arena")
    assert str(raised.value).startswith("Line 1 of in: ") and named in str(raised.value)


def test_what_is_wrong_with_an_open_webui_rating_is_named_as_its_file_names_it(store: Store, tmp_path: Path) -> None:
    for change, named in (
        ({"updated_at": "now"}, "`updated_at`"),
        ({"updated_at": 0, "created_at": "then"}, "`created_at`"),
        ({"user_id": []}, "`user_id`"),
        ({"data": {"rating": 1, "comment": "x" * 9000}}, "`data.comment`"),
    ):
        file = write(tmp_path / "in", {**feedback("m5", 1), **change})
        with pytest.raises(BadInput, match=f"Line 1 of in: Its {named}"):
            import_file(store, file, "thumbs", format="openwebui")


def test_an_arena_vote_on_chats_that_parted_is_named(store: Store, tmp_path: Path) -> None:
    parted = battle("leftvote")
    for state in parted["states"]:
        state["messages"] += [["USER", "Sure?"], ["ASSISTANT", "Yes."]]
    unfinished = battle("leftvote")
    unfinished["states"][0]["messages"][-1][1] = None
    for record, reason in ((parted, "different prompts"), (unfinished, "must be text")):
        with pytest.raises(BadInput, match=reason):
            import_file(store, write(tmp_path / "in", record), "comparisons", format="arena")
        kept = write(tmp_path / "in", record, battle("tievote"))
        assert import_file(store, kept, "comparisons", format="arena", skip_bad=True).skipped == 1


@pytest.mark.parametrize(("kind", "format"), [("rankings", "arena"), ("comparisons", "openwebui"), ("thumbs", "csv")])
def test_a_format_holds_only_its_own_kinds(store: Store, tmp_path: Path, kind: str, format: str) -> None:
    with pytest.raises(BadInput, match="format"):
        import_file(store, write(tmp_path / "in"), kind, format=format)


@pytest.mark.parametrize("junk", [None, 1, "text", [], {}, {"data": 1}, {"type": "leftvote", "states": [1, 2]}])
@pytest.mark.parametrize(("kind", "format"), [("comparisons", "arena"), ("thumbs", "arena"), ("thumbs", "openwebui")])
def test_junk_is_named_or_passed_over(store: Store, tmp_path: Path, junk: Any, kind: str, format: str) -> None:
    with pytest.raises(BadInput, match=f"in holds no {kind} that can be stored; "):
        import_file(store, write(tmp_path / "in", junk), kind, format=format, skip_bad=True)
