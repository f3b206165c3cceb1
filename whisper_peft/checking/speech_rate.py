"""How long a text takes to speak: log seconds, fitted robustly on the size of the text, and the pace of each speaker.

The model of sound i, with the text of row j, spoken by speaker s:

    log_seconds[i] = from_text[j] + pace[s] + residual,    residual / spread follows Student's t

`from_text` is linear in the logarithms of tokens, syllables and words (`text_sizes`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A text may belong to a sound so many rows further down. Negative: further up.
SHIFTS = (-3, -2, -1, 1, 2, 3)
# Degrees of freedom of Student's t. Few, because lengths have outliers.
_DEGREES_OF_FREEDOM = 4.0
# Letters per second. No speech is faster than the first or slower than the last.
_FASTEST = 40.0
_USUAL = 12.0
_SLOWEST = 0.4
# Seconds above which a clip with hardly any letters is too slow. A shorter one may hold one short word.
_SHORTEST_SLOW_S = 5
_FEWEST_FOR_OUTLIERS = 20
# A speaker's own spread counts like the common spread of all after this many clips.
_CLIPS_OF_PRIOR = 5
# A text has too few letters for its sound this many robust deviations (of log letters per second) below the usual.
_SPARSE = 6.0
# Shorter clips are treated as if they had this length, for the logarithm.
_SHORTEST_S = 0.02
# The median absolute deviation times this is the standard deviation of normal values.
_MAD_TO_DEVIATION = 1.4826
# Huber's regression weighs residuals less from this many robust deviations on.
_HUBER = 1.5
# Combining class of a virama, the sign that takes the vowel of an Indic letter away.
_VIRAMA_CLASS = 9


def text_sizes(texts: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
    """Return how large texts are: the logarithms of the numbers of tokens, syllables (nearly) and words.

    Args:
        texts: The texts.
        tokens: Number of tokens of each text.

    Returns:
        float64 (n_texts, 3).

    Example:
        >>> np.exp(text_sizes(["two words"], [3])).round()
        array([[ 8., 12.,  3.]])
    """
    sizes = []
    for text, n_tokens in zip(texts, tokens, strict=True):
        # What is added keeps the logarithms of very short texts near each other.
        sizes.append((n_tokens + 5, _count_syllables(text) + 4, len(text.split()) + 1))
    return np.log(np.array(sizes, dtype=np.float64).reshape(-1, 3))


def _count_syllables(text: str) -> int:
    """Count the letters and digits that carry a vowel of their own, nearly: in Indic scripts a virama takes it away.

    Example:
        >>> _count_syllables("हिन्दी"), _count_syllables("two")
        (2, 3)
    """
    count = 0
    for character in text:
        category = unicodedata.category(character)
        count += category[0] in "LN"
        count -= category == "Mn" and unicodedata.combining(character) == _VIRAMA_CLASS
    return max(0, count)


def unusual_paces(
    seconds: np.ndarray, sizes: np.ndarray, speakers: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Hold each row's seconds against what its text should take.

    Args:
        seconds: float (n_rows,).
        sizes: float (n_rows, 3), from `text_sizes`.
        speakers: Speaker of each row; None where it is not known.

    Returns:
        For each row, float64 (n_rows,): how many times the usual pace it has, and its distance from the usual pace in
        robust deviations. The distance is infinite for what no speech can be, and 0 in sets that are too small to tell.
    """
    log_seconds = np.log(np.maximum(seconds, _SHORTEST_S))
    letters = np.exp(sizes[:, 1]) - 4
    deviations = np.zeros(len(log_seconds))
    ratio = np.ones(len(log_seconds))
    if len(log_seconds) >= _FEWEST_FOR_OUTLIERS:
        rows = np.arange(len(log_seconds))
        # The speaker's own pace stays in the rest: of a speaker with few clips, the pace is what is wrong with them.
        rest = log_seconds - DurationFit.of_rows(sizes, speakers).fit(log_seconds, rows, rows).from_text
        rest -= np.median(rest)
        deviations = np.abs(rest) / _robust_deviation(rest)
        ratio = np.exp(-rest)
        # A word or two in the place of a sentence: the fit grows slowly there, and finds nothing strange in it.
        slow = np.log((letters + 1) / np.maximum(seconds, _SHORTEST_S))
        slow -= np.median(slow)
        sparse = slow < -_SPARSE * _robust_deviation(slow)
        deviations = np.where(sparse, np.maximum(deviations, _SPARSE - slow), deviations)
        ratio = np.where(sparse, np.minimum(ratio, np.exp(slow)), ratio)
    rate = letters / np.maximum(seconds, _SHORTEST_S)
    impossible = (rate > _FASTEST) | ((rate < _SLOWEST) & (seconds > _SHORTEST_SLOW_S))
    return np.where(impossible, rate / _USUAL, ratio), np.where(impossible, np.inf, deviations)


@dataclass(frozen=True)
class DurationFit:
    """A source that durations can be fitted on: sizes of texts, and speakers of sounds.

    Attributes:
        columns: Regressors of each row's text, float (n_rows, 4): 1 and the three sizes.
        speaker: Number of the speaker of each row's sound, int (n_rows,); -1 if it is not known.
    """

    columns: np.ndarray
    speaker: np.ndarray

    @classmethod
    def of_rows(cls, sizes: np.ndarray, speakers: Sequence[str | None]) -> DurationFit:
        """Make one of the rows of a source.

        Args:
            sizes: float (n_rows, 3), from `text_sizes`.
            speakers: Speaker of each row; None where it is not known.
        """
        numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(speakers)) if speaker is not None}
        columns = np.column_stack([np.ones(len(sizes)), sizes])
        return cls(columns, np.array([-1 if speaker is None else numbers[speaker] for speaker in speakers]))

    def take_pairs(self, sounds: np.ndarray, texts: np.ndarray) -> DurationFit:
        """Return a source made of pairs of a sound and a text, in this order.

        Args:
            sounds: Rows of the sounds, int (n_pairs,).
            texts: Rows of their texts, int (n_pairs,).
        """
        return DurationFit(self.columns[texts], self.speaker[sounds])

    def shuffle_within_speakers(self, generator: np.random.Generator, sounds: np.ndarray) -> np.ndarray:
        """Draw an order of sounds in which each speaker's sounds, and those of none, change places among themselves.

        Args:
            generator: Draws the order.
            sounds: Rows of the sounds, int (n_pairs,).
        """
        speaker = self.speaker[sounds]
        places = np.argsort(speaker, kind="stable")
        order = np.empty(len(sounds), dtype=np.int64)
        order[places] = places[np.lexsort((generator.random(len(sounds)), speaker[places]))]
        return order

    def fit(self, log_seconds: np.ndarray, sounds: np.ndarray, texts: np.ndarray) -> DurationModel:
        """Fit the model to pairs of a sound and a text.

        Args:
            log_seconds: Logarithm of the seconds of each row's sound, float (n_rows,).
            sounds: Rows of the sounds, int (n_pairs,).
            texts: Rows of their texts, int (n_pairs,).
        """
        columns = self.columns[texts]
        speaker = self.speaker[sounds]
        wanted = log_seconds[sounds]
        # The last place, which -1 points to, belongs to the rows without a speaker. It stays 0.
        pace = np.zeros(self.speaker.max() + 2)
        for _ in range(3):
            weights = _regress_robustly(columns, wanted - pace[speaker])
            pace = _estimate_paces(wanted - columns @ weights, speaker, len(pace))
        residuals = wanted - columns @ weights - pace[speaker]
        # The same without the texts, to tell how much they say.
        without_text = wanted - np.median(wanted)
        without_text -= _estimate_paces(without_text, speaker, len(pace))[speaker]
        spread = _robust_deviation(residuals)
        merit = np.mean(_log_density(residuals, spread))
        merit -= np.mean(_log_density(without_text, _robust_deviation(without_text)))
        spreads = _estimate_spreads(residuals, speaker, len(pace), spread)
        return DurationModel(
            from_text=self.columns @ weights,
            pace=pace[self.speaker],
            residuals=residuals,
            spread=spread,
            speaker_spread=spreads[self.speaker],
            merit=float(merit),
        )


@dataclass(frozen=True)
class DurationModel:
    """A fitted model: log seconds = `from_text` + `pace` + a residual that follows Student's t.

    Attributes:
        from_text: Log seconds that each row's text should take, float (n_rows,).
        pace: Pace of the speaker of each row's sound, in log seconds, float (n_rows,).
        residuals: Residuals of the pairs that were fitted, float (n_pairs,).
        spread: Spread of all residuals.
        speaker_spread: Spread of the speaker of each row's sound, float (n_rows,); at least `spread`.
        merit: Log-likelihood of one row, above that of a model that ignores the texts.
    """

    from_text: np.ndarray
    pace: np.ndarray
    residuals: np.ndarray
    spread: float
    speaker_spread: np.ndarray
    merit: float

    def gain(
        self, log_seconds: np.ndarray, sounds: np.ndarray, texts: np.ndarray, *, equal_spread: bool = False
    ) -> np.ndarray:
        """Return how many nats better the text of another row fits a sound than the text of its own row.

        Args:
            log_seconds: Logarithm of the seconds of each row's sound, float (n_rows,).
            sounds: Rows of the sounds, int (n_pairs,).
            texts: Rows of the other texts, int (n_pairs,).
            equal_spread: Use one spread for all speakers. By default an irregular speaker has a larger spread, so that
                their clips count less as evidence. With one spread for all, right texts of a speaker whose lengths say
                nothing would look moved half of the time.
        """
        rest = log_seconds[sounds] - self.pace[sounds]
        spread = self.spread if equal_spread else self.speaker_spread[sounds]
        other = _log_density(rest - self.from_text[texts], spread)
        own = _log_density(rest - self.from_text[sounds], spread)
        return other - own

    def gains(self, log_seconds: np.ndarray, *, equal_spread: bool = False) -> dict[int, np.ndarray]:
        """Return the gain of each sound for each shift of the texts.

        Args:
            log_seconds: Logarithm of the seconds of each row's sound, float (n_rows,).
            equal_spread: See `gain`.

        Returns:
            For each shift, float (n_rows,) by the row of the sound; 0 where the text would be outside of the source.
        """
        gains = {}
        for shift in SHIFTS:
            sounds, texts = pairs_at(len(log_seconds), shift)
            gains[shift] = np.zeros(len(log_seconds))
            gains[shift][sounds] = self.gain(log_seconds, sounds, texts, equal_spread=equal_spread)
        return gains

    def rotate_residuals(self, generator: np.random.Generator) -> np.ndarray:
        """Return the log seconds of a source in which all texts stand right: the residuals, moved along the texts.

        Args:
            generator: Draws by how many rows they are moved.
        """
        n_rows = len(self.from_text)
        rotated = np.roll(np.resize(self.residuals, n_rows), generator.integers(1, n_rows))
        return self.from_text + self.pace + rotated


def pairs_at(n_rows: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of sound and text if each text belongs to the sound `shift` rows further down.

    Returns:
        Rows of the sounds, and rows of their texts.

    Example:
        >>> pairs_at(4, 1)
        (array([1, 2, 3]), array([0, 1, 2]))
    """
    sounds = np.arange(max(0, shift), n_rows + min(0, shift))
    return sounds, sounds - shift


def _estimate_paces(residuals: np.ndarray, speaker: np.ndarray, n_places: int) -> np.ndarray:
    """Return each speaker's median residual, drawn towards 0 for those with few clips.

    Args:
        residuals: float (n_pairs,).
        speaker: Number of each pair's speaker, int (n_pairs,); -1 where it is not known.
        n_places: Number of speakers, and one for -1, which stays 0.
    """
    order = np.lexsort((residuals, speaker))
    sorted_residuals = residuals[order]
    count = np.bincount(speaker + 1, minlength=n_places)[1:]
    first = np.searchsorted(speaker[order], np.arange(n_places - 1))
    pace = np.zeros(n_places)
    known = np.flatnonzero(count)
    # The median is the mean of the two values in the middle, which are one value for an odd count.
    low = first[known] + (count[known] - 1) // 2
    high = first[known] + count[known] // 2
    pace[known] = (sorted_residuals[low] + sorted_residuals[high]) / 2 * count[known] / (count[known] + 2)
    return pace


def _estimate_spreads(residuals: np.ndarray, speaker: np.ndarray, n_places: int, spread: float) -> np.ndarray:
    """Return each speaker's spread, drawn towards that of all for those with few clips, and never below it.

    Args:
        residuals: float (n_pairs,).
        speaker: Number of each pair's speaker, int (n_pairs,); -1 where it is not known.
        n_places: Number of speakers, and one for -1, which has the spread of all.
        spread: Spread of all.
    """
    order = np.lexsort((np.abs(residuals), speaker))
    count = np.bincount(speaker + 1, minlength=n_places)[1:]
    first = np.searchsorted(speaker[order], np.arange(n_places - 1))
    known = np.flatnonzero(count)
    middle = _MAD_TO_DEVIATION * np.abs(residuals)[order][first[known] + count[known] // 2]
    spreads = np.full(n_places, spread)
    variance = count[known] * middle**2 + _CLIPS_OF_PRIOR * spread**2
    spreads[known] = np.sqrt(variance / (count[known] + _CLIPS_OF_PRIOR))
    return np.maximum(spreads, spread)


def _regress_robustly(columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the weights of Huber's regression, by reweighting.

    A small ridge keeps the solution stable, because words and syllables go together.

    Args:
        columns: float (n_pairs, n_columns).
        wanted: float (n_pairs,).

    Example:
        >>> x = np.arange(9.0)
        >>> y = 1 + 2 * x
        >>> y[4] = 90
        >>> _regress_robustly(np.column_stack([np.ones(9), x]), y).round(1)
        array([1., 2.])
    """
    weight = np.ones(len(wanted))
    ridge = 1e-3 * len(wanted) * np.diag([0.0, *[1.0] * (columns.shape[1] - 1)])
    for _ in range(12):
        left = columns.T * weight
        weights = np.linalg.solve(left @ columns + ridge, left @ wanted)
        rest = np.abs(wanted - columns @ weights)
        weight = 1 / np.maximum(1, rest / (_HUBER * max(1e-6, _MAD_TO_DEVIATION * np.median(rest))))
    return weights


def _robust_deviation(residuals: np.ndarray) -> float:
    return float(max(0.03, _MAD_TO_DEVIATION * np.median(np.abs(residuals))))


def _log_density(residuals: np.ndarray, spread: float | np.ndarray) -> np.ndarray:
    """Return the logarithm of Student's density, without the constant that cancels in differences."""
    power = -(_DEGREES_OF_FREEDOM + 1) / 2
    return power * np.log1p((residuals / spread) ** 2 / _DEGREES_OF_FREEDOM) - np.log(spread)
