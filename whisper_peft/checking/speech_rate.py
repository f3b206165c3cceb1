"""How long a text takes to speak: log seconds, fitted robustly on its size, and each speaker's pace."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHIFTS = (-3, -2, -1, 1, 2, 3)
_FREEDOM = 4.0  # of Student's t, which the residuals are taken to follow: lengths have outliers
_FASTEST, _USUAL, _SLOWEST = 40.0, 12.0, 0.4  # letters a second: no speech is beyond
_FEWEST_FOR_OUTLIERS = 20
_ALIKE = 5  # clips that a speaker's own deviation is weighed against
_SPARSE = 6.0  # robust deviations of log letters a second, below the usual


def text_sizes(texts: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
    """How long texts are to speak: float64 (n_texts, 3), logarithms of tokens, syllables (nearly) and words."""
    sizes = [(n + 5, _spoken(text) + 4, len(text.split()) + 1) for text, n in zip(texts, tokens, strict=True)]
    return np.log(np.array(sizes, dtype=np.float64).reshape(-1, 3))


def _spoken(text: str) -> int:
    """Letters that carry a vowel of their own, or a sign: in Indic scripts a virama takes the vowel away."""
    count = 0
    for character in text:
        kind = unicodedata.category(character)
        count += kind[0] in "LN"
        count -= kind == "Mn" and unicodedata.combining(character) == 9
    return max(0, count)


def unusual_paces(
    seconds: np.ndarray, sizes: np.ndarray, speakers: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Hold each row's seconds against what its text should take.

    Args:
        seconds: float (n_rows,).
        sizes: see `text_sizes`.
        speakers: of each row.

    Returns:
        How many times the usual pace it is, and how far from it, in robust deviations (infinite for what no speech can
        be; 0 in sets that are too small to say): float64 (n_rows,) each.
    """
    length, letters = np.log(np.maximum(seconds, 0.02)), np.exp(sizes[:, 1]) - 4
    deviations, ratio = np.zeros(len(length)), np.ones(len(length))
    if len(length) >= _FEWEST_FOR_OUTLIERS:
        everything = np.arange(len(length))
        # Without the speaker's own pace: of few clips it is what is wrong with them.
        rest = length - Fit(sizes, speakers).model(length, everything, everything).of_text
        rest -= np.median(rest)
        deviations, ratio = np.abs(rest) / _robust_deviation(rest), np.exp(-rest)
        # A word or two in the place of a sentence: the fit, which grows slowly there, finds nothing strange in it.
        slow = np.log((letters + 1) / np.maximum(seconds, 0.02))
        slow -= np.median(slow)
        sparse = slow < -_SPARSE * _robust_deviation(slow)
        deviations = np.where(sparse, np.maximum(deviations, _SPARSE - slow), deviations)
        ratio = np.where(sparse, np.minimum(ratio, np.exp(slow)), ratio)
    rate = letters / np.maximum(seconds, 0.02)
    beyond = (rate > _FASTEST) | ((rate < _SLOWEST) & (seconds > 5))
    return np.where(beyond, rate / _USUAL, ratio), np.where(beyond, np.inf, deviations)


class Fit:
    """Fits log seconds = what the text says + the speaker's pace + a residual, robustly.

    Args:
        sizes: see `text_sizes`.
        speakers: of each row.
    """

    def __init__(self, sizes: np.ndarray, speakers: Sequence[str | None]):
        self.columns = np.column_stack([np.ones(len(sizes)), sizes])
        known = {speaker: number for number, speaker in enumerate(dict.fromkeys(speakers)) if speaker is not None}
        self.speaker = np.array([known.get(speaker, -1) for speaker in speakers])

    def of(self, audio: np.ndarray, text: np.ndarray) -> Fit:
        """The same for a source of these pairs, in this order."""
        other = copy.copy(self)
        other.columns, other.speaker = self.columns[text], self.speaker[audio]
        return other

    def mixed(self, generator: np.random.Generator, audio: np.ndarray) -> np.ndarray:
        """An order in which the rows of each speaker, and those of none, have changed places among themselves."""
        places = np.argsort(self.speaker[audio], kind="stable")
        order = np.empty(len(audio), dtype=np.int64)
        order[places] = places[np.lexsort((generator.random(len(audio)), self.speaker[audio][places]))]
        return order

    def model(self, length: np.ndarray, audio: np.ndarray, text: np.ndarray) -> Model:
        """Fit it to pairs of a sound and its text, given by their rows."""
        columns, speaker, wanted = self.columns[text], self.speaker[audio], length[audio]
        pace = np.zeros(self.speaker.max() + 2)  # the last one, -1, of rows without a speaker, stays 0
        for _ in range(3):
            weights = _weights(columns, wanted - pace[speaker])
            pace = _paces(wanted - columns @ weights, speaker, len(pace))
        residuals = wanted - columns @ weights - pace[speaker]
        alone = wanted - np.median(wanted)
        alone -= _paces(alone, speaker, len(pace))[speaker]
        spread = _robust_deviation(residuals)
        merit = np.mean(_log_density(residuals, spread)) - np.mean(_log_density(alone, _robust_deviation(alone)))
        spreads = _spreads(residuals, speaker, len(pace), spread)
        return Model(self.columns @ weights, pace[self.speaker], residuals, spread, spreads[self.speaker], float(merit))


@dataclass(frozen=True)
class Model:
    """A fit: log seconds = `of_text` + `pace` + a residual of Student's t with that spread."""

    of_text: np.ndarray  # (n_rows,)
    pace: np.ndarray  # (n_rows,), of the speaker of the sound
    residuals: np.ndarray  # (n_pairs,)
    spread: float
    spreads: np.ndarray  # (n_rows,), of the speaker of the sound
    merit: float  # log-likelihood a row, over that of texts that say nothing

    def gain(self, length: np.ndarray, audio: np.ndarray, text: np.ndarray, *, even: bool = False) -> np.ndarray:
        """How many nats better the text of row `text` fits the sound of row `audio` than that row's own.

        Args:
            length: log seconds (n_rows,).
            audio: rows.
            text: rows.
            even: all speakers are taken to keep their pace equally well. Else the lengths of one who does not say less:
                where they say nothing of the texts, texts that stand right would look moved half of the time.
        """
        rest, spread = length[audio] - self.pace[audio], self.spread if even else self.spreads[audio]
        other, own = rest - self.of_text[text], rest - self.of_text[audio]
        return _log_density(other, spread) - _log_density(own, spread)

    def gains(self, length: np.ndarray, *, even: bool = False) -> dict[int, np.ndarray]:
        """For each shift (n_rows,), by the row of the sound; 0 where its text would be outside."""
        found = {}
        for shift in SHIFTS:
            audio, text = pairs_at(len(length), shift)
            found[shift] = np.zeros(len(length))
            found[shift][audio] = self.gain(length, audio, text, even=even)
        return found

    def rotated(self, generator: np.random.Generator) -> np.ndarray:
        """Lengths as they would be if all texts stood right: the residuals turned against the texts."""
        n_rows = len(self.of_text)
        return self.of_text + self.pace + np.roll(np.resize(self.residuals, n_rows), generator.integers(1, n_rows))


def _paces(residuals: np.ndarray, speaker: np.ndarray, n_speakers: int) -> np.ndarray:
    """Each speaker's median residual, drawn towards 0 where there are few clips; 0 for the last one, -1."""
    order = np.lexsort((residuals, speaker))
    sorted_residuals, count = residuals[order], np.bincount(speaker + 1, minlength=n_speakers)[1:]
    first = np.searchsorted(speaker[order], np.arange(n_speakers - 1))
    pace = np.zeros(n_speakers)
    known = np.flatnonzero(count)
    low, high = first[known] + (count[known] - 1) // 2, first[known] + count[known] // 2
    pace[known] = (sorted_residuals[low] + sorted_residuals[high]) / 2 * count[known] / (count[known] + 2)
    return pace


def _spreads(residuals: np.ndarray, speaker: np.ndarray, n_speakers: int, spread: float) -> np.ndarray:
    """Each speaker's deviation, drawn towards that of all, and not below it; that of all for the last one, -1."""
    order = np.lexsort((np.abs(residuals), speaker))
    count = np.bincount(speaker + 1, minlength=n_speakers)[1:]
    first = np.searchsorted(speaker[order], np.arange(n_speakers - 1))
    known = np.flatnonzero(count)
    middle = 1.4826 * np.abs(residuals)[order][first[known] + count[known] // 2]
    found = np.full(n_speakers, spread)
    found[known] = np.sqrt((count[known] * middle**2 + _ALIKE * spread**2) / (count[known] + _ALIKE))
    return np.maximum(found, spread)


def pairs_at(n_rows: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the sounds, rows of their texts), if each text belongs to the sound `shift` rows further down."""
    audio = np.arange(max(0, shift), n_rows + min(0, shift))
    return audio, audio - shift


def _weights(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Huber's regression, by reweighting; a little ridge, as words and syllables go together."""
    weight = np.ones(len(wanted))
    ridge = 1e-3 * len(wanted) * np.diag([0.0, *[1.0] * (columns.shape[1] - 1)])
    for _ in range(12):
        left = columns.T * weight
        found = np.linalg.solve(left @ columns + ridge, left @ wanted)
        rest = np.abs(wanted - columns @ found)
        weight = 1 / np.maximum(1, rest / (1.5 * max(1e-6, 1.4826 * np.median(rest))))
    return found


def _robust_deviation(residuals: np.ndarray) -> float:
    return float(max(0.03, 1.4826 * np.median(np.abs(residuals))))


def _log_density(residuals: np.ndarray, spread: float) -> np.ndarray:
    return -(_FREEDOM + 1) / 2 * np.log1p((residuals / spread) ** 2 / _FREEDOM) - np.log(spread)
