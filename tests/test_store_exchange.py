"""What goes out comes in again as it was; bad lines are named; nothing is stored twice, by halves or for another."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback_store.errors import BadInput, StoreError
from feedback_store.exchange import KINDS
from feedback_store.exporters import export_file, export_lines, harmless
from feedback_store.importers import import_file
from feedback_store.integrity import verify
from feedback_store.store import Store
from tests.new_store import open_in
from tests.test_store_world import answer, ask, fill

PROMPT = [{"role": "user", "content": "What is 2 + 2?"}]
GOOD: dict[str, dict[str, Any]] = {
    "preferences": {"prompt": PROMPT, "chosen": "4", "rejected": "5"},
    "thumbs": {"prompt": PROMPT, "completion": [{"role": "assistant", "content": "4"}], "label": True},
    "comparisons": {"prompt": PROMPT, "left": "4", "right": "5", "choice": "tie"},
    "rankings": {"prompt": PROMPT, "completions": ["4", "5", "6"], "ranks": [1, 2, 2]},
    "demonstrations": {"prompt": PROMPT, "completion": "What comes after 3?"},
    "conversations": {"messages": [*PROMPT, {"role": "assistant", "content": "4"}]},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, empty but for its owner."""
    opened = open_in(tmp_path / "nightschool.db")
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """Another empty store."""
    opened = open_in(tmp_path / "other" / "nightschool.db")
    yield opened
    opened.close()


def fill_all(store: Store) -> None:
    """Put one of everything into the store, and what is hard to carry."""
    fill(store)
    ada = store.people.add("ada", kind="simulated").id
    question = ask(store, "Zeile\u2028eins\r\nzwei 밤 🦉 =1+1", ada)
    replies = [
        answer(store, question, text, ada, system=system)
        for text, system in (("a\u0085b", ""), ("c", ""), ("\ud7ff\U0001f989", ""), ("d", "Be rude."))
    ]
    store.votes.rank(question.id, ada, {replies[1].id: 2, replies[0].id: 1, replies[2].id: 2}, none_is_good=True)
    shown = store.votes.show_comparison(ada, question.id, replies[0].id, replies[2].id)
    store.votes.choose(shown.id, ada, "both-bad")
    store.votes.rate(replies[3].id, ada, -1, ["bad_tone"], 'Rude.\n"Quoted"')
    follow_up = store.conversations.add_user_message(question.conversation_id, ada, "And 3?", replies[0].id)
    store.votes.rewrite(answer(store, follow_up, "9", ada).id, ada, "Three more?")
    store.conversations.add_user_message(question.conversation_id, ada, "A second root.")


def write(path: Path, *lines: Any) -> Path:
    """Write JSON lines; text goes in as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def export(store: Store, kind: str, path: Path) -> bytes:
    """Return what an export holds."""
    path.parent.mkdir(exist_ok=True)
    export_file(store, kind, path)
    return path.read_bytes()


def test_everything_comes_out_as_it_went_in_through_an_empty_store(store: Store, other: Store, tmp_path: Path) -> None:
    fill_all(store)
    first = {kind: export(store, kind, tmp_path / "first" / kind) for kind in KINDS}
    for kind in KINDS:
        result = import_file(other, tmp_path / "first" / kind, kind)
        assert result.added == first[kind].count(b"\n") > 0
    assert {kind: export(other, kind, tmp_path / "second" / kind) for kind in KINDS} == first
    assert verify(other) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_without_name_or_time_keeps_those_it_was_given(
    store: Store, other: Store, tmp_path: Path, kind: str
) -> None:
    import_file(store, write(tmp_path / "in", GOOD[kind], {**GOOD[kind], "annotator": "Zoë 밤"}), kind)
    first = export(store, kind, tmp_path / "first" / kind)
    assert first.count(b"\n") == 2
    import_file(other, tmp_path / "first" / kind, kind)
    assert export(other, kind, tmp_path / "second" / kind) == first


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_file_again_changes_nothing(store: Store, tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / "in", GOOD[kind], {**GOOD[kind], "id": 7, "annotator": "ada"}, GOOD[kind])
    assert import_file(store, file, kind).__dict__ == {
        "added": 2,
        "repeated": 1,
        "skipped": 0,
        "other": 0,
        "problems": (),
    }
    before = export(store, kind, tmp_path / "first" / kind)
    assert import_file(store, file, kind).added == 0
    assert import_file(store, tmp_path / "first" / kind, kind).added == 0
    assert export(store, kind, tmp_path / "second" / kind) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_brought_back_to_its_own_store_adds_nothing(store: Store, tmp_path: Path, kind: str) -> None:
    fill_all(store)
    before = export(store, kind, tmp_path / "first" / kind)
    result = import_file(store, tmp_path / "first" / kind, kind)
    assert (result.added, result.repeated) == (0, before.count(b"\n"))
    assert export(store, kind, tmp_path / "second" / kind) == before


def test_what_is_imported_counts_under_its_annotator_and_never_under_an_account(store: Store, tmp_path: Path) -> None:
    account = store.people.add("ada")
    line = GOOD["thumbs"]
    names = ("ada", "owner", "bo", "Arena User 1", "x" * 200, "")
    with pytest.raises(BadInput, match="annotator"):
        import_file(store, write(tmp_path / "in", *({**line, "annotator": name} for name in names)), "thumbs")
    import_file(store, write(tmp_path / "in", *({**line, "annotator": name} for name in names[:-1])), "thumbs")
    imported = [person for person in store.people.all() if person.kind == "imported"]
    assert len(imported) == 5 and "bo" in {person.name for person in imported}
    assert not {person.id for person in imported} & {account.id, 1}
    assert [line["annotator"] for line in export_lines(store, "thumbs")] == sorted(names[:-1])
    with store.connections.read() as db:
        assert db.execute("SELECT DISTINCT provenance FROM conversation").fetchall() == [("imported",)]


def test_imported_judgements_are_examples_like_others(store: Store, tmp_path: Path) -> None:
    for kind in KINDS:
        import_file(store, write(tmp_path / kind, {**GOOD[kind], "id": "1"}), kind)
    import_file(store, write(tmp_path / "left", {**GOOD["comparisons"], "choice": "left", "id": "2"}), "comparisons")
    assert [(pair.source, pair.chosen, pair.rejected) for pair in store.votes.pairs()] == [
        ("preference", "4", "5"),
        ("comparison", "4", "5"),
    ]
    assert [shown.completion for shown in store.votes.demonstrations()] == ["What comes after 3?"]
    assert [ranking.ranks for ranking in store.votes.rankings()] == [(1, 2, 2)]
    counts = store.votes.counts()
    assert (counts["thumbs_up"], counts["pairs"], counts["demonstrations"]) == (1, 2, 1)


BAD = {
    "no JSON": ("thumbs", '{"prompt": '),
    "no JSON object": ("thumbs", "[]"),
    "no JSON number": ("thumbs", '{"label": NaN}'),
    "no JSON (": ("thumbs", "[" * 100_000),
    "`prompt` must be a list": ("thumbs", {"label": True}),
    "`prompt` must begin and end": ("thumbs", {**GOOD["thumbs"], "prompt": [{"role": "assistant", "content": "x"}]}),
    "only the first message may be the system": (
        "thumbs",
        {**GOOD["thumbs"], "prompt": [*PROMPT, {"role": "system", "content": "x"}]},
    ),
    "`prompt` is empty": ("thumbs", {**GOOD["thumbs"], "prompt": " "}),
    "`label` must be": ("thumbs", {**GOOD["thumbs"], "label": 1}),
    "reason must be one of": ("thumbs", {**GOOD["thumbs"], "reasons": ["wrong"]}),
    "`completion` is empty": ("thumbs", {**GOOD["thumbs"], "completion": " "}),
    "`completion` must be a list of one": ("thumbs", {**GOOD["thumbs"], "completion": PROMPT * 2}),
    "`role` is assistant": ("thumbs", {**GOOD["thumbs"], "completion": PROMPT}),
    "NUL": ("thumbs", {**GOOD["thumbs"], "completion": "a\0"}),
    "surrogate": ("thumbs", {**GOOD["thumbs"], "completion": "\ud800"}),
    "`created_at` is no": ("thumbs", {**GOOD["thumbs"], "created_at": "yesterday"}),
    "the same, so it prefers nothing": ("preferences", {**GOOD["preferences"], "chosen": "5"}),
    "`choice` must be": ("comparisons", {**GOOD["comparisons"], "choice": "middle"}),
    "`choice` must be one": ("comparisons", {**GOOD["comparisons"], "choice": None}),
    "`ranks` must be a list": ("rankings", {**GOOD["rankings"], "ranks": [1, 2]}),
    "2 to 9 replies": ("rankings", {**GOOD["rankings"], "completions": ["a"] * 10, "ranks": [1] * 10}),
    "rank must be a whole": ("rankings", {**GOOD["rankings"], "ranks": [1, 2, True]}),
    "`parent` must be": ("conversations", {"messages": [{**PROMPT[0], "parent": 0}]}),
    "reply must answer": ("conversations", {"messages": [{"role": "assistant", "content": "x"}]}),
    "`seed` must be": ("conversations", {"messages": [*PROMPT, {"role": "assistant", "content": "4", "seed": 2**64}]}),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_named_and_the_file_left_out_whole(store: Store, tmp_path: Path, reason: str) -> None:
    kind, bad = BAD[reason]
    file = write(tmp_path / "in.jsonl", GOOD[kind], "", bad)
    with pytest.raises(BadInput) as raised:
        import_file(store, file, kind)
    assert str(raised.value).startswith("Line 3 of in.jsonl: ") and reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(export_lines(store, kind)) == []
    kept = import_file(store, file, kind, skip_bad=True)
    assert kept.added == 1 and len(kept.problems) == 1 and reason in kept.problems[0]
    assert verify(store) == []


def test_one_id_for_two_judgements_of_one_person_is_a_bad_line(store: Store, tmp_path: Path) -> None:
    first, second = ({**GOOD["thumbs"], "id": "7", "label": label} for label in (True, False))
    file = write(tmp_path / "in", first, second, {**second, "annotator": "somebody else"})
    with pytest.raises(BadInput, match="Line 2 .*stands for another judgement"):
        import_file(store, file, "thumbs")
    assert store.people.all() == [store.people.owner()]
    assert import_file(store, file, "thumbs", skip_bad=True).added == 2


def test_what_a_person_keeps_from_teaching_is_in_no_export(store: Store, tmp_path: Path) -> None:
    fill_all(store)
    for person in store.people.all():
        store.consent.set_person(person.id, "off")
    assert [line for kind in KINDS for line in export_lines(store, kind)] == []


def test_an_export_never_replaces_a_file_and_leaves_none_by_halves(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    target = tmp_path / "out.jsonl"
    monkeypatch.setattr("json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_file(store, "thumbs", target)
    monkeypatch.undo()
    assert not list(tmp_path.glob("out*"))
    target.write_text("precious")
    with pytest.raises(BadInput, match="exists already"):
        export_file(store, "thumbs", target)
    with pytest.raises(StoreError, match="cannot be written"):
        export_file(store, "thumbs", tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(StoreError, match="cannot be read"):
        import_file(store, tmp_path / "nowhere", "thumbs")
    for call in (lambda: export_file(store, "vots", tmp_path / "x"), lambda: import_file(store, target, "vots")):
        with pytest.raises(BadInput, match="kind"):
            call()


FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@given(st.text(st.characters(codec="utf-8")))
@settings(max_examples=200)
def test_no_cell_begins_like_a_formula(text: str) -> None:
    cell = harmless(text)
    assert not cell.startswith(FORMULAS) and not cell.lstrip(" ").startswith(FORMULAS)
    assert cell in (text, f"'{text}")


def test_a_csv_holds_every_line_and_no_formula(store: Store, tmp_path: Path) -> None:
    for number, text in enumerate(("=1+1", "+1", "-1", "@a", "\tx", " =1", "＝1", 'plain, "quoted"\r\nand more')):
        reply = answer(store, ask(store, text), text)
        store.votes.rate(reply.id, 1, 1, ["clear"] if number == 0 else [], text)
    assert export_file(store, "thumbs", tmp_path / "out.csv", as_csv=True) == 8
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_bytes().decode(), newline="")))
    assert [row["completion"] for row in found] == [
        *("'=1+1", "'+1", "'-1", "'@a", "'\tx", "' =1", "'＝1"),
        'plain, "quoted"\r\nand more',
    ]
    assert json.loads(found[0]["prompt"])[1]["content"] == "=1+1"
    assert (found[0]["reasons"], found[1]["reasons"], found[0]["label"]) == ('["clear"]', "", "true")


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())


@pytest.mark.long
@given(st.lists(st.tuples(TEXT, TEXT, TEXT.filter(lambda t: len(t) < 200), st.booleans()), min_size=1, max_size=5))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives_the_way_through_a_store(tmp_path: Path, thumbs: list[tuple[str, str, str, bool]]) -> None:
    lines = [
        {"prompt": prompt, "completion": reply, "annotator": who, "id": place, "label": label}
        for place, (prompt, reply, who, label) in enumerate(thumbs)
    ]
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    results = []
    file = write(folder / "in", *lines)
    for place in range(2):
        store = open_in(folder / f"{place}.db")
        import_file(store, file, "thumbs")
        results.append(export(store, "thumbs", folder / f"out{place}"))
        store.close()
        file = folder / f"out{place}"
    assert results[0] == results[1]
    told = {
        line["id"]: (line["prompt"][0]["content"], line["completion"][0]["content"], line["annotator"])
        for line in map(json.loads, results[0].decode().split("\n")[:-1])
    }
    assert told == {str(place): thumb[:3] for place, thumb in enumerate(thumbs)}
