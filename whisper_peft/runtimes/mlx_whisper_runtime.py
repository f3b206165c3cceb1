"""MLX models in mlx-whisper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from whisper_peft.errors import UserError
from whisper_peft.model.weights import read_header
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.openai_whisper_runtime import first_sentence, openai_segments
from whisper_peft.runtimes.runtime import Request, RuntimeOutput

if TYPE_CHECKING:
    import numpy as np


class MlxWhisper:
    """A model in mlx-whisper: times, temperature fallback and thresholds, as the defaults of `transcribe` are.

    The default computes in float16. mlx-whisper refuses float32 and bfloat16 weights there, so those compute in
    float32. On a CPU all models compute in float32, as in openai-whisper, because mlx has no fast float16 there.

    Args:
        export: The exported model.

    Raises:
        UserError: mlx-whisper does not load it.
    """

    def __init__(self, export: Export):
        import mlx.core as mx
        from mlx_whisper.load_models import load_model

        self.export = export
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        self.in_float16 = not on_cpu and export.quantization not in ("float32", "bfloat16")
        self.dtype = mx.float16 if self.in_float16 else mx.float32
        try:
            # Older versions of mlx do not notice that a file is cut off.
            read_header([export.path / "weights.safetensors"])
            self.whisper = load_model(str(export.path), dtype=self.dtype)
        except (UserError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            raise UserError(
                f"{export.folder}: mlx-whisper does not load it ({first_sentence(error)}); export it again."
            ) from None

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording; see `Runtime.transcribe`."""
        import mlx_whisper

        if request.beams is not None and request.beams > 1:
            raise UserError(f"{request.beams} beams: mlx-whisper has no beam search; leave the number of beams away.")
        options: dict[str, Any] = {"task": request.task, "word_timestamps": request.word_times}
        if request.prompt:
            options["initial_prompt"] = request.prompt
        if not self.in_float16:
            options["fp16"] = False
        with self._held() as path:
            output = mlx_whisper.transcribe(wave, path_or_hf_repo=path, language=request.language, **options)
        return RuntimeOutput(openai_segments(output["segments"]), output["language"])

    @contextlib.contextmanager
    def _held(self) -> Iterator[str]:
        """Hold the loaded model where mlx-whisper looks for it, and what was there before again after that.

        mlx-whisper holds one model, and knows it by its path only, even if the files have changed.
        """
        from mlx_whisper.transcribe import ModelHolder

        before = (ModelHolder.model, ModelHolder.model_path)
        path = str(self.export.path)
        ModelHolder.model = self.whisper
        ModelHolder.model_path = path
        try:
            yield path
        finally:
            ModelHolder.model, ModelHolder.model_path = before

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return the encoder's output; see `Runtime.encode`."""
        import mlx.core as mx
        import numpy as np
        from mlx_whisper.audio import log_mel_spectrogram, pad_or_trim

        features = log_mel_spectrogram(pad_or_trim(mx.array(wave)), self.whisper.dims.n_mels)
        output = self.whisper.embed_audio(features[None].astype(self.dtype))
        return np.array(output[0].astype(mx.float32))
