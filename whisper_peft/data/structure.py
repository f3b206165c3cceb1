"""What a sound file states about itself, and the window through which the readers of its structure look at it."""

from __future__ import annotations

import io
import os
from array import array
from dataclasses import dataclass
from typing import BinaryIO

_WINDOW_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Marks:
    """Places in a recording at which decoding can begin, about one a second.

    The recording consists of packets that all hold the same number of samples, so the number of a packet tells how
    many samples come before it.
    """

    packet_samples: int
    rate_hz: int
    step: int  # packets from one mark to the next; the first mark is the first packet
    places: array[int]  # one for each mark: the position of its packet in bytes, or the time stamp of its packet
    head: bytes = b""  # of an mp3: the frame that holds no sound but says what the decoder drops at both ends
    n_dropped: int = 0  # where the places are time stamps: samples that the decoder drops at the beginning
    may_be_noisy: bool = False  # the decoder makes noise of its own where the encoder asks for it

    @staticmethod
    def step_of(packet_samples: int, rate_hz: int) -> int:
        """Compute how many packets lie between two marks."""
        return max(1, round(rate_hz / packet_samples))

    def number_before(self, start_s: float) -> int | None:
        """Find the mark from which a piece is decoded.

        It lies one to two seconds before the piece, because a decoder needs some packets until its samples are right:
        an mp3 frame takes bits from up to 511 bytes before it, and Opus asks for 80 ms.

        Args:
            start_s: Start of the piece, in seconds.

        Returns:
            Number of the mark; None where the piece is so close to the beginning that decoding begins there.
        """
        packet = int(start_s * self.rate_hz) // self.packet_samples
        number = min(packet // self.step, len(self.places) - 1) - 1
        return number if number > 0 else None

    def samples_before(self, number: int) -> int:
        """Count the samples of the packets before a mark."""
        return number * self.step * self.packet_samples


@dataclass(frozen=True, slots=True)
class Structure:
    """What a file's own structure says, read without decoding."""

    stated_s: float | None = None  # where the decoders do not know it
    present_share: float = 1.0  # bytes of samples in the file / bytes its header states; decoders take the former
    cut_off: bool = False  # the file ends inside one of its own parts
    for_soundfile: bool = True
    refusal: str | None = None  # why no decoder should be given this file
    frame_marks: Marks | None = None  # of MPEG audio whose frames follow each other without a gap; in bytes
    has_time_stamps: bool = False  # a container from which packets can be read by their time stamps: mp4, m4a, webm


class Window:
    """A file that is read at any position, some kilobytes at a time.

    Args:
        file: Open for reading.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.n_bytes = file.seek(0, os.SEEK_END)
        self._start = 0
        self._content = b""

    def read(self, position: int, n_bytes: int) -> bytes:
        """Read some bytes; fewer where the file ends, none behind its end."""
        offset = position - self._start
        if offset < 0 or offset + n_bytes > len(self._content):
            if position >= self.n_bytes:
                return b""
            self.file.seek(position)
            self._content = self.file.read(max(n_bytes, _WINDOW_BYTES))
            self._start = position
            offset = 0
        return self._content[offset : offset + n_bytes]


def falls_short(got_s: float, wanted_s: float) -> bool:
    """Tell whether more than 0.5 s and more than 5 % are missing: the line between a rounded header and a cut file."""
    return wanted_s - got_s > max(0.5, 0.05 * wanted_s)


def identity_of(file: BinaryIO) -> tuple[int, ...]:
    """Give what tells an open file, or its contents in memory, from every other one, to remember what was read of it.

    Returns:
        Of a file: where it lies, its size and when it was changed. Of contents: their length and hash.
    """
    if isinstance(file, io.BytesIO):
        content = file.getvalue()  # not copied
        return (len(content), hash(content))
    state = os.fstat(file.fileno())
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
