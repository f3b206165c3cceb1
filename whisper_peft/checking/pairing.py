"""Texts beside the wrong sound: stretches of moved texts, unusual paces, and texts that a model finds unlikely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from whisper_peft.checking.findings import MOST_READ, Findings
from whisper_peft.checking.model_evidence import find_unlikely_texts, gains_of, losses_by_text
from whisper_peft.checking.shifted_texts import Mispairing, correlate_lengths, find_mispairings, find_name_orders
from whisper_peft.checking.sound import find_misstated_rate
from whisper_peft.checking.sound_measures import Measures
from whisper_peft.checking.speech_rate import text_sizes, unusual_paces
from whisper_peft.data.rows import Row

# A pace this far from the usual one, in robust deviations, is suspect: together with the spectrum it shows a wrong
# sampling rate. From the second value on it is an outlier by itself.
_SUSPECT = 3.0
_OUTLIER = 6.0
# Rows with one of these findings have a reason for an unusual pace already.
_EXPLAINED = (
    "times-elsewhere",
    "bad-segments",
    "missing",
    "unreadable",
    "truncated",
    "over-window",
    "over-token-limit",
    "empty-text",
    "wrong-script",
    "silence",
)

Losses = Callable[[Sequence[Row]], np.ndarray]
"""Returns a model's losses for rows, float (n_rows, 7).

For the sound of each row it has the mean token loss of the texts from 3 rows before it to 3 rows after it; NaN where
there is none."""


@dataclass(frozen=True)
class PairedRows:
    """The rows of a source that have a sound and a text. All arrays and lists are in the order of `numbers`.

    Attributes:
        rows: All rows of the source.
        numbers: Number of each usable row in the source.
        seconds: Seconds of each usable row.
        tokens: Tokens of each usable row.
        speech_s: Seconds of speech, float (n_usable,); the whole clip where its sound was not measured.
        sizes: Sizes of the texts, float (n_usable, 3).
        speakers: Speaker of each usable row; None where it is not known.
    """

    rows: Sequence[Row]
    numbers: list[int]
    seconds: list[float]
    tokens: list[int]
    speech_s: np.ndarray
    sizes: np.ndarray
    speakers: list[str | None]

    @classmethod
    def of_source(
        cls,
        rows: Sequence[Row],
        seconds: Sequence[float | None],
        tokens: Sequence[int | None],
        measures: dict[int, Measures],
    ) -> PairedRows:
        """Choose the usable rows of a source.

        Args:
            rows: All rows.
            seconds: Seconds of each row; None where they are not known.
            tokens: Tokens of each row; None where they are not known.
            measures: What was measured, by the number of the row.
        """
        numbers = []
        known_seconds = []
        known_tokens = []
        speech_s = []
        for number, (row_seconds, row_tokens) in enumerate(zip(seconds, tokens, strict=True)):
            if row_seconds and row_tokens:
                numbers.append(number)
                known_seconds.append(row_seconds)
                known_tokens.append(row_tokens)
                speech_s.append(measures[number].speech_s if number in measures else row_seconds)
        return cls(
            rows=rows,
            numbers=numbers,
            seconds=known_seconds,
            tokens=known_tokens,
            speech_s=np.array(speech_s),
            sizes=text_sizes([rows[number].text[:MOST_READ] for number in numbers], known_tokens),
            speakers=[rows[number].speaker for number in numbers],
        )

    def correlate_lengths(self) -> dict[int, float]:
        """Correlate clip length and text length, for texts moved by a few rows."""
        return correlate_lengths(self.speech_s, self.sizes)


def look_at_pairing(
    findings: Findings, source: int, paired: PairedRows, measures: dict[int, Measures], losses: Losses | None
) -> list[Mispairing]:
    """Find texts beside the wrong sound, first in stretches, then alone.

    Args:
        findings: Takes what is found.
        source: Number of the source.
        paired: The usable rows.
        measures: What was measured, by the number of the row.
        losses: Returns a model's losses; None if there is no model.

    Returns:
        The stretches, by the numbers of the rows in the source.
    """
    table = None
    if losses is not None:
        table = losses([paired.rows[number] for number in paired.numbers])
    mispairings = _find_mispairings(paired, table)
    moved = _note_mispairings(findings, source, mispairings)
    _note_paces(findings, source, paired, measures, moved)
    if table is not None:
        _note_unlikely_texts(findings, source, paired, table, moved)
    return mispairings


def _find_mispairings(paired: PairedRows, table: np.ndarray | None) -> list[Mispairing]:
    place = {number: usable for usable, number in enumerate(paired.numbers)}
    orders = []
    # The orders are those of all files: a file that cannot be used has its number, too.
    for order in find_name_orders([row.name for row in paired.rows]):
        usable_order = {place[sound]: place[text] for sound, text in order.items() if sound in place and text in place}
        if usable_order:
            orders.append(usable_order)
    gains = None if table is None else gains_of(table)
    mispairings = find_mispairings(paired.speech_s, paired.sizes, paired.speakers, orders, gains)
    return [_number_by_source(mispairing, paired.numbers) for mispairing in mispairings]


def _number_by_source(mispairing: Mispairing, numbers: Sequence[int]) -> Mispairing:
    """Translate numbers of usable rows to numbers of all rows.

    Pairs that span an unusable row are dropped: there it is not known whose text is whose.
    """
    text_of = {numbers[sound]: numbers[text] for sound, text in mispairing.text_of.items()}
    if mispairing.shift:
        text_of = {sound: text for sound, text in text_of.items() if sound - text == mispairing.shift}
    return Mispairing(
        rows=tuple(numbers[row] for row in mispairing.rows),
        text_of=text_of,
        shift=mispairing.shift,
        evidence=mispairing.evidence,
        chance=mispairing.chance,
        doubtful=frozenset(numbers[row] for row in mispairing.doubtful),
    )


def _note_mispairings(findings: Findings, source: int, mispairings: Sequence[Mispairing]) -> set[int]:
    """Note the rows of each stretch and those at its edges; return their numbers."""
    rows = findings.sources[source].rows
    moved: set[int] = set()
    for mispairing in mispairings:
        kind = "shifted-texts"
        detail = f"moved by {mispairing.shift:+d}" if mispairing.shift else ""
        if mispairing.is_order:
            kind = "other-order"
            detail = "other order of the names"
        for number in mispairing.rows:
            right = mispairing.text_of.get(number)
            suggestion = None if right is None else rows[right].text
            findings.add(kind, source, number, detail, suggestion=suggestion)
        for number in mispairing.doubtful.difference(mispairing.rows):
            findings.add(kind, source, number, f"perhaps {detail}: at the edge of the stretch", weight=-1.0)
        moved |= mispairing.doubtful.union(mispairing.rows)
    return moved


def _note_paces(
    findings: Findings, source: int, paired: PairedRows, measures: dict[int, Measures], moved: set[int]
) -> None:
    """Note rows with far too much or too little text for their sound, and those with a wrong sampling rate.

    Rows in `moved` are passed over, and rows that have another reason for their pace.
    """
    ratios, deviations = unusual_paces(paired.speech_s, paired.sizes, paired.speakers)
    spectra = [measure.spectrum for measure in measures.values()]
    # Without measures no spectrum is needed: the sound was not decoded.
    usual_spectrum = np.median(spectra, axis=0) if spectra else np.empty(0)
    explained = findings.rows(*_EXPLAINED)
    for usable, number in enumerate(paired.numbers):
        ratio = ratios[usable]
        deviation = deviations[usable]
        if number in moved or (source, number) in explained or deviation < _SUSPECT:
            continue
        factor = None
        if number in measures and usual_spectrum is not None:
            factor = find_misstated_rate(measures[number], usual_spectrum, ratio)
        if factor:
            detail = f"speech and spectrum are about {factor:.1f} times as fast and high as others'"
            findings.add("wrong-rate", source, number, detail, weight=abs(np.log(factor)))
        elif deviation > _OUTLIER:
            kind = "too-little-text"
            pace = f"{1 / ratio:.1f} times as long as usual"
            if ratio > 1:
                kind = "too-much-text"
                pace = f"{ratio:.1f} times the usual pace"
            detail = f"{paired.tokens[usable]} tokens in {paired.seconds[usable]:.1f} s: {pace}"
            findings.add(kind, source, number, detail, weight=deviation)


def _note_unlikely_texts(
    findings: Findings, source: int, paired: PairedRows, table: np.ndarray, moved: set[int]
) -> None:
    """Note rows whose text a model finds unlikely; rows in `moved` are passed over."""
    own_column = table.shape[1] // 2
    own_losses = np.where([number in moved for number in paired.numbers], np.nan, table[:, own_column])
    for usable, detail in find_unlikely_texts(own_losses, losses_by_text(table)):
        findings.add("unlikely-text", source, paired.numbers[usable], detail, weight=float(own_losses[usable]))
