"""What a sound file's container states, read without decoding it: is it all there?

Decoders are quiet about cut files: libsndfile takes a shorter wav or ogg for a whole one, and FFmpeg's libraries do so
with avi, asf and others. So this reads the sizes of chunks, pages, elements and boxes. It cannot see a cut exactly
between two pages or elements, and a wav, aiff, au or caf that was written into a pipe states no size at all.

The walks are bounded: a file of a few megabytes can hold a million parts of nothing.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from whisper_peft.data.frames import read_frames
from whisper_peft.data.structure import Structure, Window, falls_short

__all__ = ["Structure", "falls_short", "read_structure"]

# Recorders write a few dozen chunks. A day of sound in fragments of a second has 200,000 boxes, and half a day of
# Opus packets has 3,000,000 elements.
_MOST_CHUNKS = 10_000
_MOST_BOXES = 500_000
_MOST_ELEMENTS = 3_000_000

_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")


def read_structure(file: BinaryIO) -> Structure:
    """Read what a file of at least one byte states about itself; leaves the position anywhere."""
    window = Window(file)
    head = window.read(0, 20)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _avi(window)
    if head[:4] in _CHUNKED:
        return _sample_chunk(window, _CHUNKED[head[:4]])
    if head[:4] == b".snd":
        position, stated = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
        return _samples(window, position, stated, most_stated=0x7FFF_0000)
    if head[:4] == b"OggS":
        return Structure(cut_off=_ogg_cut_off(window))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return dataclasses.replace(_webm(window), has_time_stamps=True)
    if head[4:8] in _MP4_BOXES:
        return dataclasses.replace(_mp4(window), has_time_stamps=True)
    if head[:16] == _ASF_HEADER:
        return _asf(window)
    if head[:3] == b"FLV":
        return _flv(window)
    if head[:4] == b".RMF":
        return _real_media(window)
    if head[:4] in (b".SoX", b"XoS.") and len(head) == 20:
        # SoX's own format: size of the header, then the number of samples of 4 bytes. One from a pipe states 0 samples.
        header_bytes, n_samples = struct.unpack("<IQ" if head[:4] == b".SoX" else ">IQ", head[4:16])
        return _samples(window, 4 + header_bytes, 4 * n_samples, most_stated=1 << 62) if n_samples else Structure()
    if head == b"Creative Voice File\x1a":
        return _voc(window)
    if head[:8] == b"NIST_1A\n":
        return _nist(window)
    return read_frames(file, window)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How a family of files is cut into chunks: a name, a size and so many bytes."""

    first: int  # position of the first chunk
    header: str  # struct format of name and size
    of_samples: tuple[bytes, ...]
    most_stated: int  # sizes from here on stand for an unknown one
    alignment: int = 2
    size_of_header_too: bool = False  # whether the stated size counts the header


# Whoever writes into a pipe cannot go back to fill in the size: ffmpeg and sox leave numbers near 2**31 and 2**32.
_RIFF = _Chunks(12, "<4sI", (b"data",), 0x7FFF_0000)
_CHUNKED = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _Chunks(12, ">4sI", (b"data",), 0x7FFF_0000),
    b"FORM": _Chunks(12, ">4sI", (b"SSND", b"BODY"), 0x7FFF_0000),
    b"caff": _Chunks(8, ">4sQ", (b"data",), 1 << 63, alignment=1),
    b"riff": _Chunks(40, "<16sQ", (_W64_DATA,), 1 << 63, alignment=8, size_of_header_too=True),
}


def _sample_chunk(window: Window, chunks: _Chunks) -> Structure:
    """Find the chunk of samples in wav, wave64, rf64, aiff, 8svx and caf."""
    header_bytes = struct.calcsize(chunks.header)
    position = chunks.first
    size_of_ds64 = None
    for _ in range(_MOST_CHUNKS):
        header = window.read(position, header_bytes)
        if len(header) < header_bytes:
            return Structure()  # no samples: the decoder says so
        name, stated = struct.unpack(chunks.header, header)
        position += header_bytes
        if chunks.size_of_header_too:
            stated = max(0, stated - header_bytes)
        if name in chunks.of_samples:
            if stated == 0xFFFF_FFFF and size_of_ds64 is not None:
                return _samples(window, position, size_of_ds64, most_stated=1 << 63)
            return _samples(window, position, stated, chunks.most_stated)
        if name == b"ds64":  # the true sizes of an rf64 file (EBU Tech 3306): of the file, then of the samples
            (size_of_ds64,) = struct.unpack("<Q", window.read(position + 8, 8).ljust(8, b"\0"))
        position += stated + -stated % chunks.alignment
    return Structure(refusal=_too_many(_MOST_CHUNKS, "chunks before the sound"))


def _samples(window: Window, position: int, stated: int, most_stated: int) -> Structure:
    """Hold the bytes of samples that a file states against those that are there."""
    present = window.n_bytes - position
    if present <= 0 or present >= stated or stated >= most_stated:
        return Structure()
    return Structure(present_share=present / stated, cut_off=falls_short(present, stated))


def _too_many(most: int, parts: str) -> str:
    return f"damaged: more than {most:,} {parts}"


def _avi(window: Window) -> Structure:
    """Walk the lists of an avi; one that was written into a pipe states no sizes of them."""
    position = 0
    for _ in range(_MOST_ELEMENTS):
        header = window.read(position, 8)
        if len(header) < 8:
            return Structure(cut_off=len(header) > 0 or position > window.n_bytes + 1)
        name, size = struct.unpack("<4sI", header)
        if name not in (b"RIFF", b"LIST"):
            position += 8 + size + size % 2
        elif size in (0, 0xFFFF_FFFF):
            position += 12  # what is in the list comes next
        elif position + 8 + size > window.n_bytes + 1:
            present = window.n_bytes - position - 8
            return Structure(present_share=present / size, cut_off=falls_short(present, size))
        else:
            position += 8 + size + size % 2
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "chunks"))


def _ogg_cut_off(window: Window) -> bool:
    """Whether the last page is incomplete, or followed by something else without being marked as the last."""
    tail = window.read(max(0, window.n_bytes - (1 << 17)), 1 << 17)  # two of the longest pages
    start = tail.rfind(b"OggS")
    n_segments = tail[start + 26] if 0 <= start < len(tail) - 26 else 0
    lacing = tail[start + 27 : start + 27 + n_segments]
    if start < 0 or start + 27 > len(tail) or len(lacing) < n_segments:
        return True
    end = start + 27 + n_segments + sum(lacing)
    is_last = bool(tail[start + 5] & 4)
    return end > len(tail) or (end < len(tail) and not is_last)


def _webm(window: Window) -> Structure:
    """Whether an element reaches past the end of the file (RFC 8794; a live recording has segments of unknown size)."""
    enter = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")  # Segment, Cluster: their contents are walked
    position = 0
    for _ in range(_MOST_ELEMENTS):
        header = window.read(position, 12)
        if not header:
            return Structure()
        id_length = 9 - header[0].bit_length()  # leading zeros tell the length of a number
        size_length = 9 - header[id_length].bit_length() if id_length < len(header) else 9
        if id_length > 4:
            return Structure()  # no element here: something appended, or zeros
        if size_length > 8 or len(header) < id_length + size_length:
            return Structure(cut_off=True)
        element_id, size_bytes = header[:id_length], header[id_length : id_length + size_length]
        value_bits = 7 * size_length
        size = int.from_bytes(size_bytes, "big") & ((1 << value_bits) - 1)
        is_known = size != (1 << value_bits) - 1
        position += id_length + size_length
        if is_known and position + size > window.n_bytes:
            return Structure(cut_off=True)
        if element_id not in enter:
            if not is_known:
                return Structure()
            position += size
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "elements"))


def _mp4(window: Window) -> Structure:
    """Whether a box of the top level reaches past the end of the file."""
    position = 0
    for _ in range(_MOST_BOXES):
        if position + 8 > window.n_bytes:
            return Structure(cut_off=position > window.n_bytes)
        header = window.read(position, 16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:
            return Structure()  # 0: to the end of the file
        position += size
    return Structure(refusal=_too_many(_MOST_BOXES, "boxes"))


def _asf(window: Window) -> Structure:
    """Read how large and how long a wma or wmv was when it was whole (ASF specification, section 3.2)."""
    (header_size,) = struct.unpack("<Q", window.read(16, 8).ljust(8, b"\0"))
    position = 30
    for _ in range(_MOST_CHUNKS):
        header = window.read(position, 24)
        if len(header) < 24 or position >= header_size:
            return Structure()
        name, size = struct.unpack("<16sQ", header)
        if name == _ASF_FILE_PROPERTIES:
            break
        position += max(24, size)
    else:
        return Structure(refusal=_too_many(_MOST_CHUNKS, "objects in its header"))
    properties = window.read(position + 24, 68).ljust(68, b"\0")
    n_stated, duration, preroll_ms, flags = struct.unpack("<16xQ16xQ8xQI", properties)
    is_live = bool(flags & 1)
    if is_live:
        return Structure()
    stated_s = max(0.0, duration / 1e7 - preroll_ms / 1000)
    return Structure(stated_s=stated_s or None, cut_off=falls_short(window.n_bytes, n_stated))


def _flv(window: Window) -> Structure:
    """Whether a tag of a Flash video reaches past the end of the file."""
    position = 13
    for _ in range(_MOST_ELEMENTS):
        header = window.read(position, 11)
        if not header or header[0] & 0x1F not in (8, 9, 18):  # sound, picture, data
            return Structure()
        position += 11 + int.from_bytes(header[1:4], "big") + 4
        if position > window.n_bytes:
            return Structure(cut_off=True)
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "tags"))


def _real_media(window: Window) -> Structure:
    """Find the chunk of packets in a RealMedia file."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        header = window.read(position, 8)
        if len(header) < 8:
            return Structure()
        name, size = struct.unpack(">4sI", header)
        if name == b"DATA":
            return _samples(window, position, size, most_stated=0x7FFF_0000)
        position += max(8, size)
    return Structure(refusal=_too_many(_MOST_CHUNKS, "chunks before the sound"))


def _voc(window: Window) -> Structure:
    """Whether a block of a Creative Voice file reaches past its end."""
    (position,) = struct.unpack("<H", window.read(20, 2).ljust(2, b"\0"))
    for _ in range(_MOST_ELEMENTS):
        header = window.read(position, 4)
        if len(header) < 4 or header[0] == 0:
            return Structure()
        size = int.from_bytes(header[1:4], "little")
        if position + 4 + size > window.n_bytes:
            present = window.n_bytes - position - 4
            return Structure(present_share=max(present, 1) / size, cut_off=falls_short(present, size))
        position += 4 + size
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "blocks"))


def _nist(window: Window) -> Structure:
    """Read the number of samples in the text at the head of a NIST SPHERE file."""
    text = window.read(0, 4096)
    fields = dict(re.findall(rb"^(\w+) -i (\d{1,15})\s*$", text, re.MULTILINE))
    begin = re.match(rb"NIST_1A\n *(\d{1,9})\n", text)
    if begin is None or b"sample_count" not in fields:
        return Structure()
    sample_bytes = int(fields.get(b"sample_n_bytes", 2)) * int(fields.get(b"channel_count", 1))
    if re.search(rb"^sample_coding -s\d+ .*(shorten|embedded)", text, re.MULTILINE):
        return Structure()  # compressed
    return _samples(window, int(begin[1]), int(fields[b"sample_count"]) * sample_bytes, most_stated=1 << 63)
