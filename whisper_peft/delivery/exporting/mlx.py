"""Write a model for mlx-whisper: config.json and weights.safetensors, as its own `load_model` reads them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.delivery.exporting.openai_names import openai_sizes, openai_tensors
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.runtimes.formats import EXPORT_FORMATS

if TYPE_CHECKING:
    import numpy as np
    import torch

# Bits of a quantised weight.
_BITS = {"q8": 8, "q4": 4}
# So many neighbours share a scale and an offset. It is what mlx-whisper's own converter takes.
_GROUP_SIZE = 64
# The type of everything in a quantised model that is not quantised. mlx-whisper computes in it by default.
_REST = "float16"
_SINUSOIDS = "encoder.positional_embedding"
# bfloat16 rounds numbers up to 1 by 0.004 at most.
_SINUSOID_TOLERANCE = 0.01


class MlxWriter:
    """Writes the format of mlx-whisper; see `Writer`. The runtime has tokens and window built in."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a model that mlx-whisper would misread, or computes in another way; see `Writer.check`."""
        format = EXPORT_FORMATS["mlx"]
        source.check_openai_layout(format.name, format.runtime)

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write config and weights; see `Writer.write`.

        Raises:
            UserError: mlx is needed and not installed, or the model is too narrow to be quantised.
        """
        from safetensors.numpy import save as save_arrays
        from safetensors.torch import save as save_tensors

        config: dict[str, object] = {"model_type": "whisper", **openai_sizes(source.config)}
        if quantization in _BITS:
            _refuse_missing_mlx(quantization)
            arrays = {name: tensor.numpy() for name, tensor in _mlx_tensors(source, _REST).items()}
            config["quantization"] = {"group_size": _GROUP_SIZE, "bits": _BITS[quantization]}
            content = save_arrays(_quantize_arrays(arrays, source.name, quantization))
        else:
            content = save_tensors(_mlx_tensors(source, quantization))
        runs.write_json(folder / "config.json", config)
        # safetensors names no cause where it writes the file itself and the disk is full.
        (folder / "weights.safetensors").write_bytes(content)
        return "."

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Say which argument float32 and bfloat16 need, which mlx-whisper refuses by default; see `Writer.notes`."""
        if quantization not in ("float32", "bfloat16"):
            return []
        return [f"mlx-whisper takes {quantization} with fp16=False, and with --fp16 False on its command line."]


def _refuse_missing_mlx(quantization: str) -> None:
    if importlib.util.find_spec("mlx") is None:
        raise UserError(
            f"--quantization {quantization}: mlx, which quantises, is not installed; {EXPORT_FORMATS['mlx'].remedy}."
        )


def _mlx_tensors(source: ModelToExport, dtype: str) -> dict[str, torch.Tensor]:
    """Load the weights under mlx-whisper's names, with the alignment heads, which are one of its tensors.

    Args:
        source: The model.
        dtype: Type of the weights.
    """
    import torch

    tensors = openai_tensors(source, dtype)
    _refuse_other_sinusoids(source, tensors.pop(_SINUSOIDS))
    renamed = {}
    for name, tensor in tensors.items():
        new_name = name.replace(".mlp.0.", ".mlp1.").replace(".mlp.2.", ".mlp2.")
        if tensor.dim() == 3:
            # A convolution: torch has (out, in, width), mlx has (out, width, in).
            tensor = tensor.transpose(1, 2).contiguous()
        renamed[new_name] = tensor
    if source.alignment_heads:
        renamed["alignment_heads"] = torch.tensor(source.alignment_heads, dtype=torch.int32)
    return renamed


def _refuse_other_sinusoids(source: ModelToExport, positions: torch.Tensor) -> None:
    """Refuse a model whose encoder positions were changed, because mlx-whisper computes them.

    Args:
        source: The model.
        positions: (n_positions, d_model).
    """
    from transformers.models.whisper.modeling_whisper import sinusoids

    expected = sinusoids(*positions.shape)
    if (positions.float() - expected).abs().max() > _SINUSOID_TOLERANCE:
        raise UserError(
            f"{source.name}: the positions of its encoder are no sinusoids, and mlx-whisper always takes those; take "
            "--format ctranslate2, openai or onnx."
        )


def _quantize_arrays(arrays: dict[str, np.ndarray], name: str, quantization: str) -> dict[str, np.ndarray]:
    """Quantise the token embedding and all linear layers, as `mlx.nn.quantize` does.

    Args:
        arrays: The weights, by mlx-whisper's names.
        name: MODEL, as the user named it, for the message.
        quantization: "q8" or "q4".

    Returns:
        The weights. A quantised matrix has three arrays: "weight" (n_out, n_in * bits / 32) with packed numbers in
        uint32, "scales" and "biases" (n_out, n_in / 64).

    Raises:
        UserError: A matrix cannot be cut into groups.
    """
    import mlx.core as mx
    import numpy as np

    quantized: dict[str, np.ndarray] = {}
    for tensor_name, array in arrays.items():
        if not tensor_name.endswith(".weight") or array.ndim != 2:
            quantized[tensor_name] = array
            continue
        if array.shape[1] % _GROUP_SIZE:
            raise UserError(
                f"{name}: --quantization {quantization} takes groups of {_GROUP_SIZE} weights, and {tensor_name} has "
                f"{array.shape[1]} in a row; take --quantization float16."
            )
        module = tensor_name.removesuffix(".weight")
        parts = mx.quantize(mx.array(array), group_size=_GROUP_SIZE, bits=_BITS[quantization])
        for part, content in zip(("weight", "scales", "biases"), parts, strict=True):
            quantized[f"{module}.{part}"] = np.array(content)
    return quantized
