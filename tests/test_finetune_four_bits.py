"""A base that is held in bitsandbytes' four bits: it can be trained on, and its gradients survive any forward."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from assistant.loading import Base, load_trainable
from assistant.settings import NightSettings
from finetune.batches import row_key
from finetune.lora import attach_lora
from finetune.scoring import row_logps
from finetune.train import train_adapter
from tests.finetune_support import encoded
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A tiny model in a folder, in nf4."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    shape = {**tiny_model().config.to_dict(), "intermediate_size": 128}  # packing takes multiples of 64
    LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path / "nf4")
    return Base(tmp_path / "nf4", "tiny-nf4", "tiny")


def gradients(model: PreTrainedModel, after_a_look: bool) -> torch.Tensor:
    """Those of an adapter's factors B, perhaps after a forward without gradients, as the reference pass makes them."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with attach_lora(model, model.get_output_embeddings(), rank=4, alpha=8, seed=0) as lora:
        if after_a_look:
            with torch.no_grad():
                model(ids)
        model(ids).logits.float().log_softmax(-1)[0, :, 9].sum().backward()
        return torch.cat([layer.b.grad.flatten() for layer in lora.layers.values() if layer.b.grad is not None])


def test_gradients_survive_a_forward_without_them(base: Base) -> None:
    model = load_trainable(base)
    before = gradients(model, after_a_look=False)
    assert torch.equal(gradients(model, after_a_look=True), before) and before.abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:bitsandbytes")
def test_without_the_guard_they_are_lost_where_the_cpu_packs(base: Base) -> None:
    """What the guard is for; where this fails on such a CPU, bitsandbytes needs it no more."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so that bitsandbytes packs nothing")
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16).requires_grad_(False).eval()
    before, after = gradients(model, after_a_look=False), gradients(model, after_a_look=True)
    assert (before - after).abs().max() > 0.3 * before.abs().max()


def test_a_training_moves_every_layer_after_the_reference_pass(base: Base) -> None:
    model, examples = load_trainable(base), encoded(6)
    reference = {row_key(row): row_logps(model, [row])[0] for e in examples for row in e.rows}
    night = NightSettings(rank=4, alpha=8, epochs=2, batch_examples=3, learning_rate=1e-2)
    trained = train_adapter(model, examples, reference, night)
    assert all(t.abs().max() > 0 for name, t in trained.tensors.items() if "lora_B" in name)
