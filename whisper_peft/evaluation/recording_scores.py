"""Score whole recordings: their text, and what a text score hides, which is missed speech, wrong times and loops."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whisper_peft.data.rows import Segment
from whisper_peft.data.subtitles import WINDOW_S
from whisper_peft.data.text import join_segments
from whisper_peft.errors import UserError
from whisper_peft.evaluation.metrics import score

# Length of the windows in which empty output is counted, in seconds: Whisper's own.
COUNTED_WINDOW_S = WINDOW_S
# A window with less speech, in seconds, may stay without output.
LEAST_SPEECH_S = 1.0
# The same 2 to 80 characters, five times in a row.
LOOP = re.compile(r"(.{2,80}?)\1{4,}", re.DOTALL)
# Characters that a loop must fill at least: "ha ha ha ha ha" is laughter.
LEAST_LOOP = 24


@dataclass(frozen=True)
class RecordingScore:
    """Figures of a model's output for one recording, beside the recording's own segments.

    Attributes:
        wer: Word error rate of the whole text.
        cer: Character error rate of the whole text.
        wer_normalized: Word error rate under the mark-preserving normaliser.
        cer_normalized: Character error rate under the same normaliser.
        speech_s: Time that the reference's segments cover, in seconds; overlaps count once.
        uncovered_s: The part of that time which no segment of the output covers, in seconds.
        start_error_s: Median distance from the start of an output segment to the nearest start in the reference, in
            seconds; None without output.
        loops: Number of places where the output repeats itself and the reference does not.
        empty_windows: Number of windows of 30 s with speech in the reference and no output.
    """

    wer: float
    cer: float
    wer_normalized: float
    cer_normalized: float
    speech_s: float
    uncovered_s: float
    start_error_s: float | None
    loops: int
    empty_windows: int


def score_recording(
    reference: Sequence[Segment], output: Sequence[Segment], *, output_text: str | None = None
) -> RecordingScore:
    """Score a model's output for a recording.

    Args:
        reference: The recording's segments, with their ends. Their texts are joined as the language joins words.
        output: The model's segments.
        output_text: The text as the model wrote it, with its own spaces between segments. None joins the texts of its
            segments as the language joins words.

    Returns:
        The figures.

    Raises:
        UserError: The reference has no text.
    """
    if not any(segment.text.strip() for segment in reference):
        raise UserError("scoring: the recording's segments have no text; there is nothing to score.")
    reference_text = join_segments(segment.text for segment in reference)
    if output_text is None:
        output_text = join_segments(segment.text for segment in output)
    rates: dict[str, Any] = score([reference_text], [output_text])
    speech = _spans(reference)
    errors_s = start_errors_s(reference, output)
    return RecordingScore(
        wer=rates["wer"],
        cer=rates["cer"],
        wer_normalized=rates["wer_normalized"],
        cer_normalized=rates["cer_normalized"],
        speech_s=_total_s(speech),
        uncovered_s=_total_s(uncovered_spans(reference, output)),
        start_error_s=statistics.median(errors_s) if errors_s else None,
        loops=max(0, count_loops(output_text) - count_loops(reference_text)),
        empty_windows=_count_empty_windows(speech, _spans(output)),
    )


def uncovered_spans(reference: Sequence[Segment], output: Sequence[Segment]) -> list[tuple[float, float]]:
    """Find the speech that no segment of the output covers.

    Returns:
        Start and end in seconds of each stretch, in order.

    Example:
        >>> uncovered_spans([Segment("a", 0.0, 9.0)], [Segment("b", 2.0, 3.0), Segment("c", 5.0, 9.5)])
        [(0.0, 2.0), (3.0, 5.0)]
    """
    covered = _spans(output)
    uncovered = []
    for start_s, end_s in _spans(reference):
        reached_s = start_s
        for covered_start_s, covered_end_s in covered:
            if covered_end_s <= reached_s or covered_start_s >= end_s:
                continue
            if covered_start_s > reached_s:
                uncovered.append((reached_s, covered_start_s))
            reached_s = min(covered_end_s, end_s)
        if reached_s < end_s:
            uncovered.append((reached_s, end_s))
    return uncovered


def start_errors_s(reference: Sequence[Segment], output: Sequence[Segment]) -> list[float]:
    """Measure how far each segment of the output starts from the nearest start in the reference, in seconds.

    Example:
        >>> start_errors_s([Segment("a", 0.0, 9.0), Segment("b", 9.5, 12.0)], [Segment("a b", 1.0, 12.0)])
        [1.0]
    """
    starts_s = [segment.start_s for segment in reference if segment.text.strip()]
    errors_s = []
    for segment in output:
        if segment.text.strip():
            errors_s.append(min(abs(segment.start_s - start_s) for start_s in starts_s))
    return errors_s


def _spans(segments: Sequence[Segment]) -> list[tuple[float, float]]:
    """Return when there is speech: start and end in seconds of the segments with text, joined where they overlap."""
    spans = []
    for segment in segments:
        if segment.text.strip():
            # Only a clip without times has segments without an end, and a recording has times.
            assert segment.end_s is not None
            spans.append((segment.start_s, segment.end_s))
    return merge_spans(spans)


def _total_s(spans: Sequence[tuple[float, float]]) -> float:
    """Sum up the lengths of spans."""
    return sum(end_s - start_s for start_s, end_s in spans)


def merge_spans(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Join spans of time that overlap.

    Example:
        >>> merge_spans([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)])
        [(0.0, 3.0), (5.0, 6.0)]
    """
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def _intersect(
    spans: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Return the spans that two lists of disjoint spans have in common."""
    common = []
    for start_s, end_s in spans:
        for other_start_s, other_end_s in others:
            begin_s = max(start_s, other_start_s)
            until_s = min(end_s, other_end_s)
            if begin_s < until_s:
                common.append((begin_s, until_s))
    return common


def count_loops(text: str) -> int:
    """Count the places where a text repeats itself at least five times in a row.

    Example:
        >>> count_loops("and then " * 8)
        1
    """
    # The space at the end lets the last repetition end like the others.
    spaced = " ".join(text.split()) + " "
    return sum(1 for loop in LOOP.finditer(spaced) if len(loop[0]) >= LEAST_LOOP)


def _count_empty_windows(speech: Sequence[tuple[float, float]], covered: Sequence[tuple[float, float]]) -> int:
    """Count the windows of a recording that hold speech and no output."""
    if not speech:
        return 0
    empty = 0
    n_windows = int(speech[-1][1] // COUNTED_WINDOW_S) + 1
    for number in range(n_windows):
        window = [(number * COUNTED_WINDOW_S, (number + 1) * COUNTED_WINDOW_S)]
        inside = _intersect(speech, window)
        has_speech = _total_s(inside) >= LEAST_SPEECH_S
        if has_speech and not _intersect(covered, window):
            empty += 1
    return empty
