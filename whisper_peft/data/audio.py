"""Read any sound file as float32 mono 16 kHz, or its duration from the header; refuse a file that was cut.

libsndfile decodes what it can, FFmpeg's libraries the rest (decoding.py). Pieces of long files are decoded from near
their start (seeking.py). The decoded samples are mixed to one channel with full scale 1 (mixing.py) and compared with
what the file states about itself (truncation.py).
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

from whisper_peft.data.decoded_clip import AudioError, Clip
from whisper_peft.data.decoding import decode
from whisper_peft.data.ffmpeg_decoder import read_container_s
from whisper_peft.data.seeking import decode_piece, read_structure_once
from whisper_peft.data.soundfile_decoder import read_header_s
from whisper_peft.data.structure import Structure, falls_short
from whisper_peft.data.truncation import read_structure
from whisper_peft.files import UnusableFileError, foreign_content, open_file, reason_of


@dataclass(frozen=True, slots=True)
class DecodedSound:
    """A decoded clip, and what had to be done for it."""

    # float32 (n_samples,), mono, never empty, all finite.
    wave: np.ndarray
    # The file's float samples were divided by this number; 32768 where they stood for 16 bits.
    full_scale: float = 1.0
    # Seconds in which the channels cancelled each other, so that one of them was turned over.
    cancelled_s: float = 0.0


# The sampling rate of all sound in this package, unless a caller asks for another one. Every Whisper takes this rate.
SAMPLE_RATE_HZ = 16_000


def load_audio(
    audio: str | Path | bytes, *, start_s: float = 0.0, end_s: float | None = None, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> np.ndarray:
    """Decode a clip, or a piece of it, to mono at the given rate.

    Float samples on the scale of integers are brought to ±1. Where channels cancel each other, they are turned over
    before the mean is taken; `read_sound` tells whether that was so.

    Args:
        audio: Path of the file, or its contents.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        sample_rate_hz: Rate of the result, in Hz.

    Returns:
        The mean of the channels, float32 (n_samples,), never empty, all finite.

    Raises:
        AudioError: The file is missing, unreadable, empty, truncated or shorter than the piece asked for.
    """
    return read_sound(audio, start_s=start_s, end_s=end_s, sample_rate_hz=sample_rate_hz).wave


# Decoding stops at this number of seconds behind the longest clip that the caller can use.
_MORE_THAN_LONGEST_S = 1.0
# A clip is too long if it goes on for more than this. The number is a little smaller than the one above, because files
# round their lengths.
_TOO_LONG_BY_S = 0.9


def read_sound(
    audio: str | Path | bytes,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    longest_s: float | None = None,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> DecodedSound:
    """Decode a clip as `load_audio` does, and tell what had to be done for it.

    Args:
        audio: Path of the file, or its contents.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        longest_s: Length of the longest clip that the caller can use, in seconds. Decoding stops a second behind it.
        sample_rate_hz: Rate of the result, in Hz.

    Raises:
        AudioError: The file is missing, unreadable, empty, truncated, shorter than the piece asked for, or more than a
            second longer than `longest_s`.
    """
    if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or end_s > start_s)):
        raise AudioError(f"no such piece of a recording: start_s {start_s}, end_s {end_s}")
    stop_s = end_s
    if longest_s is not None and (end_s is None or end_s - start_s > longest_s + _MORE_THAN_LONGEST_S):
        stop_s = start_s + longest_s + _MORE_THAN_LONGEST_S
    is_piece = start_s > 0 or end_s is not None
    with _open_sound(audio) as file:
        structure = read_structure_once(file) if is_piece else read_structure(file)
        if structure.refusal:
            raise AudioError(structure.refusal)
        decode_clip = decode_piece if is_piece else decode
        clip = decode_clip(file, structure, start_s, stop_s)
    if longest_s is not None and stop_s != end_s and clip.wave_s > longest_s + _TOO_LONG_BY_S:
        length = _describe_length(clip, structure, start_s, end_s)
        raise AudioError(f"{length} of audio; the model takes {longest_s:g} s")
    _refuse_short(clip, structure, start_s, end_s)
    wave, full_scale = _scale(clip)
    if clip.rate_hz != sample_rate_hz:
        import soxr

        wave = soxr.resample(wave, clip.rate_hz, sample_rate_hz)
    if not len(wave):
        raise AudioError("no samples in it")
    return DecodedSound(wave, full_scale, clip.cancelled_s)


def _scale(clip: Clip) -> tuple[np.ndarray, float]:
    """Bring the samples of a clip to full scale 1.

    Returns:
        The wave, float32 (n_samples,), and the number that it was divided by.

    Raises:
        AudioError: There are no samples, or they are no numbers, or they have no scale.
    """
    if not len(clip.wave):
        raise AudioError("no samples in it")
    if not np.isfinite(clip.wave).all():
        raise AudioError("samples that are no numbers (NaN or infinite)")
    if clip.full_scale is None:
        raise AudioError(f"single samples are far over full scale (up to {clip.peak:.3g}): damaged")
    if clip.full_scale == 1:
        return clip.wave, 1.0
    return clip.wave / np.float32(clip.full_scale), clip.full_scale


def duration_s(audio: str | Path | bytes) -> float:
    """Read how long a recording is, from its header.

    A file that states no length, such as the webm of a browser, is read through.

    Args:
        audio: Path of the file, or its contents.

    Returns:
        The length in seconds. A truncated file may have fewer seconds than it states.

    Raises:
        AudioError: The file is missing, unreadable or empty.
    """
    with _open_sound(audio) as file:
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


def _describe_length(clip: Clip, structure: Structure, start_s: float, end_s: float | None) -> str:
    """Say how long a piece is that was not read to its end."""
    if end_s is None:
        end_s = structure.stated_s or clip.stated_s
    if end_s is None:
        return f"more than {clip.wave_s:.0f} s"
    return f"{max(end_s - start_s, clip.wave_s):.1f} s"


def _refuse_short(clip: Clip, structure: Structure, start_s: float, end_s: float | None) -> None:
    """Raise AudioError for a clip that is not all there: unreadable, truncated, or shorter than the row says."""
    stated_s = structure.stated_s
    if stated_s is None and clip.stated_s is not None:
        stated_s = clip.stated_s / structure.present_share
    if not clip.read_s and clip.failure:
        if structure.cut_off:
            raise AudioError(f"{clip.failure}; the file breaks off: truncated")
        raise AudioError(clip.failure)
    recording_s = clip.read_s if stated_s is None else stated_s
    if start_s and start_s >= recording_s and not clip.failure:
        raise AudioError(f"starts at {start_s:g} s, but the recording has only {recording_s:.2f} s")
    if stated_s is not None and falls_short(clip.wave_s, min(end_s or stated_s, stated_s) - start_s):
        raise AudioError(f"decoded {clip.read_s:.2f} s of {stated_s:.2f} s: truncated")
    if (structure.cut_off or clip.cut_off) and (end_s is None or falls_short(clip.wave_s, end_s - start_s)):
        raise AudioError(f"decoded {clip.read_s:.2f} s, then the file breaks off: truncated")
    # If a length is stated, the check above has shown that enough sound is there: the decoder failed after it.
    if clip.failure and stated_s is None:
        raise AudioError(f"breaks off after {clip.read_s:.2f} s: {clip.failure}; truncated or damaged")
    if end_s is not None and falls_short(clip.wave_s, end_s - start_s):
        raise AudioError(f"ends at {end_s:g} s, but the recording has only {recording_s:.2f} s")


@contextmanager
def _open_sound(audio: str | Path | bytes) -> Iterator[BinaryIO]:
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
    except OSError as error:
        # A disk or a network failed while we read.
        raise AudioError(reason_of(error)) from None
