"""Products with integers that this machine compiles for itself, and whether they are the faster ones here.

torch multiplies weights of 4 bits by activations in bf16. `native/` rounds the activations to 8 bits first, by
groups of 32 as llama.cpp does, and multiplies whole numbers. It is compiled once (about 20 s, in the background),
measured in a process of its own against what it would replace, and the choice is remembered by processor, versions and
layers.
"""

import atexit
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assistant.errors import KernelsUnavailable
from assistant.quantize import (
    FEW_ROWS,
    GROUP,
    HEAD_ROWS,
    UNLIMITED,
    integer_layers,
    own_form,
    quantize_groups,
    restore_groups,
)

log = logging.getLogger(__name__)

SOURCES: Final = Path(__file__).with_name("native")
MEASURED_ROWS: Final = (1, 2, 4, 8, 16, 32, 512)
AGAIN: Final = 3
"""So often is measured anew where the own products seem the slower ones."""
LONGEST_S: Final = 600
LOOK_S: Final = 0.05
"""How long compiler and measurement may go on after a message has come."""
FLAGS: Final = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp")
CRASHES: Final = (signal.SIGILL, signal.SIGSEGV, signal.SIGFPE, signal.SIGBUS, signal.SIGABRT)
WRONG: Final = 3
"""The status of a measurement that found wrong numbers."""
Shapes = Mapping[tuple[int, int, int], int]
"""How many layers of (out, in, bits) a model has."""


@dataclass(frozen=True)
class Choice:
    """What was found here: up to how many rows the own products are taken, and why where they never are."""

    few_rows: int
    """UNLIMITED where they were faster for a piece of a prompt, too."""
    reason: str
    microseconds: dict[str, tuple[float, float]]
    """By rows: all layers by the own products, and by what they replace."""


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Count the layers that may take the own products, in integers already or not yet."""
    return Counter((layer.out_features, layer.in_features, form.bits) for _, _, layer, form in integer_layers(model))


def remembered(cache_dir: Path, shapes: Shapes) -> Choice | None:
    """What was chosen on this machine for such layers, if it was measured already and is still there."""
    try:
        found = json.loads(_choice_file(cache_dir, shapes).read_text(encoding="utf-8"))
        choice = Choice(int(found["few_rows"]), str(found["reason"]), dict(found["microseconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if not choice.few_rows or _library(cache_dir).is_file() else None


def choose(cache_dir: Path, shapes: Shapes, busy: Callable[[], bool] = lambda: False) -> Choice:
    """Compile and measure, half a minute the first time, and remember what a measurement found.

    A machine without a compiler stays as it is, and nothing is remembered: there may be one next time.

    Args:
        busy: whether somebody is waiting for a reply just now; meanwhile both stand still.
    """
    try:
        choice = _measured(_built(cache_dir, busy), shapes, busy)
        _write(_choice_file(cache_dir, shapes), lambda to: to.write_text(json.dumps(asdict(choice)), encoding="utf-8"))
    except KernelsUnavailable as error:
        return Choice(0, str(error), {})
    except OSError as error:
        return Choice(0, f"{cache_dir / 'kernels'} cannot be written ({error.strerror}).", {})
    return choice


def load_kernels(cache_dir: Path) -> None:
    """Make the compiled products known to torch as `torch.ops.nightschool`.

    Raises:
        KernelsUnavailable: they cannot be loaded, or somebody else could have written them.
    """
    if _is_loaded():
        return
    _load(_library(cache_dir))


def _is_loaded() -> bool:
    return hasattr(torch.ops.nightschool, "linear4")


def _load(library: Path) -> None:
    """Load a library into this process.

    Raises:
        KernelsUnavailable: it cannot be loaded, or somebody else could have written it.
    """
    _check_ours(library)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        library.unlink(missing_ok=True)
        raise KernelsUnavailable(f"{library} could not be loaded and is compiled anew at the next start.") from error


def _check_ours(library: Path) -> None:
    """See that nobody but this account and root could have written a library, or put it where it lies.

    Raises:
        KernelsUnavailable: somebody could, and what is loaded is run.
    """
    for path in (library.parent, library):
        with suppress(FileNotFoundError):
            about = path.stat()
            if about.st_uid not in (os.getuid(), 0) or about.st_mode & 0o022:
                raise KernelsUnavailable(
                    f"{library} is not this account's alone to write; it is not loaded. Delete its folder."
                )


def _built(cache_dir: Path, busy: Callable[[], bool]) -> Path:
    """Compile, unless that was done; returns the library.

    Raises:
        KernelsUnavailable: there is no compiler, it failed, or others could write where the library lies.
        OSError: the cache cannot be written.
    """
    library = _library(cache_dir)
    _check_ours(library)
    if library.is_file():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise KernelsUnavailable("There is no C++ compiler; install g++ for faster replies.")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise KernelsUnavailable(f"The faster products are written for x86-64, not for {platform.machine()}.")
    there = Path(torch.__file__).parent
    command = [*compiler.split(), *FLAGS, str(SOURCES / "operators.cpp"), "-ltorch_cpu", "-lc10", f"-L{there / 'lib'}"]
    command += [f"-I{there / 'include'}", f"-I{there / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]

    def compile_to(file: Path) -> None:
        status, _, said = _run([*command, "-o", str(file)], busy)
        if status:
            lines = said.splitlines() or ["it did not say why"]
            why = next((line for line in lines if "error" in line), lines[-1])
            raise KernelsUnavailable(f"The C++ compiler {compiler} failed: {why[:300]}")

    _write(library, compile_to)
    return library


def _measured(library: Path, shapes: Shapes, busy: Callable[[], bool]) -> Choice:
    """Measure in a process of its own, whose crash would be its own, too.

    Raises:
        KernelsUnavailable: it did not come to its end, for a reason that may be gone next time.
    """
    asked = json.dumps({"library": str(library), "threads": torch.get_num_threads(), "shapes": list(shapes.items())})
    status, printed, said = _run([sys.executable, "-m", "assistant.kernels", asked], busy)
    if status == WRONG or -status in CRASHES:
        return Choice(0, "The compiled products do not run on this machine; torch's own are kept.", {})
    if status:
        last = (said.splitlines() or ["it did not say why"])[-1]
        raise KernelsUnavailable(f"The compiled products could not be measured ({last[:200]}).")
    try:
        microseconds = json.loads(printed)
    except ValueError as error:
        raise KernelsUnavailable("The compiled products could not be measured (the measurement broke off).") from error
    few_rows = 0
    for rows in MEASURED_ROWS:
        own, other = microseconds[str(rows)]
        if own > other:
            break
        few_rows = rows
    if few_rows == MEASURED_ROWS[-1]:
        few_rows = UNLIMITED
    if few_rows < FEW_ROWS:  # else what comes after the few would be multiplied whole, which nobody measured
        return Choice(0, "torch's own products are the faster ones here.", microseconds)
    return Choice(few_rows, "", microseconds)


def _run(command: list[str], busy: Callable[[], bool]) -> tuple[int, str, str]:
    """Run a command behind others, in a group of its own that ends with this process; status, output, errors.

    Raises:
        KernelsUnavailable: it took too long, or could not begin.
    """
    try:
        run = subprocess.Popen(
            ["nice", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    except OSError as error:
        raise KernelsUnavailable(f"{command[0]} could not be started ({error.strerror}).") from error

    def signal_all(number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(run.pid, number)

    end = partial(signal_all, signal.SIGKILL)
    atexit.register(end)
    try:
        looks = 0
        while looks * LOOK_S < LONGEST_S:
            paused = busy()
            signal_all(signal.SIGSTOP if paused else signal.SIGCONT)
            looks += not paused
            with suppress(subprocess.TimeoutExpired):
                printed, said = run.communicate(timeout=LOOK_S)
                return run.returncode, printed, said
        raise KernelsUnavailable(f"{command[0]} took longer than {LONGEST_S} s.")
    finally:
        if run.poll() is None:
            end()
        atexit.unregister(end)


def _measure(shapes: Shapes) -> dict[int, tuple[float, float]]:
    """Microseconds for one token of so many rows through all layers, by the own products and by the others.

    Raises:
        SystemExit: the own products are wrong.
    """
    torch.manual_seed(0)
    total = {rows: [0.0, 0.0] for rows in MEASURED_ROWS}
    for (out, inner, bits), count in shapes.items():
        own, replaced = _ways4(out, inner) if bits == 4 else _ways8(out, inner)
        most = MEASURED_ROWS[-1] if bits == 4 else HEAD_ROWS  # beyond, a head is multiplied whole
        for rows in MEASURED_ROWS[: MEASURED_ROWS.index(most) + 1]:
            x = torch.randn(rows, inner).bfloat16()
            expected = replaced(x).float()
            if not (own(x).float() - expected).norm() <= 0.02 * expected.norm():
                raise SystemExit(WRONG)
            fastest = _fastest((own, replaced), x)
            for _ in range(AGAIN):  # the choice stays for good, and another program may have had a processor meanwhile
                if fastest[0] > fastest[1]:
                    fastest = [min(times) for times in zip(fastest, _fastest((own, replaced), x), strict=True)]
            for way, microseconds in enumerate(fastest):
                total[rows][way] += count * microseconds
    return {rows: (own, other) for rows, (own, other) in total.items()}


Way = Callable[[Tensor], Tensor]


def _ways4(out: int, inner: int) -> tuple[Way, Way]:
    """A layer of 4 bits by the own product, and as it is multiplied without."""
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    levels, scales_and_zeros = quantize_groups(torch.randn(out, inner))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.int(), 1)
    own, whole = own_form(levels, scales_and_zeros), restore_groups(levels, scales_and_zeros).to(dtype)

    def replaced(x: Tensor) -> Tensor:
        if len(x) > FEW_ROWS:
            return torch.nn.functional.linear(x.to(dtype), whole).to(x.dtype)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales_and_zeros)
        return y

    return lambda x: torch.ops.nightschool.linear4(x, *own), replaced


def _ways8(out: int, inner: int) -> tuple[Way, Way]:
    """The same of a head."""
    weight, scales = torch.randint(-127, 128, (out, inner), dtype=torch.int8), torch.rand(out).bfloat16()
    return (
        lambda x: torch.ops.nightschool.linear8(x, weight, scales),
        lambda x: torch.ops.aten._weight_int8pack_mm(x, weight, scales),
    )


def _fastest(ways: tuple[Way, Way], x: Tensor) -> list[float]:
    """The best of many short turns of each, in microseconds; another program's time does not count."""
    best = [float("inf")] * len(ways)
    turns, repeats = (25, 4) if len(x) <= HEAD_ROWS else (5, 1)
    for _turn in range(turns):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            for _ in range(repeats):
                way(x)
            best[number] = min(best[number], (time.perf_counter() - start) / repeats * 1e6)
    return best


def _library(cache_dir: Path) -> Path:
    return cache_dir / "kernels" / f"{_machine()}.so"


def _choice_file(cache_dir: Path, shapes: Shapes) -> Path:
    digest = hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()
    return cache_dir / "kernels" / f"{_machine()}-{digest[:12]}.json"


def _machine() -> str:
    """What the compiled products are good for: this source, its flags, torch and processor."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(SOURCES.iterdir())))
    digest.update(" ".join(FLAGS).encode())
    digest.update(torch.__version__.encode())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else [platform.processor()]
    digest.update("".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode())
    return digest.hexdigest()[:16]


def _write(file: Path, make: Callable[[Path], object]) -> None:
    """Write a file whole or not at all, for everybody to read."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix="tmp-", suffix=file.suffix)
    os.close(handle)
    try:
        make(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)


def _main() -> None:
    """Measure what the only argument names, for `_measured`."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    _load(Path(asked["library"]))
    shapes = {(out, inner, bits): count for (out, inner, bits), count in asked["shapes"]}
    sys.stdout.write(json.dumps(_measure(shapes)))


if __name__ == "__main__":
    _main()
