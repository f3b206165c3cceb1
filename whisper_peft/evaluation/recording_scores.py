"""Scores of whole recordings: text, and what a text score hides: speech without output, wrong times, loops."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.rows import Segment
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
        speech_s: Seconds of the reference's segments, overlaps counted once.
        uncovered_s: Seconds of these that no segment of the output covers.
        start_error_s: Median distance of an output segment's start to the nearest start in the reference; None
            without output.
        loops: Places where the output repeats itself and the reference does not.
        empty_windows: Windows of 30 s with speech in the reference and no output.
    """

    wer: float
    cer: float
    speech_s: float
    uncovered_s: float
    start_error_s: float | None
    loops: int
    empty_windows: int


def score_recording(reference: Sequence[Segment], output: Sequence[Segment]) -> RecordingScore:
    """Score what a model made of a recording.

    Args:
        reference: The recording's segments, with their ends.
        output: The model's segments.

    Raises:
        UserError: The reference has no text.
    """
    if not any(segment.text.strip() for segment in reference):
        raise UserError("scoring: the recording's segments have no text; there is nothing to score.")
    reference_text = " ".join(segment.text.strip() for segment in reference)
    output_text = " ".join(segment.text.strip() for segment in output)
    rates = score([reference_text], [output_text])
    speech = merge_spans([(segment.start_s, segment.end_s) for segment in reference])
    covered = merge_spans([(segment.start_s, segment.end_s) for segment in output if segment.text.strip()])
    speech_s = sum(end_s - start_s for start_s, end_s in speech)
    covered_s = sum(end_s - start_s for start_s, end_s in _common(speech, covered))
    starts_s = [segment.start_s for segment in reference]
    errors_s = [min(abs(segment.start_s - start_s) for start_s in starts_s) for segment in output]
    return RecordingScore(
        wer=rates["wer"],
        cer=rates["cer"],
        speech_s=speech_s,
        uncovered_s=speech_s - covered_s,
        start_error_s=statistics.median(errors_s) if errors_s else None,
        loops=max(0, count_loops(output_text) - count_loops(reference_text)),
        empty_windows=_empty_windows(speech, covered),
    )


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
        has_speech = sum(end_s - start_s for start_s, end_s in inside) >= LEAST_SPEECH_S
        if has_speech and not _common(covered, window):
            empty += 1
    return empty
