"""What may be asked for at all, and by whom: an allow-list, recorded from a browser that used every page.

Beyond what was recorded: what the front end asks when the connection was lost (`config`, `app_id`), and its held and
cancelled events. The framework brings four times as many routes (files, uploads, proxies, its own tools) and more with
each release; what is not listed here is not there.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Audience = Literal["public", "person", "operator"]
"""Who may ask: anybody, whoever is logged in, operators."""
Kind = Literal["page", "form", "static", "api", "plot", "stream", "event", "cancel", "v1"]
"""`page`: nobody is led to the login; `event` and `cancel`: JSON that is read and checked; `form`: read as a form;
`v1`: for other programs, which bring an API token."""
HASH: Final = r"[0-9A-Za-z_-]{1,64}"
_FILE: Final = r"(?:[\w@+~-][\w@+~.-]*/)*[\w@+~-][\w@+~.-]*"
_GRADIO: Final = r"(?:/ko)?"
_API: Final = _GRADIO + "/gradio_api"


@dataclass(frozen=True)
class Rule:
    """One way in."""

    methods: tuple[str, ...]
    path: re.Pattern[str]
    audience: Audience
    kind: Kind


def _rule(methods: str, path: str, audience: Audience, kind: Kind) -> Rule:
    return Rule(tuple(methods.split()), re.compile(path), audience, kind)


ALLOWED: Final = (
    _rule("GET", "/healthz|/readyz", "public", "static"),
    _rule("GET", "/metrics", "operator", "v1"),
    _rule("GET", "/v1/models", "person", "v1"),
    _rule("POST", "/v1/chat/completions|/v1/feedback", "person", "v1"),
    _rule("GET POST", "/login", "public", "form"),
    _rule("POST", "/logout", "public", "form"),
    _rule("GET POST", "/password|/consent", "person", "form"),
    _rule("GET", r"/plots/[0-9A-Za-z_-]{1,64}/[0-9A-Za-z_.-]{1,80}", "operator", "plot"),
    _rule("GET HEAD", "/|/ko/?", "person", "page"),
    _rule("GET", rf"{_GRADIO}/(?:assets|static)/{_FILE}", "public", "static"),
    _rule("GET", rf"{_GRADIO}/(?:theme\.css|favicon\.ico)", "public", "static"),
    _rule("GET", rf"{_GRADIO}/config|{_API}/app_id", "person", "api"),
    _rule("POST", rf"{_API}/(?:queue/join|run/predict)", "person", "event"),
    _rule("GET", rf"{_API}/queue/data", "person", "stream"),
    _rule("GET", rf"{_API}/heartbeat/(?P<hash>{HASH})", "person", "stream"),
    _rule("POST", rf"{_API}/cancel", "person", "cancel"),
)


def find_rule(method: str, path: str) -> Rule | None:
    """Return the rule that lets this request in.

    Raises:
        WrongMethod: the path is there for other methods only.
    """
    known = [rule for rule in ALLOWED if rule.path.fullmatch(path)]
    for rule in known:
        if method in rule.methods:
            return rule
    if known:
        raise WrongMethod(tuple(sorted({method for rule in known for method in rule.methods})))
    return None


class WrongMethod(Exception):
    """The path is there, but not for this method; `allowed` are."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = allowed


def is_closed(path: str) -> bool:
    """Whether a path is there for no method at all."""
    return not any(rule.path.fullmatch(path) for rule in ALLOWED)


def mount_of(path: str) -> str:
    """Return the page that a path belongs to: `/ko` or `/`."""
    return "/ko" if path == "/ko" or path.startswith("/ko/") else "/"
