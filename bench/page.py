"""What the chat page adds to the engine's own time for a reply: the web server, Gradio and the store.

The app runs as people start it, and a question is sent by the chat page's own event, over the queue's HTTP protocol as
the page in a browser sends it (gradio_client may not: the page's events are private). The person's time is from sending
to the end of what the page is told, the last text in it. The engine's own time is that of an engine with the same
settings in a process that does nothing else, which is asked the same with the seed that the app drew, while the app
idles. So what the web server takes from the model while it writes counts, too; the app's own figures of first and
further tokens would hide that. Both keep what they read lately, as the app does: from the second turn on hardly a
prompt is read, and the page has the least to hide behind. What a browser computes on the same processor is not in it.

As a command, `python -m bench.page` is that engine: it answers each line of its input.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from assistant import bench
from assistant.build import build_engine
from assistant.engine import Message, Request, Sampling
from assistant.settings import Settings, load_settings
from feedback_store import Store, open_store
from feedback_store.records import Message as Stored

ROOT = Path(__file__).parent.parent
NAME = "page_added_percent"
TITLE = "what Gradio and the store add to the engine's own time, %"
REPLIES = 9
QUESTION = "Tell me a long story about a boat that goes down a river to the sea."
LONGEST_S = 120.0


@dataclass(frozen=True)
class Pair:
    """The same reply twice: seconds through the page, seconds by the engine alone, and its tokens."""

    page_s: float
    alone_s: float
    tokens: int


def measure(settings: Settings, replies: int = REPLIES) -> float:
    """Return what the page adds, in percent of the engine's own time.

    Raises:
        ModelUnavailable: the app did not start.
    """
    return added(ask_in_turn(settings, replies))


def added(pairs: Sequence[Pair]) -> float:
    """Return by how many percent the median of the page's times is above that of the engine alone."""
    return 100 * (statistics.median(p.page_s for p in pairs) / statistics.median(p.alone_s for p in pairs) - 1)


def ask_in_turn(settings: Settings, count: int) -> list[Pair]:
    """Let the page and the engine alone write the same reply in turn, after a first one that does not count.

    Raises:
        ModelUnavailable: the app did not start.
    """
    environment = {**bench.environment(settings), "NIGHTSCHOOL_SAMPLING__MAX_NEW_TOKENS": str(bench.REPLY)}
    pairs: list[Pair] = []
    with (
        tempfile.TemporaryDirectory() as home,
        bench.started_app(environment, home) as (address, _),
        _started_engine(environment) as engine,
        httpx.Client(base_url=address, timeout=LONGEST_S, trust_env=False) as client,
    ):
        page = Page(client)
        store = open_store(Path(home) / "nightschool.db", create=False, check=False)
        try:
            for turn in range(2 * count + 1):
                page_s = page.ask(QUESTION)
                reply = _last_reply(store, turn + 1)
                alone_s, tokens = _ask_alone(engine, reply)
                if turn and tokens == reply.new_tokens:  # rounding may part them, and then they are not the same work
                    pairs.append(Pair(page_s, alone_s, tokens))
                if len(pairs) == count:
                    return pairs
        finally:
            store.close()
    raise SystemExit("The app and the engine alone do not write the same reply, so their times say nothing.")


class Page:
    """The chat page as a browser holds it, as far as asking goes."""

    def __init__(self, client: httpx.Client) -> None:
        events = client.get("/config").raise_for_status().json()["dependencies"]
        self._client = client
        self._number = next(event["id"] for event in events if event["api_name"] == "ask")
        self._name = uuid.uuid4().hex

    def ask(self, text: str) -> float:
        """Begin a conversation with a question; returns the seconds until all of its reply is on the page."""
        body = {"data": [text, "plain", "", "", "", ""], "event_data": None, "fn_index": self._number}
        body |= {"trigger_id": None, "session_hash": self._name}
        ended, start = [], time.perf_counter()
        self._client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._name}) as told:
            for line in told.iter_lines():
                if '"process_completed"' in line:
                    ended.append(time.perf_counter())
        assert len(ended) == 1, "the page was told the end of one reply"
        return ended[0] - start


@contextmanager
def _started_engine(environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Start an engine that does nothing but answer its input."""
    command = [sys.executable, "-m", "bench.page"]
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, **environment, "NIGHTSCHOOL_HOME": home}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=ROOT) as engine:
            try:
                yield engine
            finally:
                engine.terminate()


def _ask_alone(engine: "subprocess.Popen[str]", reply: Stored) -> tuple[float, int]:
    """Let the engine alone write a stored reply; returns its seconds and tokens."""
    origin = reply.origin
    assert origin and engine.stdin and engine.stdout
    sampling = Sampling(origin.temperature, origin.top_p, origin.max_new_tokens, origin.seed)
    asked = {"system": origin.system, "sampling": asdict(sampling)}
    engine.stdin.write(json.dumps(asked) + "\n")
    engine.stdin.flush()
    found = json.loads(engine.stdout.readline())
    return found["seconds"], found["tokens"]


def _last_reply(store: Store, conversations: int) -> Stored:
    """Return the reply of the newest of so many conversations."""
    owner = store.people.owner().id
    talks = store.conversations.list(owner)
    assert len(talks) == conversations, "each question began a conversation"
    reply = store.conversations.thread(talks[0].id, owner)[-1]
    assert reply.state == "done", reply.state
    return reply


def answer_input() -> None:
    """Answer the question in the way that each line of the input says, and write what it took."""
    engine = build_engine(load_settings())
    for line in sys.stdin:
        asked = json.loads(line)
        messages = [Message(role="system", content=asked["system"]), Message(role="user", content=QUESTION)]
        start = time.perf_counter()
        [reply] = engine.submit([Request(messages, Sampling(**asked["sampling"]))])
        reply.wait()
        sys.stdout.write(json.dumps({"seconds": time.perf_counter() - start, "tokens": reply.new_tokens}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    answer_input()
