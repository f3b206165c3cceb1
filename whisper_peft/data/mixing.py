"""Mix decoded blocks of any number of channels into one channel with full scale 1, and count what had to be done.

Decoders hand on two faults as they are, and a model would be trained on them without a word. Float samples can be on
the scale of integers (up to 32768), because somebody copied them without dividing. And two channels can cancel each
other, because one wire was connected the wrong way round: their mean is then nearly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# A mixer lets samples go some 12 dB over full scale. Up to here, full scale is 1.
_HIGHEST_OVER = 4.0
# Samples on the scale of 8-bit integers reach 42 dB. Up to here (24 dB), samples that are no integers are only loud.
_LOUDEST = 16.0
# Most samples of speech on an integer scale are over 1. If fewer are, they are a few clicks, and tell no scale.
_LEAST_SHARE_OVER = 0.01
# Full scale of integers of 8, 16, 24, 32 and 64 bits.
_FULL_SCALES = (2.0**7, 2.0**15, 2.0**23, 2.0**31, 2.0**63)
# Resampling and filters bring samples of integers over their full scale, up to this multiple of it.
_HIGHEST_OVER_OF_INTEGERS = 1.5

# Length of a stretch over which the channels are compared, in seconds.
_STRETCH_S = 0.25
# Seconds of the fade from a stretch as it is to one whose channels are turned over.
_FADE_S = 0.01
# Channels without relation leave a certain power in their mean. They cancel each other below this share of it: -8 dB.
_CANCELLED_SHARE = 0.15
# Below this power, -80 dB of full scale, nothing is there that could be cancelled.
_LEAST_POWER = 1e-8
# The channels have to cancel each other in this share of the stretches with sound; music crosses the line now and then.
_LEAST_CANCELLED = 0.1
# Number of stretches that are mixed at a time.
_STRETCHES_AT_ONCE = 16


@dataclass
class Levels:
    """The facts that tell the scale of float samples.

    They are collected over a whole file, so that all its pieces have one scale.
    """

    # The largest absolute value so far.
    peak: float = 0.0
    # Number of samples over 1.
    n_over: int = 0
    # Number of samples that are not 0.
    n_sound: int = 0
    # Whether every sample so far is a whole number.
    are_integers: bool = True

    def add(self, block: np.ndarray) -> None:
        """Take samples into account.

        Args:
            block: Samples, float32, of any shape.
        """
        size = np.abs(block)
        # `fmax` passes over NaN.
        peak = float(np.fmax.reduce(size, axis=None, initial=0.0))
        self.peak = max(self.peak, peak)
        self.n_sound += int(np.count_nonzero(size))
        if peak > 1:
            self.n_over += int(np.count_nonzero(size > 1))
        if self.are_integers:
            self.are_integers = bool(np.array_equal(block, np.rint(block)))

    @property
    def full_scale(self) -> float | None:
        """The full scale of these samples: 1, a power of two, or None if single samples are far over 1.

        Example:
            >>> levels = Levels()
            >>> levels.add(np.array([0.0, -9000.5, 12000.25, 3.5], np.float32))
            >>> levels.full_scale
            32768.0
        """
        if self.peak <= _HIGHEST_OVER or not np.isfinite(self.peak):
            return 1.0
        if not self.are_integers:
            if self.peak <= _LOUDEST:
                return 1.0
            if self.n_over < _LEAST_SHARE_OVER * self.n_sound:
                return None if self.peak > _FULL_SCALES[0] else 1.0
        scales: tuple[float, ...] = _FULL_SCALES
        if self.peak <= _LOUDEST:
            # Integers this small are a nearly silent recording of 16 bits, not a loud one of 8.
            scales = _FULL_SCALES[1:]
        for scale in scales:
            if self.peak <= _HIGHEST_OVER_OF_INTEGERS * scale:
                return scale
        return None


@dataclass
class Mixer:
    """Mixes blocks into one channel as they come.

    Where the channels cancel each other, the mixer turns over those that are against the first one, and takes the mean
    then. A recording in which that is rare (below a tenth of the stretches with sound) is left as it is.

    Args:
        rate_hz: Sampling rate of the blocks, in Hz.
        n_samples: Number of samples that the mixer has taken so far.

    Example:
        >>> mixer = Mixer(rate_hz=100)
        >>> mixer.add(np.full((100, 2), [0.5, -0.5], np.float32))
        >>> wave, cancelled_s = mixer.take_wave()
        >>> float(wave.mean()), cancelled_s
        (0.5, 1.0)
    """

    rate_hz: int
    n_samples: int = 0
    # Blocks that are not mixed yet: float32 (n_samples, n_channels) each, all with the same number of channels.
    _waiting: list[np.ndarray] = field(default_factory=list)
    _n_waiting: int = 0
    # Stretches that are mixed: float32 (n_samples,) each.
    _mixed: list[np.ndarray] = field(default_factory=list)
    # For stretches of `_mixed`, by their number: the same stretch, mixed after channels were turned over.
    _turned: dict[int, np.ndarray] = field(default_factory=dict)
    # Number of stretches with sound whose channels were compared.
    _n_sounding: int = 0

    def add(self, block: np.ndarray) -> None:
        """Take the next samples.

        Args:
            block: Samples, float32 (n_samples, n_channels).
        """
        self.n_samples += len(block)
        if block.shape[1] == 1:
            self._flush()
            self._mixed.append(block[:, 0])
            return
        if self._waiting and self._waiting[0].shape[1] != block.shape[1]:
            self._flush()
        self._waiting.append(block)
        self._n_waiting += len(block)
        if self._n_waiting >= _STRETCHES_AT_ONCE * self._stretch_samples:
            self._flush(keep=self._n_waiting % self._stretch_samples)

    def take_wave(self) -> tuple[np.ndarray, float]:
        """Return what was mixed, and forget it.

        Returns:
            The wave, float32 (n_samples,), and the number of its seconds in which channels were turned over.
        """
        self._flush()
        cancelled_s = 0.0
        if len(self._turned) >= max(1.0, _LEAST_CANCELLED * self._n_sounding):
            cancelled_s = sum(map(len, self._turned.values())) / self.rate_hz
            for number, turned in self._turned.items():
                self._mixed[number] = self._fade(number, turned)
        self._turned.clear()
        wave = np.empty(sum(map(len, self._mixed)), np.float32)
        end = len(wave)
        # Each stretch is freed as soon as it is copied, so that a long recording is not in memory twice.
        while self._mixed:
            stretch = self._mixed.pop()
            wave[end - len(stretch) : end] = stretch
            end -= len(stretch)
        return wave, cancelled_s

    @property
    def _stretch_samples(self) -> int:
        return max(1, round(_STRETCH_S * self.rate_hz))

    def _flush(self, keep: int = 0) -> None:
        """Mix the blocks that wait, except for the last `keep` samples."""
        if not self._waiting:
            return
        block = np.concatenate(self._waiting)
        end = len(block) - keep
        self._waiting = [block[end:]] if keep else []
        self._n_waiting = keep
        for start in range(0, end, self._stretch_samples):
            self._mix(block[start : min(end, start + self._stretch_samples)])

    def _mix(self, stretch: np.ndarray) -> None:
        """Mix one stretch, float32 (n_samples, n_channels)."""
        # The mean has shape (n_samples,), the powers have shape (n_channels,).
        mean = stretch.mean(axis=1)
        self._mixed.append(mean)
        powers = np.einsum("ij,ij->j", stretch, stretch) / len(stretch)
        power = float(powers.mean())
        if power < _LEAST_POWER:
            return
        self._n_sounding += 1
        if float(mean @ mean) / len(mean) < _CANCELLED_SHARE * power / stretch.shape[1]:
            # The channels are compared with the first one that has sound, so that neighbouring stretches are turned the
            # same way.
            first = stretch[:, int(np.argmax(powers > 0.1 * powers.max()))]
            signs = np.where(first @ stretch < 0, np.float32(-1), np.float32(1))
            self._turned[len(self._mixed) - 1] = (stretch * signs).mean(axis=1)

    def _fade(self, number: int, turned: np.ndarray) -> np.ndarray:
        """Fade a turned stretch in and out where its neighbours stay as they are.

        Args:
            number: Number of the stretch in `_mixed`.
            turned: The stretch, mixed after channels were turned over; float32 (n_samples,).
        """
        share = np.ones(len(turned), np.float32)
        n_fade = min(len(turned) // 2, round(_FADE_S * self.rate_hz))
        ramp = np.linspace(0, 1, n_fade, endpoint=False, dtype=np.float32)
        if number > 0 and number - 1 not in self._turned:
            share[:n_fade] = ramp
        if number < len(self._mixed) - 1 and number + 1 not in self._turned:
            share[len(share) - n_fade :] = ramp[::-1]
        return share * turned + (1 - share) * self._mixed[number]
