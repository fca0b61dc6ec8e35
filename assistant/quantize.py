"""Weight-only integers for the CPU: 4-bit linear layers and an 8-bit head, exchanged inside transformers' own model.

A decode step reads every weight once and is bound by memory, so few bits win; a long prompt is bound by arithmetic,
where whole matrix products win, in float32 on processors that have no fast ones in bf16. So a layer multiplies few rows
by its integers and many rows by the numbers that these stand for: the same weight, but for the rounding of bf16.

Four bits: groups of 32 along the input, scale and minimum from the group's extremes. The embedded file's
Q4_1 blocks are exactly that, so nothing is lost twice. Kernels: torch's `_weight_int4pack_mm_for_cpu` and
`_weight_int8pack_mm`, which need a CPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

GROUP = 32
EIGHT_BIT_ACTIVATIONS = "int4, activations in 8 bits"
"""The numeric form where the project's own products are taken for few rows."""
FEW_ROWS, HEAD_ROWS = 8, 32
"""Up to so many rows the integer kernels are taken, measured on two cores. The head's whole products begin later, since
it is restored from its 8 bits each time."""
UNLIMITED = 2**31

OwnForm = tuple[Tensor, Tensor, Tensor]
"""A weight as the project's own products take it: levels, scales and zeros; see own_form."""


class Int4Linear(nn.Linear):
    """A linear layer without gradient whose weight is held in 4 bits for few rows, and whole for many."""

    bits = 4
    packed: Tensor | None
    scales_and_zeros: Tensor
    own: OwnForm | None = None
    few_rows = FEW_ROWS

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: torch.dtype, own_rows: int = 0) -> "Int4Linear":
        """Pack a layer's weight, (out, in) with `in` a multiple of 32.

        Args:
            linear: the layer, with its weight whole.
            dtype: of the products of many rows.
            own_rows: for up to so many rows the project's own products are taken, which are loaded.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        levels, scales_and_zeros = quantize_groups(linear.weight.detach())
        layer.bias = linear.bias
        layer.register_buffer("scales_and_zeros", scales_and_zeros, persistent=False)
        packed = None if own_rows else torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
        layer.register_buffer("packed", packed, persistent=False)
        if own_rows != UNLIMITED:
            layer.weight = nn.Parameter(restore_groups(levels, scales_and_zeros).to(dtype), requires_grad=False)
        if own_rows:
            layer.take_own(own_form(levels, scales_and_zeros), own_rows)
        return layer

    def take_own(self, form: OwnForm, few_rows: int) -> None:
        """Multiply up to so many rows by the project's own products; if that is all, the whole weight is let go."""
        self.own, self.few_rows, self.packed = form, few_rows, None
        if few_rows == UNLIMITED:
            self.weight = nn.Parameter(self.scales_and_zeros.new_empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ + b for bf16 x (…, in)."""
        rows = x.numel() // self.in_features
        if rows > self.few_rows:
            y = nn.functional.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
        elif self.own:
            y = torch.ops.nightschool.linear4(x.contiguous(), *self.own)
        else:
            flat = x.reshape(rows, self.in_features).contiguous()
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, GROUP, self.scales_and_zeros)
            y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def in_own_form(self) -> OwnForm:
        """Lay the weight out for the project's own products."""
        scale, zero = self.scales_and_zeros.float().permute(2, 1, 0).unsqueeze(-1)
        groups = self.weight.float().view(self.out_features, -1, GROUP)
        levels = ((groups - zero) / scale + 8).round().clamp(0, 15).to(torch.uint8)
        return own_form(levels.view(self.weight.shape), self.scales_and_zeros)


class Int8Head(nn.Linear):
    """The output head with 8-bit rows; the embedding it may be tied to stays as it is."""

    bits = 8
    quantised: Tensor
    scales: Tensor
    dtype: torch.dtype
    own = False

    @classmethod
    def from_linear(cls, linear: nn.Linear, dtype: torch.dtype, own_rows: int = 0) -> "Int8Head":
        """Take over a bf16 head and add its 8-bit form, one scale an output row; the arguments are as in Int4Linear."""
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.dtype, head.own = dtype, bool(own_rows)
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias = linear.weight, linear.bias
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
        head.register_buffer("quantised", (weight / scales[:, None]).round().to(torch.int8), persistent=False)
        head.register_buffer("scales", scales.to(torch.bfloat16), persistent=False)
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits (…, vocabulary) for bf16 x (…, hidden)."""
        rows = x.numel() // self.in_features
        if rows > HEAD_ROWS:  # 8 bits are whole numbers in bf16, too
            logits = (nn.functional.linear(x.to(self.dtype), self.quantised.to(self.dtype)) * self.scales).to(x.dtype)
        else:
            flat = x.reshape(rows, self.in_features).contiguous()
            product = torch.ops.nightschool.linear8 if self.own else torch.ops.aten._weight_int8pack_mm
            logits = product(flat, self.quantised, self.scales)
            logits = logits.view(*x.shape[:-1], self.out_features)
        return logits if self.bias is None else logits + self.bias


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 4 bits by groups of 32.

    Args:
        weight: (out, in), `in` a multiple of 32.

    Returns:
        Levels 0..15 as uint8 (out, in), and bf16 (in / 32, out, 2) holding scale and zero, where
        the kernel computes (level - 8) * scale + zero.
    """
    out, inner = weight.shape
    groups = weight.to(torch.float32, copy=True).view(out, inner // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-8).to(torch.bfloat16).float()
    zero = (low + 8 * scale).to(torch.bfloat16).float()
    # in place: most of a start's seconds here went into fresh memory
    levels = groups.sub_(zero[..., None]).div_(scale[..., None]).add_(8).round_().clamp_(0, 15).to(torch.uint8)
    scales_and_zeros = torch.stack([scale, zero], dim=-1).transpose(0, 1).to(torch.bfloat16).contiguous()
    return levels.view(out, inner), scales_and_zeros


def restore_groups(levels: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """Compute the numbers that `quantize_groups` made levels of: (out, in) float32."""
    scale, zero = scales_and_zeros.float().permute(2, 1, 0).unsqueeze(-1)  # (out, groups, 1) each
    groups = levels.float().view(*scale.shape[:2], GROUP)
    restored: Tensor = groups.sub_(8).mul_(scale).add_(zero)
    return restored.view(levels.shape)


def own_form(levels: Tensor, scales_and_zeros: Tensor) -> OwnForm:
    """Lay out what `quantize_groups` gave as the project's own products read it.

    Sixteen outputs lie beside each other: a byte holds a level of one of them and of one of four inputs, and above it
    that of the input four later.

    Returns:
        Levels (out / 16, in / 8, 64) uint8, scales and zeros (out / 16, in / 32, 16) bf16.
    """
    out, inner = levels.shape
    fours = levels.view(out // 16, 16, inner // 8, 2, 4)
    both = fours[..., 0, :] | (fours[..., 1, :] << 4)  # (out / 16, 16, in / 8, 4)
    scales, zeros = (half.view(-1, out // 16, 16).transpose(0, 1).contiguous() for half in scales_and_zeros.unbind(-1))
    return both.transpose(1, 2).reshape(out // 16, inner // 8, 64), scales, zeros


def can_be_int4(linear: nn.Linear) -> bool:
    """Whether the kernel takes this layer: plain, bf16, on the CPU, input a multiple of 32, output of 16."""
    return (
        type(linear) is nn.Linear
        and linear.weight.dtype == torch.bfloat16
        and linear.weight.device.type == "cpu"
        and linear.in_features % GROUP == 0
        and linear.out_features % 16 == 0
    )


def integer_layers(
    model: PreTrainedModel,
) -> Iterator[tuple[nn.Module, str, nn.Linear, type[Int4Linear] | type[Int8Head]]]:
    """Yield every linear layer that is held in integers or can be, with its parent, its name there and its form."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Int4Linear | Int8Head):
                yield parent, name, child, type(child)
            elif isinstance(child, nn.Linear) and can_be_int4(child):
                yield parent, name, child, Int8Head if child is head else Int4Linear


def exchange_for_integers(model: PreTrainedModel, dtype: torch.dtype, own_rows: int = 0) -> bool:
    """Exchange every linear layer that can be for its 4-bit form and the head for its 8-bit form, in place.

    Args:
        model: in bf16, which the integer kernels take and give.
        dtype: of the products of many rows.
        own_rows: as in Int4Linear.

    Returns:
        Whether any layer could be exchanged.
    """
    found = list(integer_layers(model))
    for parent, name, child, form in found:
        parent.register_module(name, form.from_linear(child, dtype, own_rows))
    return bool(found)
