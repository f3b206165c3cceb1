"""The facts that a sound file states about itself, and a reader for the parts of the file that state them."""

from __future__ import annotations

import io
import os
from array import array
from dataclasses import dataclass
from typing import BinaryIO

# The smallest number of bytes that `ByteReader` reads at a time.
_BUFFER_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Marks:
    """Places in a recording at which decoding can begin, about one for each second.

    All packets of the recording hold the same number of samples. So the number of a packet tells how many samples come
    before it.
    """

    packet_samples: int
    rate_hz: int
    # Packets from one mark to the next. The first mark is the first packet.
    mark_packets: int
    # One for each mark: the position of its packet in bytes, or the time stamp of its packet.
    places: array[int]
    # For an mp3: the frame that holds no sound, but says which samples the decoder drops at both ends.
    xing_frame: bytes = b""
    # For places that are time stamps: the number of samples that the decoder drops at the beginning.
    n_dropped: int = 0
    # Whether the decoder makes noise of its own where the encoder asks for it.
    may_be_noisy: bool = False

    @staticmethod
    def count_mark_packets(packet_samples: int, rate_hz: int) -> int:
        """Compute how many packets lie between two marks.

        Example:
            >>> Marks.count_mark_packets(1152, 44_100)
            38
        """
        return max(1, round(rate_hz / packet_samples))

    def number_before(self, start_s: float) -> int | None:
        """Find the mark at which decoding of a piece begins.

        The mark lies one to two seconds before the piece, because a decoder needs some packets until its samples are
        right: an mp3 frame takes bits from up to 511 bytes before it, and Opus asks for 80 ms.

        Args:
            start_s: Start of the piece, in seconds.

        Returns:
            Number of the mark. None if the piece is so close to the beginning that decoding begins there.
        """
        packet = int(start_s * self.rate_hz) // self.packet_samples
        number = min(packet // self.mark_packets, len(self.places) - 1) - 1
        return number if number > 0 else None

    def samples_before(self, number: int) -> int:
        """Count the samples of the packets before a mark."""
        return number * self.mark_packets * self.packet_samples


@dataclass(frozen=True, slots=True)
class Structure:
    """The facts that a file states about itself, read without decoding."""

    # Length in seconds. It is only given where the decoders do not know it.
    stated_s: float | None = None
    # Bytes of samples in the file, divided by the bytes that its header states. Decoders go by the bytes in the file.
    present_share: float = 1.0
    # Whether the file ends inside one of its own parts.
    cut_off: bool = False
    # Whether libsndfile may read the file.
    for_soundfile: bool = True
    # Why no decoder may be given this file.
    refusal: str | None = None
    # For MPEG audio whose frames follow each other without a gap: marks whose places are positions in bytes.
    frame_marks: Marks | None = None
    # Whether the file is a container whose packets can be read by their time stamps: mp4, m4a or webm.
    has_time_stamps: bool = False


class ByteReader:
    """A reader for any position of a file, which keeps some kilobytes in memory.

    Args:
        file: The file, open for reading.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.n_bytes = file.seek(0, os.SEEK_END)
        self._start = 0
        self._content = b""

    def read(self, position: int, n_bytes: int) -> bytes:
        """Read some bytes: fewer where the file ends, and none behind its end."""
        offset = position - self._start
        if offset < 0 or offset + n_bytes > len(self._content):
            if position >= self.n_bytes:
                return b""
            self.file.seek(position)
            self._content = self.file.read(max(n_bytes, _BUFFER_BYTES))
            self._start = position
            offset = 0
        return self._content[offset : offset + n_bytes]


def falls_short(got_s: float, wanted_s: float) -> bool:
    """Tell whether more than 0.5 s and more than 5 % are missing.

    This is the line between a header that rounds and a file that was cut.

    Example:
        >>> falls_short(9.6, 10.0), falls_short(9.4, 10.0)
        (False, True)
    """
    return wanted_s - got_s > max(0.5, 0.05 * wanted_s)


def identify_file(file: BinaryIO) -> tuple[int, ...]:
    """Return a key under which the facts about an open file, or about contents in memory, are remembered.

    Returns:
        For a file: its device, its inode, its size and the time of its last change. For contents in memory: their
        length and hash.
    """
    if isinstance(file, io.BytesIO):
        # Contents that nobody has changed are not copied by `getvalue`.
        content = file.getvalue()
        return (len(content), hash(content))
    state = os.fstat(file.fileno())
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
