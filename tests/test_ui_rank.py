"""The rank page's handlers: four replies, an order of their own, places given, changed and taken back."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import gradio as gr
import pytest

from assistant.errors import EngineBusy
from feedback_store.integrity import verify
from feedback_store.records import Message
from tests.ui_support import RefusingEngine, World, fixed_script, leave_after, make_world, play, request_of
from ui.rank import OUTPUTS, RankPage, RankRound
from ui.texts import ENGLISH


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    made = make_world(home)
    made.engine.script = fixed_script("one", "two", "three", "four", "five")
    yield made
    assert verify(made.store) == []
    made.store.close()


def ask(world: World, text: str = "Which is best?") -> RankRound:
    return play(world.rank.ask(world.person, text, "plain"))[-1]


def replies_to(world: World, shown: RankRound) -> list[Message]:
    return [world.store.conversations.path_to(reply)[-1] for reply in shown.ids]


def rankings(world: World) -> int:
    return world.store.votes.counts()["rankings"]


def history(world: World) -> list[int]:
    with world.store.connections.read() as db:
        return [retracted for (retracted,) in db.execute("SELECT retracted FROM ranking_event ORDER BY id")]


def test_four_replies_differ_in_nothing_but_the_seed(world: World) -> None:
    shown = ask(world)
    replies = replies_to(world, shown)
    assert shown.stage == "placing"
    assert sorted(shown.texts) == ["four", "one", "three", "two"]
    assert tuple(reply.text for reply in replies) == shown.texts
    origins = [reply.origin.__dict__ for reply in replies if reply.origin]
    assert len({origin["seed"] for origin in origins}) == 4
    assert all(origin | {"seed": 0} == origins[0] | {"seed": 0} for origin in origins)
    assert world.store.conversations.list(world.person) == []
    assert world.store.conversations.list(world.person, kind="compare") == []
    assert len(world.store.conversations.list(world.person, kind="rank")) == 1
    assert rankings(world) == 0


def test_the_order_shown_is_neither_that_of_their_making_nor_another_at_the_next_look(world: World) -> None:
    world.engine.script = lambda request: f"seed {request.sampling.seed}"
    made = []
    for _ in range(8):
        shown = ask(world)
        assert world.rank.open(world.person) == shown
        replies = replies_to(world, shown)
        began = [reply.id for reply in world.store.conversations.siblings(shown.ids[0])]
        made.append([began.index(reply.id) for reply in replies])
    assert any(order != [0, 1, 2, 3] for order in made), "one in 24 to the eighth by chance"


def test_replies_stand_from_their_first_word_where_they_are_ranked(world: World) -> None:
    world.engine.seconds_per_word = 0.02
    world.engine.script = lambda request: f"seed {request.sampling.seed} and" + " more" * 40
    rounds = play(world.rank.ask(world.person, "Which?", "plain"))
    assert [shown.stage for shown in rounds].count("running") > 2
    seeds = [
        [text.split()[1] for text in shown.texts] for shown in rounds if all(len(t.split()) > 2 for t in shown.texts)
    ]
    assert len(seeds) > 1 and all(order == seeds[-1] for order in seeds)


def test_nothing_tells_what_a_reply_is_before_the_order_is_saved(world: World) -> None:
    world.store.registry.register_adapter("secret-adapter", "fake")
    world.store.registry.promote("secret-adapter", 0)
    page = RankPage(world.rank, ENGLISH)
    rounds = play(world.rank.ask(world.person, "Which?", "plain"))
    assert "secret-adapter" not in str([page.updates(world.person, shown) for shown in rounds])
    saved = page.save(rounds[-1].key, "1", "2", "3", "4", False, request_of(world))
    assert str(saved).count("secret-adapter") == 4
    assert "secret-adapter" not in str(page.take_back(rounds[-1].key, request_of(world)))


def test_an_order_is_stored_as_shown_with_ties_and_whether_any_is_good(world: World) -> None:
    shown = ask(world)
    saved = world.rank.save(world.person, shown.key, [2, 1, 2, 4], True)
    assert (saved.stage, saved.notice, saved.ids) == ("ranked", ENGLISH.order_saved, shown.ids)
    assert (saved.places, saved.none_is_good) == ((2, 1, 2, 3), True)
    ranking = world.store.votes.get_ranking(shown.key, world.person)
    assert ranking is not None
    assert list(ranking.ranks.items()) == list(zip(shown.ids, (2, 1, 2, 3), strict=True))
    assert f"<b>1</b><span>{ENGLISH.counts['rankings']}</span>" in world.operate.votes_html()
    (example,) = world.store.votes.rankings()
    assert (example.completions, example.ranks) == (shown.texts, (2, 1, 2, 3))


def test_an_order_may_be_changed_and_taken_back_and_its_history_stays(world: World) -> None:
    key = ask(world).key
    world.rank.save(world.person, key, [1, 2, 3, 4], False)
    changed = world.rank.save(world.person, key, [4, 3, 2, 1], False)
    assert (changed.places, rankings(world)) == ((4, 3, 2, 1), 1)
    back = world.rank.take_back(world.person, key)
    assert (back.stage, back.places, back.revealed) == ("placing", (), ())
    assert (back.notice, rankings(world)) == (ENGLISH.order_taken_back, 0)
    assert world.rank.save(world.person, key, [1, 1, 1, 1], False).stage == "ranked"
    assert history(world) == [0, 0, 1, 0]


def test_every_reply_wants_a_place(world: World) -> None:
    key = ask(world).key
    for places in ([1, 2, 3, None], [None] * 4, [], [1, 2, 3]):
        refused = world.rank.save(world.person, key, places, False)
        assert (refused.stage, refused.notice) == ("same", ENGLISH.place_each)
    assert rankings(world) == 0


def test_what_is_refused_changes_nothing_on_the_page_but_what_it_says(world: World) -> None:
    page = RankPage(world.rank, ENGLISH)
    shown = page.updates(world.person, ask(world))
    refused = page.save("no-such-id", "1", "2", "3", "4", False, request_of(world))
    assert len(shown) == len(refused) == OUTPUTS
    assert "nothing of yours" in refused[0]["value"]
    assert refused[1:] == [gr.skip()] * (OUTPUTS - 1)
    assert ENGLISH.place_each in page.save(shown[2], "1", None, "9", "", None, request_of(world))[0]["value"]


def test_equal_replies_are_redrawn_once_in_their_places(world: World) -> None:
    world.engine.script = fixed_script("same", "same", "same", "other", "third", "fourth")
    rounds = play(world.rank.ask(world.person, "Which?", "plain"))
    assert set(rounds[-1].texts) == {"same", "other", "third", "fourth"}
    assert rounds[-1].texts == rounds[-2].texts
    assert rounds[-1].texts == world.rank.open(world.person).texts
    first = next(shown for shown in rounds if "▍" not in str(shown.texts) and len(set(shown.texts)) == 2)
    for place in (first.texts.index("same"), first.texts.index("other")):
        assert rounds[-1].texts[place] == first.texts[place]


def test_replies_that_stay_equal_are_shown_and_ranked_once(world: World) -> None:
    world.engine.script = fixed_script("same", "same", "other", "same")
    shown = ask(world)
    assert sorted(shown.texts) == ["other", "same"]
    assert shown.notice == ENGLISH.alike_once
    assert world.rank.save(world.person, shown.key, [1, 2, None, None], False).places == (1, 2)
    assert world.rank.open(world.person).texts == shown.texts


def test_fewer_than_two_different_replies_are_said_and_not_ranked(world: World) -> None:
    for script in (fixed_script("same"), fixed_script("", "", "", "", "one", "")):
        world.engine.script = script
        shown = ask(world)
        assert (shown.stage, shown.notice, shown.key) == ("empty", ENGLISH.alike, "")
        question = world.store.conversations.list(world.person, kind="rank")[0]
        key = world.store.conversations.thread(question.id, world.person)[0].id
        assert world.rank.save(world.person, key, [1, 2, 3, 4], False).stage == "same"
    assert rankings(world) == 0


def test_a_stopped_round_offers_no_places_and_can_be_asked_again(world: World) -> None:
    world.engine.script = lambda request: "word " * 100
    world.engine.seconds_per_word = 0.02
    shown = play(world.rank.ask(world.person, "Which?", "plain"), lambda one: world.rank.stop(world.person, one.key))[
        -1
    ]
    assert (shown.stage, shown.notice, len(shown.texts)) == ("empty", ENGLISH.no_ranking, 4)
    opened = world.rank.open(world.person)
    assert (opened.notice, opened.keep, opened.key) == (ENGLISH.rank_broken_off, "Which?", "")
    assert world.rank.past(world.person) == []


def test_a_closed_tab_ends_all_replies_and_is_told_at_the_next_opening(world: World) -> None:
    world.engine.seconds_per_word = 0.05
    world.engine.script = lambda request: "word " * 100
    leave_after(world.rank.ask(world.person, "Which?", "plain"), 2)
    (conversation,) = world.store.conversations.list(world.person, kind="rank")
    last = world.store.conversations.thread(conversation.id, world.person)[-1]
    assert [reply.state for reply in world.store.conversations.siblings(last.id)] == ["stopped"] * 4
    assert world.rank.open(world.person).notice == ENGLISH.rank_broken_off
    page = RankPage(world.rank, ENGLISH)
    assert page.look_again("typed", request_of(world))[1] == gr.skip()
    assert page.look_again(" ", request_of(world))[1] == "Which?"


def test_a_failed_reply_leaves_nothing_to_rank(world: World) -> None:
    def fail(_: object) -> str:
        raise RuntimeError("planted")

    world.engine.script = fail
    assert ask(world).notice == ENGLISH.no_ranking


def test_bad_input_gets_a_sentence_and_keeps_the_text(world: World) -> None:
    assert ask(world, " ").notice == ENGLISH.empty_message
    shown = ask(world, "x" * 100_000)
    assert "100,000 characters" in shown.notice
    assert (shown.stage, shown.keep) == ("same", "x" * 100_000)
    for act in (world.rank.take_back, world.rank.reopen):
        assert act(world.person, "no-such-id").stage == "same"
    assert world.rank.reopen(world.person, None).notice == ENGLISH.reload_page
    assert world.store.conversations.list(world.person, kind="rank") == []


def test_a_busy_engine_is_said(home: Path) -> None:
    world = make_world(home, RefusingEngine(EngineBusy("Too many are waiting.")))
    shown = ask(world)
    assert (shown.stage, shown.notice, shown.keep) == ("same", "Too many are waiting.", "Which is best?")
    assert world.store.conversations.list(world.person, kind="rank") == []
    world.store.close()


def test_earlier_rounds_are_listed_and_can_be_ranked_later(world: World) -> None:
    world.engine.script = lambda request: f"seed {request.sampling.seed}"
    first, second = ask(world, "first"), ask(world, "second")
    assert world.rank.past(world.person) == [
        (f"{ENGLISH.not_ranked} · second", second.key),
        (f"{ENGLISH.not_ranked} · first", first.key),
    ]
    assert world.rank.reopen(world.person, first.key) == first
    saved = world.rank.save(world.person, first.key, [1, 2, 3, 4], False)
    assert saved.prompt == "first"
    assert world.rank.past(world.person)[1] == (f"{ENGLISH.ranked} · first", first.key)
    assert world.rank.open(world.person) == second


def test_what_is_no_round_of_this_page_is_not_ranked_here(world: World) -> None:
    chat = play(world.chat.ask(world.person, "a chat", "plain", ""))[-1]
    play(world.compare.ask(world.person, "a comparison", "plain"))
    shown = ask(world)
    compared = world.store.votes.comparisons(world.person)[0].prompt_message_id
    for key in (chat.path[0].id, compared, shown.ids[0], ""):
        assert "nothing of yours" in world.rank.save(world.person, key, [1, 2, 3, 4], False).notice
    assert rankings(world) == 0


def test_a_round_under_way_in_another_tab_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.rounds.MOMENT", timedelta(0))
    world.engine.script = lambda request: f"seed {request.sampling.seed} of some words"
    world.engine.seconds_per_word = 0.03
    page, opened = RankPage(world.rank, ENGLISH), list[RankRound]()
    ended = play(
        world.rank.ask(world.person, "Which?", "plain"), lambda shown: opened.append(world.rank.open(world.person))
    )[-1]
    assert (opened[0].waiting, opened[0].key, opened[0].notice) == (True, "", ENGLISH.rank_under_way)
    assert page.updates(world.person, opened[0])[-1]["active"]
    assert opened[-1] == ended
    assert not page.look_again("", request_of(world))[-1]["active"]


def test_a_round_follows_what_its_person_says_about_teaching(world: World) -> None:
    world.rank.save(world.person, ask(world).key, [1, 2, 3, 4], False)
    assert len(list(world.store.votes.rankings())) == 1
    world.store.consent.set_person(world.person, "off")
    assert list(world.store.votes.rankings()) == []
