"""Find faults in the sound of clips: silence, clipping, low level, narrow bands, wrong sampling rates."""

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
    estimate_speed,
    measure_clip,
)
from whisper_peft.data.audio import AudioError
from whisper_peft.files import printable

# Level above 4.2 kHz compared with that below 4 kHz. Under it the sound has the band of a telephone.
_NARROW_DB = -60.0
# Share of full scale. Clipped sound has been at least that loud, even if a codec has rounded its peaks.
_PEAK_OF_CLIPPED = 0.5
# A sampling rate is called wrong from this factor on.
_LEAST_FACTOR = 1.3
# How many dB closer to the usual spectrum the corrected one must come. Speech that is too slow needs more, because it
# leaves high bands empty.
_NEARER_IF_FAST_DB = 2.5
_NEARER_IF_SLOW_DB = 8.0


def look_at_sounds(findings: Findings, measures: Sequence[dict[int, Measures]]) -> None:
    """Find what is wrong with the sound of clips.

    Args:
        findings: Takes what is found.
        measures: For each source, what was measured by the number of the row; only rows that could be decoded.
    """
    for source, measured in enumerate(measures):
        for number, measure in measured.items():
            _look_at_preparation(findings, source, number, measure)
            if not findings.sources[source].rows[number].no_speech:
                _look_at_level(findings, source, number, measure)
        _look_at_bands(findings, source, measured)


def find_mended_sounds(source: SourceRows, *, n_clips: int, longest_s: float) -> dict[str, tuple[int, str]]:
    """Decode a few clips of a source, and tell what the decoder had to correct silently.

    Args:
        source: The source.
        n_clips: Number of clips that are decoded, spread over the source.
        longest_s: Seconds that the model takes. Longer clips are passed over.

    Returns:
        For each kind of finding, the number of clips that have it, and the first of them with its detail.
    """
    findings = Findings([source])
    every = max(1, len(source.rows) // n_clips)
    for number in range(0, len(source.rows), every)[:n_clips]:
        row = source.rows[number]
        try:
            measure = measure_clip(row, end_s=row.end_s, longest_s=longest_s)
        except AudioError:
            # Whoever trains on the clip names it.
            continue
        _look_at_preparation(findings, 0, number, measure)
    mended = {}
    for kind, occurrences in findings.occurrences.items():
        first = min(occurrences)
        name = printable(source.rows[first[1]].name)
        mended[kind] = (len(occurrences), f"{name}: {occurrences[first].detail}")
    return mended


def find_misstated_rate(measure: Measures, usual_spectrum: np.ndarray, pace: float) -> float | None:
    """Tell by which factor the header's sampling rate is too high.

    Args:
        measure: The measures of the clip.
        usual_spectrum: Spectrum of the other clips.
        pace: How many times the usual pace the clip has.

    Returns:
        The factor; None if pace and spectrum do not agree that the rate is wrong.
    """
    factor, nearer_db = estimate_speed(measure.spectrum, usual_spectrum, near=pace)
    if abs(np.log(factor)) <= np.log(_LEAST_FACTOR):
        return None
    least_db = _NEARER_IF_SLOW_DB
    if factor > 1:
        least_db = _NEARER_IF_FAST_DB
    if nearer_db <= least_db:
        return None
    return factor


def _look_at_preparation(findings: Findings, source: int, number: int, measure: Measures) -> None:
    """Note what had to be done with the samples before they could be used."""
    if measure.full_scale != 1:
        detail = f"its samples reach {measure.peak * measure.full_scale:.0f}; divided by {measure.full_scale:.0f}"
        findings.add("integer-scale", source, number, detail)
    if measure.cancelled_s:
        cancelled_s = min(measure.cancelled_s, measure.seconds)
        detail = f"in {cancelled_s:.1f} of {measure.seconds:.1f} s; one channel is inverted there"
        findings.add("opposite-channels", source, number, detail, weight=measure.cancelled_s)


def _look_at_level(findings: Findings, source: int, number: int, measure: Measures) -> None:
    loud_db = measure.loud_db
    range_db = loud_db - measure.quiet_db
    if loud_db < SILENT_DB:
        findings.add("silence", source, number, f"at most {loud_db:.0f} dB of full scale", weight=-loud_db)
    elif loud_db < QUIET_DB:
        findings.add("low-level", source, number, f"speech at {loud_db:.0f} dB of full scale", weight=-loud_db)
    elif range_db < STEADY_DB:
        findings.add("steady-noise", source, number, f"loud and quiet are {range_db:.1f} dB apart")
    # A steady tone is at its peak all the time, and is not clipped.
    if measure.clipped > CLIPPED_SHARE and measure.peak > _PEAK_OF_CLIPPED and range_db >= STEADY_DB:
        detail = f"{measure.clipped:.1%} of the samples are at the peak"
        findings.add("clipping", source, number, detail, weight=measure.clipped)


def _look_at_bands(findings: Findings, source: int, measured: dict[int, Measures]) -> None:
    """Note clips without high frequencies, where most clips have them."""
    audible = {number: measure for number, measure in measured.items() if measure.loud_db >= SILENT_DB}
    narrow = {number: measure for number, measure in audible.items() if measure.high_db < _NARROW_DB}
    if 2 * len(narrow) < len(audible):
        for number, measure in narrow.items():
            findings.add("narrow-band", source, number, f"{measure.high_db:.0f} dB above 4 kHz against below")
