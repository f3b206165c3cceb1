"""The proof of an export: clips and joined recordings through the runtime's default decoding and transformers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whisper_peft.data.audio import load_audio
from whisper_peft.data.dataset import Example, SpeechDataset
from whisper_peft.data.stitching import join
from whisper_peft.data.text import join_segments
from whisper_peft.delivery.exporting.report import SoundComparison, compare
from whisper_peft.evaluation.generation import encode
from whisper_peft.evaluation.longform import transcribe_wave
from whisper_peft.model.build import whisper_of
from whisper_peft.runtimes.runtime import Request, Runtime

if TYPE_CHECKING:
    from whisper_peft.data.features import Preparation

# Clips that are compared, where the source has so many.
PROOF_CLIPS = 16
# Length of the joined recordings in seconds: most of a window, as real recordings fill it.
RECORDING_S = 25.0
# The seed of the gaps in the joined recordings, so that every export hears the same ones.
_SEED = 0


@dataclass(frozen=True)
class ProofClip:
    """A sound with its transcript.

    Attributes:
        wave: float32 (n_samples,), mono, at 16 kHz.
        text: What is spoken.
        language: Whisper's code; None for an English-only model.
        speaker: Who speaks; None if nobody knows.
    """

    wave: np.ndarray
    text: str
    language: str | None
    speaker: str | None


def load_proof_clips(dataset: SpeechDataset, most: int) -> list[ProofClip]:
    """Read clips with text, spread over a whole data set.

    Args:
        dataset: The clips, with cleaned texts and languages.
        most: Largest number of clips.

    Returns:
        The clips, in the order of the data set. Rows that cannot be used are passed over.
    """
    preparation = dataset.preparation
    clips: list[ProofClip] = []
    for number in _spread(len(dataset), most):
        row = dataset.rows[number]
        text = dataset.text(number)
        if not text.strip() or not isinstance(dataset[number], Example):
            continue
        wave = load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s, sample_rate_hz=preparation.sample_rate_hz)
        clips.append(ProofClip(wave, text, dataset.language_of(number), row.speaker))
        if len(clips) == most:
            break
    return clips


def _spread(n_rows: int, most: int) -> list[int]:
    """Return all row numbers; first those that are spread evenly over the rows, and then the others.

    >>> _spread(10, 3)
    [0, 3, 6, 1, 2, 4, 5, 7, 8, 9]
    """
    step = max(1, n_rows // most)
    first = list(range(0, n_rows, step))[:most]
    chosen = set(first)
    return first + [number for number in range(n_rows) if number not in chosen]


def join_recordings(clips: Sequence[ProofClip], preparation: Preparation) -> list[ProofClip]:
    """Join clips of one speaker and one language to recordings of about 25 s, with pauses of their own noise.

    A speaker with less sound gives one shorter recording, if it has at least two clips.
    """
    by_voice: dict[tuple, list[ProofClip]] = defaultdict(list)
    for clip in clips:
        by_voice[(clip.speaker, clip.language)].append(clip)
    rate_hz = preparation.sample_rate_hz
    most_samples = int(min(RECORDING_S, preparation.window_s) * rate_hz)
    rng = np.random.default_rng(_SEED)
    recordings = []
    for (speaker, language), waiting in by_voice.items():
        while len(waiting) > 1:
            wave, starts_s = join([clip.wave for clip in waiting], most_samples, rate_hz, rng)
            part = waiting[: len(starts_s)]
            waiting = waiting[len(starts_s) :]
            if len(part) > 1:
                text = join_segments(clip.text for clip in part)
                recordings.append(ProofClip(wave, text, language, speaker))
    return recordings


def prove(
    model,
    preparation: Preparation,
    runtime: Runtime,
    clips: Sequence[ProofClip],
    *,
    task: str,
    progress: Callable[[int, int], object] = lambda outputs, total: None,
) -> tuple[SoundComparison, ...]:
    """Let transformers and a runtime hear clips, and recordings joined from them, and compare what they write.

    Args:
        model: The same model in transformers, in float32.
        preparation: Its preparation.
        runtime: The export in its runtime.
        clips: The clips.
        task: "transcribe" or "translate".
        progress: Called with the number of outputs since its last call, and the number of all.
    """
    sounds = {"clips": list(clips), "recordings": join_recordings(clips, preparation)}
    total = 2 * sum(len(heard) for heard in sounds.values())
    comparisons = []
    for sound, heard in sounds.items():
        if not heard:
            continue

        def by_transformers(clip: ProofClip) -> str:
            return transcribe_wave(model, preparation, clip.wave, language=clip.language, task=task)["text"]

        def by_runtime(clip: ProofClip) -> str:
            return runtime.transcribe(clip.wave, Request(clip.language, task)).text

        transformers_texts, transformers_s = _timed(by_transformers, heard, lambda: progress(1, total))
        runtime_texts, runtime_s = _timed(by_runtime, heard, lambda: progress(1, total))
        comparison = compare(
            sound,
            [clip.text for clip in heard],
            transformers_texts,
            runtime_texts,
            sound_seconds=sum(len(clip.wave) for clip in heard) / preparation.sample_rate_hz,
            transformers_seconds=transformers_s,
            runtime_seconds=runtime_s,
        )
        comparisons.append(comparison)
    return tuple(comparisons)


def _timed(
    decode: Callable[[ProofClip], str], clips: Sequence[ProofClip], done: Callable[[], object]
) -> tuple[list[str], float]:
    """Decode clips one by one. Return their texts, and the time that it took in seconds."""
    texts = []
    began = time.monotonic()
    for clip in clips:
        texts.append(decode(clip))
        done()
    return texts, time.monotonic() - began


def measure_encoder_gap(model, preparation: Preparation, runtime: Runtime, wave: np.ndarray) -> float | None:
    """Compare the encoder outputs of a whole window in a runtime and in transformers.

    Args:
        model: The same model in transformers, in float32.
        preparation: Its preparation.
        runtime: The export in its runtime.
        wave: Any sound: float32 (n_samples,), mono, at 16 kHz. Silence fills the window behind it.

    Returns:
        The largest difference, divided by the largest absolute output; None if the runtime does not give its outputs.
    """
    import torch

    window = np.zeros(preparation.window_samples, dtype=np.float32)
    kept = wave[: len(window)]
    window[: len(kept)] = kept
    output = runtime.encode(window)
    if output is None:
        return None
    features = torch.from_numpy(preparation.encode_stretch(window, preparation.window_frames))[None]
    with torch.no_grad():
        expected = encode(whisper_of(model), features).last_hidden_state[0].float().cpu().numpy()
    return float(np.abs(output - expected).max() / np.abs(expected).max())
