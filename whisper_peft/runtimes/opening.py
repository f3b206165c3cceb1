"""Open an exported model in its runtime."""

from __future__ import annotations

from whisper_peft.errors import UserError
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.runtime import Runtime


def open_runtime(export: Export) -> Runtime:
    """Load an exported model in its runtime.

    Raises:
        UserError: The runtime is not installed, or does not load the model.
    """
    format = export.format
    if format.runtime_version() is None:
        raise UserError(f"{export.folder}: {format.runtime}, which runs this model, is not installed; {format.remedy}.")
    if format.name == "ctranslate2":
        from whisper_peft.runtimes.faster_whisper_runtime import FasterWhisper

        return FasterWhisper(export)
    if format.name == "openai":
        from whisper_peft.runtimes.openai_whisper_runtime import OpenAIWhisper

        return OpenAIWhisper(export)
    if format.name == "mlx":
        from whisper_peft.runtimes.mlx_whisper_runtime import MlxWhisper

        return MlxWhisper(export)
    if format.name == "ggml":
        from whisper_peft.runtimes.whisper_cpp_runtime import WhisperCpp

        return WhisperCpp(export)
    if format.name == "onnx":
        from whisper_peft.runtimes.onnx_runtime import OnnxWhisper

        return OnnxWhisper(export)
    raise AssertionError(f"no runtime for {format.name}")
