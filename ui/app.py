"""FastAPI and Gradio put together: one app, one page a language, mounted so that no default of the framework leaks.

Does not know how an engine or a store is made.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from assistant.engine import Engine
from assistant.settings import Settings
from feedback_store import Store
from ui.chat import ChatDesk, build_chat, preset_choices, wire_chat
from ui.compare import CompareDesk, build_compare, wire_compare
from ui.events import ASKED_JS, SHORT
from ui.feedback import FeedbackDesk
from ui.guard import Guard
from ui.history import build_history
from ui.nights import Nights
from ui.operate import OperateDesk, build_operate, wire_operate
from ui.replies import Replies
from ui.style import MOON, brand_html, language_html, nightschool_theme, style_sheet
from ui.texts import ENGLISH, KOREAN, Texts

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")
MAX_BODY_BYTES = 1024 * 1024


def build_app(engine: Engine, store: Store, settings: Settings) -> FastAPI:
    """Put the web app together.

    Args:
        engine: answers; closed by the caller.
        store: the open store; closed by the caller.
        settings: limits and folders.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=MAX_BODY_BYTES)
    replies = Replies(engine, store, settings)
    nights = Nights(settings.home, settings.runs_dir)
    add_plain_routes(app, nights)
    # English last: its mount at / takes every path that is left.
    for texts, path in ((KOREAN, "/ko"), (ENGLISH, "/")):
        mount_page(app, build_page(replies, store, nights, settings, engine.base_id, texts), path, settings.home)
    app.add_middleware(Guard)
    # Gradio adds no CORS headers of its own once the parent has this; with them it would trust any origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_HOSTS))
    return app


def add_plain_routes(app: FastAPI, nights: Nights) -> None:
    """Health, readiness and the plots of runs."""

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

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
) -> gr.Blocks:
    """Lay out and wire the page of one language."""
    chat_desk = ChatDesk(replies, store, settings, texts)
    votes = FeedbackDesk(store, texts)
    with gr.Blocks(analytics_enabled=False, title="Nightschool", fill_width=True, fill_height=True) as page:
        with gr.Sidebar(elem_id="sidebar", width=280):
            gr.HTML(brand_html(texts))
            new, conversations = build_history(texts)
            gr.HTML(language_html(texts), elem_id="language")
        with gr.Tabs(elem_id="pages") as tabs:
            with gr.Tab(texts.chat_tab, id="chat", elem_id="tab-chat"):
                chat = build_chat(texts)
            with gr.Tab(texts.compare_tab, id="compare", elem_id="tab-compare"):
                compare = build_compare(texts, preset_choices(texts))
            with gr.Tab(texts.operate_tab, id="operate", elem_id="tab-operate") as operate_tab:
                operate = build_operate(texts)
        chat_page, chat_outputs = wire_chat(chat, new, conversations, tabs, chat_desk, votes, store, texts)
        compare_page = wire_compare(compare, CompareDesk(replies, store, settings, texts), texts)
        wire_operate(operate, operate_tab, OperateDesk(store, nights, settings, base_id, texts))

        def fill(conversation_id: str) -> list[Any]:
            return [*chat_page.open(conversation_id), *compare_page.open()]

        page.load(fill, [chat.shown], [*chat_outputs, *compare.outputs], js=ASKED_JS, **SHORT)
    page.queue(api_open=False, max_size=256, default_concurrency_limit=4)
    return page
