"""A real Chromium for the browser tests."""

import contextlib
import time
from collections.abc import Callable, Iterator

from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_S = 40.0
LONGER = " ".join(f"word{number}" for number in range(400))
"""A message that the echo is long in answering."""


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """Start Chromium, with patience for a machine that does other work too."""
    expect.set_options(timeout=PATIENCE_S * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """One person's browser on one app: sees what the page shows, remembers what it asked for."""

    def __init__(self, browser: Browser, address: str, *, phone: bool = False, language: str = "en-US") -> None:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 800}
        self.address = address
        self.context: BrowserContext = browser.new_context(viewport=size, locale=language)  # type: ignore[arg-type]
        self.context.set_default_timeout(PATIENCE_S * 1000)
        self.page: Page = self.context.new_page()
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.streams: set[Request] = set()
        self.page.on("request", self._note)
        self.page.on("requestfinished", lambda request: self.streams.discard(request))
        self.page.on("requestfailed", lambda request: self.streams.discard(request))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def open(self, path: str = "/") -> Page:
        """Load the page and wait until it can be used: what fills it would undo what an event filled before."""
        self.page.goto(self.address + path)
        expect(self.page.locator("#message textarea")).to_be_visible()
        expect(self.page.locator("#teach-says")).to_be_visible()
        self.page.wait_for_load_state("networkidle")
        return self.page

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.page.fill("#message textarea", text)
        self.page.press("#message textarea", "Enter")

    def reply(self) -> str:
        """The text of the last reply on screen."""
        replies = self.page.locator("#chat .bot.message")
        return replies.last.inner_text() if replies.count() else ""

    def settle(self) -> None:
        """Wait until nothing is being written any more and no stream is open, of which the page would log the end."""
        expect(self.page.locator("#stop")).to_be_hidden()
        expect(self.page.locator("#retry")).to_be_visible()
        eventually(self._is_quiet, "a stream stayed open")

    def _note(self, request: Request) -> None:
        self.requested.append(request.url)
        if "/queue/data" in request.url:
            self.streams.add(request)

    def _is_quiet(self) -> bool:
        self.page.wait_for_timeout(1)  # in which the browser tells what has ended
        return not self.streams

    def told(self, sentence: str, place: str = "#notice") -> None:
        """Wait for a sentence in a status line."""
        expect(self.page.locator(place)).to_contain_text(sentence)

    def strangers(self) -> list[str]:
        """Requests that left the origin."""
        own = (self.address, "data:", "blob:")
        return [url for url in self.requested if not url.startswith(own)]


def eventually(check: Callable[[], bool], why: str) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)
