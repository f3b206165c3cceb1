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
# Recordings that are compared, where the source has enough clips.
PROOF_RECORDINGS = 6
# Length of a pause between two joined clips, in seconds, in the mean.
_MEAN_GAP_S = 0.6
# The seed of the gaps in the joined recordings, so that every export hears the same ones.
_SEED = 0


@dataclass(frozen=True)
class ProofClip:
    """A sound with its transcript.

    Attributes:
        wave: float32 (n_samples,), mono, at 16 kHz.
        text: What is spoken.
        language: Whisper's code; None for an English-only model.
    """

    wave: np.ndarray
    text: str
    language: str | None


def load_proof_clips(dataset: SpeechDataset, most: int) -> list[ProofClip]:
    """Read clips with text, spread over a whole data set.

    Args:
        dataset: The clips, with cleaned texts and languages.
        most: Largest number of clips.

    Returns:
        The clips, in the order of the data set. Rows that cannot be used are passed over.
    """
    clips: list[ProofClip] = []
    for number in _spread(len(dataset), most):
        clip = _read_proof_clip(dataset, number)
        if clip is not None:
            clips.append(clip)
        if len(clips) == most:
            break
    return clips


def _read_proof_clip(dataset: SpeechDataset, number: int) -> ProofClip | None:
    """Read the sound of a row; None if it has no text or cannot be used."""
    row = dataset.rows[number]
    text = dataset.text(number)
    if not text.strip() or not isinstance(dataset[number], Example):
        return None
    rate_hz = dataset.preparation.sample_rate_hz
    wave = load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s, sample_rate_hz=rate_hz)
    return ProofClip(wave, text, dataset.language_of(number))


def _spread(n_rows: int, most: int) -> list[int]:
    """Return all row numbers; first those that are spread evenly over the rows, and then the others.

    >>> _spread(10, 3)
    [0, 3, 6, 1, 2, 4, 5, 7, 8, 9]
    """
    step = max(1, n_rows // most)
    first = list(range(0, n_rows, step))[:most]
    chosen = set(first)
    return first + [number for number in range(n_rows) if number not in chosen]


def load_recordings(dataset: SpeechDataset, most: int) -> list[ProofClip]:
    """Join clips of a data set to recordings of about 25 s, with pauses of their own noise between them.

    The clips of a recording come from one speaker, as long as speakers have enough of them. After that, clips of
    several speakers are joined. All clips of a recording are in one language.

    Args:
        dataset: The clips, with cleaned texts and languages.
        most: Largest number of recordings.

    Returns:
        The recordings. A data set with little sound gives fewer, and the last one may be shorter.
    """
    preparation = dataset.preparation
    longest_s = min(RECORDING_S, preparation.window_s)
    rng = np.random.default_rng(_SEED)
    recordings = []
    for numbers in _plan_recordings(dataset, longest_s)[:most]:
        clips = [clip for clip in (_read_proof_clip(dataset, number) for number in numbers) if clip is not None]
        if len(clips) < 2:
            continue
        most_samples = int(longest_s * preparation.sample_rate_hz)
        wave, starts_s = join([clip.wave for clip in clips], most_samples, preparation.sample_rate_hz, rng)
        joined = clips[: len(starts_s)]
        text = join_segments(clip.text for clip in joined)
        recordings.append(ProofClip(wave, text, clips[0].language))
    return recordings


def _plan_recordings(dataset: SpeechDataset, longest_s: float) -> list[list[int]]:
    """Return the numbers of the rows of each recording: full ones of one speaker first, then mixed ones."""
    by_voice: dict[tuple[str | None, str | None], list[int]] = defaultdict(list)
    for number, row in enumerate(dataset.rows):
        if dataset.text(number).strip():
            by_voice[(row.speaker, dataset.language_of(number))].append(number)
    full: list[list[int]] = []
    left_over: dict[str | None, list[int]] = defaultdict(list)
    for (_, language), numbers in by_voice.items():
        groups, rest = _fill(dataset, numbers, longest_s)
        full += groups
        left_over[language] += rest
    mixed: list[list[int]] = []
    for numbers in left_over.values():
        groups, rest = _fill(dataset, numbers, longest_s)
        mixed += groups
        if len(rest) > 1:
            mixed.append(rest)
    return full + mixed


def _fill(dataset: SpeechDataset, numbers: Sequence[int], longest_s: float) -> tuple[list[list[int]], list[int]]:
    """Cut rows into groups that fill a recording. Return the groups, and the rows that fill none."""
    groups: list[list[int]] = []
    group: list[int] = []
    seconds = 0.0
    for number in numbers:
        length_s = dataset.duration_s(number) + _MEAN_GAP_S
        if group and seconds + length_s > longest_s:
            groups.append(group)
            group = []
            seconds = 0.0
        group.append(number)
        seconds += length_s
    return [group for group in groups if len(group) > 1], group


def prove(
    model,
    preparation: Preparation,
    runtime: Runtime,
    clips: Sequence[ProofClip],
    recordings: Sequence[ProofClip],
    *,
    task: str,
    progress: Callable[[int, int], object] = lambda outputs, total: None,
) -> tuple[SoundComparison, ...]:
    """Transcribe clips and recordings in transformers and in a runtime, and compare the texts.

    Args:
        model: The same model in transformers, in float32.
        preparation: Its preparation.
        runtime: The export in its runtime.
        clips: The clips.
        recordings: The recordings.
        task: "transcribe" or "translate".
        progress: Called with the number of outputs since its last call, and the number of all.
    """
    sounds = {"clips": clips, "recordings": recordings}
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
