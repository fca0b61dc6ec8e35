"""The door in a real browser: log in, answer, chat, log out; and what a model writes loads nothing and runs nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app_process import running_app
from tests.browser_support import Visitor
from tests.door_support import PASSWORD
from tests.new_store import open_in

pytestmark = pytest.mark.browser
HOSTILE = (
    "![a](http://evil.example/a.png) <img src=http://evil.example/b.png onerror='window.hit=1'> "
    "<script>window.hit=2</script> <iframe src=http://evil.example/c></iframe> [l](javascript:window.hit=3) "
    "<svg onload='window.hit=4'></svg> <style>@import url(http://evil.example/d.css)</style>"
)


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    store = open_in(home / "nightschool.db")
    store.consent.set_person(store.accounts.add("olga", PASSWORD, "operator").id, "off")
    store.accounts.add("ada", PASSWORD, "member")
    store.close()
    with running_app(home) as (where, _):
        yield where


def log_in(page: Page, address: str, name: str, password: str) -> None:
    """Go to the app, be led to the login, and fill it in."""
    page.goto(address)
    expect(page).to_have_url(f"{address}/login")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", password)
    page.press("input[name=password]", "Enter")


@pytest.mark.parametrize("phone", [False, True])
def test_a_member_logs_in_answers_chats_and_logs_out(browser: Browser, address: str, home: Path, phone: bool) -> None:
    visitor = Visitor(browser, address, phone=phone)
    page, refused = visitor.page, []
    log_in(page, address, "ada", "a wrong one")
    expect(page.locator(".said")).to_have_text("Name or password is wrong.")
    assert page.input_value("input[name=name]") == "ada"
    log_in(page, address, "ada", PASSWORD)
    expect(page).to_have_url(f"{address}/consent")
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    visitor.errors.clear()  # the browser logs the wrong login as one
    page.get_by_role("button", name="No, do not use them").click()
    expect(page.locator("#message textarea")).to_be_visible()
    visitor.send("hello")
    visitor.settle()
    page.goto(f"{address}/consent")
    expect(page.get_by_text("Your answer so far: no")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{address}/login")
    page.goto(address)
    expect(page).to_have_url(f"{address}/login")
    assert refused == [], "the allow-list lacks a route that the page needs"
    assert visitor.errors == []
    assert visitor.strangers() == []
    page.context.close()


def test_what_a_model_writes_neither_runs_nor_leaves_the_origin(browser: Browser, address: str) -> None:
    """The scripted engine says the message back, so the reply is hostile too."""
    visitor = Visitor(browser, address)
    log_in(visitor.page, address, "olga", PASSWORD)
    expect(visitor.page.locator("#message textarea")).to_be_visible()
    visitor.send(HOSTILE)
    visitor.settle()
    visitor.page.get_by_role("tab", name="Operate").click()
    visitor.page.wait_for_timeout(500)
    reached: list[str] = []
    visitor.page.route("http://evil.example/**", lambda route: (reached.append(route.request.url), route.abort())[1])
    visitor.open()
    assert visitor.page.evaluate("window.hit") is None
    assert reached == []
    # what was not blocked by the framework is blocked by the policy, and says so
    assert all("Content Security Policy" in error for error in visitor.errors), visitor.errors
    visitor.page.context.close()


def test_the_policy_alone_stops_what_the_framework_lets_through(browser: Browser, address: str) -> None:
    visitor = Visitor(browser, address)
    log_in(visitor.page, address, "olga", PASSWORD)
    expect(visitor.page.locator("#message textarea")).to_be_visible()
    reached: list[str] = []
    visitor.page.route("http://evil.example/**", lambda route: (reached.append(route.request.url), route.abort())[1])
    visitor.page.evaluate("(text) => { document.body.insertAdjacentHTML('beforeend', text); }", HOSTILE)
    sent = "fetch('http://evil.example/e').then(() => 'reached', () => 'blocked')"
    assert visitor.page.evaluate(sent) == "blocked"
    visitor.page.wait_for_timeout(500)
    assert visitor.page.evaluate("window.hit") is None
    assert reached == []
    visitor.page.context.close()
