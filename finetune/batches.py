"""Examples to token rows, and rows to batches. Text becomes tokens in assistant.prompt, as in serving.

Rows are padded on the right and carry no mask: in a causal model no token looks at what follows it. A
step's examples are sorted by length and cut into micro-batches by a token budget; losses are divided by
the weight of the whole step, so the cut changes no gradient.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assistant.engine import Message
from assistant.errors import PromptTooLong
from assistant.prompt import count_control_tokens, encode_completion, fit_prompt
from finetune.examples import Example, ordered_pairs

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt ids and completion ids."""


@dataclass(frozen=True)
class Encoded:
    """An example as tokens: one prompt, its completions best first."""

    key: str
    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    demonstrated: bool
    weight: float
    cluster: str
    """The conversation it belongs to."""
    thumb: bool | None = None
    ranks: tuple[int, ...] = ()
    none_is_good: bool = False
    flip: float | None = None
    balance: float = 1.0
    """Of a thumb: what its side is multiplied with."""
    mismatched: tuple[int, ...] = ()
    """Of a thumb: a completion to another prompt."""

    @property
    def rows(self) -> list[Row]:
        """One row a completion."""
        return [(self.prompt, completion) for completion in self.completions]

    @property
    def mismatch(self) -> list[Row]:
        """The row that KTO's divergence is estimated from, where there is one."""
        return [(self.prompt, self.mismatched)] if self.mismatched else []

    @property
    def reference_rows(self) -> list[Row]:
        """The rows whose log-probability under the base is needed."""
        judged = self.thumb is not None or bool(self.pairs)
        return [*self.rows, *self.mismatch] if judged else []

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Places of the better and the worse completion, of every pair in it."""
        return ordered_pairs(self.ranks) if self.ranks else [(0, 1)][: len(self.completions) - 1]

    @property
    def is_pair(self) -> bool:
        """Whether one completion is preferred to another, and that is all."""
        return len(self.completions) == 2 and not self.ranks

    @property
    def imitated(self) -> list[int]:
        """Places of the completions that are imitated: the best, all of them where they are tied; none of a thumb."""
        if self.thumb is not None or self.none_is_good:
            return []
        return [place for place, rank in enumerate(self.ranks) if rank == self.ranks[0]] or [0]

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return len(self.prompt) + max(len(c) for c in self.completions)


@dataclass(frozen=True)
class Batch:
    """Padded rows and where their completions are predicted."""

    input_ids: Tensor
    """(R, T)"""
    rows: Tensor
    """(N,) the row of each completion token."""
    columns: Tensor
    """(N,) the position that predicts it: one to its left."""
    targets: Tensor
    """(N,) its id."""


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_tokens: int
) -> tuple[list[Encoded], dict[str, int]]:
    """Turn examples into tokens within a budget.

    The oldest turns of a prompt are left out first. A completion longer than three quarters of the
    budget is cut, and then does not end its turn.

    Args:
        tokenizer: gives the template.
        examples: what to encode.
        max_tokens: longest prompt plus completion.

    Returns:
        The encoded examples, and counts: control_tokens (typed by people, kept as text),
        dropped_turns, cut_completions, too_long (examples left out: the last message alone is too long),
        split_badly (examples whose completions have more tokens than characters, or unknown ones).
    """
    counts = {"control_tokens": 0, "dropped_turns": 0, "cut_completions": 0, "too_long": 0, "split_badly": 0}
    longest = max_tokens * 3 // 4
    encoded: list[Encoded] = []
    for example in examples:
        completions = [tuple(encode_completion(tokenizer, text)) for text in example.completions]
        counts["cut_completions"] += sum(len(c) > longest for c in completions)
        completions = [c[:longest] for c in completions]
        try:
            prompt = fit_prompt(tokenizer, example.prompt, max_tokens - max(len(c) for c in completions))
        except PromptTooLong:
            counts["too_long"] += 1
            continue
        replies = [Message(role="assistant", content=text) for text in example.completions]
        counts["control_tokens"] += prompt.control_tokens + count_control_tokens(tokenizer, replies)
        counts["dropped_turns"] += prompt.dropped_turns
        counts["split_badly"] += _splits_badly(tokenizer, example.completions, completions)
        encoded.append(
            Encoded(
                key=example.key,
                prompt=tuple(prompt.ids),
                completions=tuple(completions),
                demonstrated=example.demonstrated,
                weight=example.weight,
                cluster=f"{example.person}/{example.conversation}",
                thumb=example.thumb,
                ranks=example.ranks,
                none_is_good=example.none_is_good,
                flip=example.flip,
            )
        )
    return encoded, counts


def _splits_badly(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], completions: Sequence[tuple[int, ...]]
) -> bool:
    """Whether a tokenizer does not know a language: it needs more tokens than there are characters, or says unknown."""
    unknown = tokenizer.unk_token_id
    return any(
        len(ids) - 1 > len(text) or (unknown is not None and unknown in ids[:-1])
        for text, ids in zip(texts, completions, strict=True)
    )


def make_batch(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right and note where each completion token is predicted."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    row_of: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for index, (prompt, completion) in enumerate(rows):
        ids = prompt + completion
        input_ids[index, : len(ids)] = torch.tensor(ids)
        row_of += [index] * len(completion)
        columns += range(len(prompt) - 1, len(ids) - 1)
        targets += completion
    index_tensors = [torch.tensor(values, device=device) for values in (row_of, columns, targets)]
    return Batch(input_ids.to(device), *index_tensors)


def plan_steps(count: int, epochs: int, batch_examples: int, seed: int) -> list[list[int]]:
    """List the example numbers of every optimiser step: each epoch a fresh order that only the seed decides."""
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        steps += [order[start : start + batch_examples] for start in range(0, count, batch_examples)]
    return steps


def micro_batches(examples: Sequence[Encoded], token_budget: int) -> list[list[Encoded]]:
    """Cut examples, sorted by length, so that padded tokens stay within the budget; one example at least."""
    batches: list[list[Encoded]] = []
    current: list[Encoded] = []
    rows = width = 0
    for example in sorted(examples, key=lambda e: (e.width, e.key)):
        rows, width = rows + len(example.completions), max(width, example.width)
        if current and rows * width > token_budget:
            batches.append(current)
            current, rows, width = [], len(example.completions), example.width
        current.append(example)
    return [*batches, current] if current else batches


def micro_rows(rows: Sequence[Row], token_budget: int) -> list[list[Row]]:
    """Cut single rows, sorted by length, so that padded tokens stay within the budget; one row at least."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: (len(r[0]) + len(r[1]), r)):
        width = len(row[0]) + len(row[1])
        if not batches or (len(batches[-1]) + 1) * width > token_budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def row_key(row: Row) -> str:
    """Name a row by its tokens and where its completion begins."""
    prompt, completion = row
    return hashlib.sha256(repr((prompt, completion)).encode()).hexdigest()[:32]
