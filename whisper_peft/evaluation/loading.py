"""Load a model as `transcribe` and `evaluate` run it: on its device, in the precision that the user asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whisper_peft.data.features import Preparation
from whisper_peft.model.build import load_model
from whisper_peft.model.devices import dtype_of, running_precision, to_device
from whisper_peft.model.locating import Located, locate


def load_to_run(
    model: str | Path, *, base: str | None, quantize: str, precision: str
) -> tuple[Any, Preparation, Located, str]:
    """Load any MODEL in a precision.

    Args:
        model: Hub id, model, adapter or run folder.
        base: The adapter's base, if it has moved.
        quantize: Load the base in "8bit", "4bit" or "none"; "as-trained": in the bits that the adapter was trained on.
        precision: "fp32", "bf16" or "fp16"; "auto": the best half precision on a GPU, fp32 on a CPU. The weights of a
            quantised base keep their own type; with "auto", the rest of it is in fp32.

    Returns:
        The model in eval mode on its device, its preparation, where it was found, and the precision that it runs in.

    Raises:
        UserError: There is no such precision, or the model cannot be loaded.
    """
    chosen = running_precision(precision)
    if precision == "auto" and _is_quantised(model, quantize):
        chosen = "fp32"
    dtype = dtype_of(chosen)
    loaded, preparation, located = load_model(model, dtype=dtype, base=base, quantize=quantize)
    if dtype is not None and not getattr(loaded, "is_quantized", False):
        # peft keeps an adapter, and the modules that were trained in full beside it, in float32.
        loaded = loaded.to(dtype)
    return to_device(loaded), preparation, located, chosen


def _is_quantised(model: str | Path, quantize: str) -> bool:
    """Tell whether the base of a model is to be loaded in fewer bits."""
    if quantize == "as-trained":
        quantize = locate(model).quantize or "none"
    return quantize != "none"
