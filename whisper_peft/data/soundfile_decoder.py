"""Decode with libsndfile: wav, flac, ogg, opus, mp3 and other classics."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.decoded_clip import (
    DECODER_ERRORS,
    NO_SAMPLES,
    Clip,
    check_rate,
    describe_failure,
    measure_file,
    refuse_endless,
)
from whisper_peft.data.mixing import Levels, Mixer
from whisper_peft.data.structure import identify_file

if TYPE_CHECKING:
    import soundfile

# Samples that are decoded at a time, all channels together. So a header's claim never sizes an array.
_BLOCK_SAMPLES = 1 << 18
# libsndfile states 2**63 - 1 samples for a flac without a length.
_UNKNOWN_SAMPLES = 1 << 48


def decode_soundfile(file: BinaryIO, start_s: float, end_s: float | None) -> Clip:
    """Decode with libsndfile: wav, flac, ogg, opus, mp3 and other classics.

    Args:
        file: The file, open for reading.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
    """
    import soundfile

    mixer: Mixer | None = None
    levels = Levels()
    full_scale: float | None = 1.0
    stated_s = None
    failure = None
    n_bytes = measure_file(file)
    try:
        with soundfile.SoundFile(_FileForLibsndfile(file)) as sound:
            if sound.frames >= _UNKNOWN_SAMPLES:
                # libsndfile would lose the last block of such a file.
                return Clip(NO_SAMPLES, 1, 0.0, failure="a flac that states no length")
            mixer = Mixer(check_rate(sound.samplerate))
            stated_s = sound.frames / mixer.rate_hz
            is_float = sound.subtype in ("FLOAT", "DOUBLE")
            start = round(start_s * mixer.rate_hz)
            end = sound.frames
            if end_s is not None:
                end = min(end, round(end_s * mixer.rate_hz))
            is_piece = max(0, end - start) < sound.frames
            for block in _read_blocks(sound, start, end):
                mixer.add(block)
                if is_float and not is_piece:
                    levels.add(block)
                refuse_endless(n_bytes, mixer.n_samples, mixer.rate_hz)
            if is_float:
                if is_piece:
                    levels = _measure_levels(file, sound)
                full_scale = levels.full_scale
    except DECODER_ERRORS as error:
        failure = describe_failure(error)
    if mixer is None:
        return Clip(NO_SAMPLES, 1, 0.0, failure=failure)
    read_s = 0.0
    if mixer.n_samples:
        read_s = start_s + mixer.n_samples / mixer.rate_hz
    wave, cancelled_s = mixer.take_wave()
    return Clip(
        wave,
        mixer.rate_hz,
        read_s,
        stated_s=stated_s,
        failure=failure,
        full_scale=full_scale,
        peak=levels.peak,
        cancelled_s=cancelled_s,
    )


def _read_blocks(sound: soundfile.SoundFile, start: int, end: int) -> Iterator[np.ndarray]:
    """Yield the samples of a piece, float32 (n_samples, n_channels) at a time.

    Args:
        sound: The file, open in libsndfile.
        start: Number of the first sample.
        end: Number of the sample behind the last one.
    """
    n_left = max(0, end - start)
    if n_left:
        sound.seek(start)
    while n_left:
        n_asked = min(n_left, max(1, _BLOCK_SAMPLES // sound.channels))
        block = sound.read(n_asked, dtype="float32", always_2d=True)
        yield block
        n_left -= len(block)
        if len(block) < n_asked:
            break


class _FileForLibsndfile:
    """A file as libsndfile may use it: a place before its beginning, or far behind its end, is not gone to.

    libsndfile calls the file from C, where an exception would not be raised but printed.

    Args:
        file: The file, open for reading.
    """

    def __init__(self, file: BinaryIO):
        # BinaryIO promises no `readinto`, but files and contents in memory have it.
        assert isinstance(file, io.BufferedIOBase)
        self._file = file
        # The file's own methods are taken, because libsndfile calls them a hundred times for each clip.
        self.read = file.read
        self.readinto = file.readinto
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return self._file.tell()


# The levels of the float samples of whole files, by the key of the file.
_KNOWN_LEVELS: dict[tuple[int, ...], Levels] = {}
_MOST_KNOWN_LEVELS = 1_000


def _measure_levels(file: BinaryIO, sound: soundfile.SoundFile) -> Levels:
    """Measure the levels of float samples in the whole file, so that its pieces are all divided by the same number."""
    key = identify_file(file)
    if key in _KNOWN_LEVELS:
        return _KNOWN_LEVELS[key]
    levels = Levels()
    sound.seek(0)
    for block in sound.blocks(max(1, _BLOCK_SAMPLES // sound.channels), dtype="float32", always_2d=True):
        levels.add(block)
    if len(_KNOWN_LEVELS) >= _MOST_KNOWN_LEVELS:
        _KNOWN_LEVELS.clear()
    _KNOWN_LEVELS[key] = levels
    return levels


def read_header_s(file: BinaryIO) -> float | None:
    """Read the seconds that a file states to libsndfile.

    Returns:
        None if libsndfile cannot read the file, or no length is stated.
    """
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(_FileForLibsndfile(file)) as sound:
            if 0 < sound.frames < _UNKNOWN_SAMPLES and sound.samplerate > 0:
                return sound.frames / sound.samplerate
    except DECODER_ERRORS:
        pass
    return None
