"""Keys and values of the replies under way: each a row of its own length, which joins and leaves between two steps.

transformers' own model computes, or with the project's own products one operator for all layers (`own_layers`). What is
here is where keys and values lie and, for transformers' model, which of them a token may see.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

Kept = list[tuple[Tensor, Tensor]]
"""Layer by layer the keys and values of one text, each (key heads, tokens, d)."""
FULL, SLIDING = "full_attention", "sliding_attention"
STEP = 64
"""Room grows by so many tokens at least."""


class RowLayer(CacheLayerMixin):
    """One layer's keys and values: (room for rows, key heads, room for tokens, d)."""

    is_sliding = False

    def __init__(self, rows: "Rows") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room of these tensors' form."""
        rows, tokens = self.rows.room
        self.keys = key_states.new_zeros(rows, key_states.shape[1], tokens, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], tokens, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write what is new, (rows, key heads, new tokens, d), behind each row, and return all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, _heads, new, _width = key_states.shape
        lengths = self.rows.lengths
        if rows == 1 or len(set(lengths)) == 1:
            self.keys[:rows, :, lengths[0] : lengths[0] + new] = key_states
            self.values[:rows, :, lengths[0] : lengths[0] + new] = value_states
        else:
            self.keys[self.rows.numbers, :, self.rows.ends] = key_states[:, :, 0]
            self.values[self.rows.numbers, :, self.rows.ends] = value_states[:, :, 0]
        longest = max(lengths) + new
        return self.keys[:rows, :, :longest], self.values[:rows, :, :longest]

    def in_larger_room(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Copy keys and values to a larger room; the layer stays as it is."""
        return _larger(self.keys, rows, tokens), _larger(self.values, rows, tokens)

    def get_seq_length(self) -> int:
        """The longest row's."""
        return max(self.rows.lengths, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a step looks at, and from which on."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """There is none."""
        return -1


class Rows(Cache):
    """The keys and values of several replies.

    One token goes to every row in a step; a longer piece only where there is one row.
    """

    layers: list[Any]

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=partial(RowLayer, self))  # type: ignore[arg-type]
        self.lengths: list[int] = []
        """How many tokens of each row are held."""
        self.room = (0, 0)
        self.numbers = self.ends = torch.zeros(0, dtype=torch.long)

    @classmethod
    def after(cls, kept: Kept, tokens: int) -> "Rows":
        """Begin one row with the first tokens of a text that is known; with none where `kept` is empty."""
        rows = cls()
        rows.lengths = [0]
        if not kept:
            return rows
        rows.make_room(tokens)
        for number, (keys, values) in enumerate(kept):
            layer = rows.held(number, keys[None], values[None])
            layer.keys[0, :, :tokens] = keys[:, :tokens]
            layer.values[0, :, :tokens] = values[:, :tokens]
        rows.lengths = [tokens]
        return rows

    @property
    def bytes_a_token(self) -> int:
        """What one token of one row takes."""
        tensors = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)

    def held(self, number: int, keys: Tensor, values: Tensor) -> RowLayer:
        """A layer's keys and values, of the form of these tensors where there are none yet."""
        while len(self.layers) <= number:
            self.layers.append(RowLayer(self))
        layer: RowLayer = self.layers[number]
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        return layer

    def make_room(self, new: int, rows: int | None = None) -> None:
        """See that `new` more tokens fit behind the longest row, and so many rows in all; else all stays as it was."""
        needed = max(self.lengths, default=0) + new
        wanted = len(self.lengths) if rows is None else rows
        most_rows, most_tokens = self.room
        if needed <= most_tokens and wanted <= most_rows:
            return
        if needed > most_tokens:
            most_tokens = -(-max(needed, most_tokens * 3 // 2) // STEP) * STEP
        if wanted > most_rows:
            most_rows = max(wanted, 2 * most_rows)
        moved = [layer.in_larger_room(most_rows, most_tokens) for layer in self.layers]  # all, before any is exchanged
        for layer, both in zip(self.layers, moved, strict=True):
            layer.keys, layer.values = both
        self.room = (most_rows, most_tokens)

    def join(self, other: "Rows") -> None:
        """Add a copy of the first row of these or others as the last one."""
        length = other.lengths[0]
        self.make_room(max(0, length - max(self.lengths, default=0)), len(self.lengths) + 1)
        row = len(self.lengths)
        for i, theirs in enumerate(other.layers):
            layer = self.held(i, theirs.keys, theirs.values)
            layer.keys[row, :, :length] = theirs.keys[0, :, :length]
            layer.values[row, :, :length] = theirs.values[0, :, :length]
        self.lengths.append(length)

    def keep(self, row: int) -> Kept:
        """Copy what a row holds."""
        length = self.lengths[row]
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self.layers]

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()
        if not self.lengths:  # a long conversation's room is not held for the next short one
            self.layers, self.room = [], (0, 0)

    def compute(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Let the model read new tokens behind each row; if it fails, the rows are as before.

        Args:
            model: any decoder of full or sliding attention.
            ids: (rows, new tokens)

        Returns:
            The logits behind the last new token of each row, (rows, vocabulary).
        """
        new = ids.shape[1]
        self.make_room(new)
        before = torch.tensor(self.lengths, device=ids.device)[:, None]
        self.ends, self.numbers = before[:, 0], torch.arange(len(self.lengths), device=ids.device)
        positions = before + torch.arange(new, device=ids.device)
        decoder: Any = model.base_model
        logits: Tensor
        if hasattr(decoder, "takes") and decoder.takes(ids, self):  # an OwnDecoder knows what a token sees
            logits = decoder.next_logits(ids, positions, self, model.get_output_embeddings())
        else:
            asked = {"input_ids": ids, "position_ids": positions, "past_key_values": self}
            logits = model(**asked, attention_mask=self._mask(model, positions), logits_to_keep=1).logits[:, -1]
        self.lengths = [length + new for length in self.lengths]
        return logits

    def _mask(self, model: PreTrainedModel, positions: Tensor) -> Any:
        """Say which keys each new token sees: one mask, one for each kind of layer, or None where the kernel knows."""
        rows, new = positions.shape
        longest = max(self.lengths) + new
        config = model.config.get_text_config()
        back, types = window(config), set(getattr(config, "layer_types", None) or ())
        slides = back is not None and longest > back
        same = len(set(self.lengths)) == 1
        if same and not slides and (new == 1 or longest == new) and model.config._attn_implementation == "sdpa":
            return None
        seen = torch.arange(longest, device=positions.device)
        full = (seen <= positions[:, :, None])[:, None]
        sliding = full & (seen > positions[:, :, None] - (back or 0))[:, None] if slides else full
        if model.config._attn_implementation != "sdpa":
            full, sliding = (_additive(mask, model.dtype) for mask in (full, sliding))
        if {FULL, SLIDING} <= types and slides:
            return {FULL: full, SLIDING: sliding}
        return full if types == {FULL} else sliding


class OneRow(DynamicCache):
    """The same promise for models whose memory is more than keys and values to look at: one row, never copied."""

    bytes_a_token = 0
    room = (1, 0)

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)
        self.lengths = [0]

    def compute(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """See Rows."""
        output = model(input_ids=ids, past_key_values=self, logits_to_keep=1)
        self.lengths = [self.lengths[0] + ids.shape[1]]
        logits: Tensor = output.logits[:, -1]
        return logits


def can_be_joined(config: PretrainedConfig) -> bool:
    """Whether a model's replies can be rows of one batch: it looks back at keys and values, in full or in a window."""
    types = set(getattr(config.get_text_config(), "layer_types", None) or ())
    return types <= {FULL, SLIDING}


def window(config: PretrainedConfig) -> int | None:
    """How far back a sliding layer sees, where there are such layers."""
    types = set(getattr(config, "layer_types", None) or {SLIDING})
    if SLIDING not in types or not getattr(config, "use_sliding_window", True):
        return None
    back: int | None = getattr(config, "sliding_window", None)
    return back


def _larger(old: Tensor, rows: int, tokens: int) -> Tensor:
    new = old.new_zeros(rows, old.shape[1], tokens, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
