"""The recordings of a source as a whole: decoded with times as `transcribe` does, and scored."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.text import join_segments
from whisper_peft.evaluation.metrics import bootstrap_interval, score
from whisper_peft.evaluation.normalizers import normalize
from whisper_peft.evaluation.pieces import Decoding
from whisper_peft.evaluation.recording_scores import (
    RecordingScore,
    score_recording,
    start_errors_s,
    uncovered_spans,
)
from whisper_peft.evaluation.transcriber import Job, Transcriber, long_at_once

# Fewer recordings than this say nothing about how far their error rate would move with others.
LEAST_FOR_INTERVAL = 5


@dataclass(frozen=True)
class ScoredRecording:
    """A recording, what the model made of it, and how good that is.

    Args:
        row: The recording.
        language: Whisper's code of the language that it was decoded in.
        reference: Its segments with cleaned texts. Times count from the start of the row.
        output: The model's segments. Times count from the start of the row.
        text: The model's text as it wrote it, with its own spaces between segments.
        reached_limit: Whether the limit on tokens ended any window.
        score: The figures.
    """

    row: Row
    language: str
    reference: tuple[Segment, ...]
    output: tuple[Segment, ...]
    text: str
    reached_limit: bool
    score: RecordingScore

    @property
    def reference_text(self) -> str:
        """The joined text of the reference."""
        return join_segments(segment.text for segment in self.reference)


@dataclass
class ScoredRecordings:
    """The recordings of a source in their order, and those that cannot be scored."""

    scored: list[ScoredRecording] = field(default_factory=list)
    failed: list[tuple[Row, str]] = field(default_factory=list)  # with the reason
    seconds: float = 0.0  # that it took


def score_recordings(
    model,
    dataset: SpeechDataset,
    recordings: Sequence[Row],
    *,
    batch_size: int | str = "auto",
    beams: int = 1,
    progress: Callable[[float, float], object] = lambda seconds, total: None,
) -> ScoredRecordings:
    """Decode whole recordings with times, and score them.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        dataset: The clips of the same source; recordings are decoded and cleaned as they are.
        recordings: Rows with `is_recording`, each with the language that it is decoded in. Where a multilingual model
            is given none, it listens for it.
        batch_size: Recordings at a time, but never more than 8 (a CPU: 2); "auto": as many as that.
        beams: 1 is greedy.
        progress: Told the seconds of sound that were done since it was last told, and those of all recordings.

    Returns:
        What was scored. A recording that cannot be decoded, or has no text, is named with the reason.
    """
    began = time.monotonic()
    preparation = dataset.preparation
    found = ScoredRecordings()
    jobs = []
    references = []
    for row in recordings:
        segments = [dataclasses.replace(segment, text=dataset.clean(segment.text)) for segment in row.segments]
        references.append(tuple(segment for segment in segments if segment.text))
        jobs.append(Job(len(jobs), row, dataset.seconds_of(row)))
    total_s = sum(job.seconds for job in jobs)
    transcriber = Transcriber(
        model,
        preparation,
        Decoding(None, dataset.task, beams),
        listens=preparation.multilingual and any(row.language is None for row in recordings),
        batch_size=long_at_once() if batch_size == "auto" else min(batch_size, long_at_once()),
        slack_s=0.0,
        timed=True,
        word_times=False,
        chunked=False,
        progress=lambda seconds: progress(seconds, total_s),
    )
    progress(0.0, total_s)  # so that a bar is there before the first window is done
    finished: dict[int, ScoredRecording | str] = {}
    for job, transcript in transcriber.transcribe([job for job in jobs if references[job.number]]):
        if "error" in transcript:
            finished[job.number] = transcript["error"]
        else:
            finished[job.number] = _scored(job.row, references[job.number], transcript)
    for job in jobs:
        result = finished.get(job.number, "no text in its segments")
        if isinstance(result, str):
            found.failed.append((job.row, result))
        else:
            found.scored.append(result)
    found.seconds = time.monotonic() - began
    return found


def _scored(row: Row, reference: tuple[Segment, ...], transcript: dict) -> ScoredRecording:
    output = tuple(Segment(part["text"], part["start"], part["end"]) for part in transcript["segments"])
    return ScoredRecording(
        row,
        transcript["language"],
        reference,
        output,
        transcript["text"],
        transcript["reached_limit"],
        score_recording(reference, output, output_text=transcript["text"]),
    )


def recording_figures(found: ScoredRecordings) -> dict:
    """Sum up the scores of whole recordings.

    Returns:
        ``recordings``, their number; ``failed``, those that could not be scored: ``{"audio": path, "error": reason}``;
        ``each``, the scores of every one. Over all recordings together: the rates and counts of `metrics.score`, and
        the figures of `RecordingScore`. ``wer_interval`` and ``cer_interval`` are over recordings, and None for fewer
        than `LEAST_FOR_INTERVAL`.
    """
    failed = [{"audio": row.name, **piece_of(row), "error": reason} for row, reason in found.failed]
    content: dict = {"recordings": len(found.scored), "failed": failed, "seconds": round(found.seconds, 1)}
    if not found.scored:
        return content
    references = [recording.reference_text for recording in found.scored]
    texts = [recording.text for recording in found.scored]
    rates = score(references, texts)
    del rates["clips"]
    content |= rates
    for metric in ("wer", "cer"):
        enough = len(texts) >= LEAST_FOR_INTERVAL
        content[f"{metric}_interval"] = bootstrap_interval(references, texts, metric=metric) if enough else None
    scores = [recording.score for recording in found.scored]
    errors_s = [
        error_s for recording in found.scored for error_s in start_errors_s(recording.reference, recording.output)
    ]
    content["speech_s"] = _rounded(sum(one.speech_s for one in scores))
    content["uncovered_s"] = _rounded(sum(one.uncovered_s for one in scores))
    content["start_error_s"] = _rounded(statistics.median(errors_s)) if errors_s else None
    content["loops"] = sum(one.loops for one in scores)
    content["empty_windows"] = sum(one.empty_windows for one in scores)
    content["reached_limit"] = sum(recording.reached_limit for recording in found.scored)
    content["each"] = [
        {"audio": recording.row.name, **piece_of(recording.row), **_fields(recording)} for recording in found.scored
    ]
    return content


def recording_records(found: ScoredRecordings) -> list[dict]:
    """Write down each recording for transcripts.jsonl: reference, prediction, scores, segments, and speech left out.

    Times count from ``start_s``, where the recording is a piece of a file, else from the start of the file.
    """
    records = []
    for recording in found.scored:
        uncovered = uncovered_spans(recording.reference, recording.output)
        records.append(
            {
                "audio": recording.row.name,
                **piece_of(recording.row),
                "recording": True,
                "language": recording.language,
                "reference": recording.reference_text,
                "prediction": recording.text,
                "reference_normalized": normalize(recording.reference_text),
                "prediction_normalized": normalize(recording.text),
                **_fields(recording),
                "uncovered": [[_rounded(start_s), _rounded(end_s)] for start_s, end_s in uncovered],
                "segments": [
                    {"start": segment.start_s, "end": segment.end_s, "text": segment.text}
                    for segment in recording.output
                ],
            }
        )
    return records


def failure_records(found: ScoredRecordings) -> list[dict]:
    """Write down for left_out.jsonl each recording that could not be scored as a whole."""
    return [
        {"split": "test", "recording": True, "audio": row.name, "place": row.place, "reason": reason}
        for row, reason in found.failed
    ]


def piece_of(row: Row) -> dict[str, float]:
    """Tell where in its file a row begins and ends, if it is a piece of one."""
    if not row.start_s and row.end_s is None:
        return {}
    return {"start_s": row.start_s, "end_s": row.end_s}


def _fields(recording: ScoredRecording) -> dict:
    content = dataclasses.asdict(recording.score)
    for name in ("speech_s", "uncovered_s", "start_error_s"):
        content[name] = _rounded(content[name])
    return {**content, "reached_limit": recording.reached_limit}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
