"""What is under way in one tab, seen from another one or after a reload, in a real browser."""

import pytest
from playwright.sync_api import Browser, expect

from tests.browser_support import LONGER, Visitor, eventually

pytestmark = pytest.mark.browser


def test_another_tab_follows_a_reply_to_its_end(browser: Browser, address: str) -> None:
    """It once showed a fragment with a cursor and a Stop button for good."""
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    leaver, watcher = visitor.context.new_page(), visitor.context.new_page()
    for tab in (leaver, watcher):
        tab.goto(page.url)
        expect(tab.locator("#stop")).to_be_visible()
    leaver.click("#new-conversation")
    expect(leaver.locator("#chat .bot.message")).to_have_count(0)
    expect(watcher.locator("#chat .bot.message")).to_contain_text("word399")
    expect(watcher.locator("#stop")).to_be_hidden()
    expect(watcher.locator("#vote-bar")).to_be_visible()
    expect(watcher.locator("#chat .bot.message")).not_to_contain_text("▍")
    visitor.settle()
    assert "word399" in visitor.reply()
    assert leaver.locator("#chat .bot.message").count() == 0
    page.context.close()


def test_stop_in_another_tab_stops_the_reply_in_both(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    watcher = visitor.context.new_page()
    watcher.goto(page.url)
    watcher.click("#stop")
    for tab in (page, watcher):
        expect(tab.locator("#chat .bot.message")).to_contain_text("Stopped here.")
        expect(tab.locator("#send")).to_be_visible()
        expect(tab.locator("#retry")).to_be_visible()
    page.context.close()


def test_a_reload_while_a_reply_is_written_shows_its_end(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    visitor.send(LONGER)
    eventually(lambda: "word1" in visitor.reply(), "the reply never began")
    page.reload()
    expect(page.locator("#chat .bot.message")).to_contain_text("Stopped here.")
    visitor.settle()
    page.context.close()


def test_a_comparison_that_a_reload_broke_off_can_be_asked_again(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    page.get_by_role("tab", name="Compare").click()
    page.fill("#compare-message textarea", LONGER)
    page.click("#compare-ask")
    expect(page.locator("#reply-left")).to_contain_text("word1")
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    visitor.told("was stopped before both answers", "#compare-notice")
    expect(page.locator("#compare-prompt")).to_contain_text("word399")
    expect(page.locator("#compare-message textarea")).to_have_value(LONGER)
    page.click("#compare-ask")
    expect(page.locator("#compare-notice")).to_be_hidden()
    expect(page.locator("#reply-left")).to_contain_text("word1")
    page.context.close()


def test_a_comparison_of_another_tab_can_be_answered_here_once_it_has_ended(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    page = visitor.open()
    page.get_by_role("tab", name="Compare").click()
    page.fill("#compare-message textarea", LONGER)
    page.click("#compare-ask")
    expect(page.locator("#reply-left")).to_contain_text("word1")
    other = visitor.context.new_page()
    other.goto(address)
    other.get_by_role("tab", name="Compare").click()
    expect(other.locator("#compare-notice")).to_contain_text("still being written")
    other.fill("#compare-message textarea", "my next prompt")
    expect(other.locator("#choose-left")).to_be_enabled()
    assert other.input_value("#compare-message textarea") == "my next prompt"
    other.click("#choose-left")
    expect(other.locator("#verdict")).to_contain_text("Left is better")
    page.context.close()
