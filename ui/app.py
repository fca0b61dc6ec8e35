"""FastAPI and Gradio put together: one app, one page a language, mounted so that no default of the framework leaks.

Does not know how an engine or a store is made.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.middleware.cors import CORSMiddleware

from assistant.engine import Engine
from assistant.settings import Settings
from feedback_store import Store
from ui.api import add_api_routes
from ui.bodies import Events, page_events
from ui.chat import ChatDesk, wire_chat
from ui.chat_layout import build_chat, preset_choices
from ui.compare import CompareDesk, build_compare, wire_compare
from ui.door import Door, is_limited, logout_token, visitor
from ui.events import ASKED_JS, FILLED_JS, SHORT, keep_threads_free
from ui.feedback import FeedbackDesk
from ui.guard import Guard
from ui.health import Metrics, Readiness
from ui.history import build_history
from ui.hosts import Hosts, is_loopback
from ui.lean import LeanPage
from ui.login import add_login_routes
from ui.nights import Nights
from ui.operate import OperateDesk, build_operate, wire_operate
from ui.rank import RankDesk, build_rank, wire_rank
from ui.replies import Replies
from ui.style import MOON, account_html, brand_html, language_html, nightschool_theme, style_sheet
from ui.texts import ENGLISH, KOREAN, Texts


def build_app(engine: Engine, store: Store, settings: Settings, host: str = "127.0.0.1") -> FastAPI:
    """Put the web app together.

    Args:
        engine: answers; closed by the caller.
        store: the open store; closed by the caller, after `state.replies.close_left()`.
        settings: limits and folders.
        host: the address that the app listens on; where only this machine can connect and no proxy is named, the
            person at it is the owner until there are accounts.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    limits = settings.door
    door = Door(store, limits, local=is_loopback(host) and not limits.public_url and not limits.trusted_proxies)
    replies = app.state.replies = Replies(engine, store, settings)
    nights = Nights(settings.home, settings.runs_dir)
    add_plain_routes(app, nights, Readiness(engine), Metrics(engine, replies, store), replies)
    add_api_routes(app, replies, store, settings, engine.base_id)
    add_login_routes(app, door, secure=limits.public_url.startswith("https:"))
    events: dict[str, Events] = {}
    # English last: its mount at / takes every path that is left.
    for texts, path in ((KOREAN, "/ko"), (ENGLISH, "/")):
        page, events[path] = build_page(replies, store, nights, settings, engine.base_id, texts)
        mount_page(app, page, path, settings.home)
    # Gradio adds no CORS headers of its own once the parent has this; with them it would trust any origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    hosts = Hosts(host, limits.public_url, limits.trusted_hosts)
    app.add_middleware(Guard, door=door, hosts=hosts, settings=limits, events=events)
    return app


def add_plain_routes(app: FastAPI, nights: Nights, readiness: Readiness, metrics: Metrics, replies: Replies) -> None:
    """Health, readiness, metrics and the plots of runs."""

    # Not in a thread, of which there may be none free: whoever asks would take a busy app for a dead one.
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        why_not = await readiness.check()
        return JSONResponse(
            {"status": "not ready", "reason": why_not} if why_not else {"status": "ready"}, 503 if why_not else 200
        )

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(await replies.in_thread(metrics.text), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/plots/{run_id}/{name}")
    def plot(run_id: str, name: str) -> FileResponse:
        path = nights.plot_path(run_id, name)
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="image/png")


def mount_page(app: FastAPI, page: gr.Blocks, path: str, home: Path) -> None:
    """Mount a page with every unsafe default of the framework turned off."""
    gr.mount_gradio_app(
        app, page, path=path, footer_links=[], run_history=False, show_error=False, enable_monitoring=False,
        max_file_size=1, allowed_paths=[], blocked_paths=[str(home)], ssr_mode=False, mcp_server=False, pwa=False,
        favicon_path=str(MOON) if path == "/" else None,
        theme=nightschool_theme(), css=style_sheet(),
    )  # fmt: skip
    # Only launch() sets this, and without it the framework skips its check of file paths that a browser sends.
    page.has_launched = True


def build_page(
    replies: Replies, store: Store, nights: Nights, settings: Settings, base_id: str, texts: Texts
) -> tuple[gr.Blocks, Events]:
    """Lay out and wire the page of one language; returned with the events that it can send."""
    chat_desk = ChatDesk(replies, store, settings, texts)
    votes = FeedbackDesk(store, texts)
    with LeanPage(analytics_enabled=False, title="Nightschool", fill_width=True, fill_height=True) as page:
        with gr.Sidebar(elem_id="sidebar", width=280):
            gr.HTML(brand_html(texts))
            new, conversations = build_history(texts)
            account = gr.HTML(elem_id="account", visible=False)
            gr.HTML(language_html(texts), elem_id="language")
        with gr.Tabs(elem_id="pages") as tabs:
            with gr.Tab(texts.chat_tab, id="chat", elem_id="tab-chat"):
                chat = build_chat(texts)
            with gr.Tab(texts.compare_tab, id="compare", elem_id="tab-compare"):
                compare = build_compare(texts, preset_choices(texts))
                chat.teaching.elsewhere[0].render()
            with gr.Tab(texts.rank_tab, id="rank", elem_id="tab-rank"):
                rank = build_rank(texts, preset_choices(texts))
                chat.teaching.elsewhere[1].render()
            with gr.Tab(texts.operate_tab, id="operate", elem_id="tab-operate", visible=False) as operate_tab:
                operate = build_operate(texts)
        chat_page, chat_outputs = wire_chat(chat, new, conversations, tabs, chat_desk, votes, store, texts)
        compare_page = wire_compare(compare, CompareDesk(replies, store, settings, texts), texts)
        rank_page = wire_rank(rank, RankDesk(replies, store, settings, texts), texts)
        for_members = frozenset(page.fns)
        wire_operate(operate, operate_tab, OperateDesk(store, nights, settings, base_id, texts), texts)
        for_operators = frozenset(page.fns) - for_members

        def fill(conversation_id: str, request: gr.Request) -> list[Any]:
            person = visitor(request)
            return [
                *chat_page.open(conversation_id, "", "", "", "", "", request),
                *compare_page.open(request),
                *rank_page.open(request),
                *chat_page.teaching.switch(person.id),
                str(person.id),
                gr.update(value=account_html(texts, person.name, logout_token(request)), visible=is_limited(request)),
                gr.Tab(visible=person.role == "operator"),
            ]

        filled = [*chat_outputs, *compare.outputs, *rank.outputs, *chat.teaching.switch, chat.who, account, operate_tab]
        page.load(fill, [chat.shown], filled, js=ASKED_JS, **SHORT).then(
            None, [chat.who], None, js=FILLED_JS, api_visibility="private"
        )
    keep_threads_free(page)
    page.api_open = False
    page.queue(max_size=256, default_concurrency_limit=4)
    return page, page_events(page, for_operators)
