"""Long recordings with their segment times: subtitles read, and cut into clips that fill the model's window."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from whisper_peft.data.cues import MOST_S, read_cues
from whisper_peft.data.rolling import collapse
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.text import join_segments
from whisper_peft.errors import UserError
from whisper_peft.files import read_json_file, read_text, short_repr

WINDOW_S = 30.0  # every published Whisper's
GAP_S = 2.0  # a longer silence between two segments may be speech that nobody wrote down: no clip goes over it
LEAST_OF_NEXT_S = 0.1  # of the segment behind a clip: with less in its window there is nothing to hear
MAX_TOKENS = 440  # of 448, which hold the prefix, too
TOKENS_OF_A_TIME = 3  # that a segment adds when it has its times, and a space
# The automatic captions of a day of speech, each line shown three times with word marks, have some 10 MB.
MAX_CAPTION_BYTES = 16 * 1024**2
# Names under which Whisper programs list segments: most of them, whisper.cpp, and transformers' pipeline.
_LISTS_OF_SEGMENTS = ("segments", "transcription", "chunks")


def utf8_bytes(text: str) -> int:
    """At least as many as tokens: Whisper's vocabulary is made of bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def read_segments(path: Path) -> list[Segment]:
    """Read the segments of a .srt, .vtt or .json file, in the order of their starts; those without text are dropped.

    Markup and time marks never become text, and the lines of rolling captions come once each. A .json file is a list
    of {"start", "end", "text"} in seconds, or what a Whisper program writes: an object with "segments", the
    "transcription" of whisper.cpp, or the "chunks" of transformers.

    Raises:
        UserError: It cannot be read, or has no segments. The message names the cue or segment.
    """
    if path.suffix.lower() == ".json":
        segments = list(_of_json(path))
    else:
        segments = collapse(read_cues(path, read_text(path, max_bytes=MAX_CAPTION_BYTES)))
    spoken = sorted((segment for segment in segments if segment.text.strip()), key=lambda segment: segment.start_s)
    if not spoken:
        raise UserError(f"{path}: no segments with text in it.")
    return spoken


def _of_json(path: Path) -> Iterator[Segment]:
    content = read_json_file(path, kind=object)
    listed = content
    if isinstance(content, dict):
        listed = next((content[name] for name in _LISTS_OF_SEGMENTS if name in content), None)
    if not isinstance(listed, list):
        raise UserError(f'{path}: no list of segments, as [{{"start": 0.0, "end": 2.5, "text": "..."}}].')
    for number, fields in enumerate(listed, start=1):
        place = f"{path}: segment {number}"
        segment = as_segment(_in_seconds(fields), place)
        if segment.start_s < 0:
            raise UserError(f"{place}: it starts at {segment.start_s:g} s, before the recording; mend its times.")
        if segment.end_s < segment.start_s:
            raise UserError(
                f"{place}: it ends at {segment.end_s:g} s, before it starts at {segment.start_s:g} s; mend its times."
            )
        yield segment


def _in_seconds(fields: object) -> object:
    """Bring a segment of whisper.cpp or of transformers' pipeline into our keys; leave any other as it is."""
    if not isinstance(fields, dict) or "start" in fields:
        return fields
    offsets_ms = fields.get("offsets")
    if isinstance(offsets_ms, dict):
        times = [_divided(offsets_ms.get(name), 1000) for name in ("from", "to")]
        return {**fields, "start": times[0], "end": times[1]}
    times = fields.get("timestamp")
    if isinstance(times, list) and len(times) == 2:
        return {**fields, "start": times[0], "end": times[1]}
    return fields


def _divided(value: object, divisor: int) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > MOST_S * divisor:
        return value
    return value / divisor


def as_segment(fields: object, place: str) -> Segment:
    """Build a segment from {"start", "end", "text"} (or start_s, end_s), in seconds.

    Args:
        fields: What should be a segment, of any type.
        place: Where it stands, for messages.

    Raises:
        UserError: It is no segment: the text or a time is missing or of another type.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise UserError(f'{place}: no text; a segment is {{"start": 0.0, "end": 2.5, "text": "..."}}.')
    text = fields["text"]
    if not _is_whole(text):
        raise UserError(f"{place}: half of a surrogate pair in its text; write the text as UTF-8.")
    start_s = _time_s(fields.get("start", fields.get("start_s")), place)
    end_s = _time_s(fields.get("end", fields.get("end_s")), place)
    return Segment(text, start_s, end_s)


def _time_s(value: object, place: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: an integer may have hundreds of digits. The comparison is false for NaN.
    if not is_number or not -MOST_S <= value <= MOST_S:
        raise UserError(f"{place}: {short_repr(value)} is no time in seconds; a segment has start and end.")
    return float(value)


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
            clip = _clip(recording, segments[start:index], rows)
            rows.append(_with_window(clip, segments[index:], window_s))
            start, size, end_s = index, 0, -math.inf
        size, end_s = size + tokens, max(end_s, segment.end_s)
    return [*rows, _clip(recording, segments[start:], rows)]


def _with_window(clip: Row, behind: Sequence[Segment], window_s: float) -> Row:
    """Let a clip's window reach into the segment behind it, as in Whisper's own training (Radford et al. 2022, 2.3).

    The window ends before any segment behind the clip does, so no whole segment is heard without its text.

    Args:
        clip: The clip.
        behind: The recording's segments behind it, in the order of their starts.
        window_s: Seconds of the longest clip.

    Returns:
        The clip; unchanged where a long silence follows, or where nothing of the next segment has room.
    """
    next_start_s = max(behind[0].start_s, clip.end_s)
    if next_start_s - clip.end_s > GAP_S:
        return clip
    window_end_s = clip.start_s + window_s
    inside = itertools.takewhile(lambda segment: segment.start_s < window_end_s, behind)
    first_end_s = min((segment.end_s for segment in inside), default=math.inf)
    if first_end_s <= window_end_s:  # a segment that had room, but not its tokens
        window_end_s = (next_start_s + first_end_s) / 2
    if window_end_s - next_start_s < LEAST_OF_NEXT_S:
        return clip
    return dataclasses.replace(clip, window_end_s=window_end_s, next_start_s=next_start_s - clip.start_s)


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
