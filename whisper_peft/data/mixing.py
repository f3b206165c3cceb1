"""Decoded blocks of any number of channels to one channel with full scale 1; what had to be done for it is counted.

Two things that decoders hand on as they are would be trained on in silence. Float samples can be on the scale of
integers (up to 32768), because somebody copied them without dividing. And two channels can cancel each other, because
one wire was connected the wrong way round: their mean is then nearly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# A mixer's overs reach some 12 dB over full scale, samples on the scale of 8-bit integers reach 42 dB.
_OVERS = 4.0
_LOUDEST = 16.0
# A few clicks of any height are in no scale: of speech on an integer scale, most samples are over 1.
_LEAST_SHARE = 0.01
_FULL_SCALES = (2.0**7, 2.0**15, 2.0**23, 2.0**31, 2.0**63)
_OVERS_OF_INTEGERS = 1.5  # resampling and filters bring samples over their full scale

_STRETCH_S = 0.25  # the channels are compared over so long
_FADE_S = 0.01  # from a stretch as it is to one that is turned over
_CANCELLED_SHARE = 0.15  # of the power that channels without relation would leave in their mean: -8 dB
_LEAST_POWER = 1e-8  # -80 dB of full scale: below, nothing is there that could be cancelled
_LEAST_CANCELLED = 0.1  # of the stretches with sound in them; music crosses the line now and then


@dataclass
class Levels:
    """What tells the scale of float samples; of a whole file, so that its pieces have one scale."""

    peak: float = 0.0
    n_over: int = 0  # samples over 1
    n_sound: int = 0  # samples that are not 0
    are_integers: bool = True

    def add(self, block: np.ndarray) -> None:
        """Take samples into account.

        Args:
            block: float32, of any shape.
        """
        size = np.abs(block)
        peak = float(np.fmax.reduce(size, axis=None, initial=0.0))  # passes over NaN
        self.peak = max(self.peak, peak)
        self.n_sound += int(np.count_nonzero(size))
        if peak > 1:
            self.n_over += int(np.count_nonzero(size > 1))
        if self.are_integers:
            self.are_integers = bool(np.array_equal(block, np.rint(block)))

    @property
    def full_scale(self) -> float | None:
        """What full scale is in these samples: 1, a power of two, or None where single samples are far over 1.

        Example:
            >>> levels = Levels()
            >>> levels.add(np.array([0.0, -9000.5, 12000.25, 3.5], np.float32))
            >>> levels.full_scale
            32768.0
        """
        if self.peak <= _OVERS or not np.isfinite(self.peak):
            return 1.0
        if not self.are_integers:
            if self.peak <= _LOUDEST:
                return 1.0
            if self.n_over < _LEAST_SHARE * self.n_sound:
                return None if self.peak > _FULL_SCALES[0] else 1.0
        # Integers this small are a nearly silent recording of 16 bits, not a loud one of 8.
        scales = _FULL_SCALES if self.peak > _LOUDEST else _FULL_SCALES[1:]
        return next((scale for scale in scales if self.peak <= _OVERS_OF_INTEGERS * scale), None)


@dataclass
class Mixer:
    """Mixes blocks into one channel as they come.

    Where the channels cancel each other, those that are against the first one are turned over before the mean is
    taken. A recording in which that is rare (below a tenth of the stretches with sound) is left as it is.

    Args:
        rate_hz: Samples a second.
    """

    rate_hz: int
    n_samples: int = 0  # taken so far
    _waiting: list[np.ndarray] = field(default_factory=list)  # (n_samples, n_channels) each, all of one width
    _n_waiting: int = 0
    _mixed: list[np.ndarray] = field(default_factory=list)  # float32 (n_samples,) each
    _turned: dict[int, np.ndarray] = field(default_factory=dict)  # number in `_mixed` -> the same, turned over
    _n_sounding: int = 0  # stretches with sound in them, as far as channels were compared

    def add(self, block: np.ndarray) -> None:
        """Take the next samples.

        Args:
            block: float32 (n_samples, n_channels).
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
        if self._n_waiting >= 16 * self._stretch:
            self._flush(keep=self._n_waiting % self._stretch)

    def wave(self) -> tuple[np.ndarray, float]:
        """Give what was mixed, and forget it.

        Returns:
            float32 (n_samples,), and in how many seconds of it channels were turned over.
        """
        self._flush()
        cancelled_s = 0.0
        if len(self._turned) >= max(1.0, _LEAST_CANCELLED * self._n_sounding):
            cancelled_s = sum(map(len, self._turned.values())) / self.rate_hz
            for number, turned in self._turned.items():
                self._mixed[number] = self._faded(number, turned)
        self._turned.clear()
        wave = np.empty(sum(map(len, self._mixed)), np.float32)
        end = len(wave)
        while self._mixed:  # each block is freed as soon as it is copied
            block = self._mixed.pop()
            wave[end - len(block) : end] = block
            end -= len(block)
        return wave, cancelled_s

    @property
    def _stretch(self) -> int:
        return max(1, round(_STRETCH_S * self.rate_hz))

    def _flush(self, keep: int = 0) -> None:
        """Mix what waits, but for the last `keep` samples."""
        if not self._waiting:
            return
        block = np.concatenate(self._waiting)
        end = len(block) - keep
        self._waiting = [block[end:]] if keep else []
        self._n_waiting = keep
        for start in range(0, end, self._stretch):
            self._mix(block[start : min(end, start + self._stretch)])

    def _mix(self, stretch: np.ndarray) -> None:
        """Mix one stretch, float32 (n_samples, n_channels)."""
        mean = stretch.mean(axis=1)
        self._mixed.append(mean)
        powers = np.einsum("ij,ij->j", stretch, stretch) / len(stretch)
        power = float(powers.mean())
        if power < _LEAST_POWER:
            return
        self._n_sounding += 1
        if float(mean @ mean) / len(mean) < _CANCELLED_SHARE * power / stretch.shape[1]:
            # The first channel with sound in it, so that neighbouring stretches are turned the same way.
            first = stretch[:, int(np.argmax(powers > 0.1 * powers.max()))]
            signs = np.where(first @ stretch < 0, np.float32(-1), np.float32(1))
            self._turned[len(self._mixed) - 1] = (stretch * signs).mean(axis=1)

    def _faded(self, number: int, turned: np.ndarray) -> np.ndarray:
        """Fade a turned stretch in and out where its neighbours stay as they are."""
        share = np.ones(len(turned), np.float32)
        n_fade = min(len(turned) // 2, round(_FADE_S * self.rate_hz))
        ramp = np.linspace(0, 1, n_fade, endpoint=False, dtype=np.float32)
        if number > 0 and number - 1 not in self._turned:
            share[:n_fade] = ramp
        if number < len(self._mixed) - 1 and number + 1 not in self._turned:
            share[len(share) - n_fade :] = ramp[::-1]
        return share * turned + (1 - share) * self._mixed[number]
