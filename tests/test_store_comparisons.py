"""A comparison knows what was hidden, how long the choice took and what it was about; older ones learn the last."""

import gzip
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from feedback_store.agreement import judge, read_judged
from feedback_store.connection import connect
from feedback_store.errors import BadInput
from feedback_store.exporters import export_lines
from feedback_store.importers import import_file
from feedback_store.integrity import verify
from feedback_store.records import Comparison
from feedback_store.store import Store, open_store
from tests.test_store_world import answer, ask, whole_store

FIXTURE = Path(__file__).parent / "fixtures" / "store-v11.db.gz"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(tmp_path / "nightschool.db") as opened:
        yield opened


def show(store: Store, left: str = "4", right: str = "5", **origin: str) -> Comparison:
    """Show two answers to a question side by side."""
    question = ask(store)
    sides = answer(store, question, left).id, answer(store, question, right, **origin).id
    return store.votes.show_comparison(1, question.id, *sides)


def moments(store: Store) -> list[str]:
    """Return when choices were made, in order."""
    with store.connections.read() as db:
        return [at for (at,) in db.execute("SELECT at FROM comparison_event ORDER BY id")]


def test_what_was_hidden_is_kept_in_order_and_once(store: Store) -> None:
    assert show(store).hidden == ("adapter", "seed")
    first = store.votes.comparisons(1)[0]
    sides = first.prompt_message_id, first.left_message_id, first.right_message_id
    assert store.votes.show_comparison(1, *sides, hidden=("seed", "preset", "seed")).hidden == ("seed", "preset")
    assert store.votes.show_comparison(1, *sides, hidden=()).hidden == ()
    assert [shown.hidden for shown in store.votes.comparisons(1)] == [(), ("seed", "preset"), ("adapter", "seed")]


@pytest.mark.parametrize("hidden", [("",), ("x" * 41,), ("\0",), (7,)])
def test_what_names_nothing_cannot_have_been_hidden(store: Store, hidden: tuple[str]) -> None:
    shown = show(store)
    with pytest.raises(BadInput):
        store.votes.show_comparison(
            1, shown.prompt_message_id, shown.left_message_id, shown.right_message_id, hidden=hidden
        )
    assert len(store.votes.comparisons(1)) == 1


def test_the_time_to_decide_ends_with_the_first_choice(store: Store) -> None:
    shown = show(store)
    assert shown.decided_s is None
    first = store.votes.choose(shown.id, 1, "left")
    again = store.votes.choose(shown.id, 1, "right")
    expected = (datetime.fromisoformat(moments(store)[0]) - datetime.fromisoformat(shown.shown_at)).total_seconds()
    assert first.decided_s == again.decided_s == expected >= 0
    assert again.chosen_at == moments(store)[1] > moments(store)[0]
    assert store.votes.comparisons(1) == [again]


def test_a_clock_set_back_makes_no_choice_before_it_was_shown(store: Store) -> None:
    shown = show(store)
    with store.connections.write() as db:
        db.execute("UPDATE comparison SET shown_at = '2999-01-01T00:00:00.000000Z'")
    assert store.votes.choose(shown.id, 1, "left").decided_s == 0.0


def test_what_was_hidden_and_how_long_it_took_are_in_no_export(store: Store) -> None:
    store.votes.choose(show(store).id, 1, "left")
    (line,) = export_lines(store, "comparisons")
    assert set(line) == {"id", "annotator", "created_at", "shown_at", "prompt", "left", "right", "choice"}


def test_a_choice_is_about_the_content_that_was_shown(store: Store) -> None:
    store.registry.register_adapter("adapter-1", "base-1")
    store.votes.choose(show(store, "4", "5").id, 1, "left")
    store.votes.choose(show(store, "5", "4").id, 1, "left")
    store.votes.choose(show(store, "4", "4").id, 1, "left")
    store.votes.choose(show(store, "4", "4", adapter_id="adapter-1").id, 1, "left")
    store.votes.choose(show(store, "4", "5", system="Be rude.").id, 1, "left")
    found = list(read_judged(store))
    prompt = next(store.votes.pairs()).prompt
    sides = (("4", "5", "base-1"), ("5", "4", "base-1"), ("4", "4", "base-1"), ("4", "4", "adapter-1"))
    assert found == [judge(prompt, a, b, "left", 1, models=("base-1", model)) for a, b, model in sides]
    assert len({one.item for one in found}) == 3


def test_choices_made_before_items_were_kept_get_theirs_with_the_migration(tmp_path: Path) -> None:
    path = tmp_path / "nightschool.db"
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    store = open_store(path)
    (found,) = read_judged(store)
    shown = store.votes.comparisons(1)[0]
    assert shown.hidden == () and shown.choice == "right" and shown.decided_s is not None
    left, right = (store.conversations.path_to(side) for side in (shown.left_message_id, shown.right_message_id))
    prompt = next(store.votes.pairs()).prompt
    models = ("adapter-1", "adapter-1")
    assert found == judge(prompt, left[-1].text, right[-1].text, "right", 1, models=models)
    assert verify(store) == []
    store.close()


def test_an_imported_choice_is_about_its_content_too(store: Store, tmp_path: Path) -> None:
    line = '{"prompt": "Why?", "left": "a", "right": "b", "choice": "%s", "annotator": "%s", "id": 1}\n'
    file = tmp_path / "choices.jsonl"
    file.write_text(line % ("left", "ada") + line % ("right", "bo"))
    import_file(store, file, "comparisons")
    agreement = store.votes.overview().agreement
    assert (agreement.items, agreement.pairs, agreement.percent) == (1, 1, 0.0)


def test_a_changed_item_is_named(store: Store) -> None:
    store.votes.choose(show(store).id, 1, "left")
    db = connect(store.path)
    (item,) = db.execute("SELECT item FROM comparison").fetchone()
    db.execute("UPDATE comparison SET item = 'another'")
    assert any("A row of comparison was changed" in problem for problem in verify(store))
    db.execute("UPDATE comparison SET item = ?", [item])
    db.close()
