"""Steps that the night, `train` and `evaluate` share: from examples to an adapter, and from adapters to findings."""

import gc
import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assistant.adapters import AdapterInfo, write_adapter
from assistant.loading import Base, ServedModel, load_served, load_tokenizer, load_trainable
from assistant.local import LocalEngine
from assistant.prompt import template_hash
from assistant.settings import NightSettings, Settings
from finetune.anchors import anchor_examples
from finetune.attention import short_rows
from finetune.batches import Encoded, encode_examples
from finetune.checkpoints import Checkpoints, keep_checkpoints, training_key
from finetune.errors import NothingToLearn
from finetune.evaluate import (
    FixedReplies,
    Preferences,
    RowLogps,
    answer_fixed_prompts,
    fixed_text_perplexity,
    rank_preferences,
    score_rows,
    served_cache,
)
from finetune.examples import Example
from finetune.gate import Measures
from finetune.kto import prepare_thumbs
from finetune.notes import ONE_SIDED
from finetune.processes import ALONE, World
from finetune.progress import Progress, silent
from finetune.reference import LogpCache, reference_logps, reference_rows
from finetune.slips import doubt_choices
from finetune.train import Trained, times_seen, train_adapter


@dataclass(frozen=True)
class Findings:
    """What the examination found for one adapter."""

    preferences: Preferences
    perplexity: float
    base_perplexity: float
    replies: FixedReplies

    @property
    def measures(self) -> Measures:
        """In the shape the gate takes."""
        replies = self.replies
        return Measures(self.preferences.outcomes, self.perplexity, len(replies.replies), len(replies.flawed))

    def numbers(self) -> dict[str, float]:
        """By name, for reports and scripts."""
        return {
            "accuracy": self.preferences.accuracy,
            "low": self.preferences.low,
            "high": self.preferences.high,
            "n": self.preferences.n,
            "length_baseline": self.preferences.length_baseline,
            "token_logprob_accuracy": self.preferences.token_logprob_accuracy,
            "perplexity": self.perplexity,
            "base_perplexity": self.base_perplexity,
            "replies": len(self.replies.replies),
            "flawed_replies": len(self.replies.flawed),
        }


@dataclass(frozen=True)
class TrainingRun:
    """A written adapter and how its training went."""

    adapter: AdapterInfo
    trained: Trained
    counts: dict[str, int]
    pairs: int
    """Those of rankings counted one by one."""
    examples: int
    pairs_seen: int
    """Each as often as the training went through it."""
    examples_seen: int
    reference_seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A model, and what it is taught."""

    model: PreTrainedModel
    encoded: list[Encoded]
    anchors: list[Encoded]
    reference: dict[str, float]
    counts: dict[str, int]
    template: str
    key: str
    """Names the training."""
    seconds: float
    """That preparing took, reference pass and anchors alone."""

    def train(self, night: NightSettings, progress: Progress, checkpoints: Checkpoints | None, world: World) -> Trained:
        with short_rows(self.model):
            taught = [*self.encoded, *self.anchors]
            return train_adapter(self.model, taught, self.reference, night, progress, checkpoints, world)


def train_and_write(
    base: Base,
    settings: Settings,
    examples: Sequence[Example],
    adapters_dir: Path,
    run_id: str,
    progress: Progress = silent,
    world: World = ALONE,
) -> TrainingRun:
    """Train a fresh adapter on examples and write its folder.

    Args:
        base: the frozen base.
        settings: the night's training settings and the cache folder.
        examples: already weighted and chosen for a method.
        adapters_dir: where the adapter's folder goes.
        run_id: the run that makes it.
        progress: told after each step.
        world: who computes with this process.

    Raises:
        NothingToLearn, TrainingAborted: no adapter was written.
        ModelUnavailable: the base cannot be had.
    """
    with world.together(_help_train, base, settings, examples):
        ready = _prepare(base, settings, examples, progress, world)
        with keep_checkpoints(settings.cache_dir, ready.key) as checkpoints:
            trained = ready.train(settings.night, progress, checkpoints, world)
            adapter = write_adapter(
                adapters_dir,
                trained.tensors,
                rank=settings.night.rank,
                alpha=settings.night.alpha,
                target_modules=trained.target_modules,
                base_id=base.id,
                base_name=base.name,
                template_hash=ready.template,
                run_id=run_id,
            )
    times = [(times_seen(e, settings.night), e) for e in ready.encoded]
    run = TrainingRun(
        adapter,
        trained,
        ready.counts,
        pairs=sum(len(e.pairs) for _, e in times),
        examples=len(times),
        pairs_seen=sum(count * len(e.pairs) for count, e in times),
        examples_seen=sum(count for count, _ in times),
        reference_seconds=ready.seconds,
    )
    del ready
    gc.collect()  # the served form is loaded next; both at once would double the peak
    return run


def _help_train(base: Base, settings: Settings, examples: Sequence[Example], world: World) -> None:
    _prepare(base, settings, examples, silent, world).train(settings.night, silent, None, world)
    gc.collect()


def _prepare(
    base: Base, settings: Settings, examples: Sequence[Example], progress: Progress, world: World
) -> _Prepared:
    """Load the base, encode the examples, and compute what the losses need of the bare base."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    night = settings.night
    tokenizer = load_tokenizer(base)
    template = template_hash(tokenizer)
    model = load_trainable(base)
    max_tokens = min(night.max_tokens, context_tokens(model))
    encoded, counts = encode_for_training(tokenizer, examples, max_tokens, night.seed)
    form = f"{model.dtype} {model.device.type}".removeprefix("torch.")
    cache = LogpCache(settings.cache_dir, base.id, form, template)
    started = time.monotonic()
    anchors: list[Encoded] = []
    if world.rank == 0:
        share = night.anchor_share
        anchors = anchor_examples(model, tokenizer, examples, share, settings.own_cache_dir, base.id, progress)
        with short_rows(model):
            encoded, doubts = doubt_choices(model, encoded, night, progress)
        counts |= doubts | {"anchors": len(anchors)}
    encoded, anchors, counts = world.tell((encoded, anchors, counts))
    rows = reference_rows(model, encoded)
    with short_rows(model):
        reference = reference_logps(model, rows, cache, progress, world=world)
    seconds = time.monotonic() - started
    where = (base.id, form, template, f"{world.size} processes")
    key = training_key(where, [*encoded, *anchors], reference, night)
    return _Prepared(model, encoded, anchors, reference, counts, template, key, seconds)


def encode_for_training(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_tokens: int, seed: int
) -> tuple[list[Encoded], dict[str, int]]:
    """Turn examples into tokens with all that their losses need, and count what was shortened or left out.

    Args:
        tokenizer: gives the template.
        examples: already weighted and chosen for a method.
        max_tokens: longest prompt plus completion.
        seed: decides which completion goes to which prompt in KTO's estimate.

    Raises:
        NothingToLearn: none is left; an adapter of anchors alone would look like a success.
    """
    encoded, counts = encode_examples(tokenizer, examples, max_tokens)
    if examples and not encoded:
        raise NothingToLearn(
            f"Every prompt is longer than the {max_tokens:,} tokens that fit with its reply. "
            "Shorten the prompts, raise NIGHTSCHOOL_NIGHT__MAX_TOKENS as far as the model's context goes, or take a "
            "model with a longer one."
        )
    prepared, thumbs = prepare_thumbs(encoded, max_tokens, seed)
    if encoded and not prepared:
        raise NothingToLearn(ONE_SIDED)
    return prepared, counts | thumbs


def context_tokens(model: PreTrainedModel) -> int:
    """Give the most tokens that a model was made for."""
    return int(model.config.get_text_config().max_position_embeddings)


class ExaminationRoom:
    """The base as it is served, the pairs to examine on, and what the bare base makes of them.

    Args:
        base: the frozen base.
        settings: how it is served, and the cache folder.
        pairs: held-out preference pairs.
        progress: told as rows are scored.
        world: who computes a part of the rows.
    """

    def __init__(
        self,
        base: Base,
        settings: Settings,
        pairs: Sequence[Example],
        progress: Progress = silent,
        world: World = ALONE,
    ) -> None:
        self._world = world
        self.served: ServedModel = load_served(base, settings)
        self._settings = settings
        self._progress = progress
        tokenizer = self.served.tokenizer
        self.pairs: list[Encoded]
        max_tokens = min(settings.night.max_tokens, context_tokens(self.served.model))
        self.pairs, self.counts = encode_examples(tokenizer, pairs, max_tokens)
        if not self.pairs:
            raise NothingToLearn("Every pair to examine on is longer than the model's context. Give shorter ones.")
        self._cache = served_cache(settings.cache_dir, self.served, template_hash(tokenizer))
        self._base_rows = score_rows(self.served, self.pairs, None, self._cache, progress, world)
        self._folders: dict[str, Path] = {}
        self._base_perplexity = math.nan
        if world.rank == 0:
            self._base_perplexity = fixed_text_perplexity(self.served, None)

    def load(self, folder: Path) -> str:
        """Load an adapter.

        Raises:
            AdapterError: it is missing, damaged or for another base.
        """
        adapter_id = self.served.adapters.load(folder)
        self._folders[adapter_id] = folder
        return adapter_id

    def score(self, adapter_id: str) -> RowLogps:
        """Compute the pairs' log-probabilities under a loaded adapter."""
        return score_rows(self.served, self.pairs, adapter_id, self._cache, self._progress, self._world)

    def rank(self, adapter_id: str | None) -> Preferences:
        """Rank the pairs with a loaded adapter, or the bare base for None."""
        rows = self._base_rows
        if adapter_id is not None:
            self._world.tell(self._folders[adapter_id])
            rows = self.score(adapter_id)
        return rank_preferences(self.pairs, rows, self._base_rows)

    def examine(self, adapter_id: str | None) -> Findings:
        """Measure a loaded adapter, or the bare base for None; rank 0 does, and asks the others to score with it."""
        preferences = self.rank(adapter_id)
        perplexity = self._base_perplexity
        if adapter_id is not None:
            perplexity = fixed_text_perplexity(self.served, adapter_id)
        engine = LocalEngine(self.served, self._settings)  # only now: a running engine owns the model
        try:
            replies = answer_fixed_prompts(engine, adapter_id, self._settings.sampling)
        finally:
            engine.close()
        return Findings(preferences, perplexity, self._base_perplexity, replies)


@contextmanager
def open_room(
    base: Base, settings: Settings, pairs: Sequence[Example], progress: Progress = silent, world: World = ALONE
) -> Iterator[ExaminationRoom]:
    """Open the room for rank 0, with all others at hand until the block ends."""
    with world.together(_help_examine, base, settings, pairs):
        yield ExaminationRoom(base, settings, pairs, progress, world)
        world.tell(None)


def _help_examine(base: Base, settings: Settings, pairs: Sequence[Example], world: World) -> None:
    room = ExaminationRoom(base, settings, pairs, silent, world)
    while folder := world.tell(None):
        room.score(room.load(folder))


def peak_gb() -> float:
    """Peak memory of this process in GB (10⁹ bytes): the GPU's where there is one, else the resident set's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
