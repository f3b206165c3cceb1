"""The samples that a decoder gives, and the limits that hold for every decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from whisper_peft.files import printable

# Exceptions that decoders raise on damaged files, besides av.FFmpegError. soundfile raises TypeError for a file whose
# name ends in .raw, because it would need the format.
DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class AudioError(Exception):
    """A clip that cannot be used; the message is the reason written to left_out.jsonl."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The samples that a decoder gave, and how far it came if it failed."""

    # float32 (n_samples,), from the start of the piece on, on the file's own scale.
    wave: np.ndarray
    rate_hz: int
    # How far into the file decoding came, in seconds.
    read_s: float
    # Length of the whole file by its header, in seconds.
    stated_s: float | None = None
    # Why decoding stopped before the end.
    failure: str | None = None
    # The value of full scale in float samples; None if single samples are far over it.
    full_scale: float | None = 1.0
    # The largest absolute value of float samples.
    peak: float = 0.0
    # Seconds in which the channels cancelled each other.
    cancelled_s: float = 0.0
    # Whether the file ends within its last frame.
    cut_off: bool = False

    @property
    def wave_s(self) -> float:
        """Length of the wave in seconds."""
        return len(self.wave) / self.rate_hz


# The wave of a clip that could not be decoded.
NO_SAMPLES = np.zeros(0, np.float32)

# Below this rate, a header is broken, and resampling would blow a small file up without bound.
_LOWEST_RATE_HZ = 1_000
# Above this rate, a header is broken, and resampling would leave nothing of the sound.
_HIGHEST_RATE_HZ = 10_000_000


def check_rate(rate_hz: int) -> int:
    """Return a sampling rate; raise ValueError if a header that states it is broken."""
    if not _LOWEST_RATE_HZ <= rate_hz <= _HIGHEST_RATE_HZ:
        raise ValueError(f"a sampling rate of {rate_hz} Hz")
    return rate_hz


# Silence compresses without bound: a few kilobytes of flac can hold hours. Opus at 6 kbit/s has 64 samples a byte.
_MOST_SAMPLES = 20_000_000
_MOST_SAMPLES_A_BYTE = 64


def refuse_endless(n_bytes: int, n_samples: int, rate_hz: int) -> None:
    """Raise AudioError for a file that unpacks to far more sound than speech would."""
    if n_samples > _MOST_SAMPLES + _MOST_SAMPLES_A_BYTE * n_bytes:
        seconds = n_samples / rate_hz
        raise AudioError(f"over {seconds:.0f} s in {n_bytes:,} bytes: next to nothing but silence; cut it into clips")


def measure_file(file: BinaryIO) -> int:
    """Return the bytes of a file, and go back to its start."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return n_bytes


def describe_failure(error: Exception) -> str:
    """Say in a few words why a decoder failed."""
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    reason = printable(" ".join(str(reason).split()).rstrip("."))
    return f"cannot be read as audio ({reason or type(error).__name__})"
