"""What is wrong with the sound of a clip: measured on its samples, which are dropped again."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np

from whisper_peft.data.audio import read_sound
from whisper_peft.data.rows import Row

RATE_HZ = 16_000
FRAME = 320  # samples: 20 ms
FULL_SCALE = 1.0
SILENT_DB, QUIET_DB = -60.0, -42.0  # level of the loud frames, of full scale
STEADY_DB = 4.0  # between loud and quiet frames; speech has 15 and more
CLIPPED_SHARE = 0.005  # of the samples at the peak
BANDS_HZ = np.geomspace(100, 7_600, 53)  # edges: a rate that is wrong by a factor moves the spectrum


@dataclass(frozen=True, slots=True)
class Measures:
    """What is kept of a clip's samples."""

    digest: bytes
    seconds: float
    speech_s: float  # without silence before and after
    loud_db: float
    quiet_db: float
    peak: float
    clipped: float  # share of samples at the peak
    high_db: float  # level above 4.2 kHz, against that below
    spectrum: np.ndarray  # float32 (n_bands,), dB, mean 0
    full_scale: float = 1.0  # what the file's float samples were divided by
    cancelled_s: float = 0.0  # seconds in which its channels cancel each other


def measure_clip(row: Row, *, end_s: float | None, longest_s: float | None = None) -> Measures:
    """Decode a clip and measure it.

    Args:
        row: of the clip.
        end_s: where to stop; None: at its end.
        longest_s: what is of use, in seconds; a longer clip is refused, and not decoded to its end.

    Raises:
        AudioError: It cannot be decoded, holds less than is stated, or is too long.
    """
    sound = read_sound(row.sound(), start_s=row.start_s, end_s=end_s, longest_s=longest_s, sample_rate_hz=RATE_HZ)
    return dataclasses.replace(measure(sound.wave), full_scale=sound.full_scale, cancelled_s=sound.cancelled_s)


def measure(wave: np.ndarray) -> Measures:
    """Measure float32 (n_samples,) at 16 kHz."""
    digest = hashlib.blake2b(np.ascontiguousarray(wave).data, digest_size=16).digest()
    n_frames = max(1, len(wave) // FRAME)
    frames = np.resize(wave, n_frames * FRAME).reshape(n_frames, FRAME)
    level = 10 * np.log10(np.einsum("ij,ij->i", frames, frames) / FRAME + 1e-12)
    loud, quiet = np.percentile(level, [95, 5])
    size = np.abs(wave)
    peak = float(size.max())
    heard = np.flatnonzero(level > max(loud - 30, (loud + quiet) / 2 - 3))
    speech = (heard[-1] - heard[0] + 1) * FRAME / RATE_HZ if len(heard) else len(wave) / RATE_HZ
    spectrum, high = _spectrum(frames[level >= np.median(level)])
    return Measures(
        digest, len(wave) / RATE_HZ, float(speech), float(loud), float(quiet), peak,
        float(np.count_nonzero(size >= 0.97 * peak) / len(wave)) if peak else 0.0, high, spectrum,
    )  # fmt: skip


def _spectrum(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """(float32 (n_bands,): mean level of the loud frames in bands, in dB around their mean; level above 4.2 kHz)."""
    power = (np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), n=512)) ** 2).mean(axis=0)
    frequency = np.fft.rfftfreq(512, 1 / RATE_HZ)
    total = np.interp(BANDS_HZ, frequency, np.cumsum(power))
    bands = 10 * np.log10(np.diff(total) / np.diff(BANDS_HZ) + 1e-12)
    low, high = power[frequency < 4_000].mean(), power[frequency > 4_200].mean()
    return (bands - bands.mean()).astype(np.float32), float(10 * np.log10((high + 1e-12) / (low + 1e-12)))


def speed_of(spectrum: np.ndarray, usual: np.ndarray, *, near: float) -> tuple[float, float]:
    """By which factor a spectrum must have been stretched to look usual, and how much nearer that brings it.

    Args:
        spectrum: float (n_bands,), see `Measures`.
        usual: float (n_bands,).
        near: the factor that is looked for, within a third.

    Returns:
        (factor, gain): the factor is of frequencies, 2 for speech played at twice its rate; the gain is in dB, of root
        mean square.
    """
    width = len(spectrum)
    step = np.log(BANDS_HZ[-1] / BANDS_HZ[0]) / width

    def distance(move: int) -> float:
        one, other = spectrum[max(0, move) : width + min(0, move)], usual[max(0, -move) : width - max(0, move)]
        return float(np.sqrt(np.mean((one - one.mean() - other + other.mean()) ** 2)))

    middle, reach = round(np.log(near) / step), round(np.log(4 / 3) / step)
    moves = [move for move in range(middle - reach, middle + reach + 1) if abs(move) < width - 12]
    best = min(moves, key=distance, default=0)
    return float(np.exp(best * step)), distance(0) - distance(best)
