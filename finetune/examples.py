"""What a night learns from: pure values, before any tokens. Knows neither the store nor the model."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from assistant.engine import Message
from assistant.settings import NightSettings

Judgement = Literal["demonstration", "pair", "thumb-up", "thumb-down", "ranking"]
Method = Literal["auto", "sft", "dpo", "ipo", "robust", "norm", "kto", "rankings", "reward", "ppo"]
NIGHT_METHODS: tuple[Method, ...] = ("auto", "sft", "dpo", "ipo", "robust", "norm", "kto", "rankings", "ppo")
"""Those that give an adapter to answer with."""
METHODS: tuple[Method, ...] = (*NIGHT_METHODS, "reward")


@dataclass(frozen=True)
class Example:
    """One prompt with one to nine completions, best first, and what somebody said about them."""

    key: str
    """Names prompt, completions and judgement by content."""
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    demonstrated: bool
    """A person wrote the first completion: it is imitated at full weight."""
    weight: float
    """1 for a vote of today, halved every half-life."""
    person: str
    conversation: str
    created_at: str
    source: str
    """comparison, thumbs, preference, rewrite, thumb, ranking, ai-choice, ai-rewrite or file."""
    ids: tuple[str, ...]
    """Ids of the stored rows behind it."""
    thumb: bool | None = None
    """Up or down on the one completion."""
    ranks: tuple[int, ...] = ()
    """Of a ranking, one a completion: 1 is best, equal is a tie."""
    none_is_good: bool = False
    """Of a ranking: not even the best is imitated."""
    flip: float | None = None
    """Probability that the judgement was a slip; None is the setting label_smoothing."""

    @property
    def said(self) -> tuple[str, str]:
        """Who said what: of one person the same counts once."""
        return self.person, self.key

    @property
    def judgement(self) -> Judgement:
        """What somebody said."""
        if self.thumb is not None:
            return "thumb-up" if self.thumb else "thumb-down"
        if self.ranks:
            return "ranking"
        return "pair" if len(self.completions) == 2 else "demonstration"

    @property
    def is_pair(self) -> bool:
        """Whether one completion is preferred to another, and that is all."""
        return self.judgement == "pair"

    @property
    def compares(self) -> bool:
        """Whether completions are compared: what an examination can be held on."""
        return self.judgement in ("pair", "ranking")


def new_example(
    prompt: tuple[Message, ...],
    completions: tuple[str, ...],
    *,
    person: str,
    created_at: str,
    source: str,
    ids: tuple[str, ...],
    conversation: str = "",
    demonstrated: bool = False,
    thumb: bool | None = None,
    ranks: tuple[int, ...] = (),
    none_is_good: bool = False,
) -> Example:
    """Make an example of weight 1 with its key; a ranking is put in order, without a conversation the prompt is one."""
    judgement: tuple[object, ...] = () if thumb is None else (thumb,)
    if ranks:
        completions, ranks = rank_best_first(completions, ranks)
        judgement = (ranks, none_is_good)
    return Example(
        key=content_key(prompt, completions, *judgement),
        prompt=prompt,
        completions=completions,
        demonstrated=demonstrated,
        weight=1.0,
        person=person,
        conversation=conversation or content_key(prompt, ()),
        created_at=created_at,
        source=source,
        ids=ids,
        thumb=thumb,
        ranks=ranks,
        none_is_good=none_is_good,
    )


def content_key(prompt: Sequence[Message], completions: Iterable[str], *judgement: object) -> str:
    """Name an example by what it says; pairs and demonstrations are told apart by their completions alone."""
    turns = [[turn["role"], turn["content"]] for turn in prompt]
    text = json.dumps([turns, list(completions), *judgement], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def rank_best_first(completions: Sequence[str], ranks: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Put a ranking in order, the same whatever order it was shown in; a text that came twice keeps its better rank."""
    best: dict[str, int] = {}
    for rank, text in sorted(zip(ranks, completions, strict=True)):
        best.setdefault(text, rank)
    return tuple(best), tuple(best.values())


def ordered_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """List the pairs of a ranking over which the K-wise loss is the mean; ties are none, as in InstructGPT.

    Source: -1/|P| Σ_{(i,j) ∈ P} log σ(β (r_i - r_j)), P = {(i,j): rank_i < rank_j}, r = log π - log ref.
    Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155 eq. 1, with DPO's implicit reward.

    Args:
        ranks: of K completions; 1 is best, equal is a tie.

    Returns:
        Places of the better and the worse, at most K (K - 1) / 2.
    """
    return [(i, j) for i, better in enumerate(ranks) for j, worse in enumerate(ranks) if better < worse]


def as_pairs(example: Example) -> list[Example]:
    """Take a comparison apart into pairs, as an examination counts them; what compares nothing gives none."""
    if example.is_pair:
        return [example]
    pairs = []
    for better, worse in ordered_pairs(example.ranks):
        texts = example.completions[better], example.completions[worse]
        key = content_key(example.prompt, texts)
        pairs.append(replace(example, key=key, completions=texts, ranks=(), none_is_good=False))
    return pairs


def data_hash(train: Sequence[Example], heldout: Sequence[Example]) -> str:
    """Name a night's data: texts, weights, sources and which side of the split each example is on."""
    digest = hashlib.sha256()
    for part, examples in (("train", train), ("heldout", heldout)):
        for e in sorted(examples, key=lambda e: (e.key, e.person)):
            digest.update(repr((part, e.key, e.demonstrated, e.source, e.weight, e.flip)).encode())
    return digest.hexdigest()


def learns_from(method: Method, example: Example) -> bool:
    """Whether an example is of a kind that a method learns from.

    `sft` the demonstrations alone; `dpo`, `ipo`, `robust` and `norm` the pairs and rankings; `rankings` the rankings
    alone; `kto` the thumbs and the pairs; `auto` all; `reward` the pairs and rankings, and with them the
    demonstrations, which set its zero; `ppo` all, for their prompts.
    """
    if method in ("auto", "ppo"):
        return True
    if method == "sft":
        return example.demonstrated
    if method == "rankings":
        return example.judgement == "ranking"
    if method == "kto":
        return example.thumb is not None or example.is_pair
    return example.compares or (method == "reward" and example.demonstrated)


def select_method(examples: Sequence[Example], method: Method) -> list[Example]:
    """Keep what a method learns from, as it takes it.

    `kto` takes a pair as a thumb up and a thumb down. Thumbs that all point the same way teach nothing: they would push
    every reply up, or every reply down. Nor does a reward model learn from demonstrations alone.
    """
    fitting = [e for e in examples if learns_from(method, e)]
    if method == "sft":
        return [replace(e, completions=e.completions[:1]) for e in fitting]
    if method == "kto":
        return _two_sided([*_unpair(fitting), *(e for e in fitting if e.thumb is not None)])
    if method == "auto":
        return _two_sided(fitting)
    if method in ("rankings", "ppo"):
        return fitting
    if method == "reward":
        return fitting if any(e.compares for e in fitting) else []
    return [replace(e, demonstrated=False) for e in fitting]


def count_one_sided(examples: Sequence[Example], method: Method) -> int:
    """Count the thumbs that a method leaves out because all of them point the same way."""
    if method not in ("auto", "kto") or any(e.thumb is not None for e in select_method(examples, method)):
        return 0
    return sum(e.thumb is not None for e in examples)


def settings_for(night: NightSettings, method: Method) -> NightSettings:
    """Let a method that names a loss for pairs choose it; the others leave the settings as they are."""
    if method in ("dpo", "ipo", "robust", "norm"):
        return night.model_copy(update={"pair_loss": method})
    return night


def _two_sided(examples: Sequence[Example]) -> list[Example]:
    distinct = list({e.said: e for e in examples}.values())
    if len({e.thumb for e in distinct if e.thumb is not None}) == 1:
        return [e for e in distinct if e.thumb is None]
    return distinct


def _unpair(examples: Iterable[Example]) -> list[Example]:
    """Take pairs as two thumbs, as TRL's KTO does with paired data."""
    thumbs = []
    for pair in (e for e in examples if e.is_pair):
        for text, up in zip(pair.completions, (True, False), strict=True):
            key = content_key(pair.prompt, (text,), up)
            thumbs.append(replace(pair, key=key, completions=(text,), demonstrated=False, thumb=up))
    return thumbs
