"""What a sound file states about itself, read without decoding it: is it all there?

Decoders are quiet about cut files: libsndfile takes a shorter wav or ogg for a whole one and stops at its own guess of
the length of an mp3 without a frame count; the webm of a browser states no length at all. So this reads the sizes of
chunks, pages, elements and frames. What it cannot see: an mp3 without a frame count that is cut exactly between two
frames, an ogg exactly between two pages, and a wav written into a pipe, which states no size.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Structure:
    """What a file's own structure says, read without decoding."""

    stated_s: float | None = None  # where the decoders do not know it
    present_share: float = 1.0  # bytes of samples in the file / bytes its header states; decoders take the former
    cut_off: bool = False  # the file ends inside one of its own parts
    for_soundfile: bool = True


def read_structure(file: BinaryIO) -> Structure:
    """Read what a file, of one byte at least, states about itself; leaves the position anywhere."""
    file.seek(0)
    head = file.read(12)
    n_bytes = file.seek(0, os.SEEK_END)
    if head[:4] in (b"RIFF", b"RIFX", b"FORM", b"caff", b".snd"):
        return _sample_chunk(file, head, n_bytes)
    if head[:4] == b"OggS":
        return Structure(cut_off=_ogg_cut_off(file, n_bytes))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Structure(cut_off=_webm_cut_off(file, n_bytes))
    if head[4:8] == b"ftyp":
        return Structure(cut_off=_mp4_cut_off(file, n_bytes))
    if head[:3] == b"ID3" or (head[0] == 0xFF and len(head) > 1 and head[1] >= 0xE0):
        file.seek(0)
        return _mp3_structure(file.read())
    return Structure()


def falls_short(got_s: float, wanted_s: float) -> bool:
    """Tell whether more than 0.5 s and more than 5 % are missing: the line between a rounded header and a cut file."""
    return wanted_s - got_s > max(0.5, 0.05 * wanted_s)


def _sample_chunk(file: BinaryIO, head: bytes, n_bytes: int) -> Structure:
    """The chunk of samples in wav, aiff, caf and au: the bytes it states against those that are there."""
    size_format = {b"RIFF": "<I", b"RIFX": ">I", b"FORM": ">I", b"caff": ">Q", b".snd": ">I"}[head[:4]]
    if head[:4] == b".snd":
        position, stated = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
    else:
        position, stated = (8 if head[:4] == b"caff" else 12), 0
        while True:
            file.seek(position)
            header = file.read(4 + struct.calcsize(size_format))
            if len(header) < 4 + struct.calcsize(size_format):
                return Structure()  # no samples: the decoder says so
            (stated,) = struct.unpack(size_format, header[4:])
            position += len(header)
            if header[:4] in (b"data", b"SSND"):
                break
            position += stated + (0 if head[:4] == b"caff" else stated % 2)  # chunks start at even bytes
    present = n_bytes - position
    # Whoever writes into a pipe cannot go back to fill in the size: ffmpeg and sox leave numbers near 2**31 and 2**32.
    if present <= 0 or present >= stated or stated >= (1 << 63 if size_format == ">Q" else 0x7FFF_0000):
        return Structure()
    return Structure(present_share=present / stated, cut_off=falls_short(present, stated))


def _ogg_cut_off(file: BinaryIO, n_bytes: int) -> bool:
    """Whether the last page is incomplete, or followed by something else without being marked as the last."""
    file.seek(max(0, n_bytes - (1 << 17)))  # two of the longest pages
    tail = file.read()
    start = tail.rfind(b"OggS")
    n_segments = tail[start + 26] if 0 <= start < len(tail) - 26 else 0
    lacing = tail[start + 27 : start + 27 + n_segments]
    if start < 0 or start + 27 > len(tail) or len(lacing) < n_segments:
        return True
    end = start + 27 + n_segments + sum(lacing)
    is_last = bool(tail[start + 5] & 4)
    return end > len(tail) or (end < len(tail) and not is_last)


def _webm_cut_off(file: BinaryIO, n_bytes: int) -> bool:
    """Whether an element reaches past the end of the file (RFC 8794; a live recording has segments of unknown size)."""
    enter = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # Segment, Cluster: their contents are walked
    position = 0
    while position < n_bytes:
        file.seek(position)
        header = file.read(12)
        id_length = 9 - header[0].bit_length()  # leading zeros tell the length of a number
        size_length = 9 - header[id_length].bit_length() if id_length < len(header) else 9
        if id_length > 4:
            return False  # no element here: something appended, or zeros
        if size_length > 8 or len(header) < id_length + size_length:
            return True
        element_id, size_bytes = header[:id_length], header[id_length : id_length + size_length]
        value_bits = 7 * size_length
        size = int.from_bytes(size_bytes, "big") & ((1 << value_bits) - 1)
        is_known = size != (1 << value_bits) - 1
        position += id_length + size_length
        if is_known and position + size > n_bytes:
            return True
        if element_id not in enter:
            if not is_known:
                return False
            position += size
    return False


def _mp4_cut_off(file: BinaryIO, n_bytes: int) -> bool:
    """Whether a box of the top level reaches past the end of the file."""
    position = 0
    while position + 8 <= n_bytes:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:
            return False  # 0: to the end of the file
        position += size
    return position > n_bytes


_KBIT_S = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _mp3_frame(data: bytes, position: int) -> tuple[int, int, int] | None:
    """Read a frame header: (bytes, samples, rate in Hz) of the frame, or None if none starts here."""
    if position + 4 > len(data) or data[position] != 0xFF or data[position + 1] & 0xE6 != 0xE2:  # sync, layer III
        return None
    version = data[position + 1] >> 3 & 3  # 3: MPEG 1; 2: MPEG 2; 0: MPEG 2.5
    bit_rate, rate = data[position + 2] >> 4, data[position + 2] >> 2 & 3
    if version == 1 or bit_rate in (0, 15) or rate == 3:
        return None
    rate_hz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    n_samples = 1152 if version == 3 else 576
    size = n_samples // 8 * _KBIT_S[version == 3][bit_rate] * 1000 // rate_hz + (data[position + 2] >> 1 & 1)
    return size, n_samples, rate_hz


def _mp3_structure(data: bytes) -> Structure:
    """Count the frames, and read the count in the Xing header, if there is one."""
    position = 0
    if data[:3] == b"ID3":
        position = 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(data[6:10]))
    kind, n_frames, n_stated, cut_off = None, 0, 0, False
    sound_begins_before = position + (1 << 16)
    while position < (len(data) if kind else min(len(data), sound_begins_before)):
        frame = _mp3_frame(data, position)
        if kind and position + 4 > len(data) and data[position] == 0xFF:
            cut_off = True  # within a header
            break
        if frame is None or (kind and frame[1:] != kind):
            if data[position : position + 3] in (b"TAG", b"APE"):
                break
            position = _next_mp3_frame(data, position + 1, kind)
            continue
        if kind is None:
            if position + frame[0] < len(data) and _mp3_frame(data, position + frame[0]) is None:
                position = _next_mp3_frame(data, position + 1, None)
                continue
            kind = frame[1:]
            xing = max(data.find(b"Xing", position, position + 64), data.find(b"Info", position, position + 64))
            if xing >= 0:
                n_frames -= 1  # it holds no sound
                flags, stated = struct.unpack(">II", data[xing + 4 : xing + 12].ljust(8, b"\0"))
                n_stated = stated if flags & 1 else 0
        cut_off = position + frame[0] > len(data)
        n_frames += not cut_off
        position += frame[0]
    if kind is None:
        return Structure()  # not mp3: an ID3 tag before flac or aac
    frame_s = kind[0] / kind[1]
    whole_s, stated_s = max(0, n_frames) * frame_s, n_stated * frame_s
    # libsndfile decodes as many frames as Xing states and, without one (Common Voice has none), as many as it guesses
    # from the first frame's bit rate. So it gets the files whose statement is true, and PyAV, which reads on, the rest.
    if falls_short(whole_s, stated_s):
        return Structure(stated_s=stated_s, for_soundfile=False)
    if n_stated and not falls_short(stated_s, whole_s):
        return Structure()
    return Structure(stated_s=whole_s, cut_off=cut_off, for_soundfile=False)


def _next_mp3_frame(data: bytes, position: int, kind: tuple[int, int] | None) -> int:
    """Position of the next frame that is followed by another one (or ends the file); len(data) if there is none."""
    while (position := data.find(b"\xff", position)) >= 0:
        frame = _mp3_frame(data, position)
        if frame and (kind is None or frame[1:] == kind):
            after = _mp3_frame(data, position + frame[0])
            if (after and after[1:] == frame[1:]) or position + frame[0] == len(data):
                return position
        position += 1
    return len(data)
