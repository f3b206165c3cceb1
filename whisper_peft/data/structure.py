"""What a sound file states about itself, and the window through which the readers of its structure look at it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

_WINDOW_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Structure:
    """What a file's own structure says, read without decoding."""

    stated_s: float | None = None  # where the decoders do not know it
    present_share: float = 1.0  # bytes of samples in the file / bytes its header states; decoders take the former
    cut_off: bool = False  # the file ends inside one of its own parts
    for_soundfile: bool = True
    refusal: str | None = None  # why no decoder should be given this file


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
