"""The real model behind the real page while adapters come and go: promoted, in mid-reply, rolled back."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, expect
from safetensors import safe_open

from assistant.adapters import AdapterInfo, write_adapter
from assistant.loading import Base, resolve_base
from assistant.settings import load_settings
from feedback_store import Store
from feedback_store.records import Message
from tests.app_process import running_app
from tests.browser_support import Visitor, eventually
from tests.new_store import open_in

pytestmark = [pytest.mark.browser, pytest.mark.model]
QUESTION = "Tell me about the sea."
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def noticeable_adapter(base: Base, adapters_dir: Path, seed: int) -> AdapterInfo:
    """Random factors, strong enough to change what is said."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(base.folder / "model.safetensors", "pt") as weights:
        for name in weights.keys():
            if name.removesuffix(".weight").endswith(MODULES):
                out, inner = weights.get_slice(name).get_shape()
                prefix = "base_model.model." + name.removesuffix(".weight")
                tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, inner, generator=generator) * 0.05
                tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, 4, generator=generator) * 0.02
    about = {"base_id": base.id, "base_name": base.name, "template_hash": "t", "run_id": "by-hand"}
    return write_adapter(adapters_dir, tensors, rank=4, alpha=8, target_modules=MODULES, **about)


def operator(*arguments: str) -> dict[str, object]:
    """Run an operator's command in a process of its own, as a person beside the open app does."""
    command = [sys.executable, "-m", "finetune", *arguments, "--json"]
    fields: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return fields


def replies(store: Store) -> list[Message]:
    """Every reply of the owner's chats, oldest first."""
    person = store.people.owner().id
    threads = [store.conversations.thread(c.id, person) for c in store.conversations.list(person)]
    return sorted((m for thread in threads for m in thread if m.origin), key=lambda m: m.created_at)


def open_conversation(visitor: Visitor) -> None:
    """Begin a new conversation."""
    visitor.page.click("#new-conversation")
    expect(visitor.page.locator("#chat .bot.message")).to_have_count(0)


def begin_anew(visitor: Visitor) -> None:
    """Ask the question in a conversation of its own."""
    open_conversation(visitor)
    visitor.send(QUESTION)


def ask_anew(visitor: Visitor, store: Store) -> Message:
    """Ask and return the stored reply."""
    before = len(replies(store))
    begin_anew(visitor)
    eventually(lambda: len(replies(store)) > before and replies(store)[-1].state == "done", "no reply was stored")
    visitor.settle()
    return replies(store)[-1]


def adapter_of(message: Message) -> str | None:
    assert message.origin is not None
    return message.origin.adapter_id


def test_a_promotion_answers_the_next_message_and_a_rollback_brings_the_old_answer_back(
    browser: Browser, home: Path
) -> None:
    base = resolve_base(load_settings())
    adapter = noticeable_adapter(base, load_settings().adapters_dir, seed=1)
    store = open_in(home / "nightschool.db")
    store.registry.register_adapter(adapter.id, base.id)
    greedy = {"NIGHTSCHOOL_SAMPLING__TEMPERATURE": "0", "NIGHTSCHOOL_SAMPLING__MAX_NEW_TOKENS": "96"}
    # Each time computed alike: going on from what is known of the question changes greedy texts by rounding.
    greedy["NIGHTSCHOOL_SERVING__PREFIX_CACHE_MB"] = "0"
    with running_app(home, NIGHTSCHOOL_ENGINE="local", **greedy) as (address, _):
        visitor = Visitor(browser, address)
        visitor.open()
        first = ask_anew(visitor, store)

        begin_anew(visitor)
        eventually(lambda: len(visitor.reply()) > 10, "the reply never began")
        assert operator("promote", adapter.id)["live"] == adapter.id
        under_way = replies(store)[-1]
        eventually(lambda: replies(store)[-1].state == "done", "the reply under way was lost")
        visitor.settle()
        finished = replies(store)[-1]

        promoted = ask_anew(visitor, store)
        open_conversation(visitor)
        visitor.page.fill("#message textarea", QUESTION)
        before = len(replies(store))
        with ThreadPoolExecutor(1) as aside:
            rolled_back = aside.submit(operator, "rollback")
            eventually(lambda: store.registry.live().adapter_id is None, "the pointer never moved")
            visitor.page.press("#message textarea", "Enter")
            eventually(lambda: len(replies(store)) > before, "no reply was begun")
            assert rolled_back.result()["live"] == "base"
        eventually(lambda: replies(store)[-1].state == "done", "the reply was lost")
        after, moved = replies(store)[-1], store.registry.history()[0]
        visitor.page.context.close()
    store.close()

    assert under_way.id == finished.id and adapter_of(finished) is None
    assert finished.text == first.text
    assert adapter_of(promoted) == adapter.id and promoted.text != first.text
    assert adapter_of(after) is None and after.text == first.text
    waited = datetime.fromisoformat(after.created_at) - datetime.fromisoformat(moved.at)
    assert moved.why == "rollback" and timedelta(0) < waited < timedelta(seconds=1)
