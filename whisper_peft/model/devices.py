"""The device that a model runs on, its memory, and the precision of the arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from typing import TYPE_CHECKING

from whisper_peft.errors import UserError

if TYPE_CHECKING:
    import torch

# Bytes of what our pages and messages call a GB. Graphics cards are sold in this unit, and nvidia-smi shows it.
GIB = 1024**3
# Values of --precision, for a model that is run and not trained.
RUNNING_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# In bytes. The C library returns a freed block of at least this size to the system, see `return_large_blocks`.
RETURNED_BYTES = 4 * 1024 * 1024
# The name that mallopt(3) gives to the setting is M_MMAP_THRESHOLD.
_MALLOPT_MMAP_THRESHOLD = -3
# How many times faster than in float32 a CPU must multiply in bf16 before we choose bf16 for it.
_WORTHWHILE_SPEEDUP = 1.5
# What torch writes in a RuntimeError when an allocation fails. Only CUDA has an exception class of its own for it.
_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def best_device() -> torch.device:
    """Return the CUDA device of this process's local rank, else MPS (untested), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def to_device(model):
    """Move a model to the best device; a quantised model is there since it was loaded."""
    if getattr(model, "is_quantized", False):
        return model
    return model.to(best_device())


def best_precision() -> str:
    """Return bf16 where the device computes it well, else fp16 on CUDA and fp32 elsewhere.

    MPS, which is untested, gets fp32.
    """
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16"
    if not torch.backends.mps.is_available() and _is_faster_in_bf16():
        return "bf16"
    return "fp32"


def _is_faster_in_bf16(size: int = 1024, n_tries: int = 5) -> bool:
    """Tell whether this CPU multiplies matrices at least 1.5 times faster in bf16 than in float32.

    The answer is measured: where a CPU has no instructions for bf16, torch emulates them and is slower than in float32.

    Args:
        size: Number of rows and columns of the matrix.
        n_tries: Number of multiplications in each type, of which the quickest counts.
    """
    import torch

    def quickest_s(dtype: torch.dtype) -> float:
        matrix = torch.ones(size, size, dtype=dtype)
        durations_s = []
        for _ in range(n_tries):
            start_s = time.perf_counter()
            torch.mm(matrix, matrix)
            durations_s.append(time.perf_counter() - start_s)
        return min(durations_s)

    return quickest_s(torch.bfloat16) * _WORTHWHILE_SPEEDUP < quickest_s(torch.float32)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device, or the machine, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def return_large_blocks() -> None:
    """Make the C library return large blocks to the system when they are freed.

    This holds for the whole process and cannot be taken back: mallopt(3) knows no other scope. `train` calls it before
    it loads the model, and only where memory matters more than time.

    By default the C library keeps every freed block below 32 MB, and the heap fills with holes that no later tensor
    fits. On a CPU, a step on 30 s windows then took up to three times the memory that it used. On 5 s windows the
    setting saves nothing and costs a tenth more time.
    """
    # Only the C library of Linux has the function: elsewhere nothing changes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_MALLOPT_MMAP_THRESHOLD, RETURNED_BYTES)


def free_unused_memory() -> None:
    """Return to the device, or to the system, the memory that no tensor uses any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return
    # Only the C library of Linux has the function: elsewhere nothing changes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def dtype_of(precision: str) -> torch.dtype | None:
    """Return the type that autocast computes in; None for fp32, which needs no autocast."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def running_precision(precision: str) -> str:
    """Choose the precision for a model that is run and not trained.

    Args:
        precision: fp32, bf16 or fp16 is returned as it is; auto means the best half precision on a GPU, and fp32
            elsewhere.

    Raises:
        UserError: There is no such precision.
    """
    if precision not in RUNNING_PRECISIONS:
        raise UserError(f"--precision {precision}: expected one of {', '.join(RUNNING_PRECISIONS)}.")
    if precision != "auto":
        return precision
    if best_device().type == "cuda":
        return best_precision()
    return "fp32"
