"""The Xing header of an mp3: a frame without sound that states how many frames and bytes follow it."""

from __future__ import annotations

# Where its parts lie behind its name, if it has all of them, as LAME and FFmpeg write it.
_PARTS_AT = 4
_FRAMES_AT = 8
_BYTES_AT = 12
_ENCODER_AT = 120
_ALL_PARTS = 15


def name_position(frame: bytes) -> int:
    """Find the name of a Xing header in the first frame of an mp3; -1 if there is none."""
    return max(frame.find(b"Xing", 0, 64), frame.find(b"Info", 0, 64))


def is_counted_alike(start: bytes, header: bytes, n_frames: int, n_stated: int) -> bool:
    """Tell whether both decoders count the samples of an mp3 from the same one on, so that either may read its pieces.

    They drop the samples that a Xing header tells them to, but read it in the same way only where LAME or FFmpeg wrote
    it. A header of another kind, VBRI, is a frame of sound to one of them.

    Args:
        start: The first 200 bytes of the first frame.
        header: The frame that holds the Xing header; empty if there is none.
        n_frames: Frames of sound in the file.
        n_stated: Frames of sound that the header states.
    """
    if not header:
        return b"VBRI" not in start
    name = name_position(header)
    parts = int.from_bytes(header[name + _PARTS_AT : name + _PARTS_AT + 4], "big")
    encoder = header[name + _ENCODER_AT : name + _ENCODER_AT + 4]
    return parts == _ALL_PARTS and encoder in (b"LAME", b"Lavf", b"Lavc") and abs(n_frames - n_stated) <= 1


def header_of_the_rest(header: bytes, n_frames: int, n_bytes: int) -> bytes:
    """Write the Xing header of an mp3 from which frames were taken out.

    Args:
        header: The frame that holds the Xing header; empty if there is none.
        n_frames: How many frames were taken out.
        n_bytes: How many bytes they had.
    """
    if not header:
        return header
    name = name_position(header)
    changed = bytearray(header)
    for position, n_fewer in ((name + _FRAMES_AT, n_frames), (name + _BYTES_AT, n_bytes)):
        stated = int.from_bytes(changed[position : position + 4], "big")
        changed[position : position + 4] = max(0, stated - n_fewer).to_bytes(4, "big")
    return bytes(changed)
