"""The examination: what the gate looks at, on the model in the numeric form that people are served.

Preference accuracy by log-ratio to the bare base (what DPO learns; the base ties with itself), the same by
mean log-probability a token (which exists for the base too), "the longer reply wins" beside them,
perplexity of a fixed text, and replies to fixed prompts, of which none may be empty or loop.

Does not judge what the replies say.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from assistant.engine import Message, Request, Sampling
from assistant.loading import ServedModel
from assistant.local import LocalEngine
from assistant.presets import PLAIN
from assistant.settings import SamplingSettings
from finetune.batches import Encoded, Row, row_key
from finetune.intervals import share_interval
from finetune.processes import ALONE, World
from finetune.progress import Progress, silent
from finetune.reference import TOGETHER, LogpCache, reference_logps, shared_logps
from finetune.scoring import row_logps

HERE = Path(__file__).parent
FIXED_TEXT, FIXED_PROMPTS = HERE / "fixed_text.txt", HERE / "fixed_prompts.txt"
TEXT_WINDOW = 512
"""Tokens of the fixed text scored together."""
REPLY_TOKENS = 96

RowLogps = dict[str, float]
"""Row key to summed log-probability of the completion."""


@dataclass(frozen=True)
class Preferences:
    """How an adapter ranks held-out pairs."""

    outcomes: tuple[float, ...]
    """By log-ratio to the base: 1 as the person did, 0 otherwise, 0.5 tie."""
    accuracy: float
    low: float
    high: float
    """95 % interval of the accuracy, clustered by conversation."""
    n: int
    token_logprob_accuracy: float
    length_baseline: float


@dataclass(frozen=True)
class FixedReplies:
    """Replies to the fixed prompts, and which of them are empty or loop."""

    replies: tuple[str, ...]
    flawed: tuple[int, ...]


def score_rows(
    served: ServedModel,
    pairs: Sequence[Encoded],
    adapter_id: str | None,
    cache: LogpCache,
    progress: Progress = silent,
    world: World = ALONE,
) -> RowLogps:
    """Compute every completion's log-probability under one adapter; on a CPU the base's are cached for all nights.

    On a GPU, where a value depends on its batch, the base is computed in the adapters' batches, to tie with itself.

    Args:
        served: the model as it answers.
        pairs: held-out preference pairs.
        adapter_id: a loaded adapter, or None for the bare base.
        cache: of this base in the served form.
        progress: told as rows are done.
        world: who computes a part of it.
    """
    rows = [row for pair in pairs for row in pair.rows]
    phase = f"examine {adapter_id or 'base'}"
    with served.adapters.use(adapter_id):
        if adapter_id is None and served.model.device.type == "cpu":
            return reference_logps(served.model, rows, cache, progress, phase, world)
        distinct: dict[str, Row] = {row_key(row): row for row in rows}
        scored: RowLogps = {}
        keys = list(distinct)
        together = TOGETHER * world.size
        for start in range(0, len(keys), together):
            part = [distinct[key] for key in keys[start : start + together]]
            scored |= {key: logps[0] for key, logps in shared_logps(served.model, part, world).items()}
            progress(phase, len(scored), len(keys))
        return scored


def rank_preferences(pairs: Sequence[Encoded], logps: RowLogps, base: RowLogps) -> Preferences:
    """Compare scores with people's choices.

    Args:
        pairs: held-out pairs.
        logps: under the adapter; the base's own for the base.
        base: under the bare base, in the same numeric form.
    """
    outcomes, by_token, by_length = [], [], []
    for pair in pairs:
        chosen, rejected = (row_key(row) for row in pair.rows)
        lengths = [len(c) for c in pair.completions]
        outcomes.append(_win((logps[chosen] - base[chosen]) - (logps[rejected] - base[rejected])))
        by_token.append(_win(logps[chosen] / lengths[0] - logps[rejected] / lengths[1]))
        by_length.append(_win(lengths[0] - lengths[1]))
    low, high = share_interval(outcomes, [pair.cluster for pair in pairs])
    return Preferences(tuple(outcomes), _mean(outcomes), low, high, len(pairs), _mean(by_token), _mean(by_length))


@torch.no_grad()
def fixed_text_perplexity(served: ServedModel, adapter_id: str | None) -> float:
    """Compute the perplexity of the text that the project ships, as plain text without a chat template.

    Source: exp(-1/N Σ log p(token)), each window's first token as context only.
    """
    text = FIXED_TEXT.read_text(encoding="utf-8")
    ids = tuple(served.tokenizer.encode(text, add_special_tokens=False))
    room = min(TEXT_WINDOW, served.model.config.get_text_config().max_position_embeddings)
    windows = [ids[start : start + room] for start in range(0, len(ids), room)]
    rows: list[Row] = [(window[:1], window[1:]) for window in windows if len(window) > 1]
    with served.adapters.use(adapter_id):
        total = sum(row_logps(served.model, rows))
    return math.exp(-total / sum(len(row[1]) for row in rows))


def answer_fixed_prompts(engine: LocalEngine, adapter_id: str | None, drawn: SamplingSettings) -> FixedReplies:
    """Answer the fixed prompts and look for empty and looping replies.

    Greedily first. A small model now and then loops under greedy decoding where nobody would see it loop, so
    a flawed reply is drawn once more as people's are, with a fixed seed, and counts when that is flawed too.
    """
    prompts = FIXED_PROMPTS.read_text(encoding="utf-8").splitlines()
    greedy = Sampling(temperature=0, max_new_tokens=REPLY_TOKENS)
    replies = _answer(engine, prompts, greedy, adapter_id)
    doubtful = [i for i, text in enumerate(replies) if is_flawed(text)]
    if doubtful:
        as_served = Sampling(drawn.temperature, drawn.top_p, REPLY_TOKENS, seed=0)
        again = _answer(engine, [prompts[i] for i in doubtful], as_served, adapter_id)
        replies = [again[doubtful.index(i)] if i in doubtful else text for i, text in enumerate(replies)]
    return FixedReplies(tuple(replies), tuple(i for i, text in enumerate(replies) if is_flawed(text)))


def _answer(engine: LocalEngine, prompts: Sequence[str], sampling: Sampling, adapter_id: str | None) -> list[str]:
    system: Message = {"role": "system", "content": PLAIN.system}
    requests = [Request([system, {"role": "user", "content": text}], sampling, adapter_id) for text in prompts]
    return [reply.wait() for reply in engine.submit(requests)]


def is_flawed(text: str) -> bool:
    """Whether a reply is empty or ends in a loop: one stretch of words again and again up to the end.

    A stretch of several words must come four times in a row, a single word or sign eight times.
    """
    bare = " ".join(text.split())
    if not bare:
        return True
    return bool(re.search(r"(.{12,}?)\1{3,}.{0,40}$", bare) or re.search(r"(\S{1,20}\s?)\1{7,}\S{0,20}$", bare))


def served_form(served: ServedModel) -> str:
    """Name all that decides how a served model rounds."""
    return f"{served.numeric_form}, {served.products} products"


def served_cache(cache_dir: Path, served: ServedModel, template: str) -> LogpCache:
    """Open the cache of the base's scores in the form it is served in."""
    return LogpCache(cache_dir, served.base_id, f"served {served_form(served)}", template)


def _win(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
