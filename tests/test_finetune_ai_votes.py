"""What AI judges said may train a little and never examines; people's votes are divided and counted as without it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from assistant.settings import NightSettings
from feedback_store import Store
from finetune import evaluate, nightly
from finetune.ai_votes import add_ai_votes
from finetune.collect import NightData, divide_votes
from finetune.examples import Method
from finetune.raters import tonights_votes
from tests.finetune_support import fill_store, tiny_settings
from tests.new_store import open_in
from tests.test_store_world import answer, ask, whole_store
from tests.tiny import save_tiny

SUBJECTS = ("apple", "river", "copper", "violin", "glacier", "saddle", "tunnel", "orchid", "magnet", "pepper")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store with ten choices of the owner's and nothing of an AI's."""
    store = open_in(tmp_path_factory.mktemp("home") / "nightschool.db")
    fill_store(store, [f"What is {subject} made of?" for subject in SUBJECTS])
    store.close()
    return store.path.read_bytes()


@pytest.fixture
def store(home: Path, template: bytes) -> Iterator[Store]:
    """A store of ten choices, found whole after each test."""
    home.mkdir()
    (home / "nightschool.db").write_bytes(template)
    with whole_store(home / "nightschool.db") as opened:
        yield opened


def say(store: Store, question: str, shown_first: float = 1.0, shown_second: float = 1.0, person: int = 1) -> None:
    """Let an AI judge the two answers to a question."""
    asked = ask(store, question, person)
    ids = answer(store, asked, f"{question} One.", person).id, answer(store, asked, f"{question} Two.", person).id
    store.ai.add_choice(store.ai.judge("model-1", "Be kind."), ids, shown_first, shown_second, 0)


def night(store: Store, method: Method = "auto", **limits: Any) -> tuple[NightData, NightData]:
    """Return a night's data without and with what AIs said."""
    settings, now = NightSettings(**limits), datetime.now(UTC)
    votes = tonights_votes(store, settings, now)
    data = divide_votes(votes, method, settings.holdout_share, settings.seed)
    return data, add_ai_votes(data, votes, store, settings, now, method)


def test_all_ais_together_have_their_share_at_most_and_peoples_part_stays_as_it_is(store: Store) -> None:
    for number in range(40):
        say(store, f"How many {number}?")
    before, after = night(store)
    added = [example for example in after.train if example.source.startswith("ai-")]
    assert after.train[: len(before.train)] == before.train and after.heldout == before.heldout
    assert len(added) == after.counts["ai_votes"] == 40 and before.data_hash != after.data_hash
    share = sum(e.weight for e in added) / sum(e.weight for e in after.train)
    assert share == pytest.approx(0.3) and after.counts["ai_percent_of_weight"] == 30
    assert all(after.counts[name] == count for name, count in before.counts.items())


def test_a_few_votes_of_an_ai_weigh_half_and_less_the_less_sure_it_was(store: Store) -> None:
    say(store, "Sure?", 1.0, 1.0)
    say(store, "Unsure?", 0.25, 0.25)
    say(store, "Tied?", 1.0, 0.0)
    said = {e.prompt[-1]["content"]: e for e in night(store)[1].train if e.source == "ai-choice"}
    assert {question: e.weight for question, e in said.items()} == {"Sure?": 0.5, "Unsure?": 0.25}
    assert said["Sure?"].completions == ("Sure? One.", "Sure? Two.")
    assert said["Unsure?"].completions == ("Unsure? Two.", "Unsure? One.")


def test_a_rewrite_is_a_pair_and_a_demonstration_in_one(store: Store) -> None:
    reply = answer(store, ask(store, "Why?"), "Because.")
    store.ai.add_rewrite(store.ai.judge("model-1", "Be kind."), reply.id, "It is rude.", "What do you think?")
    (example,) = (e for e in night(store)[1].train if e.source.startswith("ai-"))
    assert (example.source, example.demonstrated, example.ids) == ("ai-rewrite", True, (reply.id,))
    assert example.completions == ("What do you think?", "Because.")
    (pair,) = (e for e in night(store, method="dpo")[1].train if e.source.startswith("ai-"))
    assert not pair.demonstrated and pair.completions == example.completions


@pytest.mark.parametrize("limits", [{"ai_share": 0.0}, {"ai_weight": 0.0}])
def test_an_operator_can_leave_ais_out(store: Store, limits: dict[str, float]) -> None:
    say(store, "Why?")
    before, after = night(store, **limits)
    assert after == before


def test_without_peoples_votes_an_ai_has_no_weight(home: Path) -> None:
    store = open_in(home / "nightschool.db")
    say(store, "Why?")
    assert night(store)[1].train == ()
    store.close()


def test_where_somebody_judged_the_same_the_ai_is_not_heard(store: Store) -> None:
    judge = store.ai.judge("model-1", "Be kind.")
    for ids in store.ai.pairs_to_judge(judge):
        store.ai.add_choice(judge, ids, 0.0, 0.0, 0)
    assert len(list(store.ai.choices())) == len(SUBJECTS)
    assert night(store)[1].counts["ai_votes"] == 0


def test_the_same_words_in_somebody_elses_chat_are_not_judged_twice(store: Store) -> None:
    other = store.people.add("other", kind="simulated").id
    fill_store_of = ask(store, "What is apple made of?", other)
    for text in ("It is 0.", "What is asked? 0"):
        answer(store, fill_store_of, text, other, system="Be brief.")
    judge = store.ai.judge("model-1", "Be kind.")
    ids = next(ids for ids in store.ai.pairs_to_judge() if (pair := store.ai.read_pair(*ids)) and pair.person_id != 1)
    store.ai.add_choice(judge, ids, 1.0, 1.0, 0)
    assert night(store)[1].counts["ai_votes"] == 0


def test_nothing_that_an_ai_said_tells_of_what_is_held_out(store: Store) -> None:
    """The same questions in another person's chats: those that are held out are not trained on in an AI's words."""
    other = store.people.add("other", kind="simulated").id
    for subject in SUBJECTS:
        say(store, f"  what is {subject} MADE of?", person=other)
    before, after = night(store)
    examined = {" ".join(e.prompt[-1]["content"].casefold().split()) for e in after.heldout}
    trained = {" ".join(e.prompt[-1]["content"].casefold().split()) for e in after.train if e.source == "ai-choice"}
    assert examined and not examined & trained
    assert len(trained) == len(SUBJECTS) - len(examined) == after.counts["ai_votes"]
    assert after.counts["ai_set_aside"] == len(examined)
    assert not [e for e in after.heldout if e.source.startswith("ai-")]


def test_of_people_who_are_held_out_whole_no_chat_is_trained_on(store: Store) -> None:
    for name in ("ann", "bob", "cat", "dan"):
        fill_store(store, [f"Where is the {subject} of {name}?" for subject in SUBJECTS], person=name)
        say(store, f"Who is {name}?", person=store.people.get(name).id)
    before, after = night(store, holdout_share=0.2)
    whole = {e.person for e in before.heldout} - {e.person for e in before.train}
    added = {e.person for e in after.train if e.source == "ai-choice"}
    assert whole and added and not whole & added


@pytest.mark.long
def test_a_night_learns_from_ais_beside_people_and_says_so(
    home: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "is_flawed", lambda text: False)
    monkeypatch.setattr(evaluate, "REPLY_TOKENS", 8)
    member = store.people.add("mina", kind="simulated").id
    for number in range(3):
        say(store, f"Who said {number}?", person=member)
    settings = tiny_settings(home, save_tiny(tmp_path / "model"))
    result = nightly.run_nightly(settings, store)
    assert result.outcome in ("promoted", "refused") and result.adapter, result.reasons
    folder = settings.runs_dir / str(result.run)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines if line["source"] == "ai-choice"] == ["train"] * 3
    assert "| ai votes | 3 |" in (folder / "report.md").read_text()
    store.consent.set_person(member, "off")
    assert "withdrawn" in store.registry.tainted(result.adapter)[0]


@pytest.mark.long
def test_votes_of_ais_do_not_make_up_for_missing_ones_of_people(home: Path, store: Store, tmp_path: Path) -> None:
    for number in range(10):
        say(store, f"Who said {number}?")
    settings = tiny_settings(home, tmp_path / "no-model", min_votes=12)
    result = nightly.run_nightly(settings, store)
    assert result.outcome == "skipped" and "2 are missing" in result.reasons[0]
