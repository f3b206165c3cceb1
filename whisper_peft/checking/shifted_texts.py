"""Texts that stand beside the wrong sound: moved by a few rows, or paired in another order of the file names.

The derivation, with the names that the code has:

1. Model. `log_seconds[i]` is the log length of sound i. `speech_rate` fits it by `from_text[j] + pace[i] + residual`,
   where j is the row of its text, and residual / spread follows Student's t. Right texts have j = i.
2. Gain. `gains[shift][i]` is log p(log_seconds[i] | text i - shift) - log p(log_seconds[i] | text i), in nats: how much
   better the text `shift` rows further up fits sound i than its own. It is log p(moved) - log p(right) for this sound.
3. Evidence. The rows are taken as independent, so a stretch of sounds has the log-likelihood ratio
   `evidence` = sum of gains[shift][i] over the stretch. `_best_stretch` finds the stretch with the largest sum.
4. Chance. The largest of so many sums is above 0 in a right source, too. `chance` is the level that it exceeds there
   with probability FALSE_ALARMS. Right sources are made of this one in two ways: `null_by_rotation` moves the residuals
   along the texts, so neighbours keep what they have in common (a set sorted by length); `null_by_shuffling` lets
   the pairs of each speaker change places, so an irregular speaker stays irregular. The largest sum of each is
   measured, and Gumbel's law of maxima gives the level (`_level_of_chance`).
5. Losses of a model, if there are any, are a second witness: `calibrate_gains` turns them into log-likelihood ratios,
   which are added to `gains`. For such ratios P(sum > t) <= exp(-t) in a right source (Markov), so with n rows and six
   shifts t = log(6 n / FALSE_ALARMS) is a level of chance, too. The higher one counts.
6. Order of work. Moved texts spoil the fit. So candidates are searched for with one spread for all speakers, put right,
   the model is fitted again, and only what then exceeds `chance` is reported.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from whisper_peft.checking.speech_rate import SHIFTS, DurationFit, DurationModel, pairs_at

# Rows of a stretch. Shorter ones cannot be told from chance.
SHORTEST_STRETCH = 10
# Rows of a source. Nothing is said about smaller ones.
FEWEST_ROWS = 40
# Accepted probability of a false alarm for one source without a mistake.
FALSE_ALARMS = 1e-3
# Sources without a mistake that are made of one source, in each of the two ways.
_N_NULL_SOURCES = 100
# Sources with more rows take long, so only a fifth as many are made of them.
_MANY_ROWS = 20_000
# Lowest level of chance, in nats: what one stretch at a known place exceeds, for six shifts.
_LOWEST_CHANCE = float(np.log(len(SHIFTS) / FALSE_ALARMS))
# Lowest scale of Gumbel's law: what true likelihoods have.
_LOWEST_SCALE = 1.0
_EULER_GAMMA = 0.5772
# Gain in log-likelihood (nats) before the whole source is believed to be shifted.
_EVIDENCE_FOR_WHOLE = 12.0
# Evidence (nats) that makes a row at the edge of a stretch certain: odds of 50 to 1.
_CERTAIN = 4.0
# Rows to either side of an edge that are looked at.
_ROWS_AT_EDGE = 200
# Distance of a model's gains from 0, in standard deviations. Below it the model's losses are ignored.
_LOWEST_SEPARATION = 0.4
# Nats that one row may contribute by a model's losses.
_MOST_ROW_EVIDENCE = 5.0
# Distance of the quartiles of normal values, in standard deviations.
_QUARTILES_TO_DEVIATION = 1.349
# A sum of gains that no stretch makes up for: a row with it is in no stretch.
_FORBIDDEN = -1e9


@dataclass(frozen=True)
class Mispairing:
    """Rows whose texts belong to the sound of other rows.

    Attributes:
        rows: The rows.
        text_of: For the row of a sound, the row that has its text. Rows whose text was not found are missing.
        shift: The text of a row belongs to the sound so many rows further down; None for another order of file names.
        evidence: Log-likelihood ratio, in nats.
        chance: The level that the evidence had to exceed.
        doubtful: Rows at the edges, inside and outside, that may or may not belong to it.
    """

    rows: tuple[int, ...]
    text_of: dict[int, int]
    shift: int | None
    evidence: float
    chance: float
    doubtful: frozenset[int] = frozenset()

    @property
    def is_order(self) -> bool:
        """Tell whether the texts follow another order of the file names."""
        return self.shift is None


def correlate_lengths(seconds: np.ndarray, sizes: np.ndarray) -> dict[int, float]:
    """Return the rank correlation of clip length and token count for texts moved by -3 to 3 rows.

    Args:
        seconds: float (n_rows,).
        sizes: float (n_rows, 3), from `text_sizes`.

    Example:
        >>> tokens = np.array([[3.0], [1.0], [5.0], [2.0], [4.0]])
        >>> correlations = correlate_lengths(np.array([9.0, 3.0, 1.0, 5.0, 2.0]), tokens)
        >>> round(correlations[0], 2), round(correlations[1], 2)
        (-0.6, 0.98)
    """
    length_rank = np.argsort(np.argsort(seconds)).astype(float)
    token_rank = np.argsort(np.argsort(sizes[:, 0])).astype(float)
    correlations = {}
    for shift in sorted((*SHIFTS, 0)):
        sounds, texts = pairs_at(len(length_rank), shift)
        lengths = length_rank[sounds]
        tokens = token_rank[texts]
        correlations[shift] = 0.0
        if len(lengths) >= 3 and lengths.std() and tokens.std():
            correlations[shift] = float(np.corrcoef(lengths, tokens)[0, 1])
    return correlations


def find_mispairings(
    seconds: np.ndarray,
    sizes: np.ndarray,
    speakers: Sequence[str | None],
    orders: Sequence[dict[int, int]] = (),
    model_gains: dict[int, np.ndarray] | None = None,
) -> list[Mispairing]:
    """Find texts that stand beside the wrong sound.

    Args:
        seconds: Seconds of speech in each row, float (n_rows,), in the order of the source.
        sizes: float (n_rows, 3), from `text_sizes`.
        speakers: Speaker of each row; None where it is not known.
        orders: Other orders of the file names, from `find_name_orders`.
        model_gains: What a model says, from `model_evidence.gains_of`: for each shift, float (n_rows,) by the row of
            the sound, how many nats per token the text so many rows further up is better; NaN where it is not known.

    Returns:
        Stretches of at least SHORTEST_STRETCH rows, and other orders of the file names; most evidence first. Nothing
        for fewer than FEWEST_ROWS rows, or where the length of a clip says nothing about its text.
    """
    n_rows = len(seconds)
    if n_rows < FEWEST_ROWS:
        return []
    log_seconds = np.log(np.maximum(seconds, 0.05))
    fit = DurationFit.of_rows(sizes, speakers)
    model = _fit_best_pairing(fit, log_seconds, orders)
    mispairings = _find_orders(model, log_seconds, orders)
    taken = np.zeros(n_rows, dtype=bool)
    for mispairing in mispairings:
        taken[list(mispairing.rows)] = True
    witness = calibrate_gains(model_gains) if model_gains else {}
    # With one spread for all: a moved stretch spoils its speaker's own spread.
    gains = _add_gains(model.gains(log_seconds, equal_spread=True), witness)
    candidates = _find_stretches(gains, taken, _LOWEST_CHANCE)
    if candidates:
        pairs = _put_right(n_rows, [*mispairings, *candidates])
        model = fit.fit(log_seconds, *pairs)
        gains = _add_gains(model.gains(log_seconds), witness)
        candidates = _find_stretches(gains, taken, _LOWEST_CHANCE)
    if candidates:
        chance = _level_for_lengths(fit, model, log_seconds, pairs)
        if witness:
            # The losses cannot be rotated against the texts. Step 5 of the derivation bounds their sums.
            chance = max(np.log(n_rows * len(SHIFTS) / FALSE_ALARMS), chance)
        mispairings += _find_stretches(gains, taken, chance)
    return sorted(mispairings, key=lambda mispairing: -mispairing.evidence)


def _fit_best_pairing(fit: DurationFit, log_seconds: np.ndarray, orders: Sequence[dict[int, int]]) -> DurationModel:
    """Fit the model on the pairs as they stand, or on another pairing of the whole source that is far more likely."""
    n_rows = len(log_seconds)
    rows = np.arange(n_rows)
    pairings = [(rows, rows), *(pairs_at(n_rows, shift) for shift in SHIFTS)]
    for order in orders:
        texts = rows.copy()
        texts[list(order)] = list(order.values())
        pairings.append((rows, texts))
    models = [fit.fit(log_seconds, sounds, texts) for sounds, texts in pairings]
    standing = models[0]
    best = max(models, key=lambda model: model.merit)
    if n_rows * (best.merit - max(0.0, standing.merit)) > _EVIDENCE_FOR_WHOLE:
        return best
    return standing


def _add_gains(gains: dict[int, np.ndarray], witness: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {shift: values + witness.get(shift, 0.0) for shift, values in gains.items()}


def calibrate_gains(model_gains: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Turn a model's gains into log-likelihood ratios.

    If gains are normal with mean -m and deviation s where texts stand right, and with mean +m where they are moved, the
    ratio is 2 m / s^2 times a gain. The median and the quartiles stand for m and s, so that moved rows do not count.
    The factor is the median over the shifts, so that a source that is moved as a whole does not count.

    Args:
        model_gains: See `find_mispairings`.

    Returns:
        The same in nats. All 0 for a model that cannot tell the texts apart.
    """
    factors = []
    for gains in model_gains.values():
        low, middle, high = np.nanpercentile(gains, [25, 50, 75])
        deviation = max((high - low) / _QUARTILES_TO_DEVIATION, 1e-6)
        factor = 0.0
        if abs(middle) > _LOWEST_SEPARATION * deviation:
            factor = 2 * abs(middle) / deviation**2
        factors.append(factor)
    factor = float(np.median(factors))
    ratios = {}
    for shift, gains in model_gains.items():
        ratios[shift] = np.clip(np.nan_to_num(factor * gains), -_MOST_ROW_EVIDENCE, _MOST_ROW_EVIDENCE)
    return ratios


def _put_right(n_rows: int, mispairings: Iterable[Mispairing]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of sounds and rows of their texts, as they are when all mispairings are put right."""
    text_of = {row: row for row in range(n_rows)}
    for mispairing in mispairings:
        for row in mispairing.rows:
            del text_of[row]
        text_of |= mispairing.text_of
    return np.array(list(text_of)), np.array(list(text_of.values()))


def _level_for_lengths(
    fit: DurationFit, model: DurationModel, log_seconds: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> float:
    """Return the sum of gains that a source without a mistake exceeds with probability FALSE_ALARMS.

    See step 4 of the derivation. What is done to the source is done to each source that is made of it.

    Args:
        fit: The source.
        model: Fitted on `pairs`.
        log_seconds: Logarithm of the seconds of each row's sound, float (n_rows,).
        pairs: Rows of sounds and rows of their texts, as far as they are known now.
    """
    generator = np.random.default_rng(0)
    n_sources = _N_NULL_SOURCES
    if len(log_seconds) > _MANY_ROWS:
        n_sources //= 5
    null_by_rotation = []
    for _ in range(n_sources):
        null_by_rotation.append(_largest_evidence(fit, model.rotate_residuals(generator)))
    null_by_shuffling = []
    for _ in range(n_sources):
        order = fit.shuffle_within_speakers(generator, pairs[0])
        sounds = pairs[0][order]
        texts = pairs[1][order]
        null_by_shuffling.append(_largest_evidence(fit.take_pairs(sounds, texts), log_seconds[sounds]))
    return max(
        _level_of_chance(null_by_rotation, at_least=_LOWEST_CHANCE),
        _level_of_chance(null_by_shuffling, at_least=_LOWEST_CHANCE),
    )


def _largest_evidence(fit: DurationFit, log_seconds: np.ndarray) -> float:
    """Return the largest sum of gains in a source: fit, put right what looks best, fit again."""
    n_rows = len(log_seconds)
    rows = np.arange(n_rows)
    model = fit.fit(log_seconds, rows, rows)
    gains = model.gains(log_seconds, equal_spread=True)
    candidates = _find_stretches(gains, np.zeros(n_rows, dtype=bool), _LOWEST_CHANCE)
    if candidates:
        model = fit.fit(log_seconds, *_put_right(n_rows, candidates))
    return max(_best_stretch(values)[0] for values in model.gains(log_seconds).values())


def _level_of_chance(maxima: Sequence[float], *, at_least: float) -> float:
    """Return the level that such maxima exceed with probability FALSE_ALARMS.

    Maxima of many sums follow Gumbel's law, whose mean is location + 0.5772 scale and whose deviation is pi / sqrt(6)
    times the scale. It exceeds location + scale * log(1 / p) with probability p, for small p.
    """
    scale = max(_LOWEST_SCALE, np.std(maxima) * np.sqrt(6) / np.pi)
    location = np.mean(maxima) - _EULER_GAMMA * scale
    return float(max(at_least, location + scale * np.log(1 / FALSE_ALARMS)))


def _best_stretch(gains: np.ndarray) -> tuple[float, int, int]:
    """Find the stretch of at least SHORTEST_STRETCH rows with the largest sum of gains.

    Returns:
        The sum, the first row, and the row after the last.

    Example:
        >>> _best_stretch(np.array([-1.0] * 5 + [2.0] * 12 + [-1.0] * 5))
        (24.0, 5, 17)
    """
    if len(gains) < SHORTEST_STRETCH:
        return -np.inf, 0, 0
    # The sum over rows a to b - 1 is total[b] - total[a]: for each b, the best a has the lowest total.
    total = np.concatenate([[0.0], np.cumsum(gains)])
    lowest = np.minimum.accumulate(total[: len(total) - SHORTEST_STRETCH])
    sums = total[SHORTEST_STRETCH:] - lowest
    end = int(np.argmax(sums))
    start = int(np.argmin(total[: end + 1]))
    return float(sums[end]), start, end + SHORTEST_STRETCH


def _find_stretches(gains: dict[int, np.ndarray], taken: np.ndarray, chance: float) -> list[Mispairing]:
    """Find all stretches whose evidence exceeds the level of chance, the best first. None overlaps another.

    Args:
        gains: For each shift, float (n_rows,) by the row of the sound.
        taken: Rows that may be in no stretch, bool (n_rows,).
        chance: The level, in nats.
    """
    stretches: list[Mispairing] = []
    pieces = [(0, len(taken))]
    while pieces:
        first, last = pieces.pop()
        best = (-np.inf, 0, 0, 0)
        for shift, values in gains.items():
            allowed = np.where(taken[first:last], _FORBIDDEN, values[first:last])
            best = max(best, (*_best_stretch(allowed), shift))
        evidence, start, end, shift = best
        if evidence <= chance:
            continue
        sounds = range(first + start, first + end)
        # The rows of the sounds, and the rows of their texts.
        start = max(first, sounds[0] - max(0, shift))
        end = min(last, sounds[-1] + 1 - min(0, shift))
        text_of = {row: row - shift for row in sounds if start <= row - shift < end}
        doubtful = _find_doubtful(gains[shift], sounds, first, last)
        stretches.append(Mispairing(tuple(range(start, end)), text_of, shift, evidence, chance, doubtful))
        pieces += [(first, start), (end, last)]
    return stretches


def _find_doubtful(gains: np.ndarray, sounds: range, first: int, last: int) -> frozenset[int]:
    """Return the rows at the edges of a stretch that it could lose or win for less than _CERTAIN nats.

    Args:
        gains: float (n_rows,), for the shift of the stretch.
        sounds: Rows of the stretch.
        first: First row that the stretch could have.
        last: Row after the last that it could have.
    """
    doubtful: set[int] = set()
    inwards_from_start = list(sounds)
    inwards_from_end = list(reversed(sounds))
    outwards_from_start = list(range(sounds[0] - 1, first - 1, -1))
    outwards_from_end = list(range(sounds[-1] + 1, last))
    # What the stretch loses without its first rows is their sum; what it would lose with more rows is minus their sum.
    for rows, sign in (
        (inwards_from_start, 1),
        (outwards_from_start, -1),
        (inwards_from_end, 1),
        (outwards_from_end, -1),
    ):
        near = rows[:_ROWS_AT_EDGE]
        losses = sign * np.cumsum(gains[near])
        cheap = np.flatnonzero(losses < _CERTAIN)
        if len(cheap):
            doubtful.update(near[: cheap[-1] + 1])
    return frozenset(doubtful)


def find_name_orders(names: Sequence[str]) -> Iterator[dict[int, int]]:
    """Yield the pairings that arise when files are numbered without leading zeros and one list was sorted by letters.

    Args:
        names: Name of each row's file.

    Yields:
        For the row of a sound, the row of its text. Rows that stay as they are are missing.

    Example:
        >>> order, _ = find_name_orders([f"rec_{number}.wav" for number in range(1, 21)])
        >>> order[1]
        9
    """
    groups: defaultdict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for row, name in enumerate(names):
        path = PurePath(name)
        numbered = re.fullmatch(r"(.*?)(\d{1,9})", path.stem)
        if numbered:
            groups[str(path.parent), numbered[1]].append((int(numbered[2]), path.stem, row))
    for group in groups.values():
        by_number = [row for *_, row in sorted(group)]
        by_letter = [row for *_, row in sorted(group, key=lambda file: file[1])]
        if len(group) >= FEWEST_ROWS // 2 and by_number != by_letter:
            for sounds, texts in ((by_number, by_letter), (by_letter, by_number)):
                yield {sound: text for sound, text in zip(sounds, texts, strict=True) if sound != text}


def _find_orders(model: DurationModel, log_seconds: np.ndarray, orders: Sequence[dict[int, int]]) -> list[Mispairing]:
    """Tell which other orders of the file names the texts follow. Of two for the same files, the better one."""
    generator = np.random.default_rng(0)
    mispairings: list[Mispairing] = []
    for order in orders:
        sounds = np.array(list(order))
        texts = np.array(list(order.values()))
        evidence = float(model.gain(log_seconds, sounds, texts).sum())
        null_by_rotation = []
        for _ in range(_N_NULL_SOURCES):
            null_by_rotation.append(model.gain(model.rotate_residuals(generator), sounds, texts).sum())
        chance = _level_of_chance(null_by_rotation, at_least=np.log(len(orders) / FALSE_ALARMS))
        if evidence > chance:
            mispairings.append(Mispairing(tuple(sorted(order)), order, None, evidence, chance))
    mispairings.sort(key=lambda mispairing: -mispairing.evidence)
    kept = []
    for number, mispairing in enumerate(mispairings):
        better = mispairings[:number]
        if not any(set(mispairing.rows) & set(other.rows) for other in better):
            kept.append(mispairing)
    return kept
