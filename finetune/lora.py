"""Adapters while they learn: float32 factors on frozen linear layers. Their tensors carry PEFT's names.

Numbered differences from PEFT's layer (Hu et al. 2021, arXiv:2106.09685):
1. x is never copied to float32: the factors are cast to x's type for the product, their gradients arrive
   in float32. On a bf16 base that is most of the adapter's cost.
2. Product, scale and sum are one `addmm`.
Initialisation is PEFT's: A uniform in ±1/√in, B zero.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from assistant.adapters import factor_names
from assistant.arithmetic import is_turned, turned_linear

FEW_ROWS = 128
"""Up to so many rows, as sampled replies have, products are formed the other way round; see `turned_linear`."""


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank change: y = base(x) + alpha / r · (x Aᵀ) Bᵀ."""

    def __init__(self, base: nn.Linear, rank: int, alpha: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        bound = 1 / math.sqrt(base.in_features)
        start = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
        self.a = nn.Parameter(start.to(base.weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer for x (…, in)."""
        few = x.numel() <= FEW_ROWS * x.shape[-1] and not torch.is_grad_enabled()
        if few and type(self.base) is nn.Linear and is_turned(x, self.base.weight):
            return self._of_few(x)
        y: Tensor = self.base(x)
        low = functional.linear(x.reshape(-1, x.shape[-1]), self.a.to(x.dtype))
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), low, self.b.to(x.dtype).T, alpha=self.scale)
        return flat.view(y.shape)

    def _of_few(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = turned_linear(rows, self.base.weight, self.base.bias)
        change = turned_linear(turned_linear(rows, self.a), self.b)
        return y.add_(change, alpha=self.scale).reshape(*x.shape[:-1], -1)


class Lora:
    """All trainable layers of one model, by name."""

    def __init__(self, layers: dict[str, LoraLinear]) -> None:
        self.layers = layers

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [p for layer in self.layers.values() for p in (layer.a, layer.b)]

    @property
    def target_modules(self) -> list[str]:
        """The layers' last names, as PEFT's configuration lists them."""
        return sorted({name.rsplit(".", 1)[-1] for name in self.layers})

    def tensors(self) -> dict[str, Tensor]:
        """Copy the factors under PEFT's names."""
        named: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            for factor, values in zip(factor_names(name), (layer.a, layer.b), strict=True):
                named[factor] = values.detach().float().cpu().clone()
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the factors to those of `tensors`, by PEFT's names."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                for factor, values in zip(factor_names(name), (layer.a, layer.b), strict=True):
                    values.copy_(tensors[factor])


class Adapters:
    """Several adapters on one frozen model; the one named `current` computes, and for None the bare base.

    A switch is an assignment that all layers see. Run the backward pass of one adapter before you switch to another
    one: nothing here recomputes activations, but whatever does would recompute them with the adapter then current.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self.loras: dict[str, Lora] = {}

    def __getitem__(self, name: str) -> Lora:
        return self.loras[name]


class SwitchedLinear(nn.Module):
    """A frozen linear layer with the change of whichever adapter is current."""

    def __init__(self, base: nn.Linear, layers: dict[str, LoraLinear], adapters: Adapters) -> None:
        super().__init__()
        self.base = base
        self.layers = layers
        self.adapters = adapters

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer for x (…, in)."""
        current = self.adapters.current
        y: Tensor = self.base(x) if current is None else self.layers[current](x)
        return y


@contextmanager
def attach_lora(model: nn.Module, head: nn.Module, *, rank: int, alpha: int, seed: int) -> Iterator[Lora]:
    """Give every linear layer but the head a fresh adapter, inside the block; afterwards the model is as before.

    Args:
        model: frozen in place (no parameter of it takes a gradient).
        head: the output layer, left alone.
        rank: r.
        alpha: the change is scaled by alpha / rank.
        seed: of the initialisation.
    """
    model.requires_grad_(False)
    places = _linear_layers(model, head)
    layers = _fresh_layers(places, rank, alpha, seed)
    with _replaced(places, layers):
        yield Lora(layers)


@contextmanager
def attach_adapters(
    model: nn.Module, head: nn.Module, sizes: Mapping[str, tuple[int, int]], seed: int
) -> Iterator[Adapters]:
    """Give every linear layer but the head several fresh adapters, inside the block, none of them current.

    Args:
        model: frozen in place, one copy for all.
        head: the output layer, left alone.
        sizes: each adapter's name to its rank and alpha.
        seed: of the initialisation, the same for each.
    """
    model.requires_grad_(False)
    places = _linear_layers(model, head)
    adapters = Adapters()
    for name, (rank, alpha) in sizes.items():
        adapters.loras[name] = Lora(_fresh_layers(places, rank, alpha, seed))
    switched = {
        place: SwitchedLinear(linear, {name: lora.layers[place] for name, lora in adapters.loras.items()}, adapters)
        for place, (_, _, linear) in places.items()
    }
    with _replaced(places, switched):
        yield adapters


Places = dict[str, tuple[nn.Module, str, nn.Linear]]
"""A linear layer's name to its parent, its name there, and itself."""


def _linear_layers(model: nn.Module, head: nn.Module) -> Places:
    places: Places = {}
    for parent_name, parent in model.named_modules():
        for child_name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                places[f"{parent_name}.{child_name}" if parent_name else child_name] = (parent, child_name, child)
    return places


def _fresh_layers(places: Places, rank: int, alpha: int, seed: int) -> dict[str, LoraLinear]:
    generator = torch.Generator().manual_seed(seed)
    return {name: LoraLinear(linear, rank, alpha, generator) for name, (_, _, linear) in places.items()}


@contextmanager
def _replaced(places: Places, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put layers in the places of others, inside the block."""
    for name, (parent, child_name, _) in places.items():
        parent.register_module(child_name, layers[name])
    try:
        yield
    finally:
        for parent, child_name, linear in places.values():
            parent.register_module(child_name, linear)
