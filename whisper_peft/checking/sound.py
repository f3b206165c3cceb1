"""What the measures of many clips say of each: silence, clipping, low level, narrow bands, wrong rates, twins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_peft.checking.findings import Findings, SourceRows
from whisper_peft.checking.sound_measures import (
    CLIPPED_SHARE,
    QUIET_DB,
    SILENT_DB,
    STEADY_DB,
    Measures,
    measure_clip,
    speed_of,
)
from whisper_peft.data.audio import AudioError
from whisper_peft.files import printable

_NARROW_DB = -60.0  # above 4.2 kHz against below
_PEAK_OF_CLIPPED = 0.5  # of full scale: what is clipped has been loud, even if a codec has rounded it
_STRETCHED = np.log(1.3)  # the factor of frequencies, at least
_NEARER_DB = {True: 2.5, False: 8.0}  # the spectrum to the usual one, put right; slowed speech leaves bands empty


def look_at_sounds(findings: Findings, measures: Sequence[dict[int, Measures]]) -> None:
    """Find what is wrong with the sound of clips.

    Args:
        findings: takes what is found.
        measures: part -> row -> measures, of the rows that could be decoded.
    """
    for part, known in enumerate(measures):
        for number, one in known.items():
            _look_at_making(findings, part, number, one)
            if findings.parts[part].rows[number].no_speech:
                continue
            _look_at_level(findings, part, number, one)
        _look_at_bands(findings, part, known)


def find_mended_sounds(part: SourceRows, *, n_clips: int, longest_s: float) -> dict[str, tuple[int, str]]:
    """Listen to a few clips of a source, spread over it, for what the decoder mends without a word.

    Args:
        part: The source.
        n_clips: How many clips are listened to.
        longest_s: What the model takes, in seconds; longer clips are passed over.

    Returns:
        kind of finding -> (number of clips that have it, the first of them and what is the matter with it).
    """
    findings = Findings([part])
    every = max(1, len(part.rows) // n_clips)
    for number in range(0, len(part.rows), every)[:n_clips]:
        row = part.rows[number]
        try:
            measures = measure_clip(row, end_s=row.end_s, longest_s=longest_s)
        except AudioError:
            continue  # is named by whoever trains on it
        _look_at_making(findings, 0, number, measures)
    seen = {}
    for kind, rows in findings.found.items():
        (_, number), (_, detail, _) = min(rows.items())
        seen[kind] = (len(rows), f"{printable(part.rows[number].name)}: {detail}")
    return seen


def misstated_rate(one: Measures, usual: np.ndarray, pace: float) -> float | None:
    """By which factor the header's sampling rate is too high, if pace and spectrum agree that it is wrong; else None.

    Args:
        one: of the clip.
        usual: the spectrum of the others.
        pace: how many times the usual one it is.
    """
    factor, nearer_db = speed_of(one.spectrum, usual, near=pace)
    return factor if abs(np.log(factor)) > _STRETCHED and nearer_db > _NEARER_DB[factor > 1] else None


def _look_at_making(findings: Findings, part: int, number: int, one: Measures) -> None:
    """Note what had to be done with the samples before they could be used."""
    if one.full_scale != 1:
        detail = f"its samples reach {one.peak * one.full_scale:.0f}; divided by {one.full_scale:.0f}"
        findings.add("integer-scale", part, number, detail)
    if one.cancelled_s:
        detail = f"in {min(one.cancelled_s, one.seconds):.1f} of {one.seconds:.1f} s; turned over there"
        findings.add("opposite-channels", part, number, detail, weight=one.cancelled_s)


def _look_at_level(findings: Findings, part: int, number: int, one: Measures) -> None:
    if one.loud_db < SILENT_DB:
        findings.add("silence", part, number, f"at most {one.loud_db:.0f} dB of full scale", weight=-one.loud_db)
    elif one.loud_db < QUIET_DB:
        findings.add("low-level", part, number, f"speech at {one.loud_db:.0f} dB of full scale", weight=-one.loud_db)
    elif one.loud_db - one.quiet_db < STEADY_DB:
        findings.add("steady-noise", part, number, f"loud and quiet are {one.loud_db - one.quiet_db:.1f} dB apart")
    if one.clipped > CLIPPED_SHARE and one.peak > _PEAK_OF_CLIPPED and one.loud_db - one.quiet_db >= STEADY_DB:
        findings.add("clipping", part, number, f"{one.clipped:.1%} of the samples are at the peak", weight=one.clipped)


def _look_at_bands(findings: Findings, part: int, known: dict[int, Measures]) -> None:
    audible = {number: one for number, one in known.items() if one.loud_db >= SILENT_DB}
    narrow = [number for number, one in audible.items() if one.high_db < _NARROW_DB]
    if 2 * len(narrow) < len(audible):
        for number in narrow:
            findings.add("narrow-band", part, number, f"{audible[number].high_db:.0f} dB above 4 kHz against below")
