"""Decode a sound file with the one of two decoders that can: libsndfile, or FFmpeg's libraries."""

from __future__ import annotations

from typing import BinaryIO

from whisper_peft.data.decoded_clip import Clip
from whisper_peft.data.ffmpeg_decoder import decode_pyav
from whisper_peft.data.soundfile_decoder import decode_soundfile
from whisper_peft.data.structure import Structure


def decode(file: BinaryIO, structure: Structure, start_s: float, end_s: float | None) -> Clip:
    """Decode with libsndfile, and with FFmpeg's libraries if that fails.

    If both fail, the clip of the decoder that came further is returned, because its failure tells more.

    Args:
        file: The file, open for reading.
        structure: The facts that the file states about itself.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
    """
    clips = []
    if structure.for_soundfile:
        clips.append(decode_soundfile(file, start_s, end_s))
        if clips[0].failure is None and clips[0].stated_s:
            return clips[0]
    clips.append(decode_pyav(file, start_s, end_s))
    return max(clips, key=lambda clip: (clip.read_s, clip.failure is None))
