"""What the measures of many clips say of each: silence, clipping, low level, narrow bands, wrong rates, twins."""

from __future__ import annotations

from collections.abc import Sequence

from whisper_peft.data.findings import Findings
from whisper_peft.data.listening import CLIPPED_SHARE, QUIET_DB, SILENT_DB, STEADY_DB, Measures

_NARROW_DB = -45.0  # above 4.2 kHz against below
_PEAK_OF_CLIPPED = 0.5  # of full scale: what is clipped has been loud, even if a codec has rounded it
_STRETCHED = 1.35  # factor of frequencies from which on a rate is looked at


def look_at_sounds(findings: Findings, measures: Sequence[dict[int, Measures]]) -> None:
    """Find what is wrong with the sound of clips.

    Args:
        findings: takes what is found.
        measures: part -> row -> measures, of the rows that could be decoded.
    """
    for part, known in enumerate(measures):
        for number, one in known.items():
            if findings.parts[part].rows[number].no_speech:
                continue
            _look_at_level(findings, part, number, one)
        _look_at_bands(findings, part, known)


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
