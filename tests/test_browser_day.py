"""A whole day in a real browser, then the database tells the same story."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from feedback_store import Store
from tests.app_process import running_app
from tests.browser_support import LONGER, Visitor, eventually
from tests.new_store import open_in

pytestmark = pytest.mark.browser
LONG = " ".join(f"word{number}" for number in range(60))
ON_ONE_LINE = """(places) => {
  const boxes = places.map((place) => document.querySelector(place).getBoundingClientRect());
  const middles = boxes.map((box) => box.y + box.height / 2);
  return Math.max(...middles) - Math.min(...middles) < 6
    && boxes.every((box) => box.width > 0 && box.left >= 0 && box.right <= window.innerWidth);
}"""


@pytest.fixture
def store(home: Path, address: str) -> Iterator[Store]:
    opened = open_in(home / "nightschool.db")
    yield opened
    opened.close()


def test_a_whole_day_is_kept(browser: Browser, address: str, store: Store) -> None:
    """Ask, stream, stop, retry, vote, change, retract, comment, compare, choose; reload: all of it is there."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    asks_and_stops(visitor)
    retries(visitor)
    votes(visitor)
    writes_a_better_answer(visitor)
    compares(visitor)
    visitor.open()
    finds_everything_again(visitor)
    the_database_tells_the_same(store)
    assert visitor.strangers() == []
    assert visitor.errors == []
    page.context.close()


def asks_and_stops(visitor: Visitor) -> None:
    visitor.send(LONG)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    early = visitor.reply()
    eventually(lambda: len(visitor.reply()) > len(early), "the reply did not grow")
    visitor.page.click("#stop")
    visitor.settle()
    assert "word1" in visitor.reply()
    assert "word59" not in visitor.reply()
    assert "Stopped here." in visitor.reply()


def retries(visitor: Visitor) -> None:
    visitor.page.get_by_label("Socratic tutor").first.check(force=True)
    visitor.page.click("#retry")
    eventually(lambda: "word59" in visitor.reply(), "the retried reply did not end")
    visitor.settle()
    expect(visitor.page.locator("#version")).to_contain_text("2 of 2")
    visitor.page.click("#version-before")
    expect(visitor.page.locator("#version")).to_contain_text("1 of 2")
    visitor.page.click("#version-after")
    expect(visitor.page.locator("#version")).to_contain_text("2 of 2")


def votes(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#vote-up")
    visitor.told("Your vote is saved.")
    page.click("#vote-retract")
    visitor.told("Your vote is taken back.")
    expect(page.locator("#vote-details")).to_be_hidden()
    page.click("#vote-up")
    visitor.told("Your vote is saved.")
    page.click("#vote-down")
    expect(page.get_by_label("Told the answer")).to_be_attached()
    page.get_by_label("Told the answer").check(force=True)
    page.fill("#vote-comment textarea, #vote-comment input", "It said it outright.")
    page.click("#vote-save")
    visitor.told("Your vote is saved.")
    visitor.send("And a second one")
    eventually(lambda: "And a second one" in visitor.reply(), "no second reply")
    visitor.settle()
    page.get_by_label("Like", exact=True).first.click()
    expect(page.locator("#reply-caption")).to_contain_text("Reply 1 of 2")
    visitor.told("Your vote is saved.")
    page.get_by_label("Dislike", exact=True).first.click()
    expect(page.get_by_label("Told the answer")).to_be_attached()
    page.get_by_label("Told the answer").check(force=True)
    page.fill("#vote-comment textarea, #vote-comment input", "It said it outright.")
    page.press("#vote-comment textarea, #vote-comment input", "Enter")
    visitor.told("Your vote is saved.")


def writes_a_better_answer(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#open-rewrite")
    page.fill("#rewrite-text textarea", "Which word comes first?")
    page.click("#rewrite-save")
    visitor.told("Your answer is saved.")


def compares(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Compare").click()
    page.fill("#compare-message textarea", "Compare this, please, " + LONG)
    page.click("#compare-ask")
    expect(page.locator("#reply-left")).to_contain_text("Compare this")
    expect(page.locator("#reply-right")).to_contain_text("Compare this")
    expect(page.locator("#choose-left")).to_be_disabled()
    expect(page.locator("#choose-left")).to_be_enabled()
    assert page.locator("#revealed-left").inner_text() == ""
    page.click("#choose-left")
    expect(page.locator("#revealed-left")).to_contain_text("Base model")
    page.click("#compare-next")
    expect(page.locator("#arena")).to_be_hidden()


def finds_everything_again(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator("#chat .bot.message")).to_have_count(2)
    expect(page.locator("#chat .bot.message").first).to_contain_text("word59")
    expect(page.locator("#conversations label.selected")).to_contain_text("word0")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#past-comparisons")).to_contain_text("Compare this")
    expect(page.locator("#verdict")).to_contain_text("Left is better")
    page.get_by_role("tab", name="Operate").click()
    expect(page.locator("#votes")).to_contain_text("Preference pairs")


def the_database_tells_the_same(store: Store) -> None:
    person = store.people.owner().id
    (conversation,) = store.conversations.list(person)
    question, first, _, second = store.conversations.thread(conversation.id, person)
    assert question.text == LONG
    stopped, retried = store.conversations.siblings(first.id)
    assert (stopped.state, retried.state, second.state) == ("stopped", "done", "done")
    assert stopped.text
    assert "word59" not in stopped.text
    for reply, preset in ((stopped, "plain"), (retried, "socratic"), (second, "socratic")):
        assert reply.origin is not None
        assert (reply.origin.adapter_id, reply.origin.base_id, reply.origin.preset) == (None, "fake", preset)
        assert (reply.origin.temperature, reply.origin.max_new_tokens) == (0.7, 512)
    assert stopped.origin is not None
    assert retried.origin is not None
    assert stopped.origin.seed != retried.origin.seed
    vote = store.votes.get(first.id, person)
    assert vote is not None
    assert (vote.value, vote.reasons, vote.comment) == (-1, ("told_the_answer",), "It said it outright.")
    rewritten = store.votes.get_rewrite(first.id, person)
    assert rewritten is not None
    assert rewritten.text == "Which word comes first?"
    (comparison,) = store.votes.comparisons(person)
    assert comparison.choice == "left"
    left, right = (
        store.conversations.path_to(i)[-1] for i in (comparison.left_message_id, comparison.right_message_id)
    )
    assert left.origin is not None
    assert right.origin is not None
    assert left.origin.seed != right.origin.seed
    assert left.origin.system == right.origin.system
    assert store.votes.counts()["pairs"] == 2


def test_refusals_are_sentences_and_lose_nothing(browser: Browser, address: str, store: Store) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("   ")
    visitor.told("Write a message first")
    visitor.send("x" * 100_000)
    visitor.told("100,000 characters and 20,000 fit")
    assert len(page.input_value("#message textarea")) == 100_000
    assert store.conversations.list(store.people.owner().id) == []
    page.context.close()


def test_a_message_is_shown_as_typed(browser: Browser, address: str) -> None:
    typed = "How do I close a <div> in __init__.py?\n# heading\n    $$x$$\n\n```\t&lt;"
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(typed)
    eventually(lambda: "You said" in visitor.reply(), "no reply came")
    visitor.settle()
    assert page.locator("#chat .user.message").inner_text().strip() == typed
    assert visitor.errors == []
    page.context.close()


def test_enter_while_a_reply_is_written_is_answered_and_keeps_the_text(
    browser: Browser, address: str, store: Store
) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    visitor.send("too early")
    visitor.told("A reply is still being written.")
    assert page.input_value("#message textarea") == "too early"
    page.click("#stop")
    visitor.settle()
    assert page.input_value("#message textarea") == "too early"
    page.context.close()


def test_what_is_typed_survives_thumbs_and_refusals(browser: Browser, address: str, store: Store) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    page.get_by_label("Socratic tutor").first.check(force=True)
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    page.click("#open-rewrite")
    page.fill("#rewrite-text textarea", " ")
    page.click("#rewrite-save")
    visitor.told("empty")
    page.fill("#rewrite-text textarea", "My own words")
    page.dblclick("#vote-up")
    visitor.told("Your vote is saved.")
    page.fill("#vote-comment textarea, #vote-comment input", "not saved yet")  # the second click's answer may follow
    page.click("#vote-down")
    expect(page.get_by_label("Told the answer")).to_be_attached()
    assert page.input_value("#vote-comment textarea, #vote-comment input") == "not saved yet"
    page.click("#open-rewrite")
    expect(page.locator("#composer")).to_be_in_viewport(ratio=1)
    page.wait_for_load_state("networkidle")
    assert page.input_value("#rewrite-text textarea") == "My own words"
    visitor.open()
    expect(page.locator("#preset label.selected")).to_have_text("Socratic tutor")
    page.context.close()


@pytest.mark.parametrize("phone", [False, True])
def test_versions_and_retry_stand_on_one_line(browser: Browser, address: str, phone: bool) -> None:
    visitor = Visitor(browser, address, phone=phone)
    page = visitor.open()
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    page.click("#retry")
    expect(page.locator("#version")).to_contain_text("2 of 2")
    page.wait_for_function(ON_ONE_LINE, arg=["#version-before", "#version", "#version-after", "#retry"])
    page.context.close()


def test_closing_the_tab_keeps_what_was_written(browser: Browser, address: str, store: Store) -> None:
    visitor = Visitor(browser, address)
    visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    visitor.context.close()
    person = store.people.owner().id
    (conversation,) = store.conversations.list(person)

    def ended() -> bool:
        return store.conversations.thread(conversation.id, person)[-1].state == "stopped"

    eventually(ended, "the reply did not end with its tab")
    assert "word1" in store.conversations.thread(conversation.id, person)[-1].text


def test_stopping_the_app_keeps_what_was_written(browser: Browser, home: Path) -> None:
    with running_app(home) as (where, process):
        visitor = Visitor(browser, where)
        visitor.open()
        visitor.send(LONGER)
        eventually(lambda: "word1" in visitor.reply(), "the reply never began")
        process.terminate()
        process.join(20)
        assert process.exitcode == 0
        visitor.context.close()
    store = open_in(home / "nightschool.db")
    person = store.people.owner().id
    (conversation,) = store.conversations.list(person)
    last = store.conversations.thread(conversation.id, person)[-1]
    store.close()
    assert last.state == "stopped"
    assert "word1" in last.text


def test_a_phone_reaches_everything(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address, phone=True)
    page = visitor.open()
    visitor.send("Hello from a phone")
    visitor.settle()
    page.click("#vote-up")
    visitor.told("Your vote is saved.")
    for name in ("Compare", "Rank", "Operate", "Chat"):
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{name} is too wide"
    page.click("#sidebar .toggle-button")
    page.click("#new-conversation")
    expect(page.locator("#chat .bot.message")).to_have_count(0)
    page.context.close()


def test_korean_readers_get_korean_and_may_change_it(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address, language="ko-KR")
    page = visitor.open()
    expect(page.locator("#send")).to_have_text("보내기")
    visitor.send(" ")
    visitor.told("메시지가 비어 있습니다.")
    page.locator("#language a").click()
    expect(page.locator("#send")).to_have_text("Send")
    visitor.open()
    expect(page.locator("#send")).to_have_text("Send")
    assert visitor.strangers() == []
    page.context.close()


def test_a_message_sent_right_after_new_conversation_begins_one(browser: Browser, address: str, store: Store) -> None:
    """It once landed in the conversation on screen, because the page still named that one."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("first")
    eventually(lambda: "first" in visitor.reply(), "no reply came")
    visitor.settle()
    page.evaluate("document.querySelector('#new-conversation').click()")
    page.wait_for_timeout(300)  # nobody types faster
    visitor.send("second")
    eventually(lambda: "second" in visitor.reply(), "no reply came")
    visitor.settle()
    assert len(store.conversations.list(store.people.owner().id)) == 2
    page.context.close()


def test_leaving_a_conversation_stops_its_reply_and_keeps_what_was_written(
    browser: Browser, address: str, store: Store
) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    page.click("#new-conversation")
    expect(page.locator("#chat .bot.message")).to_have_count(0)
    person = store.people.owner().id
    (conversation,) = store.conversations.list(person)
    eventually(
        lambda: store.conversations.thread(conversation.id, person)[-1].state == "stopped", "the reply was not stopped"
    )
    assert "word1" in store.conversations.thread(conversation.id, person)[-1].text
    page.wait_for_timeout(500)
    assert visitor.reply() == ""
    page.context.close()


def test_what_is_typed_and_not_sent_outlives_a_restart_of_the_app(browser: Browser, home: Path) -> None:
    """Sent into the void, it is in the box yet; then the framework reloads the page once the app is back."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_app(home, "--port", str(port)) as (where, _):
        visitor = Visitor(browser, where)
        page = visitor.open()
        visitor.send("sent")
        eventually(lambda: "sent" in visitor.reply(), "no reply came")
        visitor.settle()
        visitor.open()
        assert page.input_value("#message textarea") == ""
        page.fill("#message textarea", "not sent\nyet ")
        page.locator("#message textarea").press_sequentially("<b>")
        page.evaluate("window.before = true")
    with page.expect_event("requestfailed", lambda request: "queue/join" in request.url):
        page.press("#message textarea", "Enter")
    with running_app(home, "--port", str(port)):
        page.wait_for_function("window.before === undefined")
        expect(page.locator("#message textarea")).to_have_value("not sent\nyet <b>")
        expect(page.locator("#chat .bot.message")).to_have_count(1)
        page.press("#message textarea", "Enter")
        eventually(lambda: "not sent" in visitor.reply(), "what was brought back was not sent")
        visitor.settle()
        visitor.open()
        assert page.input_value("#message textarea") == ""
        page.context.close()


def test_half_written_feedback_survives_the_next_message(browser: Browser, address: str) -> None:
    """The end of a stream once moved the panel to the new reply, and sending closed an open better answer."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    page.click("#open-rewrite")
    page.fill("#rewrite-text textarea", "My own words")
    visitor.send(LONG)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    expect(page.locator("#rewrite-panel")).to_be_visible()
    expect(page.locator("#reply-caption")).to_contain_text("Reply 1 of 2")
    visitor.settle()
    assert page.input_value("#rewrite-text textarea") == "My own words"
    page.click("#rewrite-save")
    visitor.told("Your answer is saved.")
    visitor.send(LONG)
    eventually(lambda: page.locator("#chat .bot.message").count() == 3, "the reply never began")
    expect(page.locator("#rewrite-panel")).to_be_hidden()
    page.get_by_label("Like", exact=True).first.click()
    visitor.told("Your vote is saved.")
    page.fill("#vote-comment textarea, #vote-comment input", "not saved yet")
    visitor.settle()
    page.wait_for_load_state("networkidle")
    assert page.input_value("#vote-comment textarea, #vote-comment input") == "not saved yet"
    expect(page.locator("#reply-caption")).to_contain_text("Reply 1 of 3")
    page.context.close()


def test_what_is_typed_after_the_app_died_in_the_middle_of_a_reply_is_kept(browser: Browser, home: Path) -> None:
    """The framework tells of no change any more once its stream broke off."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_app(home, "--port", str(port)) as (where, process):
        visitor = Visitor(browser, where)
        page = visitor.open()
        visitor.send(LONGER)
        eventually(lambda: "word1" in visitor.reply(), "the reply never began")
        process.kill()
        process.join(20)
        page.wait_for_timeout(1000)
        page.evaluate("window.before = true")
        page.locator("#message textarea").press_sequentially("my next thought")
    with running_app(home, "--port", str(port)):
        page.wait_for_function("window.before === undefined")
        expect(page.locator("#message textarea")).to_have_value("my next thought")
        expect(page.locator("#chat .bot.message")).to_contain_text("The app was closed while this was being written.")
        page.context.close()


def test_a_second_tab_that_was_left_behind_shows_where_the_conversation_went(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    stale = visitor.context.new_page()
    stale.goto(page.url)
    expect(stale.locator("#chat .bot.message")).to_have_count(1)
    stale.wait_for_load_state("networkidle")
    visitor.send("two")
    eventually(lambda: "two" in visitor.reply(), "no reply came")
    visitor.settle()
    stale.fill("#message textarea", "three")
    stale.press("#message textarea", "Enter")
    expect(stale.locator("#notice")).to_contain_text("went on in another tab")
    expect(stale.locator("#chat .bot.message")).to_have_count(2)
    assert stale.input_value("#message textarea") == "three"
    stale.press("#message textarea", "Enter")
    expect(stale.locator("#chat .bot.message")).to_have_count(3)
    page.context.close()
