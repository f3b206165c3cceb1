"""The headers of safetensors files: names and shapes of the tensors, without the tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from whisper_peft.files import UnusableFileError, open_file, parse_json

MAX_HEADER_BYTES = 64 * 1024**2  # of a safetensors file; one of large-v3 has 200 kB


def weight_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all tensors from the headers of safetensors files.

    Returns:
        Name of the tensor to its shape. It is empty where a file is missing or damaged: loading the weights says so.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with open_file(file) as handle:
                n_bytes = int.from_bytes(handle.read(8), "little")
                if n_bytes > MAX_HEADER_BYTES:
                    return {}
                header = parse_json(handle.read(n_bytes).decode("utf-8"))
        except (UnusableFileError, ValueError, OSError):
            return {}
        if not isinstance(header, dict):
            return {}
        for name, entry in header.items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
                shapes[name] = tuple(shape)
    return shapes
