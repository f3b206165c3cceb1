"""Decode pieces of long recordings from near their start, with the samples that decoding from the beginning gives.

What has to be known of a file for this is read once and remembered. Where it cannot be known, or where a piece that was
read in this way is not all there, decoding begins at the start of the file. That is slower and finds every fault.
"""

from __future__ import annotations

import dataclasses
import io
import math
from array import array
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from whisper_peft.data.decoded_clip import DECODER_ERRORS, AudioError, Clip
from whisper_peft.data.decoding import decode
from whisper_peft.data.ffmpeg_decoder import MOST_PACKETS, decode_pyav, open_container
from whisper_peft.data.structure import Marks, Structure, falls_short, identify_file
from whisper_peft.data.truncation import read_structure
from whisper_peft.data.xing import count_down_header

if TYPE_CHECKING:
    import av

# The facts about a recording of two hours take 60 kB of memory.
_MOST_KNOWN_FILES = 500
_STRUCTURES: dict[tuple[int, ...], Structure] = {}
_PACKET_MARKS: dict[tuple[int, ...], Marks | None] = {}


def read_structure_once(file: BinaryIO) -> Structure:
    """Read what a file states about itself, once for all its pieces."""
    key = identify_file(file)
    structure = _STRUCTURES.get(key)
    if structure is None:
        structure = read_structure(file)
        if len(_STRUCTURES) >= _MOST_KNOWN_FILES:
            _STRUCTURES.clear()
        _STRUCTURES[key] = structure
    return structure


def decode_piece(file: BinaryIO, structure: Structure, start_s: float, end_s: float | None) -> Clip:
    """Decode a piece of a recording from near its start if that is possible, else from the start of the file.

    Args:
        file: The file, open for reading.
        structure: The facts that the file states about itself.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
    """
    clip = None
    try:
        if structure.frame_marks is not None:
            clip = _decode_from_frame(file, structure.frame_marks, start_s, end_s)
        elif structure.has_time_stamps:
            clip = _decode_from_packet(file, start_s, end_s)
    except AudioError:
        clip = None
    if clip is None or clip.failure is not None or not len(clip.wave):
        return decode(file, structure, start_s, end_s)
    if end_s is not None and falls_short(clip.wave_s, end_s - start_s):
        return decode(file, structure, start_s, end_s)
    return clip


def _decode_from_frame(file: BinaryIO, marks: Marks, start_s: float, end_s: float | None) -> Clip | None:
    """Decode an mp3 from a mark on, as an mp3 of its own in which the frames before the mark are left out.

    FFmpeg decodes it even where libsndfile decodes the whole file: libsndfile walks all frames before a piece, and in
    an mp3 of 16 kbit/s its samples were wrong after seeking.

    Returns:
        None if the piece is so close to the beginning that decoding begins there.
    """
    number = marks.number_before(start_s)
    if number is None:
        return None
    left_out_s = marks.samples_before(number) / marks.rate_hz
    rest_end_s = None if end_s is None else end_s - left_out_s
    rest = io.BufferedReader(_RestOfMp3(file, marks, number))
    clip = decode_pyav(rest, start_s - left_out_s, rest_end_s)
    return dataclasses.replace(clip, read_s=left_out_s + clip.read_s)


class _RestOfMp3(io.RawIOBase):
    """An mp3 without the frames before a mark: the frame with its Xing header, if it has one, and the frames behind.

    Args:
        file: The mp3, open for reading.
        marks: The places of its frames.
        number: Number of the mark.
    """

    def __init__(self, file: BinaryIO, marks: Marks, number: int):
        super().__init__()
        place = marks.places[number]
        self._head = count_down_header(marks.xing_frame, number * marks.mark_packets, place - marks.places[0])
        self._file = file
        # The place in the file that stands for the beginning of the rest.
        self._file_start = place - len(self._head)
        self._n_bytes = file.seek(0, io.SEEK_END) - self._file_start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        if begin + offset < 0:
            raise ValueError(f"no such place: {begin + offset}")
        self._position = begin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        content = self._head[self._position : self._position + len(buffer)]
        if not content:
            self._file.seek(self._file_start + self._position)
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


# A mark lies a second or more before the piece, and the first mark is the beginning of the file.
_LEAST_START_S = 2
# Where the decoder may make noise of its own, a piece is decoded a second time, from this number of marks (about
# seconds) further back. The state that the noise comes from changes with each noisy packet. So two decodings of a noisy
# piece differ.
_MARKS_FURTHER_BACK = 8
# The largest difference between the two decodings; full scale is 1, so this is -66 dB.
_MOST_NOISE = 5e-4


def _decode_from_packet(file: BinaryIO, start_s: float, end_s: float | None) -> Clip | None:
    """Decode an mp4, m4a, mkv or webm from the packet of a mark on.

    Returns:
        None if decoding has to begin at the start of the file.
    """
    if start_s < _LEAST_START_S:
        return None
    key = identify_file(file)
    marks = _read_packet_marks_once(file, key)
    if marks is None:
        return None
    number = marks.number_before(start_s)
    if number is None:
        return None
    clip = decode_pyav(file, start_s, end_s, marks, number)
    if not marks.may_be_noisy:
        return clip
    if number <= _MARKS_FURTHER_BACK:
        return None
    from_further_back = decode_pyav(file, start_s, end_s, marks, number - _MARKS_FURTHER_BACK)
    if not _sound_the_same(clip, from_further_back):
        # From now on, all pieces of this file are decoded from its start.
        _PACKET_MARKS[key] = None
        return None
    return clip


def _read_packet_marks_once(file: BinaryIO, key: tuple[int, ...]) -> Marks | None:
    """Read the time stamps of all packets, once for all pieces of a file; see `_read_packet_marks`."""
    if key in _PACKET_MARKS:
        # This is None, too, if another thread has just forgotten all files.
        return _PACKET_MARKS.get(key)
    marks = _read_packet_marks(file)
    if len(_PACKET_MARKS) >= _MOST_KNOWN_FILES:
        _PACKET_MARKS.clear()
    _PACKET_MARKS[key] = marks
    return marks


def _sound_the_same(clip: Clip, other: Clip) -> bool:
    if clip.wave.shape != other.wave.shape:
        return False
    return bool(np.abs(clip.wave - other.wave).max(initial=0.0) <= _MOST_NOISE)


# The decoders of these codecs give the same samples wherever they begin, after a second at most. AC-3 is missing,
# because its decoder makes noise of its own everywhere. Vorbis is missing, because it has packets of two sizes.
_CODECS = ("aac", "alac", "flac", "libopus", "mp3", "mp3float", "opus")
# An AAC encoder may ask for noise, "this loud". The decoder makes the noise from a state that depends on all that came
# before, so two decodings that begin at different places show it.
_NOISY_CODECS = ("aac",)


def _read_packet_marks(file: BinaryIO) -> Marks | None:
    """Read the time stamps of all packets of an mp4, m4a, mkv or webm; only the first packets are decoded.

    Returns:
        None if the number of a packet does not tell how many samples come before it.
    """
    import av

    file.seek(0)
    counter = None
    try:
        with open_container(file) as container:
            stream = container.streams.audio[0]
            codec = stream.codec_context.name
            if codec not in _CODECS:
                return None
            counter = _PacketCounter(may_be_noisy=codec in _NOISY_CODECS)
            for packet in container.demux(stream):
                if packet.size and not counter.add(packet):
                    return None
                if counter.n_packets > MOST_PACKETS:
                    return None
    except (av.FFmpegError, *DECODER_ERRORS):
        # The packets that were read so far are right. A piece behind them is decoded from the start, and that tells the
        # fault.
        pass
    return None if counter is None else counter.marks()


class _PacketCounter:
    """Counts the samples of a recording by its packets, as decoding from the start counts them.

    Time stamps only name the packets. In a browser's recording they jitter by some milliseconds, and jump where the
    recording was paused. Decoding does not follow them: it puts the samples of one packet behind those of the other.

    Args:
        may_be_noisy: Whether the decoder makes noise of its own where the encoder asks for it.
    """

    def __init__(self, may_be_noisy: bool) -> None:
        self.n_packets = 0
        self._may_be_noisy = may_be_noisy
        # Time stamps of the packets at which the marks lie.
        self._stamps = array("q")
        self._last_stamp = 0
        # Known from the second decoded frame on, because the first frame may be cut at its beginning.
        self._packet_samples = 0
        # The same in the unit of time stamps, which may be a rounded millisecond.
        self._least_ticks = 0
        self._most_ticks = 0
        self._rate_hz = 0
        self._mark_packets = 0
        self._n_dropped = 0
        self._n_decoded = 0
        self._is_behind_end = False

    def add(self, packet: av.Packet) -> bool:
        """Take the next packet into account.

        Returns:
            False if samples cannot be counted by packets.
        """
        stamp = packet.pts
        if stamp is None or (self.n_packets and stamp <= self._last_stamp):
            return False
        if self._is_behind_end and not packet.is_discard:
            return False
        if not self._packet_samples:
            self._decode_first(packet)
            if self._n_dropped < 0 or (self._mark_packets and self.n_packets >= self._mark_packets):
                return False
        elif packet.is_discard or not self._least_ticks <= packet.duration <= self._most_ticks:
            # Only the last packet may hold fewer samples.
            self._is_behind_end = True
        if self.n_packets == 0 or (self._mark_packets and self.n_packets % self._mark_packets == 0):
            self._stamps.append(stamp)
        self._last_stamp = stamp
        self.n_packets += 1
        return True

    def _decode_first(self, packet: av.Packet) -> None:
        """Decode one of the first packets, until the number of samples in a packet is known."""
        for frame in packet.decode():
            if self._n_decoded:
                self._packet_samples = frame.samples
                self._rate_hz = frame.sample_rate
                ticks = Fraction(frame.samples, frame.sample_rate) / packet.time_base
                self._least_ticks = math.ceil(ticks - 1)
                self._most_ticks = math.floor(ticks + 1)
                self._mark_packets = Marks.count_mark_packets(frame.samples, frame.sample_rate)
                packets_end = (self.n_packets + 1) * frame.samples
                self._n_dropped = packets_end - self._n_decoded - frame.samples
                return
            self._n_decoded += frame.samples

    def marks(self) -> Marks | None:
        """Return the marks of the packets so far; None if there are too few packets to seek."""
        if not self._mark_packets:
            return None
        return Marks(
            self._packet_samples,
            self._rate_hz,
            self._mark_packets,
            self._stamps,
            n_dropped=self._n_dropped,
            may_be_noisy=self._may_be_noisy,
        )
