"""A whole decoder as one operator: what transformers' own layers compute, alone, in a batch and in pieces."""

import itertools
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from assistant.lora import AdapterBank, own_factors
from assistant.own_layers import OwnDecoder, take_own_products
from assistant.quantize import UNLIMITED, exchange_for_integers
from assistant.rows import STEP, Rows, _larger
from tests.test_assistant_adapters import peft_on_the_same_weights, random_adapter
from tests.test_assistant_kernels import cache  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cache")]
SIZES: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "llama, heads of 80": lambda **sizes: LlamaConfig(**sizes, head_dim=80),
    "llama, biases": lambda **sizes: LlamaConfig(**sizes, attention_bias=True, mlp_bias=True),
    "mistral": lambda **sizes: MistralConfig(**sizes, sliding_window=None),
    "qwen2": Qwen2Config,
}
APART = 0.01
"""Relatively. Nearly all are the same bit for bit; what rounds to another level of 8 bits makes the difference."""


class Served:
    """A model and its adapters."""

    def __init__(self, model: PreTrainedModel, bank: AdapterBank) -> None:
        self.model, self.bank = model, bank

    def read(self, rows: Rows, ids: Tensor, *adapters: str | None) -> Tensor:
        """Logits behind the last token of each row."""
        with torch.inference_mode(), self.bank.use_rows(adapters):
            return rows.compute(self.model, ids).float()

    def after(self, ids: Tensor, adapter: str | None, pieces: int = 1) -> tuple[Rows, Tensor]:
        """One row that has read a text in so many pieces, and its logits."""
        rows, logits = Rows.after([], 0), torch.zeros(0)
        for piece in ids.tensor_split(pieces, dim=1):
            logits = self.read(rows, piece, adapter)
        return rows, logits


def make(family: str, *, own: bool = True, rank: int = 6) -> Served:
    """Make a tiny model in 4 bits with two adapters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](**SIZES), dtype=torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data.normal_(mean=0.5)
    exchange_for_integers(model, torch.float32)
    bank = AdapterBank(model, "tiny", torch.float32)
    for name in ("one", "other"):
        bank.loaded[name] = {
            layer.name: (
                torch.randn(layer.in_features, rank) * 0.1,
                torch.randn(rank, layer.out_features) * 0.1,
            )
            for layer in bank.layers.values()
            if name == "one" or "q_proj" not in layer.name  # the other leaves a layer as it is
        }
    if own:
        take_own_products(model, bank, UNLIMITED)
    return Served(model, bank)


def attention_in_float32(query: Tensor, *others: Tensor, attn_mask: Tensor | None = None, **how: Any) -> Tensor:
    """torch's own in bf16 rounds what each token weighs; the next rounding to 8 bits would make much of that."""
    wide = [one.float() for one in (query, *others)]
    return scaled_dot_product_attention(*wide, attn_mask=attn_mask, **how).to(query.dtype)


def compare_decoder(model: PreTrainedModel) -> list[float]:
    """Note how far, relatively, what the decoder gives from now on is from what transformers makes of the same.

    The logits with the head in the same operator are those of the head alone, bit for bit.
    """
    apart: list[float] = []
    decoder: Any = model.base_model
    next_logits = decoder.next_logits

    def compare(ids: Tensor, positions: Tensor, rows: Rows, head: Any) -> Tensor:
        asked = {"input_ids": ids, "position_ids": positions, "past_key_values": rows}
        given = decoder.forward(**asked).last_hidden_state
        decoder.few_rows = 0  # its products stay the same
        with patch("torch.nn.functional.scaled_dot_product_attention", attention_in_float32):
            expected = decoder.forward(**asked, attention_mask=rows._mask(model, positions)).last_hidden_state
        decoder.few_rows = UNLIMITED
        apart.append(float((given.float() - expected.float()).norm() / expected.float().norm()))
        logits: Tensor = next_logits(ids, positions, rows, head)
        assert torch.equal(logits, head(given[:, -1]))
        return logits

    decoder.next_logits = compare
    return apart


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [None, "one", "other"])
def test_they_compute_what_transformers_does(family: str, adapter: str | None) -> None:
    served = make(family)
    assert isinstance(served.model.base_model, OwnDecoder)
    apart = compare_decoder(served.model)
    for lengths in ([50], [49, 1], [1, 49], [20, 20, 10]):
        rows = Rows.after([], 0)
        for piece in torch.randint(0, 300, (1, 50)).split(lengths, dim=1):
            assert served.read(rows, piece, adapter).isfinite().all()
    assert len(apart) == 8
    assert max(apart) < APART and median(apart) < 2**-10


@pytest.mark.parametrize("family", FAMILIES)
def test_in_pieces_and_in_a_batch_of_rows_of_any_length_it_is_the_same_bit_for_bit(family: str) -> None:
    served = make(family)
    texts = [torch.randint(0, 300, (1, length)) for length in (1, 7, 64, 150, 33)]
    adapters = [None, "one", "other", None, "one"]
    new = torch.randint(0, 300, (len(texts), 3))
    batch = Rows()
    alone = []
    for number, (ids, adapter) in enumerate(zip(texts, adapters, strict=True)):
        rows, logits = served.after(ids, adapter)
        _, in_pieces = served.after(ids, adapter, pieces=min(4, ids.shape[1]))
        assert torch.equal(in_pieces, logits)
        batch.join(rows)
        alone.append(torch.cat([served.read(rows, new[number : number + 1, [i]], adapter) for i in range(3)]))
    for i in range(3):
        together = served.read(batch, new[:, [i]], *adapters)
        for number, row in enumerate(together):
            assert torch.equal(row, alone[number][i])


@pytest.mark.parametrize("rank", [1, 6, 16])
def test_adapters_of_any_rank_are_added(rank: int) -> None:
    served = make("llama", rank=rank)
    apart = compare_decoder(served.model)
    for length in (2, 60):
        ids = torch.randint(0, 300, (1, length))
        logits, without = (served.after(ids, adapter)[1] for adapter in ("one", None))
        assert (logits - without).norm() > 0.1 * without.norm()
    assert max(apart) < APART


def test_each_row_of_a_batch_of_texts_gets_its_adapter() -> None:
    served = make("llama")
    x = torch.randn(3, 5, 64).bfloat16()
    layer = served.model.model.layers[0].self_attn.v_proj
    with torch.inference_mode():
        with served.bank.use_rows(["one", None, "other"]):
            together = layer(x)
        for number, adapter in enumerate(("one", None, "other")):
            with served.bank.use(adapter):
                assert torch.equal(layer(x[number : number + 1]), together[number : number + 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_near_the_model_without_the_own_products(family: str) -> None:
    ids = torch.randint(0, 300, (1, 40))
    _, logits = make(family).after(ids, "one")
    _, expected = make(family, own=False).after(ids, "one")
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_what_they_do_not_know_stays_as_it_is() -> None:
    sliding = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=8), dtype=torch.bfloat16)
    other_gate = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, hidden_act="gelu"), dtype=torch.bfloat16)
    narrow = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, head_dim=8), dtype=torch.bfloat16)
    for model in (sliding, other_gate, narrow):
        exchange_for_integers(model, torch.float32)
        bank = AdapterBank(model, "tiny")
        take_own_products(model, bank, UNLIMITED)
        assert not isinstance(model.base_model, OwnDecoder)
        with torch.inference_mode():
            rows = Rows.after([], 0)
            assert rows.compute(model, torch.randint(0, 300, (1, 20))).isfinite().all()
            assert rows.compute(model, torch.randint(0, 300, (1, 1))).isfinite().all()


def test_a_token_without_room_is_refused_and_nothing_is_written() -> None:
    served = make("llama")
    rows, _ = served.after(torch.randint(0, 300, (1, 9)), None)
    held = rows.layers[0].keys
    before = held.clone()
    for length in (-1, held.shape[2]):
        rows.ends = torch.tensor([length])
        with pytest.raises(RuntimeError, match="no room"), torch.inference_mode():
            served.model.base_model(
                input_ids=torch.zeros(1, 1, dtype=torch.long),
                position_ids=torch.zeros(1, 1, dtype=torch.long),
                past_key_values=rows,
            )
    assert torch.equal(held, before)


def test_however_many_threads_compute_it_is_the_same_bit_for_bit() -> None:
    served = make("llama")
    ids = torch.randint(0, 300, (1, 70))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):  # more than there are processors: some are away while others go on
            torch.set_num_threads(threads)
            found.append(served.after(ids, "one", pieces=3)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(logits, found[0]) for logits in found)


@pytest.mark.parametrize("rank", [4, 16])
def test_what_is_taken_is_taken_whole_or_not_at_all(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ran out at an adapter when the layers were exchanged already, and the numeric form named the old one."""
    served, calls = make("llama", own=False, rank=rank), itertools.count()
    ids = torch.randint(0, 300, (1, 40))
    before = served.after(ids, "one")[1]

    def tight(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if next(calls) == 3:
            raise MemoryError("planted")
        return own_factors(a, b)

    with monkeypatch.context() as patch:
        patch.setattr("assistant.lora.own_factors", tight)
        with pytest.raises(MemoryError):
            take_own_products(served.model, served.bank, UNLIMITED)
    assert torch.equal(served.after(ids, "one")[1], before)
    take_own_products(served.model, served.bank, UNLIMITED)
    assert torch.equal(served.after(ids, "one")[1], make("llama", rank=rank).after(ids, "one")[1])


def test_a_room_that_could_not_grow_serves_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator takes layers of one form alone, which some had no more when memory ran out."""
    served = make("llama")
    rows, calls = served.after(torch.randint(0, 300, (1, STEP)), None)[0], itertools.count()
    short = served.after(torch.randint(0, 300, (1, 9)), None)[0]
    rows.join(short)

    def tight(old: Tensor, *room: int) -> Tensor:
        if next(calls) == 2:
            raise MemoryError("planted")
        return _larger(old, *room)

    with monkeypatch.context() as patch:
        patch.setattr("assistant.rows._larger", tight)
        with pytest.raises(MemoryError):
            served.read(rows, torch.tensor([[7], [7]]), None, None)
    rows.leave(0)  # as the engine does; what is left fits
    assert torch.equal(served.read(rows, torch.tensor([[7]]), None), served.read(short, torch.tensor([[7]]), None))


def test_adapters_are_added_as_peft_adds_them_to_what_the_bits_stand_for(tmp_path: Path) -> None:
    """Layer by layer, for few rows and many; activations in 8 bits are rounded as the operator rounds them."""
    info = random_adapter(tmp_path, base_id="tiny")
    served = make("llama", own=False)
    peft = peft_on_the_same_weights(served.bank, info)
    take_own_products(served.model, served.bank, UNLIMITED)
    with torch.inference_mode(), served.bank.use(served.bank.load(info.folder)):
        for name, layer in served.bank.layers.items():
            for count in (1, 5, 40):
                x = torch.randn(count, layer.in_features).bfloat16()
                expected = peft.get_submodule(f"base_model.model.{name}")(x.float())
                assert (layer(x) - expected).norm() < APART * expected.norm(), (name, count)
