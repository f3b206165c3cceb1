"""Any sound file to float32 mono 16 kHz, and its duration from the header; a file that was cut is refused.

soundfile decodes what it can, PyAV the rest; what they give is held against what the file states (containers.py).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.containers import Structure, falls_short, read_structure

if TYPE_CHECKING:
    import av

_BLOCK_SAMPLES = 1 << 18  # decoded at a time, all channels together: a header's claim never sizes an array
_UNKNOWN_FRAMES = 1 << 48  # libsndfile gives 2**63 - 1 frames for a flac without a length
_LOWEST_RATE_HZ = 1_000  # below, a header is broken, and resampling would blow a small file up without bound
_STATED_BY_HEADER = ("mov", "matroska", "asf", "flac")  # where libav's duration is read, not estimated from a bit rate


class AudioError(Exception):
    """A clip that cannot be used; the message is the reason written to left_out.jsonl."""


def load_audio(
    audio: str | Path | bytes, *, start_s: float = 0.0, end_s: float | None = None, sample_rate_hz: int = 16_000
) -> np.ndarray:
    """Decode a clip, or a piece of it, to mono at the given rate.

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
    if not (math.isfinite(start_s) and start_s >= 0 and (end_s is None or end_s > start_s)):
        raise AudioError(f"no such piece of a recording: start_s {start_s}, end_s {end_s}")
    with _opened(audio) as file:
        structure = read_structure(file)
        clip = _decode(file, structure, start_s, end_s)
    _refuse_short(clip, structure, start_s, end_s)
    if not len(clip.wave):
        raise AudioError("no samples in it")
    if not np.isfinite(clip.wave).all():
        raise AudioError("samples that are no numbers (NaN or infinite)")
    if clip.rate_hz == sample_rate_hz:
        return clip.wave
    import soxr

    wave = soxr.resample(clip.wave, clip.rate_hz, sample_rate_hz)
    if not len(wave):
        raise AudioError("no samples in it")
    return wave


def duration_s(audio: str | Path | bytes) -> float:
    """Read how long a recording is, from its header; what states no length (webm of a browser) is read through.

    Returns:
        Seconds. A truncated file may have fewer than it states.

    Raises:
        AudioError: The file is missing, unreadable or empty.
    """
    import soundfile

    with _opened(audio) as file:
        structure = read_structure(file)
        if structure.stated_s is not None:
            return structure.stated_s
        file.seek(0)
        try:
            with soundfile.SoundFile(file) as sound:
                if 0 < sound.frames < _UNKNOWN_FRAMES and sound.samplerate > 0:
                    return sound.frames / sound.samplerate / structure.present_share
        except (RuntimeError, TypeError, ValueError):
            pass
        seconds = _read_duration_s(file)
        if seconds:
            return seconds
        clip = _decode(file, structure, 0.0, None)
        if not len(clip.wave):
            raise AudioError(clip.failure or "no samples in it")
        return len(clip.wave) / clip.rate_hz


@dataclass(frozen=True, slots=True)
class _Clip:
    """What a decoder gave, up to where it failed, if it did."""

    wave: np.ndarray  # float32 (n_samples,), from start_s on
    rate_hz: int
    read_s: float  # how far into the file decoding came
    stated_s: float | None = None  # of the whole file, by its header
    failure: str | None = None

    @property
    def wave_s(self) -> float:
        return len(self.wave) / self.rate_hz


def _decode(file: BinaryIO, structure: Structure, start_s: float, end_s: float | None) -> _Clip:
    """Decode by soundfile, else by PyAV; of two failures, the one that came further tells more."""
    clips = []
    if structure.for_soundfile:
        file.seek(0)
        clips.append(_decode_soundfile(file, start_s, end_s))
        if clips[0].failure is None and clips[0].stated_s:
            return clips[0]
    file.seek(0)
    clips.append(_decode_pyav(file, start_s, end_s))
    return max(clips, key=lambda clip: (clip.read_s, clip.failure is None))


def _decode_soundfile(file: BinaryIO, start_s: float, end_s: float | None) -> _Clip:
    """Decode with libsndfile: wav, flac, ogg, opus, mp3 and other classics."""
    import soundfile

    blocks: list[np.ndarray] = []
    rate_hz, stated_s, failure = 1, None, None
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.frames >= _UNKNOWN_FRAMES:  # libsndfile loses the last block of a flac without a length
                return _Clip(_joined([]), 1, 0.0, failure="a flac that states no length")
            rate_hz = _checked_rate(sound.samplerate)
            stated_s = sound.frames / rate_hz
            start = round(start_s * rate_hz)
            left = max(0, (sound.frames if end_s is None else min(sound.frames, round(end_s * rate_hz))) - start)
            if left:
                sound.seek(start)
            while left:
                asked = min(left, max(1, _BLOCK_SAMPLES // sound.channels))
                block = sound.read(asked, dtype="float32", always_2d=True)  # (n_samples, n_channels)
                blocks.append(block.mean(axis=1))
                left -= len(block)
                if len(block) < asked:
                    break
    except (RuntimeError, TypeError, ValueError) as error:  # TypeError: a name in .raw without its format
        failure = _unreadable(error)
    wave = _joined(blocks)
    return _Clip(wave, rate_hz, start_s + len(wave) / rate_hz if blocks else 0.0, stated_s, failure)


def _decode_pyav(file: BinaryIO, start_s: float, end_s: float | None) -> _Clip:
    """Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest; from the start, as seeking in these is inexact."""
    import av

    blocks: list[np.ndarray] = []
    rate_hz, stated_s, failure, n_read = 0, None, None, 0
    try:
        with _open_container(file) as container:
            if not container.streams.audio:
                return _Clip(_joined([]), 1, 0.0, failure="no sound in it")
            stated_s = _stated_by_container(container)
            for frame in container.decode(container.streams.audio[0]):
                if not rate_hz:
                    rate_hz = _checked_rate(frame.sample_rate)
                elif frame.sample_rate != rate_hz:
                    failure = f"the sampling rate changes from {rate_hz} to {frame.sample_rate} Hz within the file"
                    break
                begin, n_read = n_read, n_read + frame.samples
                first = max(0, round(start_s * rate_hz) - begin)
                last = frame.samples if end_s is None else min(frame.samples, round(end_s * rate_hz) - begin)
                if first < last:
                    blocks.append(_mono(frame)[first:last])
                if last < frame.samples:
                    break
    except (av.FFmpegError, RuntimeError, TypeError, ValueError) as error:
        failure = _unreadable(error)
    return _Clip(_joined(blocks), rate_hz or 1, n_read / (rate_hz or 1), stated_s, failure)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """One decoded frame as float32 (n_samples,), full scale 1."""
    array = frame.to_ndarray()  # planar: (n_channels, n_samples); packed: (1, n_samples * n_channels)
    if not frame.format.is_planar:
        array = array.reshape(frame.samples, -1).T
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif array.dtype.kind == "i":
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    return array.mean(axis=0, dtype=np.float32)


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _checked_rate(rate_hz: int) -> int:
    if rate_hz < _LOWEST_RATE_HZ:
        raise ValueError(f"a sampling rate of {rate_hz} Hz")
    return rate_hz


def _unreadable(error: Exception) -> str:
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return f"cannot be read as audio ({' '.join(str(reason).split()).rstrip('.') or type(error).__name__})"


def _stated_by_container(container: av.container.InputContainer) -> float | None:
    """Seconds that the header of an open container states; None where libav would only be guessing."""
    if container.duration and container.format.name.split(",")[0] in _STATED_BY_HEADER:
        return container.duration / 1_000_000  # av.time_base
    return None


def _open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open with PyAV; a tag that is not UTF-8 is no reason to refuse the sound (PyAV 19 thinks so, too)."""
    import av

    tolerant = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    # A playlist (.m3u8) or session description (.sdp) in place of sound names addresses that libav would open.
    return av.open(file, options={"protocol_whitelist": "none"}, **tolerant)


def _read_duration_s(file: BinaryIO) -> float | None:
    """Seconds by the container's header, else by its packets, not decoded; None if neither tells."""
    import av

    file.seek(0)
    try:
        with _open_container(file) as container:
            if not container.streams.audio:
                return None
            stated_s = _stated_by_container(container)
            if stated_s is not None:
                return stated_s
            packets = container.demux(container.streams.audio[0])
            return float(sum(packet.duration * packet.time_base for packet in packets if packet.duration))
    except (av.FFmpegError, RuntimeError, TypeError, ValueError):
        return None


def _refuse_short(clip: _Clip, structure: Structure, start_s: float, end_s: float | None) -> None:
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
    if clip.failure and stated_s is None:  # else all that is stated is there, and only something behind it failed
        raise AudioError(f"breaks off after {clip.read_s:.2f} s: {clip.failure}")
    if structure.cut_off and (end_s is None or falls_short(clip.wave_s, end_s - start_s)):
        raise AudioError(f"decoded {clip.read_s:.2f} s, then the file breaks off: truncated")
    if end_s is not None and falls_short(clip.wave_s, end_s - start_s):
        raise AudioError(f"ends at {end_s:g} s, but the recording has only {recording_s:.2f} s")


@contextmanager
def _opened(audio: str | Path | bytes) -> Iterator[BinaryIO]:
    try:
        opened: BinaryIO = io.BytesIO(audio) if isinstance(audio, bytes) else open(audio, "rb")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    with opened as file:
        if not file.read(1):
            raise AudioError("the file is empty")
        yield file
