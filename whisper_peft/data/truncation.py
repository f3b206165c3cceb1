"""Tell from the container of a sound file whether the file is all there. Nothing is decoded.

Decoders do not complain about cut files: libsndfile takes a shorter wav or ogg for a whole one, and FFmpeg's libraries
do so with avi, asf and others. So this module reads the sizes of chunks, pages, elements and boxes. It cannot see a cut
exactly between two pages or elements. A wav, aiff, au or caf that was written into a pipe states no size at all.

The walks are bounded, because a file of a few megabytes can hold a million parts of nothing.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from whisper_peft.data.frames import read_frames
from whisper_peft.data.structure import ByteReader, Structure, falls_short

# Recorders write a few dozen chunks.
_MOST_CHUNKS = 10_000
# A day of sound in fragments of a second has 200,000 boxes.
_MOST_BOXES = 500_000
# Half a day of Opus packets has 3,000,000 elements.
_MOST_ELEMENTS = 3_000_000

# Whoever writes into a pipe cannot go back to fill in the size: ffmpeg and sox leave numbers near 2**31 and 2**32. So a
# size from here on stands for an unknown one.
_UNKNOWN_FROM = 0x7FFF_0000
# The same for sizes of 8 bytes.
_UNKNOWN_LONG_FROM = 1 << 63
# Stands for "unknown", or for "the true size is elsewhere", where sizes have 4 bytes.
_NO_SIZE = 0xFFFF_FFFF

_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")
# The elements Segment and Cluster of webm and mkv; the elements in them are walked, too.
_WALKED_ELEMENTS = (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")
# The two longest pages of an ogg file fit in here.
_OGG_TAIL_BYTES = 1 << 17


def read_structure(file: BinaryIO) -> Structure:
    """Read what a file of at least one byte states about itself; the position in the file is anywhere afterwards."""
    reader = ByteReader(file)
    head = reader.read(0, 20)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _walk_avi(reader)
    if head[:4] in _CHUNKED:
        return _find_sample_chunk(reader, _CHUNKED[head[:4]])
    if head[:4] == b".snd":
        position, stated = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
        return _compare_samples(reader, position, stated, unknown_from=_UNKNOWN_FROM)
    if head[:4] == b"OggS":
        return Structure(cut_off=_is_ogg_cut_off(reader))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return dataclasses.replace(_walk_webm(reader), has_time_stamps=True)
    if head[4:8] in _MP4_BOXES:
        return dataclasses.replace(_walk_mp4(reader), has_time_stamps=True)
    if head[:16] == _ASF_HEADER:
        return _read_asf(reader)
    if head[:3] == b"FLV":
        return _walk_flv(reader)
    if head[:4] == b".RMF":
        return _walk_real_media(reader)
    if head[:4] in (b".SoX", b"XoS.") and len(head) == 20:
        return _read_sox(reader, head)
    if head == b"Creative Voice File\x1a":
        return _walk_voc(reader)
    if head[:8] == b"NIST_1A\n":
        return _read_nist(reader)
    return read_frames(file, reader)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How a family of files is cut into chunks. Each chunk has a name, a size, and content of that size."""

    # Position of the first chunk, in bytes.
    first: int
    # Format of name and size, as `struct` writes it.
    header: str
    # Names of the chunk that holds the samples.
    sample_chunks: tuple[bytes, ...]
    # A size from here on stands for an unknown one.
    unknown_from: int
    # Chunks begin at multiples of this number of bytes.
    alignment: int = 2
    # Whether the stated size counts the chunk's header.
    size_includes_header: bool = False


_RIFF = _Chunks(first=12, header="<4sI", sample_chunks=(b"data",), unknown_from=_UNKNOWN_FROM)
# By the first four bytes of the file: wav and its relatives, aiff and 8svx, caf, and wave64.
_CHUNKED = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _Chunks(first=12, header=">4sI", sample_chunks=(b"data",), unknown_from=_UNKNOWN_FROM),
    b"FORM": _Chunks(first=12, header=">4sI", sample_chunks=(b"SSND", b"BODY"), unknown_from=_UNKNOWN_FROM),
    b"caff": _Chunks(first=8, header=">4sQ", sample_chunks=(b"data",), unknown_from=_UNKNOWN_LONG_FROM, alignment=1),
    b"riff": _Chunks(
        first=40,
        header="<16sQ",
        sample_chunks=(_W64_DATA,),
        unknown_from=_UNKNOWN_LONG_FROM,
        alignment=8,
        size_includes_header=True,
    ),
}


def _find_sample_chunk(reader: ByteReader, chunks: _Chunks) -> Structure:
    """Find the chunk of samples in wav, wave64, rf64, aiff, 8svx and caf."""
    header_bytes = struct.calcsize(chunks.header)
    position = chunks.first
    size_in_ds64 = None
    for _ in range(_MOST_CHUNKS):
        header = reader.read(position, header_bytes)
        if len(header) < header_bytes:
            # There are no samples; the decoder says so.
            return Structure()
        name, stated = struct.unpack(chunks.header, header)
        position += header_bytes
        if chunks.size_includes_header:
            stated = max(0, stated - header_bytes)
        if name in chunks.sample_chunks:
            if stated == _NO_SIZE and size_in_ds64 is not None:
                return _compare_samples(reader, position, size_in_ds64, unknown_from=_UNKNOWN_LONG_FROM)
            return _compare_samples(reader, position, stated, chunks.unknown_from)
        if name == b"ds64":
            # The true sizes of an rf64 file (EBU Tech 3306): the size of the file, then that of the samples.
            (size_in_ds64,) = struct.unpack("<Q", reader.read(position + 8, 8).ljust(8, b"\0"))
        position += stated + -stated % chunks.alignment
    return Structure(refusal=_too_many(_MOST_CHUNKS, "chunks before the sound"))


def _compare_samples(reader: ByteReader, position: int, stated: int, unknown_from: int) -> Structure:
    """Compare the bytes of samples that a file states with the bytes that are there.

    Args:
        reader: Reads the file.
        position: Position of the first sample, in bytes.
        stated: Bytes of samples that the file states.
        unknown_from: A statement from here on stands for an unknown size.
    """
    present = reader.n_bytes - position
    if present <= 0 or present >= stated or stated >= unknown_from:
        return Structure()
    return Structure(present_share=present / stated, cut_off=falls_short(present, stated))


def _too_many(most: int, parts: str) -> str:
    """Return the refusal of a file that has too many parts."""
    return f"damaged: more than {most:,} {parts}"


def _read_sox(reader: ByteReader, head: bytes) -> Structure:
    """Read the header of SoX's own format: its size in bytes, then the number of samples of 4 bytes."""
    byte_order = "<" if head[:4] == b".SoX" else ">"
    header_bytes, n_samples = struct.unpack(f"{byte_order}IQ", head[4:16])
    # A file that was written into a pipe states 0 samples.
    if not n_samples:
        return Structure()
    return _compare_samples(reader, 4 + header_bytes, 4 * n_samples, unknown_from=1 << 62)


def _walk_avi(reader: ByteReader) -> Structure:
    """Walk the lists of an avi; one that was written into a pipe states no sizes of its lists."""
    position = 0
    for _ in range(_MOST_ELEMENTS):
        header = reader.read(position, 8)
        if len(header) < 8:
            return Structure(cut_off=len(header) > 0 or position > reader.n_bytes + 1)
        name, size = struct.unpack("<4sI", header)
        if name not in (b"RIFF", b"LIST"):
            position += 8 + size + size % 2
        elif size in (0, _NO_SIZE):
            # The parts of the list come next.
            position += 12
        elif position + 8 + size > reader.n_bytes + 1:
            present = reader.n_bytes - position - 8
            return Structure(present_share=present / size, cut_off=falls_short(present, size))
        else:
            position += 8 + size + size % 2
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "chunks"))


def _is_ogg_cut_off(reader: ByteReader) -> bool:
    """Tell whether the last page is incomplete, or is followed by something else although it is not marked as last."""
    tail = reader.read(max(0, reader.n_bytes - _OGG_TAIL_BYTES), _OGG_TAIL_BYTES)
    start = tail.rfind(b"OggS")
    n_segments = 0
    if 0 <= start < len(tail) - 26:
        n_segments = tail[start + 26]
    # The lacing states the size of each segment, in one byte.
    lacing = tail[start + 27 : start + 27 + n_segments]
    if start < 0 or start + 27 > len(tail) or len(lacing) < n_segments:
        return True
    end = start + 27 + n_segments + sum(lacing)
    is_last = bool(tail[start + 5] & 4)
    return end > len(tail) or (end < len(tail) and not is_last)


def _walk_webm(reader: ByteReader) -> Structure:
    """Tell whether an element reaches past the end of the file (RFC 8794).

    A live recording has segments of unknown size.
    """
    position = 0
    for _ in range(_MOST_ELEMENTS):
        header = reader.read(position, 12)
        if not header:
            return Structure()
        # Leading zeros tell the length of a number.
        id_length = 9 - header[0].bit_length()
        size_length = 9
        if id_length < len(header):
            size_length = 9 - header[id_length].bit_length()
        if id_length > 4:
            # There is no element here, but something that was appended, or zeros.
            return Structure()
        if size_length > 8 or len(header) < id_length + size_length:
            return Structure(cut_off=True)
        element_id = header[:id_length]
        size_bytes = header[id_length : id_length + size_length]
        value_bits = 7 * size_length
        size = int.from_bytes(size_bytes, "big") & ((1 << value_bits) - 1)
        is_known = size != (1 << value_bits) - 1
        position += id_length + size_length
        if is_known and position + size > reader.n_bytes:
            return Structure(cut_off=True)
        if element_id not in _WALKED_ELEMENTS:
            if not is_known:
                return Structure()
            position += size
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "elements"))


def _walk_mp4(reader: ByteReader) -> Structure:
    """Tell whether a box of the top level reaches past the end of the file."""
    position = 0
    for _ in range(_MOST_BOXES):
        if position + 8 > reader.n_bytes:
            return Structure(cut_off=position > reader.n_bytes)
        header = reader.read(position, 16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            # The size stands behind the name, in 8 bytes.
            size = int.from_bytes(header[8:16], "big")
        if size < 8:
            # A box of size 0 reaches to the end of the file.
            return Structure()
        position += size
    return Structure(refusal=_too_many(_MOST_BOXES, "boxes"))


def _read_asf(reader: ByteReader) -> Structure:
    """Read how large and how long a wma or wmv was when it was whole (ASF specification, section 3.2)."""
    (header_size,) = struct.unpack("<Q", reader.read(16, 8).ljust(8, b"\0"))
    position = 30
    for _ in range(_MOST_CHUNKS):
        header = reader.read(position, 24)
        if len(header) < 24 or position >= header_size:
            return Structure()
        name, size = struct.unpack("<16sQ", header)
        if name == _ASF_FILE_PROPERTIES:
            break
        position += max(24, size)
    else:
        return Structure(refusal=_too_many(_MOST_CHUNKS, "objects in its header"))
    properties = reader.read(position + 24, 68).ljust(68, b"\0")
    n_stated, duration, preroll_ms, flags = struct.unpack("<16xQ16xQ8xQI", properties)
    is_live = bool(flags & 1)
    if is_live:
        return Structure()
    # The duration is in units of 100 ns, and counts the time of buffering before the sound.
    stated_s = max(0.0, duration / 1e7 - preroll_ms / 1000)
    return Structure(stated_s=stated_s or None, cut_off=falls_short(reader.n_bytes, n_stated))


def _walk_flv(reader: ByteReader) -> Structure:
    """Tell whether a tag of a Flash video reaches past the end of the file."""
    position = 13
    # The kinds of tags: sound, picture, data.
    kinds = (8, 9, 18)
    for _ in range(_MOST_ELEMENTS):
        header = reader.read(position, 11)
        if not header or header[0] & 0x1F not in kinds:
            return Structure()
        position += 11 + int.from_bytes(header[1:4], "big") + 4
        if position > reader.n_bytes:
            return Structure(cut_off=True)
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "tags"))


def _walk_real_media(reader: ByteReader) -> Structure:
    """Find the chunk of packets in a RealMedia file."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        header = reader.read(position, 8)
        if len(header) < 8:
            return Structure()
        name, size = struct.unpack(">4sI", header)
        if name == b"DATA":
            return _compare_samples(reader, position, size, unknown_from=_UNKNOWN_FROM)
        position += max(8, size)
    return Structure(refusal=_too_many(_MOST_CHUNKS, "chunks before the sound"))


def _walk_voc(reader: ByteReader) -> Structure:
    """Tell whether a block of a Creative Voice file reaches past the end of the file."""
    (position,) = struct.unpack("<H", reader.read(20, 2).ljust(2, b"\0"))
    for _ in range(_MOST_ELEMENTS):
        header = reader.read(position, 4)
        if len(header) < 4 or header[0] == 0:
            return Structure()
        size = int.from_bytes(header[1:4], "little")
        if position + 4 + size > reader.n_bytes:
            present = reader.n_bytes - position - 4
            return Structure(present_share=max(present, 1) / size, cut_off=falls_short(present, size))
        position += 4 + size
    return Structure(refusal=_too_many(_MOST_ELEMENTS, "blocks"))


def _read_nist(reader: ByteReader) -> Structure:
    """Read the number of samples in the text at the head of a NIST SPHERE file."""
    text = reader.read(0, 4096)
    fields = dict(re.findall(rb"^(\w+) -i (\d{1,15})\s*$", text, re.MULTILINE))
    begin = re.match(rb"NIST_1A\n *(\d{1,9})\n", text)
    if begin is None or b"sample_count" not in fields:
        return Structure()
    is_compressed = re.search(rb"^sample_coding -s\d+ .*(shorten|embedded)", text, re.MULTILINE)
    if is_compressed:
        return Structure()
    sample_bytes = int(fields.get(b"sample_n_bytes", 2)) * int(fields.get(b"channel_count", 1))
    stated = int(fields[b"sample_count"]) * sample_bytes
    return _compare_samples(reader, int(begin[1]), stated, unknown_from=_UNKNOWN_LONG_FROM)
