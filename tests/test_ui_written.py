"""What a model wrote keeps its Markdown and loses its tags; the browser's half is in test_ui_written_browser.py."""

import re

import pytest

from ui.written import as_written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("# *a* **b** `c` [d](https://e) a < b && c > d", "# *a* **b** `c` [d](https://e) a < b && c > d"),
        ("<form action=/consent>", "&lt;form action=/consent>"),
        ("a<b </b> <!-- x --> <?x <!DOCTYPE", "a&lt;b &lt;/b> &lt;!-- x --> &lt;?x &lt;!DOCTYPE"),
        (r"\<b> \\<b>", r"&lt;b> \\&lt;b>"),
        ("$$a<b$$ and `$$c<d$$`", "$$a&lt;b$$ and `$$c&lt;d$$`"),
        ("use `<br>` or ``a`<b``", "use <code>&lt;br&gt;</code> or <code>a&#96;&lt;b</code>"),
        ("an open ` <b> tick", "an open ` &lt;b> tick"),
        ("a ` tick\n\n<b> and ` another", "a ` tick\n\n&lt;b> and ` another"),
        ("> ```\n> <b>", "> &#96;&#96;&#96;\n> &lt;b>"),
    ],
)
def test_a_tag_becomes_text_and_markdown_stays(text: str, written: str) -> None:
    assert as_written(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("```html\n<form>\n```", "\n```html\n<form>\n```"),
        ("a\n```py\nx\n```\nend", "a\n\n```py\nx\n```\nend"),
        ("~~~~\n```\n~~~\n~~~~", "\n````\n```\n~~~\n````"),
        ("1. Do:\n   ```html\n<b>\n     <i>\n   ```\n2. go", "1. Do:\n\n   ```html\n   <b>\n     <i>\n   ```\n2. go"),
        ("```\n    ```\n<b>\n```\n<b>", "\n````\n    ```\n<b>\n````\n&lt;b>"),
        ("so:\n\n    <b>\n\n    <i>\nend <b>", "so:\n\n\n```\n<b>\n\n<i>\n```\nend &lt;b>"),
        ("- a\n\n    <b>", "- a\n\n    &lt;b>"),
        ("```mermaid\ngraph TD\n```", "\n```\ngraph TD\n```"),
        ("```x y=<b>\n```", "\n```x\n```"),
        ("a\0b\r\n```\r<b>", "ab\n\n```\n<b>\n```"),
    ],
)
def test_a_block_of_code_is_as_written_and_nothing_else(text: str, written: str) -> None:
    assert as_written(text) == written


@pytest.mark.parametrize(
    ("text", "closed"),
    [("```py\nx = 1", "\n```py\nx = 1\n```"), ("- ```\n  x", "- &#8203;\n\n  ```\n  x\n  ```")],
)
def test_a_note_stands_outside_of_code_that_broke_off(text: str, closed: str) -> None:
    assert as_written(text) == closed


def test_no_tag_is_left_outside_of_blocks_whatever_a_text_mixes() -> None:
    """Each of these once made the page's parser and a simpler reading of code disagree."""
    tricky = [
        "*a `` b* <form> ``", "~~a ` b~~ <form> `", "| ` | <form> ` |\n|---|---|", "[x ` y](u) <form> ` `",
        "``` `<form>` ```", "text\n    ```html\n    <form>\n    ```", "    ```\n<form>\n    ```",
        "$$ ```\n$$ <form>\n```", "```\n$$\n```\n<form> $$", "[a]: `\n<form>`", "&lt;form> <\n<form>",
    ]  # fmt: skip
    for text in tricky:
        fence = ""
        for line in as_written(text).split("\n"):
            opened = re.fullmatch(r" *(`{3,})[a-z]*", line)
            if opened and not fence:
                fence = opened[1]
            elif fence and line.strip() == fence:
                fence = ""
            elif not fence:
                assert not re.search(r"<(?!/?code>)[a-zA-Z/!?]", line), (text, line)


def test_a_long_text_is_read_in_time() -> None:
    for part in ("`", "`` ", "` ```` ", "<a ", "$$", "- ```\n", "\\`", "~~~x ` "):
        assert as_written(part * (20_000 // len(part)))
