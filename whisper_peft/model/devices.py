"""Where a model runs, and in which arithmetic."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from whisper_peft.errors import UserError

if TYPE_CHECKING:
    import torch
RUNNING_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RETURNED_BYTES = 4 * 1024 * 1024  # a block of memory so large goes back to the system when it is freed
PLAIN_ATTENTION_KEYS = 512  # a window of 10 s: up to so many a CPU in bf16 attends by plain products, see attention.py


def best_device() -> torch.device:
    """This process's CUDA device (of its local rank), else MPS (untested), else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_device(model):
    """The model on the best device there is; a quantised one was loaded there."""
    return model if getattr(model, "is_quantized", False) else model.to(best_device())


def best_precision() -> str:
    """bf16 where the device has it, else fp16 on CUDA and fp32 elsewhere (MPS, untested, among them)."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if not torch.backends.mps.is_available() and bf16_pays() else "fp32"


def bf16_pays(size: int = 1024, tries: int = 5) -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in float32, by half at least.

    Found by trying: torch emulates bf16 where instructions for it are missing, and is slower then.
    """
    import torch

    def quickest(dtype: torch.dtype) -> float:
        matrix, seconds = torch.ones(size, size, dtype=dtype), []
        for _ in range(tries):
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return quickest(torch.bfloat16) * 1.5 < quickest(torch.float32)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no more memory to give."""
    import torch

    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def return_large_blocks() -> None:
    """Has the C library give large blocks back when they are freed.

    Else it soon keeps all below 32 MB, and the heap is full of holes: on a CPU a step on 30 s windows took up to
    three times the memory that it used. On windows of 5 s it only took a tenth more time. Its mallopt(3); holds for the
    process.
    """
    import contextlib
    import ctypes

    m_mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):  # another C library than Linux's
        ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, RETURNED_BYTES)


def free_unused_memory() -> None:
    """Gives back what nothing holds any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        import contextlib
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # another C library than Linux's
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def dtype_of(precision: str) -> torch.dtype | None:
    """The type that autocast computes in under a precision; None: float32, without autocast."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def running_precision(precision: str) -> str:
    """Choose the precision that a model is run in where it is not trained.

    Args:
        precision: fp32, bf16 or fp16; auto for the best half precision on a GPU, and fp32 elsewhere.

    Raises:
        UserError: There is no such precision.
    """
    if precision not in RUNNING_PRECISIONS:
        raise UserError(f"--precision {precision}: expected one of {', '.join(RUNNING_PRECISIONS)}.")
    if precision != "auto":
        return precision
    return best_precision() if best_device().type == "cuda" else "fp32"
