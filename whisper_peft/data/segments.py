"""The segments of a row: read from a cell, and held against each other and against the row."""

from __future__ import annotations

from typing import Any

from whisper_peft.data.rows import Segment
from whisper_peft.data.subtitles import as_segment
from whisper_peft.errors import UserError
from whisper_peft.files import parse_json, short_repr

SLACK_S = 0.5  # a segment may end so much later than its clip: times are rounded
_ROUNDING_S = 0.001
MOST_SPEAKERS = 2.0  # segments may take so many times the time that they span: two people speak at once, at most


def read_cell(value: Any) -> tuple[Segment, ...]:
    """Read the segments of a cell: a list of {"start", "end", "text"}, or the same as JSON text.

    Args:
        value: The cell; None and an empty text or list stand for no segments.

    Returns:
        The segments in the order of their starts.

    Raises:
        UserError: It is none of these, or a segment has no text or no times; with the number of the segment.
    """
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise UserError(f"segments: not JSON ({error}); write a list of segments.") from None
    if not isinstance(value, (list, tuple)):
        raise UserError(
            f'segments: {short_repr(value)} is not a list; write [{{"start": 0.0, "end": 2.5, "text": "..."}}].'
        )
    segments = [as_segment(fields, f"segment {number}") for number, fields in enumerate(value, start=1)]
    return tuple(sorted(segments, key=lambda segment: segment.start_s))


def find_fault(segments: tuple[Segment, ...], length_s: float | None) -> str:
    """Say why the times of a row's segments cannot be right.

    Args:
        segments: In the order of their starts, times from the start of the row.
        length_s: How long the row is; None where that is not known.

    Returns:
        The reason, or an empty text where nothing is wrong.
    """
    if not segments:
        return ""
    for segment in segments:
        times = f"the segment {short_repr(segment.text.strip())} from {segment.start_s:g} to {segment.end_s:g} s"
        if segment.end_s < segment.start_s - _ROUNDING_S:
            return f"{times} ends before it starts"
        if segment.start_s < -SLACK_S:
            return f"{times} starts before the clip"
        if length_s is not None and segment.end_s > length_s + SLACK_S:
            return f"{times} ends after the clip, which has {length_s:.2f} s; times count from the start of the row"
    spanned_s = max(segment.end_s for segment in segments) - segments[0].start_s
    spoken_s = sum(segment.end_s - segment.start_s for segment in segments)
    if spoken_s > MOST_SPEAKERS * spanned_s + SLACK_S:
        return f"{len(segments)} segments of {spoken_s:.1f} s together lie within {spanned_s:.1f} s, over one another"
    return ""
