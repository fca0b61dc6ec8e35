"""What a page says when the guard refuses what it sends, in a real browser: the sentence, and nothing looks saved."""

import pytest
from httpx import Client
from playwright.sync_api import Browser, Page, expect

from tests.test_ui_hostile_browser import enter, keep
from tests.ui_support import World
from ui.login_texts import ENGLISH_DOOR, KOREAN_DOOR, LoginTexts

pytestmark = pytest.mark.browser
VOTES = ("#chat [aria-label=Dislike]", "#vote-down", "#vote-save", "#vote-retract")


def refused(page: Page, sentence: str) -> None:
    """Wait for the sentence, and look that nothing else is said."""
    expect(page.locator("#refused")).to_have_text(sentence)
    expect(page.locator("#refused")).to_be_visible()
    for said in page.locator(".notice, #chat .message-buttons-left, [data-testid=status-tracker]").all():
        expect(said).to_be_hidden()


@pytest.mark.parametrize(("path", "texts"), [("/", ENGLISH_DOOR), ("/ko/", KOREAN_DOOR)], ids=["en", "ko"])
def test_a_vote_after_the_session_ended_elsewhere_is_refused_in_words(
    app: tuple[World, Client], browser: Browser, path: str, texts: LoginTexts
) -> None:
    """After a logout in another tab a vote left "Your vote is saved." on screen, beside a sign without words."""
    world = app[0]
    ada = world.store.people.get("ada")
    conversation = keep(world, ada.id, ["hello"])
    visitor = enter(app, browser, "ada").visitor
    page = visitor.open(f"{path}?c={conversation}")
    page.click("#vote-up")
    expect(page.locator("#notice")).to_be_visible()
    expect(page.locator("#refused")).to_be_hidden()
    world.store.accounts.disable("ada")
    for place in VOTES:
        page.click(place)
        refused(page, texts.refusals["log_in"])
    reply = world.store.conversations.thread(conversation, ada.id)[-1].id
    vote = world.store.votes.get(reply, ada.id)
    assert vote and vote.value == 1
    page.context.close()


def test_a_demoted_operators_clicks_are_refused_in_words(app: tuple[World, Client], browser: Browser) -> None:
    """Refresh and Retrain did nothing and said nothing."""
    world = app[0]
    world.store.accounts.set_role("ada", "operator")
    visitor = enter(app, browser, "ada").visitor
    page = visitor.open()
    page.get_by_role("tab", name="Operate").click()
    expect(page.locator("#votes")).to_contain_text("Preference pairs")
    world.store.accounts.set_role("ada", "member")
    for place in ("#refresh", "#retrain", "#promote", "#roll-back"):
        page.click(place)
        refused(page, ENGLISH_DOOR.refusals["operators"])
    page.get_by_role("tab", name="Chat").click()
    page.click("#new-conversation")
    expect(page.locator("#refused")).to_be_hidden()
    page.context.close()


def test_half_a_character_in_a_comment_is_refused_in_words(app: tuple[World, Client], browser: Browser) -> None:
    """It was stored as another character and reported as saved."""
    world = app[0]
    ada = world.store.people.get("ada")
    conversation = keep(world, ada.id, ["hello"])
    page = enter(app, browser, "ada").visitor.open(f"/?c={conversation}")
    page.click("#vote-up")
    expect(page.locator("#vote-comment")).to_be_visible()
    page.fill("#vote-comment textarea", "whole")
    with page.expect_response("**/run/predict*"):
        page.click("#vote-save")
    reply = world.store.conversations.thread(conversation, ada.id)[-1].id
    page.locator("#vote-comment textarea").evaluate(
        "(box) => { box.value = 'a\\ud800b'; box.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.click("#vote-save")
    refused(page, ENGLISH_DOOR.refusals["half"])
    vote = world.store.votes.get(reply, ada.id)
    assert vote and vote.comment == "whole"
    page.fill("#vote-comment textarea", "mended")
    page.click("#vote-save")
    expect(page.locator("#notice")).to_contain_text("Your vote is saved")
    expect(page.locator("#refused")).to_be_hidden()
    page.context.close()
