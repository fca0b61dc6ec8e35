"""Whoever waits for others sees how many they are and about how long it takes, and then the reply."""

import threading
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.app_process import running_app
from tests.browser_support import Visitor
from tests.new_store import open_in
from tests.tiny import save_tiny

pytestmark = [pytest.mark.browser]
OTHERS = 4


def test_a_person_who_waits_sees_who_is_before_them(browser: Browser, home: Path, tmp_path: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    store = open_in(home / "nightschool.db")
    tokens = [store.sessions.new_token(store.people.add(f"person-{number}").id) for number in range(OTHERS)]
    store.close()
    settings = {
        "NIGHTSCHOOL_ENGINE": "local",
        "NIGHTSCHOOL_MODEL": str(save_tiny(tmp_path / "model")),
        "NIGHTSCHOOL_SERVING__AT_ONCE": "1",
        "OMP_NUM_THREADS": "1",
    }
    over = threading.Event()
    with running_app(home, **settings) as (address, _):

        def ask_on(token: str) -> None:
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "temperature": 1.5}
            while not over.is_set():
                httpx.post(
                    f"{address}/v1/chat/completions",
                    json=body,
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=60,
                )

        crowd = [threading.Thread(target=ask_on, args=[token]) for token in tokens]
        try:
            visitor = Visitor(browser, address)
            visitor.open()
            for one in crowd:
                one.start()
            visitor.page.wait_for_timeout(1000)
            visitor.send("hello")
            expect(visitor.page.locator("#chat")).to_contain_text("Others are being answered", timeout=15_000)
            over.set()
            visitor.settle()
            expect(visitor.page.locator("#chat")).not_to_contain_text("Others are being answered")
            assert visitor.reply()
        finally:
            over.set()
            for one in crowd:
                one.join()
            visitor.page.context.close()
