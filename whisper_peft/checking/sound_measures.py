"""Measure the samples of a clip. The samples are dropped again."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np

from whisper_peft.data.audio import SAMPLE_RATE_HZ, read_sound
from whisper_peft.data.rows import Row

# Samples of one frame: 20 ms.
_FRAME = 320
# Levels of the loud frames, in dB of full scale. Below the first there is no sound, below the second it is very quiet.
SILENT_DB = -60.0
QUIET_DB = -42.0
# Distance of loud and quiet frames, in dB. Below it the level never changes; speech has 15 and more.
STEADY_DB = 4.0
# Share of the samples at the peak. Above it the sound is clipped.
CLIPPED_SHARE = 0.005
# A sample counts as one at the peak from this share of the peak on.
_NEAR_PEAK = 0.97
# Edges of the bands of a spectrum. They grow by one factor, so a wrong sampling rate moves the spectrum along them.
_BANDS_HZ = np.geomspace(100, 7_600, 53)
# Points of the Fourier transform of a frame.
_FFT_POINTS = 512
# What narrow-band sound lacks is above the second of these, and what it has is below the first.
_LOW_BAND_HZ = 4_000
_HIGH_BAND_HZ = 4_200
# Bands that two spectra have to share to be compared.
_FEWEST_SHARED_BANDS = 12
# Power that keeps logarithms finite.
_TINY_POWER = 1e-12


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of a clip's samples.

    Attributes:
        digest: Equal for equal samples.
        seconds: Length of the clip.
        speech_s: Its length without silence before and after.
        loud_db: Level of the loud frames, in dB of full scale.
        quiet_db: Level of the quiet frames, in dB of full scale.
        peak: Largest absolute sample.
        clipped: Share of the samples that are at the peak.
        high_db: Level above 4.2 kHz compared with that below 4 kHz, in dB.
        spectrum: Level of the bands of the louder half, in dB around their mean, float32 (n_bands,).
        full_scale: What the float samples of the file were divided by.
        cancelled_s: Seconds in which the channels cancelled each other.
    """

    digest: bytes
    seconds: float
    speech_s: float
    loud_db: float
    quiet_db: float
    peak: float
    clipped: float
    high_db: float
    spectrum: np.ndarray
    full_scale: float = 1.0
    cancelled_s: float = 0.0


def measure_clip(row: Row, *, end_s: float | None, longest_s: float | None = None) -> Measures:
    """Decode a clip and measure it.

    Args:
        row: The clip.
        end_s: Where to stop in its file, in seconds; None for the end of the file.
        longest_s: Refuse a clip that is longer, in seconds, and do not decode it to its end.

    Raises:
        AudioError: The clip cannot be decoded, holds less than is stated, or is too long.
    """
    sound = read_sound(
        row.sound(), start_s=row.start_s, end_s=end_s, longest_s=longest_s, sample_rate_hz=SAMPLE_RATE_HZ
    )
    return dataclasses.replace(measure(sound.wave), full_scale=sound.full_scale, cancelled_s=sound.cancelled_s)


def measure(wave: np.ndarray) -> Measures:
    """Measure samples.

    Args:
        wave: float32 (n_samples,) at 16 kHz.

    Example:
        >>> round(measure(np.full(16_000, 0.5, dtype=np.float32)).loud_db)
        -6
    """
    n_frames = max(1, len(wave) // _FRAME)
    frames = np.resize(wave, n_frames * _FRAME).reshape(n_frames, _FRAME)
    level_db = 10 * np.log10(np.einsum("ij,ij->i", frames, frames) / _FRAME + _TINY_POWER)
    loud_db, quiet_db = np.percentile(level_db, [95, 5])
    seconds = len(wave) / SAMPLE_RATE_HZ
    heard = np.flatnonzero(level_db > max(loud_db - 30, (loud_db + quiet_db) / 2 - 3))
    speech_s = seconds
    if len(heard):
        speech_s = (heard[-1] - heard[0] + 1) * _FRAME / SAMPLE_RATE_HZ
    size = np.abs(wave)
    peak = float(size.max())
    clipped = 0.0
    if peak:
        clipped = float(np.count_nonzero(size >= _NEAR_PEAK * peak) / len(wave))
    spectrum, high_db = _measure_spectrum(frames[level_db >= np.median(level_db)])
    return Measures(
        digest=hashlib.blake2b(np.ascontiguousarray(wave).data, digest_size=16).digest(),
        seconds=seconds,
        speech_s=float(speech_s),
        loud_db=float(loud_db),
        quiet_db=float(quiet_db),
        peak=peak,
        clipped=clipped,
        high_db=high_db,
        spectrum=spectrum,
    )


def _measure_spectrum(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the spectrum and the level of the high band, as `Measures` has them.

    Args:
        frames: The loud frames, float32 (n_frames, 320).
    """
    window = np.hanning(_FRAME).astype(np.float32)
    power = (np.abs(np.fft.rfft(frames * window, n=_FFT_POINTS)) ** 2).mean(axis=0)
    frequency_hz = np.fft.rfftfreq(_FFT_POINTS, 1 / SAMPLE_RATE_HZ)
    total = np.interp(_BANDS_HZ, frequency_hz, np.cumsum(power))
    bands_db = 10 * np.log10(np.diff(total) / np.diff(_BANDS_HZ) + _TINY_POWER)
    low = power[frequency_hz < _LOW_BAND_HZ].mean()
    high = power[frequency_hz > _HIGH_BAND_HZ].mean()
    high_db = float(10 * np.log10((high + _TINY_POWER) / (low + _TINY_POWER)))
    return (bands_db - bands_db.mean()).astype(np.float32), high_db


def estimate_speed(spectrum: np.ndarray, usual: np.ndarray, *, near: float) -> tuple[float, float]:
    """Estimate by which factor a spectrum must have been stretched to look usual.

    Args:
        spectrum: Spectrum of a clip, float (n_bands,), as `Measures` has it.
        usual: Spectrum of the other clips, float (n_bands,).
        near: The factor that is looked for. Others are tried up to a third above and below.

    Returns:
        The factor of the frequencies, 2 for speech that is played at twice its rate; and by how many dB (root mean
        square) the spectrum comes nearer to the usual one.
    """
    width = len(spectrum)
    log_factor_per_band = np.log(_BANDS_HZ[-1] / _BANDS_HZ[0]) / width

    def distance_db(move: int) -> float:
        """Compare the spectrum, moved down by some bands, with the usual one."""
        moved = spectrum[max(0, move) : width + min(0, move)]
        other = usual[max(0, -move) : width - max(0, move)]
        return float(np.sqrt(np.mean((moved - moved.mean() - other + other.mean()) ** 2)))

    middle = round(np.log(near) / log_factor_per_band)
    reach = round(np.log(4 / 3) / log_factor_per_band)
    moves = [move for move in range(middle - reach, middle + reach + 1) if abs(move) < width - _FEWEST_SHARED_BANDS]
    best = min(moves, key=distance_db, default=0)
    return float(np.exp(best * log_factor_per_band)), distance_db(0) - distance_db(best)
