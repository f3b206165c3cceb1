"""The frames of MPEG audio (mp3, mp2, mp1): how many there are, and where decoding can begin."""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from whisper_peft.data.structure import Marks, Structure, falls_short
from whisper_peft.data.xing import find_name, is_counted_alike

# Pictures, tags and noise in an mp3 hold some thousand places that look like the beginning of a frame.
_MOST_FALSE_FRAMES = 100_000
# Bit rates of MPEG audio, in kbit/s: by version (True for MPEG 1, False for 2 and 2.5) and layer, then by their code.
_KBIT_S = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Sampling rates of MPEG 1, by their code.
_MPEG_RATES_HZ = (44_100, 48_000, 32_000)
# By the code of the version: how often the sampling rate is halved. 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5.
_RATE_HALVINGS = {3: 0, 2: 1, 0: 2}
# The first frame has to begin within this number of bytes.
_FIRST_FRAME_WITHIN_BYTES = 1 << 16
# An ID3v1 tag or an APE tag may stand behind the last frame of an mp3.
_TAGS_AT_THE_END = (b"TAG", b"APE")


class MpegFrame(NamedTuple):
    """The facts that the header of a frame of MPEG audio states."""

    n_bytes: int
    n_samples: int
    rate_hz: int

    @property
    def kind(self) -> tuple[int, int]:
        """Samples and rate, which are the same in all frames of a file."""
        return self.n_samples, self.rate_hz


class _TooManyFalseFramesError(Exception):
    """The file has more places that only look like frames than any file of sound has."""


def read_mpeg_header(data: bytes, position: int) -> MpegFrame | None:
    """Read the header of a frame of MPEG audio; None if no frame starts here."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
        return None
    # Version 1 and layer 4 are reserved.
    version = data[position + 1] >> 3 & 3
    layer = 4 - (data[position + 1] >> 1 & 3)
    bit_rate_code = data[position + 2] >> 4
    rate_code = data[position + 2] >> 2 & 3
    # Bit rate 0 is "free": the header does not state a size.
    if version == 1 or layer == 4 or bit_rate_code in (0, 15) or rate_code == 3:
        return None
    is_mpeg_1 = version == 3
    rate_hz = _MPEG_RATES_HZ[rate_code] >> _RATE_HALVINGS[version]
    bit_s = _KBIT_S[is_mpeg_1, layer][bit_rate_code] * 1000
    padding = data[position + 2] >> 1 & 1
    if layer == 1:
        return MpegFrame((12 * bit_s // rate_hz + padding) * 4, 384, rate_hz)
    n_samples = 576 if layer == 3 and not is_mpeg_1 else 1152
    return MpegFrame(n_samples // 8 * bit_s // rate_hz + padding, n_samples, rate_hz)


def read_mpeg_audio(data: bytes, begin: int) -> Structure:
    """Count the frames of an mp3, mp2 or mp1, and read the count in the Xing header, if there is one.

    Args:
        data: The whole file.
        begin: Position behind the ID3 tags.
    """
    walk = _MpegWalk(data, begin)
    try:
        first = walk.find_first()
        if first is None:
            # An ID3 tag may stand before something else, as before flac, and frames of free bit rate state no size.
            # If the file is neither, libsndfile would only look for a frame and complain on stderr.
            is_junk = begin == 0 and data[2:3] >= b"\x10"
            return Structure(for_soundfile=not is_junk)
        walk.count_from(first)
    except _TooManyFalseFramesError:
        return Structure(refusal=f"damaged: more than {_MOST_FALSE_FRAMES:,} places that only look like mp3 frames")
    frame_s = first.n_samples / first.rate_hz
    whole_s = max(0, walk.n_frames) * frame_s
    stated_s = walk.n_stated * frame_s
    marks = walk.marks()
    # libsndfile decodes as many frames as Xing states. Without a Xing header (Common Voice has none), it guesses a
    # number from the bit rate of the first frame. So libsndfile decodes only files whose Xing count is right.
    # PyAV decodes the others, because it reads to the end of the file.
    #
    # There are fewer frames than Xing states: the file is truncated.
    if falls_short(whole_s, stated_s):
        return Structure(stated_s=stated_s, for_soundfile=False)
    # The count is right, within what `falls_short` allows.
    if walk.n_stated and not falls_short(stated_s, whole_s):
        return Structure(frame_marks=marks)
    # There is no count, or one that is too small.
    return Structure(stated_s=whole_s, cut_off=walk.cut_off, for_soundfile=False, frame_marks=marks)


class _MpegWalk:
    """A walk over the frames of an mp3, mp2 or mp1.

    Args:
        data: The whole file.
        begin: Position behind the ID3 tags.
    """

    def __init__(self, data: bytes, begin: int):
        # Whole frames of sound; the frame of a Xing header is none.
        self.n_frames = 0
        # Frames that the Xing header states; 0 without one.
        self.n_stated = 0
        self.cut_off = False
        self._data = data
        self._begin = begin
        self._position = begin
        self._n_false = 0
        self._kind: tuple[int, int] | None = None
        self._xing_frame = b""
        # Positions of the marks, as long as each frame begins where the one before it ends.
        self._places = array("q")
        self._mark_packets = 1
        self._has_gaps = False

    def find_first(self) -> MpegFrame | None:
        """Go to the first frame that is followed by another one, or ends the file; None if there is none."""
        end = min(len(self._data), self._begin + _FIRST_FRAME_WITHIN_BYTES)
        while self._position < end:
            self._refuse_false_frames()
            frame = read_mpeg_header(self._data, self._position)
            if frame is None and self._data[self._position : self._position + 3] in _TAGS_AT_THE_END:
                break
            if frame is not None and self._is_followed(frame):
                return frame
            self._go_to_next(self._begin + _FIRST_FRAME_WITHIN_BYTES)
        return None

    def _is_followed(self, frame: MpegFrame) -> bool:
        """Tell whether another frame begins where this one ends, or the file ends before that place."""
        end = self._position + frame.n_bytes
        return end >= len(self._data) or read_mpeg_header(self._data, end) is not None

    def count_from(self, first: MpegFrame) -> None:
        """Count the frames from the first one on, and note the places of the marks."""
        self._kind = first.kind
        self._mark_packets = Marks.count_mark_packets(first.n_samples, first.rate_hz)
        self._read_xing(first)
        expected = self._begin
        while self._position < len(self._data):
            self._refuse_false_frames()
            frame = read_mpeg_header(self._data, self._position)
            is_cut_header = self._position + 4 > len(self._data) and self._data[self._position] == 0xFF
            if is_cut_header:
                self.cut_off = True
                break
            if frame is None or frame.kind != self._kind:
                if self._data[self._position : self._position + 3] in _TAGS_AT_THE_END:
                    break
                self._go_to_next(len(self._data))
                continue
            self._has_gaps = self._has_gaps or self._position != expected
            if not self._has_gaps and self.n_frames >= 0 and self.n_frames % self._mark_packets == 0:
                self._places.append(self._position)
            expected = self._position + frame.n_bytes
            self.cut_off = expected > len(self._data)
            if not self.cut_off:
                self.n_frames += 1
            self._position = expected

    def marks(self) -> Marks | None:
        """Return the places at which decoding can begin; None if the decoders would not agree on them."""
        if self._kind is None or not self._places or self._has_gaps:
            return None
        start = self._data[self._begin : self._begin + 200]
        if not is_counted_alike(start, self._xing_frame, self.n_frames, self.n_stated):
            return None
        n_samples, rate_hz = self._kind
        return Marks(n_samples, rate_hz, self._mark_packets, self._places, self._xing_frame)

    def _read_xing(self, first: MpegFrame) -> None:
        """Read the Xing header in the first frame, if there is one."""
        name = find_name(self._data[self._position : self._position + 64])
        if name < 0:
            return
        name += self._position
        # The count starts one lower, because this frame holds no sound.
        self.n_frames -= 1
        parts, stated = struct.unpack(">II", self._data[name + 4 : name + 12].ljust(8, b"\0"))
        states_frames = parts & 1
        if states_frames:
            self.n_stated = stated
        self._xing_frame = self._data[self._position : self._position + first.n_bytes]

    def _go_to_next(self, before: int) -> None:
        self._position, n_seen = _find_next_mpeg_frame(self._data, self._position + 1, self._kind, before)
        self._n_false += n_seen

    def _refuse_false_frames(self) -> None:
        if self._n_false > _MOST_FALSE_FRAMES:
            raise _TooManyFalseFramesError


def _find_next_mpeg_frame(data: bytes, position: int, kind: tuple[int, int] | None, before: int) -> tuple[int, int]:
    """Find the next frame that is followed by another one, or ends the file.

    Args:
        data: The whole file.
        position: Where the search begins.
        kind: Samples and rate of the frame that is looked for; None for any frame.
        before: Where the search ends.

    Returns:
        The position of the frame, or len(data) if there is none, and how many places were looked at. The search ends
        after 100,000 places.
    """
    n_seen = 0
    while (position := data.find(b"\xff", position, before)) >= 0:
        n_seen += 1
        frame = read_mpeg_header(data, position)
        if frame and (kind is None or frame.kind == kind):
            end = position + frame.n_bytes
            after = read_mpeg_header(data, end)
            if (after and after.kind == frame.kind) or end == len(data):
                return position, n_seen
        if n_seen > _MOST_FALSE_FRAMES:
            return position, n_seen
        position += 1
    return len(data), n_seen
