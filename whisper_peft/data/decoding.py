"""The two decoders: libsndfile for what it can read, FFmpeg's libraries for the rest; both within limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.frames import is_part_of_a_frame
from whisper_peft.data.mixing import Levels, Mixer
from whisper_peft.data.structure import Marks, Structure, identity_of
from whisper_peft.files import printable

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
MOST_PACKETS = 4_000_000
_MOST_IDLE_PACKETS = 10_000  # in a row, without any sound in them
# FFmpeg 7 looks for frames in the first megabyte, and takes many seconds where each word could begin one.
_AC3_SYNC_WORD = b"\x0b\x77"
_AC3_PROBED_BYTES = "100000"  # a frame has 4 kB at most
_CODECS_OF_FRAMES = ("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "ac3_fixed", "eac3")
_MOST_KNOWN_LEVELS = 1_000
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
DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LEVELS: dict[tuple[int, ...], Levels] = {}  # file -> levels of its float samples


class AudioError(Exception):
    """A clip that cannot be used; the message is the reason written to left_out.jsonl."""


@dataclass(frozen=True, slots=True)
class Clip:
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
        """Seconds of the wave."""
        return len(self.wave) / self.rate_hz


_NOTHING = np.zeros(0, np.float32)


def decode(file: BinaryIO, structure: Structure, start_s: float, end_s: float | None) -> Clip:
    """Decode by soundfile, else by PyAV; of two failures, the one that came further tells more."""
    clips = []
    if structure.for_soundfile:
        clips.append(decode_soundfile(file, start_s, end_s))
        if clips[0].failure is None and clips[0].stated_s:
            return clips[0]
    clips.append(decode_pyav(file, start_s, end_s))
    return max(clips, key=lambda clip: (clip.read_s, clip.failure is None))


def decode_soundfile(file: BinaryIO, start_s: float, end_s: float | None) -> Clip:
    """Decode with libsndfile: wav, flac, ogg, opus, mp3 and other classics."""
    import soundfile

    mixer: Mixer | None = None
    levels = Levels()
    full_scale: float | None = 1.0
    stated_s, failure = None, None
    n_bytes = _size_of(file)
    try:
        with soundfile.SoundFile(_Steady(file)) as sound:
            if sound.frames >= _UNKNOWN_FRAMES:  # libsndfile loses the last block of a flac without a length
                return Clip(_NOTHING, 1, 0.0, failure="a flac that states no length")
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
                _refuse_endless(n_bytes, mixer.n_samples, mixer.rate_hz)
                left -= len(block)
                if len(block) < asked:
                    break
            if is_float:
                levels = _levels_of_file(file, sound) if is_piece else levels
                full_scale = levels.full_scale
    except DECODER_ERRORS as error:  # TypeError: a name in .raw without its format
        failure = _unreadable(error)
    if mixer is None:
        return Clip(_NOTHING, 1, 0.0, failure=failure)
    read_s = start_s + mixer.n_samples / mixer.rate_hz if mixer.n_samples else 0.0
    wave, cancelled_s = mixer.wave()
    return Clip(wave, mixer.rate_hz, read_s, stated_s, failure, full_scale, levels.peak, cancelled_s)


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


def _levels_of_file(file: BinaryIO, sound: soundfile.SoundFile) -> Levels:
    """Take the levels of float samples from the whole file, so that its pieces are all divided by the same."""
    key = identity_of(file)
    if key in _LEVELS:
        return _LEVELS[key]
    levels = Levels()
    sound.seek(0)
    for block in sound.blocks(max(1, _BLOCK_SAMPLES // sound.channels), dtype="float32", always_2d=True):
        levels.add(block)
    if len(_LEVELS) >= _MOST_KNOWN_LEVELS:
        _LEVELS.clear()
    _LEVELS[key] = levels
    return levels


def decode_pyav(file: BinaryIO, start_s: float, end_s: float | None, marks: Marks | None = None, mark: int = 0) -> Clip:
    """Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest.

    Args:
        file: Open for reading.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        marks: Time stamps at which decoding can begin; None to decode from the start of the file.
        mark: Number of the mark at which decoding begins.

    Returns:
        What was decoded. It has a failure, too, where the packet of the mark is not found.
    """
    import av

    mixer: Mixer | None = None
    levels = Levels()
    stated_s, failure, n_read, cut_off = None, None, 0, False
    n_bytes = _size_of(file)
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return Clip(_NOTHING, 1, 0.0, failure="no sound in it")
            stated_s = _stated_by_container(container)
            if container.streams.audio[0].codec_context is None:
                return Clip(_NOTHING, 1, 0.0, failure="in a coding that cannot be decoded")
            codec = container.streams.audio[0].codec_context.name
            is_float = codec.startswith("pcm_f") or codec == "wavpack"  # the others have a scale of their own
            last_packet: list[bytes] = []
            first_stamp = None if marks is None else marks.places[mark]
            for n_packets, frame in _frames(container, last_packet, first_stamp):
                if mixer is None:
                    mixer = Mixer(_checked_rate(frame.sample_rate))
                    piece_start = round(start_s * mixer.rate_hz)
                    piece_end = None if end_s is None else round(end_s * mixer.rate_hz)
                    if marks is not None:
                        if frame.sample_rate != marks.rate_hz or frame.samples > marks.packet_samples:
                            raise ValueError("packets that hold less, or more, than those at the beginning of the file")
                        # A decoder may drop its first samples wherever it begins, so the end of the frame is counted.
                        packets_end = marks.samples_before(mark) + n_packets * marks.packet_samples
                        n_read = packets_end - marks.n_dropped - frame.samples
                elif frame.sample_rate != mixer.rate_hz:
                    failure = f"the sampling rate changes from {mixer.rate_hz} to {frame.sample_rate} Hz in the file"
                    break
                n_samples = frame.samples
                begin, n_read = n_read, n_read + n_samples
                _refuse_endless(n_bytes, n_read, mixer.rate_hz)
                first = max(0, piece_start - begin)
                last = n_samples if piece_end is None else min(n_samples, piece_end - begin)
                if first < last or is_float:
                    block = _channels(frame)
                    if is_float:
                        levels.add(block)
                    if first < last:
                        mixer.add(block[first:last])
                if last < n_samples and not is_float:  # the scale of float samples is the whole file's
                    break
            cut_off = codec in _CODECS_OF_FRAMES and any(map(is_part_of_a_frame, last_packet))
    except (av.FFmpegError, *DECODER_ERRORS) as error:
        failure = _unreadable(error)
    if mixer is None:
        return Clip(_NOTHING, 1, 0.0, stated_s, failure)
    wave, cancelled_s = mixer.wave()
    return Clip(
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


def _frames(
    container: av.container.InputContainer, last_packet: list[bytes], first_stamp: int | None
) -> Iterator[tuple[int, av.AudioFrame]]:
    """Yield the decoded frames of the first stream of sound.

    Args:
        container: Open for reading.
        last_packet: Takes the last packet of the file, once it was read to the end.
        first_stamp: Time stamp of the packet to begin with; None for the first one of the file.

    Yields:
        How many packets were decoded so far, and a frame of the last one of them.

    Raises:
        AudioError: Thousands of packets hold nothing.
        ValueError: There is no packet of that time stamp.
    """
    stream = container.streams.audio[0]
    if first_stamp is not None:
        container.seek(first_stamp, stream=stream)
    n_packets = 0
    n_idle = 0
    last = None
    for packet in container.demux(stream):
        if first_stamp is not None and n_packets == 0 and packet.pts != first_stamp:
            if packet.pts is None or packet.pts > first_stamp:
                raise ValueError(f"no packet with the time stamp {first_stamp}")
            continue  # a container leads to a place before it, up to some seconds
        n_packets += 1
        n_idle += 1
        if packet.size:
            last = packet
        elif last is not None:  # the empty packet that ends the stream
            last_packet.append(bytes(last))
        for frame in packet.decode():
            n_idle = 0
            yield n_packets, frame
        if n_idle > _MOST_IDLE_PACKETS:
            raise AudioError(f"damaged: {_MOST_IDLE_PACKETS:,} packets one after the other hold no sound")


def _refuse_endless(n_bytes: int, n_samples: int, rate_hz: int) -> None:
    """Raise AudioError for a file that unpacks to far more sound than speech would."""
    if n_samples > _MOST_SAMPLES + _MOST_SAMPLES_A_BYTE * n_bytes:
        seconds = n_samples / rate_hz
        raise AudioError(f"over {seconds:.0f} s in {n_bytes:,} bytes: next to nothing but silence; cut it into clips")


def _size_of(file: BinaryIO) -> int:
    """Measure a file in bytes, and go back to its start."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return n_bytes


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """Give one decoded frame as float32 (n_samples, n_channels), integers with full scale 1."""
    if frame.format.name == "fltp" and len(frame.planes) == 1:
        # An hour of mp3 has 140,000 such frames, and to_ndarray takes half as long as decoding them.
        samples = np.frombuffer(frame.planes[0], np.float32, frame.samples)
        return samples.copy()[:, np.newaxis]  # a copy, so that the frame can be freed
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


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open with PyAV; a tag that is not UTF-8 is no reason to refuse the sound (PyAV 19 thinks so, too)."""
    import av

    tolerant = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    # A playlist (.m3u8) or session description (.sdp) in place of sound names addresses that libav would open.
    limits = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    file.seek(0)
    if file.read(2) == _AC3_SYNC_WORD:
        limits["formatprobesize"] = _AC3_PROBED_BYTES
    file.seek(0)
    return av.open(file, container_options=limits, **tolerant)


def read_header_s(file: BinaryIO) -> float | None:
    """Read the seconds that a file states to libsndfile; None where it cannot read it, or no length is stated."""
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(_Steady(file)) as sound:
            if 0 < sound.frames < _UNKNOWN_FRAMES and sound.samplerate > 0:
                return sound.frames / sound.samplerate
    except DECODER_ERRORS:
        pass
    return None


def read_container_s(file: BinaryIO) -> float | None:
    """Seconds by the container's header, else by its packets, not decoded; None if neither tells."""
    import av

    file.seek(0)
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return None
            stated_s = _stated_by_container(container)
            if stated_s is not None:
                return stated_s
            stream = container.streams.audio[0]
            total = 0  # in time bases
            for number, packet in enumerate(container.demux(stream)):
                if number >= MOST_PACKETS:
                    raise AudioError(f"damaged: more than {MOST_PACKETS:,} packets")
                total += packet.duration or 0
            return float(total * stream.time_base)
    except (av.FFmpegError, *DECODER_ERRORS):
        return None
