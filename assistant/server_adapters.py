"""Adapters on a server that loads them while it runs, by the route that vLLM documents for it.

An adapter is loaded under its id, which names its content: what is loaded under a name is never another adapter, as the
server goes on serving what it knows by a name already.
Source: docs.vllm.ai, LoRA adapters, "Dynamically serving LoRA adapters".
"""

import json
from pathlib import Path

import httpx

from assistant.adapters import MANIFEST, check_fit
from assistant.errors import AdapterDamaged, AdapterNotServed
from assistant.remote import CONNECT_S, REFUSALS, bearer, is_server, server_url
from assistant.settings import Settings
from assistant.wire import error_message

LOAD_S = 300.0
"""Longest wait for the server to read an adapter, or for its first token under it."""
LOADED_ALREADY = "has already been loaded"
QUESTION = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1, "temperature": 0}


def path_on_server(settings: Settings, adapter_id: str) -> str:
    """Where the server finds an adapter's folder: in the home, unless it sees that elsewhere."""
    return (settings.server.adapters_dir or str(settings.adapters_dir.absolute())).rstrip("/") + f"/{adapter_id}"


def serve_adapter(settings: Settings, adapter_id: str | None) -> None:
    """See that a verified adapter can answer, before it goes live.

    A server that loads adapters loads it and is heard to say a token under it; else its factors are held against the
    base's layers. Does nothing for the base.

    Raises:
        AdapterNotServed, AdapterDamaged: it may not go live; the sentence says why.
    """
    if adapter_id is None:
        return
    if not is_server(settings.engine) or not settings.server.loads_adapters:
        return _check_fit(settings, adapter_id)
    load_adapter(settings, adapter_id)
    answer = _post(settings, "chat/completions", {"model": adapter_id, **QUESTION}, adapter_id)
    try:
        answered = answer.status_code == 200 and answer.json()["choices"][0]["message"]["role"] == "assistant"
    except (ValueError, LookupError, TypeError):
        answered = False
    if not answered:
        raise AdapterNotServed(
            f"The model's server loaded {adapter_id} but does not answer under it ({_why(answer, settings)}). "
            "See its log."
        )


def load_adapter(settings: Settings, adapter_id: str) -> None:
    """Ask a server to load an adapter; one that it has already is no error.

    Raises:
        AdapterNotServed: it did not.
    """
    path = path_on_server(settings, adapter_id)
    answer = _post(settings, "load_lora_adapter", {"lora_name": adapter_id, "lora_path": path}, adapter_id)
    if answer.status_code == 200 or LOADED_ALREADY in answer.text:
        return
    if answer.status_code in REFUSALS:
        raise AdapterNotServed(REFUSALS[answer.status_code])
    if answer.status_code in (404, 405) and "adapter" not in answer.text.casefold():
        raise AdapterNotServed(
            "The model's server has no route that loads adapters. Start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or unset NIGHTSCHOOL_SERVER__LOADS_ADAPTERS."
        )
    raise AdapterNotServed(
        f"The model's server does not load {adapter_id} from {path} ({_why(answer, settings)}). "
        "Let it see that folder: NIGHTSCHOOL_SERVER__ADAPTERS_DIR says where."
    )


def _check_fit(settings: Settings, adapter_id: str) -> None:
    """Hold an adapter against its base where that lies in the cache or in a folder; a hub's is left to the engine."""
    folder = settings.adapters_dir / adapter_id
    base_id = str(json.loads((folder / MANIFEST).read_text())["base_id"])
    converted, named = settings.cache_dir / "models" / base_id, Path(settings.model).expanduser()
    if converted.is_dir():
        check_fit(folder, converted)
    elif named.is_dir():
        try:
            check_fit(folder, named)
        except AdapterDamaged:
            from assistant.loading import resolve_base

            # other weights than the adapter's may lie there; to know takes reading all of them, so only now
            if resolve_base(settings).id == base_id:
                raise


def _post(settings: Settings, route: str, body: dict[str, object], adapter_id: str) -> httpx.Response:
    url, key = server_url(settings.engine), settings.server.api_key.get_secret_value()
    timeout = httpx.Timeout(LOAD_S, connect=CONNECT_S)
    try:
        with httpx.Client(headers=bearer(key), timeout=timeout, trust_env=False) as client:
            return client.post(f"{url}/{route}", json=body)
    except httpx.HTTPError as error:
        raise AdapterNotServed(
            f"The model's server cannot be reached to load {adapter_id} ({type(error).__name__}). Start it, or correct "
            "NIGHTSCHOOL_ENGINE."
        ) from error


def _why(answer: httpx.Response, settings: Settings) -> str:
    """The status and the server's own words, never the key."""
    try:
        said = error_message(answer.json()).replace(settings.server.api_key.get_secret_value() or "\0", "…")
    except (ValueError, RecursionError):
        said = ""
    return f"HTTP {answer.status_code}" + (f": {said[:200].rstrip('.')}" if said else "")
