"""ONNX models in onnxruntime, through optimum and transformers."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from whisper_peft.data.languages import LANGUAGES
from whisper_peft.errors import UserError
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.runtime import Request, RuntimeOutput, RuntimeSegment, RuntimeWord, n_threads

if TYPE_CHECKING:
    import numpy as np
    import torch

# The folder of the ONNX files within an export, and their names, as transformers.js wants them.
ONNX_FOLDER = "onnx"
ENCODER = "encoder_model"
DECODER = "decoder_model_merged"
# Behind the name of a file with quantised weights.
QUANTIZED_SUFFIX = "_quantized"


def cross_attention_name(layer: int) -> str:
    """Return the name of the decoder's output with the cross-attention of a layer."""
    return f"cross_attentions.{layer}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence optimum, transformers and torch, which warn of file names, of branches and of their own defaults."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class OnnxWhisper:
    """A model in onnxruntime, with the defaults of transformers' `generate`: greedy, without temperature fallback.

    A recording that fits into the window is decoded without times, as one segment. A longer one is decoded with times,
    window by window. transformers' pipeline differs in one default: it takes five beams.

    Args:
        export: The exported model.

    Raises:
        UserError: onnxruntime does not load it.
    """

    def __init__(self, export: Export):
        import onnxruntime
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        self.export = export
        self.preparation = export.preparation()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads()
        try:
            with quiet():
                self.whisper = ORTModelForSpeechSeq2Seq.from_pretrained(
                    export.path,
                    use_merged=True,
                    session_options=options,
                    local_files_only=True,
                )
        except Exception as error:
            # onnxruntime has many exceptions of its own, which share no class.
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{export.folder}: onnxruntime does not load it ({reason}); export it again.") from None
        _return_cross_attentions(self.whisper)

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        """Transcribe a recording; see `Runtime.transcribe`.

        Raises:
            UserError: Word times are asked of a model that names no alignment heads, or the prompt has special tokens.
        """
        if request.word_times and not self.export.alignment_heads:
            raise UserError(
                f"{self.export.folder}: --word-times: its generation_config.json names no alignment_heads; leave "
                "--word-times away."
            )
        features = self._features(wave)
        language = request.language
        if language is None and self.preparation.multilingual:
            language = self._detect_language(features["input_features"])
        options = self._options(request, language)
        with quiet():
            if request.times or request.word_times or len(wave) > self.preparation.window_samples:
                output = self.whisper.generate(
                    **features,
                    **options,
                    return_timestamps=True,
                    return_segments=True,
                    return_token_timestamps=request.word_times,
                )
                segments = [self._segment_of(segment, language) for segment in output["segments"][0]]
            else:
                ids = self.whisper.generate(**features, **options, return_timestamps=False)
                text = self.preparation.words.decode(ids[0].tolist())
                segments = [RuntimeSegment(text, 0.0, len(wave) / self.preparation.sample_rate_hz)]
        return RuntimeOutput(tuple(segments), language)

    def encode(self, wave: np.ndarray) -> np.ndarray | None:
        """Return the encoder's output; see `Runtime.encode`."""
        features = self._features(wave[: self.preparation.window_samples])
        output = self.whisper.encoder(features["input_features"], attention_mask=None)
        return output.last_hidden_state[0].numpy()

    def _features(self, wave: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the log-mel with its mask: one window with silence behind the sound, or all of a longer recording."""
        is_long = len(wave) > self.preparation.window_samples
        features = self.preparation.processor.feature_extractor(
            wave,
            sampling_rate=self.preparation.sample_rate_hz,
            truncation=False,
            padding="longest" if is_long else "max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return dict(features)

    def _detect_language(self, log_mel: torch.Tensor) -> str:
        """Return Whisper's code of the language of the first window."""
        n_frames = self.preparation.window_frames
        with quiet():
            (token,) = self.whisper.detect_language(log_mel[..., :n_frames], num_segment_frames=n_frames)
        return self.preparation.tokenizer.convert_ids_to_tokens(int(token))[2:-2]

    def _options(self, request: Request, language: str | None) -> dict[str, Any]:
        """Return the options of `generate` that the user asks for."""
        options: dict[str, Any] = {}
        if self.preparation.multilingual:
            options |= {"language": language, "task": request.task}
        if request.beams is not None:
            options["num_beams"] = request.beams
        if request.prompt:
            options["prompt_ids"] = self._prompt_ids(request.prompt)
        return options

    def _prompt_ids(self, prompt: str) -> torch.Tensor:
        """Return the tokens of a prompt: `<|startofprev|>`, and the end of the text if all of it has no room."""
        try:
            ids = self.preparation.tokenizer.get_prompt_ids(prompt, return_tensors="pt")
        except ValueError as error:
            raise UserError(f"--prompt: {error}") from None
        most = self.preparation.max_prompt_tokens
        if len(ids) <= 1 + most:
            return ids
        return ids[[0, *range(len(ids) - most, len(ids))]]

    def _segment_of(self, segment: dict[str, Any], language: str | None) -> RuntimeSegment:
        """Turn a segment of transformers into one of ours."""
        ids = segment["tokens"].tolist()
        words: list[RuntimeWord] = []
        if "token_timestamps" in segment:
            times_s = segment["token_timestamps"].tolist()
            words = list(self._words_of(ids, [*times_s, float(segment["end"])], language))
        return RuntimeSegment(
            self.preparation.words.decode(ids), float(segment["start"]), float(segment["end"]), tuple(words)
        )

    def _words_of(self, ids: Sequence[int], times_s: Sequence[float], language: str | None) -> Iterator[RuntimeWord]:
        """Put tokens together to words, as transformers does it.

        Args:
            ids: The tokens of a segment, with the times at its ends.
            times_s: The start of each token and the end of the last one, in seconds.
            language: Whisper's code of the language; None for an English-only model.
        """
        from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

        places = [place for place, token in enumerate(ids) if token < self.preparation.eot]
        texts, _, tokens_of_words = _combine_tokens_into_words(
            self.preparation.tokenizer, [ids[place] for place in places], LANGUAGES.get(language or "en")
        )
        for text, tokens in zip(texts, tokens_of_words, strict=True):
            first = places[tokens[0]]
            last = places[tokens[-1]]
            yield RuntimeWord(text, times_s[first], times_s[last + 1])


def _return_cross_attentions(whisper) -> None:
    """Let a model of optimum return the cross-attentions of its decoder, from which transformers finds word times.

    optimum computes all outputs of the decoder and drops those that it does not know.
    """
    kept: dict[str, torch.Tensor] = {}
    prepare_outputs = whisper.decoder._prepare_onnx_outputs
    forward = whisper.forward

    def keep_outputs(*arguments: Any) -> dict[str, torch.Tensor]:
        outputs = prepare_outputs(*arguments)
        kept.update(outputs)
        return outputs

    # transformers looks into the signature for the arguments that it may pass.
    @functools.wraps(forward)
    def forward_with_attentions(*arguments: Any, **options: Any):
        output = forward(*arguments, **options)
        output.decoder_attentions = ()
        n_layers = whisper.config.decoder_layers
        output.cross_attentions = tuple(kept[cross_attention_name(layer)] for layer in range(n_layers))
        return output

    # transformers sets a field of this config where it wants the attentions, and optimum's stand-in has no config.
    whisper.model.config = whisper.config
    whisper.decoder._prepare_onnx_outputs = keep_outputs
    whisper.forward = forward_with_attentions
