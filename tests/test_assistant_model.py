"""The real embedded model: converted once, quantised close to its bf16 form, and answering."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assistant import arithmetic
from assistant.build import build_engine
from assistant.engine import Request, Sampling
from assistant.errors import ModelUnavailable
from assistant.loading import Base, ServedModel, load_served, load_tokenizer, load_trainable, resolve_base
from assistant.presets import PLAIN, SOCRATIC
from assistant.quantize import FEW_ROWS, Int4Linear, Int8Head, quantize_groups, restore_groups
from assistant.rows import Rows
from assistant.settings import load_settings
from tests.tiny import save_tiny

TEXT = (
    "The harbour town woke before the sun did. Nets hung from every railing, and the smell of salt and tar "
    "followed the children to school. Their teacher, who had once been a sailor, began each morning with a "
    "question: if a boat leaves at six and the tide turns at nine, how far can it go and still be home for supper?"
)


@pytest.fixture(scope="module")
def base(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    settings = load_settings(tmp_path_factory.mktemp("home")).model_copy(update={"cache": model_cache})
    return resolve_base(settings)


@pytest.fixture(scope="module")
def served(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    yield load_served(base, load_settings(tmp_path_factory.mktemp("home")))


@pytest.mark.model
def test_the_second_resolution_finds_the_converted_model(base: Base) -> None:
    start = time.monotonic()
    again = resolve_base(load_settings())
    assert again == base and time.monotonic() - start < 1.0
    assert base.id.startswith("gguf-")


@pytest.mark.model
def test_auto_serves_four_bit_integers_on_a_cpu(served: ServedModel) -> None:
    assert served.numeric_form == ("nf4" if torch.cuda.is_available() else "int4")


@pytest.mark.model
def test_the_served_form_is_close_to_the_trainable_one(base: Base, served: ServedModel) -> None:
    """Mean KL a token of the integers, for every position, to the base that is trained on."""
    ids = torch.tensor([load_tokenizer(base).encode(TEXT)])
    with torch.no_grad():
        integers = served.model(ids).logits.float().log_softmax(-1)
        truth = load_trainable(base)(ids).logits.float().log_softmax(-1)
    divergence = (truth.exp() * (truth - integers)).sum(-1).mean()
    assert 0 < divergence < 0.02


@pytest.mark.model
@pytest.mark.parametrize("form", ["int4", "none"])
@torch.inference_mode()
def test_a_text_alone_in_a_batch_in_pieces_and_from_what_is_kept_is_continued_alike(base: Base, form: str) -> None:
    """Mean KL of the next token, over 8 texts and 2 steps, to the text read whole and alone: only rounding differs."""
    settings = load_settings()
    model = load_served(base, settings.model_copy(update={"quantization": form})).model
    ids = load_tokenizer(base).encode(TEXT)
    texts = [ids[: 12 + 6 * number] for number in range(8)]
    batch = Rows()
    for number, text in enumerate(texts):
        known = Rows.after([], 0)
        known.compute(model, torch.tensor([text[:10]]))
        row = Rows.after(known.keep(0), 10) if number % 2 else Rows.after([], 0)
        for start in range(row.lengths[0], len(text), 8):
            row.compute(model, torch.tensor([text[start : start + 8]]))
        batch.join(row)
    divergences = []
    for step in range(2):
        logits = batch.compute(model, torch.tensor([[ids[len(text) + step]] for text in texts]))
        alone = torch.cat([model(torch.tensor([ids[: len(text) + step + 1]])).logits[:, -1] for text in texts])
        truth, found = alone.float().log_softmax(-1), logits.float().log_softmax(-1)
        divergences.append((truth.exp() * (truth - found)).sum(-1))
    assert torch.cat(divergences).mean() < 0.01, torch.cat(divergences)


@pytest.mark.model
def test_the_two_presets_answer_the_same_question_differently() -> None:
    engine = build_engine(load_settings())
    sampling = Sampling(temperature=0, max_new_tokens=40)
    question = {"role": "user", "content": "What is the capital of France?"}
    try:
        plain, socratic = (
            engine.submit([Request([{"role": "system", "content": preset.system}, question], sampling)])[0].wait(60)
            for preset in (PLAIN, SOCRATIC)
        )
    finally:
        engine.close()
    assert "Paris" in plain and plain != socratic


@pytest.mark.model
def test_ask_streams_an_answer_and_json_prints_one_object() -> None:
    command = [sys.executable, "-m", "assistant", "ask", "Name one colour.", "--greedy", "--max-new-tokens", "12"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    answer = json.loads(as_json.stdout)
    assert answer["reply"] == plain.stdout.rstrip("\n") and answer["adapter"] is None
    assert plain.stderr.startswith("(The reply was cut off") and plain.stderr.count("\n") == 1
    assert as_json.stderr == ""


def test_weights_that_cannot_be_had_give_one_sentence(tmp_path: Path) -> None:
    for model in ("no/such-model", str(tmp_path / "absent.gguf"), str(tmp_path)):
        settings = load_settings().model_copy(update={"model": model})
        with pytest.raises(ModelUnavailable) as caught:
            resolve_base(settings)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    settings = load_settings().model_copy(update={"model": str(tmp_path / "bad.gguf"), "cache": tmp_path / "cache"})
    with pytest.raises(ModelUnavailable, match="Choose another model"):
        resolve_base(settings)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_folder_is_named_by_its_weights(tmp_path: Path) -> None:
    def base_id(name: str, seed: int) -> str:
        folder = save_tiny(tmp_path / name, seed)
        return resolve_base(load_settings().model_copy(update={"model": str(folder)})).id

    assert base_id("one", 0) == base_id("two", 0) != base_id("three", 1)


def test_quantising_what_is_already_four_bit_loses_nothing() -> None:
    """The embedded file's blocks are groups of 32 with scale and minimum, which this form holds again."""
    torch.manual_seed(0)
    levels = torch.randint(0, 16, (16, 4, 32)).float()
    levels[..., 0], levels[..., 1] = 0, 15
    weight = (levels * 0.25 - 2.0).view(16, 128)
    quantised, scales_and_zeros = quantize_groups(weight)
    assert torch.equal(restore_groups(quantised, scales_and_zeros), weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", [Int4Linear, Int8Head])
def test_few_rows_and_many_rows_are_multiplied_by_the_same_weight(
    form: type[Int4Linear] | type[Int8Head], dtype: torch.dtype
) -> None:
    """Prompts and the examination take many rows, decoding takes few: what is examined is what decodes."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32).to(torch.bfloat16)
    layer = form.from_linear(linear, dtype)
    x = torch.randn(2 * FEW_ROWS, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        many = layer(x)
        few = torch.cat([layer(x[:FEW_ROWS]), layer(x[FEW_ROWS:])])
        whole = linear(x)
    assert many.dtype == torch.bfloat16 and layer(x).shape == (2 * FEW_ROWS, 32)
    torch.testing.assert_close(many, few, atol=0.02, rtol=0.02)
    relative = (many - whole).float().norm() / whole.float().norm()
    assert 0 < relative < (0.12 if form is Int4Linear else 0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("hidden, form", [(64, "int4"), (72, "none")])
def test_a_layer_that_cannot_be_packed_is_served_in_what_is_trained_in(
    hidden: int, form: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assistant.loading.product_dtype", lambda folder: dtype)
    folder = save_tiny(tmp_path / "model")
    if hidden != 64:
        config = LlamaConfig.from_pretrained(folder)
        config.update({"hidden_size": hidden, "head_dim": 18, "intermediate_size": 90, "vocab_size": 309})
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    base = resolve_base(load_settings().model_copy(update={"model": str(folder)}))
    served = load_served(base, load_settings())
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    assert (served.numeric_form, served.products) == ("int4" if form == "int4" else name, name)
    logits = served.model(torch.arange(20)[None]).logits
    assert logits.isfinite().all() and logits.dtype == (torch.bfloat16 if form == "int4" else dtype)
    assert load_trainable(base).dtype == dtype


@pytest.mark.parametrize(
    "stored, fast, dtype", [(10, False, "float32"), (11, False, "bfloat16"), (10, True, "bfloat16")]
)
def test_float32_is_taken_where_bf16_is_slow_and_the_memory_is_there(
    stored: int, fast: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "multiplies_bf16", lambda: fast)
    monkeypatch.setattr(arithmetic, "memory_bytes", lambda: 100)
    (tmp_path / "model.safetensors").write_bytes(b"x" * stored)
    assert str(arithmetic.product_dtype(tmp_path)) == f"torch.{dtype}"


@pytest.mark.parametrize("allowed, expected", [("1000000\n", 1_000_000), ("max\n", None), (None, None)])
def test_a_containers_limit_counts_as_the_memory(
    allowed: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "CONTAINER_LIMIT", tmp_path / "memory.max")
    whole = arithmetic.memory_bytes()
    if allowed is not None:
        (tmp_path / "memory.max").write_text(allowed)
    assert arithmetic.memory_bytes() == (expected or whole) and whole > 2**30
