"""Segments to subtitles that can be read: at most two lines at a time, for neither too short nor too long a time.

Lines are measured in columns of a fixed-width screen: a Latin letter or an Indic cluster has one, a Chinese, Japanese
or Korean character two. They are broken at spaces, in scripts without spaces at punctuation, and never within a
grapheme cluster.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

LINE_COLUMNS = 42  # what broadcasters take for Latin scripts; 21 Chinese characters
SCREEN_COLUMNS = 2 * LINE_COLUMNS  # two lines
MIN_SHOWN_S = 0.84  # a cue that is shown for less is not read
MAX_SHOWN_S = 7.0
# What it costs to break a text in front of a cluster, in columns of unevenness.
AFTER_SENTENCE, AFTER_CLAUSE, AT_SPACE, BETWEEN_IDEOGRAPHS, WITHIN_WORD = 0, 4, 10, 30, 200

_SENTENCE_ENDS = frozenset(".!?…。！？．｡।॥؟۔።។॥༎၊။՞։")
_CLAUSE_ENDS = frozenset(",;:،؛，、；：､､፣·–—")
# A line does not begin with these, nor end with those (Japanese kinsoku, Thai and Lao vowels).
_NOT_FIRST = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶー々ゝゞヽヾะาำๆฯະາຳໆຯ")
_NOT_LAST = frozenset("เแโใไເແໂໃໄ")
_IDEOGRAPHS = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"


@dataclass(frozen=True)
class Cue:
    """What a screen shows from one time to another."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Cluster:
    """What a reader sees as one character."""

    text: str
    columns: int
    start_s: float
    end_s: float
    break_cost: float  # of a break in front of it; infinite: never
    is_space: bool


def make_cues(segments: Sequence[dict]) -> list[Cue]:
    """Make subtitles of segments.

    Args:
        segments: In order: `start`, `end` in seconds, `text`, and `words` with times of their own where they are known.
            Without them, a segment's time is shared out by the length of its text.

    Returns:
        Cues in order, none of which overlaps another. Each is shown for `MIN_SHOWN_S` to `MAX_SHOWN_S`.

    Example:
        >>> make_cues([{"start": 1.0, "end": 2.5, "text": "Good morning."}])
        [Cue(start_s=1.0, end_s=2.5, lines=('Good morning.',))]
    """
    cues: list[Cue] = []
    for segment in segments:
        clusters = _clusters(segment)
        if clusters:
            cues += [_cue(run) for run in _runs(clusters)]
    return _spaced_in_time(_with_short_ones_joined(cues))


def columns_of(text: str) -> int:
    """Measure a text in columns of a screen.

    Example:
        >>> columns_of("മലയാളം"), columns_of("字幕")
        (4, 4)
    """
    return sum(_columns(cluster) for cluster in _patterns()[0].findall(text))


@functools.cache
def _patterns():
    """Patterns of a grapheme cluster, of an ideograph, and of a script without spaces."""
    import regex

    return regex.compile(r"\X"), regex.compile(_IDEOGRAPHS), regex.compile(_NO_SPACES)


def _columns(cluster: str) -> int:
    if any(unicodedata.east_asian_width(character) in "WF" for character in cluster):
        return 2
    marks_only = all(unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc") for character in cluster)
    return 0 if marks_only else 1


def _clusters(segment: dict) -> list[_Cluster]:
    """Cut a segment's text into clusters, each with its time and with the cost of a break in front of it."""
    text = " ".join(segment["text"].split())
    parts = _patterns()[0].findall(text)
    times = _times(segment, parts)
    clusters = []
    for number, part in enumerate(parts):
        cost = _break_cost(parts, number) if number else math.inf
        start_s, end_s = times[number]
        clusters.append(_Cluster(part, _columns(part), start_s, end_s, cost, part.isspace()))
    return clusters


def _break_cost(parts: list[str], number: int) -> float:
    """The cost of a break in front of a cluster that is not the first."""
    before = parts[number - 1]
    after = parts[number]
    if after.isspace():
        return math.inf  # the break stands behind the space
    if before.isspace():
        ending = parts[number - 2][-1:] if number > 1 else ""
        if ending in _SENTENCE_ENDS:
            return AFTER_SENTENCE
        return AFTER_CLAUSE if ending in _CLAUSE_ENDS else AT_SPACE
    is_ideograph = _patterns()[1].match
    lacks_spaces = _patterns()[2].match
    if not (lacks_spaces(before) or lacks_spaces(after) or _columns(before) == 2):
        return WITHIN_WORD
    closes = unicodedata.category(after[0]) in ("Pe", "Pf", "Po", "Pd") or after[0] in _NOT_FIRST
    opens = unicodedata.category(before[0]) in ("Ps", "Pi") or before[0] in _NOT_LAST
    if closes or opens:
        return 2 * WITHIN_WORD
    if before[-1] in _SENTENCE_ENDS:
        return AFTER_SENTENCE
    if before[-1] in _CLAUSE_ENDS:
        return AFTER_CLAUSE
    return BETWEEN_IDEOGRAPHS if is_ideograph(before) or is_ideograph(after) else WITHIN_WORD


def _times(segment: dict, parts: list[str]) -> list[tuple[float, float]]:
    """The time of each cluster: its share of its word's time, or of the segment's where no words are known."""
    start_s, end_s = float(segment["start"]), float(segment["end"])
    spans = [(start_s, end_s, sum(len(part) for part in parts if not part.isspace()))]
    if segment.get("words"):
        known = [(word["start"], word["end"], len("".join(word["word"].split()))) for word in segment["words"]]
        if sum(n_characters for _, _, n_characters in known) == spans[0][2]:  # else they are of another text
            spans = known
    edges = []  # the time at the edges of characters that are not spaces
    for begin_s, stop_s, n_characters in spans:
        step_s = (stop_s - begin_s) / max(1, n_characters)
        edges += [(begin_s + step_s * place, begin_s + step_s * (place + 1)) for place in range(n_characters)]
    times = []
    at = 0
    for part in parts:
        if part.isspace() or at >= len(edges):
            last_s = edges[min(at, len(edges)) - 1][1] if at else start_s
            times.append((last_s, last_s))
            continue
        last = min(at + len(part), len(edges)) - 1
        times.append((edges[at][0], edges[last][1]))
        at += len(part)
    return times


def _runs(clusters: list[_Cluster]) -> list[list[_Cluster]]:
    """Cut a segment into runs that fit on the screen and are not shown for too long."""
    runs = []
    left = clusters
    while left:
        length = _fitting(left)
        runs.append(left[:length])
        left = left[length:]
    return [part for run in runs for part in _shorter(run)]


def _fitting(clusters: list[_Cluster]) -> int:
    """How many of the clusters a cue takes: all, or as many as end at a good place and leave enough for the next."""
    if _line_break(clusters) is not None:
        return len(clusters)
    for most_cost in (WITHIN_WORD, math.inf):  # within a word only where one word is wider than the screen
        choices = []
        columns = 0
        for number, cluster in enumerate(clusters):
            if columns > SCREEN_COLUMNS + 1:
                break
            if number and cluster.break_cost < most_cost and _line_break(clusters[:number], most_cost) is not None:
                choices.append((cluster.break_cost + (SCREEN_COLUMNS - columns) / 2, -number))
            columns += cluster.columns
        if choices:
            return -min(choices)[1]
    return 1  # nowhere to break, as in a row of spaces


def _line_break(run: list[_Cluster], most_cost: float = WITHIN_WORD) -> int | None:
    """Where the second line of a run begins, at a break that costs less than `most_cost`.

    Returns:
        The number of clusters on the first line: all, if the run fits on one line. None if it does not fit on two.
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
            upper = columns - (run[number - 1].columns if run[number - 1].is_space else 0)
            lower = total - columns
            cost = cluster.break_cost + abs(upper - lower)
            if upper <= LINE_COLUMNS and lower <= LINE_COLUMNS and cost < least:
                best = number
                least = cost
        columns += cluster.columns
    return best


def _trimmed_columns(run: list[_Cluster]) -> int:
    columns = sum(cluster.columns for cluster in run)
    return columns - sum(cluster.columns for cluster in run[-1:] if cluster.is_space)


def _shorter(run: list[_Cluster]) -> list[list[_Cluster]]:
    """Cut a run that would be shown for too long, at the best place near its middle in time."""
    words = _stripped(run)
    if not words:
        return []
    start_s, end_s = words[0].start_s, words[-1].end_s
    if end_s - start_s <= MAX_SHOWN_S:
        return [run]
    best = None
    least = math.inf
    for number, cluster in enumerate(run):
        if number and cluster.break_cost < WITHIN_WORD:
            far = abs(cluster.start_s - (start_s + end_s) / 2) / (end_s - start_s)
            cost = cluster.break_cost + 100 * far
            if cost < least:
                best = number
                least = cost
    if best is None:
        return [run]
    return _shorter(run[:best]) + _shorter(run[best:])


def _stripped(run: list[_Cluster]) -> list[_Cluster]:
    words = [number for number, cluster in enumerate(run) if not cluster.is_space]
    return run[words[0] : words[-1] + 1] if words else []


def _cue(run: list[_Cluster]) -> Cue:
    words = _stripped(run)
    return Cue(words[0].start_s, words[-1].end_s, _lines(words))


def _lines(run: list[_Cluster]) -> tuple[str, ...]:
    second = _line_break(run) or _line_break(run, math.inf) or len(run)
    lines = ("".join(cluster.text for cluster in part).strip() for part in (run[:second], run[second:]))
    return tuple(line for line in lines if line)


def _with_short_ones_joined(cues: list[Cue]) -> list[Cue]:
    """Join a cue that has no time to be read with the next one, where both fit on the screen together."""
    joined: list[Cue] = []
    for cue in cues:
        before = joined[-1] if joined else None
        if before is not None:
            room_s = cue.start_s - before.start_s
            text = before.lines[0]
            for line in [*before.lines[1:], *cue.lines]:
                text += ("" if _meet_without_space(text, line) else " ") + line
            run = _clusters({"start": before.start_s, "end": cue.end_s, "text": text})
            in_time = cue.end_s - before.start_s <= MAX_SHOWN_S
            if room_s < MIN_SHOWN_S and in_time and _line_break(run) is not None:
                joined[-1] = Cue(before.start_s, cue.end_s, _lines(run))
                continue
        joined.append(cue)
    return joined


def _meet_without_space(before: str, after: str) -> bool:
    """Whether the texts on both sides are of a script that puts no spaces between words, or its punctuation."""
    lacks_spaces = _patterns()[2].match
    return bool(lacks_spaces(after[0]) or _columns(after[0]) == 2) and bool(
        lacks_spaces(before[-1]) or _columns(before[-1]) == 2
    )


def _spaced_in_time(cues: list[Cue]) -> list[Cue]:
    """Give each cue its least and longest time, one after the other; where there is no room, the next one waits."""
    placed: list[Cue] = []
    earliest_s = 0.0
    for number, cue in enumerate(cues):
        start_s = max(earliest_s, cue.start_s)
        end_s = min(max(start_s, cue.end_s), start_s + MAX_SHOWN_S)
        if number + 1 < len(cues):
            end_s = min(end_s, max(start_s, cues[number + 1].start_s))
        end_s = max(end_s, start_s + MIN_SHOWN_S)
        placed.append(Cue(round(start_s, 3), round(end_s, 3), cue.lines))
        earliest_s = end_s
    return placed
