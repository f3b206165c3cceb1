"""Transcribe a long recording in chunks that overlap: this is quicker, and a chunk is never decoded again.

Each chunk is as long as the model's window. All chunks are independent, so many are decoded at once. The texts of two
neighbours are then matched in the part that both hear, and joined. transformers' pipeline does the same
(`chunk_length_s=30`). A chunk that looks like a loop or like guessing is not decoded again at a higher temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from whisper_peft.data.features import Preparation
from whisper_peft.evaluation.generation import encode, errors_only, generate
from whisper_peft.evaluation.pieces import Decoding, finish_transcript, tokens_left
from whisper_peft.model.build import whisper_of

# A chunk has a stride at either end, where its words are trusted least. It is this part of a window: 5 s of 30 s.
STRIDES_IN_WINDOW = 6


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
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        decoding: How the recording is decoded.
        at_once: Number of chunks that are decoded together.
        progress: Called with the share of the recording that is done.

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
    timed_texts = _fill_in_times(joined["chunks"], length_s)
    return finish_transcript(timed_texts, length_s, reached_limit=reached_limit)


class _PlainTokenizer:
    """The parts of a tokenizer that transformers needs to match chunks, with a `decode` of our own.

    The `decode` of transformers removes everything that looks like a timestamp, even where it is part of the text.
    """

    def __init__(self, preparation: Preparation):
        self.all_special_ids = preparation.tokenizer.all_special_ids
        self.convert_tokens_to_ids = preparation.tokenizer.convert_tokens_to_ids
        self.decode = preparation.words.decode
        self._strip_prompt = preparation.tokenizer._strip_prompt


def _chunks(preparation: Preparation, n_samples: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a recording into chunks.

    Args:
        preparation: The preparation of the checkpoint.
        n_samples: Length of the recording.

    Yields:
        First sample, number of samples, and the number of those in the stride at the start and at the end. The first
        chunk has no stride at its start, and the last one has none at its end.
    """
    window = preparation.window_samples
    stride = window // STRIDES_IN_WINDOW
    for start in range(0, n_samples, window - 2 * stride):
        is_last = start + window >= n_samples
        left = stride if start else 0
        length = min(window, n_samples - start)
        if length > left:
            right = 0 if is_last else stride
            yield start, length, left, right
        if is_last:
            return


def _decode(
    model, preparation: Preparation, waves: list[np.ndarray], decoding: Decoding, limit: int
) -> list[list[int]]:
    """Return the tokens of each chunk, with times."""
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


def _fill_in_times(chunks: list[dict], length_s: float) -> list[tuple[float, float, str]]:
    """Return start, end and text of each matched part. A time that the model left out is that of the neighbour.

    Args:
        chunks: Parts of the text as transformers joins them: `text`, and `timestamp` with start and end, or None.
        length_s: Length of the recording, in seconds.
    """
    timed_texts = []
    previous_s = 0.0
    for number, chunk in enumerate(chunks):
        start_s, end_s = chunk["timestamp"]
        if start_s is None:
            start_s = previous_s
        if end_s is None:
            later_starts_s = [later["timestamp"][0] for later in chunks[number + 1 :]]
            end_s = next((later_s for later_s in later_starts_s if later_s is not None), length_s)
        timed_texts.append((float(start_s), float(end_s), chunk["text"]))
        previous_s = float(end_s)
    return timed_texts
