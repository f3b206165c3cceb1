"""Turn segments into subtitles that can be read: at most two lines at a time, shown neither too briefly nor too long.

Lines are measured in columns of a fixed-width screen. A Latin letter or an Indic cluster takes one column; a Chinese,
Japanese or Korean character takes two. Lines break at spaces, or at punctuation in scripts without spaces, and never
within a grapheme cluster.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Width of a line: what broadcasters allow for Latin scripts, and 21 Chinese characters.
LINE_COLUMNS = 42
# Two lines.
SCREEN_COLUMNS = 2 * LINE_COLUMNS
# Nobody reads a cue that is shown for less, in seconds.
MIN_SHOWN_S = 0.84
# Longest time that a cue stays on the screen, in seconds.
MAX_SHOWN_S = 7.0
# The cost of a break in front of a cluster, in columns of unevenness between the two lines.
AFTER_SENTENCE = 0
AFTER_CLAUSE = 4
AT_SPACE = 10
BETWEEN_IDEOGRAPHS = 30
WITHIN_WORD = 200

_SENTENCE_ENDS = frozenset(".!?…。！？．｡।॥؟۔።។॥༎၊။՞։")
_CLAUSE_ENDS = frozenset(",;:،؛，、；：､､፣·–—")
# A line does not begin with these: Japanese kinsoku, and Thai and Lao vowels that follow their consonant.
_NOT_FIRST = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶー々ゝゞヽヾะาำๆฯະາຳໆຯ")
# A line does not end with these: Thai and Lao vowels that are written before their consonant.
_NOT_LAST = frozenset("เแโใไເແໂໃໄ")
_IDEOGRAPHS = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"


@dataclass(frozen=True)
class SubtitleCue:
    """The lines that a screen shows from one time to another."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Cluster:
    """A grapheme cluster: what a reader sees as one character.

    Attributes:
        text: Its code points.
        columns: Its width on the screen.
        start_s: When it begins to be spoken, in seconds.
        end_s: When it ends, in seconds.
        break_cost: The cost of a line break in front of it; infinite where none is allowed.
        is_space: It is white space.
    """

    text: str
    columns: int
    start_s: float
    end_s: float
    break_cost: float
    is_space: bool


def make_cues(segments: Sequence[dict]) -> list[SubtitleCue]:
    """Make subtitles from segments.

    Args:
        segments: Segments in order, each with `start` and `end` in seconds and its `text`. If a segment has `words`,
            their times are the times of its cues. Otherwise its time is shared out by the length of its text.

    Returns:
        Cues in order. No two of them overlap. Each is shown for `MIN_SHOWN_S` to `MAX_SHOWN_S`.

    Example:
        >>> make_cues([{"start": 1.0, "end": 2.5, "text": "Good morning."}])
        [SubtitleCue(start_s=1.0, end_s=2.5, lines=('Good morning.',))]
        >>> story = "The old man went down to the river, sat there in the sun, and waited for the boat."
        >>> make_cues([{"start": 0.0, "end": 6.0, "text": story}])[0].lines
        ('The old man went down to the river, sat', 'there in the sun, and waited for the boat.')
    """
    cues: list[SubtitleCue] = []
    for segment in segments:
        clusters = _clusters(segment)
        if clusters:
            cues += [_make_cue(run) for run in _cut_into_runs(clusters)]
    return _space_in_time(_join_short_cues(cues))


def columns_of(text: str) -> int:
    """Measure the width of a text on the screen, in columns.

    Example:
        >>> columns_of("മലയാളം"), columns_of("字幕")
        (4, 4)
    """
    return sum(_columns(cluster) for cluster in _patterns().cluster.findall(text))


class _Patterns(NamedTuple):
    """Compiled patterns.

    Attributes:
        cluster: One grapheme cluster.
        ideograph: A Chinese or Japanese character.
        spaceless: A character of a script that puts no spaces between words.
    """

    cluster: Any
    ideograph: Any
    spaceless: Any


@functools.cache
def _patterns() -> _Patterns:
    """Compile the patterns when they are first needed."""
    import regex

    return _Patterns(regex.compile(r"\X"), regex.compile(_IDEOGRAPHS), regex.compile(_NO_SPACES))


def _columns(cluster: str) -> int:
    """Measure the width of one grapheme cluster."""
    if any(unicodedata.east_asian_width(character) in "WF" for character in cluster):
        return 2
    if all(unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc") for character in cluster):
        return 0
    return 1


def _clusters(segment: dict) -> list[_Cluster]:
    """Cut a segment's text into clusters, each with its time and with the cost of a break in front of it."""
    text = " ".join(segment["text"].split())
    parts = _patterns().cluster.findall(text)
    times = _cluster_times(segment, parts)
    clusters = []
    for number, part in enumerate(parts):
        # Nothing breaks in front of the first cluster.
        cost = _break_cost(parts, number) if number else math.inf
        start_s, end_s = times[number]
        clusters.append(_Cluster(part, _columns(part), start_s, end_s, cost, part.isspace()))
    return clusters


def _break_cost(parts: list[str], number: int) -> float:
    """Return the cost of a line break in front of a cluster that is not the first."""
    before = parts[number - 1]
    after = parts[number]
    if after.isspace():
        # The line breaks behind the space, not in front of it.
        return math.inf
    if before.isspace():
        ending = parts[number - 2][-1:] if number > 1 else ""
        return _cost_after(ending, otherwise=AT_SPACE)
    is_ideograph = _patterns().ideograph.match
    lacks_spaces = _patterns().spaceless.match
    if not (lacks_spaces(before) or lacks_spaces(after) or _columns(before) == 2):
        return WITHIN_WORD
    closes = unicodedata.category(after[0]) in ("Pe", "Pf", "Po", "Pd") or after[0] in _NOT_FIRST
    opens = unicodedata.category(before[0]) in ("Ps", "Pi") or before[0] in _NOT_LAST
    if closes or opens:
        return 2 * WITHIN_WORD
    touches_ideograph = is_ideograph(before) or is_ideograph(after)
    return _cost_after(before[-1], otherwise=BETWEEN_IDEOGRAPHS if touches_ideograph else WITHIN_WORD)


def _cost_after(character: str, *, otherwise: float) -> float:
    """Return the cost of a break behind a punctuation mark, or else the given one."""
    if character in _SENTENCE_ENDS:
        return AFTER_SENTENCE
    if character in _CLAUSE_ENDS:
        return AFTER_CLAUSE
    return otherwise


def _cluster_times(segment: dict, parts: list[str]) -> list[tuple[float, float]]:
    """Time each cluster by its share of its word's time, or of the segment's time if no words are known.

    Args:
        segment: The segment, see `make_cues`.
        parts: Its clusters.

    Returns:
        Start and end of each cluster, in seconds.
    """
    edges = _character_times(segment, parts)
    times: list[tuple[float, float]] = []
    at = 0
    for part in parts:
        if part.isspace() or at >= len(edges):
            # A space takes no time. It stands where the character before it ends.
            last_s = edges[min(at, len(edges)) - 1][1] if at else float(segment["start"])
            times.append((last_s, last_s))
            continue
        last = min(at + len(part), len(edges)) - 1
        times.append((edges[at][0], edges[last][1]))
        at += len(part)
    return times


def _character_times(segment: dict, parts: list[str]) -> list[tuple[float, float]]:
    """Return start and end in seconds of each code point of a segment that is no space."""
    n_characters = sum(len(part) for part in parts if not part.isspace())
    spans = [(float(segment["start"]), float(segment["end"]), n_characters)]
    if segment.get("words"):
        word_spans = [(word["start"], word["end"], len("".join(word["word"].split()))) for word in segment["words"]]
        # With another number of characters, the words belong to another text, and their times do not count.
        if sum(length for _, _, length in word_spans) == n_characters:
            spans = word_spans
    times: list[tuple[float, float]] = []
    for start_s, end_s, length in spans:
        step_s = (end_s - start_s) / max(1, length)
        times += [(start_s + step_s * place, start_s + step_s * (place + 1)) for place in range(length)]
    return times


def _cut_into_runs(clusters: list[_Cluster]) -> list[list[_Cluster]]:
    """Cut a segment into runs that fit on the screen and are not shown for too long."""
    runs: list[list[_Cluster]] = []
    remaining = clusters
    while remaining:
        length = _fitting_length(remaining)
        runs += _cut_to_time(remaining[:length])
        remaining = remaining[length:]
    return runs


def _fitting_length(clusters: list[_Cluster]) -> int:
    """Return how many clusters a cue takes: all that fit, up to a good place that leaves enough for the next cue."""
    if _line_break(clusters) is not None:
        return len(clusters)
    # A word is broken only if it is wider than the screen, so breaks within words come in the second round.
    for most_cost in (WITHIN_WORD, math.inf):
        choices: list[tuple[float, int]] = []
        columns = 0
        for number, cluster in enumerate(clusters):
            if columns > SCREEN_COLUMNS + 1:
                break
            if number and cluster.break_cost < most_cost and _line_break(clusters[:number], most_cost) is not None:
                choices.append((cluster.break_cost + (SCREEN_COLUMNS - columns) / 2, -number))
            columns += cluster.columns
        if choices:
            return -min(choices)[1]
    # No place to break, as in a row of spaces.
    return 1


def _line_break(run: list[_Cluster], most_cost: float = WITHIN_WORD) -> int | None:
    """Find the place where the second line of a run begins.

    Args:
        run: The clusters of a cue.
        most_cost: The break must cost less than this.

    Returns:
        The number of clusters on the first line, which is all of them if one line is enough. None if the run does not
        fit on two lines.
    """
    total = _trimmed_columns(run)
    if total <= LINE_COLUMNS:
        return len(run)
    if total > SCREEN_COLUMNS + 1:
        return None
    best = None
    least = math.inf
    columns = 0
    for number, cluster in enumerate(run):
        if number and cluster.break_cost < most_cost:
            upper = columns
            if run[number - 1].is_space:
                upper -= run[number - 1].columns
            lower = total - columns
            cost = cluster.break_cost + abs(upper - lower)
            if upper <= LINE_COLUMNS and lower <= LINE_COLUMNS and cost < least:
                best = number
                least = cost
        columns += cluster.columns
    return best


def _trimmed_columns(run: list[_Cluster]) -> int:
    """Measure a run in columns, without a space at its end."""
    columns = sum(cluster.columns for cluster in run)
    if run and run[-1].is_space:
        columns -= run[-1].columns
    return columns


def _cut_to_time(run: list[_Cluster]) -> list[list[_Cluster]]:
    """Cut a run that would be shown for too long, at the best place near its middle in time."""
    words = _strip(run)
    if not words:
        return []
    start_s = words[0].start_s
    end_s = words[-1].end_s
    if end_s - start_s <= MAX_SHOWN_S:
        return [run]
    best = None
    least = math.inf
    for number, cluster in enumerate(run):
        if number and cluster.break_cost < WITHIN_WORD:
            distance = abs(cluster.start_s - (start_s + end_s) / 2) / (end_s - start_s)
            # The whole length weighs as much as 100 columns of unevenness.
            cost = cluster.break_cost + 100 * distance
            if cost < least:
                best = number
                least = cost
    if best is None:
        return [run]
    return _cut_to_time(run[:best]) + _cut_to_time(run[best:])


def _strip(run: list[_Cluster]) -> list[_Cluster]:
    """Return a run without the spaces at its ends."""
    words = [number for number, cluster in enumerate(run) if not cluster.is_space]
    if not words:
        return []
    return run[words[0] : words[-1] + 1]


def _make_cue(run: list[_Cluster]) -> SubtitleCue:
    words = _strip(run)
    return SubtitleCue(words[0].start_s, words[-1].end_s, _cue_lines(words))


def _cue_lines(run: list[_Cluster]) -> tuple[str, ...]:
    """Return the one or two lines of a run, within a word only if nothing else fits."""
    second = _line_break(run) or _line_break(run, math.inf) or len(run)
    lines = []
    for part in (run[:second], run[second:]):
        line = "".join(cluster.text for cluster in part).strip()
        if line:
            lines.append(line)
    return tuple(lines)


def _join_short_cues(cues: list[SubtitleCue]) -> list[SubtitleCue]:
    """Join a cue that has no time to be read with the next one, if both fit on the screen together."""
    joined: list[SubtitleCue] = []
    for cue in cues:
        together = None
        if joined and cue.start_s - joined[-1].start_s < MIN_SHOWN_S:
            together = _join_two(joined[-1], cue)
        if together is None:
            joined.append(cue)
        else:
            joined[-1] = together
    return joined


def _join_two(first: SubtitleCue, second: SubtitleCue) -> SubtitleCue | None:
    """Return one cue in place of two; None if it would be shown for too long, or does not fit on the screen."""
    if second.end_s - first.start_s > MAX_SHOWN_S:
        return None
    text = first.lines[0]
    for line in [*first.lines[1:], *second.lines]:
        text += line if _meet_without_space(text, line) else f" {line}"
    run = _clusters({"start": first.start_s, "end": second.end_s, "text": text})
    if _line_break(run) is None:
        return None
    return SubtitleCue(first.start_s, second.end_s, _cue_lines(run))


def _meet_without_space(before: str, after: str) -> bool:
    """Tell whether both texts are in a script that puts no spaces between words, or are its punctuation."""
    lacks_spaces = _patterns().spaceless.match
    return all(lacks_spaces(character) or _columns(character) == 2 for character in (before[-1], after[0]))


def _space_in_time(cues: list[SubtitleCue]) -> list[SubtitleCue]:
    """Keep each cue between its shortest and its longest time. If there is no room for that, the next cue waits."""
    placed: list[SubtitleCue] = []
    earliest_s = 0.0
    for number, cue in enumerate(cues):
        start_s = max(earliest_s, cue.start_s)
        end_s = min(max(start_s, cue.end_s), start_s + MAX_SHOWN_S)
        if number + 1 < len(cues):
            end_s = min(end_s, max(start_s, cues[number + 1].start_s))
        end_s = max(end_s, start_s + MIN_SHOWN_S)
        placed.append(SubtitleCue(round(start_s, 3), round(end_s, 3), cue.lines))
        earliest_s = end_s
    return placed
