"""Four answers put in order in a real browser: by clicks, by keys, changed, taken back, found again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from feedback_store import Store
from tests.browser_support import Visitor
from tests.new_store import open_in

pytestmark = pytest.mark.browser
LONG = " ".join(f"word{number}" for number in range(60))


@pytest.fixture
def store(home: Path, address: str) -> Iterator[Store]:
    opened = open_in(home / "nightschool.db")
    yield opened
    opened.close()


def ask(visitor: Visitor, text: str) -> Page:
    page = visitor.open()
    page.get_by_role("tab", name="Rank").click()
    page.fill("#rank-message textarea", text)
    page.press("#rank-message textarea", "Enter")
    return page


def place(page: Page, letter: str, number: int) -> None:
    page.locator(f"#place-{letter} label").nth(number - 1).click()


def expect_places(page: Page, places: str) -> None:
    for letter, number in zip("ABCD", places, strict=True):
        expect(page.locator(f"#place-{letter} label.selected")).to_have_text(number)


def stored(store: Store) -> tuple[list[int], bool, bool]:
    """The ranks of the only ranking, whether none is good, and whether it was taken back."""
    person = store.people.owner().id
    (talk,) = store.conversations.list(person, kind="rank")
    ranking = store.votes.get_ranking(store.conversations.thread(talk.id, person)[0].id, person)
    assert ranking is not None
    return list(ranking.ranks.values()), ranking.none_is_good, ranking.retracted


def test_four_answers_are_ranked_changed_taken_back_and_found_again(
    browser: Browser, address: str, store: Store
) -> None:
    visitor = Visitor(browser, address)
    page = ask(visitor, LONG)
    expect(page.locator("#reply-D")).to_contain_text("word1")
    expect(page.locator("#rank-save")).to_be_disabled()
    expect(page.locator("#rank-save")).to_be_enabled()
    expect(page.locator("#rank-message textarea")).to_have_value("")
    for letter in "ABCD":
        expect(page.locator(f"#reply-{letter}")).not_to_contain_text("▍")
    texts = [page.locator(f"#reply-{letter}").inner_text() for letter in "ABCD"]
    place(page, "A", 2)
    page.click("#rank-save")
    visitor.told("Give every answer a place first", "#rank-notice")
    expect(page.locator("#rank-notice")).to_be_in_viewport(ratio=1)
    expect(page.locator("#place-A label.selected")).to_have_text("2")
    for letter, number in zip("BCD", (1, 3, 3), strict=True):
        place(page, letter, number)
    assert page.locator("#revealed-A").inner_text().strip() == ""
    page.click("#rank-save")
    visitor.told("Your order is saved", "#rank-notice")
    expect(page.locator("#revealed-D")).to_contain_text("Base model")
    assert stored(store) == ([2, 1, 3, 3], False, False)
    place(page, "D", 4)
    page.get_by_label("None of them is good enough").check()
    page.fill("#rank-message textarea", "my next prompt")
    with page.expect_response("**/run/predict*"):
        page.click("#rank-save")
    assert page.input_value("#rank-message textarea") == "my next prompt"
    visitor.open()
    page.get_by_role("tab", name="Rank").click()
    expect_places(page, "2134")
    expect(page.get_by_label("None of them is good enough")).to_be_checked()
    assert [page.locator(f"#reply-{letter}").inner_text() for letter in "ABCD"] == texts
    assert stored(store) == ([2, 1, 3, 4], True, False)
    page.click("#rank-take-back")
    visitor.told("Your order is taken back", "#rank-notice")
    expect(page.locator("#tab-rank .places label.selected")).to_have_count(0)
    assert stored(store)[2]
    assert visitor.strangers() == []
    assert visitor.errors == []
    page.context.close()


def test_an_order_can_be_given_by_keys_alone_on_a_phone(browser: Browser, address: str, store: Store) -> None:
    visitor = Visitor(browser, address, phone=True)
    page = ask(visitor, "Which is best?")
    expect(page.locator("#rank-save")).to_be_enabled()
    lefts = {page.locator(f"#reply-{letter}").bounding_box()["x"] for letter in "ABCD"}  # type: ignore[index]
    assert len(lefts) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#place-A input").first.focus()
    for number in range(16):
        if number % 4 == number // 4:
            page.keyboard.press("Space")
        page.keyboard.press("Tab")
    expect_places(page, "1234")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    visitor.told("Your order is saved", "#rank-notice")
    expect(page.locator("#rank-notice")).to_be_in_viewport(ratio=1)
    assert stored(store) == ([1, 2, 3, 4], True, False)
    page.context.close()


def test_a_stopped_round_comes_back_to_be_asked_again_and_an_old_one_is_reopened(
    browser: Browser, address: str, store: Store
) -> None:
    visitor = Visitor(browser, address)
    page = ask(visitor, "the first of two")
    expect(page.locator("#rank-save")).to_be_enabled()
    page.fill("#rank-message textarea", LONG)
    page.click("#rank-ask")
    expect(page.locator("#reply-A")).to_contain_text("word1")
    page.click("#rank-stop")
    visitor.told("no proper end", "#rank-notice")
    expect(page.locator("#placing")).to_be_hidden()
    visitor.open()
    page.get_by_role("tab", name="Rank").click()
    visitor.told("were stopped before all had ended", "#rank-notice")
    expect(page.locator("#rank-message textarea")).to_have_value(LONG)
    page.locator("#past-rankings label").click()
    expect(page.locator("#reply-A")).to_contain_text("the first of two")
    expect(page.locator("#rank-message textarea")).to_have_value(LONG)
    for letter in "ABCD":
        place(page, letter, 1)
    page.click("#rank-save")
    expect(page.locator("#rank-next")).to_be_visible()
    page.click("#rank-next")
    expect(page.locator("#reply-A")).to_be_hidden()
    assert store.votes.counts()["rankings"] == 1
    page.context.close()
