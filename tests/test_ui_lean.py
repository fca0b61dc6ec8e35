"""The page that leaves alone what a handler skips gives the browser what the framework's own page does."""

import asyncio
import copy
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from ui.lean import LeanPage
from ui.rounds import fill_page

SKIP = gr.skip()
ANSWERS = [
    ["a", gr.update(value="b", visible=False), [{"role": "user", "content": "c"}]],
    [SKIP, gr.update(interactive=False), SKIP],
    [SKIP, SKIP, [{"role": "user", "content": "c"}]],
    ("a", SKIP, SKIP),
    [SKIP, SKIP, SKIP],
    SKIP,
]


def prepared(kind: type[gr.Blocks], answer: Any, count: int = 3) -> tuple[list[Any], list[int]]:
    """What the browser gets from a handler's answer, and the places of the components that were built for it."""
    return asyncio.run(_prepare(kind, answer, count))


async def _prepare(kind: type[gr.Blocks], answer: Any, count: int) -> tuple[list[Any], list[int]]:
    with kind() as page:
        outputs = [gr.Textbox(), gr.Textbox(), gr.Chatbot()][-count:]
        gr.Button().click(lambda: None, None, outputs)
    state = SessionState(page)
    handler = next(iter(page.fns.values()))
    found = await page.postprocess_data(handler, copy.deepcopy(answer), state)
    built = [place for place, output in enumerate(outputs) if output._id in state.blocks_config.blocks]
    anew = [place for place in built if state[outputs[place]._id] is not outputs[place]]
    return [value.model_dump() if hasattr(value, "model_dump") else value for value in found], anew


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_browser_gets_the_same(answer: Any) -> None:
    assert prepared(LeanPage, answer)[0] == prepared(gr.Blocks, answer)[0]


def test_one_output_s_value_may_be_a_list() -> None:
    answer = [{"role": "user", "content": "c"}]
    assert prepared(LeanPage, answer, 1) == prepared(gr.Blocks, answer, 1)


def test_what_is_skipped_is_not_built_anew() -> None:
    answer = [SKIP, gr.update(visible=False), SKIP]
    assert prepared(gr.Blocks, answer)[1] == [0, 1, 2]
    assert prepared(LeanPage, answer)[1] == [1]


def test_an_idle_page_looks_for_events_a_hundred_times_a_second() -> None:
    async def build() -> LeanPage:
        return LeanPage()

    page = asyncio.run(build())
    assert page._queue.sleep_when_free == page._queue.progress_update_sleep_when_free == 0.01


def test_a_round_streams_only_what_changes() -> None:
    async def rounds() -> AsyncGenerator[Any]:
        for text in ("a", "ab", "ab"):
            yield SimpleNamespace(stage="running", text=text)

    def updates(person: int, shown: Any) -> list[Any]:
        return [shown.text, gr.update(visible=True)]

    async def streamed() -> list[list[Any]]:
        return [update async for update in fill_page(rounds(), updates, 1)]

    assert asyncio.run(streamed()) == [["a", gr.update(visible=True)], ["ab", SKIP], [SKIP, SKIP]]
