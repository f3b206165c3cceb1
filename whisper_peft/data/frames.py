"""Files that are nothing but frames, blocks or packets of sound: how many there are, and whether the last one is whole.

Most of these files state no length. So a cut exactly between two frames cannot be seen; any other cut can be seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

from whisper_peft.data.mpeg_audio import read_mpeg_audio, read_mpeg_header
from whisper_peft.data.structure import ByteReader, Structure

# The largest number of frames; with frames of 20 ms it is 22 hours of sound. A file with more frames is damaged, or was
# made to keep us busy.
_MOST_FRAMES = 4_000_000
# Only this number of bytes at the end of a transport stream is read.
_TS_TAIL_BYTES = 1 << 22
# The sizes of packets of a transport stream, and where the byte "G" stands in each: plain, on Blu-ray discs, and with
# bytes for error correction.
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))
# More ID3 tags than this at the beginning of a file are not skipped.
_MOST_ID3_TAGS = 100


def read_frames(file: BinaryIO, reader: ByteReader) -> Structure:
    """Read the frames of mp3, mp2, aac, ac3, amr and wavpack files, and of MPEG transport and program streams."""
    begin = _skip_id3(reader)
    head = reader.read(begin, 12)
    if head[:6] == b"#!AMR\n":
        return _count_amr(reader, begin + 6, _AMR_BYTES)
    if head[:9] == b"#!AMR-WB\n":
        return _count_amr(reader, begin + 9, _AMR_WB_BYTES)
    if head[:4] == b"wvpk":
        return _walk_chain(reader, begin, _measure_wavpack_block, lambda header: 0.0)
    if head[:2] == b"\x0b\x77":
        return _walk_chain(reader, begin, _measure_ac3_frame, _time_ac3_frame)
    if head[:4] == b"\0\0\1\xba":
        return _walk_program_stream(reader, begin)
    for packet_bytes, sync_at in _TS_PACKETS:
        syncs = [reader.read(sync_at + number * packet_bytes, 1) for number in range(3)]
        if syncs == [b"G"] * 3:
            return _read_transport_stream(reader, packet_bytes, sync_at)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _count_aac(reader, begin)
    if begin or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0):
        file.seek(0)
        return read_mpeg_audio(file.read(), begin)
    return Structure()


def _skip_id3(reader: ByteReader) -> int:
    """Return the position behind the ID3 tags at the beginning; 0 if there are none."""
    position = 0
    for _ in range(_MOST_ID3_TAGS):
        header = reader.read(position, 10)
        if header[:3] != b"ID3" or len(header) < 10:
            break
        # The size has seven bits in each of its four bytes.
        tag_bytes = 0
        for byte in header[6:10]:
            tag_bytes = tag_bytes << 7 | byte & 127
        position += 10 + tag_bytes
    return position


def _walk_chain(
    reader: ByteReader, position: int, measure: Callable[[bytes], int], time: Callable[[bytes], float]
) -> Structure:
    """Walk frames, each of which states its size in its first 16 bytes.

    Args:
        reader: Reads the file.
        position: Position of the first frame.
        measure: Takes a header and returns the bytes of its frame; 0 where no frame begins, -1 where the header itself
            is cut.
        time: Takes a header and returns the seconds of sound in its frame; 0 where the header does not say.
    """
    seconds = 0.0
    for _ in range(_MOST_FRAMES):
        header = reader.read(position, 16)
        size = measure(header) if header else 0
        if size == 0:
            # This is the end of the file, or tags or another kind of frame follow.
            return Structure(stated_s=seconds or None)
        if size < 0 or position + size > reader.n_bytes:
            return Structure(stated_s=seconds or None, cut_off=True)
        seconds += time(header)
        position += size
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


def is_part_of_a_frame(packet: bytes) -> bool:
    """Tell whether a packet of MPEG audio or AC-3, as a demuxer gives it, is shorter than its own header says."""
    frame = read_mpeg_header(packet, 0)
    if frame:
        return len(packet) < frame.n_bytes
    return len(packet) < _measure_ac3_frame(packet[:16])


def _measure_wavpack_block(header: bytes) -> int:
    """Return the bytes of a WavPack block; 0 where none begins, -1 where its header is cut."""
    if not header.startswith(b"wvpk"):
        is_cut = b"wvpk".startswith(header)
        return -1 if is_cut else 0
    if len(header) < 8:
        return -1
    return 8 + struct.unpack("<I", header[4:8])[0]


# Bit rates of AC-3, in kbit/s; two size codes stand for each.
_AC3_KBIT_S = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
# Sampling rates by the rate code of AC-3 and E-AC-3; the fourth code means half of one of them.
_AC3_RATES_HZ = (48_000, 44_100, 32_000, 0)
# Blocks of 256 samples in a frame of E-AC-3, by their code.
_EAC3_BLOCKS = (1, 2, 3, 6)
# Stream ids above this one are E-AC-3.
_LAST_AC3_ID = 10


def _measure_ac3_frame(header: bytes) -> int:
    """Return the bytes of a frame of AC-3 or E-AC-3; 0 where none begins, -1 where its header is cut.

    Source: ETSI TS 102 366, sections 4.4.1 and E.1.2.
    """
    if not header.startswith(b"\x0b\x77"):
        return -1 if header == b"\x0b" else 0
    if len(header) < 6:
        return -1
    if header[5] >> 3 > _LAST_AC3_ID:
        return 2 * (((header[2] & 7) << 8 | header[3]) + 1)
    rate_code = header[4] >> 6
    size_code = header[4] & 63
    if rate_code == 3 or size_code >= 2 * len(_AC3_KBIT_S):
        return 0
    kbit_s = _AC3_KBIT_S[size_code // 2]
    # A frame lasts 1,536 samples, and its size is stated in words of 16 bits. At 44.1 kHz the size is no whole number
    # of words, so the two size codes of a bit rate differ by one word.
    words = {
        48_000: 2 * kbit_s,
        44_100: kbit_s * 96_000 // 44_100 + size_code % 2,
        32_000: 3 * kbit_s,
    }
    return 2 * words[_AC3_RATES_HZ[rate_code]]


def _time_ac3_frame(header: bytes) -> float:
    """Return the seconds of a whole frame of AC-3 or E-AC-3; 0 for one that only adds channels to the frame before."""
    rate_hz = _AC3_RATES_HZ[header[4] >> 6]
    if header[5] >> 3 <= _LAST_AC3_ID:
        return 1536 / rate_hz if rate_hz else 0.0
    adds_channels = header[2] >> 6 == 1
    if adds_channels:
        return 0.0
    code = header[4] >> 4 & 3
    if rate_hz == 0:
        # Such a frame has half of a rate, which the code names here, and always six blocks.
        return 1536 * 2 / (48_000, 44_100, 32_000, 48_000)[code]
    return 256 * _EAC3_BLOCKS[code] / rate_hz


# Bytes of a frame of amr, narrow-band and wide-band, by its type (RFC 4867, section 5.3).
_AMR_BYTES = (13, 14, 16, 18, 20, 21, 27, 32, 6, 1, 1, 1, 1, 1, 1, 1)
_AMR_WB_BYTES = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 1, 1, 1, 1, 1, 1)
# Seconds of every frame of amr.
_AMR_FRAME_S = 0.02


def _count_amr(reader: ByteReader, position: int, frame_bytes: tuple[int, ...]) -> Structure:
    """Count the frames of an amr file of one channel."""
    for n_frames in range(_MOST_FRAMES):
        header = reader.read(position, 1)
        if not header:
            return Structure(stated_s=n_frames * _AMR_FRAME_S or None)
        position += frame_bytes[header[0] >> 3 & 15]
        if position > reader.n_bytes:
            return Structure(stated_s=n_frames * _AMR_FRAME_S or None, cut_off=True)
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


# Sampling rates of aac, by their code.
_AAC_RATES_HZ = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
# Bytes of the header of a frame, without a checksum.
_AAC_HEADER_BYTES = 7


def _count_aac(reader: ByteReader, position: int) -> Structure:
    """Count the frames of an aac file (ADTS; ISO/IEC 13818-7, section 6.2)."""
    seconds = 0.0
    for _ in range(_MOST_FRAMES):
        header = reader.read(position, _AAC_HEADER_BYTES)
        if not header or not (header[0] == 0xFF and (len(header) < 2 or header[1] & 0xF6 == 0xF0)):
            # This is the end of the file, or tags follow.
            return Structure(stated_s=seconds or None)
        if len(header) < _AAC_HEADER_BYTES:
            return Structure(stated_s=seconds or None, cut_off=True)
        rate_code = header[2] >> 2 & 15
        size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        if rate_code >= len(_AAC_RATES_HZ) or size < _AAC_HEADER_BYTES:
            return Structure()
        if size == _AAC_HEADER_BYTES and seconds == 0.0:
            return Structure(refusal="cannot be read as audio (its first aac frame is empty)")
        if position + size > reader.n_bytes:
            return Structure(stated_s=seconds or None, cut_off=True)
        n_blocks = (header[6] & 3) + 1
        seconds += 1024 * n_blocks / _AAC_RATES_HZ[rate_code]
        position += size
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} frames")


def _walk_program_stream(reader: ByteReader, position: int) -> Structure:
    """Walk the packs and packets of an MPEG program stream (mpg, vob; ISO/IEC 13818-1, section 2.5.3)."""
    for _ in range(_MOST_FRAMES):
        header = reader.read(position, 14)
        states_end = header[:4] == b"\0\0\1\xb9"
        if not header or states_end:
            return Structure()
        if len(header) < 4:
            return Structure(cut_off=b"\0\0\1".startswith(header[:3]))
        if header[:3] != b"\0\0\1":
            # Padding follows.
            return Structure()
        if header[3] == 0xBA:
            size = _measure_pack_header(header)
        else:
            payload = int.from_bytes(header[4:6], "big")
            if payload == 0 and len(header) >= 6:
                # A packet that states no size reaches to the end of the file.
                return Structure()
            size = 6 + payload
        position += size
        if position > reader.n_bytes:
            return Structure(cut_off=True)
    return Structure(refusal=f"damaged: more than {_MOST_FRAMES:,} packets")


def _measure_pack_header(header: bytes) -> int:
    """Return the bytes of the header of a pack: 12 for MPEG 1, and 14 with up to 7 bytes of stuffing for MPEG 2."""
    is_mpeg_2 = len(header) > 4 and header[4] >> 6 == 1
    if is_mpeg_2 and len(header) == 14:
        return 14 + (header[13] & 7)
    return 12


def _read_transport_stream(reader: ByteReader, packet_bytes: int, sync_at: int) -> Structure:
    """Tell whether the last packet of an MPEG transport stream, or the last stretch of sound in it, is incomplete.

    A stretch of sound (PES packet) states its size and is carried by many packets (ISO/IEC 13818-1, section 2.4.3).
    """
    n_packets, n_rest_bytes = divmod(reader.n_bytes, packet_bytes)
    # For each stream: the bytes that its last stretch still lacks.
    missing: dict[int, int] = {}
    for number in range(max(0, n_packets - _TS_TAIL_BYTES // packet_bytes), n_packets):
        packet = reader.read(number * packet_bytes + sync_at, 188)
        if packet[:1] != b"G":
            # Something else follows from here on.
            return Structure()
        stream = (packet[1] & 0x1F) << 8 | packet[2]
        has_adaptation_field = packet[3] & 0x20
        has_payload = packet[3] & 0x10
        starts_stretch = packet[1] & 0x40
        payload_at = 4
        if has_adaptation_field:
            payload_at += 1 + packet[4]
        if not has_payload or payload_at >= len(packet):
            continue
        if starts_stretch:
            missing.pop(stream, None)
            stated = _read_sound_bytes(packet[payload_at : payload_at + 6])
            if stated:
                missing[stream] = 6 + stated
        if stream in missing:
            missing[stream] -= len(packet) - payload_at
    return Structure(cut_off=n_rest_bytes > 0 or any(lacking > 0 for lacking in missing.values()))


def _read_sound_bytes(start: bytes) -> int:
    """Read the size that a stretch of a transport stream states in its first 6 bytes; 0 if it is no sound."""
    if start[:3] != b"\0\0\1" or len(start) < 6:
        return 0
    # MPEG audio has ids from 0xC0 to 0xDF. AC-3 and others are private streams.
    is_sound = start[3] & 0xE0 == 0xC0 or start[3] in (0xBD, 0xFD)
    return int.from_bytes(start[4:6], "big") if is_sound else 0
