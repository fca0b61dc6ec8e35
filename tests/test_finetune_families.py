"""Families of decoders, each with its own template: from the votes to a served reply, in tiny random sizes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from assistant.adapters import load_tensors
from assistant.engine import Message, Request, Sampling
from assistant.loading import load_served, resolve_base
from assistant.local import LocalEngine
from assistant.prompt import encode_prompt
from assistant.settings import NightSettings, Quantization
from finetune import train
from finetune.batches import ALONE, Encoded, Sharing, row_key
from finetune.lora import attach_lora
from finetune.scoring import KNOWN_FAMILIES, how_to_share, row_logps
from finetune.workshop import train_and_write
from tests.finetune_support import demonstration, encoded, encoded_rankings, pair, ranking, thumb, tiny_settings
from tests.tiny import CHATML, tiny_tokenizer

LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ system if loop.first else '' }}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
LATER: list[Message] = [{"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}]


@dataclass(frozen=True)
class Family:
    """A model type, its template with its control tokens (eos last), and what its configuration adds."""

    type: str
    template: str
    specials: tuple[str, ...]
    extras: dict[str, Any] = field(default_factory=dict)


QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>")
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": Family("llama", LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen2": Family("qwen2", CHATML, QWEN_TOKENS),
    "qwen3": Family("qwen3", CHATML, QWEN_TOKENS, {"head_dim": 16}),
    "mistral": Family("mistral", MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>"), {"sliding_window": 64}),
    "gemma": Family("gemma", GEMMA, GEMMA_TOKENS, {"head_dim": 16}),
    "gemma2": Family(
        "gemma2",
        GEMMA,
        GEMMA_TOKENS,
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "layer_types": SLIDING_AND_FULL,
            "final_logit_softcapping": 4.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3_text": Family(
        "gemma3_text",
        GEMMA,
        GEMMA_TOKENS,
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24, "layer_types": SLIDING_AND_FULL},
    ),
    "phi3": Family("phi3", PHI, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>")),
    "smollm3": Family("smollm3", CHATML, QWEN_TOKENS, {"no_rope_layers": [1, 0]}),
    "granite": Family("granite", CHATML, QWEN_TOKENS, {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "cohere": Family("cohere", CHATML, QWEN_TOKENS, {"logit_scale": 0.25}),
}


def tiny(family: Family, vocabulary: int = 304) -> PreTrainedModel:
    """Make a two-layer model of a family with random weights large enough for its logits to spread, fp32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.type,
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **family.extras,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def save(family: Family, folder: Path) -> Path:
    tokenizer = tiny_tokenizer(family.template, family.specials, family.specials[-1])
    tiny(family, -(-len(tokenizer) // 16) * 16).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def own_logps(model: PreTrainedModel, example: Encoded) -> list[float]:
    """What a model's own forward says of each completion, in a row of its own."""
    found = []
    for prompt, completion in example.rows:
        with torch.no_grad():
            logps = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        found.append(float(logps[range(len(prompt) - 1, len(prompt) + len(completion) - 1), completion].sum()))
    return found


def step(model: PreTrainedModel, examples: list[Encoded]) -> tuple[float, torch.Tensor]:
    reference = {row_key(row): row_logps(model, [row])[0] for e in examples for row in [*e.rows, *e.mismatch]}
    with attach_lora(model, model.get_output_embeddings(), rank=4, alpha=8, seed=3) as lora:
        generator = torch.Generator().manual_seed(0)
        for layer in lora.layers.values():
            layer.b.data.normal_(std=0.05, generator=generator)
        sums = train.accumulate_gradients(model, examples, reference, NightSettings())
        return sums.loss, torch.cat([p.grad.flatten() for p in lora.parameters if p.grad is not None])


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_the_models_own_forward(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(FAMILIES[name])
    examples = [*encoded(2), *encoded_rankings(2, 4)]
    for example in examples:
        assert row_logps(model, example.rows) == pytest.approx(own_logps(model, example), abs=1e-4)
    found, gradient = step(model, examples)
    monkeypatch.setattr(train, "how_to_share", lambda model: ALONE)
    monkeypatch.setattr("finetune.scoring.KNOWN_FAMILIES", set())
    expected, own = step(model, examples)
    assert found == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(gradient, own, atol=1e-5 * max(1, float(own.abs().max())))


def test_every_family_that_is_known_is_held_to_its_own_forward() -> None:
    assert FAMILIES.keys() >= KNOWN_FAMILIES
    known = {name for name in FAMILIES if how_to_share(tiny(FAMILIES[name])).tokens}
    assert known == KNOWN_FAMILIES


def test_completions_that_a_sliding_window_would_cut_off_from_their_prompt_are_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny(FAMILIES["gemma3_text"])
    window = model.config.sliding_window
    examples = [e for e in encoded(8) if e.width > window]
    assert examples and all(e.packed(how_to_share(model)) == e.rows for e in examples)
    right, _ = step(model, examples)
    monkeypatch.setattr(train, "how_to_share", lambda model: Sharing(1024, 1024))
    wrong, _ = step(model, examples)
    assert wrong != pytest.approx(right, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("llama", "none"),
        ("qwen2", "int4"),
        ("qwen3", "int4"),
        ("mistral", "int4"),
        ("gemma", "int4"),
        ("gemma2", "int4"),
        ("gemma3_text", "none"),
        ("phi3", "int4"),
        ("cohere", "int4"),
    ],
)
def test_votes_become_an_adapter_that_answers(name: str, form: Quantization, home: Path, tmp_path: Path) -> None:
    """Load, train, save, reload, serve; the system prompt reaches the model in training and in serving alike."""
    settings = tiny_settings(home, save(FAMILIES[name], tmp_path / "model"), rank=4, alpha=8, learning_rate=1e-2)
    settings = settings.model_copy(update={"quantization": form})
    base = resolve_base(settings)
    question: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    instructed = replace(pair(1), prompt=tuple(question))
    examples = [instructed, demonstration(2), ranking(3), thumb(4), thumb(5, up=False)]
    run = train_and_write(base, settings, examples, tmp_path / "adapters", "run")
    assert all(t.abs().max() > 0 for key, t in load_tensors(run.adapter).items() if "lora_B" in key)

    served = load_served(base, settings)
    prompt = encode_prompt(served.tokenizer, question)
    assert "Be brief." in served.tokenizer.decode(prompt)
    adapter = served.adapters.load(run.adapter.folder)
    rows = [(tuple(prompt), (5, 6, 7))]
    with served.adapters.use(adapter):
        adapted = row_logps(served.model, rows)
    assert adapted != row_logps(served.model, rows)
    engine = LocalEngine(served, settings)
    try:
        sampling = Sampling(temperature=0, max_new_tokens=8)
        reply, again = engine.submit(
            [Request(question, sampling, adapter), Request([*question, *LATER], sampling, adapter)]
        )
        assert all(r.wait() and r.finish in ("stop", "length") for r in (reply, again))
    finally:
        engine.close()
