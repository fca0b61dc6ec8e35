"""A whole decoder as one operator: transformers' class with a shorter way, taken with the own products.

A step of a small model is some two thousand small operators, and most of its time went into starting them and into
waking threads for each. Here all layers are one operator (native/), rounded to bf16 where transformers rounds. Any
other case goes the way of the class that is extended. The decoder is exchanged by its class alone, so that names,
weights and adapters stay where they were.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from assistant.lora import AdaptedLinear, AdapterBank
from assistant.quantize import EIGHT_BIT_ACTIVATIONS, HEAD_ROWS, UNLIMITED, Int4Linear, Int8Head
from assistant.rows import Rows, window

LANES = 8
"""What is normed must be a multiple of so many numbers wide, and a head of twice as many."""
NOTHING = (None, None)
NEVER_CHANGE = {"default", "linear", "llama3", "yarn"}
"""Kinds of positions that do not depend on how long a text is."""


class OwnDecoder(nn.Module):
    """A decoder that takes its operator for up to so many rows, in bf16.

    Its linear layers are held as the operator takes them: three tensors of each weight and its bias; what the adapters
    of the moment add is asked for each time.
    """

    few_rows: int
    weights: list[Tensor]
    biases: list[Tensor | None]
    norms: list[Tensor]
    linears: tuple[AdaptedLinear, ...]
    turns: list[Tensor]
    """Cosine and sine of the positions so far, (room, width) each."""
    config: Any
    embed_tokens: nn.Embedding
    rotary_emb: Any
    layers: Any
    norm: Any

    def takes(self, input_ids: Tensor, past_key_values: Any) -> bool:
        """Whether the operator is for what is read behind these keys and values."""
        return isinstance(past_key_values, Rows) and input_ids.numel() <= self.few_rows

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """Compute what lies behind the last layer's norm, (rows, new tokens, hidden)."""
        if input_ids is None or not self.takes(input_ids, past_key_values):
            return super().forward(input_ids, attention_mask, position_ids, past_key_values, **others)
        y = self._decode(input_ids, position_ids, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=y, past_key_values=past_key_values)

    def next_logits(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, head: Any) -> Tensor:
        """Compute what the head makes of the last new token of each row, (rows, vocabulary)."""
        if isinstance(head, Int8Head) and head.own and head.bias is None and len(input_ids) <= HEAD_ROWS:
            return self._decode(input_ids, position_ids, rows, head.quantised, head.scales)
        logits: Tensor = head(self._decode(input_ids, position_ids, rows)[:, -1])
        return logits

    def _decode(self, input_ids: Tensor, position_ids: Tensor, rows: Rows, *head: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        attention = self.layers[0].self_attn
        if len(rows.layers) < len(self.layers):
            like = x.new_empty(1, self.linears[1].out_features // attention.head_dim, 1, attention.head_dim)
            for number in range(len(self.layers)):
                rows.held(number, like, like)
        y: Tensor = torch.ops.nightschool.decode(
            x,
            self.weights,
            self.biases,
            self._changes(),
            self.norms,
            *self._turns(x, position_ids, rows.room[1]),
            [layer.keys for layer in rows.layers],
            [layer.values for layer in rows.layers],
            rows.ends,
            attention.scaling,
            self.norm.variance_epsilon,
            *(head or NOTHING),
        )
        return y

    def _turns(self, x: Tensor, positions: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each new token (rows, new, width): looked up where a position's never change."""
        if self.rotary_emb.rope_type not in NEVER_CHANGE:
            cosine, sine = self.rotary_emb(x, position_ids=positions)
            return cosine, sine
        if not self.turns or len(self.turns[0]) < room:
            everywhere = torch.arange(room, device=x.device)[None]
            self.turns = [table[0] for table in self.rotary_emb(x, position_ids=everywhere)]
        cosine, sine = (nn.functional.embedding(positions, table) for table in self.turns)
        return cosine, sine

    def _changes(self) -> list[Tensor | None]:
        """What each adapter of the moment adds: the numbers of its rows, and two factors of each linear layer."""
        found: list[Tensor | None] = []
        for factors, rows in self.linears[0].current:
            found.append(rows)
            for linear in self.linears:
                found.extend(factors.get(linear.name, NOTHING))
        return found


DECODERS: dict[type, type] = {
    kind: type(f"Own{kind.__name__}", (OwnDecoder, kind), {}) for kind in (LlamaModel, MistralModel, Qwen2Model)
}


def numeric_form(few_rows: int) -> str:
    """Name what a model computes in that takes the own products for so many rows."""
    return EIGHT_BIT_ACTIVATIONS + (", prompts too" if few_rows == UNLIMITED else "")


def take_own_products(model: PreTrainedModel, adapters: AdapterBank, few_rows: int) -> None:
    """Let a model in 4 bits compute up to so many rows by the project's own operators, which must be loaded.

    If memory does not suffice, model and adapters are as before.

    Args:
        model: its linear layers are exchanged for integers.
        adapters: beside that model.
        few_rows: UNLIMITED is no bound.
    """
    others = [layer for layer in model.modules() if isinstance(layer, Int4Linear) and not layer.own]
    forms = [layer.in_own_form() for layer in others]  # what memory may not suffice for, before anything is exchanged
    loaded = adapters.in_own_form()
    for layer, form in zip(others, forms, strict=True):
        layer.take_own(form, few_rows)
    head = model.get_output_embeddings()
    if isinstance(head, Int8Head):
        head.own = True
    adapters.take_own_products(loaded)
    if _is_known(model.base_model):
        _exchange(model.base_model, few_rows)


def _exchange(decoder: Any, few_rows: int) -> None:
    """Give a decoder the shorter way."""
    linears: tuple[Any, ...] = tuple(linear for layer in decoder.layers for linear in _linears(layer))
    norms = [norm for layer in decoder.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    decoder.__class__ = DECODERS[type(decoder)]
    decoder.few_rows = few_rows
    decoder.__dict__["linears"] = linears  # they are its submodules already
    decoder.weights = [part for linear in linears for part in linear.base.own]
    decoder.biases = [linear.base.bias for linear in linears]
    decoder.norms = [norm.weight for norm in (*norms, decoder.norm)]
    decoder.turns = []


def _is_known(decoder: Any) -> bool:
    """Whether the operator computes what this decoder does."""
    return (
        type(decoder) in DECODERS
        and decoder.config.hidden_act == "silu"
        and decoder.config.hidden_size % LANES == 0
        and window(decoder.config) is None
        and all(
            layer.self_attn.head_dim % (2 * LANES) == 0
            and all(isinstance(linear.base, Int4Linear) and linear.base.own for linear in _linears(layer))
            for layer in decoder.layers
        )
    )


def _linears(layer: Any) -> tuple[AdaptedLinear, ...]:
    """The linear layers of one layer, in the operator's order."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
