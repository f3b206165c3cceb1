"""Checkpoints of openai-whisper in openai-whisper."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whisper_peft.errors import UserError
from whisper_peft.files import printable
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.runtime import Request, RuntimeOutput, RuntimeSegment, RuntimeWord

if TYPE_CHECKING:
    import numpy as np


class OpenAIWhisper:
    """A model in openai-whisper: times, temperature fallback and thresholds, as the defaults of `transcribe` are.

    The function decodes with the likeliest token. The command line `whisper` takes five beams instead; `Request.beams`
    asks for them here. The function is what programs call, so it is what counts as the runtime's default.

    Args:
        export: The exported model.

    Raises:
        UserError: openai-whisper does not load it.
    """

    def __init__(self, export: Export):
        import pickle

        import whisper

        self.export = export
        try:
            # It loads with weights_only=True, so the file cannot run code.
            self.whisper = whisper.load_model(str(export.path))
        except (RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{export.path}: openai-whisper does not load it ({first_sentence(error)}); export it again."
            ) from None
        if export.alignment_heads:
            self.whisper.set_alignment_heads(self._alignment_dump(export.alignment_heads))

    def _alignment_dump(self, heads: Sequence[Sequence[int]]) -> bytes:
        sizes = self.whisper.dims
        try:
            return alignment_dump(heads, sizes.n_text_layer, sizes.n_text_head)
        except (IndexError, TypeError, ValueError):
            raise UserError(
                f"{self.export.folder}: export.json names alignment heads that the model lacks; export it again."
            ) from None

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording; see `Runtime.transcribe`."""
        options: dict[str, Any] = {"task": request.task, "word_timestamps": request.word_times}
        if request.prompt:
            options["initial_prompt"] = request.prompt
        if request.beams is not None:
            options["beam_size"] = request.beams
        if self.whisper.device.type == "cpu":
            # It would take float32 there itself, with a warning.
            options["fp16"] = False
        output = self.whisper.transcribe(wave, language=request.language, **options)
        return RuntimeOutput(openai_segments(output["segments"]), output["language"])

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return the encoder's output; see `Runtime.encode`."""
        import torch
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        features = log_mel_spectrogram(pad_or_trim(wave), self.whisper.dims.n_mels)
        with torch.no_grad():
            output = self.whisper.embed_audio(features[None].to(self.whisper.device))
        return output[0].float().cpu().numpy()


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error on one line; its kind if it says nothing."""
    text = " ".join(str(error).split())
    return printable(text.split(". ")[0].rstrip("."))[:160] or type(error).__name__


def alignment_dump(heads: Sequence[Sequence[int]], n_layers: int, n_heads: int) -> bytes:
    """Write alignment heads as openai-whisper's `set_alignment_heads` reads them: a mask, packed and in base85.

    Args:
        heads: The (layer, head) pairs.
        n_layers: Number of layers of the decoder.
        n_heads: Number of heads in each.

    Raises:
        IndexError: There is no such head.
    """
    import numpy as np

    mask = np.zeros((n_layers, n_heads), dtype=bool)
    for layer, head in heads:
        mask[layer, head] = True
    # Without a time in it, the same heads always give the same bytes.
    return base64.b85encode(gzip.compress(mask.tobytes(), mtime=0))


def openai_segments(segments: Sequence[dict[str, Any]]) -> tuple[RuntimeSegment, ...]:
    """Turn the segments of openai-whisper or mlx-whisper into ours."""
    return tuple(
        RuntimeSegment(segment["text"], float(segment["start"]), float(segment["end"]), _openai_words(segment))
        for segment in segments
    )


def _openai_words(segment: dict[str, Any]) -> tuple[RuntimeWord, ...]:
    return tuple(
        RuntimeWord(word["word"], float(word["start"]), float(word["end"])) for word in segment.get("words", ())
    )
