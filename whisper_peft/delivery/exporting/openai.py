"""Write a model for openai-whisper, as its own checkpoints are: the sizes and the weights in one file of torch."""

from __future__ import annotations

from pathlib import Path

from whisper_peft.delivery.exporting.openai_names import openai_sizes, openai_tensors
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.runtimes.formats import EXPORT_FORMATS
from whisper_peft.runtimes.openai_whisper_runtime import alignment_dump

# The file that `whisper.load_model` is given.
MODEL_FILE = "model.pt"


class OpenAIWriter:
    """Writes the format of openai-whisper; see `Writer`. The runtime has tokens and window built in."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a model that openai-whisper would misread, or computes in another way; see `Writer.check`."""
        format = EXPORT_FORMATS["openai"]
        source.check_openai_layout(format.name, format.runtime)

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write the sizes as integers and the weights as tensors, and nothing else; see `Writer.write`."""
        import torch

        page = {"dims": openai_sizes(source.config), "model_state_dict": openai_tensors(source, quantization)}
        # torch names no cause where it opens the file itself and the disk is full.
        with (folder / MODEL_FILE).open("wb") as file:
            torch.save(page, file)
        return MODEL_FILE

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Say how to set the alignment heads, which the file cannot hold; see `Writer.notes`."""
        heads = source.alignment_heads
        if not heads:
            return []
        dump = alignment_dump(heads, source.config.decoder_layers, source.config.decoder_attention_heads)
        return [f"For good word times in openai-whisper call model.set_alignment_heads({dump!r}) after load_model."]
