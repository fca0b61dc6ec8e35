"""Which numbers a machine multiplies fast: bf16 where there are units for it, float32 where there are none.

On a processor without them torch multiplies bf16 matrices one number at a time: on two cores of an AMD EPYC with AVX2
a product of 2,048 rows ran at 15 GFLOP/s in bf16 and at 105 in float32.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bf16() -> bool:
    """Whether the best device has fast bf16 products."""
    if best_device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(folder: Path) -> torch.dtype:
    """Choose what a base's large products are computed in.

    Args:
        folder: of its *.safetensors. In float32 they take twice the memory, once by day and once at night: it is chosen
            where that is at most a fifth of what there is.
    """
    if multiplies_bf16():
        return torch.bfloat16
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return torch.float32 if 2 * stored <= memory_bytes() / 5 else torch.bfloat16


def is_turned(x: Tensor, weight: Tensor) -> bool:
    """Whether `turned_linear` forms the product the other way round: in float32 on a CPU."""
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def turned_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ + b for a few hundred rows at most; in float32 on a CPU as (W xᵀ)ᵀ, whose result lies turned.

    MKL is asked to transpose neither then: on two cores of an AMD EPYC 16 to 64 rows of 576 are multiplied 1.4 to 1.9
    times as fast, and 128 by a head of 49,152 at 78 GFLOP/s instead of 49.

    Args:
        x: (n, in)
        weight: (out, in)
        bias: (out,)

    Returns:
        (n, out), not always contiguous.
    """
    if not is_turned(x, weight):
        return functional.linear(x, weight, bias)
    turned = weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)
    return turned.T


def memory_bytes() -> int:
    """The GPU's memory if there is one, else the machine's, or what its container may take of that."""
    if best_device().type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.exists() else "max"
    return min(physical, int(allowed)) if allowed.isdecimal() else physical
