"""The folder of a reward model: write, verify, read. The only place that knows its format.

adapter/                    a plain PEFT LoRA, written and verified in assistant/adapters.py
reward_head.safetensors     weight (H,) and bias (), fp32
reward.json                 what it belongs to, and the SHA-256 of the head and of the adapter's manifest; written last
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from assistant.adapters import MANIFEST, REWARD_MANIFEST, load_tensors, verify_adapter, write_adapter
from assistant.errors import AdapterError, AdapterForOtherBase
from finetune.errors import BadReward
from finetune.lora import attach_lora
from finetune.reward import Centre, RewardHead, RewardModel, TrainedReward
from finetune.unfinished import unfinished_beside

ADAPTER, HEAD = "adapter", "reward_head.safetensors"
HASHED = (f"{ADAPTER}/{MANIFEST}", HEAD)


@dataclass(frozen=True)
class SavedReward:
    """A reward model read from a verified folder."""

    id: str
    tensors: dict[str, Tensor]
    """PEFT's names to float32 factors."""
    rank: int
    alpha: int
    head: RewardHead
    centre: Centre


def write_reward(
    folder: Path,
    trained: TrainedReward,
    *,
    rank: int,
    alpha: int,
    base_id: str,
    base_name: str,
    template_hash: str,
    run_id: str,
) -> str:
    """Write a reward model whole, or nothing that counts, and return its id.

    Args:
        folder: absent or empty.
        trained: from `train_reward`.
        rank: r.
        alpha: the adapter is scaled by alpha / rank.
        base_id: names the weights it was trained on.
        base_name: a hub id or folder for other tools.
        template_hash: names the chat template it was trained under.
        run_id: the run that made it.
    """
    with unfinished_beside(folder) as beside:
        unfinished = beside / "reward"
        unfinished.mkdir()
        adapter = write_adapter(
            unfinished,
            trained.tensors,
            rank=rank,
            alpha=alpha,
            target_modules=trained.target_modules,
            base_id=base_id,
            base_name=base_name,
            template_hash=template_hash,
            run_id=run_id,
        )
        os.replace(adapter.folder, unfinished / ADAPTER)
        head = {"weight": trained.head.weight.cpu(), "bias": torch.tensor(trained.head.bias)}
        save_file(head, unfinished / HEAD)
        hashes = {name: _sha256(unfinished / name) for name in HASHED}
        digest = hashlib.sha256((adapter.id + hashes[HEAD]).encode()).hexdigest()
        manifest = {"id": f"reward-{digest[:12]}", "format": 1, "centre": trained.centre, "sha256": hashes}
        (unfinished / REWARD_MANIFEST).write_text(json.dumps(manifest, indent=2))
        if folder.exists():
            folder.rmdir()
        os.replace(unfinished, folder)
        return str(manifest["id"])


def read_reward(folder: Path, base_id: str) -> SavedReward:
    """Check every byte of a reward model's folder and that it belongs to this base, and read it.

    Raises:
        BadReward: it is absent, altered, or trained on other weights: its scores would be noise, and PPO would
            follow them.
    """
    if not (folder / REWARD_MANIFEST).is_file():
        raise BadReward(
            f"There is no reward model in {folder}. Make one with: python -m finetune train --method reward"
        )
    try:
        manifest = json.loads((folder / REWARD_MANIFEST).read_text())
        if manifest["sha256"] != {name: _sha256(folder / name) for name in HASHED}:
            raise ValueError("a file is not the one that was written")
        adapter = verify_adapter(folder / ADAPTER, base_id)
        head = load_file(folder / HEAD)
        return SavedReward(
            id=manifest["id"],
            tensors=load_tensors(adapter),
            rank=adapter.rank,
            alpha=adapter.alpha,
            head=RewardHead(head["weight"], float(head["bias"])),
            centre=manifest["centre"],
        )
    except AdapterForOtherBase as error:
        raise BadReward(
            f"The reward model in {folder} was trained on another model. Set NIGHTSCHOOL_MODEL to that one, or train a "
            "reward model for this one."
        ) from error
    except (AdapterError, OSError, ValueError, KeyError, TypeError) as error:
        raise BadReward(
            f"The reward model in {folder} is damaged: its files are not the ones written. Train it again."
        ) from error


@contextmanager
def attach_reward(model: PreTrainedModel, saved: SavedReward) -> Iterator[RewardModel]:
    """Give a base a reward model's adapter, inside the block; afterwards the base is as before."""
    with attach_lora(model, model.get_output_embeddings(), rank=saved.rank, alpha=saved.alpha, seed=0) as lora:
        lora.load(saved.tensors)
        yield RewardModel(model, replace(saved.head, weight=saved.head.weight.to(model.device)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
