"""From settings to an engine. Imports torch only when the local engine is asked for."""

import logging
import os
from pathlib import Path

from assistant.adapters import verify_adapter
from assistant.engine import Engine
from assistant.errors import KernelsUnavailable, SettingsError
from assistant.settings import Settings

log = logging.getLogger(__name__)

SPINS = "1000"
"""How long torch's threads wait for each other by spinning. With the default, a second busy program (a browser,
a night) on two cores cost nine tenths of the decoding speed; this keeps four fifths of the quiet speed."""


def build_engine(settings: Settings, adapter_folder: Path | None = None) -> Engine:
    """Build the engine the settings name.

    Args:
        settings: of the home.
        adapter_folder: an adapter outside of the home, to answer under its id beside the home's.

    Raises:
        SettingsError: no such engine.
        ModelUnavailable: the local engine's weights cannot be had, or the server does not say what it serves.
        AdapterError: that adapter is damaged or for another base.
    """
    if settings.engine == "fake":
        from assistant.fake import FakeEngine

        return FakeEngine(seconds_per_word=0.05, max_chars=settings.max_message_chars)
    if settings.engine == "local":
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when torch is imported
        from assistant.loading import load_served, resolve_base
        from assistant.local import LocalEngine

        served = load_served(resolve_base(settings), settings)
        if adapter_folder is not None:
            served.adapters.load(adapter_folder)
        return LocalEngine(served, settings)
    from assistant.remote import RemoteEngine, find_model, is_server, server_url
    from assistant.server_adapters import load_adapter

    if not is_server(settings.engine):
        raise SettingsError(
            f"There is no engine {settings.engine!r}. Set NIGHTSCHOOL_ENGINE to local, fake or http://HOST:PORT/v1."
        )
    if adapter_folder is not None:
        raise SettingsError(
            f"A server does not read {adapter_folder}. Load it there and give its name, or take the local engine."
        )
    url, server = server_url(settings.engine), settings.server
    model = server.model or find_model(url, server.api_key.get_secret_value())

    def load(adapter_id: str) -> None:
        verify_adapter(settings.adapters_dir / adapter_id, None)
        load_adapter(settings, adapter_id)

    return RemoteEngine(url, model, server, settings.queue_limit, load if server.loads_adapters else None)


def look_for_faster_products(engine: Engine, settings: Settings) -> None:
    """Let an engine that serves already take the project's own products where they are found to be faster here.

    Compiles and measures for half a minute, once for a machine, while nobody waits for a reply; does nothing where it
    was measured before.
    """
    if settings.engine != "local" or not settings.serving.own_products:
        return
    from assistant.kernels import choose, load_kernels, remembered
    from assistant.local import LocalEngine

    assert isinstance(engine, LocalEngine), "the settings name it"
    shapes = engine.shapes
    if not shapes or remembered(settings.cache_dir, shapes):
        return
    choice = choose(settings.cache_dir, shapes, lambda: engine.busy)
    if not choice.few_rows:
        return log.warning("replies are not made faster: %s", choice.reason)
    try:
        load_kernels(settings.cache_dir)
    except KernelsUnavailable as error:
        return log.warning("replies are not made faster: %s", error)
    engine.take_own_products(choice.few_rows)
