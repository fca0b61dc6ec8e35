"""The adapter folder: whole or refused, and on a served model equal to PEFT's own result."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from assistant.adapters import CONFIG, MANIFEST, TENSORS, AdapterInfo, verify_adapter, write_adapter
from assistant.errors import AdapterDamaged, AdapterForOtherBase, AdapterMissing
from assistant.lora import AdapterBank
from tests.tiny import tiny_model

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(root: Path, seed: int = 0, base_id: str = "base-1") -> AdapterInfo:
    model = tiny_model()
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), init_lora_weights=False)
    tensors = get_peft_model_state_dict(get_peft_model(model, config))
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


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.full((4, 64), float("nan")), name.format("B"): torch.zeros(64, 4)}
    info = write_adapter(
        tmp_path,
        tensors,
        rank=4,
        alpha=8,
        target_modules=["q_proj"],
        base_id="base-1",
        base_name="tiny",
        template_hash="t",
        run_id="r",
    )
    with pytest.raises(AdapterDamaged, match="not a number"):
        AdapterBank(tiny_model(), "base-1").load(info.folder)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    info = write_adapter(
        tmp_path,
        {name.format("A"): torch.zeros(4, 32), name.format("B"): torch.zeros(64, 4)},
        rank=4,
        alpha=8,
        target_modules=["q_proj"],
        base_id="base-1",
        base_name="tiny",
        template_hash="t",
        run_id="r",
    )
    with pytest.raises(AdapterDamaged, match="does not fit"):
        AdapterBank(tiny_model(), "base-1").load(info.folder)


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
