"""Whether the app can answer, and how it does: /readyz proves a token, /metrics counts for Prometheus.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from assistant.engine import Engine, Message, Reply, Request, Sampling
from assistant.errors import AssistantError
from feedback_store import Store
from ui.replies import Replies

LATELY_S: Final = 15.0
"""A token so long ago still proves that the model answers."""
PROOF_S: Final = 10.0
"""How long a token may take, those who wait before it included."""
SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Readiness:
    """Says whether the model answers: by a token of late, else by one that it asks for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._one = asyncio.Lock()

    async def check(self) -> str:
        """Return why the app cannot answer; empty where it can. However many ask, one token is written for all."""
        async with self._one:
            if self._proved():
                return ""
            ask = Request([Message(role="user", content="Hello")], Sampling(temperature=0, max_new_tokens=1))
            until = time.monotonic() + PROOF_S
            try:
                # in a thread: it waits while an adapter is loaded, and every stream would wait with it
                [reply] = await asyncio.to_thread(self._engine.submit, [ask])
            except AssistantError as error:
                return str(error)
            while not reply.done and not self._proved() and time.monotonic() < until:
                await asyncio.sleep(0.01)
            reply.cancel()
            if self._proved():
                return ""
            return reply.error or f"The model wrote no token within {PROOF_S:.0f} s."

    def _proved(self) -> bool:
        at = self._engine.pulse.at
        return at is not None and time.monotonic() - at < LATELY_S


class Metrics(Collector):
    """Counts replies as they end, and looks the rest up when it is asked."""

    def __init__(self, engine: Engine, replies: Replies, store: Store) -> None:
        self._engine = engine
        self._replies = replies
        self._store = store
        self._registry = CollectorRegistry()
        of: Any = {"registry": self._registry, "namespace": "nightschool"}
        self._first = Histogram("first_token_seconds", "From asking to the first token", buckets=SECONDS, **of)
        self._gaps = Histogram("between_tokens_seconds", "From one token to the next", buckets=SECONDS, **of)
        self._ended = Counter("replies", "Replies that have ended", ["finish"], **of)
        self._tokens = Counter("reply_tokens", "Tokens written", **of)
        self._prompts = Counter("prompt_tokens", "Tokens of the prompts of replies that have ended", **of)
        self._registry.register(self)
        replies.heard = self._hear

    def text(self) -> bytes:
        """Everything, in the form that Prometheus reads. Reads the database."""
        return generate_latest(self._registry)

    def _hear(self, reply: Reply) -> None:
        if reply.first_token_s is not None:
            self._first.observe(reply.first_token_s)
        for gap in reply.gaps_s:
            self._gaps.observe(gap)
        self._ended.labels(reply.finish or "cancelled").inc()
        self._tokens.inc(reply.new_tokens)
        self._prompts.inc(reply.prompt_tokens)

    def collect(self) -> Iterator[Metric]:
        """What is looked up rather than counted; see Collector."""
        replies = self._replies.under_way()
        waiting = sum(1 for reply in replies if reply.first_token_s is None)
        yield GaugeMetricFamily("nightschool_replies_waiting", "Asked for, without a token yet", waiting)
        yield GaugeMetricFamily("nightschool_replies_under_way", "Asked for and not ended", len(replies))
        for name, count in self._engine.counters().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"nightschool_{name.removesuffix('_total')}", "Counted by the engine", count)
        generation = self._store.registry.live().generation
        yield GaugeMetricFamily("nightschool_adapter_generation", "Goes up with each move of what is live", generation)
        votes = GaugeMetricFamily("nightschool_stored", "What the store holds", labels=["what"])
        for what, count in self._store.votes.counts().items():
            votes.add_metric([what], count)
        yield votes
