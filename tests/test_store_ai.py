"""What AI judges said lies apart from what people did, is named as theirs wherever it shows, and goes with the chat."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback_store.__main__ import main
from feedback_store.ai import AiJudge, share_of
from feedback_store.erasure import erase_user
from feedback_store.errors import BadInput
from feedback_store.exporters import export_lines
from feedback_store.integrity import verify
from feedback_store.records import Choice
from feedback_store.store import Store
from tests.test_store_world import answer, ask, fill, whole_store

CANARY = "The canary of Reykjavík sings at 04:17 in B flat"
Ids = tuple[str, str]


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """An open store, found whole after each test."""
    with whole_store(home / "nightschool.db") as opened:
        yield opened


def two(store: Store, question: str, person: int = 1) -> Ids:
    """Let a question be answered twice."""
    asked = ask(store, question, person)
    return answer(store, asked, f"{question} One.", person).id, answer(store, asked, f"{question} Two.", person).id


def compare(store: Store, ids: Ids, choice: Choice, person: int = 1, swapped: bool = False) -> None:
    prompt = store.conversations.path_to(ids[0])[0].id
    left, right = reversed(ids) if swapped else ids
    store.votes.choose(store.votes.show_comparison(person, prompt, left, right).id, person, choice)


def judge_of(store: Store, constitution: str = "Be kind.") -> AiJudge:
    return store.ai.judge("model-1", constitution)


def test_pairs_that_people_judged_come_first_and_each_judge_sees_each_pair_once(store: Store) -> None:
    unjudged, judged = two(store, "Why?"), two(store, "How?")
    compare(store, judged, "left", swapped=True)
    judge = judge_of(store)
    assert store.ai.pairs_to_judge(judge) == [judged, unjudged]
    store.ai.add_choice(judge, judged, 1.0, 1.0, 0)
    store.ai.add_choice(judge, unjudged, None, None, 2)
    assert store.ai.pairs_to_judge(judge) == store.ai.pairs_to_judge(judge_of(store)) == []
    other = judge_of(store, "Be brief.")
    assert len(store.ai.pairs_to_judge(other)) == 2 and other.name != judge.name
    assert judge.name.startswith("ai:model-1:")


def test_only_finished_different_replies_under_one_system_prompt_of_people_who_let_them_teach_are_judged(
    store: Store,
) -> None:
    asked = ask(store)
    answer(store, asked, "4")
    answer(store, asked, "4")
    answer(store, asked, "Four", system="Be brief.")
    answer(store, asked, " ")
    assert store.ai.pairs_to_judge() == []
    member = store.people.add("mina").id
    ids = two(store, "Mine?", member)
    assert store.ai.pairs_to_judge() == [] and store.ai.read_pair(*ids) is None
    store.consent.set_person(member, "on")
    assert store.ai.pairs_to_judge() == [ids]
    pair = store.ai.read_pair(*ids)
    assert pair is not None and (pair.first, pair.second, pair.person_id) == ("Mine? One.", "Mine? Two.", member)
    assert [turn["role"] for turn in pair.prompt] == ["system", "user"]


def test_nothing_of_an_ai_is_counted_or_exported_among_peoples_votes(store: Store) -> None:
    fill(store)
    ids = two(store, "Why?")
    kinds = ("preferences", "comparisons", "thumbs", "rankings", "demonstrations", "conversations")
    before = store.votes.overview(), {kind: list(export_lines(store, kind)) for kind in kinds}
    people = store.people.all()
    judge = judge_of(store)
    store.ai.add_choice(judge, ids, 1.0, 0.75, 0)
    store.ai.add_rewrite(judge, ids[0], "Too short.", "A better one")
    assert (store.votes.overview(), {kind: list(export_lines(store, kind)) for kind in kinds}) == before
    assert store.people.all() == people
    assert store.ai.counts() == {"judges": 1, "choices": 1, "ties": 0, "unreadable": 0, "rewrites": 1}


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "share"),
    [
        (1, 1, 1),
        (0, 0, 0),
        (1, 0, 0.5),
        (0, 1, 0.5),
        (1, 0.5, 0.5),
        (0.75, 1, 0.875),
        (0.25, 0.5, 0.5),
        (0.25, 0, 0.125),
    ],
)
def test_orders_that_disagree_are_a_tie_and_else_the_share_is_their_mean(
    shown_first: float, shown_second: float, share: float
) -> None:
    assert share_of(shown_first, shown_second) == share


def test_agreement_with_people_is_that_of_hand_worked_numbers(store: Store) -> None:
    """Five judgements of two people on four pairs: the AI says the same in three; kappa from their 10 verdicts."""
    other = store.people.add("other", kind="simulated").id
    by_choice, by_thumbs, by_ranks, foreign = (
        *(two(store, question) for question in ("a?", "b?", "c?")),
        two(store, "d?", other),
    )
    compare(store, by_choice, "right")
    compare(store, by_choice, "left")  # the last one counts
    store.votes.rate(by_thumbs[0], 1, -1)
    store.votes.rate(by_thumbs[1], 1, 1)
    store.votes.rank(store.conversations.path_to(by_ranks[0])[0].id, 1, {by_ranks[1]: 1, by_ranks[0]: 1})
    compare(store, foreign, "right", other, swapped=True)
    judge = judge_of(store)
    for ids, shares in ((by_choice, (1, 1)), (by_thumbs, (1, 1)), (by_ranks, (1, 0)), (foreign, (0, 0))):
        store.ai.add_choice(judge, ids, *map(float, shares), 0)
    found = store.ai.agreement(judge)
    # people: first, second, neither, first; the AI: first, first, neither, second; of 8 verdicts 4 first, 2, 2
    assert (found.pairs, found.percent, found.decided_pairs) == (4, 0.5, 3)
    chance = (16 + 4 + 4) / 64
    assert found.decided_percent == pytest.approx(1 / 3) and found.kappa == pytest.approx((0.5 - chance) / (1 - chance))
    assert store.ai.agreement(judge_of(store, "Be brief.")).percent is None


def test_what_people_rewrote_or_liked_is_not_revised_and_what_they_disliked_is_first(store: Store) -> None:
    plain, disliked = two(store, "a?")
    liked, rewritten = two(store, "b?")
    store.votes.rate(disliked, 1, -1)
    store.votes.rate(liked, 1, 1)
    store.votes.rewrite(rewritten, 1, "Mine")
    judge = judge_of(store)
    assert store.ai.replies_to_revise(judge) == [disliked, plain]
    store.ai.add_rewrite(judge, disliked, "Too short.", "A better one")
    store.ai.add_rewrite(judge, plain, "fine", None)
    assert store.ai.replies_to_revise(judge) == []
    assert [rewrite.text for rewrite in store.ai.rewrites()] == ["A better one"]
    store.votes.rewrite(disliked, 1, "Mine is better still")
    assert list(store.ai.rewrites()) == []


def test_a_choice_says_whether_somebody_judged_the_same_pair(store: Store) -> None:
    ids = two(store, "Why?")
    store.ai.add_choice(judge_of(store), ids, 0.0, 0.0, 0)
    assert [(choice.share, choice.judged_by_people) for choice in store.ai.choices()] == [(0.0, False)]
    compare(store, ids, "tie")
    assert [choice.judged_by_people for choice in store.ai.choices()] == [True]


def test_what_was_said_of_a_chat_goes_with_consent_and_with_the_chat(store: Store, home: Path) -> None:
    member = store.people.add("mina", kind="simulated").id
    ids = two(store, "Mine?", member)
    judge = judge_of(store)
    store.ai.add_choice(judge, ids, 1.0, 1.0, 0)
    store.ai.add_rewrite(judge, ids[0], f"No: {CANARY}", f"Yes: {CANARY}")
    (home / "log.txt").write_text(f"Yes: {CANARY}")
    store.consent.set_person(member, "off")
    assert list(store.ai.choices()) == list(store.ai.rewrites()) == []
    store.consent.set_person(member, "on")
    assert len(list(store.ai.choices())) == len(list(store.ai.rewrites())) == 1
    erase_user(store, "mina")
    assert store.ai.counts() == {"judges": 1, "choices": 0, "ties": 0, "unreadable": 0, "rewrites": 0}
    assert not [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    store.ai.add_choice(judge, ids, 1.0, 1.0, 0)  # the judge was still thinking
    store.ai.add_rewrite(judge, ids[0], "No.", "Yes.")
    assert store.ai.counts()["choices"] == store.ai.counts()["rewrites"] == 0


def test_exports_name_the_judge_and_such_lines_are_not_imported_as_peoples(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, tied = two(store, "Why?"), two(store, "How?")
    judge = judge_of(store)
    store.ai.add_choice(judge, ids, 0.0, 0.5 / 2, 0)
    store.ai.add_choice(judge, tied, 1.0, 0.0, 0)
    store.ai.add_rewrite(judge, ids[0], "No.", "Yes.")
    for kind, imported_as in (("ai-preferences", "preferences"), ("ai-demonstrations", "demonstrations")):
        file = tmp_path / f"{kind}.jsonl"
        assert main(["export", kind, str(file)]) == 0
        (line,) = [json.loads(text) for text in file.read_text().splitlines()]
        assert line["annotator"] == judge.name
        assert line.get("share", 0.875) == 0.875
        assert main(["import", str(file), "--kind", imported_as]) == 1
        assert "AI judge" in capsys.readouterr().err
    assert [line["chosen"][0]["content"] for line in export_lines(store, "ai-preferences")] == ["Why? Two."]


def test_stats_tell_of_ais_apart(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.ai.add_choice(judge_of(store), two(store, "Why?"), 1.0, 0.0, 1)
    assert main(["stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ai"] == {"judges": 1, "choices": 1, "ties": 1, "unreadable": 0, "rewrites": 0}
    assert (told["comparisons"], told["pairs"], told["people"]) == (0, 0, 1)


def test_an_altered_or_senseless_row_of_an_ai_is_named(store: Store) -> None:
    ids = two(store, "Why?")
    store.ai.add_choice(judge_of(store), ids, 1.0, 1.0, 0)
    with store.connections.write() as db:
        db.execute("UPDATE ai_choice SET first_message_id = second_message_id, second_message_id = first_message_id")
        assert any("AI judge's choice" in problem for problem in verify(store))
        db.execute("UPDATE ai_choice SET first_message_id = second_message_id, second_message_id = first_message_id")


@pytest.mark.parametrize(("model", "constitution"), [("", "Be kind."), ("model-1", ""), ("m" * 300, "Be kind.")])
def test_a_judge_needs_a_model_and_a_constitution(store: Store, model: str, constitution: str) -> None:
    with pytest.raises(BadInput):
        store.ai.judge(model, constitution)
