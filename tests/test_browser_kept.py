"""What is half written when its writer goes elsewhere, and comes back."""

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser_support import LONGER, Visitor, eventually

pytestmark = pytest.mark.browser
COMMENT = "#vote-comment textarea, #vote-comment input"
ANSWER = "#rewrite-text textarea"


def test_half_written_feedback_survives_another_conversation_and_another_version(
    browser: Browser, address: str
) -> None:
    """It was dropped without a word."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    page.click("#vote-down")
    visitor.told("Your vote is saved.")
    page.fill(COMMENT, "half a thought")
    page.click("#open-rewrite")
    page.fill(ANSWER, "My own words")
    assert page.input_value(COMMENT) == "half a thought"
    page.click("#new-conversation")
    expect(page.locator("#chat .bot.message")).to_have_count(0)
    visitor.send("two")
    eventually(lambda: "two" in visitor.reply(), "no reply came")
    visitor.settle()
    page.click("#open-rewrite")
    expect(page.locator(ANSWER)).to_have_value(visitor.reply().strip())
    page.locator("#conversations").get_by_text("one").click()
    expect(page.locator(COMMENT)).to_have_value("half a thought")
    expect(page.locator("#rewrite-panel")).to_be_hidden()
    page.click("#open-rewrite")
    expect(page.locator(ANSWER)).to_have_value("My own words")
    page.click("#retry")
    expect(page.locator("#version")).to_contain_text("2 of 2")
    visitor.settle()
    page.fill(ANSWER, "My own words, again")
    page.click("#version-before")
    expect(page.locator("#version")).to_contain_text("1 of 2")
    expect(page.locator(ANSWER)).to_have_value("My own words, again")
    page.click("#rewrite-save")
    visitor.told("Your answer is saved.")
    page.click("#open-rewrite")
    expect(page.locator(ANSWER)).to_have_value("My own words, again")
    page.context.close()


def unfilled(page: Page, address: str) -> Route:
    """Load the page, and hold the request for what fills it."""
    page.goto("about:blank")  # what was shown before may ask, too, and would be held in its place
    held = list[Route]()
    page.route("**/run/predict*", lambda route: held.append(route), times=1)
    with page.expect_request("**/run/predict*"):
        page.goto(address)
    expect(page.locator("#message textarea")).to_be_visible()
    return held[0]


def test_what_is_typed_before_the_page_is_filled_outlives_a_reload(browser: Browser, address: str) -> None:
    """It was kept as nobody's, and removed once the page knew who was in front of it."""
    visitor = Visitor(browser, address)
    page = visitor.page
    fill = unfilled(page, address)
    page.fill("#message textarea", "typed early")
    fill.continue_()
    expect(page.locator("#teach-says")).to_be_visible()
    page.wait_for_function("sessionStorage.getItem('draft') === 'typed early'")
    page.reload()
    expect(page.locator("#message textarea")).to_have_value("typed early")
    page.context.close()


@pytest.mark.parametrize("sends", ["Enter", "#send"])
def test_a_message_sent_before_the_page_is_filled_waits_for_it(browser: Browser, address: str, sends: str) -> None:
    """It began a conversation of its own, and what filled the page then hid Stop and left Enter unanswered."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send("one")
    eventually(lambda: "one" in visitor.reply(), "no reply came")
    visitor.settle()
    fill = unfilled(page, page.url)
    page.fill("#message textarea", LONGER)
    page.press("#message textarea", "Enter") if sends == "Enter" else page.click(sends)
    page.wait_for_timeout(500)
    assert page.input_value("#message textarea") == LONGER
    fill.continue_()
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    expect(page.locator("#stop")).to_be_visible()
    assert page.locator("#chat .user.message").all_inner_texts() == ["one", LONGER]
    visitor.send("too early")
    visitor.told("A reply is still being written.")
    page.click("#stop")
    visitor.settle()
    assert visitor.errors == []
    page.context.close()
