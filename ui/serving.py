"""Loads the model and answers on a socket that is already held. Knows the web server; the command line does not."""

import asyncio
import functools
import json
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn

from assistant.build import build_engine, look_for_faster_products
from assistant.settings import Settings
from feedback_store import open_store
from ui.app import build_app
from ui.hosts import reachable

GRACE_S = 3
"""How long replies under way may take to end when the app is stopped."""
LAST_WORDS_S = 1
"""How long the streams of those that did not may take to say so."""


class Server(uvicorn.Server):
    """Says where it answers once it does."""

    as_json = False
    public_url = ""
    when_ready: Callable[[], None] | None = None
    stop_replies: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as usual, then print the address."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            here, elsewhere = (self.public_url, "") if self.public_url else reachable(host, port)
            ready = json.dumps({"ready": True, "url": here} | ({"elsewhere": elsewhere} if elsewhere else {}))
            # no comma behind the address, which scripts read up to the next space
            others = f" and for other machines at {elsewhere} or any other address of this one" if elsewhere else ""
            sys.stdout.write(f"{ready if self.as_json else f'Nightschool is ready at {here}{others}'}\n")
            sys.stdout.flush()
        if self.when_ready:
            threading.Thread(target=self.when_ready, daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let replies end for a while, then stop them, so that whoever reads them hears of it."""
        if self.stop_replies:
            asyncio.get_running_loop().call_later(GRACE_S, self.stop_replies)
        await super().shutdown(sockets)


def serve(settings: Settings, listener: socket.socket, host: str, *, as_json: bool = False) -> None:
    """Open the store, load the model, and answer until the process is told to stop.

    Args:
        settings: of the home folder; its lock is held by the caller, so what was left unfinished is dead.
        listener: bound and listening.
        host: the address it was bound to, as given.
        as_json: say the address as one JSON object.

    Raises:
        StoreError, AssistantError: database or model cannot be used.
    """
    store = open_store(settings.database_path)
    try:
        store.conversations.interrupt_unfinished()
        store.registry.mark_crashed_runs()
        store.registry.retire_tainted()
        engine = build_engine(settings)
        try:
            app = build_app(engine, store, settings, host)
            proxies = settings.door.trusted_proxies
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE_S + LAST_WORDS_S,
                # otherwise anybody on this machine could claim to come from anywhere
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                server_header=False,
            )
            server = Server(config)
            server.as_json = as_json
            server.public_url = settings.door.public_url.rstrip("/")
            server.when_ready = functools.partial(look_for_faster_products, engine, settings)
            server.stop_replies = app.state.replies.stop_all
            try:
                server.run(sockets=[listener])
            finally:
                app.state.replies.close_left()
        finally:
            engine.close()
    finally:
        store.close()
