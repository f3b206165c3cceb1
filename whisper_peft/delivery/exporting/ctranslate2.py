"""Write a model for CTranslate2, as faster-whisper loads it, with CTranslate2's own converter."""

from __future__ import annotations

from pathlib import Path

from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError


class CTranslate2Writer:
    """Writes CTranslate2; see `Writer`. Every vocabulary will do, because it lies beside the weights."""

    def check(self, source: ModelToExport) -> None:
        """Refuse a window and a number of tokens that faster-whisper does not have built in; see `Writer.check`."""
        source.check_limits("faster-whisper")

    def write(self, source: ModelToExport, folder: Path, quantization: str) -> str:
        """Write the model, and the tokenizer and the feature extractor beside it; see `Writer.write`."""
        from ctranslate2.converters import TransformersConverter

        converter = TransformersConverter(str(source.folder), copy_files=["tokenizer.json", "preprocessor_config.json"])
        try:
            # The converter makes the folder itself, so it is told to replace the empty one.
            converter.convert(str(folder), quantization=quantization, force=True)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"{source.name}: CTranslate2 does not convert it: {error}.") from None
        return "."

    def notes(self, source: ModelToExport, quantization: str) -> list[str]:
        """Return nothing: faster-whisper reads all that it needs from the folder."""
        return []
