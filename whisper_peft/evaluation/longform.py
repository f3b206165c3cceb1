"""Transcribe recordings of any length, window by window, with transformers' own long-form decoding.

That decoding walks through a recording. A window begins where the times of the one before it say that speech was cut. A
window that looks like a loop or like guessing is decoded again at a higher temperature (Radford et al. 2022, section
3.8).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.evaluation.generation import encode, generate
from whisper_peft.evaluation.pieces import Decoding, assemble, tokens_left
from whisper_peft.evaluation.stretches import ActiveRecording, Key, decode_next_stretches
from whisper_peft.model.build import whisper_of

if TYPE_CHECKING:
    import numpy as np


def transcribe_wave(
    model,
    preparation: Preparation,
    wave: np.ndarray,
    *,
    language: str | None,
    task: str = "transcribe",
    beams: int = 1,
    progress: Callable[[float], object] = lambda share: None,
) -> dict:
    """Transcribe one recording of any length. The same recording always gives the same text.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".
        beams: Number of beams; 1 is greedy.
        progress: Called at each window of a long recording with the share that is done.

    Returns:
        ``text`` and ``reached_limit``. A recording that is longer than the model's window also has ``segments``, each
        ``{"start": seconds, "end": seconds, "text": …}``.
    """
    decoding = Decoding(language, task, beams)
    if len(wave) <= preparation.window_samples:
        return transcribe_short_wave(model, preparation, wave, decoding)
    waves = [(None, wave)]
    numbered = transcribe_waves(model, preparation, waves, decoding, progress=lambda key, share: progress(share))
    _, transcript = next(numbered)
    return transcript


def transcribe_short_wave(model, preparation: Preparation, wave: np.ndarray, decoding: Decoding) -> dict:
    """Transcribe one recording that fits into the model's window, without times.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.
        decoding: How the recording is decoded.

    Returns:
        ``text`` and ``reached_limit``.
    """
    import torch

    whisper = whisper_of(model)
    features = torch.from_numpy(preparation.encode_stretch(wave, preparation.window_frames))[None]
    limit = tokens_left(preparation, decoding)
    with torch.no_grad():
        (ids,) = generate(
            whisper,
            preparation,
            encode(whisper, features),
            language=decoding.language,
            task=decoding.task,
            max_new_tokens=limit,
            beams=decoding.beams,
            prompt_ids=decoding.prompt_ids,
        )
    return {"text": preparation.decode(ids), "reached_limit": len(ids) >= limit}


def transcribe_waves(
    model,
    preparation: Preparation,
    waves: Iterable[tuple[Key, np.ndarray]],
    decoding: Decoding,
    *,
    at_once: int = 1,
    progress: Callable[[Key, float], object] = lambda key, share: None,
) -> Iterator[tuple[Key, dict]]:
    """Transcribe recordings with times, several side by side.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        waves: Pairs of a key and a recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`. The next
            pair is read when there is room for it.
        decoding: How the recordings are decoded.
        at_once: Number of recordings that are decoded together.
        progress: Called with the key of a recording and the share of it that is done.

    Yields:
        The key of a recording that is done, and its ``text``, ``reached_limit`` and ``segments``.
    """
    whisper = whisper_of(model)
    waiting = iter(waves)
    active: list[ActiveRecording[Key]] = []
    while True:
        for key, wave in itertools.islice(waiting, at_once - len(active)):
            n_frames = math.ceil(len(wave) / preparation.hop_samples)
            active.append(ActiveRecording(key, wave, n_frames))
        if not active:
            return
        decode_next_stretches(whisper, preparation, active, decoding, progress)
        finished = [recording for recording in active if recording.done]
        for recording in finished:
            active.remove(recording)
            length_s = len(recording.wave) / preparation.sample_rate_hz
            yield recording.key, assemble(preparation, recording.pieces, length_s)
