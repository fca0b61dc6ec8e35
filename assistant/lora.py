"""Adapters on a served model: every linear layer can add a low-rank change, and which one is a pointer.

PEFT's own switch touches every module (tens of milliseconds) and computes in fp32; here `use` sets one
reference that all layers read, so the model thread changes adapters between two tokens for nothing, and
`use_rows` gives each row of a batch its own.
The result equals PEFT's up to the rounding of bf16; a test holds them together.

Only the thread that owns the model may call `use` and `use_rows`. Does not train: finetune does that with PEFT.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assistant.adapters import adapted_layers, factor_names, load_tensors, verify_adapter
from assistant.errors import AdapterDamaged
from assistant.quantize import Int4Linear

Factors = dict[str, tuple[Tensor, Tensor]]
"""Layer name -> (Aᵀ (in, r), scaled Bᵀ (r, out)), or their own_factors."""
Applied = tuple[tuple[Factors, Tensor | None], ...]
"""Each adapter under way with the numbers of its rows; None is all rows. Rows of no adapter are the base's."""


class AdapterBank:
    """The adapters loaded beside one model.

    Args:
        model: its linear layers are wrapped in place, except the output head.
        base_id: adapters of other bases are refused.
        dtype: what the adapters are held and multiplied in; None is the model's. On processors without bf16 units their
            products in bf16 took twice the time of all else in a prompt.
    """

    def __init__(self, model: PreTrainedModel, base_id: str, dtype: torch.dtype | None = None) -> None:
        self.base_id = base_id
        self._dtype = dtype or model.dtype
        self.current: Applied = ()
        self.loaded: dict[str, Factors] = {}
        self.layers: dict[str, AdaptedLinear] = {}
        head = model.get_output_embeddings()
        for parent_name, parent in list(model.named_modules()):
            for child_name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and child is not head:
                    name = f"{parent_name}.{child_name}" if parent_name else child_name
                    self.layers[name] = AdaptedLinear(child, name, self)
                    parent.register_module(child_name, self.layers[name])

    def load(self, folder: Path) -> str:
        """Verify an adapter folder and hold it ready.

        Returns:
            The adapter's id, for `use`.

        Raises:
            AdapterMissing, AdapterDamaged, AdapterForOtherBase: it may not be used; nothing changed.
        """
        info = verify_adapter(folder, self.base_id)
        if info.id in self.loaded:
            return info.id
        tensors = load_tensors(info)
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name in adapted_layers(tensors):
            a, b = (tensors[factor] for factor in factor_names(name))
            layer = self.layers.get(name)
            if layer is None or not layer.fits(a, b):
                raise AdapterDamaged(f"The adapter {info.id} does not fit this model at {name}. Promote another one.")
            scaled = b * (info.alpha / info.rank)
            factors[name] = layer.hold(a.T, scaled.T, self._dtype, own=layer.own_products)
        self.loaded[info.id] = factors
        return info.id

    def in_own_form(self) -> dict[str, Factors]:
        """Lay out all loaded adapters as the project's own operator reads them; the bank stays as it is."""
        return {
            adapter_id: {name: self.layers[name].hold(a, b, torch.bfloat16, own=True) for name, (a, b) in held.items()}
            for adapter_id, held in self.loaded.items()
        }

    def take_own_products(self, loaded: dict[str, Factors]) -> None:
        """Add the changes by the project's own operator, where the layers have taken the own products.

        Args:
            loaded: from in_own_form.
        """
        self._dtype = torch.bfloat16
        for layer in self.layers.values():
            layer.own_products = isinstance(layer.base, Int4Linear)
        self.loaded = loaded

    def unload(self, adapter_id: str) -> None:
        """Forget an adapter; unknown ones are no error."""
        self.loaded.pop(adapter_id, None)

    @contextmanager
    def use(self, adapter_id: str | None) -> Iterator[None]:
        """Apply a loaded adapter, or the bare base for None, to forwards inside the block."""
        with self.use_rows([adapter_id]):
            yield

    @contextmanager
    def use_rows(self, adapter_ids: Sequence[str | None]) -> Iterator[None]:
        """Apply to each row of a batch (rows, …) its own loaded adapter; one for all where they are the same."""
        before = self.current
        self.current = self._applied(adapter_ids)
        try:
            yield
        finally:
            self.current = before

    def _applied(self, adapter_ids: Sequence[str | None]) -> Applied:
        names = sorted({name for name in adapter_ids if name is not None})
        if len(names) == len(set(adapter_ids)) == 1:
            return ((self.loaded[names[0]], None),)
        device = next(iter(self.layers.values())).base.weight.device
        numbers = {name: [i for i, other in enumerate(adapter_ids) if other == name] for name in names}
        return tuple((self.loaded[name], torch.tensor(numbers[name], device=device)) for name in names)


class AdaptedLinear(nn.Module):
    """A linear layer plus the current adapter's low-rank change: y = base(x) + (x Aᵀ) Bᵀ · alpha / r."""

    def __init__(self, base: nn.Linear, name: str, bank: AdapterBank) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self._bank = [bank]  # in a list, so that torch does not take the bank for a submodule
        self.in_features, self.out_features = base.in_features, base.out_features
        self.own_products = False

    def hold(self, a: Tensor, b: Tensor, dtype: torch.dtype, *, own: bool) -> tuple[Tensor, Tensor]:
        """Bring Aᵀ (in, r) and Bᵀ (r, out) to where the layer computes, and to the form it computes with.

        Args:
            dtype: of the factors where the layer is not in 4 bits or not `own`.
            own: whether layers in 4 bits compute by the own products.
        """
        if own and isinstance(self.base, Int4Linear):
            return own_factors(a, b)
        device = self.base.weight.device
        return a.contiguous().to(device, dtype), b.contiguous().to(device, dtype)

    def fits(self, a: Tensor, b: Tensor) -> bool:
        """Whether A (r, in) and B (out, r) belong to this layer."""
        return a.shape[1] == self.in_features and b.shape[0] == self.out_features and a.shape[0] == b.shape[1]

    @property
    def current(self) -> Applied:
        """The adapters of the moment."""
        return self._bank[0].current

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer for x (…, in)."""
        y: Tensor = self.base(x)
        for adapter, rows in self.current:
            factors = adapter.get(self.name)
            if factors is None:
                continue
            a, b = factors
            if self.own_products:
                torch.ops.nightschool.add_low_rank(y, x.contiguous(), a, b, rows)
                continue
            own = x if rows is None else x[rows]
            change = (own.to(a.dtype) @ a @ b).to(y.dtype)
            y = y + change if rows is None else y.index_add(0, rows, change)
        return y


def own_factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Lay out Aᵀ (in, r) and Bᵀ (r, out) as the project's own products read them, the rank filled up to eights.

    Returns:
        (r / 8, in, 8) and (out / 16, r, 16) bf16.
    """
    spare = -a.shape[1] % 8
    a = nn.functional.pad(a, (0, spare)).unflatten(1, (-1, 8)).transpose(0, 1)
    b = nn.functional.pad(b, (0, 0, 0, spare)).unflatten(1, (-1, 16)).transpose(0, 1)
    return a.bfloat16().contiguous(), b.bfloat16().contiguous()
