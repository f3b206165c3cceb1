"""The segments of a row: how they are read from a cell, and whether their times can be right."""

from __future__ import annotations

from typing import Any

from whisper_peft.data.rows import Segment
from whisper_peft.data.subtitles import as_segment
from whisper_peft.errors import UserError
from whisper_peft.files import parse_json, short_repr

# Times in tables are rounded, so a segment may lie outside its clip by so many seconds.
_OUTSIDE_CLIP_S = 0.5
# A segment may end so many seconds before it starts, for the same reason.
_ROUNDING_S = 0.001
# Segments together may last so many times the stretch that they cover: two people speak at once, at most.
_MOST_SPEAKERS = 2.0


def read_cell(value: Any) -> tuple[Segment, ...]:
    """Read the segments of a cell: a list of {"start", "end", "text"}, or the same as JSON text.

    Args:
        value: The cell. None and an empty text or list stand for no segments.

    Returns:
        The segments in the order of their starts.

    Raises:
        UserError: The cell is none of these, or a segment has no text or no times. The message has its number.
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
        segments: The segments in the order of their starts. Their times count from the start of the row.
        length_s: The length of the row in seconds. None: it is not known.

    Returns:
        The reason; an empty text if the times can be right.
    """
    if not segments:
        return ""
    for segment in segments:
        times = f"the segment {short_repr(segment.text.strip())} from {segment.start_s:g} to {segment.end_s:g} s"
        if segment.end_s < segment.start_s - _ROUNDING_S:
            return f"{times} ends before it starts"
        if segment.start_s < -_OUTSIDE_CLIP_S:
            return f"{times} starts before the clip"
        if length_s is not None and segment.end_s > length_s + _OUTSIDE_CLIP_S:
            return f"{times} ends after the clip, which has {length_s:.2f} s; times count from the start of the row"
    covered_s = max(segment.end_s for segment in segments) - segments[0].start_s
    together_s = sum(segment.end_s - segment.start_s for segment in segments)
    if together_s > _MOST_SPEAKERS * covered_s + _OUTSIDE_CLIP_S:
        return f"{len(segments)} segments of {together_s:.1f} s together lie within {covered_s:.1f} s, over one another"
    return ""
