"""Texts that stand beside the wrong sound: moved by a few rows, or paired in another order of the file names.

What a clip's length says about its text: log seconds are fitted robustly on the size of the text, and each speaker has
a pace. A row where another row's text fits better than its own proves nothing; a stretch of such rows does. The
evidence is a log-likelihood ratio, summed over the stretch; how large it becomes by chance is found by turning the
residuals against the texts, which keeps what neighbours have in common on either side (a rotation test).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

SHIFTS = (-3, -2, -1, 1, 2, 3)
SHORTEST_STRETCH = 10  # rows; shorter ones are not told from chance
FEWEST_ROWS = 40  # of a source, else nothing is said
FALSE_ALARMS = 1e-3  # a source without a mistake is taken for one with, so often
_ROTATIONS = 100
_FREEDOM = 4.0  # of Student's t, which the residuals are taken to follow: lengths have outliers
_FLOOR = float(np.log(len(SHIFTS) / FALSE_ALARMS))  # nats that are exceeded by chance where the place is known
_SURE = 4.0  # nats: odds of 50 to 1
_FAR = 200  # rows to either side of an edge that are looked at
_MOST_ROTATED = 20_000  # rows; longer sources are turned fewer times


_FASTEST, _USUAL, _SLOWEST = 40.0, 12.0, 0.4  # letters a second: no speech is beyond
_FEWEST_FOR_OUTLIERS = 20


@dataclass(frozen=True)
class Mispairing:
    """Rows whose texts belong to the sound of other rows."""

    rows: tuple[int, ...]
    text_of: dict[int, int]  # row of a sound -> row that has its text; of those of `rows` for which there is one
    shift: int | None  # a row's text belongs to the sound so many rows further down; None: another order of names
    evidence: float  # log-likelihood ratio, in nats
    chance: float  # what it would have to exceed
    doubtful: frozenset[int] = frozenset()  # rows at the edges, within and outside, of which it is not sure

    @property
    def is_order(self) -> bool:
        """Whether the texts follow another order of the file names."""
        return self.shift is None


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


def correlations(seconds: np.ndarray, sizes: np.ndarray) -> dict[int, float]:
    """The rank correlation of clip length with token count, texts moved by -3 to 3 rows.

    Args:
        seconds: float (n_rows,).
        sizes: see `text_sizes`.
    """
    length, tokens = (np.argsort(np.argsort(values)).astype(float) for values in (seconds, sizes[:, 0]))
    found = {}
    for shift in (*SHIFTS[:3], 0, *SHIFTS[3:]):
        audio, text = _pairs(len(length), shift)
        one, other = length[audio], tokens[text]
        flat = len(one) < 3 or not one.std() or not other.std()
        found[shift] = 0.0 if flat else float(np.corrcoef(one, other)[0, 1])
    return found


def find_mispairings(
    seconds: np.ndarray, sizes: np.ndarray, speakers: Sequence[str | None], names: Sequence[str]
) -> list[Mispairing]:
    """Find texts that stand beside the wrong sound.

    Args:
        seconds: float (n_rows,), in the order of the source; of speech, if silence around it could be taken off.
        sizes: see `text_sizes`.
        speakers: of each row.
        names: of the sound files.

    Returns:
        Stretches of at least `SHORTEST_STRETCH` rows, and file names in another order; most evidence first. Nothing for
        fewer than `FEWEST_ROWS` rows, or where the length of a clip says nothing about its text.
    """
    n_rows = len(seconds)
    if n_rows < FEWEST_ROWS:
        return []
    length = np.log(np.maximum(seconds, 0.05))
    fit = _Fit(sizes, speakers)
    orders = list(_name_orders(names))
    everything = np.arange(n_rows)
    hypotheses = [(everything, everything), *(_pairs(n_rows, shift) for shift in SHIFTS)]
    for order in orders:
        text = everything.copy()
        text[list(order)] = list(order.values())
        hypotheses.append((everything, text))
    model = max((fit.model(length, *pairs) for pairs in hypotheses), key=lambda model: model.merit)
    found = _ordered(model, length, orders)
    taken = np.zeros(n_rows, dtype=bool)
    for one in found:
        taken[list(one.rows)] = True
    candidates = _stretches(model.gains(length), taken, _FLOOR)
    if candidates:
        model = fit.model(length, *_mended(n_rows, [*found, *candidates]))
        candidates = _stretches(model.gains(length), taken, _FLOOR)
    if candidates:
        found += _stretches(model.gains(length), taken, _chance(fit, model, n_rows))
    return sorted(found, key=lambda one: -one.evidence)


def find_shifts(gains: dict[int, np.ndarray]) -> list[Mispairing]:
    """Find stretches of moved texts by what a model says of its own text and of its neighbours' texts.

    Args:
        gains: shift -> float (n_rows,), by the row of the sound: how many nats a token better the text of so many rows
            further up fits it than the sound that it stands beside; NaN where that is not known.
    """
    n_rows = len(next(iter(gains.values())))
    gains = {shift: np.nan_to_num(values) for shift, values in gains.items()}
    sharpness = min(map(_sharpness, gains.values()))
    gains = {shift: sharpness * values for shift, values in gains.items()}
    chance = float(np.log(n_rows * len(gains) / FALSE_ALARMS))
    return sorted(_stretches(gains, np.zeros(n_rows, dtype=bool), chance), key=lambda one: -one.evidence)


def _sharpness(gains: np.ndarray) -> float:
    """The exponent with which sums of a row's gains become rare, from the rows that speak for their own text.

    Such gains are taken to be normal: with mean -m and deviation s the sum over a stretch exceeds t with a chance of
    exp(-2 m t / s²) (Lundberg). Median and quartiles, so that moved stretches do not count.
    """
    low, middle, high = np.percentile(gains, [25, 50, 75])
    spread = max((high - low) / 1.349, 1e-6)
    return float(np.clip(-2 * middle / spread**2, 0.02, 2.0))


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
    length = np.log(np.maximum(seconds, 0.02))
    deviations, ratio = np.zeros(len(length)), np.ones(len(length))
    if len(length) >= _FEWEST_FOR_OUTLIERS:
        everything = np.arange(len(length))
        # Without the speaker's own pace: of few clips it is what is wrong with them.
        rest = length - _Fit(sizes, speakers).model(length, everything, everything).of_text
        rest -= np.median(rest)
        deviations, ratio = np.abs(rest) / _robust_deviation(rest), np.exp(-rest)
    letters = np.exp(sizes[:, 1]) - 4
    rate = letters / np.maximum(seconds, 0.02)
    beyond = (rate > _FASTEST) | ((rate < _SLOWEST) & (seconds > 5))
    return np.where(beyond, rate / _USUAL, ratio), np.where(beyond, np.inf, deviations)


class _Fit:
    """Fits log seconds = what the text says + the speaker's pace + a residual, robustly.

    Args:
        sizes: see `text_sizes`.
        speakers: of each row.
    """

    def __init__(self, sizes: np.ndarray, speakers: Sequence[str | None]):
        self.columns = np.column_stack([np.ones(len(sizes)), sizes])
        known = {speaker: number for number, speaker in enumerate(dict.fromkeys(speakers)) if speaker is not None}
        self.speaker = np.array([known.get(speaker, -1) for speaker in speakers])

    def model(self, length: np.ndarray, audio: np.ndarray, text: np.ndarray) -> _Model:
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
        return _Model(self.columns @ weights, pace[self.speaker], residuals, spread, float(merit))


@dataclass(frozen=True)
class _Model:
    """A fit: log seconds = `of_text` + `pace` + a residual of Student's t with that spread."""

    of_text: np.ndarray  # (n_rows,)
    pace: np.ndarray  # (n_rows,), of the speaker of the sound
    residuals: np.ndarray  # (n_pairs,)
    spread: float
    merit: float  # log-likelihood a row, over that of texts that say nothing

    def gain(self, length: np.ndarray, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """How many nats better the text of row `text` fits the sound of row `audio` than that row's own."""
        rest = length[audio] - self.pace[audio]
        other, own = rest - self.of_text[text], rest - self.of_text[audio]
        return _log_density(other, self.spread) - _log_density(own, self.spread)

    def gains(self, length: np.ndarray) -> dict[int, np.ndarray]:
        """For each shift (n_rows,), by the row of the sound; 0 where its text would be outside."""
        found = {}
        for shift in SHIFTS:
            audio, text = _pairs(len(length), shift)
            found[shift] = np.zeros(len(length))
            found[shift][audio] = self.gain(length, audio, text)
        return found

    def rotated(self, generator: np.random.Generator) -> np.ndarray:
        """Lengths as they would be if all texts stood right: the residuals turned against the texts."""
        n_rows = len(self.of_text)
        return self.of_text + self.pace + np.roll(np.resize(self.residuals, n_rows), generator.integers(1, n_rows))


def _paces(residuals: np.ndarray, speaker: np.ndarray, n_speakers: int) -> np.ndarray:
    """Each speaker's median residual, drawn towards 0 where there are few clips; 0 for the last one, -1."""
    pace = np.zeros(n_speakers)
    order = np.argsort(speaker, kind="stable")
    starts = np.searchsorted(speaker[order], np.arange(n_speakers))
    for number in range(n_speakers - 1):
        rows = order[starts[number] : starts[number + 1]]
        if len(rows):
            pace[number] = np.median(residuals[rows]) * len(rows) / (len(rows) + 2)
    return pace


def _mended(n_rows: int, found: list[Mispairing]) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the sounds, rows of their texts), as they would be were all that was found put right."""
    text = {row: row for row in range(n_rows)}
    for one in found:
        for row in one.rows:
            del text[row]
        text |= one.text_of
    return np.array(list(text)), np.array(list(text.values()))


def _pairs(n_rows: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
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


def _chance(fit: _Fit, model: _Model, n_rows: int) -> float:
    """The sum of gains that a source without a mistake exceeds with the chance of FALSE_ALARMS.

    What is done to the source is done to each of its rotations: fit, put right what looks best, fit again.
    """
    generator = np.random.default_rng(0)
    everything, taken = np.arange(n_rows), np.zeros(n_rows, dtype=bool)
    maxima = []
    for _ in range(min(_ROTATIONS, n_rows - 1) if n_rows <= _MOST_ROTATED else 20):
        length = model.rotated(generator)
        again = fit.model(length, everything, everything)
        if candidates := _stretches(again.gains(length), taken, _FLOOR):
            again = fit.model(length, *_mended(n_rows, candidates))
        maxima.append(max(_best_stretch(values)[0] for values in again.gains(length).values()))
    return _exceeded(maxima, at_least=_FLOOR)


def _exceeded(maxima: Sequence[float], *, at_least: float) -> float:
    """The level that maxima of this kind exceed with the chance of FALSE_ALARMS, by Gumbel's law (its moments)."""
    scale = max(1.0, np.std(maxima) * np.sqrt(6) / np.pi)  # 1: what true likelihoods have
    return float(max(at_least, np.mean(maxima) - 0.5772 * scale + scale * np.log(1 / FALSE_ALARMS)))


def _best_stretch(gains: np.ndarray) -> tuple[float, int, int]:
    """(sum, first row, row after the last) of the stretch of at least SHORTEST_STRETCH rows with the largest sum."""
    if len(gains) < SHORTEST_STRETCH:
        return -np.inf, 0, 0
    total = np.concatenate([[0.0], np.cumsum(gains)])
    lowest = np.minimum.accumulate(total[: len(total) - SHORTEST_STRETCH])
    sums = total[SHORTEST_STRETCH:] - lowest
    end = int(np.argmax(sums))
    start = int(np.argmin(total[: end + 1]))
    return float(sums[end]), start, end + SHORTEST_STRETCH


def _stretches(gains: dict[int, np.ndarray], taken: np.ndarray, chance: float) -> list[Mispairing]:
    """All stretches over the level of chance, the best first, none over another."""
    found: list[Mispairing] = []
    n_rows = len(taken)
    pieces = [(0, n_rows)]
    while pieces:
        first, last = pieces.pop()
        best = (-np.inf, 0, 0, 0)
        for shift, values in gains.items():
            piece = np.where(taken[first:last], -1e9, values[first:last])
            best = max(best, (*_best_stretch(piece), shift))
        evidence, start, end, shift = best
        if evidence <= chance:
            continue
        sounds = range(first + start, first + end)
        start, end = max(first, sounds[0] - max(0, shift)), min(last, sounds[-1] + 1 - min(0, shift))
        text_of = {row: row - shift for row in sounds if start <= row - shift < end}
        doubtful = _doubtful(gains[shift], sounds, first, last)
        found.append(Mispairing(tuple(range(start, end)), text_of, shift, evidence, chance, doubtful))
        pieces += [(first, start), (end, last)]
    return found


def _doubtful(gains: np.ndarray, sounds: range, first: int, last: int) -> frozenset[int]:
    """Rows at the edges of a stretch that it could do without, or could have as well, for less than _SURE."""
    doubtful = set()
    for inwards, outwards in (
        (sounds, range(sounds[0] - 1, first - 1, -1)),
        (reversed(sounds), range(sounds[-1] + 1, last)),
    ):
        for rows, sign in ((inwards, 1), (outwards, -1)):
            rows = list(rows)[:_FAR]
            within = np.flatnonzero(sign * np.cumsum(gains[rows]) < _SURE)
            doubtful.update(rows[: within[-1] + 1] if len(within) else ())
    return frozenset(doubtful)


def _name_orders(names: Sequence[str]) -> Iterator[dict[int, int]]:
    """For files that are numbered without leading zeros: row of a sound -> row of its text, had one order been lost."""
    groups: defaultdict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for row, name in enumerate(names):
        path = PurePath(name)
        if numbered := re.fullmatch(r"(.*?)(\d{1,9})", path.stem):
            groups[str(path.parent), numbered[1]].append((int(numbered[2]), path.stem, row))
    for group in groups.values():
        natural = [row for *_, row in sorted(group)]
        by_letter = [row for *_, row in sorted(group, key=lambda one: one[1])]
        if len(group) >= FEWEST_ROWS // 2 and natural != by_letter:
            for sounds, texts in ((natural, by_letter), (by_letter, natural)):
                yield {sound: text for sound, text in zip(sounds, texts, strict=True) if sound != text}


def _ordered(model: _Model, length: np.ndarray, orders: list[dict[int, int]]) -> list[Mispairing]:
    """Which other orders of the names the texts follow; of two for the same files, the better one."""
    generator = np.random.default_rng(0)
    found: list[Mispairing] = []
    for order in orders:
        audio, text = np.array(list(order)), np.array(list(order.values()))
        evidence = float(model.gain(length, audio, text).sum())
        by_chance = [model.gain(model.rotated(generator), audio, text).sum() for _ in range(_ROTATIONS)]
        chance = _exceeded(by_chance, at_least=np.log(len(orders) / FALSE_ALARMS))
        if evidence > chance:
            found.append(Mispairing(tuple(sorted(order)), order, None, evidence, chance))
    found.sort(key=lambda one: -one.evidence)
    return [one for number, one in enumerate(found) if not any(set(one.rows) & set(o.rows) for o in found[:number])]
