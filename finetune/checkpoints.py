"""Checkpoints of a training: what a killed one needs to go on where it was and to end with the same bits.

    checkpoints/KEY/00000030.safetensors   the adapter's factors and AdamW's state after step 30
    checkpoints/KEY/00000030.json          history, seconds, and the SHA-256 of the other; written last

The key names all that the result is a function of, so other votes, settings or threads begin anew. Once the factors
are made the loop draws nothing at random: there is no generator to keep.

They hold no text, but they were made from people's words: one training at a time keeps any, it deletes those of every
other when it starts, and its own when it ends well. What a killed one left goes with the next training of anything.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from assistant.settings import NightSettings
from finetune.batches import Encoded
from finetune.lora import Lora

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of the key: raise it with every change that makes another adapter of the same examples."""
TIME_SHARE = 0.01
"""Part of a training's time that writing may take."""
KEPT = 2
_ADAMW = "adamw."


@dataclass(frozen=True)
class Saved:
    """Where a training was."""

    history: list[dict[str, float]]
    """One entry a step done."""
    seconds: float
    """That those steps took."""
    tensors: dict[str, Tensor]
    """Factors by PEFT's names, and AdamW's state by parameter number."""

    def restore(self, lora: Lora, optimizer: torch.optim.AdamW) -> None:
        """Put factors and optimiser there."""
        lora.load(self.tensors)
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self.tensors.items():
            if name.startswith(_ADAMW):
                number, part = name.removeprefix(_ADAMW).split(".")
                state[int(number)][part] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})


class Checkpoints:
    """The folder of one training's checkpoints.

    Args:
        folder: its own; made when the first is written.
        time_share: part of the time that writing may take; 1 writes after almost every step.
    """

    def __init__(self, folder: Path, time_share: float = TIME_SHARE) -> None:
        self._folder = folder
        self._time_share = time_share
        self._written = self._took = 0.0

    def newest(self) -> Saved | None:
        """Read the newest whole checkpoint; what a kill tore, or anybody altered, is passed over."""
        found = (_read(path) for path in sorted(self._folder.glob("[0-9]*.json"), reverse=True))
        return next((saved for saved in found if saved), None)

    def save(
        self, history: Sequence[dict[str, float]], seconds: float, lora: Lora, optimizer: torch.optim.AdamW
    ) -> None:
        """Write a checkpoint after the first step and then whenever one is due; what fails is logged, not raised."""
        now = time.monotonic()
        if now - self._written < self._took / self._time_share:
            return
        try:
            self._write(history, seconds, lora, optimizer)
        except OSError as error:  # a full disk must not end what would else go well
            log.warning("No checkpoint could be written (%s); the training goes on.", error.strerror or error)
        self._written = time.monotonic()
        self._took = self._written - now

    def _write(
        self, history: Sequence[dict[str, float]], seconds: float, lora: Lora, optimizer: torch.optim.AdamW
    ) -> None:
        adamw = {
            f"{_ADAMW}{number}.{part}": tensor
            for number, state in optimizer.state_dict()["state"].items()
            for part, tensor in state.items()
        }
        data = save({**lora.tensors(), **adamw})
        said = {"history": history, "seconds": seconds, "sha256": hashlib.sha256(data).hexdigest()}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{len(history):08}.json"
        _replace(path.with_suffix(".safetensors"), data)
        _replace(path, json.dumps(said).encode())
        for old in sorted(self._folder.glob("[0-9]*.json"))[:-KEPT]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)


@contextmanager
def keep_checkpoints(cache_dir: Path, key: str) -> Iterator[Checkpoints | None]:
    """Open the checkpoints of one training, delete all others, and these too if the block ends well.

    Args:
        cache_dir: the cache folder.
        key: from `training_key`.

    Yields:
        None while another training keeps its checkpoints in the same cache folder.
    """
    root = cache_dir / "checkpoints"
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(cache_dir / "checkpoints.lock", timeout=0).acquire()
    except Timeout:
        log.warning("Another training uses this cache folder: this one keeps no checkpoints and, killed, begins anew.")
        yield None
        return
    with held:
        for other in root.glob("*"):
            if other.name != key:
                shutil.rmtree(other)
        yield Checkpoints(root / key)
        shutil.rmtree(root / key, ignore_errors=True)


def training_key(
    base: Sequence[str], examples: Sequence[Encoded], reference: Mapping[str, float], night: NightSettings
) -> str:
    """Name a training by all that its result is a function of.

    Args:
        base: the base's id, its numeric form and device, and the template's hash.
        examples: as they are trained on, with weights and all else.
        reference: row key to the base's log-probability.
        night: all of it, lest one that matters be forgotten.
    """
    here = (FORMAT, torch.__version__, torch.get_num_threads(), *base, night.model_dump_json())
    hashed = hashlib.sha256(repr(here).encode())
    for part in (*examples, *sorted(reference.items())):
        hashed.update(repr(part).encode())
    return hashed.hexdigest()[:32]


def _read(path: Path) -> Saved | None:
    try:
        said = json.loads(path.read_bytes())
        data = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != said["sha256"]:
            return None
        return Saved(said["history"], said["seconds"], load(data))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def _replace(path: Path, data: bytes) -> None:
    """Write a file aside and put it in place once it is on the disk."""
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
