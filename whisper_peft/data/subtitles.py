"""Long recordings: their segments are read from caption files, and joined into clips that fill the model's window."""

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

# The window of every published Whisper, in seconds.
WINDOW_S = 30.0
# No clip goes over a longer silence between two segments: it may be speech that nobody wrote down.
_LONGEST_SILENCE_S = 2.0
# A clip's window reaches into the next segment only if it holds so much of it: in less there is nothing to hear.
_LEAST_OF_NEXT_S = 0.1
# The model takes 448 tokens, which also hold the prefix.
_MAX_TOKENS = 440
# What a segment adds to its text in tokens: its start time, its end time, and a space.
TOKENS_OF_A_TIME = 3
# The automatic captions of a day of speech, each line shown three times with word marks, have some 10 MB.
_MAX_CAPTION_BYTES = 16 * 1024**2
# The keys under which programs list segments: most Whisper programs, whisper.cpp, and transformers' pipeline.
_LISTS_OF_SEGMENTS = ("segments", "transcription", "chunks")


def utf8_bytes(text: str) -> int:
    """Count the bytes of a text in UTF-8. It has at most so many tokens, because each token is a byte or more."""
    return len(text.encode("utf-8", "surrogatepass"))


def read_segments(path: Path) -> list[Segment]:
    """Read the segments of a .srt, .vtt or .json file.

    Markup and time marks never become text, and each line of rolling captions comes once. A .json file is a list
    of {"start", "end", "text"} in seconds, or what a Whisper program writes: an object with "segments", the
    "transcription" of whisper.cpp, or the "chunks" of transformers.

    Returns:
        The segments with text, in the order of their starts.

    Raises:
        UserError: The file cannot be read, or has no segments. The message names the cue or segment.
    """
    if path.suffix.lower() == ".json":
        segments = list(_read_json_segments(path))
    else:
        segments = collapse(read_cues(path, read_text(path, max_bytes=_MAX_CAPTION_BYTES)))
    spoken = sorted((segment for segment in segments if segment.text.strip()), key=lambda segment: segment.start_s)
    if not spoken:
        raise UserError(f"{path}: no segments with text in it.")
    return spoken


def _read_json_segments(path: Path) -> Iterator[Segment]:
    """Read the segments of a .json file, in the file's order."""
    listed = read_json_file(path, kind=object)
    if isinstance(listed, dict):
        content = listed
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
    """Return a segment of whisper.cpp or of transformers' pipeline under our keys; return any other as it is."""
    if not isinstance(fields, dict) or "start" in fields:
        return fields
    offsets_ms = fields.get("offsets")
    if isinstance(offsets_ms, dict):
        start_s = _to_seconds(offsets_ms.get("from"))
        end_s = _to_seconds(offsets_ms.get("to"))
        return {**fields, "start": start_s, "end": end_s}
    times = fields.get("timestamp")
    if isinstance(times, list) and len(times) == 2:
        return {**fields, "start": times[0], "end": times[1]}
    return fields


def _to_seconds(milliseconds: object) -> object:
    """Convert milliseconds to seconds; return what cannot be a time as it is, for the message that refuses it."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        return milliseconds
    # A division would overflow: an integer may have hundreds of digits.
    if abs(milliseconds) > 1000 * MOST_S:
        return milliseconds
    return milliseconds / 1000


def as_segment(fields: object, place: str) -> Segment:
    """Build a segment from {"start", "end", "text"} (or start_s, end_s), in seconds.

    Args:
        fields: The fields of the segment; a value of any other type is refused.
        place: Where the segment stands, for messages.

    Raises:
        UserError: The text or a time is missing or has the wrong type.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise UserError(f'{place}: no text; a segment is {{"start": 0.0, "end": 2.5, "text": "..."}}.')
    text = fields["text"]
    if not _has_whole_characters(text):
        raise UserError(f"{place}: half of a surrogate pair in its text; write the text as UTF-8.")
    start_s = _read_time(fields.get("start", fields.get("start_s")), place)
    end_s = _read_time(fields.get("end", fields.get("end_s")), place)
    return Segment(text, start_s, end_s)


def _read_time(value: object, place: str) -> float:
    """Read a time in seconds."""
    # It is compared before it is converted: an integer may have hundreds of digits. The comparison is false for "not a
    # number".
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST_S <= value <= MOST_S:
        return float(value)
    raise UserError(f"{place}: {short_repr(value)} is no time in seconds; write start and end as numbers such as 2.5.")


def _has_whole_characters(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def cut_recording(
    recording: Row,
    segments: Sequence[Segment],
    *,
    n_tokens: Callable[[str], int] = utf8_bytes,
    window_s: float = WINDOW_S,
    max_tokens: int = _MAX_TOKENS,
) -> list[Row]:
    """Cut a recording into clips. Neighbouring segments are joined while they fit the window and the token limit.

    Args:
        recording: What all clips have in common: the sound, the language, the speaker and the place.
        segments: At least one segment, in the order of their starts. Times count from the start of the file.
        n_tokens: Returns the number of a text's tokens, or an upper limit of it.
        window_s: Length of the longest clip in seconds. A longer segment stays whole, and is left out when it is read.
        max_tokens: Largest number of tokens in a clip, its times included.

    Returns:
        One row for each clip. Its prompt is the text of the clip before, unless a silence of more than 2 s lies
        between them.

    Example:
        >>> recording = Row("talk.wav", "", place="talk.srt")
        >>> segments = [Segment("One.", 0.0, 12.0), Segment("Two.", 12.5, 25.0), Segment("Three.", 26.0, 40.0)]
        >>> clips = cut_recording(recording, segments)
        >>> [(clip.start_s, clip.end_s, clip.text, clip.prompt) for clip in clips]
        [(0.0, 25.0, 'One. Two.', ''), (26.0, 40.0, 'Three.', 'One. Two.')]

        The window of the first clip ends with 4 s of the third segment, and the model learns when that one begins.

        >>> clips[0].window_end_s, clips[0].next_start_s
        (30.0, 26.0)
    """
    clips: list[Row] = []
    # The segments of the clip that is being built, with their end and the number of their tokens.
    first = 0
    end_s = -math.inf
    n_clip_tokens = 0
    for index, segment in enumerate(segments):
        n_segment_tokens = n_tokens(segment.text.strip()) + TOKENS_OF_A_TIME
        fits = (
            max(end_s, segment.end_s) - segments[first].start_s <= window_s
            and n_clip_tokens + n_segment_tokens <= max_tokens
            and segment.start_s - end_s <= _LONGEST_SILENCE_S
        )
        if index and not fits:
            clip = _build_clip(recording, segments[first:index], clips)
            clips.append(_extend_window(clip, end_s, segments[index:], window_s))
            first = index
            end_s = -math.inf
            n_clip_tokens = 0
        end_s = max(end_s, segment.end_s)
        n_clip_tokens += n_segment_tokens
    clips.append(_build_clip(recording, segments[first:], clips))
    return clips


def _extend_window(clip: Row, end_s: float, behind: Sequence[Segment], window_s: float) -> Row:
    """Let a clip's window reach into the segment behind it, as in Whisper's own training (Radford et al. 2022, 2.3).

    The window ends before any segment behind the clip does, so no whole segment is heard without its text.

    Args:
        clip: The clip.
        end_s: The time in the file where the clip ends.
        behind: The recording's segments behind the clip, in the order of their starts.
        window_s: Length of the longest clip in seconds.

    Returns:
        The clip; unchanged if a long silence follows, or if there is no room for a part of the next segment.
    """
    next_start_s = max(behind[0].start_s, end_s)
    if next_start_s - end_s > _LONGEST_SILENCE_S:
        return clip
    window_end_s = clip.start_s + window_s
    inside = itertools.takewhile(lambda segment: segment.start_s < window_end_s, behind)
    first_end_s = min((segment.end_s for segment in inside), default=math.inf)
    if first_end_s <= window_end_s:
        # The next segment has room, but its tokens have none: the window ends in its middle.
        window_end_s = (next_start_s + first_end_s) / 2
    if window_end_s - next_start_s < _LEAST_OF_NEXT_S:
        return clip
    return dataclasses.replace(clip, window_end_s=window_end_s, next_start_s=next_start_s - clip.start_s)


def _build_clip(recording: Row, segments: Sequence[Segment], clips: Sequence[Row]) -> Row:
    """Build the clip of some segments.

    Args:
        recording: What all clips have in common.
        segments: The segments of this clip.
        clips: The clips before this one.
    """
    start_s = segments[0].start_s
    end_s = max(segment.end_s for segment in segments)
    prompt = ""
    if clips:
        before = clips[-1]
        assert before.end_s is not None, "every clip of a recording has an end"
        if start_s - before.end_s <= _LONGEST_SILENCE_S:
            prompt = before.text
    return Row(
        audio=recording.audio,
        text=join_segments(segment.text for segment in segments),
        language=recording.language,
        start_s=start_s,
        end_s=end_s,
        speaker=recording.speaker,
        place=f"{recording.place}:{start_s:.2f}-{end_s:.2f}s",
        segments=tuple(
            Segment(segment.text, segment.start_s - start_s, segment.end_s - start_s) for segment in segments
        ),
        prompt=prompt,
    )
