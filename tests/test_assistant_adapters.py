"""The adapter folder: whole or refused, and on a served model equal to PEFT's own result."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from assistant.adapters import (
    CONFIG,
    LORA_A,
    LORA_B,
    MANIFEST,
    PREFIX,
    TENSORS,
    AdapterInfo,
    check_fit,
    verify_adapter,
    write_adapter,
)
from assistant.errors import AdapterDamaged, AdapterForOtherBase, AdapterMissing
from assistant.fake import FakeEngine
from assistant.loading import resolve_base
from assistant.lora import AdapterBank
from assistant.quantize import FEW_ROWS, Int4Linear, exchange_for_integers
from assistant.settings import load_settings
from finetune.__main__ import main as finetune
from tests.tiny import tiny_model
from tests.ui_support import World, make_world

Tensors = dict[str, torch.Tensor]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BF16 = 2**-7
"""Relatively, what some roundings to bf16 (half of 2⁻⁸ each) make of a layer."""


def random_tensors(seed: int = 0) -> Tensors:
    model = tiny_model()
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), init_lora_weights=False)
    return dict(get_peft_model_state_dict(get_peft_model(model, config)))


def written(root: Path, tensors: Tensors, base_id: str = "base-1") -> AdapterInfo:
    return write_adapter(
        root,
        tensors,
        rank=4,
        alpha=8,
        target_modules=TARGETS,
        base_id=base_id,
        base_name="tiny",
        template_hash="t",
        run_id="run-1",
    )


def random_adapter(root: Path, seed: int = 0, base_id: str = "base-1") -> AdapterInfo:
    return written(root, random_tensors(seed), base_id)


def test_what_is_written_is_verified_and_named_by_content(tmp_path: Path) -> None:
    first = random_adapter(tmp_path, seed=1)
    again = random_adapter(tmp_path, seed=1)
    other = random_adapter(tmp_path, seed=2)
    assert first.id == again.id != other.id
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first.id, other.id])
    assert first.run_id == "run-1" and first.rank == 4


def test_peft_loads_the_folder_and_agrees_with_the_bank(tmp_path: Path) -> None:
    info = random_adapter(tmp_path)
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        peft_logits = PeftModel.from_pretrained(tiny_model(), info.folder)(ids).logits
        served = tiny_model()
        bank = AdapterBank(served, "base-1")
        base_logits = served(ids).logits
        with bank.use(bank.load(info.folder)):
            ours = served(ids).logits
        after = served(ids).logits
    torch.testing.assert_close(ours, peft_logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, base_logits, atol=1e-2)
    assert torch.equal(after, base_logits)


def test_two_adapters_do_not_mix(tmp_path: Path) -> None:
    served = tiny_model()
    bank = AdapterBank(served, "base-1")
    one, two = (bank.load(random_adapter(tmp_path, seed).folder) for seed in (1, 2))
    ids = torch.randint(0, 300, (1, 5))
    with torch.no_grad():
        with bank.use(one):
            alone = served(ids).logits
        with bank.use(two):
            other = served(ids).logits
        with bank.use(one):
            again = served(ids).logits
    assert torch.equal(alone, again) and not torch.allclose(alone, other)


@pytest.mark.parametrize("file", [CONFIG, TENSORS, MANIFEST])
def test_an_altered_byte_anywhere_is_refused(tmp_path: Path, file: str) -> None:
    info = random_adapter(tmp_path)
    original = (info.folder / file).read_bytes()
    for place in range(0, len(original), max(1, len(original) // 20)):
        altered = bytearray(original)
        altered[place] ^= 0xFF
        (info.folder / file).write_bytes(altered)
        with pytest.raises((AdapterDamaged, AdapterForOtherBase)):
            verify_adapter(info.folder, "base-1")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    info = random_adapter(tmp_path)
    content = (info.folder / TENSORS).read_bytes()
    (info.folder / TENSORS).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterDamaged, match="Promote another one"):
        verify_adapter(info.folder, "base-1")


def test_writing_a_damaged_adapter_again_makes_it_whole(tmp_path: Path) -> None:
    info = random_adapter(tmp_path)
    for name in (TENSORS, MANIFEST):
        (info.folder / name).write_bytes(b"broken")
        assert random_adapter(tmp_path).id == info.id
        assert verify_adapter(info.folder, "base-1").id == info.id
    assert [path.name for path in tmp_path.iterdir()] == [info.id]


def test_a_folder_without_manifest_does_not_count(tmp_path: Path) -> None:
    info = random_adapter(tmp_path)
    (info.folder / MANIFEST).unlink()
    with pytest.raises(AdapterMissing):
        verify_adapter(info.folder, "base-1")


def test_a_link_is_refused(tmp_path: Path) -> None:
    info = random_adapter(tmp_path / "adapters")
    elsewhere = tmp_path / "elsewhere"
    (info.folder / TENSORS).rename(elsewhere)
    (info.folder / TENSORS).symlink_to(elsewhere)
    with pytest.raises(AdapterDamaged):
        verify_adapter(info.folder, "base-1")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    info = random_adapter(tmp_path)
    with pytest.raises(AdapterForOtherBase, match="another model"):
        AdapterBank(tiny_model(), "base-2").load(info.folder)


@pytest.mark.parametrize("fault", ["no number", "another width"])
def test_a_model_loads_nothing_that_could_not_answer(tmp_path: Path, fault: str) -> None:
    plant, words = FAULTS[fault]
    with pytest.raises(AdapterDamaged, match=re.escape(words.replace("its model", "this model"))):
        AdapterBank(tiny_model(), "base-1").load(written(tmp_path, plant(random_tensors())).folder)


def test_a_crash_while_writing_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("assistant.adapters.os.replace", out_of_disk)
    with pytest.raises(OSError, match="no space"):
        random_adapter(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_reach_the_disk_before_their_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that overtakes its bytes leaves an empty adapter after a power cut."""
    import assistant.adapters as module

    calls: list[str] = []
    sync, replace = module._sync, module.os.replace
    monkeypatch.setattr(module, "_sync", lambda path: (calls.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(module.os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    random_adapter(tmp_path)
    before_rename = calls[: calls.index("rename")]
    assert [f"sync {CONFIG}", f"sync {TENSORS}", f"sync {MANIFEST}"] == before_rename[:3]
    assert calls[-1] == f"sync {tmp_path.name}"


def test_the_manifest_says_what_it_belongs_to(tmp_path: Path) -> None:
    manifest = json.loads((random_adapter(tmp_path).folder / MANIFEST).read_text())
    assert manifest["base_id"] == "base-1" and manifest["template_hash"] == "t"


def test_an_adapter_may_be_multiplied_in_another_form_than_the_model(tmp_path: Path) -> None:
    """Processors without bf16 units serve in bf16 and multiply in float32; the result is the same but for rounding."""
    info = random_adapter(tmp_path)
    ids = torch.randint(0, 300, (2, 9))
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny_model().to(torch.bfloat16)
        bank = AdapterBank(model, "base-1", dtype)
        with torch.no_grad(), bank.use(bank.load(info.folder)):
            assert all(a.dtype == b.dtype == dtype for a, b in bank.loaded[info.id].values())
            found[dtype] = model(ids).logits
    one, other = found.values()
    assert one.dtype == other.dtype == torch.bfloat16
    assert (one - other).norm() < 0.05 * other.norm()


def peft_on_the_same_weights(bank: AdapterBank, info: AdapterInfo) -> PeftModel:
    """PEFT's own adapter on what the layers of a bank are multiplied by, in float32."""
    whole = tiny_model()
    for name, layer in bank.layers.items():
        whole.get_submodule(name).weight.data = layer.base.weight.float()
    return PeftModel.from_pretrained(whole, info.folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_layers_in_four_bits_the_bank_adds_what_peft_does(tmp_path: Path, dtype: torch.dtype) -> None:
    """Layer by layer on the same weights: few rows by the integers, many by what they stand for; only bf16 rounds."""
    info = random_adapter(tmp_path)
    served = tiny_model().to(torch.bfloat16)
    exchange_for_integers(served, dtype)
    bank = AdapterBank(served, "base-1", dtype)
    peft = peft_on_the_same_weights(bank, info)
    with torch.no_grad(), bank.use(bank.load(info.folder)):
        for name, layer in bank.layers.items():
            assert isinstance(layer.base, Int4Linear)
            for count in (1, FEW_ROWS, 4 * FEW_ROWS):
                x = torch.randn(count, layer.in_features).bfloat16()
                expected = peft.get_submodule(f"base_model.model.{name}")(x.float())
                assert (layer(x) - expected).norm() < BF16 * expected.norm(), (name, count)
                assert (layer.base(x) - expected).norm() > 10 * BF16 * expected.norm()


LAYER = f"{PREFIX}model.layers.{{}}.self_attn.q_proj"
Q_A, Q_B = LAYER.format(0) + LORA_A, LAYER.format(0) + LORA_B


def with_value(name: str, value: float) -> Callable[[Tensors], Tensors]:
    """One number of a tensor is another."""

    def plant(tensors: Tensors) -> Tensors:
        altered = tensors[name].clone()
        altered[1, 2] = value
        return {**tensors, name: altered}

    return plant


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no number": (with_value(Q_A, float("nan")), f"holds a value that is not a number in {Q_A}."),
    "no end": (with_value(Q_B, float("-inf")), f"holds a value that is not a number in {Q_B}."),
    "another rank": (lambda t: {**t, Q_A: t[Q_A][:3], Q_B: t[Q_B][:, :3]}, "is not of rank 4, as it says, at model.l"),
    "two ranks": (lambda t: {**t, Q_A: t[Q_A][:3]}, "is not of rank 4, as it says, at model.layers.0.self_attn.q_p"),
    "three dimensions": (lambda t: {**t, Q_B: t[Q_B][..., None]}, "is not of rank 4, as it says, at model.layers.0"),
    "half a pair": (lambda t: {name: t[name] for name in t if name != Q_B}, "holds something that is not LoRA."),
    "a stray tensor": (lambda t: {**t, "lm_head.weight": torch.zeros(2)}, "holds something that is not LoRA."),
    "nothing": (lambda t: {}, "holds something that is not LoRA."),
    "another width": (lambda t: {**t, Q_A: torch.zeros(4, 32)}, "does not fit its model at model.layers.0.self_attn"),
    "a layer too many": (
        lambda t: {**t, LAYER.format(2) + LORA_A: t[Q_A].clone(), LAYER.format(2) + LORA_B: t[Q_B].clone()},
        "does not fit its model at model.layers.2.self_attn.q_proj.",
    ),
}


@pytest.fixture
def world(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A home over a tiny model's folder."""
    monkeypatch.setenv("NIGHTSCHOOL_MODEL", str(model))
    engine = FakeEngine()
    engine.base_id = resolve_base(load_settings()).id
    made = make_world(home, engine)
    yield made
    made.store.close()


def registered(world: World, tensors: Tensors, base_id: str) -> str:
    """Write an adapter into a home and register it; returns its id."""
    info = written(world.settings.adapters_dir, tensors, base_id)
    world.store.registry.register_adapter(info.id, base_id)
    return info.id


@pytest.mark.parametrize("fault", FAULTS)
def test_what_could_not_answer_goes_live_neither_by_the_page_nor_by_the_command(
    world: World, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """Such an adapter is whole on the disk, and went live; then every reply failed."""
    plant, words = FAULTS[fault]
    adapter = registered(world, plant(random_tensors()), world.engine.base_id)
    said = world.operate.promote(adapter, "0")
    assert said.startswith(f"The adapter {adapter} {words}") and said.endswith("Promote another one.")
    assert finetune(["promote", adapter]) == 1
    assert said in capsys.readouterr().err
    assert world.store.registry.live().generation == 0


def test_what_fits_goes_live_both_ways(world: World) -> None:
    one, two = (registered(world, random_tensors(seed), world.engine.base_id) for seed in (1, 2))
    world.operate.promote(one, "0")
    assert world.store.registry.live().adapter_id == one
    assert finetune(["promote", two]) == 0
    assert world.store.registry.live().adapter_id == two


def test_an_adapter_is_held_against_no_other_weights_than_its_bases(world: World) -> None:
    """The settings of a command may name another model than the app's."""
    adapter = registered(world, FAULTS["another width"][0](random_tensors()), "weights-of-elsewhere")
    assert finetune(["promote", adapter]) == 0


def test_an_adapter_is_held_against_its_converted_base_in_the_cache(
    world: World, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSCHOOL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "gguf-1").symlink_to(model)
    narrow = FAULTS["another width"][0](random_tensors())
    bad, good = (registered(world, tensors, "gguf-1") for tensors in (narrow, random_tensors()))
    assert [finetune(["promote", adapter]) for adapter in (bad, good)] == [1, 0]


def test_packed_weights_and_other_names_are_left_to_the_model_that_loads(tmp_path: Path) -> None:
    info = written(tmp_path, {Q_A: torch.zeros(4, 64), Q_B: torch.zeros(64, 4)})
    name = "model.layers.0.self_attn.q_proj.weight"
    for stored in ({name: torch.zeros(2048, 1, dtype=torch.uint8)}, {f"language_{name}": torch.zeros(1, 1)}):
        save_file(stored, tmp_path / "model.safetensors")
        check_fit(info.folder, tmp_path)
    save_file({name: torch.zeros(2048, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(AdapterDamaged, match="does not fit its model"):
        check_fit(info.folder, tmp_path)
