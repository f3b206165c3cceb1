"""Rolling captions, whose lines video sites and broadcasters show two or three times: each line is kept once.

A rolling caption scrolls. Each cue begins with the last lines of the cue before, and adds a line or a word:

    A            A
    B            A (for 10 ms, on video sites)
    B, C         A, B
    C, D         B (for 10 ms), and so on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.cues import CaptionCue
from whisper_peft.data.rows import Segment
from whisper_peft.data.text import drop_first_words, split_words

# A cue that scrolls follows the cue before at once. The same words after a longer pause were said again.
_CONTINUES_WITHIN_S = 0.5
# Video sites show the last line alone for 10 ms before the next one begins.
_BRIDGE_S = 0.1
# Fewer words that end one cue and begin the next may be chance, unless they are a whole line.
_FEWEST_REPEATED_WORDS = 3
# No screen shows more words at a time; longer texts cost more to compare than they are worth.
_MOST_WORDS = 400
# Punctuation may change while a caption rolls.
_PUNCTUATION = ".,!?;:\"'…।。、؟"
# If a cue begins so long before the cue before has ended, the cues are timed for reading, not by the speech.
_OVERLAP_S = 0.3


@dataclass(frozen=True)
class _Words:
    """The words of a cue, in a form that can be compared, and where its lines begin."""

    keys: tuple[str, ...]
    line_starts: frozenset[int]
    # The number of words after the first time mark. They are always new.
    n_timed: int

    @classmethod
    def of(cls, cue: CaptionCue) -> _Words:
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


def collapse(cues: Sequence[CaptionCue]) -> list[Segment]:
    """Build segments from cues. If the cues roll, each line comes once.

    A file rolls if many of its cues begin with the end of the cue before and go on from there. In a file that does
    not roll, a line that is said twice stays twice.

    Args:
        cues: The cues of one file.

    Returns:
        Segments in the order of their starts. A rolling line lasts from its first showing until the next one begins.

    Example:
        >>> from whisper_peft.data.cues import Line
        >>> shown = [(0.0, 2.0, ["one two"]), (2.0, 4.0, ["one two", "three"]), (4.0, 6.0, ["three", "four five"])]
        >>> cues = [CaptionCue(start_s, end_s, tuple(map(Line, lines))) for start_s, end_s, lines in shown]
        >>> [(segment.start_s, segment.end_s, segment.text) for segment in collapse(cues)]
        [(0.0, 2.0, 'one two'), (2.0, 4.0, 'three'), (4.0, 6.0, 'four five')]
    """
    ordered = _drop_copies(sorted(cues, key=lambda cue: cue.start_s))
    words = [_Words.of(cue) for cue in ordered]
    # For each cue, how many of its first words the cue before has shown already.
    n_repeated = [0]
    for index in range(1, len(ordered)):
        n_repeated.append(_count_repeated(ordered[index - 1], words[index - 1], ordered[index], words[index]))
    if _is_rolling(ordered, words, n_repeated):
        return _end_at_next(_keep_new_words(ordered, n_repeated))
    segments = [Segment(cue.text, cue.start_s, cue.end_s) for cue in ordered]
    if _overlap_mostly(segments):
        return _end_at_next(segments)
    return segments


def _keep_new_words(cues: Sequence[CaptionCue], n_repeated: Sequence[int]) -> list[Segment]:
    """Build segments from the new words of rolling cues."""
    segments: list[Segment] = []
    for cue, n_old in zip(cues, n_repeated, strict=True):
        new_text = drop_first_words(cue.text, n_old)
        if new_text:
            segments.append(Segment(new_text, _find_start(cue, n_old), cue.end_s))
        elif segments:
            # The cue shows the line before once more.
            before = segments[-1]
            segments[-1] = Segment(before.text, before.start_s, max(before.end_s, cue.end_s))
    return segments


def _drop_copies(cues: list[CaptionCue]) -> list[CaptionCue]:
    """Drop each cue that repeats the one before, as happens at the borders of a stream's parts."""
    kept: list[CaptionCue] = []
    for cue in cues:
        if not kept or (cue.start_s, cue.end_s, cue.text) != (kept[-1].start_s, kept[-1].end_s, kept[-1].text):
            kept.append(cue)
    return kept


def _count_repeated(before: CaptionCue, old: _Words, cue: CaptionCue, new: _Words) -> int:
    """Count the words that begin a cue and end the cue before."""
    if cue.start_s - before.end_s > _CONTINUES_WITHIN_S:
        return 0
    most = len(new.keys) - new.n_timed
    for n_words in _list_overlaps(old.keys, new.keys):
        begins_line = len(old.keys) - n_words in old.line_starts
        ends_line = n_words in new.line_starts or n_words == len(new.keys)
        if n_words <= most and (begins_line or ends_line or n_words >= _FEWEST_REPEATED_WORDS):
            return n_words
    return 0


def _list_overlaps(old: tuple[str, ...], new: tuple[str, ...]) -> list[int]:
    """List the lengths of all word sequences that end `old` and begin `new`, the longest first.

    This is the failure function of Knuth, Morris and Pratt over `new`, a separator and `old`. It takes time in
    proportion to the number of words.

    Example:
        >>> _list_overlaps(("a", "b", "a"), ("a", "b", "a", "c"))
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
        if joined[index] == joined[length]:
            longest[index] = length + 1
    lengths = []
    length = longest[-1]
    while length:
        lengths.append(length)
        length = longest[length - 1]
    return lengths


def _is_rolling(cues: Sequence[CaptionCue], words: Sequence[_Words], n_repeated: Sequence[int]) -> bool:
    """Tell whether the cues of a file roll.

    Half of them must, or a third if the file has marks for words, which only rolling captions have.
    """
    has_marks = any(cue_words.n_timed for cue_words in words)
    n_rolling = 0
    for index in range(1, len(cues)):
        goes_on = 0 < n_repeated[index] < len(words[index].keys)
        is_whole = n_repeated[index] == len(words[index].keys)
        is_bridge = is_whole and (has_marks or cues[index].end_s - cues[index].start_s <= _BRIDGE_S)
        n_rolling += goes_on or is_bridge
    if has_marks:
        return n_rolling >= 1 and 3 * n_rolling >= len(cues) - 1
    return n_rolling >= 2 and 2 * n_rolling >= len(cues) - 1


def _find_start(cue: CaptionCue, n_old: int) -> float:
    """Find when the first new word of a cue is said: at its mark, else when the cue begins."""
    n_words = 0
    for line in cue.lines:
        if n_words == n_old and line.start_s is not None and cue.start_s <= line.start_s <= cue.end_s:
            return line.start_s
        n_words += len(split_words(line.text))
    return cue.start_s


def _overlap_mostly(segments: Sequence[Segment]) -> bool:
    """Tell whether most segments begin clearly before the one before has ended."""
    n_overlaps = 0
    for index in range(1, len(segments)):
        n_overlaps += segments[index].start_s < segments[index - 1].end_s - _OVERLAP_S
    return len(segments) > 2 and 2 * n_overlaps > len(segments)


def _end_at_next(segments: Sequence[Segment]) -> list[Segment]:
    """End each segment where the next one begins, unless it ends before that."""
    ended = []
    for index, segment in enumerate(segments):
        end_s = segment.end_s
        if index + 1 < len(segments):
            end_s = max(segment.start_s, min(end_s, segments[index + 1].start_s))
        ended.append(Segment(segment.text, segment.start_s, end_s))
    return ended
