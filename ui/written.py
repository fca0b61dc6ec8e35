"""What a model wrote, for a component that renders Markdown: its Markdown stays, its HTML is shown as text.

The component takes HTML in Markdown for HTML, and what it takes out of it leaves forms, buttons and styles in, which
can cover the page and act for whoever clicks. So nothing that a model wrote reaches it as a tag: outside of code each
`<` that could begin one becomes an entity, and code is put so that nobody can read it as anything else. Where this
reads a text otherwise than the component does, that is seen as an entity too many, never as a tag: inside of lines code
is entities itself, and a block's fence stands after an empty line, is longer than any in it, and nothing in the block
is indented less. Formulas are cut out first, as the component does. Diagrams are shown as the code that they are: the
component would put them into the page as they come.
"""

import html
import re
from typing import Final, NamedTuple

_MATH: Final = re.compile(r"\$\$[\s\S]+?\$\$")
_HELD: Final = re.compile("\0([0-9]+)\0")
_ITEM: Final = re.compile(r" *(?:[-*+]|[0-9]{1,9}[.)])(?: |$)")
_FENCE: Final = re.compile(r"( *(?:(?:[-*+]|[0-9]{1,9}[.)]) +)*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_LANGUAGE: Final = re.compile(r" *([A-Za-z0-9_+#.-]{1,30})")
_INLINE: Final = re.compile(
    r"\\[\\`<]|(?<!`)(?P<ticks>`+)(?!`)(?P<code>(?:(?!\n *\n).)+?)(?<!`)(?P=ticks)(?!`)|`{3,}|~{3,}|<(?=[A-Za-z/!?])",
    re.DOTALL,
)
_NEEDS_ENTITIES: Final = re.compile(r"<|`{3}|~{3}")
_MARKUP: Final = re.compile(r"[\\`*_~\[\]!|:@]|(?<=[wW])\.")
_INDENTED: Final = 4


class _Block(NamedTuple):
    """A block of code under way; without a fence it is one by its indentation."""

    indent: int
    fence: str
    language: str
    lines: list[str]

    def ends_at(self, line: str) -> bool:
        """Whether this line is the end of the block, or for an indented one the first behind it."""
        indent, bare = len(line) - len(line.lstrip(" ")), line.strip(" ")
        if not self.fence:
            return bool(bare) and indent < _INDENTED
        same = bare and not bare.strip(self.fence[0])
        return bool(same) and len(bare) >= len(self.fence) and indent < self.indent + _INDENTED

    def keep(self, line: str) -> None:
        """Take a line in, without the block's indentation."""
        indent = self.indent if self.fence else _INDENTED
        self.lines.append(line[:indent].lstrip(" ") + line[indent:])

    def shown(self) -> list[str]:
        """The block as nothing else can be read."""
        longest = max((len(run) for line in self.lines for run in re.findall("`+", line)), default=0)
        fence, margin = "`" * max(3, longest + 1), " " * (self.indent if self.fence else 0)
        return [margin + line for line in (fence + self.language, *self.lines, fence)]


def as_written(text: str) -> str:
    """What a model wrote, with its HTML as text; code that broke off is ended, so that what follows is outside of it.

    Source: CommonMark 0.31, sections 4.4, 4.5 and 6.1, https://spec.commonmark.org/0.31.2/
    """
    formulas: list[str] = []

    def hold(found: re.Match[str]) -> str:
        formulas.append(found[0].replace("<", "&lt;"))
        return f"\0{len(formulas) - 1}\0"

    # NUL is no character of any text; lines and tabs as the component counts them
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").expandtabs()
    written = "\n".join(_lines(_MATH.sub(hold, text).split("\n")))
    return _HELD.sub(lambda found: formulas[int(found[1])], written)


def _lines(lines: list[str]) -> list[str]:
    written: list[str] = []
    prose: list[str] = []
    block: _Block | None = None
    in_list = False
    for line in lines:
        if block and not block.ends_at(line):
            block.keep(line)
            continue
        if block:
            written += block.shown()
            fenced, block = bool(block.fence), None
            if fenced:
                continue
        if line.strip(" ") and not line.startswith(" "):
            in_list = False
        in_list = in_list or bool(_ITEM.match(line))
        block = _begun(line, prose, in_list)
        if block:
            written += [*_prose(prose), ""]  # nothing before it can take the block into itself
            prose = []
        else:
            prose.append(line)
    return [*written, *(block.shown() if block else _prose(prose))]


def _begun(line: str, prose: list[str], in_list: bool) -> _Block | None:
    """The block of code that begins with a line; what stands before its fence goes to the prose."""
    found = _FENCE.fullmatch(line)
    if found:
        before, language = found[1], _LANGUAGE.match(found[3])
        if before.strip(" "):
            prose.append(before + "&#8203;")
        # a diagram would become part of the page
        named = language[1] if language and language[1].lower() != "mermaid" else ""
        return _Block(len(before), found[2], named, [])
    apart = not in_list and not (prose and prose[-1].strip(" "))
    if apart and line.startswith(" " * _INDENTED) and line.strip(" "):
        block = _Block(0, "", "", [])
        block.keep(line)
        return block
    return None


def _prose(lines: list[str]) -> list[str]:
    return _INLINE.sub(_without_tags, "\n".join(lines)).split("\n") if lines else []


def _without_tags(found: re.Match[str]) -> str:
    whole, code = found[0], found["code"]
    if code is not None:
        return _code(code) if len(found["ticks"]) > 2 or _NEEDS_ENTITIES.search(code) else whole
    if whole in ("<", "\\<"):
        return "&lt;"
    return whole if whole.startswith("\\") else _entities(whole)


def _code(code: str) -> str:
    """Code inside of a line, in which nothing is Markdown either."""
    code = code.replace("\n", " ")
    if code.strip(" ") and code[0] == code[-1] == " ":
        code = code[1:-1]
    return f"<code>{_MARKUP.sub(lambda mark: _entities(mark[0]), html.escape(code, quote=False))}</code>"


def _entities(text: str) -> str:
    return "".join(f"&#{ord(character)};" for character in text)
