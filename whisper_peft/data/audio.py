"""Any sound file to float32 mono 16 kHz, and its duration from the header; a file that was cut is refused.

soundfile decodes what it can, PyAV the rest; what they give is held against what the file states (containers.py), and
mixed to one channel with full scale 1 (mixing.py).
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.containers import Structure, falls_short, read_structure
from whisper_peft.data.frames import is_part_of_a_frame
from whisper_peft.data.mixing import Levels, Mixer
from whisper_peft.files import UnusableFileError, foreign_content, open_file, printable, reason_of

if TYPE_CHECKING:
    import av
    import soundfile

_BLOCK_SAMPLES = 1 << 18  # decoded at a time, all channels together: a header's claim never sizes an array
_UNKNOWN_FRAMES = 1 << 48  # libsndfile gives 2**63 - 1 frames for a flac without a length
_LOWEST_RATE_HZ = 1_000  # below, a header is broken, and resampling would blow a small file up without bound
_HIGHEST_RATE_HZ = 10_000_000  # above, nothing is left of a broken header's second
# Where libav's duration is read from a header, not estimated from a bit rate.
_STATED_BY_HEADER = ("mov", "matroska", "flac", "wv", "tta", "ape", "mpc", "mpc8", "tak")
# Silence compresses without bound: a few kilobytes of flac can hold hours. Opus at 6 kbit/s has 64 samples a byte.
_MOST_SAMPLES = 20_000_000
_MOST_SAMPLES_A_BYTE = 64
_MOST_PACKETS = 4_000_000
_MOST_IDLE_PACKETS = 10_000  # in a row, without any sound in them
_CODECS_OF_FRAMES = ("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "ac3_fixed", "eac3")
_MOST_KNOWN_SCALES = 1_000
# What FFmpeg's libraries may read a file as. Play lists and session descriptions are not among them: they name other
# files and addresses, which would be opened. Nor are pictures and subtitles.
_DEMUXERS = (
    "aa,aac,ac3,ac4,act,adx,aea,aiff,aix,amr,amrnb,amrwb,ape,apm,aptx,asf,asf_o,ast,au,avi,avr,bonk,brstm,bfstm,caf,"
    "codec2,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,fsb,g722,g723_1,g726,g726le,g729,gsm,gxf,hca,iamf,iff,ilbc,ircam,"
    "iss,ivf,kvag,laf,lc3,loas,matroska,mlp,mmf,mov,mp3,mpc,mpc8,mpeg,mpegts,msf,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,"
    "osq,paf,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,siff,sln,sol,sox,spdif,swf,tak,truehd,tta,vag,voc,vqf,w64,wav,wavarc,"
    "wsd,wtv,wv,wve,xa,xvag,xwma"
)
# What decoders raise on damaged files, besides av.FFmpegError.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_SCALES: dict[tuple[int, ...], float | None] = {}  # file -> full scale of its float samples


class AudioError(Exception):
    """A clip that cannot be used; the message is the reason written to left_out.jsonl."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded clip, and what had to be done for it."""

    wave: np.ndarray  # float32 (n_samples,), mono, never empty, all finite
    full_scale: float = 1.0  # what the file's float samples were divided by; 32768 where they stood for 16 bits
    cancelled_s: float = 0.0  # seconds in which the channels cancel each other, so that one was turned over


def load_audio(
    audio: str | Path | bytes, *, start_s: float = 0.0, end_s: float | None = None, sample_rate_hz: int = 16_000
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
    sample_rate_hz: int = 16_000,
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
    with _opened(audio) as file:
        structure = read_structure(file)
        if structure.refusal:
            raise AudioError(structure.refusal)
        clip = _decode(file, structure, start_s, stop_s)
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
    import soundfile

    with _opened(audio) as file:
        structure = read_structure(file)
        if structure.refusal:
            raise AudioError(structure.refusal)
        if structure.stated_s is not None:
            return structure.stated_s
        file.seek(0)
        try:
            with soundfile.SoundFile(_Steady(file)) as sound:
                if 0 < sound.frames < _UNKNOWN_FRAMES and sound.samplerate > 0:
                    return sound.frames / sound.samplerate / structure.present_share
        except _DECODER_ERRORS:
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

    wave: np.ndarray  # float32 (n_samples,), from start_s on, on the file's own scale
    rate_hz: int
    read_s: float  # how far into the file decoding came
    stated_s: float | None = None  # of the whole file, by its header
    failure: str | None = None
    full_scale: float | None = 1.0  # None: single samples are far over it
    peak: float = 0.0  # of float samples
    cancelled_s: float = 0.0
    cut_off: bool = False  # the last frame is not all there

    @property
    def wave_s(self) -> float:
        return len(self.wave) / self.rate_hz


_NOTHING = np.zeros(0, np.float32)


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

    mixer: Mixer | None = None
    levels = Levels()
    full_scale: float | None = 1.0
    stated_s, failure = None, None
    try:
        with soundfile.SoundFile(_Steady(file)) as sound:
            if sound.frames >= _UNKNOWN_FRAMES:  # libsndfile loses the last block of a flac without a length
                return _Clip(_NOTHING, 1, 0.0, failure="a flac that states no length")
            mixer = Mixer(_checked_rate(sound.samplerate))
            stated_s = sound.frames / mixer.rate_hz
            is_float = sound.subtype in ("FLOAT", "DOUBLE")
            start = round(start_s * mixer.rate_hz)
            end = sound.frames if end_s is None else min(sound.frames, round(end_s * mixer.rate_hz))
            left = max(0, end - start)
            is_piece = left < sound.frames
            if left:
                sound.seek(start)
            while left:
                asked = min(left, max(1, _BLOCK_SAMPLES // sound.channels))
                block = sound.read(asked, dtype="float32", always_2d=True)  # (n_samples, n_channels)
                mixer.add(block)
                if is_float and not is_piece:
                    levels.add(block)
                _refuse_endless(file, mixer.n_samples, mixer.rate_hz)
                left -= len(block)
                if len(block) < asked:
                    break
            if is_float:
                full_scale = _scale_of_file(file, sound) if is_piece else levels.full_scale
    except _DECODER_ERRORS as error:  # TypeError: a name in .raw without its format
        failure = _unreadable(error)
    if mixer is None:
        return _Clip(_NOTHING, 1, 0.0, failure=failure)
    read_s = start_s + mixer.n_samples / mixer.rate_hz if mixer.n_samples else 0.0
    wave, cancelled_s = mixer.wave()
    return _Clip(wave, mixer.rate_hz, read_s, stated_s, failure, full_scale, levels.peak, cancelled_s)


class _Steady:
    """A file as libsndfile may use it: a place before its beginning, or far behind its end, is not gone to.

    libsndfile calls this from C, where an exception would not be raised but printed.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        # The file's own methods: they are called a hundred times for each clip.
        self.read = file.read
        self.readinto = file.readinto
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return self._file.tell()


def _scale_of_file(file: BinaryIO, sound: soundfile.SoundFile) -> float | None:
    """Tell the full scale of float samples from the whole file, so that its pieces are all divided by the same."""
    key: tuple[int, ...] = ()
    if not isinstance(file, io.BytesIO):
        state = os.fstat(file.fileno())
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key and key in _SCALES:
        return _SCALES[key]
    levels = Levels()
    sound.seek(0)
    for block in sound.blocks(max(1, _BLOCK_SAMPLES // sound.channels), dtype="float32", always_2d=True):
        levels.add(block)
    if len(_SCALES) >= _MOST_KNOWN_SCALES:
        _SCALES.clear()
    if key:
        _SCALES[key] = levels.full_scale
    return levels.full_scale


def _decode_pyav(file: BinaryIO, start_s: float, end_s: float | None) -> _Clip:
    """Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest; from the start, as seeking in these is inexact."""
    import av

    mixer: Mixer | None = None
    levels = Levels()
    stated_s, failure, n_read, cut_off = None, None, 0, False
    try:
        with _open_container(file) as container:
            if not container.streams.audio:
                return _Clip(_NOTHING, 1, 0.0, failure="no sound in it")
            stated_s = _stated_by_container(container)
            if container.streams.audio[0].codec_context is None:
                return _Clip(_NOTHING, 1, 0.0, failure="in a coding that cannot be decoded")
            codec = container.streams.audio[0].codec_context.name
            is_float = codec.startswith("pcm_f") or codec == "wavpack"  # the others have a scale of their own
            last_packet: list[bytes] = []
            for frame in _frames(container, last_packet):
                if mixer is None:
                    mixer = Mixer(_checked_rate(frame.sample_rate))
                elif frame.sample_rate != mixer.rate_hz:
                    failure = f"the sampling rate changes from {mixer.rate_hz} to {frame.sample_rate} Hz in the file"
                    break
                begin, n_read = n_read, n_read + frame.samples
                _refuse_endless(file, n_read, mixer.rate_hz)
                first = max(0, round(start_s * mixer.rate_hz) - begin)
                last = frame.samples
                if end_s is not None:
                    last = min(last, round(end_s * mixer.rate_hz) - begin)
                if first < last or is_float:
                    block = _channels(frame)
                    if is_float:
                        levels.add(block)
                    if first < last:
                        mixer.add(block[first:last])
                if last < frame.samples and not is_float:  # the scale of float samples is the whole file's
                    break
            cut_off = codec in _CODECS_OF_FRAMES and any(map(is_part_of_a_frame, last_packet))
    except (av.FFmpegError, *_DECODER_ERRORS) as error:
        failure = _unreadable(error)
    if mixer is None:
        return _Clip(_NOTHING, 1, 0.0, stated_s, failure)
    wave, cancelled_s = mixer.wave()
    return _Clip(
        wave,
        mixer.rate_hz,
        n_read / mixer.rate_hz,
        stated_s,
        failure,
        levels.full_scale,
        levels.peak,
        cancelled_s,
        cut_off,
    )


def _frames(container: av.container.InputContainer, last_packet: list[bytes]) -> Iterator[av.AudioFrame]:
    """Yield the decoded frames of the first stream of sound.

    Args:
        container: Open for reading.
        last_packet: Takes the last packet of the file, once it was read to the end.

    Raises:
        AudioError: Thousands of packets hold nothing.
    """
    n_idle = 0
    last = None
    for packet in container.demux(container.streams.audio[0]):
        n_idle += 1
        if packet.size:
            last = packet
        elif last is not None:  # the empty packet that ends the stream
            last_packet.append(bytes(last))
        for frame in packet.decode():
            n_idle = 0
            yield frame
        if n_idle > _MOST_IDLE_PACKETS:
            raise AudioError(f"damaged: {_MOST_IDLE_PACKETS:,} packets one after the other hold no sound")


def _refuse_endless(file: BinaryIO, n_samples: int, rate_hz: int) -> None:
    """Raise AudioError for a file that unpacks to far more sound than speech would."""
    if n_samples <= _MOST_SAMPLES:
        return
    position = file.tell()
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(position)
    if n_samples > _MOST_SAMPLES + _MOST_SAMPLES_A_BYTE * n_bytes:
        seconds = n_samples / rate_hz
        raise AudioError(f"over {seconds:.0f} s in {n_bytes:,} bytes: next to nothing but silence; cut it into clips")


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """Give one decoded frame as float32 (n_samples, n_channels), integers with full scale 1."""
    array = frame.to_ndarray()  # planar: (n_channels, n_samples); packed: (1, n_samples * n_channels)
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    return array.astype(np.float32, copy=False)


def _checked_rate(rate_hz: int) -> int:
    if not _LOWEST_RATE_HZ <= rate_hz <= _HIGHEST_RATE_HZ:
        raise ValueError(f"a sampling rate of {rate_hz} Hz")
    return rate_hz


def _unreadable(error: Exception) -> str:
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    reason = printable(" ".join(str(reason).split()).rstrip("."))
    return f"cannot be read as audio ({reason or type(error).__name__})"


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
    limits = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    return av.open(file, container_options=limits, **tolerant)


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
            stream = container.streams.audio[0]
            total = 0  # in time bases
            for number, packet in enumerate(container.demux(stream)):
                if number >= _MOST_PACKETS:
                    raise AudioError(f"damaged: more than {_MOST_PACKETS:,} packets")
                total += packet.duration or 0
            return float(total * stream.time_base)
    except (av.FFmpegError, *_DECODER_ERRORS):
        return None


def _length(clip: _Clip, structure: Structure, start_s: float, end_s: float | None) -> str:
    """Say how long a piece is that was not read to its end."""
    stated_s = structure.stated_s or clip.stated_s
    if end_s is None and stated_s is None:
        return f"more than {clip.wave_s:.0f} s"
    seconds = (stated_s if end_s is None else end_s) - start_s
    return f"{max(seconds, clip.wave_s):.1f} s"


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
