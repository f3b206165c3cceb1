"""Files that are nothing but frames, blocks or packets of sound: how many there are, and whether the last one is whole.

Most of them state no length. So a cut exactly between two frames cannot be seen; any other one can.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import BinaryIO

from whisper_peft.data.structure import Marks, Structure, Window, falls_short
from whisper_peft.data.xing import is_counted_alike, name_position

# Pictures, tags and noise in an mp3 hold some thousand bytes that look like the beginning of a frame.
_MOST_FALSE_FRAMES = 100_000
_MOST_FRAMES = 4_000_000
_TS_TAIL_BYTES = 1 << 22


def read_frames(file: BinaryIO, window: Window) -> Structure:
    """Read the frames of mp3, mp2, aac, ac3, amr and wavpack files, and of MPEG transport and program streams."""
    begin = _behind_id3(window)
    head = window.read(begin, 12)
    if head[:6] == b"#!AMR\n":
        return _amr(window, begin + 6, _AMR_BYTES)
    if head[:9] == b"#!AMR-WB\n":
        return _amr(window, begin + 9, _AMR_WB_BYTES)
    if head[:4] == b"wvpk":
        return _chain(window, begin, _wavpack_bytes, lambda header: 0.0)
    if head[:2] == b"\x0b\x77":
        return _chain(window, begin, _ac3_bytes, _ac3_seconds)
    if head[:4] == b"\0\0\1\xba":
        return _program_stream(window, begin)
    for packet_bytes, at in ((188, 0), (192, 4), (204, 0)):
        syncs = [window.read(at + number * packet_bytes, 1) for number in range(3)]
        if syncs == [b"G"] * 3:
            return _transport_stream(window, packet_bytes, at)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _adts(window, begin)
    if begin or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0):
        file.seek(0)
        return _mpeg_audio(file.read(), begin)
    return Structure()


def _behind_id3(window: Window) -> int:
    """Position behind the ID3 tags at the beginning; 0 without one."""
    position = 0
    for _ in range(100):
        header = window.read(position, 10)
        if header[:3] != b"ID3" or len(header) < 10:
            break
        position += 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(header[6:10]))
    return position


def _chain(
    window: Window, position: int, size_of: Callable[[bytes], int], seconds_of: Callable[[bytes], float]
) -> Structure:
    """Walk frames, each of which states its size in its first 16 bytes.

    Args:
        window: Of the file.
        position: Of the first frame.
        size_of: Header -> bytes of its frame; 0 where none begins; -1 where the header itself is cut.
        seconds_of: Header -> seconds of sound in its frame; 0 where it does not say.
    """
    seconds = 0.0
    for _ in range(_MOST_FRAMES):
        header = window.read(position, 16)
        size = size_of(header) if header else 0
        if size == 0:
            return Structure(stated_s=seconds or None)  # the end, tags, or another kind of frame
        if size < 0 or position + size > window.n_bytes:
            return Structure(stated_s=seconds or None, cut_off=True)
        seconds += seconds_of(header)
        position += size
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


def is_part_of_a_frame(packet: bytes) -> bool:
    """Tell whether a packet of MPEG audio or AC-3, as a demuxer gives it, is shorter than its own header says."""
    frame = _mpeg_frame(packet, 0)
    return len(packet) < (frame[0] if frame else _ac3_bytes(packet[:16]))


def _wavpack_bytes(header: bytes) -> int:
    if not header.startswith(b"wvpk"):
        return -1 if b"wvpk".startswith(header) else 0
    if len(header) < 8:
        return -1
    return 8 + struct.unpack("<I", header[4:8])[0]


_AC3_KBIT_S = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def _ac3_bytes(header: bytes) -> int:
    """Bytes of a frame of AC-3 or, by its stream id over 10, of E-AC-3 (ETSI TS 102 366, 4.4.1 and E.1.2)."""
    if not header.startswith(b"\x0b\x77"):
        return -1 if header == b"\x0b" else 0
    if len(header) < 6:
        return -1
    if header[5] >> 3 > 10:
        return 2 * (((header[2] & 7) << 8 | header[3]) + 1)
    rate_code, size_code = header[4] >> 6, header[4] & 63
    if rate_code == 3 or size_code >= 2 * len(_AC3_KBIT_S):
        return 0
    kbit_s = _AC3_KBIT_S[size_code // 2]
    words = {0: 2 * kbit_s, 1: kbit_s * 96_000 // 44_100 + size_code % 2, 2: 3 * kbit_s}  # 48, 44.1 and 32 kHz
    return 2 * words[rate_code]


def _ac3_seconds(header: bytes) -> float:
    """Seconds of a whole frame of AC-3 or E-AC-3; 0 for one that only adds channels to the frame before."""
    rate_hz = (48_000, 44_100, 32_000, 0)[header[4] >> 6]
    if header[5] >> 3 <= 10:
        return 1536 / rate_hz if rate_hz else 0.0
    if header[2] >> 6 == 1:
        return 0.0
    if rate_hz == 0:  # half the rates, always six blocks
        return 1536 * 2 / (48_000, 44_100, 32_000, 48_000)[header[4] >> 4 & 3]
    return 256 * (1, 2, 3, 6)[header[4] >> 4 & 3] / rate_hz


_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)  # by frame type (RFC 4867, section 5.3)
_AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)
_AMR_FRAME_S = 0.02


def _amr(window: Window, position: int, frame_bytes: tuple[int, ...]) -> Structure:
    """Count the frames of an amr file of one channel."""
    for n_frames in range(_MOST_FRAMES):
        header = window.read(position, 1)
        if not header:
            return Structure(stated_s=n_frames * _AMR_FRAME_S or None)
        position += frame_bytes[header[0] >> 3 & 15]
        if position > window.n_bytes:
            return Structure(stated_s=n_frames * _AMR_FRAME_S or None, cut_off=True)
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


_ADTS_RATES_HZ = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
)  # fmt: skip


def _adts(window: Window, position: int) -> Structure:
    """Count the frames of an aac file (ISO/IEC 13818-7, section 6.2)."""
    seconds = 0.0
    for _ in range(_MOST_FRAMES):
        header = window.read(position, 7)
        if not header or not (header[0] == 0xFF and (len(header) < 2 or header[1] & 0xF6 == 0xF0)):
            return Structure(stated_s=seconds or None)  # the end, or tags
        if len(header) < 7:
            return Structure(stated_s=seconds or None, cut_off=True)
        rate = header[2] >> 2 & 15
        size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        if rate >= len(_ADTS_RATES_HZ) or size < 7:
            return Structure()
        if size == 7 and seconds == 0.0:
            return Structure(refusal="cannot be read as audio (its first aac frame is empty)")
        if position + size > window.n_bytes:
            return Structure(stated_s=seconds or None, cut_off=True)
        seconds += 1024 * ((header[6] & 3) + 1) / _ADTS_RATES_HZ[rate]
        position += size
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


def _program_stream(window: Window, position: int) -> Structure:
    """Walk the packs and packets of an MPEG program stream (mpg, vob; ISO/IEC 13818-1, section 2.5.3)."""
    for _ in range(_MOST_FRAMES):
        header = window.read(position, 14)
        if not header or header[:4] == b"\0\0\1\xb9":  # the end, or the code that says so
            return Structure()
        if len(header) < 4:
            return Structure(cut_off=b"\0\0\1".startswith(header[:3]))
        if header[:3] != b"\0\0\1":
            return Structure()  # padding
        if header[3] == 0xBA:
            is_mpeg_2 = len(header) > 4 and header[4] >> 6 == 1
            size = 14 + (header[13] & 7) if is_mpeg_2 and len(header) == 14 else 12
        else:
            payload = int.from_bytes(header[4:6], "big")
            if payload == 0 and len(header) >= 6:
                return Structure()  # of no stated size
            size = 6 + payload
        position += size
        if position > window.n_bytes:
            return Structure(cut_off=True)
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} packets")


def _transport_stream(window: Window, packet_bytes: int, sync_at: int) -> Structure:
    """Whether the last packet of an MPEG transport stream, or the last stretch of sound in it, is incomplete.

    A stretch of sound (PES packet) states its size and is carried by many packets (ISO/IEC 13818-1, section 2.4.3).
    """
    n_packets, rest = divmod(window.n_bytes, packet_bytes)
    missing: dict[int, int] = {}  # stream -> bytes that its last stretch still lacks
    for number in range(max(0, n_packets - _TS_TAIL_BYTES // packet_bytes), n_packets):
        packet = window.read(number * packet_bytes + sync_at, 188)
        if packet[:1] != b"G":
            return Structure()  # something else from here on
        stream = (packet[1] & 0x1F) << 8 | packet[2]
        payload = 4
        if packet[3] & 0x20:
            payload += 1 + packet[4]
        if not packet[3] & 0x10 or payload >= len(packet):
            continue
        if packet[1] & 0x40:
            missing.pop(stream, None)
            start = packet[payload : payload + 6]
            is_sound = (
                start[:3] == b"\0\0\1" and len(start) == 6 and (start[3] & 0xE0 == 0xC0 or start[3] in (0xBD, 0xFD))
            )
            stated = int.from_bytes(start[4:6], "big")
            if is_sound and stated:
                missing[stream] = 6 + stated
        if stream in missing:
            missing[stream] -= len(packet) - payload
    return Structure(cut_off=rest > 0 or any(lacking > 0 for lacking in missing.values()))


# By version (MPEG 1, or 2 and 2.5) and layer.
_KBIT_S = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mpeg_frame(data: bytes, position: int) -> tuple[int, int, int] | None:
    """Read a frame header of MPEG audio: (bytes, samples, rate in Hz) of the frame, or None if none starts here."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xE0 != 0xE0:
        return None
    version = data[position + 1] >> 3 & 3  # 3: MPEG 1; 2: MPEG 2; 0: MPEG 2.5
    layer = 4 - (data[position + 1] >> 1 & 3)  # 4: reserved
    bit_rate, rate = data[position + 2] >> 4, data[position + 2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_mpeg_1 = version == 3
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bit_s = _KBIT_S[is_mpeg_1, layer][bit_rate] * 1000
    padding = data[position + 2] >> 1 & 1
    if layer == 1:
        return (12 * bit_s // rate_hz + padding) * 4, 384, rate_hz
    n_samples = 576 if layer == 3 and not is_mpeg_1 else 1152
    return n_samples // 8 * bit_s // rate_hz + padding, n_samples, rate_hz


def _mpeg_audio(data: bytes, begin: int) -> Structure:
    """Count the frames of an mp3, mp2 or mp1, and read the count in the Xing header, if there is one."""
    position = begin
    kind, n_frames, n_stated, cut_off = None, 0, 0, False
    places = array("q")  # of every step-th frame, as long as each begins where the one before it ends
    step = 0
    has_gaps = False
    head = b""
    next_frame = begin
    sound_begins_before = position + (1 << 16)
    n_false = 0
    while position < (len(data) if kind else min(len(data), sound_begins_before)):
        if n_false > _MOST_FALSE_FRAMES:
            return Structure(refusal=f"damaged: more than {_MOST_FALSE_FRAMES:,} places that only look like mp3 frames")
        frame = _mpeg_frame(data, position)
        if kind and position + 4 > len(data) and data[position] == 0xFF:
            cut_off = True  # within a header
            break
        if frame is None or (kind and frame[1:] != kind):
            if data[position : position + 3] in (b"TAG", b"APE"):
                break
            position, n_seen = _next_mpeg_frame(data, position + 1, kind, len(data) if kind else sound_begins_before)
            n_false += n_seen
            continue
        if kind is None:
            if position + frame[0] < len(data) and _mpeg_frame(data, position + frame[0]) is None:
                position, n_seen = _next_mpeg_frame(data, position + 1, None, sound_begins_before)
                n_false += n_seen
                continue
            kind = frame[1:]
            xing = name_position(data[position : position + 64])
            if xing >= 0:
                xing += position
                n_frames -= 1  # it holds no sound
                flags, stated = struct.unpack(">II", data[xing + 4 : xing + 12].ljust(8, b"\0"))
                n_stated = stated if flags & 1 else 0
                head = data[position : position + frame[0]]
            step = Marks.step_of(*kind)
        has_gaps = has_gaps or position != next_frame
        if not has_gaps and n_frames >= 0 and n_frames % step == 0:
            places.append(position)
        cut_off = position + frame[0] > len(data)
        n_frames += not cut_off
        position += frame[0]
        next_frame = position
    if kind is None:
        # An ID3 tag may stand before something else, as before flac, and frames of free bit rate state no size. Where
        # it is neither, libsndfile would only look for a frame and complain on stderr.
        is_junk = begin == 0 and data[2:3] >= b"\x10"
        return Structure(for_soundfile=not is_junk)
    frame_s = kind[0] / kind[1]
    whole_s, stated_s = max(0, n_frames) * frame_s, n_stated * frame_s
    marks = None
    if places and not has_gaps and is_counted_alike(data[begin : begin + 200], head, n_frames, n_stated):
        marks = Marks(kind[0], kind[1], step, places, head)
    # libsndfile decodes as many frames as Xing states and, without one (Common Voice has none), as many as it guesses
    # from the first frame's bit rate. So it gets the files whose statement is true, and PyAV, which reads on, the rest.
    if falls_short(whole_s, stated_s):
        return Structure(stated_s=stated_s, for_soundfile=False)
    if n_stated and not falls_short(stated_s, whole_s):
        return Structure(frame_marks=marks)
    return Structure(stated_s=whole_s, cut_off=cut_off, for_soundfile=False, frame_marks=marks)


def _next_mpeg_frame(data: bytes, position: int, kind: tuple[int, int] | None, before: int) -> tuple[int, int]:
    """Find the next frame that is followed by another one, or ends the file.

    Args:
        data: The whole file.
        position: Where to begin.
        kind: Samples and rate of the frame that is looked for; None for any.
        before: Where to end.

    Returns:
        Its position, or len(data) if there is none, and how many false ones were looked at; the search ends after
        100,000 of them.
    """
    n_seen = 0
    while (position := data.find(b"\xff", position, before)) >= 0:
        n_seen += 1
        frame = _mpeg_frame(data, position)
        if frame and (kind is None or frame[1:] == kind):
            after = _mpeg_frame(data, position + frame[0])
            if (after and after[1:] == frame[1:]) or position + frame[0] == len(data):
                return position, n_seen
        if n_seen > _MOST_FALSE_FRAMES:
            return position, n_seen
        position += 1
    return len(data), n_seen
