"""Which numbers a machine multiplies fast: bf16 where there are units for it, float32 where there are none.

On a processor without them torch multiplies bf16 matrices one number at a time: on two cores of an AMD EPYC with AVX2
a product of 2,048 rows ran at 15 GFLOP/s in bf16 and at 105 in float32.
"""

import os
from pathlib import Path

import torch


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
        folder: of its *.safetensors; float32 takes twice what they do, and is not chosen for more than half the memory.
    """
    if multiplies_bf16():
        return torch.bfloat16
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if best_device().type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.float32 if 2 * stored <= memory / 2 else torch.bfloat16
