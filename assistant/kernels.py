"""Products with integers that this machine compiles for itself, and whether they are the faster ones here.

torch multiplies weights of 4 bits by activations in bf16. `kernels.cpp` rounds the activations to 8 bits first, by
groups of 32 as llama.cpp does, and multiplies whole numbers. It is compiled once (about 20 s, in the background),
measured in a process of its own against what it would replace, and the choice is remembered by processor, versions and
layers.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from assistant.errors import KernelsUnavailable
from assistant.quantize import FEW_ROWS, GROUP, Int4Linear, own_form, quantize_groups

SOURCE: Final = Path(__file__).with_name("kernels.cpp")
MEASURED_ROWS: Final = (1, 2, 4, 8, 16, 32)
LONGEST_BUILD_S: Final = 600
FLAGS: Final = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
Shapes = Mapping[tuple[int, int], int]
"""How many layers of (out, in) a model has."""


@dataclass(frozen=True)
class Choice:
    """What was found here: up to how many rows the own products are taken, and why where they never are."""

    few_rows: int
    reason: str
    microseconds: dict[str, tuple[float, float]]
    """By rows: all layers by the own products, and by what they replace."""


def shapes_of(model: torch.nn.Module) -> Shapes:
    """Count the layers that may take the own products."""
    return Counter(
        (layer.out_features, layer.in_features) for layer in model.modules() if isinstance(layer, Int4Linear)
    )


def remembered(cache_dir: Path, shapes: Shapes) -> Choice | None:
    """What was chosen on this machine for such layers, if it was measured already."""
    try:
        found = json.loads(_choice_file(cache_dir, shapes).read_text(encoding="utf-8"))
        return Choice(int(found["few_rows"]), str(found["reason"]), dict(found["microseconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose(cache_dir: Path, shapes: Shapes) -> Choice:
    """Compile, measure and remember, half a minute the first time; a machine without a compiler stays as it is."""
    try:
        choice = _measured(_built(cache_dir), shapes)
    except KernelsUnavailable as error:
        choice = Choice(0, str(error), {})
    file = _choice_file(cache_dir, shapes)
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, lambda to: to.write_text(json.dumps(asdict(choice)), encoding="utf-8"))
    return choice


def load_kernels(cache_dir: Path) -> None:
    """Make the compiled products known to torch as `torch.ops.nightschool`.

    Raises:
        KernelsUnavailable: they cannot be loaded.
    """
    if not hasattr(torch.ops.nightschool, "linear4"):
        _load(_library(cache_dir))


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise KernelsUnavailable(f"{library} cannot be loaded; delete it, and it is compiled anew.") from error


def _built(cache_dir: Path) -> Path:
    """Compile, unless that was done; returns the library.

    Raises:
        KernelsUnavailable: there is no compiler, or it failed.
    """
    library = _library(cache_dir)
    if library.is_file():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise KernelsUnavailable("There is no C++ compiler; install g++ for faster replies.")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise KernelsUnavailable(f"The faster products are written for x86-64, not for {platform.machine()}.")
    there = Path(torch.__file__).parent
    command = [compiler, *FLAGS, str(SOURCE), "-ltorch_cpu", "-lc10", f"-L{there / 'lib'}"]
    command += [f"-I{there / 'include'}", f"-I{there / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    library.parent.mkdir(parents=True, exist_ok=True)

    def compile_to(file: Path) -> None:
        try:
            done = subprocess.run(
                ["nice", *command, "-o", str(file)], capture_output=True, text=True, timeout=LONGEST_BUILD_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelsUnavailable(f"The C++ compiler {compiler} did not end ({type(error).__name__}).") from error
        if done.returncode:
            lines = done.stderr.splitlines() or ["it did not say why"]
            why = next((line for line in lines if "error" in line), lines[-1])
            raise KernelsUnavailable(f"The C++ compiler {compiler} failed: {why[:300]}")

    _write(library, compile_to)
    return library


def _measured(library: Path, shapes: Shapes) -> Choice:
    """Measure in a process of its own, whose crash would be its own, too.

    Raises:
        KernelsUnavailable: the compiled products crash or are wrong here.
    """
    asked = json.dumps({"library": str(library), "threads": torch.get_num_threads(), "shapes": list(shapes.items())})
    command = ["nice", sys.executable, "-m", "assistant.kernels", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_BUILD_S)
        microseconds = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise KernelsUnavailable("The compiled products do not run on this machine; torch's own are kept.") from error
    few_rows = 0
    for rows in MEASURED_ROWS:
        own, other = microseconds[str(rows)]
        if own > other:
            break
        few_rows = rows
    reason = "" if few_rows else "torch's own products are the faster ones here."
    return Choice(few_rows, reason, microseconds)


def _measure(shapes: Shapes) -> dict[int, tuple[float, float]]:
    """Microseconds for one token of so many rows through all layers, by the own products and by the others.

    Raises:
        SystemExit: the own products are wrong.
    """
    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    total = {rows: [0.0, 0.0] for rows in MEASURED_ROWS}
    for (out, inner), count in shapes.items():
        quantised, scales_and_zeros = quantize_groups(torch.randn(out, inner))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantised, 1)
        own = own_form(quantised, scales_and_zeros)
        whole = torch.randn(out, inner).to(dtype)
        for rows in MEASURED_ROWS:
            x = torch.randn(rows, inner).bfloat16()
            expected = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales_and_zeros).float()
            given = torch.ops.nightschool.linear4(x, *own).float()
            if (given - expected).norm() > 0.02 * expected.norm():
                raise SystemExit(1)

            def replaced(x: Tensor = x, packed: Tensor = packed, zeros: Tensor = scales_and_zeros) -> Tensor:
                if len(x) <= FEW_ROWS:
                    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, zeros)  # type: ignore[no-any-return]
                return torch.nn.functional.linear(x.to(dtype), whole).to(x.dtype)  # noqa: B023

            ways: tuple[Callable[[], Tensor], ...] = (
                lambda x=x, own=own: torch.ops.nightschool.linear4(x, *own),  # type: ignore[misc]
                replaced,
            )
            for way, microseconds in enumerate(_fastest(ways)):
                total[rows][way] += count * microseconds
    return {rows: (own, other) for rows, (own, other) in total.items()}


def _fastest(ways: tuple[Callable[[], Tensor], ...]) -> list[float]:
    """The best of many short turns of each, in microseconds; another program's time does not count."""
    best = [float("inf")] * len(ways)
    for _turn in range(25):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            for _ in range(4):
                way()
            best[number] = min(best[number], (time.perf_counter() - start) / 4 * 1e6)
    return best


def _library(cache_dir: Path) -> Path:
    return cache_dir / "kernels" / f"{_machine()}.so"


def _choice_file(cache_dir: Path, shapes: Shapes) -> Path:
    said = repr((sorted(shapes.items()), torch.get_num_threads()))
    return cache_dir / "kernels" / f"{_machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"


def _machine() -> str:
    """What the compiled products are good for: this source, torch and processor."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    digest.update(torch.__version__.encode())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else [platform.processor()]
    digest.update("".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode())
    return digest.hexdigest()[:16]


def _write(file: Path, make: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=file.suffix)
    os.close(handle)
    try:
        make(Path(name))
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


def _main() -> None:
    """Measure what the only argument names, for `_measured`."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    _load(Path(asked["library"]))
    shapes = {(out, inner): count for (out, inner), count in asked["shapes"]}
    sys.stdout.write(json.dumps(_measure(shapes)))


if __name__ == "__main__":
    _main()
