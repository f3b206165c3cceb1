"""Long recordings with their segment times: subtitles read, and cut into clips that fill the model's window."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.text import join_segments
from whisper_peft.errors import UserError

WINDOW_S = 30.0  # every published Whisper's
GAP_S = 2.0  # a longer silence between two segments may be speech that nobody wrote down: no clip goes over it
MAX_TOKENS = 440  # of 448, which hold the prefix, too
TOKENS_OF_A_TIME = 3  # that a segment adds when it has its times, and a space


def utf8_bytes(text: str) -> int:
    """At least as many as tokens: Whisper's vocabulary is made of bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def read_segments(path: Path) -> list[Segment]:
    """Read the segments of a .srt, .vtt or .json file, in the order of their starts; those without text are dropped.

    A .json file is a list of {"start", "end", "text"} in seconds, or an object that has one as "segments", as Whisper
    programs write it.

    Raises:
        UserError: It cannot be read, or has no segments.
    """
    try:
        page = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    found = _of_json(path, page) if path.suffix.lower() == ".json" else _of_subtitles(path, page)
    segments = sorted((one for one in found if one.text.strip()), key=lambda one: one.start_s)
    if not segments:
        raise UserError(f"{path}: no segments with text in it.")
    return segments


def _of_subtitles(path: Path, page: str) -> Iterator[Segment]:
    import pysubs2

    try:
        events = pysubs2.SSAFile.from_string(page, format_=path.suffix.lower()[1:])
    except (pysubs2.exceptions.Pysubs2Error, ValueError) as error:
        raise UserError(f"{path}: cannot be read as subtitles ({' '.join(str(error).split())}).") from None
    for event in events:
        if not event.is_comment:
            yield Segment(" ".join(event.plaintext.split()), event.start / 1000, event.end / 1000)


def _of_json(path: Path, page: str) -> Iterator[Segment]:
    try:
        content = json.loads(page)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    listed = content.get("segments") if isinstance(content, dict) else content
    if not isinstance(listed, list):
        raise UserError(f'{path}: no list of segments, as [{{"start": 0.0, "end": 2.5, "text": "..."}}].')
    for number, fields in enumerate(listed, start=1):
        yield as_segment(fields, f"{path}: segment {number}")


def as_segment(fields: object, place: str) -> Segment:
    """Build a segment from {"start", "end", "text"} (or start_s, end_s), in seconds.

    Raises:
        UserError: It is none; with the place.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise UserError(f'{place}: no text; a segment is {{"start": 0.0, "end": 2.5, "text": "..."}}.')
    times = [fields.get(name, fields.get(f"{name}_s")) for name in ("start", "end")]
    for value in times:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{place}: {value!r} is no time in seconds; a segment has start and end.")
    return Segment(fields["text"], float(times[0]), float(times[1]))


def cut(
    recording: Row,
    segments: Sequence[Segment],
    *,
    n_tokens: Callable[[str], int] = utf8_bytes,
    window_s: float = WINDOW_S,
    max_tokens: int = MAX_TOKENS,
) -> list[Row]:
    """Cut a recording into clips: neighbouring segments joined as long as they fit the window and the token limit.

    Args:
        recording: what all its clips have in common.
        segments: in the order of their starts, times from the start of the file.
        n_tokens: text -> how many tokens it has, or at most has.
        window_s: seconds of the longest clip; a segment that is longer stays whole, and is left out when it is read.
        max_tokens: of a clip, times included.

    Returns:
        One row a clip; its prompt is the text of the clip before, where no silence over GAP_S lies between.
    """
    rows: list[Row] = []
    start, size, end_s = 0, 0, -math.inf
    for index, segment in enumerate(segments):
        tokens = n_tokens(segment.text.strip()) + TOKENS_OF_A_TIME
        fits = (
            max(end_s, segment.end_s) - segments[start].start_s <= window_s
            and size + tokens <= max_tokens
            and segment.start_s - end_s <= GAP_S
        )
        if index and not fits:
            rows.append(_clip(recording, segments[start:index], rows))
            start, size, end_s = index, 0, -math.inf
        size, end_s = size + tokens, max(end_s, segment.end_s)
    return [*rows, _clip(recording, segments[start:], rows)]


def _clip(recording: Row, segments: Sequence[Segment], before: list[Row]) -> Row:
    start_s, end_s = segments[0].start_s, max(one.end_s for one in segments)
    text = join_segments(one.text for one in segments)
    follows = before and start_s - before[-1].end_s <= GAP_S
    return Row(
        audio=recording.audio,
        text=text,
        language=recording.language,
        start_s=start_s,
        end_s=end_s,
        speaker=recording.speaker,
        place=f"{recording.place}:{start_s:.2f}-{end_s:.2f}s",
        segments=tuple(Segment(one.text, one.start_s - start_s, one.end_s - start_s) for one in segments),
        prompt=before[-1].text if follows else "",
    )
