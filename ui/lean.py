"""The framework's page without the work that nobody needs: it shares the processor with the model."""

import copy
from typing import Any, Literal

import gradio as gr
from gradio.blocks import BlocksConfig
from gradio.queueing import Queue

LOOKS_S = 0.01
"""Between two looks of the framework for events; by itself it looks a thousand times a second, and each look takes
Python's lock from the model."""


class LeanConfig(BlocksConfig):  # type: ignore[misc]
    """A page's components and events, of which each session gets a copy without the components' descriptions.

    The framework writes them anew at every change of a component, for links to a page's state. There are none here, and
    that was half the work of a message.
    """

    def __copy__(self) -> BlocksConfig:
        copied: BlocksConfig = super().__copy__()
        copied.config_for_block = lambda *_: {}
        return copied


class LeanPage(gr.Blocks):  # type: ignore[misc]
    """A page that leaves alone what a handler skips; the framework builds each such component anew for every update."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.default_config = LeanConfig(self)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Prepare what a handler returned for the browser: as the framework does, without what is skipped."""
        several = isinstance(predictions, list | tuple) and 1 < len(block_fn.outputs) == len(predictions)
        if not several or block_fn.batch:
            return list(await super().postprocess_data(block_fn, predictions, state))
        filled = [i for i, value in enumerate(predictions) if not (isinstance(value, dict) and value == gr.skip())]
        prepared: list[Any] = [gr.skip() for _ in predictions]
        if filled:
            narrow = copy.copy(block_fn)
            narrow.outputs = [block_fn.outputs[i] for i in filled]
            values = [predictions[i] for i in filled]
            # The framework takes what a handler of one output returns for that output's value.
            found = await super().postprocess_data(narrow, values if len(filled) > 1 else values[0], state)
            for i, value in zip(filled, found, strict=True):
                prepared[i] = value
        return prepared

    def queue(
        self, *, max_size: int | None = None, default_concurrency_limit: int | Literal["not_set"] = "not_set"
    ) -> gr.Blocks:
        """Set up the queue, which looks for events a hundred times a second, as the framework does but for its web app.

        It makes a web app of a hundred routes here, twice, and once more when the layout is done, which is the one that
        events run in; the first two were a third of building a page.

        Args:
            max_size: events that wait at most.
            default_concurrency_limit: of an event that sets none.
        """
        self._queue = Queue(
            live_updates=True,
            concurrency_count=self.max_threads,
            update_intervals=1,
            max_size=max_size,
            blocks=self,
            default_concurrency_limit=default_concurrency_limit,
        )
        self._queue.sleep_when_free = LOOKS_S
        return self
