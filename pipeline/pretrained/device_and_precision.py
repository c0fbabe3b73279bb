"""Settings -> the device and the precision that an encoder uses.

Chosen once per process, when an encoder is loaded, and recorded in the collection beside the
fingerprint. `auto` takes bfloat16 only where the device multiplies it in hardware: elsewhere torch
emulates it, slower than float32 and no more exact.
"""

from __future__ import annotations

import torch

from chiasm.pipeline.errors import EncoderError, UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(wanted: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> the torch device; `auto` is cuda where there is one.

    Raises UsageError for any other value, EncoderError where this process has no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, number = wanted.partition(":")
    if name not in ("cpu", "cuda") or (number and not (name == "cuda" and number.isdecimal())):
        raise UsageError(f"device {wanted!r}", expected="auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if name == "cuda" else 0
    if name == "cuda" and int(number or 0) >= count:
        raise EncoderError(
            f"device {wanted!r}",
            expected="a CUDA device of this process",
            found=f"{count} of them",
            do="use --device auto or cpu; workers of embed and filter see one with workers.gpus=1",
        )
    return torch.device(wanted)


def resolve_precision(wanted: str, device: torch.device) -> str:
    """`auto`, `float32` or `bfloat16` -> `float32` or `bfloat16`, keys of PRECISIONS.

    Raises UsageError for any other value.
    """
    if wanted == "auto":
        return "bfloat16" if fast_in_bfloat16(device) else "float32"
    if wanted not in PRECISIONS:
        raise UsageError(f"precision {wanted!r}", expected="auto, " + " or ".join(PRECISIONS))
    return wanted


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: AVX512-BF16 or AMX on CPUs, Ampere or later
    on CUDA."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return major >= 8
    # Private names, but the only ones torch 2.11 has; 2.12's get_capabilities says the same.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
