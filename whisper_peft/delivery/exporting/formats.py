"""The writers: what each of them can do, and which one writes which format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from whisper_peft.delivery.exporting.source import ModelToExport


class Writer(Protocol):
    """Writes one format."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a model that the format cannot hold, or that its runtime would misread.

        Raises:
            UserError: It is such a model.
        """
        ...

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write a model into an empty folder.

        Args:
            source: The model.
            folder: An empty folder.
            quantization: The type of the weights.

        Returns:
            Name of the file that a runtime is given, or "." for the folder.

        Raises:
            UserError: The converter refuses the model.
        """
        ...

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Return what the user should know when running the export, one sentence each.

        Args:
            source: The model.
            quantization: The type of the weights.
        """
        ...


def writer_of(format: str) -> Writer:
    """Return the writer of a format."""
    if format == "ctranslate2":
        from whisper_peft.delivery.exporting.ctranslate2 import CTranslate2Writer

        return CTranslate2Writer()
    if format == "openai":
        from whisper_peft.delivery.exporting.openai import OpenAIWriter

        return OpenAIWriter()
    if format == "mlx":
        from whisper_peft.delivery.exporting.mlx import MlxWriter

        return MlxWriter()
    if format == "ggml":
        from whisper_peft.delivery.exporting.ggml import GgmlWriter

        return GgmlWriter()
    if format == "onnx":
        from whisper_peft.delivery.exporting.onnx import OnnxWriter

        return OnnxWriter()
    raise AssertionError(f"no writer of {format}")
