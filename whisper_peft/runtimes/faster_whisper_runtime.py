"""CTranslate2 models in faster-whisper."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from whisper_peft.errors import UserError
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.runtime import Request, RuntimeOutput, RuntimeSegment, RuntimeWord, n_threads

if TYPE_CHECKING:
    import numpy as np


class FasterWhisper:
    """A model in faster-whisper: times, five beams, temperature fallback and thresholds, as its defaults are.

    Args:
        export: The exported model.

    Raises:
        UserError: faster-whisper does not load it.
    """

    def __init__(self, export: Export):
        from faster_whisper import WhisperModel

        if not (export.path / "tokenizer.json").is_file():
            # Without it, faster-whisper would look for the tokenizer of another model on the Hub.
            raise UserError(f"{export.path / 'tokenizer.json'}: gone; export the model again.")
        try:
            # CTranslate2 warns that a CPU computes float16 weights in float32, which nobody has to mend.
            with _errors_of_ctranslate2_only():
                self.whisper = WhisperModel(str(export.path), cpu_threads=n_threads(), local_files_only=True)
        # The library that reads the tokenizer raises Exception itself.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{export.folder}: faster-whisper does not load it ({reason}); export it again.") from None

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording; see `Runtime.transcribe`."""
        options: dict[str, Any] = {"task": request.task, "word_timestamps": request.word_times}
        if request.prompt:
            options["initial_prompt"] = request.prompt
        if request.beams is not None:
            options["beam_size"] = request.beams
        segments, facts = self.whisper.transcribe(wave, language=request.language, **options)
        return RuntimeOutput(tuple(_segment_of(segment) for segment in segments), facts.language)

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return the encoder's output; see `Runtime.encode`."""
        import ctranslate2
        import numpy as np
        from faster_whisper.audio import pad_or_trim

        features = self.whisper.feature_extractor(wave)
        window = pad_or_trim(features, self.whisper.feature_extractor.nb_max_frames)
        output = self.whisper.encode(window)
        in_float32 = output.to(ctranslate2.DataType.float32)
        return np.array(in_float32)[0]


@contextlib.contextmanager
def _errors_of_ctranslate2_only() -> Iterator[None]:
    import ctranslate2

    before = ctranslate2.get_log_level()
    ctranslate2.set_log_level(logging.ERROR)
    try:
        yield
    finally:
        ctranslate2.set_log_level(before)


def _segment_of(segment: Any) -> RuntimeSegment:
    words = tuple(RuntimeWord(word.word, word.start, word.end) for word in segment.words or ())
    return RuntimeSegment(segment.text, segment.start, segment.end, words)
