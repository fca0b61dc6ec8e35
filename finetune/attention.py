"""Attention for short rows on a CPU: two matrix products and a softmax, forward and backward.

torch's fused kernel is made for long rows: up to a few hundred tokens its backward takes three to five
times as long as the products it saves (measured with bf16 on two cores, rows of 128 to 256 tokens).
Everything else (a GPU, long rows, a model's own extras) goes to transformers' `sdpa` unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "short_rows"
SHORT = 512
"""Up to so many tokens a row the plain products are faster; their (heads, T, T) scores grow with the square."""
MASKED = 1024
"""The same with a mask, which torch's kernel takes worse: at 780 tokens a step took 8.8 s against 10.7 s."""
KNOWN = {
    "sliding_window",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "use_cache",
}


@contextmanager
def short_rows(model: PreTrainedModel) -> Iterator[None]:
    """Let a model use this attention inside the block, where it uses `sdpa` outside."""
    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Compute attention.

    Source: softmax(Q Kᵀ / √d + mask) V.

    Args:
        module: the attention layer.
        query: (B, heads, T, d)
        key: (B, key heads, S, d); S is T, or more where one token follows a cache.
        value: (B, key heads, S, d)
        attention_mask: (B or 1, 1, T, S) whether a token looks at another; None where only causality masks.
        dropout: 0 here, always.
        scaling: None is 1 / √d.
        extras: what the model's layer passes besides.

    Returns:
        (B, T, heads, d), and None for the weights.
    """
    batch, heads, length, width = query.shape
    seen = key.shape[2]
    short = seen <= (SHORT if attention_mask is None else MASKED)
    plain = short and length in (1, seen) and dropout == 0
    if not plain or any(value is not None for name, value in extras.items() if name not in KNOWN):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extras
        )
        return output
    key_heads = key.shape[1]
    # Heads that share a key are stacked into longer rows, so that no key is copied.
    stacked = query.reshape(batch, key_heads, heads // key_heads * length, width)
    scale = scaling or width**-0.5
    # Of two matrices the transposed one is copied: after a cache the keys are by far the larger ones.
    onward = length < seen
    scores = (key @ (stacked * scale).mT).mT if onward else stacked @ (key * scale).transpose(-1, -2)
    if attention_mask is None:
        attention_mask = torch.ones(1, 1, length, seen, dtype=torch.bool, device=query.device).tril(seen - length)
    # Finite: padding on the left looks at nothing, and a softmax over nothing but -inf is NaN for all that follows.
    least = torch.finfo(query.dtype).min
    bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, least)[:, :, None]
    weights = torch.softmax(scores.view(batch, key_heads, -1, length, seen) + bias, dim=-1)
    mixed = weights.view(batch, key_heads, -1, seen) @ value
    return mixed.view(batch, heads, length, width).transpose(1, 2), None
