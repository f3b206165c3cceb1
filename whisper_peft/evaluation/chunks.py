"""A long recording in chunks of one window that overlap: quicker, and without a way to go back.

transformers' pipeline does the same (`chunk_length_s=30`): all chunks are independent, so many are decoded at once, and
what two chunks say of their common part is matched and joined. Nothing is made again at a higher temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from whisper_peft.data.features import Preparation
from whisper_peft.evaluation.generation import encode, errors_only, generate
from whisper_peft.evaluation.pieces import Decoding, finish_transcript, tokens_left
from whisper_peft.model.build import whisper_of

STRIDES_IN_WINDOW = 6  # a stride at either end of a chunk, where its words are trusted least: 5 s of 30 s


def transcribe_in_chunks(
    model,
    preparation: Preparation,
    wave: np.ndarray,
    decoding: Decoding,
    *,
    at_once: int = 1,
    progress: Callable[[float], object] = lambda share: None,
) -> dict:
    """Transcribe one recording of any length in chunks.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: Of its checkpoint.
        wave: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        decoding: How it is decoded.
        at_once: Number of chunks that are decoded together.
        progress: Told the share of the recording that is done.

    Returns:
        ``text``, ``reached_limit`` and ``segments``.
    """
    from transformers.models.whisper.tokenization_whisper import _decode_asr

    outputs = []
    reached_limit = False
    limit = tokens_left(preparation, decoding)
    chunks = list(_chunks(preparation, len(wave)))
    for first in range(0, len(chunks), at_once):
        batch = chunks[first : first + at_once]
        waves = [wave[start : start + length] for start, length, _, _ in batch]
        for chunk, ids in zip(batch, _decode(model, preparation, waves, decoding, limit), strict=True):
            stride_s = tuple(n_samples / preparation.sample_rate_hz for n_samples in chunk[1:])
            outputs.append({"tokens": np.array([ids]), "stride": stride_s})
            reached_limit |= len(ids) >= limit
        progress((batch[-1][0] + batch[-1][1]) / len(wave))
    with errors_only():
        _, joined = _decode_asr(
            _PlainTokenizer(preparation),
            outputs,
            return_timestamps=True,
            return_language=False,
            time_precision=preparation.window_s / (preparation.window_frames // 2),
        )
    length_s = len(wave) / preparation.sample_rate_hz
    segments = _timed(joined["chunks"], length_s)
    return finish_transcript(segments, length_s, reached_limit=reached_limit)


class _PlainTokenizer:
    """The tokenizer as transformers' matching of chunks uses it, but for its `decode`.

    transformers' own takes away all that looks like a timestamp, and so words that a speaker wrote.
    """

    def __init__(self, preparation: Preparation):
        self.all_special_ids = preparation.tokenizer.all_special_ids
        self.convert_tokens_to_ids = preparation.tokenizer.convert_tokens_to_ids
        self.decode = preparation.words.decode
        self._strip_prompt = preparation.tokenizer._strip_prompt


def _chunks(preparation: Preparation, n_samples: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield chunks: first sample, length, and how much of it lies in the stride before it and behind it."""
    window = preparation.window_samples
    stride = window // STRIDES_IN_WINDOW
    for start in range(0, n_samples, window - 2 * stride):
        is_last = start + window >= n_samples
        left = stride if start else 0
        length = min(window, n_samples - start)
        if length > left:
            yield start, length, left, 0 if is_last else stride
        if is_last:
            return


def _decode(
    model, preparation: Preparation, waves: list[np.ndarray], decoding: Decoding, limit: int
) -> list[list[int]]:
    import torch

    whisper = whisper_of(model)
    features = np.stack([preparation.encode_stretch(wave, preparation.window_frames) for wave in waves])
    with torch.no_grad():
        return generate(
            whisper,
            preparation,
            encode(whisper, torch.from_numpy(features)),
            language=decoding.language,
            task=decoding.task,
            max_new_tokens=limit,
            beams=decoding.beams,
            prompt_ids=decoding.prompt_ids,
            timestamps=True,
        )


def _timed(chunks: list[dict], length_s: float) -> list[tuple[float, float, str]]:
    """Give start, end and text of what was matched; a time that the model left out is that of its neighbour."""
    timed = []
    previous_s = 0.0
    for number, chunk in enumerate(chunks):
        start_s, end_s = chunk["timestamp"]
        if start_s is None:
            start_s = previous_s
        if end_s is None:
            following = [later["timestamp"][0] for later in chunks[number + 1 :] if later["timestamp"][0] is not None]
            end_s = following[0] if following else length_s
        timed.append((float(start_s), float(end_s), chunk["text"]))
        previous_s = float(end_s)
    return timed
