"""The real embedded model: converted once, quantised close to its bf16 form, and answering."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from assistant.build import build_engine
from assistant.engine import Request, Sampling
from assistant.errors import ModelUnavailable
from assistant.loading import Base, ServedModel, load_served, load_tokenizer, load_trainable, resolve_base
from assistant.presets import PLAIN, SOCRATIC
from assistant.quantize import Int4Linear, RowLimit, quantize_groups
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
    """Mean KL a token of the integers, for every position, to the bf16 base that is trained on."""
    ids = torch.tensor([load_tokenizer(base).encode(TEXT)])
    with torch.no_grad(), served.as_decoded():
        integers = served.model(ids).logits.float().log_softmax(-1)
        truth = load_trainable(base)(ids).logits.float().log_softmax(-1)
    divergence = (truth.exp() * (truth - integers)).sum(-1).mean()
    assert 0 < divergence < 0.02


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
    scale, zero = scales_and_zeros.float().permute(2, 1, 0).unsqueeze(-1)
    restored = ((quantised.view(16, 4, 32) - 8) * scale + zero).view(16, 128)
    assert torch.equal(restored, weight)


def test_few_rows_and_many_rows_agree_within_the_rounding_of_four_bits() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32, bias=False).to(torch.bfloat16)
    layer = Int4Linear.from_linear(linear, RowLimit(rows=4))
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        many = layer(x)
        few = torch.cat([layer(x[:2]), layer(x[2:])])
    assert torch.equal(many, linear(x))
    relative = (few - many).float().norm() / many.float().norm()
    assert 0 < relative < 0.12
