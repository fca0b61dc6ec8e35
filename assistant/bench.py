"""How fast the local engine answers on this machine: `python -m assistant bench`.

Each figure is the median of several runs, through the engine as people are answered, for the base and with an adapter.
Replies do not end before their length, and nothing is known of a prompt unless that is what is measured.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from assistant.adapters import factor_names, write_adapter
from assistant.engine import Message, Reply, Request, Sampling
from assistant.errors import ModelUnavailable, SettingsError
from assistant.kernels import choose, remembered, shapes_of
from assistant.loading import ServedModel, load_served, resolve_base
from assistant.local import LocalEngine
from assistant.rows import Rows
from assistant.settings import Settings

LONG, SHORT = 480, 40
"""Words of a prompt; with the template about 512 and 70 tokens."""
REPLY = 128
TALK = 1450
"""Words of the turns before a second question, about 1,500 tokens."""
RANK = 16
WORDS = "the sea was calm and the boat went slowly past an old house where nobody had lived for years".split()
TEXT = (
    "The library stood at the end of the street, behind two chestnut trees. On Tuesdays it stayed open until nine, and "
    "then the old teacher came, took the same chair by the window and read about bridges. Once I asked him why. A "
    "bridge, he said, has to be right the first time: 12,000 tonnes of steel do not wait for a second draft."
)
"""What the served form is compared on."""
Progress = Callable[[str], None]


def measure(settings: Settings, runs: int, progress: Progress) -> dict[str, float | str]:
    """Measure everything, and return it by the names that scripts rely on.

    Args:
        settings: name the model and how it is held.
        runs: of each figure; the median counts.
        progress: told what is being measured.

    Raises:
        SettingsError: another engine is set than the local one.
        ModelUnavailable: there is no model, or the app did not start.
    """
    if settings.engine != "local":
        raise SettingsError("The bench measures the local engine; set NIGHTSCHOOL_ENGINE to local.")
    base = resolve_base(settings)
    if settings.serving.own_products:
        progress("the products of 4-bit weights")
        shapes = shapes_of(load_served(base, settings).model)
        if shapes and not remembered(settings.cache_dir, shapes):
            choose(settings.cache_dir, shapes)
    progress("start of the app")
    ready = _start_app(settings)
    served = load_served(base, settings)
    bare = settings.model_copy(update={"serving": settings.serving.model_copy(update={"prefix_cache_mb": 0})})
    progress("kl_nat")
    kl = divergence(served, load_served(base, settings.model_copy(update={"quantization": "none"})))
    found: dict[str, float | str] = {"numeric_form": served.numeric_form, "ready_s": ready, "kl_nat": kl}
    with tempfile.TemporaryDirectory() as folder:
        adapter = random_adapter(served, Path(folder))
        for cache, figures in ((bare, FIGURES), (settings, AFTERWARDS)):
            engine = LocalEngine(served, cache)
            engine.stop_ids.clear()
            try:
                _whole_answer(engine, None, -1)  # the first one pays for what is set up only once
                for suffix, asked in (("", None), ("_adapter", adapter)):
                    for name, figure in figures.items():
                        progress(f"{name}{suffix}")
                        found[name + suffix] = statistics.median(figure(engine, asked, run) for run in range(runs))
            finally:
                engine.close()
    return found


def table(found: dict[str, float | str]) -> str:
    """Lay the figures out in Markdown."""
    lines = [f"| {found['numeric_form']} | base | with an adapter |", "|---|---|---|"]
    for name, title in TITLES.items():
        cells = [found.get(name + suffix) for suffix in ("", "_adapter")]
        lines.append(f"| {title} | {' | '.join('' if c is None else shown(float(c)) for c in cells)} |")
    return "\n".join(lines)


def shown(figure: float) -> str:
    """A figure with as many digits as say something."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2g}"


@torch.inference_mode()
def divergence(served: ServedModel, whole: ServedModel) -> float:
    """Mean KL a token, in nat, of what is served, one token at a time as in a reply, to the base unquantised."""
    ids = served.tokenizer(TEXT, return_tensors="pt").input_ids.to(served.model.device)
    rows = Rows.after([], 0)
    given = torch.cat([rows.compute(served.model, ids[:, i : i + 1]) for i in range(ids.shape[1])])
    expected = whole.model(ids).logits[0].float().log_softmax(-1)
    return float((expected.exp() * (expected - given.float().log_softmax(-1))).sum(-1).mean())


def random_adapter(served: ServedModel, folder: Path) -> str:
    """Write a rank-16 adapter on all linear layers, small enough to change little, and load it; returns its id."""
    torch.manual_seed(0)
    tensors = {}
    for name, layer in served.adapters.layers.items():
        a, b = factor_names(name)
        tensors[a] = torch.randn(RANK, layer.in_features) / layer.in_features**0.5
        tensors[b] = torch.randn(layer.out_features, RANK) * 1e-3
    info = write_adapter(
        folder,
        tensors,
        rank=RANK,
        alpha=2 * RANK,
        target_modules=tuple(sorted({name.rsplit(".", 1)[-1] for name in served.adapters.layers})),
        base_id=served.base_id,
        base_name="bench",
        template_hash="bench",
        run_id="bench",
    )
    return served.adapters.load(info.folder)


def _decode(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """Tokens a second of one reply after a short prompt."""
    reply = _ask(engine, adapter, [_user(SHORT, run)])
    return 1 / statistics.mean(_ended(reply).gaps_s)


def _prefill(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """Prompt tokens a second up to the first new token."""
    reply = _ended(_ask(engine, adapter, [_user(LONG, run)], new_tokens=1))
    return reply.prompt_tokens / _first(reply)


def _whole_answer(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """Seconds for a long prompt and its reply."""
    start = time.perf_counter()
    _ended(_ask(engine, adapter, [_user(LONG, run)]))
    return time.perf_counter() - start


def _eight_chats(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """New tokens a second of eight people together, their prompts included."""
    start = time.perf_counter()
    replies = [_ask(engine, adapter, [_user(SHORT, 10 * run + person)]) for person in range(8)]
    tokens = sum(_ended(reply).new_tokens for reply in replies)
    return tokens / (time.perf_counter() - start)


def _side_by_side(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """The time of two replies to one question, in times of one."""
    seconds = []
    for count in (1, 2):
        messages = [_user(SHORT, 100 * count + run)]
        start = time.perf_counter()
        asked = [Request(messages, Sampling(0.7, 0.95, REPLY, seed), adapter) for seed in range(count)]
        for reply in engine.submit(asked):
            _ended(reply)
        seconds.append(time.perf_counter() - start)
    return seconds[1] / seconds[0]


def _second_turn(engine: LocalEngine, adapter: str | None, run: int) -> float:
    """The time to the first token of a second question after a long talk, in times of that without what was kept."""
    talk = [_user(TALK, 1000 + run)]
    first = _ended(_ask(engine, adapter, talk, new_tokens=8))
    after: list[Message] = [*talk, {"role": "assistant", "content": first.text}, _user(SHORT, run)]
    known = _first(_ended(_ask(engine, adapter, after, new_tokens=1)))
    anew = [_user(TALK, 2000 + run), *after[1:]]
    return known / _first(_ended(_ask(engine, adapter, anew, new_tokens=1)))


FIGURES = {
    "decode_tok_s": _decode,
    "prefill_tok_s": _prefill,
    "answer_s": _whole_answer,
    "eight_chats_tok_s": _eight_chats,
    "side_by_side_ratio": _side_by_side,
}
AFTERWARDS = {"second_turn_ratio": _second_turn}
"""Where what was read lately is kept."""
TITLES = {
    "decode_tok_s": "decoding one chat, tokens a second",
    "prefill_tok_s": "reading a prompt of 512 tokens, tokens a second",
    "answer_s": "512 tokens read and 128 written, s",
    "eight_chats_tok_s": "eight chats at once, tokens a second",
    "side_by_side_ratio": "two replies to one question, times one reply",
    "second_turn_ratio": "first token of a second turn after 1,500 tokens, times that of a new talk",
    "ready_s": "start of the app, s",
    "kl_nat": "mean KL of a token to the unquantised base, nat",
}


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which another process answers as these settings say."""
    return {
        "NIGHTSCHOOL_MODEL": settings.model,
        "NIGHTSCHOOL_QUANTIZATION": settings.quantization,
        "NIGHTSCHOOL_CACHE": str(settings.cache_dir),
        "NIGHTSCHOOL_ENGINE": settings.engine,
        "NIGHTSCHOOL_THREADS": str(settings.threads),
        "NIGHTSCHOOL_SERVING__OWN_PRODUCTS": str(settings.serving.own_products),
    }


@contextmanager
def started_app(variables: dict[str, str], home: str) -> Iterator[tuple[str, float]]:
    """Start the app with these variables; gives its address, and the seconds from the command to an app that answers.

    Raises:
        ModelUnavailable: it did not start.
    """
    command = [sys.executable, "-m", "ui", "--port", "0", "--json", "--home", home]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}) as app:
        try:
            assert app.stdout
            line = app.stdout.readline()
            took = time.perf_counter() - start
            try:
                address = str(json.loads(line)["url"])
            except (ValueError, KeyError):
                raise ModelUnavailable("The app did not start. Start it by `python -m ui` to see why.") from None
            yield address, took
        finally:
            app.terminate()


def _start_app(settings: Settings) -> float:
    """Seconds to an app that answers, in a home of its own with the model converted already."""
    with tempfile.TemporaryDirectory() as home, started_app(environment(settings), home) as (_, took):
        return took


def _ask(engine: LocalEngine, adapter: str | None, messages: list[Message], new_tokens: int = REPLY) -> Reply:
    return engine.submit([Request(messages, Sampling(0, 1.0, new_tokens), adapter)])[0]


def _ended(reply: Reply) -> Reply:
    reply.wait()
    return reply


def _first(reply: Reply) -> float:
    assert reply.first_token_s is not None, "it has ended"
    return reply.first_token_s


def _user(words: int, number: int) -> Message:
    """A message that begins like no other."""
    return {"role": "user", "content": f"{number} " + " ".join(WORDS[i % len(WORDS)] for i in range(words))}
