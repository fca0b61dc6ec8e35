"""What stands before every request: the language of the address, and what a page of ours may load.

Pure ASGI, so that a dropped connection still reaches the stream behind it. Accounts are not covered.
"""

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.texts import LANGUAGES, preferred_language

# The page is Gradio's, which needs inline script and style; nothing else may come from, or go, elsewhere.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# Routes of the framework that this app has no use for: files, uploads, proxies, and its own tools.
CLOSED = (
    "file=", "file/", "upload", "upload_progress", "proxy=", "stream/", "deep_link", "component_server",
    "monitoring", "runs", "run-history", "process_recording", "vibe", "custom_component", "token", "login", "logout",
    "call/", "api/", "mcp",
)  # fmt: skip


class Guard:
    """Closes unused routes, sends readers to their language, and sets the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        if is_closed(path):
            return await PlainTextResponse("Not found", 404)(scope, receive, send)
        if path == "/" and scope["method"] == "GET":
            redirect = language_redirect(scope)
            if redirect:
                return await redirect(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_headers)


def is_closed(path: str) -> bool:
    """Whether a path belongs to a part of the framework that this app does not use."""
    rest = path.removeprefix("/ko")
    for prefix in ("/gradio_api/", "/"):
        if rest.startswith(prefix):
            return rest.removeprefix(prefix).startswith(CLOSED)
    return False


def language_redirect(scope: Scope) -> RedirectResponse | None:
    """Send a reader of Korean from / to /ko/; `?lang=` chooses and is remembered."""
    headers = Headers(scope=scope)
    chosen = parse_qs(scope["query_string"].decode("latin-1")).get("lang", [""])[0]
    if chosen in LANGUAGES:
        response = RedirectResponse("/ko/" if chosen == "ko" else "/", 303)
        response.set_cookie("lang", chosen, max_age=365 * 86400, httponly=True, samesite="lax")
        return response
    remembered = _cookie(headers.get("cookie", ""))
    language = remembered or preferred_language(headers.get("accept-language", ""))
    query = scope["query_string"].decode("latin-1")
    return RedirectResponse(f"/ko/?{query}" if query else "/ko/", 303) if language == "ko" else None


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get("lang")
    except CookieError:
        return ""
    return morsel.value if morsel and morsel.value in LANGUAGES else ""
