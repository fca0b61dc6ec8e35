"""The pages of the door: log in, log out, change a password, say whether one's chats may teach.

Plain HTML that works without scripts. GET changes nothing but the remembered language; the guard has checked who asks
and that a form came from this app. A reply on one of its pages could hold a form as well, so these bring a token that
no reply can know. Knows nothing of the framework.
"""

import html
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Literal
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from feedback_store.accounts import MAX_PASSWORD_CHARS, MIN_PASSWORD_CHARS
from feedback_store.errors import BadInput, SamePassword
from feedback_store.records import Person
from feedback_store.sessions import SESSION_LIFETIME
from ui.door import (
    FORM_COOKIE,
    SESSION_COOKIE,
    Door,
    LoginRefused,
    Visit,
    cookies,
    form_token,
    is_form_token,
)
from ui.guard import address_of, language_of, remember_language
from ui.login_texts import DOOR_TEXTS, LoginTexts
from ui.style import MOON
from ui.texts import LANGUAGES

MAX_FIELDS: Final = 10
PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
STYLE: Final = """
:root { color-scheme: light dark; --paper: #faf9f6; --card: #fff; --ink: #191a24; --soft: #77746b; --line: #e6e3db;
  --accent: #3b4176; --on: #fff; --lamp: #f0b449; }
@media (prefers-color-scheme: dark) { :root { --paper: #11121a; --card: #191a24; --ink: #e9e8ee; --soft: #a5a196;
  --line: #32333f; --accent: #6a71ab; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100dvh; display: grid; place-items: center; padding: 20px; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 ui-sans-serif, system-ui, "Segoe UI", "Noto Sans", "Noto Sans KR", sans-serif; }
main { width: 100%; max-width: 380px; }
.brand { display: flex; gap: 10px; align-items: center; margin-bottom: 14px; font-weight: 650; font-size: 1.12rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px; }
h1 { font-size: 1.2rem; margin: 0 0 10px; }
p { margin: 0 0 12px; }
.soft, footer { color: var(--soft); font-size: 0.86rem; }
label { display: block; margin-bottom: 12px; font-size: 0.9rem; }
input { display: block; width: 100%; margin-top: 4px; padding: 9px 11px; font: inherit; color: inherit;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
button { padding: 9px 16px; font: inherit; font-weight: 550; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); color: var(--ink); cursor: pointer; }
button.first { background: var(--accent); border-color: var(--accent); color: var(--on); }
:is(input, button, a):focus-visible { outline: 2px solid var(--lamp); outline-offset: 1px; }
.row { display: flex; gap: 8px; flex-wrap: wrap; }
.said { padding: 8px 12px; border-radius: 10px; background: color-mix(in srgb, var(--lamp) 16%, transparent); }
footer { display: flex; gap: 14px; align-items: center; margin-top: 12px; }
footer a { color: inherit; }
footer button { border: 0; background: none; padding: 0; color: inherit; font: inherit; text-decoration: underline; }
"""


class LoginPages:
    """Answers for the pages of the door."""

    def __init__(self, door: Door, *, secure: bool) -> None:
        """Keep the door.

        Args:
            secure: people come by https, and so does the cookie, only.
        """
        self._door = door
        self._secure = secure

    async def show_login(self, request: Request) -> Response:
        """Show the form; whoever is in already goes to the chat."""
        chosen = _chosen_language(request)
        if chosen:
            return chosen
        texts = _texts(request)
        if _visit(request).person:
            return RedirectResponse(texts.home, 303)
        return self._login_page(request)

    async def log_in(self, request: Request) -> Response:
        """Take name and password; somebody who was never asked about teaching is asked before the chat."""
        texts, visit = _texts(request), _visit(request)
        if visit.is_local_owner:
            return RedirectResponse(texts.home, 303)
        form = await _form(request)
        name, password = form.get("name", ""), form.get("password", "")
        if not _is_ours(request, form):
            return self._login_page(request, name, texts.form_too_old, 403)
        try:
            person, token = await self._door.log_in(name, password, address_of(request.scope), visit.token)
        except LoginRefused as refused:
            again = self._login_page(request, name, _why(texts, refused), _status(refused))
            if refused.reason != "wrong_login":
                again.headers["Retry-After"] = "60"
            return again
        answer = RedirectResponse("/consent" if person.teach == "unanswered" else texts.home, 303)
        self._give_session(request, answer, token)
        return answer

    async def log_out(self, request: Request) -> Response:
        """End the session of this browser."""
        texts, visit = _texts(request), _visit(request)
        if visit.token and not _is_ours(request, await _form(request)):
            return self._page(request, "/consent", texts.logout, _nothing, said=texts.form_too_old, status=403)
        await self._door.log_out(visit.token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="lax", secure=self._is_secure(request))
        return answer

    async def show_password(self, request: Request) -> Response:
        """Show the form; the local owner has no password."""
        texts = _texts(request)
        if _visit(request).is_local_owner:
            return RedirectResponse(texts.home, 303)
        return _chosen_language(request) or self._password_page(request)

    async def change_password(self, request: Request) -> Response:
        """Change one's own password; every other session ends, and this browser gets a new one."""
        texts, visit, form = _texts(request), _visit(request), await _form(request)
        person = _person(visit)
        if visit.is_local_owner:
            return RedirectResponse(texts.home, 303)
        if not _is_ours(request, form):
            return self._password_page(request, texts.form_too_old, 403)
        if form.get("new", "") != form.get("again", ""):
            return self._password_page(request, texts.passwords_differ, 422)
        if not MIN_PASSWORD_CHARS <= len(form.get("new", "")) <= MAX_PASSWORD_CHARS:
            return self._password_page(request, _password_rule(texts), 422)
        try:
            token = await self._door.change_password(
                person, form.get("current", ""), form.get("new", ""), address_of(request.scope)
            )
        except LoginRefused as refused:
            said = texts.wrong_password if refused.reason == "wrong_login" else _why(texts, refused)
            return self._password_page(request, said, _status(refused))
        except SamePassword:
            return self._password_page(request, texts.same_password, 422)
        except BadInput:
            return self._password_page(request, _password_rule(texts), 422)
        title, said = texts.password_title, texts.password_changed
        answer = self._page(request, "/password", title, _nothing, said=said, key=token)
        self._give_session(request, answer, token)
        return answer

    async def show_consent(self, request: Request) -> Response:
        """Ask, or show what was answered."""
        return _chosen_language(request) or self._consent_page(request)

    async def answer_consent(self, request: Request) -> Response:
        """Store the answer and go on to the chat."""
        texts, form = _texts(request), await _form(request)
        if not _is_ours(request, form):
            return self._consent_page(request, texts.form_too_old, 403)
        answer = form.get("teach", "")
        if answer not in ("on", "off"):
            return RedirectResponse("/consent", 303)
        kept: Literal["on", "off"] = "on" if answer == "on" else "off"
        await self._door.set_teach(_person(_visit(request)), kept)
        return RedirectResponse(texts.home, 303)

    def _login_page(self, request: Request, name: str = "", said: str = "", status: int = 200) -> Response:
        texts = _texts(request)
        body = partial(login_form, texts, name[:100])
        return self._page(request, "/login", texts.login_title, body, said=said, status=status)

    def _password_page(self, request: Request, said: str = "", status: int = 200) -> Response:
        texts = _texts(request)
        body = partial(password_form, texts)
        return self._page(request, "/password", texts.password_title, body, said=said, status=status)

    def _consent_page(self, request: Request, said: str = "", status: int = 200) -> Response:
        texts = _texts(request)
        body = partial(consent_form, texts, _person(_visit(request)))
        return self._page(request, "/consent", texts.consent_title, body, said=said, status=status)

    def _page(
        self, request: Request, path: str, title: str, body: Callable[[str], str], *,
        said: str = "", status: int = 200, key: str = "",
    ) -> Response:  # fmt: skip
        """Put a page together, and give whoever has nothing yet that its forms could be tied to a cookie for it.

        Args:
            body: makes the page's body for the key of its forms.
            key: of a session that begins with this answer.
        """
        known = key or _form_key(request, path)
        key = known or secrets.token_urlsafe(32)
        answer = HTMLResponse(
            _document(_texts(request), path, title, body(key), said, key), status,
            {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-store"},
        )  # fmt: skip
        if not known:
            secure = self._is_secure(request)
            answer.set_cookie(FORM_COOKIE, key, path="/", httponly=True, samesite="strict", secure=secure)
        return answer

    def _is_secure(self, request: Request) -> bool:
        return self._secure or request.scope["scheme"] == "https"

    def _give_session(self, request: Request, answer: Response, token: str) -> None:
        answer.set_cookie(
            SESSION_COOKIE, token, max_age=int(SESSION_LIFETIME.total_seconds()), path="/", httponly=True,
            samesite="lax", secure=self._is_secure(request),
        )  # fmt: skip


def add_login_routes(app: FastAPI, door: Door, *, secure: bool) -> None:
    """Add the pages of the door to the app."""
    pages = LoginPages(door, secure=secure)
    routes: tuple[tuple[str, str, Callable[[Request], Awaitable[Response]]], ...] = (
        ("GET", "/login", pages.show_login),
        ("POST", "/login", pages.log_in),
        ("POST", "/logout", pages.log_out),
        ("GET", "/password", pages.show_password),
        ("POST", "/password", pages.change_password),
        ("GET", "/consent", pages.show_consent),
        ("POST", "/consent", pages.answer_consent),
    )
    for method, path, handler in routes:
        app.add_route(path, handler, methods=[method], include_in_schema=False)


def login_form(texts: LoginTexts, name: str, key: str) -> str:
    """The form of the login page."""
    return _form_tag("/login", key) + (
        f"<label>{_h(texts.name_label)}<input name='name' autocomplete='username' autocapitalize='none' required "
        f"maxlength='100' value='{_h(name)}'{'' if name else ' autofocus'}></label>"
        + _password_input(texts.password_label, "password", "current-password")
        + f"<button class='first'>{_h(texts.login)}</button></form>"
    )


def password_form(texts: LoginTexts, key: str) -> str:
    """The form of the password page."""
    return (
        f"<p class='soft'>{_h(texts.password_intro)}</p>"
        + _form_tag("/password", key)
        + _password_input(texts.current_password, "current", "current-password")
        + _password_input(texts.new_password, "new", "new-password")
        + _password_input(texts.new_password_again, "again", "new-password")
        + f"<button class='first'>{_h(texts.change_password)}</button></form>"
    )


def consent_form(texts: LoginTexts, person: Person, key: str) -> str:
    """The question, and two buttons of the same weight."""
    return (
        f"<p>{_h(texts.consent_intro)}</p><p class='soft'>{_h(texts.consent_off)}</p>"
        f"<p class='soft'>{_h(texts.consent_answer[person.teach])}</p>"
        f"{_form_tag('/consent', key, 'row')}<button name='teach' value='on'>{_h(texts.consent_yes)}</button>"
        f"<button name='teach' value='off'>{_h(texts.consent_no)}</button></form>"
    )


def _nothing(key: str) -> str:
    return ""


def _form_tag(path: str, key: str, kind: str = "") -> str:
    """Begin a form, with the token that only the app's own has."""
    token = form_token(key, path)
    return f"<form method='post' action='{path}' class='{kind}'><input type='hidden' name='token' value='{token}'>"


def _password_input(label: str, name: str, autocomplete: str) -> str:
    return (
        f"<label>{_h(label)}<input type='password' name='{name}' autocomplete='{autocomplete}' required "
        f"maxlength='{MAX_PASSWORD_CHARS}'></label>"
    )


def _document(texts: LoginTexts, path: str, title: str, body: str, said: str, key: str) -> str:
    """The whole page; its footer leads on to the chat and out, where there is somebody to be led."""
    told = f"<p class='said' role='status'>{_h(said)}</p>" if said else ""
    inside = "" if path == "/login" else (
        f"<a href='{texts.home}'>{_h(texts.to_the_chat)}</a>"
        f"{_form_tag('/logout', key)}<button>{_h(texts.logout)}</button></form>"
    )  # fmt: skip
    return (
        f"<!doctype html><html lang='{texts.language}'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_h(title)} · Nightschool</title><link rel='icon' href='/favicon.ico'><style>{STYLE}</style></head>"
        f"<body><main><div class='brand'>{MOON.read_text(encoding='utf-8')}Nightschool</div>"
        f"<div class='card'><h1>{_h(title)}</h1>{told}{body}</div>"
        f"<footer><a href='{path}?lang={texts.other_language}' lang='{texts.other_language}'>"
        f"{_h(texts.other_language_name)}</a>{inside}</footer></main></body></html>"
    )


def _why(texts: LoginTexts, refused: LoginRefused) -> str:
    words = {
        "wrong_login": texts.wrong_login,
        "too_many_logins": texts.too_many_logins,
        "busy_logins": texts.busy_logins,
    }
    return words[refused.reason]


def _status(refused: LoginRefused) -> int:
    return {"wrong_login": 401, "too_many_logins": 429, "busy_logins": 503}[refused.reason]


def _password_rule(texts: LoginTexts) -> str:
    return texts.password_rule.format(least=MIN_PASSWORD_CHARS, most=MAX_PASSWORD_CHARS)


def _chosen_language(request: Request) -> Response | None:
    """Remember the language of `?lang=` and show the page again without it."""
    chosen = request.query_params.get("lang", "")
    if chosen not in LANGUAGES:
        return None
    answer = RedirectResponse(request.scope["path"], 303)
    remember_language(answer, chosen)
    return answer


def _texts(request: Request) -> LoginTexts:
    return DOOR_TEXTS[language_of(request.headers)]


def _visit(request: Request) -> Visit:
    visit: Visit = request.scope["state"]["visit"]
    return visit


def _person(visit: Visit) -> Person:
    assert visit.person, "the guard lets nobody else in here"
    return visit.person


def _form_key(request: Request, path: str) -> str:
    """Return what a form of this browser is tied to: its session, before there is one a cookie; empty without both."""
    # two tabs may show the login: the first one's session must not make the other's form a stranger's
    session = None if path == "/login" else _visit(request).token
    return session or cookies(request.headers).get(FORM_COOKIE, "")


def _is_ours(request: Request, form: Mapping[str, str]) -> bool:
    """Say whether a form is one that this app gave to this browser, and no lookalike on one of its pages."""
    path = request.scope["path"]
    return is_form_token(form.get("token", ""), _form_key(request, path), path)


async def _form(request: Request) -> dict[str, str]:
    """Read the fields of a form; of two of one name the last."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:  # more fields than any of these forms has
        return {}


def _h(text: str) -> str:
    return html.escape(text)
