"""Hostile text in every place of the page, in a real browser: nothing runs, and nothing is asked of anybody else.

The app runs in this process, so that its scripted engine answers with what the test wants. What the policy blocks may
be tried; what is not blocked must not be.
"""

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from httpx import Client
from playwright.sync_api import Browser, Page, Request, Route, expect

from feedback_store.records import Origin
from tests.browser_support import Visitor
from tests.shared_data import hostile_strings, needs_data
from tests.ui_support import World
from ui.door import SESSION_COOKIE

pytestmark = pytest.mark.browser
HIT = "window.__xss=1"
ORIGIN = Origin(None, "fake", "script", "plain", "Be brief.", 0.7, 0.95, 64, 0)
BATCH = 100
"""As many conversations as the list shows."""


def payloads(evil: str) -> list[str]:
    """What a model could write to run a script or to tell another server something."""
    return [
        f"![a]({evil}/markdown.png)",
        f"[![a]({evil}/in-link.png)]({evil}/link)",
        f"![a][ref]\n\n[ref]: {evil}/reference.png",
        f"<img src={evil}/img.png onerror='{HIT}'>",
        f"<img srcset='{evil}/set.png 2x' src=x onerror='{HIT}'>",
        f"<script>{HIT}</script>",
        f"<script src={evil}/script.js></script>",
        f"<svg onload='{HIT}'><image href='{evil}/svg.png'/><use href='{evil}/use.svg#a'/></svg>",
        f"<svg><script>{HIT}</script><foreignObject><iframe src={evil}/foreign></iframe></foreignObject></svg>",
        f'<iframe src={evil}/frame></iframe><iframe srcdoc="<script>parent.__xss=1</script>"></iframe>',
        "<iframe src='javascript:parent.__xss=1'></iframe>",
        f"<object data={evil}/object></object><embed src={evil}/embed>",
        f"<video src={evil}/video poster={evil}/poster autoplay></video><audio src={evil}/audio autoplay></audio>",
        f"<link rel=stylesheet href={evil}/style.css><link rel=prefetch href={evil}/fetch>",
        f"<link rel=preconnect href={evil}><link rel=modulepreload href={evil}/module.js>",
        f"<style>@import url({evil}/import.css); body {{ background: url({evil}/background.png) }}</style>",
        f"<div style='background-image:url({evil}/inline.png); list-style: url({evil}/list.png)'>styled</div>",
        f"<base href={evil}/>",
        f"<meta http-equiv=refresh content='0;url={evil}/refresh'>",
        f"<form action={evil}/form><input name=a autofocus onfocus='{HIT}'><button>go</button></form>",
        f"<a href='javascript:{HIT}'>run</a> <a href='{evil}/a' ping='{evil}/ping'>ping</a>",
        f"[run](javascript:{HIT}) [run](JaVaScRiPt:{HIT}) [run](data:text/html,<script>{HIT}</script>)",
        f"<details open ontoggle='{HIT}'><summary>s</summary></details><body onload='{HIT}'>",
        f"<math><mtext><table><mglyph><style><img src=x onerror='{HIT}'></style></mglyph></table></mtext></math>",
        f'```mermaid\ngraph TD\nA["<img src={evil}/mermaid.png onerror={HIT}>"] --> B\nclick A "javascript:{HIT}"\n```',
        f"```html\n<script>{HIT}</script><img src={evil}/code.png>\n```",
        f"$\\href{{javascript:{HIT}}}{{x}}$ $$\\includegraphics{{{evil}/katex.png}} \\htmlData{{a=b}}{{x}}$$",
        f"\\(\\url{{javascript:{HIT}}}\\) <template><img src=x onerror='{HIT}'></template>",
        f"</pre></textarea></title></script><img src={evil}/break-out.png onerror='{HIT}'>",
        f"'\"><img src={evil}/attribute.png onerror='{HIT}'>",
        f"{evil}/bare www.evil.example/www",
    ]


class Listening(http.server.ThreadingHTTPServer):
    """Another server that hears whatever leaves the page."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        heard = self.heard

        class Hear(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.path)
                self.send_error(404)

            do_POST = do_HEAD = do_OPTIONS = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Hear)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Listening]:
    with Listening() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass
class Watched:
    """A page whose every request, window and dialog is seen."""

    visitor: Visitor
    tried: list[Request] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)

    @property
    def page(self) -> Page:
        return self.visitor.page

    def watch(self) -> None:
        """Begin to look."""
        own = (self.visitor.address, "data:", "blob:")

        def route(route: Route) -> None:
            if route.request.url.startswith(own):
                return route.continue_()
            self.sent.append(route.request.url)
            route.abort()

        context = self.visitor.context
        context.route("**/*", route)
        context.on("request", lambda request: self.tried.append(request))
        context.on("page", lambda page: self.surprises.append(f"window {page.url}"))
        self.page.on("dialog", lambda dialog: (self.surprises.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("websocket", lambda socket: self.surprises.append(f"websocket {socket.url}"))

    def check(self, elsewhere: Listening) -> None:
        """Look whether anything ran or left the origin."""
        assert self.page.evaluate("window.__xss") is None
        assert self.surprises == []
        assert self.sent == []
        assert elsewhere.heard == []
        unblocked = [
            request.url
            for request in self.tried
            if request.url in self.visitor.strangers() and request.failure != "csp"
        ]
        assert unblocked == []
        assert self.page.url.startswith(self.visitor.address)
        links = self.page.eval_on_selector_all("a[href]", "links => links.map(link => link.protocol)")
        assert set(links) <= {"http:", "https:", "mailto:", ":"}, "the last is no address at all"


def enter(app: tuple[World, Client], browser: Browser, name: str = "olga") -> Watched:
    """A watched page of somebody who is logged in."""
    world, client = app
    watched = Watched(Visitor(browser, str(client.base_url).rstrip("/")))
    token = world.store.sessions.new_session(world.store.people.get(name).id)
    watched.visitor.context.add_cookies(
        [{"name": SESSION_COOKIE, "value": token, "url": watched.visitor.address, "httpOnly": True}]
    )
    watched.watch()
    return watched


def keep(world: World, person: int, turns: Sequence[str]) -> str:
    """Store a conversation in which every text is asked and answered; returns its id."""
    talks = world.store.conversations
    conversation, parent = talks.start(person).id, None
    for text in turns:
        asked = talks.add_user_message(conversation, person, text, parent)
        reply = talks.begin_reply(asked.id, person, ORIGIN)
        talks.finish_reply(reply.id, text, "done", "stop", 1)
        parent = reply.id
    return conversation


def keep_comparison(world: World, person: int, prompt: str, left: str, right: str) -> str:
    """Store a round that waits for its choice; returns its id."""
    talks = world.store.conversations
    conversation = talks.start(person, kind="compare").id
    asked = talks.add_user_message(conversation, person, prompt)
    sides = []
    for text in (left, right):
        reply = talks.begin_reply(asked.id, person, ORIGIN)
        talks.finish_reply(reply.id, text, "done", "stop", 1)
        sides.append(reply.id)
    return world.store.votes.show_comparison(person, asked.id, *sides).id


def keep_ranking(world: World, person: int, prompt: str, texts: Sequence[str]) -> None:
    """Store a round of four answers that wait for their places."""
    talks = world.store.conversations
    asked = talks.add_user_message(talks.start(person, kind="rank").id, person, prompt)
    for text in texts:
        reply = talks.begin_reply(asked.id, person, ORIGIN)
        talks.finish_reply(reply.id, text, "done", "stop", 1)


def fill_page(world: World, person: int, texts: Sequence[str]) -> str:
    """Put texts wherever the chat, compare and rank pages show any; returns a conversation that holds all of them."""
    with world.store.connections.write():
        for text in texts:
            keep(world, person, [text])
            shown = keep_comparison(world, person, text, text, f"{text} again")
            if len(text) % 2:
                world.store.votes.choose(shown, person, "tie")
        half = len(texts) // 2
        keep_comparison(world, person, "\n\n".join(texts), "\n\n".join(texts[:half]), "\n\n".join(texts[half:]))
        for text in texts[:10]:
            keep_ranking(world, person, text, [text, f"{text} again", *texts[:2]])
        keep_ranking(world, person, "\n\n".join(texts), ["\n\n".join(texts[part::4]) for part in range(4)])
        return keep(world, person, texts)


@needs_data
@pytest.mark.timeout(180)
def test_no_hostile_string_runs_or_calls_in_chat_compare_and_titles(
    app: tuple[World, Client], browser: Browser, elsewhere: Listening
) -> None:
    world = app[0]
    person = world.store.people.get("olga").id
    watched = enter(app, browser)
    texts = [text for text in hostile_strings() if text.strip()]
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        conversation = fill_page(world, person, part)
        page = watched.visitor.open(f"/?c={conversation}")
        expect(page.locator("#chat .bot.message")).to_have_count(len(part))
        expect(page.locator("#conversations label")).to_have_count(BATCH)
        page.get_by_role("tab", name="Compare").click()
        expect(page.locator("#reply-right")).to_be_visible()
        watched.check(elsewhere)
        page.get_by_role("tab", name="Rank").click()
        expect(page.locator("#reply-A")).to_be_visible()
        watched.check(elsewhere)
    page.context.close()


def answer_with(world: World, texts: Sequence[str]) -> None:
    """Let the scripted engine answer each question with the text of its number."""
    world.engine.script = lambda request: texts[int(request.messages[-1]["content"].split()[-1])]
    world.engine.seconds_per_word = 0.005


@pytest.mark.timeout(180)
def test_what_a_model_writes_word_by_word_runs_nothing_and_calls_nobody(
    app: tuple[World, Client], browser: Browser, elsewhere: Listening
) -> None:
    """While it grows, half of it is other markup than the whole."""
    world = app[0]
    evil = f"http://127.0.0.1:{elsewhere.server_port}"
    texts = payloads(evil)
    batches = ["\n\n".join(texts[start::4]) for start in range(4)]
    answer_with(world, batches)
    watched = enter(app, browser)
    visitor, page = watched.visitor, watched.visitor.open()
    for number in range(len(batches)):
        visitor.send(f"say number {number}")
        expect(page.locator("#chat .bot.message")).to_have_count(number + 1)
        visitor.settle()
        watched.check(elsewhere)
    assert "styled" in page.locator("#chat").inner_text(), "the markup was shown as such"
    page.get_by_role("tab", name="Compare").click()
    for number in range(len(batches)):
        page.fill("#compare-message textarea", f"say number {number}")
        page.press("#compare-message textarea", "Enter")
        expect(page.locator("#choose-tie")).to_be_enabled()
        page.click("#choose-tie")
        expect(page.locator("#compare-next")).to_be_visible()
        watched.check(elsewhere)
        page.click("#compare-next")
    page.context.close()


@pytest.mark.timeout(180)
def test_each_payload_by_itself_in_every_place_of_every_page_runs_nothing_and_calls_nobody(
    app: tuple[World, Client], browser: Browser, elsewhere: Listening
) -> None:
    """In chats, titles, rounds, comments, better answers, a person's name, and what a night says of itself."""
    world = app[0]
    olga = world.store.people.get("olga")
    texts = payloads(f"http://127.0.0.1:{elsewhere.server_port}")
    conversation = fill_page(world, olga.id, texts)
    reply = world.store.conversations.thread(conversation, olga.id)[-1]
    world.store.votes.rate(reply.id, olga.id, -1, ["other"], " ".join(texts)[:2000])
    world.store.votes.rewrite(reply.id, olga.id, "\n\n".join(texts))
    tell_of_a_night(world, texts)
    watched = enter(app, browser)
    with world.store.connections.write() as db:  # no command takes such a name
        db.execute("UPDATE person SET name = ? WHERE id = ?", [f"<img src=x onerror='{HIT}'>", olga.id])
    for path in ("/", "/ko/"):
        page = watched.visitor.open(f"{path}?c={conversation}")
        expect(page.locator("#chat .bot.message")).to_have_count(len(texts))
        expect(page.locator("#account")).to_contain_text("onerror")
        expect(page.locator("#vote-comment textarea")).to_have_value(" ".join(texts)[:2000])
        page.click("#open-rewrite")
        expect(page.locator("#rewrite-text textarea")).to_have_value("\n\n".join(texts))
        for tab, shows in (("compare", "#unanswered"), ("rank", "#past-rankings"), ("operate", "#runs .run")):
            page.locator(f"#pages [role=tab][data-tab-id={tab}]").click()
            expect(page.locator(shows).first).to_be_visible()
            watched.check(elsewhere)
        page.eval_on_selector_all("#runs details", "nights => nights.forEach(night => { night.open = true; })")
        watched.check(elsewhere)
    page.context.close()


def tell_of_a_night(world: World, texts: Sequence[str]) -> None:
    """Write runs and reports that hold these texts."""
    for number, outcome in enumerate(("refused", "failed", "skipped")):
        run = f"run-{number}"
        world.store.registry.start_run(run)
        world.store.registry.finish_run(run, outcome, reasons=list(texts))
        folder = world.settings.runs_dir / run
        folder.mkdir(parents=True)
        rows = [
            {"check": text, "note": text, "live": text, "candidate": text, "limit": text, "passed": False}
            for text in texts
        ]
        (folder / "report.json").write_text(json.dumps({"gate": rows, "counts": {"usable": texts[0]}}))
