"""What stands before every request: an allow-list, the door, and what a page may send and load.

In this order: the app's own name, a route that is listed, a page of our own, somebody who may, not too much at once,
and a body that this app's pages could have sent. Pure ASGI, so that a dropped connection still reaches the stream
behind it. Each refusal is one sentence. Does not cover connections that send no request: that is a proxy's work.
"""

import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assistant.settings import DoorSettings
from feedback_store.errors import StoreError
from feedback_store.records import Person
from ui.api_wire import error_body
from ui.bodies import Events, Gone, Refusal, check_cancel, check_event, is_page_hash, read_body, replayed
from ui.door import Door, Visit, cookies
from ui.hosts import Hosts
from ui.limits import Turnstile, Window, address_key
from ui.login_texts import DOOR_TEXTS
from ui.routes import Rule, WrongMethod, find_rule, is_closed, mount_of
from ui.texts import LANGUAGES, preferred_language

__all__ = ["Guard", "PageOwners", "is_closed", "language_of"]

# The page is Gradio's, which needs inline script and style, and evaluates the scripts of our events. Handlers in
# markup, which is what a model could write, never run; nothing may come from, or go, elsewhere. Some of its icons and
# the letters of formulas are data.
CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; script-src-attr 'none'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    # not no-referrer: with it a browser sends the login form with the origin of nobody
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# What a proxy says about a request has been taken in before this; the framework would believe anybody's.
_FORWARDED: Final = (b"x-forwarded-", b"forwarded", b"x-gradio-server", b"x-real-ip")
PAGES_PER_PERSON: Final = 500


class PageOwners:
    """Whose page is whose: the name that a page gives itself belongs to the person who used it first."""

    def __init__(self, per_person: int = PAGES_PER_PERSON) -> None:
        self._per_person = per_person
        self._owners: dict[str, int] = {}
        self._pages: dict[int, OrderedDict[str, None]] = {}

    def claim(self, page: str, person_id: int) -> bool:
        """Say whether a page is this person's; one that nobody used before is from now on.

        Of one person's pages the one unused for longest is forgotten, never anybody else's.
        """
        if self._owners.setdefault(page, person_id) != person_id:
            return False
        mine = self._pages.setdefault(person_id, OrderedDict())
        mine[page] = None
        mine.move_to_end(page)
        if len(mine) > self._per_person:
            oldest, _ = mine.popitem(last=False)
            del self._owners[oldest]
        return True


class Guard:
    """Turns away what this app does not answer, and tells it who is asking."""

    def __init__(
        self, app: ASGIApp, door: Door, hosts: Hosts, settings: DoorSettings, events: Mapping[str, Events]
    ) -> None:
        """Stand before an app.

        Args:
            events: of each page, by the path it is mounted at.
        """
        self._app = app
        self._door = door
        self._hosts = hosts
        self._events = events
        self._owners = PageOwners()
        self._often = Window(settings.events_per_minute)
        self._inside = Turnstile(settings.requests_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        send = _hardened(send)
        try:
            await self._serve(scope, receive, send)
        except Refusal as refusal:
            await _answer(refusal, scope)(scope, receive, send)
        except Gone:
            return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        proxied = any(name.startswith(_FORWARDED) for name, _ in scope["headers"])
        scope = self._arrived(scope)
        headers = Headers(scope=scope)
        server = scope.get("server")
        if not self._hosts.knows(headers.get("host", ""), server[0] if server else None):
            raise Refusal(400, "host")
        rule = _rule(scope)
        if scope["method"] not in ("GET", "HEAD") and self._hosts.is_foreign(headers, scope["scheme"]):
            raise Refusal(403, "foreign")
        redirect = _to_language(scope, headers) if rule.kind == "page" else None
        if redirect:
            return await redirect(scope, receive, send)
        visit = Visit() if rule.kind == "static" else await self._visit(rule, headers, proxied)
        with self._room(visit, scope):
            response = _admit(rule, visit)
            if response:
                return await response(scope, receive, send)
            scope, receive = await self._checked(rule, visit, scope, receive)
            scope["state"] = {**scope.get("state", {}), "person": visit.person, "visit": visit}
            await self._app(scope, receive, _fitting(rule, send))

    def _arrived(self, scope: Scope) -> Scope:
        """Return the request without what a proxy said; under the public name it came by the public scheme."""
        kept = [(name, value) for name, value in scope["headers"] if not name.startswith(_FORWARDED)]
        scope = {**scope, "headers": kept}
        public = self._hosts.public_scheme_of(Headers(raw=kept).get("host", ""))
        return {**scope, "scheme": public} if public else scope

    async def _visit(self, rule: Rule, headers: Headers, proxied: bool) -> Visit:
        try:
            visit = await (self._door.visit_of_bearer(headers) if rule.kind == "v1" else self._door.visit(headers))
        except StoreError:
            raise Refusal(503, "store") from None
        if visit.is_local_owner and proxied:  # somebody elsewhere would be the owner
            raise Refusal(403, "proxied")
        return visit

    @contextlib.contextmanager
    def _room(self, visit: Visit, scope: Scope) -> Iterator[None]:
        """Hold a place for one request of whoever asks."""
        if visit.is_local_owner:
            yield
            return
        key = visit.person.id if visit.person else address_of(scope)
        if not self._inside.enter(key):
            raise Refusal(429, "crowded", {"Retry-After": "10"})
        try:
            yield
        finally:
            self._inside.leave(key)

    async def _checked(self, rule: Rule, visit: Visit, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Read and check what the request brings; returns it with the body to pass on."""
        headers = Headers(scope=scope)
        person = visit.person
        if rule.kind in ("event", "cancel", "v1"):
            assert person, "admitted"
            if not visit.is_local_owner and not self._often.take(person.id):
                raise Refusal(429, "too_often", {"Retry-After": "60"})
        if scope["method"] == "POST":
            body = await read_body(headers, receive)
            if rule.kind == "event":
                assert person, "admitted"
                body = self._check_event(body, headers, scope["path"], person)
            elif rule.kind == "cancel":
                page, body = check_cancel(body, headers)
                self._claim(page, person)
            return replayed(scope, body, receive)
        if rule.kind == "stream":
            self._claim(_page_of_stream(rule, scope), person)
        return dict(scope), receive

    def _check_event(self, body: bytes, headers: Headers, path: str, person: Person) -> bytes:
        event, page, kept = check_event(body, headers, self._events[mount_of(path)])
        if event.queued != path.endswith("/queue/join"):
            raise Refusal(404, "unknown_event")
        if event.operators_only and person.role != "operator":
            raise Refusal(403, "operators")
        self._claim(page, person)
        return kept

    def _claim(self, page: str, person: Person | None) -> None:
        if person is None or not self._owners.claim(page, person.id):
            raise Refusal(403, "not_yours")


def address_of(scope: Scope) -> str:
    """Return what the address of whoever asks is counted under."""
    client = scope.get("client")
    return address_key(client[0] if client else "")


def language_of(headers: Mapping[str, str]) -> str:
    """Return the language that a reader chose, else the one that their browser asks for."""
    chosen = cookies(headers).get("lang", "")
    return chosen if chosen in LANGUAGES else preferred_language(headers.get("accept-language", ""))


def _rule(scope: Scope) -> Rule:
    try:
        rule = find_rule(scope["method"], scope["path"])
    except WrongMethod as error:
        raise Refusal(405, "method", {"Allow": ", ".join(error.allowed)}) from None
    if rule is None:
        raise Refusal(404, "not_found")
    return rule


def _admit(rule: Rule, visit: Visit) -> Response | None:
    """Return how to log in, where there is a page that can be led there; None for whoever may pass."""
    if rule.audience == "public":
        return None
    if visit.person is None:
        if rule.kind in ("page", "form"):
            return RedirectResponse("/login", 303)
        if rule.kind == "v1":
            raise Refusal(401, "bad_token", {"WWW-Authenticate": "Bearer"})
        raise Refusal(401, "log_in")
    if rule.audience == "operator" and visit.person.role != "operator":
        raise Refusal(403, "operators")
    return None


def _page_of_stream(rule: Rule, scope: Scope) -> str:
    found = rule.path.fullmatch(scope["path"])
    page = found.groupdict().get("hash") if found else None
    if page is None:
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])
        page = asked[0] if len(asked) == 1 else ""
    if not is_page_hash(page):
        raise Refusal(422, "malformed")
    return page


def _to_language(scope: Scope, headers: Headers) -> RedirectResponse | None:
    """Send a reader of Korean from / to /ko/; `?lang=` chooses and is remembered."""
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    if path == "/ko":
        return RedirectResponse("/ko/", 303)
    if path != "/" or scope["method"] != "GET":
        return None
    chosen = parse_qs(query).get("lang", [""])[0]
    if chosen in LANGUAGES:
        response = RedirectResponse("/ko/" if chosen == "ko" else "/", 303)
        remember_language(response, chosen)
        return response
    return RedirectResponse(f"/ko/?{query}" if query else "/ko/", 303) if language_of(headers) == "ko" else None


def remember_language(response: Response, language: str) -> None:
    """Keep what a reader chose for a year."""
    response.set_cookie("lang", language, max_age=365 * 86400, httponly=True, samesite="lax")


def _answer(refusal: Refusal, scope: Scope) -> Response:
    """Say the sentence the way whoever asked reads it: the framework's front end shows `detail` and `error`."""
    headers = Headers(scope=scope)
    if scope["path"].startswith("/v1/"):
        sentence = DOOR_TEXTS["en"].refusals[refusal.word]
        return JSONResponse(error_body(refusal.status, sentence, refusal.word), refusal.status, refusal.headers)
    if "/gradio_api/" not in scope["path"]:
        sentence = DOOR_TEXTS[language_of(headers)].refusals[refusal.word]
        return PlainTextResponse(sentence, refusal.status, refusal.headers)
    page = DOOR_TEXTS["ko" if mount_of(scope["path"]) == "/ko" else "en"]
    sentence = page.refusals[refusal.word]
    return JSONResponse({"detail": sentence, "error": sentence}, refusal.status, refusal.headers)


def _fitting(rule: Rule, send: Send) -> Send:
    """Return how an answer of this rule is sent on."""
    if rule.kind == "event":
        return _plain_errors(send)
    return _uncached(send) if rule.kind in ("page", "api", "v1") else send


def _uncached(send: Send) -> Send:
    """Keep a person's page out of the browser's store, where it would outlive their session."""

    async def send_uncached(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Cache-Control"] = "no-store"
        await send(message)

    return send_uncached


def _hardened(send: Send) -> Send:
    """Add the security headers where an answer has none of its own, and take away any that invites other origins."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
        await send(message)

    return send_with_headers


def _plain_errors(send: Send) -> Send:
    """Turn the framework's 500 for a value that a component refuses into the 400 that it is; our own errors stay."""
    held: list[Message] = []

    async def send_or_hold(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            held.append(message)
        elif held and message["type"] == "http.response.body":
            start = held.pop()
            with contextlib.suppress(ValueError, AttributeError):
                if json.loads(message.get("body", b"")).get("error"):
                    start["status"] = 400
            await send(start)
            await send(message)
        else:
            await send(message)

    return send_or_hold
