"""Any sound file to float32 mono 16 kHz, and its duration from the header; a file that was cut is refused.

soundfile decodes what it can, PyAV the rest (decoding.py). Pieces of long files are decoded from near their start
(seeking.py). What the decoders give is mixed to one channel with full scale 1 (mixing.py) and held against what the
file states (containers.py).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from whisper_peft.data.decoding import AudioError, Clip, decode, read_container_s, read_header_s
from whisper_peft.data.seeking import decode_piece, known_structure
from whisper_peft.data.truncation import Structure, falls_short, read_structure
from whisper_peft.files import UnusableFileError, foreign_content, open_file, reason_of


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded clip, and what had to be done for it."""

    wave: np.ndarray  # float32 (n_samples,), mono, never empty, all finite
    full_scale: float = 1.0  # what the file's float samples were divided by; 32768 where they stood for 16 bits
    cancelled_s: float = 0.0  # seconds in which the channels cancel each other, so that one was turned over


# Samples a second of all sound in this package, unless a caller asks for another rate. Every Whisper takes this one.
SAMPLE_RATE_HZ = 16_000


def load_audio(
    audio: str | Path | bytes, *, start_s: float = 0.0, end_s: float | None = None, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> np.ndarray:
    """Decode a clip, or a piece of it, to mono at the given rate.

    Float samples on the scale of integers are brought to ±1. Where channels cancel each other, they are turned over
    before the mean is taken; `read_sound` tells whether that was so.

    Args:
        audio: path of the file, or its contents.
        start_s: start of the piece, in seconds.
        end_s: end of the piece, in seconds; None for the end of the file.
        sample_rate_hz: rate of the result, in Hz.

    Returns:
        float32 (n_samples,), mean of the channels, never empty, all finite.

    Raises:
        AudioError: The file is missing, unreadable, empty, truncated or shorter than the piece asked for.
    """
    return read_sound(audio, start_s=start_s, end_s=end_s, sample_rate_hz=sample_rate_hz).wave


def read_sound(
    audio: str | Path | bytes,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    longest_s: float | None = None,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Sound:
    """Decode a clip as `load_audio` does, and tell what had to be done for it.

    Args:
        audio: Path of the file, or its contents.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        longest_s: What the caller can use, in seconds. Decoding stops a second behind it.
        sample_rate_hz: Rate of the result, in Hz.

    Raises:
        AudioError: The file is missing, unreadable, empty, truncated, shorter than the piece asked for, or more than a
            second longer than `longest_s`.
    """
    if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or end_s > start_s)):
        raise AudioError(f"no such piece of a recording: start_s {start_s}, end_s {end_s}")
    stop_s = end_s
    if longest_s is not None and (end_s is None or end_s - start_s > longest_s + 1):
        stop_s = start_s + longest_s + 1
    is_piece = start_s > 0 or end_s is not None
    with _opened(audio) as file:
        structure = known_structure(file) if is_piece else read_structure(file)
        if structure.refusal:
            raise AudioError(structure.refusal)
        clip = decode_piece(file, structure, start_s, stop_s) if is_piece else decode(file, structure, start_s, stop_s)
    if stop_s != end_s and clip.wave_s > longest_s + 0.9:
        raise AudioError(f"{_length(clip, structure, start_s, end_s)} of audio; the model takes {longest_s:g} s")
    _refuse_short(clip, structure, start_s, end_s)
    if not len(clip.wave):
        raise AudioError("no samples in it")
    if not np.isfinite(clip.wave).all():
        raise AudioError("samples that are no numbers (NaN or infinite)")
    if clip.full_scale is None:
        raise AudioError(f"single samples are far over full scale (up to {clip.peak:.3g}): damaged")
    wave = clip.wave if clip.full_scale == 1 else clip.wave / np.float32(clip.full_scale)
    if clip.rate_hz != sample_rate_hz:
        import soxr

        wave = soxr.resample(wave, clip.rate_hz, sample_rate_hz)
    if not len(wave):
        raise AudioError("no samples in it")
    return Sound(wave, clip.full_scale, clip.cancelled_s)


def duration_s(audio: str | Path | bytes) -> float:
    """Read how long a recording is, from its header; what states no length (webm of a browser) is read through.

    Returns:
        Seconds. A truncated file may have fewer than it states.

    Raises:
        AudioError: The file is missing, unreadable or empty.
    """
    with _opened(audio) as file:
        structure = read_structure(file)
        if structure.refusal:
            raise AudioError(structure.refusal)
        if structure.stated_s is not None:
            return structure.stated_s
        stated_s = read_header_s(file)
        if stated_s is not None:
            return stated_s / structure.present_share
        seconds = read_container_s(file)
        if seconds:
            return seconds
        clip = decode(file, structure, 0.0, None)
        if not len(clip.wave):
            raise AudioError(clip.failure or "no samples in it")
        return len(clip.wave) / clip.rate_hz


def _length(clip: Clip, structure: Structure, start_s: float, end_s: float | None) -> str:
    """Say how long a piece is that was not read to its end."""
    stated_s = structure.stated_s or clip.stated_s
    if end_s is None and stated_s is None:
        return f"more than {clip.wave_s:.0f} s"
    seconds = (stated_s if end_s is None else end_s) - start_s
    return f"{max(seconds, clip.wave_s):.1f} s"


def _refuse_short(clip: Clip, structure: Structure, start_s: float, end_s: float | None) -> None:
    """Raise AudioError for a clip that is not all there: unreadable, truncated, or shorter than the row says."""
    stated_s = structure.stated_s
    if stated_s is None and clip.stated_s is not None:
        stated_s = clip.stated_s / structure.present_share
    if not clip.read_s and clip.failure:
        raise AudioError(f"{clip.failure}; the file breaks off: truncated" if structure.cut_off else clip.failure)
    recording_s = clip.read_s if stated_s is None else stated_s
    if start_s and start_s >= recording_s and not clip.failure:
        raise AudioError(f"starts at {start_s:g} s, but the recording has only {recording_s:.2f} s")
    if stated_s is not None and falls_short(clip.wave_s, min(end_s or stated_s, stated_s) - start_s):
        raise AudioError(f"decoded {clip.read_s:.2f} s of {stated_s:.2f} s: truncated")
    if (structure.cut_off or clip.cut_off) and (end_s is None or falls_short(clip.wave_s, end_s - start_s)):
        raise AudioError(f"decoded {clip.read_s:.2f} s, then the file breaks off: truncated")
    if clip.failure and stated_s is None:  # else all that is stated is there, and only something behind it failed
        raise AudioError(f"breaks off after {clip.read_s:.2f} s: {clip.failure}; truncated or damaged")
    if end_s is not None and falls_short(clip.wave_s, end_s - start_s):
        raise AudioError(f"ends at {end_s:g} s, but the recording has only {recording_s:.2f} s")


@contextmanager
def _opened(audio: str | Path | bytes) -> Iterator[BinaryIO]:
    """Open a sound file, or its contents.

    Raises:
        AudioError: It is no regular file, is empty, may not be read, or is what a failed download left in its place.
    """
    try:
        opened: BinaryIO = io.BytesIO(audio) if isinstance(audio, bytes) else open_file(audio)
        with opened as file:
            head = file.read(512)
            if not head:
                raise AudioError("the file is empty")
            foreign = foreign_content(head)
            if foreign:
                raise AudioError(foreign)
            yield file
    except UnusableFileError as error:
        raise AudioError(error.reason) from None
    except OSError as error:  # a disk or a network that fails while we read
        raise AudioError(reason_of(error)) from None
