"""Texts that stand beside the wrong sound: moved by a few rows, or paired in another order of the file names.

What a clip's length says about its text: log seconds are fitted robustly on the size of the text, and each speaker has
a pace. A row where another row's text fits better than its own proves nothing; a stretch of such rows does. The
evidence is a log-likelihood ratio, summed over the stretch; how large it becomes by chance is found on sources without
a mistake that are made of the one at hand, see `_chance`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from whisper_peft.checking.speech_rate import SHIFTS, Fit, Model, pairs_at

SHORTEST_STRETCH = 10  # rows; shorter ones are not told from chance
FEWEST_ROWS = 40  # of a source, else nothing is said
FALSE_ALARMS = 1e-3  # a source without a mistake is taken for one with, so often
_TRIES = 100  # sources without a mistake that are made of one, of each kind
_FLOOR = float(np.log(len(SHIFTS) / FALSE_ALARMS))  # nats that are exceeded by chance where the place is known
_TELLS = 12.0  # nats that a pairing of the whole must say more than the one that stands there
_SURE = 4.0  # nats: odds of 50 to 1
_FAR = 200  # rows to either side of an edge that are looked at
_MANY_ROWS = 20_000  # of longer sources fewer are made
_TELLING, _MOST = 0.4, 5.0  # of a model: what its gains are away from 0, in deviations; nats that one row may count


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


def correlate_lengths(seconds: np.ndarray, sizes: np.ndarray) -> dict[int, float]:
    """The rank correlation of clip length with token count, texts moved by -3 to 3 rows.

    Args:
        seconds: float (n_rows,).
        sizes: see `text_sizes`.
    """
    length, tokens = (np.argsort(np.argsort(values)).astype(float) for values in (seconds, sizes[:, 0]))
    found = {}
    for shift in (*SHIFTS[:3], 0, *SHIFTS[3:]):
        audio, text = pairs_at(len(length), shift)
        one, other = length[audio], tokens[text]
        flat = len(one) < 3 or not one.std() or not other.std()
        found[shift] = 0.0 if flat else float(np.corrcoef(one, other)[0, 1])
    return found


def find_mispairings(
    seconds: np.ndarray,
    sizes: np.ndarray,
    speakers: Sequence[str | None],
    orders: Sequence[dict[int, int]] = (),
    gains: dict[int, np.ndarray] | None = None,
) -> list[Mispairing]:
    """Find texts that stand beside the wrong sound.

    Args:
        seconds: float (n_rows,), in the order of the source; of speech, if silence around it could be taken off.
        sizes: see `text_sizes`.
        speakers: of each row.
        orders: see `find_name_orders`.
        gains: what a model says: shift -> float (n_rows,), by the row of the sound: how many nats a token better the
            text of so many rows further up fits it than the sound that it stands beside; NaN where that is not known.

    Returns:
        Stretches of at least `SHORTEST_STRETCH` rows, and file names in another order; most evidence first. Nothing for
        fewer than `FEWEST_ROWS` rows, or where the length of a clip says nothing about its text.
    """
    n_rows = len(seconds)
    if n_rows < FEWEST_ROWS:
        return []
    length = np.log(np.maximum(seconds, 0.05))
    fit = Fit(sizes, speakers)
    everything = np.arange(n_rows)
    hypotheses = [(everything, everything), *(pairs_at(n_rows, shift) for shift in SHIFTS)]
    for order in orders:
        text = everything.copy()
        text[list(order)] = list(order.values())
        hypotheses.append((everything, text))
    models = [fit.model(length, *pairs) for pairs in hypotheses]
    best = max(models, key=lambda model: model.merit)
    model = best if n_rows * (best.merit - max(0.0, models[0].merit)) > _TELLS else models[0]
    found = _ordered(model, length, orders)
    taken = np.zeros(n_rows, dtype=bool)
    for one in found:
        taken[list(one.rows)] = True
    heard = _calibrated(gains) if gains else {}

    def evidence(even: bool = False) -> dict[int, np.ndarray]:
        return {shift: values + heard.get(shift, 0.0) for shift, values in model.gains(length, even=even).items()}

    candidates = _stretches(evidence(even=True), taken, _FLOOR)  # a moved stretch spoils its speaker's deviation
    if candidates:
        pairs = _mended(n_rows, [*found, *candidates])
        model = fit.model(length, *pairs)
        candidates = _stretches(evidence(), taken, _FLOOR)
    if candidates:
        # A model's likelihoods cannot be turned against the texts; sums of such ratios exceed t with at most exp(-t).
        known = np.log(n_rows * len(SHIFTS) / FALSE_ALARMS) if heard else 0.0
        found += _stretches(evidence(), taken, max(known, _chance(fit, model, length, pairs)))
    return sorted(found, key=lambda one: -one.evidence)


def _calibrated(gains: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """A model's gains as log-likelihood ratios; nothing of a model that cannot tell the texts apart.

    If gains are normal with mean -m and deviation s where the texts stand right, and +m where they are moved, then
    2 m / s² times a gain is the ratio. Median and quartiles, so that moved rows do not count, and of the shifts the
    middle one, so that a moved set does not.
    """
    sharpness = []
    for values in gains.values():
        low, middle, high = np.nanpercentile(values, [25, 50, 75])
        spread = max((high - low) / 1.349, 1e-6)
        sharpness.append(2 * abs(middle) / spread**2 if abs(middle) > _TELLING * spread else 0.0)
    factor = float(np.median(sharpness))
    return {shift: np.clip(np.nan_to_num(factor * values), -_MOST, _MOST) for shift, values in gains.items()}


def _mended(n_rows: int, found: list[Mispairing]) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the sounds, rows of their texts), as they would be were all that was found put right."""
    text = {row: row for row in range(n_rows)}
    for one in found:
        for row in one.rows:
            del text[row]
        text |= one.text_of
    return np.array(list(text)), np.array(list(text.values()))


def _chance(fit: Fit, model: Model, length: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> float:
    """The sum of gains that a source without a mistake exceeds with the chance of FALSE_ALARMS.

    Two kinds of such sources are made of this one, by what is taken for its right pairs. In the one the residuals are
    turned against the texts: neighbours keep what they have in common, as in a sorted set. In the other the pairs of
    each speaker change places: who does not keep a pace stays so. What is done to the source is done to each of them.
    """
    generator = np.random.default_rng(0)
    tries = _TRIES if len(length) <= _MANY_ROWS else _TRIES // 5
    turned = [_largest(fit, model.rotated(generator)) for _ in range(tries)]
    mixed = []
    for _ in range(tries):
        order = fit.mixed(generator, pairs[0])
        audio, text = pairs[0][order], pairs[1][order]
        mixed.append(_largest(fit.of(audio, text), length[audio]))
    return max(_exceeded(turned, at_least=_FLOOR), _exceeded(mixed, at_least=_FLOOR))


def _largest(fit: Fit, length: np.ndarray) -> float:
    """The largest sum of gains in a source: fit, put right what looks best, fit again."""
    n_rows = len(length)
    everything = np.arange(n_rows)
    model = fit.model(length, everything, everything)
    if candidates := _stretches(model.gains(length, even=True), np.zeros(n_rows, dtype=bool), _FLOOR):
        model = fit.model(length, *_mended(n_rows, candidates))
    return max(_best_stretch(values)[0] for values in model.gains(length).values())


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


def find_name_orders(names: Sequence[str]) -> Iterator[dict[int, int]]:
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


def _ordered(model: Model, length: np.ndarray, orders: Sequence[dict[int, int]]) -> list[Mispairing]:
    """Which other orders of the names the texts follow; of two for the same files, the better one."""
    generator = np.random.default_rng(0)
    found: list[Mispairing] = []
    for order in orders:
        audio, text = np.array(list(order)), np.array(list(order.values()))
        evidence = float(model.gain(length, audio, text).sum())
        by_chance = [model.gain(model.rotated(generator), audio, text).sum() for _ in range(_TRIES)]
        chance = _exceeded(by_chance, at_least=np.log(len(orders) / FALSE_ALARMS))
        if evidence > chance:
            found.append(Mispairing(tuple(sorted(order)), order, None, evidence, chance))
    found.sort(key=lambda one: -one.evidence)
    return [one for number, one in enumerate(found) if not any(set(one.rows) & set(o.rows) for o in found[:number])]
