"""The two decoders, both within limits: libsndfile for what it can read, and FFmpeg's libraries for the rest."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.frames import is_part_of_a_frame
from whisper_peft.data.mixing import Levels, Mixer
from whisper_peft.data.structure import Marks, Structure, identify_file
from whisper_peft.files import printable

if TYPE_CHECKING:
    import av
    import soundfile

# Samples that are decoded at a time, all channels together. So a header's claim never sizes an array.
_BLOCK_SAMPLES = 1 << 18
# libsndfile states 2**63 - 1 samples for a flac without a length.
_UNKNOWN_SAMPLES = 1 << 48
# Below this rate, a header is broken, and resampling would blow a small file up without bound.
_LOWEST_RATE_HZ = 1_000
# Above this rate, a header is broken: the samples of a file would make up no second.
_HIGHEST_RATE_HZ = 10_000_000
# Silence compresses without bound: a few kilobytes of flac can hold hours. Opus at 6 kbit/s has 64 samples a byte.
_MOST_SAMPLES = 20_000_000
_MOST_SAMPLES_A_BYTE = 64
MOST_PACKETS = 4_000_000
# So many packets in a row may hold no sound.
_MOST_IDLE_PACKETS = 10_000
# Exceptions that decoders raise on damaged files, besides av.FFmpegError. soundfile raises TypeError for a file whose
# name ends in .raw, because it would need the format.
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


class AudioError(Exception):
    """A clip that cannot be used; the message is the reason written to left_out.jsonl."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The samples that a decoder gave, and how far it came if it failed."""

    # float32 (n_samples,), from the start of the piece on, on the file's own scale.
    wave: np.ndarray
    rate_hz: int
    # How far into the file decoding came, in seconds.
    read_s: float
    # Length of the whole file by its header, in seconds.
    stated_s: float | None = None
    # Why decoding stopped before the end.
    failure: str | None = None
    # The value of full scale in float samples; None if single samples are far over it.
    full_scale: float | None = 1.0
    # The largest absolute value of float samples.
    peak: float = 0.0
    # Seconds in which the channels cancelled each other.
    cancelled_s: float = 0.0
    # Whether the file ends within its last frame.
    cut_off: bool = False

    @property
    def wave_s(self) -> float:
        """Length of the wave in seconds."""
        return len(self.wave) / self.rate_hz


_NO_SAMPLES = np.zeros(0, np.float32)


def decode(file: BinaryIO, structure: Structure, start_s: float, end_s: float | None) -> Clip:
    """Decode with libsndfile, and with FFmpeg's libraries if that fails.

    If both fail, the clip of the decoder that came further is returned, because its failure tells more.

    Args:
        file: The file, open for reading.
        structure: The facts that the file states about itself.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
    """
    clips = []
    if structure.for_soundfile:
        clips.append(decode_soundfile(file, start_s, end_s))
        if clips[0].failure is None and clips[0].stated_s:
            return clips[0]
    clips.append(decode_pyav(file, start_s, end_s))
    return max(clips, key=lambda clip: (clip.read_s, clip.failure is None))


def decode_soundfile(file: BinaryIO, start_s: float, end_s: float | None) -> Clip:
    """Decode with libsndfile: wav, flac, ogg, opus, mp3 and other classics.

    Args:
        file: The file, open for reading.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
    """
    import soundfile

    mixer: Mixer | None = None
    levels = Levels()
    full_scale: float | None = 1.0
    stated_s = None
    failure = None
    n_bytes = _measure_file(file)
    try:
        with soundfile.SoundFile(_FileForLibsndfile(file)) as sound:
            if sound.frames >= _UNKNOWN_SAMPLES:
                # libsndfile would lose the last block of such a file.
                return Clip(_NO_SAMPLES, 1, 0.0, failure="a flac that states no length")
            mixer = Mixer(_check_rate(sound.samplerate))
            stated_s = sound.frames / mixer.rate_hz
            is_float = sound.subtype in ("FLOAT", "DOUBLE")
            start = round(start_s * mixer.rate_hz)
            end = sound.frames
            if end_s is not None:
                end = min(end, round(end_s * mixer.rate_hz))
            is_piece = max(0, end - start) < sound.frames
            for block in _read_blocks(sound, start, end):
                mixer.add(block)
                if is_float and not is_piece:
                    levels.add(block)
                _refuse_endless(n_bytes, mixer.n_samples, mixer.rate_hz)
            if is_float:
                if is_piece:
                    levels = _measure_levels(file, sound)
                full_scale = levels.full_scale
    except DECODER_ERRORS as error:
        failure = _describe_failure(error)
    if mixer is None:
        return Clip(_NO_SAMPLES, 1, 0.0, failure=failure)
    read_s = 0.0
    if mixer.n_samples:
        read_s = start_s + mixer.n_samples / mixer.rate_hz
    wave, cancelled_s = mixer.take_wave()
    return Clip(
        wave,
        mixer.rate_hz,
        read_s,
        stated_s=stated_s,
        failure=failure,
        full_scale=full_scale,
        peak=levels.peak,
        cancelled_s=cancelled_s,
    )


def _read_blocks(sound: soundfile.SoundFile, start: int, end: int) -> Iterator[np.ndarray]:
    """Yield the samples of a piece, float32 (n_samples, n_channels) at a time.

    Args:
        sound: The file, open in libsndfile.
        start: Number of the first sample.
        end: Number of the sample behind the last one.
    """
    n_left = max(0, end - start)
    if n_left:
        sound.seek(start)
    while n_left:
        n_asked = min(n_left, max(1, _BLOCK_SAMPLES // sound.channels))
        block = sound.read(n_asked, dtype="float32", always_2d=True)
        yield block
        n_left -= len(block)
        if len(block) < n_asked:
            break


class _FileForLibsndfile:
    """A file as libsndfile may use it: a place before its beginning, or far behind its end, is not gone to.

    libsndfile calls the file from C, where an exception would not be raised but printed.

    Args:
        file: The file, open for reading.
    """

    def __init__(self, file: BinaryIO):
        # BinaryIO promises no `readinto`, but files and contents in memory have it.
        assert isinstance(file, io.BufferedIOBase)
        self._file = file
        # The file's own methods are taken, because libsndfile calls them a hundred times for each clip.
        self.read = file.read
        self.readinto = file.readinto
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return self._file.tell()


# The levels of the float samples of whole files, by the key of the file.
_KNOWN_LEVELS: dict[tuple[int, ...], Levels] = {}
_MOST_KNOWN_LEVELS = 1_000


def _measure_levels(file: BinaryIO, sound: soundfile.SoundFile) -> Levels:
    """Measure the levels of float samples in the whole file, so that its pieces are all divided by the same number."""
    key = identify_file(file)
    if key in _KNOWN_LEVELS:
        return _KNOWN_LEVELS[key]
    levels = Levels()
    sound.seek(0)
    for block in sound.blocks(max(1, _BLOCK_SAMPLES // sound.channels), dtype="float32", always_2d=True):
        levels.add(block)
    if len(_KNOWN_LEVELS) >= _MOST_KNOWN_LEVELS:
        _KNOWN_LEVELS.clear()
    _KNOWN_LEVELS[key] = levels
    return levels


# Codecs whose packets are frames that state their own size.
_CODECS_OF_FRAMES = ("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "ac3_fixed", "eac3")


def decode_pyav(file: BinaryIO, start_s: float, end_s: float | None, marks: Marks | None = None, mark: int = 0) -> Clip:
    """Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest.

    Args:
        file: The file, open for reading.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        marks: Time stamps at which decoding can begin; None to decode from the start of the file.
        mark: Number of the mark at which decoding begins.

    Returns:
        The decoded samples. The clip has a failure if no packet has the time stamp of the mark.
    """
    import av

    piece = _Piece(start_s, end_s, marks, mark, _measure_file(file))
    stated_s = None
    failure = None
    cut_off = False
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return Clip(_NO_SAMPLES, 1, 0.0, failure="no sound in it")
            stated_s = _read_stated_s(container)
            if container.streams.audio[0].codec_context is None:
                return Clip(_NO_SAMPLES, 1, 0.0, failure="its codec cannot be decoded")
            codec = container.streams.audio[0].codec_context.name
            # The float samples of other codecs have a scale of their own.
            piece.is_float = codec.startswith("pcm_f") or codec == "wavpack"
            last_packet: list[bytes] = []
            first_stamp = None if marks is None else marks.places[mark]
            for n_packets, frame in _decode_frames(container, last_packet, first_stamp):
                if not piece.add(n_packets, frame):
                    break
            failure = piece.failure
            cut_off = codec in _CODECS_OF_FRAMES and any(map(is_part_of_a_frame, last_packet))
    except (av.FFmpegError, *DECODER_ERRORS) as error:
        failure = _describe_failure(error)
    if piece.mixer is None:
        return Clip(_NO_SAMPLES, 1, 0.0, stated_s, failure)
    wave, cancelled_s = piece.mixer.take_wave()
    return Clip(
        wave,
        piece.mixer.rate_hz,
        piece.n_read / piece.mixer.rate_hz,
        stated_s=stated_s,
        failure=failure,
        full_scale=piece.levels.full_scale,
        peak=piece.levels.peak,
        cancelled_s=cancelled_s,
        cut_off=cut_off,
    )


class _Piece:
    """The samples of a piece, cut out of the frames that are decoded around it.

    Args:
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        marks: Places at which decoding can begin; None if it begins at the start of the file.
        mark: Number of the mark at which decoding begins.
        n_bytes: Size of the file.
    """

    def __init__(self, start_s: float, end_s: float | None, marks: Marks | None, mark: int, n_bytes: int):
        # None until the first frame states the sampling rate.
        self.mixer: Mixer | None = None
        self.levels = Levels()
        # Whether the samples are floats that may be on another scale; then the whole file is read for it.
        self.is_float = False
        # Number of the sample of the file behind the last one that was decoded.
        self.n_read = 0
        self.failure: str | None = None
        self._start_s = start_s
        self._end_s = end_s
        self._marks = marks
        self._mark = mark
        self._n_bytes = n_bytes

    def add(self, n_packets: int, frame: av.AudioFrame) -> bool:
        """Take the next frame.

        Args:
            n_packets: Number of packets that were decoded so far.
            frame: A frame of the last of these packets.

        Returns:
            Whether the next frame is needed, too.

        Raises:
            AudioError: The file unpacks to far more sound than speech would.
            ValueError: The packets are not like those at the beginning of the file, or the sampling rate is broken.
        """
        if self.mixer is None:
            self.mixer = Mixer(_check_rate(frame.sample_rate))
            if self._marks is not None:
                self.n_read = self._count_samples_before(self._marks, n_packets, frame)
        elif frame.sample_rate != self.mixer.rate_hz:
            self.failure = f"the sampling rate changes from {self.mixer.rate_hz} to {frame.sample_rate} Hz in the file"
            return False
        frame_start = self.n_read
        self.n_read += frame.samples
        _refuse_endless(self._n_bytes, self.n_read, self.mixer.rate_hz)
        # The samples of the frame that belong to the piece.
        first = max(0, round(self._start_s * self.mixer.rate_hz) - frame_start)
        last = frame.samples
        if self._end_s is not None:
            last = min(last, round(self._end_s * self.mixer.rate_hz) - frame_start)
        if first < last or self.is_float:
            block = _read_samples(frame)
            if self.is_float:
                self.levels.add(block)
            if first < last:
                self.mixer.add(block[first:last])
        # The scale of float samples is that of the whole file.
        return last >= frame.samples or self.is_float

    def _count_samples_before(self, marks: Marks, n_packets: int, frame: av.AudioFrame) -> int:
        """Count the samples of the file before the first frame that is decoded from a mark on."""
        if frame.sample_rate != marks.rate_hz or frame.samples > marks.packet_samples:
            raise ValueError("packets that hold less, or more, than those at the beginning of the file")
        # A decoder may drop its first samples wherever it begins, so the count goes by the end of the frame.
        packets_end = marks.samples_before(self._mark) + n_packets * marks.packet_samples
        return packets_end - marks.n_dropped - frame.samples


def _decode_frames(
    container: av.container.InputContainer, last_packet: list[bytes], first_stamp: int | None
) -> Iterator[tuple[int, av.AudioFrame]]:
    """Yield the decoded frames of the first stream of sound.

    Args:
        container: The file, open in FFmpeg's libraries.
        last_packet: A list that takes the last packet of the file, once the file was read to its end.
        first_stamp: Time stamp of the packet at which decoding begins; None for the first packet of the file.

    Yields:
        The number of packets that were decoded so far, and a frame of the last one of them.

    Raises:
        AudioError: Thousands of packets hold nothing.
        ValueError: No packet has that time stamp.
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
            # A container leads to a place up to some seconds before the time stamp.
            continue
        n_packets += 1
        n_idle += 1
        if packet.size:
            last = packet
        elif last is not None:
            # An empty packet ends the stream.
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


def _measure_file(file: BinaryIO) -> int:
    """Return the bytes of a file, and go back to its start."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return n_bytes


def _read_samples(frame: av.AudioFrame) -> np.ndarray:
    """Return the samples of a decoded frame as float32 (n_samples, n_channels), integers with full scale 1."""
    if frame.format.name == "fltp" and len(frame.planes) == 1:
        # An hour of mp3 has 140,000 such frames, and to_ndarray takes half as long as decoding them. The samples are
        # copied, so that the frame can be freed.
        samples = np.frombuffer(frame.planes[0], np.float32, frame.samples)
        return samples.copy()[:, np.newaxis]
    array = frame.to_ndarray()
    # A planar frame comes as (n_channels, n_samples), a packed one as (1, n_samples * n_channels).
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    return array.astype(np.float32, copy=False)


def _check_rate(rate_hz: int) -> int:
    """Return a sampling rate; raise ValueError if a header that states it is broken."""
    if not _LOWEST_RATE_HZ <= rate_hz <= _HIGHEST_RATE_HZ:
        raise ValueError(f"a sampling rate of {rate_hz} Hz")
    return rate_hz


def _describe_failure(error: Exception) -> str:
    """Say in a few words why a decoder failed."""
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    reason = printable(" ".join(str(reason).split()).rstrip("."))
    return f"cannot be read as audio ({reason or type(error).__name__})"


# Containers whose duration libav reads from a header. For others it estimates the duration from a bit rate.
_FORMATS_THAT_STATE_DURATION = ("mov", "matroska", "flac", "wv", "tta", "ape", "mpc", "mpc8", "tak")


def _read_stated_s(container: av.container.InputContainer) -> float | None:
    """Return the seconds that the header of an open container states; None where libav would only be guessing."""
    if container.duration and container.format.name.split(",")[0] in _FORMATS_THAT_STATE_DURATION:
        # The unit is av.time_base: a microsecond.
        return container.duration / 1_000_000
    return None


# FFmpeg 7 looks for frames in the first megabyte, and takes many seconds where each word could begin a frame. A frame
# has 4 kB at most, so 100 kB are enough.
_AC3_SYNC_WORD = b"\x0b\x77"
_AC3_PROBED_BYTES = "100000"
# The formats that FFmpeg's libraries may take a file for. Play lists and session descriptions are not among them: they
# name other files and addresses, which would be opened. Nor are pictures and subtitles.
_DEMUXERS = (
    "aa,aac,ac3,ac4,act,adx,aea,aiff,aix,amr,amrnb,amrwb,ape,apm,aptx,asf,asf_o,ast,au,avi,avr,bonk,brstm,bfstm,caf,"
    "codec2,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,fsb,g722,g723_1,g726,g726le,g729,gsm,gxf,hca,iamf,iff,ilbc,ircam,"
    "iss,ivf,kvag,laf,lc3,loas,matroska,mlp,mmf,mov,mp3,mpc,mpc8,mpeg,mpegts,msf,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,"
    "osq,paf,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,siff,sln,sol,sox,spdif,swf,tak,truehd,tta,vag,voc,vqf,w64,wav,wavarc,"
    "wsd,wtv,wv,wve,xa,xvag,xwma"
)


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open a file with FFmpeg's libraries, as sound and nothing else.

    A tag that is not UTF-8 is no reason to refuse the sound. PyAV thinks so, too, from version 19 on.
    """
    import av

    is_strict = int(av.__version__.split(".")[0]) < 19
    tolerant = {"metadata_errors": "replace"} if is_strict else {}
    # A playlist (.m3u8) or session description (.sdp) in place of sound names addresses that libav would open.
    limits = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    file.seek(0)
    if file.read(2) == _AC3_SYNC_WORD:
        limits["formatprobesize"] = _AC3_PROBED_BYTES
    file.seek(0)
    return av.open(file, container_options=limits, **tolerant)


def read_header_s(file: BinaryIO) -> float | None:
    """Read the seconds that a file states to libsndfile.

    Returns:
        None if libsndfile cannot read the file, or no length is stated.
    """
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(_FileForLibsndfile(file)) as sound:
            if 0 < sound.frames < _UNKNOWN_SAMPLES and sound.samplerate > 0:
                return sound.frames / sound.samplerate
    except DECODER_ERRORS:
        pass
    return None


def read_container_s(file: BinaryIO) -> float | None:
    """Read the seconds that a container's header states, or else add up its packets, which are not decoded.

    Returns:
        None if neither tells.

    Raises:
        AudioError: The file has millions of packets.
    """
    import av

    file.seek(0)
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return None
            stated_s = _read_stated_s(container)
            if stated_s is not None:
                return stated_s
            stream = container.streams.audio[0]
            # In units of the stream's time base.
            total = 0
            for number, packet in enumerate(container.demux(stream)):
                if number >= MOST_PACKETS:
                    raise AudioError(f"damaged: more than {MOST_PACKETS:,} packets")
                total += packet.duration or 0
            return float(total * stream.time_base)
    except (av.FFmpegError, *DECODER_ERRORS):
        return None
