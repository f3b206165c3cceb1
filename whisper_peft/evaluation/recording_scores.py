"""Scores of whole recordings: text, and what a text score hides: speech without output, wrong times, loops."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.rows import Segment
from whisper_peft.data.text import join_segments
from whisper_peft.errors import UserError
from whisper_peft.evaluation.metrics import score

WINDOW_S = 30.0
LEAST_SPEECH_S = 1.0  # a window with less speech may stay without output
LOOP = re.compile(r"(.{2,80}?)\1{4,}", re.DOTALL)  # the same 2 to 80 characters five times in a row
LEAST_LOOP = 24  # characters: "ha ha ha ha ha" is laughter


@dataclass(frozen=True)
class RecordingScore:
    """What a model made of one recording, against the recording's segments.

    Args:
        wer: Word error rate of the whole text.
        cer: Character error rate of the whole text.
        wer_normalized: Word error rate under the mark-preserving normaliser.
        cer_normalized: Character error rate under the same normaliser.
        speech_s: Seconds of the reference's segments, overlaps counted once.
        uncovered_s: Seconds of these that no segment of the output covers.
        start_error_s: Median distance of an output segment's start to the nearest start in the reference; None
            without output.
        loops: Places where the output repeats itself and the reference does not.
        empty_windows: Windows of 30 s with speech in the reference and no output.
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
    """Score what a model made of a recording.

    Args:
        reference: The recording's segments, with their ends. Their texts are joined as the language joins words.
        output: The model's segments.
        output_text: The text as the model wrote it, with its own spaces between segments; None: that of the segments,
            joined as the language joins words.

    Raises:
        UserError: The reference has no text.
    """
    if not any(segment.text.strip() for segment in reference):
        raise UserError("scoring: the recording's segments have no text; there is nothing to score.")
    reference_text = join_segments(segment.text for segment in reference)
    if output_text is None:
        output_text = join_segments(segment.text for segment in output)
    rates = score([reference_text], [output_text])
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
        empty_windows=_empty_windows(speech, _spans(output)),
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
    """Measure how far each segment of the output starts from the nearest start in the reference, in seconds."""
    starts_s = [segment.start_s for segment in reference if segment.text.strip()]
    return [min(abs(segment.start_s - start_s) for start_s in starts_s) for segment in output if segment.text.strip()]


def _spans(segments: Sequence[Segment]) -> list[tuple[float, float]]:
    """Return when there is speech: start and end in seconds of the segments with text, joined where they overlap."""
    return merge_spans([(segment.start_s, segment.end_s) for segment in segments if segment.text.strip()])


def _total_s(spans: Sequence[tuple[float, float]]) -> float:
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


def _common(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the spans that two lists of disjoint spans have in common."""
    common = []
    for start_s, end_s in one:
        for other_start_s, other_end_s in other:
            first_s = max(start_s, other_start_s)
            last_s = min(end_s, other_end_s)
            if first_s < last_s:
                common.append((first_s, last_s))
    return common


def count_loops(text: str) -> int:
    """Count the places where a text repeats itself at least five times in a row.

    Example:
        >>> count_loops("and then " * 8)
        1
    """
    spaced = " ".join(text.split()) + " "  # so that the last repetition ends like the others
    return sum(1 for loop in LOOP.finditer(spaced) if len(loop[0]) >= LEAST_LOOP)


def _empty_windows(speech: Sequence[tuple[float, float]], covered: Sequence[tuple[float, float]]) -> int:
    if not speech:
        return 0
    empty = 0
    n_windows = int(speech[-1][1] // WINDOW_S) + 1
    for number in range(n_windows):
        window = [(number * WINDOW_S, (number + 1) * WINDOW_S)]
        inside = _common(speech, window)
        has_speech = _total_s(inside) >= LEAST_SPEECH_S
        if has_speech and not _common(covered, window):
            empty += 1
    return empty
