"""The adapter folder: write, verify, read. The only place that knows its format.

    adapter_config.json         plain PEFT LoRA configuration
    adapter_model.safetensors   its tensors, fp32, named as PEFT names them
    manifest.json               what it belongs to and the SHA-256 of the other two; written last

A folder is valid once manifest.json stands in it, named by its content, and never changed afterwards.
Only these three regular files are read: no pickle, no link, nothing from a hub.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from assistant.errors import AdapterDamaged, AdapterError, AdapterForOtherBase, AdapterMissing

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"
REWARD_MANIFEST = "reward.json"
"""Stands in a reward model's folder, around its adapter; finetune/reward_folder.py writes it."""
PREFIX, LORA_A, LORA_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""How PEFT names the two factors (r, in) and (out, r) of a layer: PREFIX, the layer's name, LORA_A or LORA_B."""
WHOLE = ("F32", "F16", "BF16")
"""Forms in which a base's weights have the shapes of their layers; packed ones have others."""


@dataclass(frozen=True)
class AdapterInfo:
    """A verified adapter folder."""

    id: str
    folder: Path
    base_id: str
    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    run_id: str
    created_at: str


def write_adapter(
    adapters_dir: Path,
    tensors: "Mapping[str, Tensor]",
    *,
    rank: int,
    alpha: int,
    target_modules: Sequence[str],
    base_id: str,
    base_name: str,
    template_hash: str,
    run_id: str,
) -> AdapterInfo:
    """Write an adapter so that a crash leaves either the whole of it or nothing that counts.

    Args:
        adapters_dir: where adapter folders live; created if absent.
        tensors: PEFT's names to fp32 tensors, as `peft.get_peft_model_state_dict` gives them.
        rank: r.
        alpha: the adapter is scaled by alpha / rank.
        target_modules: the linear layers it changes, by their last name.
        base_id: names the weights it was trained on.
        base_name: a hub id or folder for other tools.
        template_hash: names the chat template it was trained under.
        run_id: the night that made it.

    Returns:
        The verified folder. The same content written twice is one folder.
    """
    from safetensors.torch import save_file

    adapters_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=adapters_dir))
    try:
        save_file(
            {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS
        )
        (folder / CONFIG).write_text(_peft_config(rank, alpha, target_modules, base_name))
        manifest = {
            "format": 1,
            "base_id": base_id,
            "base_name": base_name,
            "template_hash": template_hash,
            "run_id": run_id,
            "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "sha256": {name: _sha256(folder / name) for name in (CONFIG, TENSORS)},
        }
        adapter_id = "adapter-" + hashlib.sha256(json.dumps(manifest["sha256"]).encode()).hexdigest()[:12]
        for name in (CONFIG, TENSORS):
            _sync(folder / name)
        (folder / MANIFEST).write_text(json.dumps({"id": adapter_id, **manifest}, indent=2))
        _sync(folder / MANIFEST)
        _sync(folder)
        return _put_in_place(folder, adapters_dir / adapter_id, base_id)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, target: Path, base_id: str) -> AdapterInfo:
    """Give a written folder its name; a whole one of that name stays, one that is damaged is replaced."""
    if target.exists():
        try:
            return _verify_files(target, base_id)
        except AdapterError:
            damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=target.parent))
            os.replace(target, damaged / target.name)
            shutil.rmtree(damaged, ignore_errors=True)
    os.replace(folder, target)
    _sync(target.parent)
    return _verify_files(target, base_id)


def verify_adapter(folder: Path, base_id: str | None) -> AdapterInfo:
    """Check every byte of an adapter folder, that it holds LoRA of finite numbers, and that it belongs to this base.

    Whether its factors fit the base's layers is seen by `check_fit`, and by the model that loads it.

    Args:
        folder: the adapter's folder.
        base_id: the base it shall be applied to; None where that cannot be known.

    Raises:
        AdapterMissing: there is no such folder, or it was never finished.
        AdapterDamaged: a file is absent, altered, or a link: PEFT would load it and answer nonsense. Or what was
            written is no LoRA of this rank or not finite: every reply under it would fail or be nonsense.
        AdapterForOtherBase: trained on other weights; PEFT would load that too.
    """
    info = _verify_files(folder, base_id)
    _check_tensors(info)
    return info


def _verify_files(folder: Path, base_id: str | None) -> AdapterInfo:
    """See that a folder's files are the ones written, for this base; see verify_adapter."""
    name = folder.name[:80]
    if len(folder.name) > 80 or not (folder / MANIFEST).is_file():
        what = f"The folder {folder} holds no finished adapter" if folder.is_dir() else f"There is no adapter {name}"
        raise AdapterMissing(f"{what}. List them with: python -m finetune adapters")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        config = json.loads((folder / CONFIG).read_text())
        hashes = manifest["sha256"]
        intact = set(hashes) == {CONFIG, TENSORS} and all(
            not (folder / file).is_symlink() and _sha256(folder / file) == digest for file, digest in hashes.items()
        )
        info = AdapterInfo(
            id=manifest["id"],
            folder=folder,
            base_id=manifest["base_id"],
            rank=int(config["r"]),
            alpha=int(config["lora_alpha"]),
            target_modules=tuple(config["target_modules"]),
            run_id=manifest["run_id"],
            created_at=manifest["created_at"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterDamaged(f"The adapter {name} is damaged ({type(error).__name__}). Promote another one.") from error
    if not intact:
        raise AdapterDamaged(f"The adapter {name} is damaged: its files are not the ones written. Promote another one.")
    if base_id not in (info.base_id, None):
        raise AdapterForOtherBase(
            f"The adapter {name} was trained on another model. "
            "Serve that model, or promote an adapter made for this one."
        )
    return info


def read_adapter_id(folder: Path) -> str:
    """Read the id that an adapter's folder gives itself, whatever the folder is called; nothing else is checked.

    Raises:
        AdapterMissing: it is no adapter's folder, or a reward model's: its adapter was never taught to answer.
    """
    if any((place / REWARD_MANIFEST).is_file() for place in (folder, folder.parent)):
        raise AdapterMissing(
            f"{folder} is a reward model: it scores replies and writes none. Give an adapter's folder."
        )
    try:
        return str(json.loads((folder / MANIFEST).read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterMissing(f"There is no adapter in {folder}. Give an id, a folder, live or base.") from error


def factor_names(layer: str) -> tuple[str, str]:
    """PEFT's names of a layer's factors A (r, in) and B (out, r)."""
    return f"{PREFIX}{layer}{LORA_A}", f"{PREFIX}{layer}{LORA_B}"


def adapted_layers(tensors: Iterable[str]) -> list[str]:
    """The layers that have a factor A among tensors of PEFT's names, in alphabetical order."""
    return sorted(name.removeprefix(PREFIX).removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A))


def load_tensors(info: AdapterInfo) -> "dict[str, Tensor]":
    """Read a verified adapter's tensors."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(info.folder / TENSORS)
    return tensors


def check_fit(folder: Path, weights: Path) -> None:
    """Check a verified adapter's factors against the layers of its base, by what the files say of their shapes.

    Layers that the base's files hold in packed form, and all of them where the model calls them otherwise than its
    files do, are left to the model that loads the adapter.

    Args:
        folder: the adapter's folder.
        weights: the base's folder, with its safetensors files.

    Raises:
        AdapterDamaged: a layer is not the base's, or has another shape there: every reply would fail.
    """
    layers: dict[str, tuple[str, list[int]]] = {}
    for file in weights.glob("*.safetensors"):
        layers |= {name.removesuffix(".weight"): about for name, about in _forms(file).items()}
    factors = _forms(folder / TENSORS)
    names = adapted_layers(factors)
    if layers.keys().isdisjoint(names):
        return
    for name in names:
        form, shape = layers.get(name, ("F32", []))
        (_, a), (_, b) = (factors[factor] for factor in factor_names(name))
        fitting = [b[0], a[1]]
        if form in WHOLE and shape != fitting:
            raise AdapterDamaged(f"The adapter {folder.name} does not fit its model at {name}. Promote another one.")


def _check_tensors(info: AdapterInfo) -> None:
    """See that the tensors are whole pairs of factors of the stated rank, of finite numbers; without torch."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        forms = _forms(info.folder / TENSORS)
        _check_pairs(info, forms)
        with safe_open(info.folder / TENSORS, framework="numpy") as file:
            for name in forms:
                if not np.isfinite(file.get_tensor(name)).all():
                    raise AdapterDamaged(
                        f"The adapter {info.id} holds a value that is not a number in {name}. Promote another one."
                    )
    except (OSError, SafetensorError) as error:
        raise AdapterDamaged(
            f"The adapter {info.id} is damaged ({type(error).__name__}). Promote another one."
        ) from error


def _check_pairs(info: AdapterInfo, forms: "Mapping[str, tuple[str, list[int]]]") -> None:
    layers = adapted_layers(forms)
    paired = {name for layer in layers for name in factor_names(layer)}
    if not layers or forms.keys() != paired or {form for form, _ in forms.values()} != {"F32"}:
        raise AdapterDamaged(f"The adapter {info.id} holds something that is not LoRA. Promote another one.")
    for layer in layers:
        (_, a), (_, b) = (forms[name] for name in factor_names(layer))
        if len(a) != 2 or len(b) != 2 or not info.rank == a[0] == b[1] > 0:
            raise AdapterDamaged(
                f"The adapter {info.id} is not of rank {info.rank}, as it says, at {layer}. Promote another one."
            )


def _forms(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Read the form and the shape of each of a file's tensors, and nothing more."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}
        return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}


def _peft_config(rank: int, alpha: int, target_modules: Sequence[str], base_name: str) -> str:
    """Let PEFT write its own configuration, so that every tool that reads PEFT's reads ours."""
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(target_modules),
        inference_mode=True,
    )
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)  # PEFT holds the modules as a set


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or folder to disk: rename may otherwise reach it before the bytes do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
