"""Examples to token rows, and rows to batches. Text becomes tokens in assistant.prompt, as in serving.

The completions of one prompt may share a row: prompt, then one completion after the other, each at the positions
it would have alone and looking at the prompt and itself. Rows are padded on the right, and those of one completion
carry no mask: in a causal model no token looks at what follows it. A step's examples are sorted by length and cut
into micro-batches by a token budget; losses are divided by the weight of the whole step, so that neither the cut
nor the sharing changes a gradient.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from assistant.engine import Message
from assistant.errors import PromptTooLong
from assistant.prompt import count_control_tokens, encode_completion, fit_prompt
from finetune.examples import Example, ordered_pairs

COLUMNS = 16
"""Rows are padded to a multiple of so many tokens.

On a CPU oneDNN writes code for every shape that it meets, and keeps it: with rows as wide as they happen to be a
training grew by 65 MB a step.
"""

Ids = tuple[int, ...]

Row = tuple[Ids, Ids]
"""Prompt ids and completion ids."""

SharedRow = tuple[Ids, ...]
"""Prompt ids, then the ids of each completion; with one completion a Row."""


RowT = TypeVar("RowT", bound=SharedRow)


class Sharing(NamedTuple):
    """Which completions of one prompt may share a row."""

    tokens: int
    """Longest shared row; 0 where none may."""
    reach: int
    """Longest prompt with one completion: beyond it a model's attention no longer reaches its first token."""


ALONE = Sharing(0, 0)
"""Every completion in a row of its own."""


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
    source: str = "file"
    """As in Example."""
    sure: bool = False
    """Of a choice: reward models that are right more often than people support it."""
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
    def is_judged(self) -> bool:
        """Whether somebody said how good it is, so that its log-probabilities under the base are needed."""
        return self.thumb is not None or bool(self.pairs)

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

    def shares(self, sharing: Sharing) -> bool:
        """Whether it has several completions and they share a row in training."""
        tokens = len(self.prompt) + sum(map(len, self.completions))
        return len(self.completions) > 1 and self.width <= sharing.reach and tokens <= sharing.tokens

    def packed(self, sharing: Sharing) -> Sequence[SharedRow]:
        """Its rows in training."""
        return [(self.prompt, *self.completions)] if self.shares(sharing) else self.rows


@dataclass(frozen=True)
class Batch:
    """Padded rows and where their C completions are predicted."""

    input_ids: Tensor
    """(R, T)"""
    rows: Tensor
    """(N,) the row of each completion token."""
    columns: Tensor
    """(N,) the position that predicts it: one to its left, or the prompt's last."""
    targets: Tensor
    """(N,) its id."""
    owners: Tensor
    """(C,) the row that holds each completion, in the order of the examples' completions."""
    ends: Tensor
    """(C,) the position of each completion's last token in its row."""
    completion: Tensor
    """(N,) the completion that each token belongs to."""
    positions: Tensor | None = None
    """(R, T) what the model takes for each token's place; None where that is its column."""
    mask: Tensor | None = None
    """(R, 1, T, T) whether a token looks at another; None where it looks at all before it."""

    def inputs(self) -> dict[str, Tensor]:
        """Give the arguments of the model's forward."""
        if self.positions is None or self.mask is None:
            return {"input_ids": self.input_ids}
        return {"input_ids": self.input_ids, "position_ids": self.positions, "attention_mask": self.mask}


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
                source=example.source,
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


def make_batch(rows: Sequence[SharedRow], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right and note where each completion token is predicted."""
    input_ids = torch.zeros(len(rows), _widest(rows), dtype=torch.long)
    found: list[tuple[int, int, int, int]] = []  # row, column, target, completion of each token
    spans: list[tuple[int, int]] = []  # row and end of each completion
    for index, (prompt, *completions) in enumerate(rows):
        start = len(prompt)
        for ids in completions:
            columns = [len(prompt) - 1, *range(start, start + len(ids) - 1)]
            found += [(index, *at, len(spans)) for at in zip(columns, ids, strict=True)]
            start += len(ids)
            spans.append((index, start - 1))
        input_ids[index, :start] = torch.tensor([token for part in rows[index] for token in part])
    row, column, target, completion = torch.tensor(found, device=device).T
    owners, ends = torch.tensor(spans, device=device).T
    batch = Batch(input_ids.to(device), row, column, target, owners, ends, completion)
    if all(len(parts) == 2 for parts in rows):
        return batch
    return replace(batch, **_positions_and_mask(rows, input_ids.shape[1], device))


def _positions_and_mask(rows: Sequence[SharedRow], width: int, device: torch.device | str) -> dict[str, Tensor]:
    """Let each completion follow the prompt; padding passes for the end of a row's last one, which nobody looks at."""
    part = torch.zeros(len(rows), width, dtype=torch.long)  # 0 in the prompt, then 1 … K
    positions = torch.zeros_like(part)
    for index, (prompt, *completions) in enumerate(rows):
        start = len(prompt)
        positions[index, :start] = torch.arange(start)
        for number, ids in enumerate(completions, 1):
            part[index, start:] = number
            positions[index, start : start + len(ids)] = torch.arange(len(prompt), len(prompt) + len(ids))
            start += len(ids)
    looks = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])  # (R, T, T)
    return {"positions": positions.to(device), "mask": looks.tril()[:, None].to(device)}


def _width(row: SharedRow) -> int:
    """Give the columns that a row takes in a batch."""
    return -(-sum(map(len, row)) // COLUMNS) * COLUMNS


def _widest(rows: Sequence[SharedRow]) -> int:
    return max(map(_width, rows))


def plan_steps(times: Sequence[int], batch_examples: int, seed: int) -> list[list[int]]:
    """List the example numbers of every optimiser step: each epoch a fresh order that only the seed decides.

    Args:
        times: how often each example is seen; an epoch holds those that are seen so often or more.
        batch_examples: examples of a step.
        seed: of the orders.
    """
    steps: list[list[int]] = []
    for epoch in range(max(times)):
        order = list(range(len(times)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        seen = [i for i in order if times[i] > epoch]
        steps += [seen[start : start + batch_examples] for start in range(0, len(seen), batch_examples)]
    return steps


def step_weight(examples: Sequence[Encoded], mean_weight: float | None) -> float:
    """Say what a step counts: the mean weight of its examples beside that of the training's; None is the step's own."""
    return 1.0 if mean_weight is None else sum(e.weight for e in examples) / len(examples) / mean_weight


def micro_batches(examples: Sequence[Encoded], token_budget: int, sharing: Sharing = ALONE) -> list[list[Encoded]]:
    """Cut examples, sorted by length, so that padded tokens stay within the budget; one example at least.

    Shared rows stand apart from rows of one completion, which need no mask; the mask knows no sliding window.
    """
    batches: list[list[Encoded]] = []
    for shared in (False, True):
        count = 0
        sized = [(_widest(e.packed(sharing)), e.key, e) for e in examples if e.shares(sharing) is shared]
        for width, _, example in sorted(sized, key=lambda s: s[:2]):
            rows = len(example.packed(sharing))
            count += rows
            if count == rows or count * width > token_budget:
                batches.append([])
                count = rows
            batches[-1].append(example)
    return batches


def micro_rows(rows: Sequence[RowT], token_budget: int) -> list[list[RowT]]:
    """Cut rows, sorted by length, so that padded tokens stay within the budget; one row at least.

    Shared rows stand apart, as in `micro_batches`.
    """
    batches: list[list[RowT]] = []
    for row in sorted(rows, key=lambda r: (len(r) > 2, _width(r), r)):
        last = batches[-1] if batches else []
        if not last or (len(last[0]) > 2) != (len(row) > 2) or (len(last) + 1) * _width(row) > token_budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def share_rows(rows: Sequence[Row], sharing: Sharing) -> list[SharedRow]:
    """Put the completions of each prompt into one row where they may share it, and into several where they are many."""
    shared: list[list[Ids]] = []
    open_row: dict[Ids, list[Ids]] = {}
    for prompt, completion in rows:
        parts = open_row.get(prompt)
        may = len(prompt) + len(completion) <= sharing.reach
        if parts is not None and may and sum(map(len, parts)) + len(completion) <= sharing.tokens:
            parts.append(completion)
            continue
        shared.append([prompt, completion])
        if may:
            open_row[prompt] = shared[-1]
    return [tuple(parts) for parts in shared]


def single_rows(rows: Sequence[SharedRow]) -> list[Row]:
    """List what shared rows hold, in the order of a batch's completions."""
    return [(prompt, completion) for prompt, *completions in rows for completion in completions]


def row_key(row: SharedRow) -> str:
    """Name a row by its tokens and where its completions begin."""
    return hashlib.sha256(repr(row).encode()).hexdigest()[:32]
