"""Persons in a real browser: what a member is shown, how teaching is turned off, and whose a draft is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app_process import running_app
from tests.browser_support import Visitor, eventually
from tests.door_support import PASSWORD
from tests.new_store import open_in

pytestmark = pytest.mark.browser


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    """An app with an operator and two members, all of whom have said whether their chats may teach."""
    store = open_in(home / "nightschool.db")
    store.consent.set_person(store.accounts.add("olga", PASSWORD, "operator").id, "off")
    for name in ("ada", "ben"):
        store.consent.set_person(store.accounts.add(name, PASSWORD).id, "off")
    store.close()
    with running_app(home) as (where, _):
        yield where


def log_in(page: Page, address: str, name: str) -> None:
    """Log in and wait for the chat."""
    page.goto(f"{address}/login")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.press("input[name=password]", "Enter")
    expect(page.locator("#account")).to_contain_text(name)
    page.wait_for_load_state("networkidle")


def test_one_tab_two_persons_and_neither_finds_what_the_other_wrote(browser: Browser, address: str) -> None:
    """A message that was typed and not sent came back to whoever logged in next."""
    visitor = Visitor(browser, address)
    page = visitor.page
    log_in(page, address, "ada")
    expect(page.get_by_role("tab", name="Compare")).to_be_visible()
    expect(page.get_by_role("tab", name="Operate")).to_have_count(0)
    visitor.send("the first of ada")
    eventually(lambda: "the first of ada" in visitor.reply(), "no reply came")
    visitor.settle()
    page.fill("#message textarea", "a secret of ada")
    visitor.open()
    expect(page.locator("#message textarea")).to_have_value("a secret of ada")
    page.locator("#account").get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{address}/login")
    log_in(page, address, "ben")
    assert page.input_value("#message textarea") == ""
    assert "of ada" not in page.content()
    assert page.evaluate("sessionStorage.getItem('draft')") in (None, "")
    page.locator("#account").get_by_role("link", name="Teaching").click()
    expect(page).to_have_url(f"{address}/consent")
    assert visitor.errors == []
    assert visitor.strangers() == []
    page.context.close()


def test_an_operator_has_the_operate_page(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    log_in(visitor.page, address, "olga")
    visitor.page.get_by_role("tab", name="Operate").click()
    expect(visitor.page.locator("#votes")).to_contain_text("Preference pairs")
    visitor.page.click("#refresh")
    assert visitor.errors == []
    visitor.page.context.close()


@pytest.mark.parametrize("phone", [False, True])
def test_the_owner_turns_teaching_off_in_general_and_on_for_one_conversation(
    browser: Browser, home: Path, phone: bool
) -> None:
    with running_app(home) as (where, _):
        visitor = Visitor(browser, where, phone=phone)
        page = visitor.open()
        store = open_in(home / "nightschool.db")
        person = store.people.owner().id
        expect(page.locator("#teach-says")).to_have_text("Your chats and votes teach the assistant at night.")
        expect(page.locator("#account")).to_be_hidden()
        expect(page.locator("#teach-here")).to_be_hidden()
        page.click("#teach-off")
        expect(page.locator("#teach-says")).to_have_text("Your chats and votes teach the assistant nothing.")
        assert store.consent.of_person(person) == "off"
        visitor.send("hello")
        visitor.settle()
        (conversation,) = store.conversations.list(person)
        page.locator("#teach-here").get_by_text("This chat may teach").click()
        visitor.told("may teach the assistant")
        assert store.consent.teaches(conversation.id)
        visitor.open()
        expect(page.get_by_role("radio", name="This chat may teach")).to_be_checked()
        says = "Your chats and votes teach the assistant nothing. You can change that at the bottom of the Chat page."
        for tab in ("Compare", "Rank"):
            page.get_by_role("tab", name=tab).click()
            expect(page.locator(f"#teach-{tab.lower()}")).to_have_text(says)
        page.get_by_role("tab", name="Chat").click()
        page.click("#teach-on")
        visitor.told("From the next night on")
        assert store.consent.of_person(person) == "on"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert visitor.errors == []
        store.close()
        page.context.close()


def test_tabbing_through_the_page_opens_nothing_and_chooses_nothing(browser: Browser, home: Path) -> None:
    """The menu for one conversation stayed open over Send once the keyboard had passed, and Enter chose from it."""
    with running_app(home) as (where, _):
        visitor = Visitor(browser, where)
        page = visitor.open()
        visitor.send("hello")
        visitor.settle()
        store = open_in(home / "nightschool.db")
        (conversation,) = store.conversations.list(store.people.owner().id)
        page.focus("#message textarea")
        passed = set()
        for _ in range(8):
            page.keyboard.press("Tab")
            passed.add(page.evaluate("document.activeElement.closest('[id]:not(input)')?.id ?? ''"))
            expect(page.get_by_role("option")).to_have_count(0)
        assert "teach-here" in passed
        page.focus("#teach-here [value=on]")
        page.keyboard.press("Enter")
        page.wait_for_timeout(300)
        assert store.consent.of_conversation(conversation.id, store.people.owner().id) is None
        page.keyboard.press("Space")
        visitor.told("may teach the assistant")
        assert store.consent.of_conversation(conversation.id, store.people.owner().id) == "on"
        assert visitor.errors == []
        store.close()
        page.context.close()
