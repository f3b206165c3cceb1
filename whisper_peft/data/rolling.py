"""Collapse rolling captions: each line that video sites and broadcasters show two or three times is kept once.

A rolling caption scrolls. Each cue begins with the last lines of the cue before, and adds a line or a word:

    A            A
    B            A (for 10 ms, on video sites)
    B, C         A, B
    C, D         B (for 10 ms), and so on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.cues import Cue
from whisper_peft.data.rows import Segment
from whisper_peft.data.text import split_words, without_words

# A display that scrolls follows on the one before at once. What comes later was said again.
_CONTINUES_WITHIN_S = 0.5
# Video sites show the last line alone for 10 ms before the next one begins.
_BRIDGE_S = 0.1
# Fewer words that end one cue and begin the next may be chance, unless they are a whole line.
_FEWEST_WORDS = 3
# No screen shows more at a time; longer texts cost more to compare than they are worth.
_MOST_WORDS = 400
# Punctuation may change while a caption rolls.
_PUNCTUATION = ".,!?;:\"'…।。、؟"
# Cues that begin this long before the cue before has ended were made to be read, not to tell when a word is said.
_OVERLAP_S = 0.3


@dataclass(frozen=True)
class _Words:
    """The words of a cue, in a form that can be compared, and where its lines begin."""

    keys: tuple[str, ...]
    line_starts: frozenset[int]
    n_timed: int  # words behind the first time mark, which are always new

    @classmethod
    def of(cls, cue: Cue) -> _Words:
        """Split a cue into words."""
        keys: list[str] = []
        starts = []
        timed_from: int | None = None
        for line in cue.lines:
            starts.append(len(keys))
            if line.n_unmarked is not None and timed_from is None:
                timed_from = len(keys) + line.n_unmarked
            keys += [word.strip(_PUNCTUATION).casefold() or word for word in split_words(line.text)]
        n_timed = 0 if timed_from is None else len(keys) - timed_from
        return cls(tuple(keys), frozenset(starts), n_timed)


def collapse(cues: Sequence[Cue]) -> list[Segment]:
    """Make segments of cues; where they roll, each line comes once.

    A file rolls if many of its cues begin with the end of the cue before and go on from there. In a file that does
    not roll, a line that is said twice stays twice.

    Args:
        cues: The cues of one file.

    Returns:
        Segments in the order of their starts. A rolling line lasts from its first showing until the next one begins.
    """
    ordered = _without_copies(sorted(cues, key=lambda cue: cue.start_s))
    words = [_Words.of(cue) for cue in ordered]
    repeated = [0]
    for index in range(1, len(ordered)):
        repeated.append(_n_repeated(ordered[index - 1], words[index - 1], ordered[index], words[index]))
    if not _is_rolling(ordered, words, repeated):
        segments = [Segment(cue.text, cue.start_s, cue.end_s) for cue in ordered]
        return _end_at_next(segments) if _overlaps_mostly(segments) else segments
    segments: list[Segment] = []
    for cue, n_repeated in zip(ordered, repeated, strict=True):
        new_text = without_words(cue.text, n_repeated)
        if new_text:
            segments.append(Segment(new_text, _start_s(cue, n_repeated), cue.end_s))
        elif segments:
            before = segments[-1]
            segments[-1] = Segment(before.text, before.start_s, max(before.end_s, cue.end_s))
    return _end_at_next(segments)


def _without_copies(cues: list[Cue]) -> list[Cue]:
    """Drop a cue that is the one before again, as at the borders of a stream's parts."""
    kept: list[Cue] = []
    for cue in cues:
        if not kept or (cue.start_s, cue.end_s, cue.text) != (kept[-1].start_s, kept[-1].end_s, kept[-1].text):
            kept.append(cue)
    return kept


def _n_repeated(before: Cue, old: _Words, cue: Cue, new: _Words) -> int:
    """Count the words at the start of a cue that are the end of the cue before."""
    if cue.start_s - before.end_s > _CONTINUES_WITHIN_S:
        return 0
    most = len(new.keys) - new.n_timed
    for n_words in _overlaps(old.keys, new.keys):
        begins_line = len(old.keys) - n_words in old.line_starts
        ends_line = n_words in new.line_starts or n_words == len(new.keys)
        if n_words <= most and (begins_line or ends_line or n_words >= _FEWEST_WORDS):
            return n_words
    return 0


def _overlaps(old: tuple[str, ...], new: tuple[str, ...]) -> list[int]:
    """List the lengths, longest first, of what both ends `old` and begins `new`.

    This is the failure function of Knuth, Morris and Pratt over `new`, a separator and `old`: linear in the words.

    Example:
        >>> _overlaps(("a", "b", "a"), ("a", "b", "a", "c"))
        [3, 1]
    """
    if not old or not new:
        return []
    new = new[:_MOST_WORDS]
    joined = [*new, None, *old[-len(new) :]]
    longest = [0] * len(joined)
    for index in range(1, len(joined)):
        length = longest[index - 1]
        while length and joined[index] != joined[length]:
            length = longest[length - 1]
        longest[index] = length + 1 if joined[index] == joined[length] else 0
    found = []
    length = longest[-1]
    while length:
        found.append(length)
        length = longest[length - 1]
    return found


def _is_rolling(cues: Sequence[Cue], words: Sequence[_Words], repeated: Sequence[int]) -> bool:
    """Tell whether the cues of a file roll: half of them, or a third and word marks, which only such files have."""
    has_marks = any(one.n_timed for one in words)
    n_rolling = 0
    for index in range(1, len(cues)):
        goes_on = 0 < repeated[index] < len(words[index].keys)
        is_whole = repeated[index] == len(words[index].keys)
        is_bridge = is_whole and (has_marks or cues[index].end_s - cues[index].start_s <= _BRIDGE_S)
        n_rolling += goes_on or is_bridge
    if has_marks:
        return n_rolling >= 1 and 3 * n_rolling >= len(cues) - 1
    return n_rolling >= 2 and 2 * n_rolling >= len(cues) - 1


def _start_s(cue: Cue, n_repeated: int) -> float:
    """Find when the first new word of a cue is said: at its mark, else when the cue begins."""
    n_words = 0
    for line in cue.lines:
        if n_words == n_repeated and line.start_s is not None and cue.start_s <= line.start_s <= cue.end_s:
            return line.start_s
        n_words += len(split_words(line.text))
    return cue.start_s


def _overlaps_mostly(segments: Sequence[Segment]) -> bool:
    n_overlaps = 0
    for index in range(1, len(segments)):
        n_overlaps += segments[index].start_s < segments[index - 1].end_s - _OVERLAP_S
    return len(segments) > 2 and 2 * n_overlaps > len(segments)


def _end_at_next(segments: Sequence[Segment]) -> list[Segment]:
    """End each segment where the next one begins, if not before."""
    ended = []
    for index, segment in enumerate(segments):
        end_s = segment.end_s
        if index + 1 < len(segments):
            end_s = max(segment.start_s, min(end_s, segments[index + 1].start_s))
        ended.append(Segment(segment.text, segment.start_s, end_s))
    return ended
