"""Norm, MLP and attention in one go each: transformers' classes with a shorter way, taken with the own products.

A step of a small model is some two thousand small operators, and most of its time went into starting them. Here the
norm, the gated MLP and the attention are one operator each (native/), rounded to bf16 where transformers rounds.
Any other case goes the way of the class that is extended. A layer is exchanged by its class alone, so that names,
weights and adapters stay where they were.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from assistant.lora import AdaptedLinear, AdapterBank
from assistant.quantize import EIGHT_BIT_ACTIVATIONS, UNLIMITED, Int4Linear, Int8Head
from assistant.rows import Rows, window

LANES = 8
"""A norm must be a multiple of so many numbers wide, and a head of twice as many."""
NOTHING = (None, None)


class OwnLayer(nn.Module):
    """A layer that takes an operator for up to so many rows, in bf16.

    Its linear layers are held as the operator takes them: three tensors of each weight and its bias; what the adapters
    of the moment add is asked for each time.
    """

    few_rows: int
    weights: list[Tensor]
    biases: list[Tensor | None]
    linears: tuple[AdaptedLinear, ...]

    def takes(self, x: Tensor) -> bool:
        """Whether the operator is for x (…, n)."""
        return x.numel() <= self.few_rows * x.shape[-1] and x.dtype == torch.bfloat16 and x.is_contiguous()

    def changes(self) -> list[Tensor | None]:
        """What each adapter of the moment adds: the numbers of its rows, and two factors of each linear layer."""
        found: list[Tensor | None] = []
        for factors, rows in self.linears[0].current:
            found.append(rows)
            for linear in self.linears:
                found.extend(factors.get(linear.name, NOTHING))
        return found


class OwnNorm(OwnLayer):
    """A root mean square norm."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute the norm of (…, n)."""
        if not self.takes(hidden_states):
            return super().forward(hidden_states)  # type: ignore[no-any-return]
        y: Tensor = torch.ops.nightschool.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return y


class OwnGated(OwnLayer):
    """A gated MLP with silu."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the MLP of (…, hidden)."""
        if not self.takes(x):
            return super().forward(x)  # type: ignore[no-any-return]
        y: Tensor = torch.ops.nightschool.gated(x, self.weights, self.biases, self.changes())
        return y


class OwnAttention(OwnLayer):
    """Causal attention to all that came before, with rotary positions."""

    layer_idx: int
    head_dim: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Any]:
        """Compute the attention of (rows, new tokens, hidden)."""
        if not self.takes(hidden_states) or not isinstance(past_key_values, Rows):
            return super().forward(  # type: ignore[no-any-return]
                hidden_states, position_embeddings, attention_mask, past_key_values, **others
            )
        key_heads = self.linears[1].out_features // self.head_dim
        like = hidden_states.new_empty(1, key_heads, 1, self.head_dim)
        held = past_key_values.held(self.layer_idx, like, like)
        y = torch.ops.nightschool.attention(
            hidden_states,
            self.weights,
            self.biases,
            self.changes(),
            *position_embeddings,
            held.keys,
            held.values,
            past_key_values.ends,
            self.scaling,
        )
        return y, None


def _extended(own: type, *kinds: type) -> dict[type, type]:
    return {kind: type(f"Own{kind.__name__}", (own, kind), {}) for kind in kinds}


NORMS = _extended(OwnNorm, LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
GATED = _extended(OwnGated, LlamaMLP, MistralMLP, Qwen2MLP)
ATTENTIONS = _extended(OwnAttention, LlamaAttention, MistralAttention, Qwen2Attention)
OWN = NORMS | GATED | ATTENTIONS


def numeric_form(few_rows: int) -> str:
    """Name what a model computes in that takes the own products for so many rows."""
    return EIGHT_BIT_ACTIVATIONS + (", prompts too" if few_rows == UNLIMITED else "")


def take_own_products(model: PreTrainedModel, adapters: AdapterBank, few_rows: int) -> None:
    """Let a model in 4 bits compute up to so many rows by the project's own operators, which must be loaded.

    Args:
        model: its linear layers are exchanged for integers.
        adapters: beside that model.
        few_rows: UNLIMITED is no bound; then the whole weights, which nothing is multiplied by any more, are let go.
    """
    integers = [layer for layer in model.modules() if isinstance(layer, Int4Linear)]
    forms = [layer.in_own_form() for layer in integers]  # all of them, before any is exchanged
    for layer, form in zip(integers, forms, strict=True):
        layer.own, layer.few_rows, layer.packed = form, few_rows, None
        if few_rows == UNLIMITED:
            layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
    head = model.get_output_embeddings()
    if isinstance(head, Int8Head):
        head.own = True
    adapters.take_own_products()
    for module in model.modules():
        _exchange(module, few_rows)


def _exchange(layer: Any, few_rows: int) -> None:
    """Give a layer the shorter way, where there is one."""
    linears = _linears(layer)
    if linears is None:
        return
    bases = [linear.base for linear in linears]
    if all(isinstance(base, Int4Linear) and base.own for base in bases):
        layer.__class__ = OWN[type(layer)]
        layer.few_rows = few_rows
        layer.__dict__["linears"] = linears  # they are its submodules already
        layer.weights = [part for base in bases for part in base.own]
        layer.biases = [base.bias for base in bases]


def _linears(layer: Any) -> tuple[Any, ...] | None:
    """The linear layers that the operator for a layer takes; None where there is no such operator."""
    kind = type(layer)
    if kind in NORMS and layer.weight.numel() % LANES == 0:
        return ()
    if kind in GATED and layer.config.hidden_act == "silu":
        return layer.gate_proj, layer.up_proj, layer.down_proj
    if kind in ATTENTIONS and layer.head_dim % (2 * LANES) == 0 and window(layer.config) is None:
        return layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj
    return None
