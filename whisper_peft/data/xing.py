"""The Xing header of an mp3: a frame without sound that states how many frames and bytes follow it."""

from __future__ import annotations

# LAME and FFmpeg write all four parts: the numbers of frames and bytes, a table of contents and a quality. These are
# the positions behind the header's name, in bytes, of a header that has all parts.
_PARTS_AT = 4
_FRAMES_AT = 8
_BYTES_AT = 12
_ENCODER_AT = 120
# The parts that are present: one bit for each of the four.
_ALL_PARTS = 15
# Only these encoders write a header that both decoders read in the same way.
_TRUSTED_ENCODERS = (b"LAME", b"Lavf", b"Lavc")
# The name stands behind the side information of a frame, which has up to 32 bytes.
_NAME_ENDS_BEFORE = 64


def find_name(frame: bytes) -> int:
    """Find the name of a Xing header in the first frame of an mp3.

    Returns:
        The position of the name, in bytes; -1 if there is no such header.
    """
    return max(frame.find(b"Xing", 0, _NAME_ENDS_BEFORE), frame.find(b"Info", 0, _NAME_ENDS_BEFORE))


def is_counted_alike(start: bytes, header: bytes, n_frames: int, n_stated: int) -> bool:
    """Tell whether both decoders count the samples of an mp3 from the same one on, so that either may read its pieces.

    Both drop the samples that a Xing header tells them to drop. They read the header in the same way only if LAME or
    FFmpeg wrote it. A header of another kind, VBRI, is a frame of sound for one of them.

    Args:
        start: The first 200 bytes of the first frame.
        header: The frame that holds the Xing header; empty if there is none.
        n_frames: Number of frames of sound in the file.
        n_stated: Number of frames of sound that the header states.
    """
    if not header:
        return b"VBRI" not in start
    name = find_name(header)
    parts = int.from_bytes(header[name + _PARTS_AT : name + _PARTS_AT + 4], "big")
    encoder = header[name + _ENCODER_AT : name + _ENCODER_AT + 4]
    return parts == _ALL_PARTS and encoder in _TRUSTED_ENCODERS and abs(n_frames - n_stated) <= 1


def count_down_header(header: bytes, n_frames: int, n_bytes: int) -> bytes:
    """Write the Xing header of an mp3 from which frames were taken out.

    Args:
        header: The frame that holds the Xing header; empty if there is none.
        n_frames: Number of frames that were taken out.
        n_bytes: Number of bytes of those frames.
    """
    if not header:
        return header
    name = find_name(header)
    changed = bytearray(header)
    for position, n_fewer in ((name + _FRAMES_AT, n_frames), (name + _BYTES_AT, n_bytes)):
        stated = int.from_bytes(changed[position : position + 4], "big")
        changed[position : position + 4] = max(0, stated - n_fewer).to_bytes(4, "big")
    return bytes(changed)
