"""Replies in a real browser: their HTML is text wherever it is shown, and nothing of theirs acts or covers the page."""

import random

import pytest
from httpx import Client
from playwright.sync_api import Browser, Page, expect

from tests.browser_support import Visitor
from tests.test_ui_hostile_browser import enter, keep, keep_comparison
from tests.ui_support import World

pytestmark = pytest.mark.browser
TRAP = (
    '<form action="/consent" method="post"><input type="hidden" name="teach" value="on">'
    '<button style="position:fixed;top:0;left:0;width:100vw;height:100vh;z-index:99999">Go on</button></form>'
)
PIECES = (
    "<form action=/consent>", "<button style='position:fixed'>", "</code>", "<style>*{}</style>", "<svg><a>", "<input>",
    "`", "``", "```", "~~~", "\n", "\n\n", "\n    ", "\n  ", " ", "- ", "1. ", "> ", "| ", "|---|\n", "$$", "\\", "*",
    "**", "~~", "[", "](", ")", "]: ", "![", "#", "text", "<", "!--", "-->", "&lt;", "html", "mermaid\n", "\t", "<pre>",
    "<https://a.b/", ">", "www.a.b", "%%%LATEX_BLOCK_0%%%", "[^1]", "\u2028", "\x0c", "<code>", "=\n",
)  # fmt: skip
FOREIGN_JS = """(place) => {
  const own = 'P A EM STRONG DEL CODE PRE UL OL LI TABLE THEAD TBODY TR TH TD HR H1 H2 H3 H4 H5 H6 BLOCKQUOTE BR IMG';
  const found = [];
  for (const node of document.querySelectorAll(place + ' .md *')) {
    if (node.closest('.copy_code_button, .katex-display, .katex, .katex-error')) continue;
    const named = (node.className || '') + ' ' + (node.id || '') + ' ' + (node.getAttribute('style') || '');
    if (/^(DIV|BUTTON) (code_wrap|copy_code_button|latex-block)/.test(node.tagName + ' ' + named)) continue;
    if (node.tagName === 'SPAN' && (/token/.test(named) || !named.trim()) && !node.id) continue;
    if (node.tagName === 'INPUT' && node.type === 'checkbox' && node.disabled && !named.trim()) continue;
    if (node.matches('pre.typed') || (node.tagName === 'CODE' && /^language-\\S+ +$/.test(named))) continue;
    if (!own.split(' ').includes(node.tagName) || named.trim()) found.push(node.outerHTML.slice(0, 200));
  }
  return found;
}"""


def click_everywhere(page: Page, place: str) -> None:
    """Click where a reply stands, and where one that covers the page would."""
    page.locator(place).last.click()
    page.mouse.click(700, 300)
    page.mouse.click(20, 780)
    page.wait_for_timeout(300)


def test_a_reply_that_holds_a_form_over_the_whole_page_is_text_and_one_click_changes_nothing(
    app: tuple[World, Client], browser: Browser
) -> None:
    """A reply with a form for /consent and a button as large as the window changed what its reader had agreed to.

    The page's own parser took the HTML in its Markdown for HTML, and what it takes out of HTML leaves forms in.
    """
    world = app[0]
    ada = world.store.people.get("ada")
    conversation = keep(world, ada.id, [TRAP])
    keep_comparison(world, ada.id, "Which?", TRAP, f"As code: `{TRAP}`\n```html\n{TRAP}\n```")
    visitor: Visitor = enter(app, browser, "ada").visitor
    page = visitor.open(f"/?c={conversation}")
    reply = page.locator("#chat .bot.message")
    expect(reply).to_contain_text(TRAP)
    click_everywhere(page, "#chat .bot.message")
    page.get_by_role("tab", name="Compare").click()
    for side in ("#reply-left", "#reply-right"):
        expect(page.locator(side)).to_contain_text(TRAP)
    click_everywhere(page, "#reply-left")
    assert page.locator("#pages form").count() == 0
    assert page.evaluate(FOREIGN_JS, "#pages") == []
    assert page.url.startswith(f"{visitor.address}/?")
    assert world.store.people.get("ada").teach == "unanswered"
    page.context.close()


def test_while_it_is_written_a_reply_is_text_too_and_code_is_as_written(
    app: tuple[World, Client], browser: Browser
) -> None:
    world = app[0]
    code = "<!-- a page -->\n<b>\tbold &amp; `ticks`</b>\n\n    <i>deep</i>"
    world.engine.script = lambda request: f"Write `<b>` like this:\n\n```html\n{code}\n```\nand <u>not</u> {TRAP}"
    world.engine.seconds_per_word = 0.02
    visitor = enter(app, browser, "ada").visitor
    page = visitor.open()
    visitor.send("How do I write bold?")
    for _ in range(20):
        assert page.evaluate(FOREIGN_JS, "#chat") == []
        page.wait_for_timeout(50)
    visitor.settle()
    bot = page.locator("#chat .bot.message")
    assert bot.locator("pre code").inner_text().rstrip("\n") == code.expandtabs()
    assert bot.locator("p code").inner_text() == "<b>"
    expect(bot).to_contain_text(f"and <u>not</u> {TRAP}")
    assert page.evaluate(FOREIGN_JS, "#chat") == []
    page.context.close()


def test_no_formula_or_picture_leaves_its_reply(app: tuple[World, Client], browser: Browser) -> None:
    world = app[0]
    formulas = [
        "$$a<b$$", r"$$\rule{9000em}{9000em}$$", r"$$\raisebox{-60em}{\rule{90em}{50em}}$$",
        r"$$\hspace{-90em}\smash{\rule{200em}{90em}}$$", r"$$\htmlStyle{position:fixed}{x}$$",
        "![x](data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='9000' height='9000'/>)",
    ]  # fmt: skip
    ada = world.store.people.get("ada").id
    conversation = keep(world, ada, formulas)
    keep_comparison(world, ada, "Which?", "\n\n".join(formulas), "mine")
    page = enter(app, browser, "ada").visitor.open(f"/?c={conversation}")
    expect(page.locator("#chat .katex").first).to_be_visible()
    expect(page.locator("#chat .bot.message").first.locator("annotation")).to_have_text("a<b")
    assert page.evaluate(FOREIGN_JS, "#chat") == []
    on_top(page, "#message textarea", "#send", "#new-conversation", "#vote-up", "#vote-down")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#reply-left .katex").first).to_be_visible()
    on_top(page, "#compare-message textarea", "#compare-ask", "#reply-right p", "#choose-left", "#choose-tie")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.context.close()


def test_the_style_alone_keeps_what_would_cover_the_page_inside_of_its_reply(
    app: tuple[World, Client], browser: Browser
) -> None:
    world = app[0]
    ada = world.store.people.get("ada").id
    conversation = keep(world, ada, ["hello"])
    keep_comparison(world, ada, "Which?", "yours", "mine")
    page = enter(app, browser, "ada").visitor.open(f"/?c={conversation}")
    script = "(nodes, trap) => nodes.forEach((node) => node.insertAdjacentHTML('beforeend', trap))"
    page.eval_on_selector_all(".bot.message .md, .reply .md", script, TRAP)
    expect(page.locator("#chat .md button")).to_have_count(1)
    on_top(page, "#message textarea", "#send", "#new-conversation", "#vote-up", "#vote-down", "#chat .user.message")
    page.get_by_role("tab", name="Compare").click()
    page.eval_on_selector_all(".reply .md", script, TRAP)
    on_top(page, "#compare-message textarea", "#compare-ask", "#compare-prompt", "#choose-left", "#choose-tie")
    page.context.close()


def on_top(page: Page, *places: str) -> None:
    """Look that nothing lies over the middle of these."""
    script = """(node) => {
      node.scrollIntoView({block: 'center'});
      const box = node.getBoundingClientRect();
      return node.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
    }"""
    for place in places:
        assert page.locator(place).evaluate(script), place


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_reply_mixes_it_brings_no_element_of_its_own(
    app: tuple[World, Client], browser: Browser, seed: int
) -> None:
    world, draw = app[0], random.Random(seed)
    person = world.store.people.get("ada").id
    texts = ["".join(draw.choices(PIECES, k=draw.randint(3, 40))) for _ in range(150)]
    texts = [text for text in texts if text.strip()]
    conversation = keep(world, person, texts)
    half = len(texts) // 2
    keep_comparison(world, person, "Which?", "\n\n".join(texts[:half]), "\n".join(texts[half:]))
    page = enter(app, browser, "ada").visitor.open(f"/?c={conversation}")
    expect(page.locator("#chat .bot.message")).to_have_count(len(texts))
    page.wait_for_timeout(500)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#reply-right")).to_be_visible()
    page.wait_for_timeout(500)
    assert page.evaluate(FOREIGN_JS, "#pages") == []
    page.context.close()
