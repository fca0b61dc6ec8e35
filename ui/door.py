"""Who is asking: the local owner, or whose session cookie or API token it is. Read from the database at each request.

While nobody has a password and only this machine can connect, everybody is the owner and there is no login. Knows
neither pages nor routes. What depends on it: the guard, which asks before anything else does, and `visitor`, by which
a handler learns for whom it works.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar

import anyio
import gradio as gr
from anyio.to_thread import run_sync
from starlette.requests import cookie_parser

from assistant.settings import DoorSettings
from feedback_store import Store
from feedback_store.accounts import MAX_PASSWORD_CHARS
from feedback_store.errors import BadInput
from feedback_store.records import Person
from feedback_store.sessions import API_TOKEN_PREFIX
from ui.limits import LoginLimits

SESSION_COOKIE: Final = "nightschool_session"
FORM_COOKIE: Final = "nightschool_form"
"""What the forms of somebody without a session are tied to."""
READERS: Final = 8
"""Look-ups at once: threads of their own number, so that busy handlers keep nobody at the door."""
HASHINGS: Final = 1
"""One at a time: each keeps a core busy, and two of two would hold up the replies being streamed."""
WAITING_HASHINGS: Final = 20
"""Beyond so many in the queue people are told to come back, rather than kept for seconds."""
Result = TypeVar("Result")
Reason = Literal["wrong_login", "too_many_logins", "busy_logins"]


class LoginRefused(Exception):
    """A name and password that were not accepted; the person who typed them sees why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class NobodyThere(Exception):
    """A handler was called for nobody; the guard was not in front of it."""


@dataclass(frozen=True)
class Visit:
    """Who one request is from."""

    person: Person | None = None
    token: str | None = None
    """The session's own, where there is one."""
    is_local_owner: bool = False
    """At the machine itself, with no accounts: held to no limits."""


class Door:
    """Lets people in and knows them again."""

    def __init__(self, store: Store, settings: DoorSettings, *, local: bool) -> None:
        """Keep the store and the limits.

        Args:
            local: only this machine can connect, and nothing says that a proxy stands before it.
        """
        self._store = store
        self._local = local
        self._readers = anyio.CapacityLimiter(READERS)
        self._hashers = anyio.CapacityLimiter(HASHINGS)
        self._limits = LoginLimits(settings.logins_per_account, settings.logins_per_address)

    async def visit(self, headers: Mapping[str, str]) -> Visit:
        """Say whose browser this is.

        Raises:
            StoreError: the database cannot be read.
        """
        token = cookies(headers).get(SESSION_COOKIE)
        return await run_sync(self._visit, token, limiter=self._readers)

    async def person_of(self, headers: Mapping[str, str]) -> Person | None:
        """Say whose browser this is, or None."""
        return (await self.visit(headers)).person

    async def visit_of_bearer(self, headers: Mapping[str, str]) -> Visit:
        """Say whose API token the Authorization header holds; the local owner needs none. Cookies do not count.

        Raises:
            StoreError: the database cannot be read.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.startswith(API_TOKEN_PREFIX):
            person = await run_sync(self._store.sessions.person_of_token, token, limiter=self._readers)
            if person:
                return Visit(person)
        return await run_sync(self._visit, None, limiter=self._readers)

    def _visit(self, token: str | None) -> Visit:
        if token:
            person = self._store.sessions.person_of_session(token)
            if person:
                return Visit(person, token)
        if self._local and not self._store.accounts.has_accounts():
            return Visit(self._store.people.owner(), is_local_owner=True)
        return Visit()

    async def log_in(self, name: str, password: str, address: str, old_token: str | None) -> tuple[Person, str]:
        """Check name and password; return who it is and the token of a session of their own.

        Args:
            address: that the try is counted under, of `limits.address_key`.
            old_token: what the browser brought; that session ends, so that nobody goes on in one planted there.

        Raises:
            LoginRefused: and for a name that nobody has after as long as for a wrong password.
        """
        person = await self._checked(name, password, address)
        try:
            return person, await run_sync(self._begin_session, person, old_token, limiter=self._readers)
        except BadInput:  # disabled since the password was checked
            raise LoginRefused("wrong_login") from None

    async def change_password(self, person: Person, current: str, new: str, address: str) -> str:
        """Change a person's own password; all their sessions end, and the token of a new one is returned.

        Raises:
            LoginRefused: the current password is wrong, or was tried too often.
            BadInput: the new one cannot be used; the old one stays.
        """
        await self._checked(person.name, current, address)
        await self._hash(partial(self._store.accounts.set_password, person.name, new))
        return await run_sync(self._begin_session, person, None, limiter=self._readers)

    async def log_out(self, token: str | None) -> None:
        """End a session; without one nothing happens."""
        if token:
            await run_sync(self._store.sessions.revoke_session, token, limiter=self._readers)

    async def set_teach(self, person: Person, answer: Literal["on", "off"]) -> None:
        """Store whether a person's chats may teach."""
        await run_sync(self._store.consent.set_person, person.id, answer, limiter=self._readers)

    def _begin_session(self, person: Person, old_token: str | None) -> str:
        if old_token:
            self._store.sessions.revoke_session(old_token)
        return self._store.sessions.new_session(person.id)

    async def _checked(self, name: str, password: str, address: str) -> Person:
        self._check_not_busy()  # first, so that nobody's try is counted unheard
        key = name.strip().lower()[:100]
        if not self._limits.begin(key, address):
            raise LoginRefused("too_many_logins")
        person = await self._hash(partial(self._store.accounts.check_password, name, password[:MAX_PASSWORD_CHARS]))
        if person is None:
            raise LoginRefused("wrong_login")
        self._limits.succeed(key, address)
        return person

    async def _hash(self, work: Callable[[], Result]) -> Result:
        return await run_sync(work, limiter=self._hashers)

    def _check_not_busy(self) -> None:
        if self._hashers.statistics().tasks_waiting >= WAITING_HASHINGS:
            raise LoginRefused("busy_logins")


def cookies(headers: Mapping[str, str]) -> dict[str, str]:
    """Read the cookies of a request; what is malformed is skipped."""
    return cookie_parser(headers.get("cookie", ""))


def form_token(key: str, path: str) -> str:
    """Return what a form of ours must bring: known to whoever was given the form, and to no page that only looks so.

    Args:
        key: the session's token, or the value of FORM_COOKIE; neither can be read by anything in a page.
        path: that the form goes to; the token of one form is none of another's.
    """
    return hmac.new(key.encode(), path.encode(), "sha256").hexdigest()


def is_form_token(sent: str, key: str, path: str) -> bool:
    """Say whether a form brought its token."""
    return bool(key) and secrets.compare_digest(sent.encode(), form_token(key, path).encode())


def logout_token(request: gr.Request) -> str:
    """Return what the form that ends the session of a handler's visitor must bring."""
    visit = _state(request).get("visit")
    return form_token(visit.token or "", "/logout") if isinstance(visit, Visit) else ""


def visitor(request: gr.Request) -> Person:
    """Return for whom a handler works: declare a parameter `request: gr.Request` and ask this first.

    Raises:
        NobodyThere: nobody passed the guard; working for a default person would hand out that one's chats.
    """
    person = _state(request).get("person")
    if not isinstance(person, Person):
        raise NobodyThere
    return person


def is_limited(request: gr.Request) -> bool:
    """Say whether limits hold for whom a handler works; they do not for the owner of an app without accounts."""
    visit = _state(request).get("visit")
    return not (isinstance(visit, Visit) and visit.is_local_owner)


def _state(request: gr.Request) -> dict[str, Any]:
    # The framework's wrapper keeps the request that the event came with, for queued events too.
    if request is None or request.request is None:
        raise NobodyThere
    state: dict[str, Any] = request.request.scope.get("state", {})
    return state
