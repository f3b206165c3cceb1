"""Decode the recordings of a source as a whole, with times, as `transcribe` does, and score them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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

# Fewer recordings do not show how far their error rate would move with other recordings.
LEAST_FOR_INTERVAL = 5


class JobTranscriber(Protocol):
    """Transcribes recordings: a `Transcriber`, or an `ExportTranscriber`."""

    def transcribe(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Yield recordings with their transcripts."""
        ...


@dataclass(frozen=True)
class ScoredRecording:
    """A recording, the model's output for it, and how good that is.

    Attributes:
        row: The recording.
        language: Whisper's code of the language that it was decoded in.
        reference: The recording's segments with cleaned texts. Times count from the start of the row.
        output: The model's segments. Times count from the start of the row.
        text: The text as the model wrote it, with its own spaces between segments.
        reached_limit: The limit on tokens ended one of the windows.
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
        """Join the texts of the reference."""
        return join_segments(segment.text for segment in self.reference)


@dataclass
class ScoredRecordings:
    """The recordings of a source.

    Attributes:
        scored: Those that were scored, in the order of the source.
        failed: Those that cannot be scored, each with the reason.
        seconds: Time that decoding and scoring took, in seconds.
    """

    scored: list[ScoredRecording] = field(default_factory=list)
    failed: list[tuple[Row, str]] = field(default_factory=list)
    seconds: float = 0.0


def score_recordings(
    dataset: SpeechDataset,
    recordings: Sequence[Row],
    open_transcriber: Callable[[Callable[[float], object]], JobTranscriber],
    *,
    progress: Callable[[float, float], object] = lambda seconds, total: None,
) -> ScoredRecordings:
    """Decode whole recordings with times, and score them.

    Args:
        dataset: The clips of the same source. Recordings are decoded and cleaned as its clips are.
        recordings: Rows with `is_recording`. Each names the language that it is decoded in. If a row names none, a
            multilingual model listens for it.
        open_transcriber: Function that takes a progress function, which counts seconds, and returns what transcribes.
        progress: Called with the seconds of sound that were done since its last call, and with those of all recordings.

    Returns:
        The scores. A recording that cannot be decoded, or has no text, is named with the reason.
    """
    began = time.monotonic()
    jobs: list[Job] = []
    references: list[tuple[Segment, ...]] = []
    for row in recordings:
        segments = [dataclasses.replace(segment, text=dataset.clean(segment.text)) for segment in row.segments]
        references.append(tuple(segment for segment in segments if segment.text))
        jobs.append(Job(len(jobs), row, dataset.seconds_of(row)))
    total_s = sum(job.seconds for job in jobs)
    transcriber = open_transcriber(lambda seconds: progress(seconds, total_s))
    # Show the bar before the first window is done.
    progress(0.0, total_s)
    finished: dict[int, ScoredRecording | str] = {}
    for job, transcript in transcriber.transcribe([job for job in jobs if references[job.number]]):
        if "error" in transcript:
            finished[job.number] = transcript["error"]
        else:
            finished[job.number] = _score_transcript(job.row, references[job.number], transcript)
    result = ScoredRecordings()
    for job in jobs:
        recording = finished.get(job.number, "no text in its segments")
        if isinstance(recording, str):
            result.failed.append((job.row, recording))
        else:
            result.scored.append(recording)
    result.seconds = time.monotonic() - began
    return result


def transcriber_of_model(
    model,
    dataset: SpeechDataset,
    recordings: Sequence[Row],
    progress: Callable[[float], object],
    *,
    batch_size: int | str = "auto",
    beams: int = 1,
) -> Transcriber:
    """Return what transcribes whole recordings with a model, always with times.

    Args:
        model: Whisper in eval mode, or an adapter on one, on its device.
        dataset: The clips of the same source.
        recordings: The recordings. If one of them names no language, a multilingual model listens for it.
        progress: Called with the seconds of sound that were done since its last call.
        batch_size: Recordings at a time, but never more than 8 (a CPU: 2); "auto": as many as that.
        beams: Number of beams; 1 is greedy.
    """
    preparation = dataset.preparation
    return Transcriber(
        model,
        preparation,
        Decoding(None, dataset.task, beams),
        listens=preparation.multilingual and any(row.language is None for row in recordings),
        batch_size=long_at_once() if isinstance(batch_size, str) else min(batch_size, long_at_once()),
        slack_s=0.0,
        timed=True,
        word_times=False,
        chunked=False,
        progress=progress,
    )


def _score_transcript(row: Row, reference: tuple[Segment, ...], transcript: dict) -> ScoredRecording:
    output = tuple(Segment(segment["text"], segment["start"], segment["end"]) for segment in transcript["segments"])
    return ScoredRecording(
        row=row,
        language=transcript["language"],
        reference=reference,
        output=output,
        text=transcript["text"],
        reached_limit=transcript["reached_limit"],
        score=score_recording(reference, output, output_text=transcript["text"]),
    )


def recording_figures(result: ScoredRecordings) -> dict:
    """Sum up the scores of whole recordings.

    Args:
        result: The recordings.

    Returns:
        ``recordings``, the number of those that were scored; ``failed``, those that could not be scored:
        ``{"audio": path, "error": reason}``; ``seconds``, the time it took; ``each``, the scores of every recording.
        Over all recordings together, it also has the rates and counts of `metrics.score`, and the figures of
        `RecordingScore`. ``wer_interval`` and ``cer_interval`` are over recordings, and None for fewer than
        `LEAST_FOR_INTERVAL` of them.
    """
    failed = [{"audio": row.name, **piece_of(row), "error": reason} for row, reason in result.failed]
    content: dict = {"recordings": len(result.scored), "failed": failed, "seconds": round(result.seconds, 1)}
    if not result.scored:
        return content
    references = [recording.reference_text for recording in result.scored]
    texts = [recording.text for recording in result.scored]
    rates = score(references, texts)
    del rates["clips"]
    content |= rates
    content["wer_interval"] = None
    content["cer_interval"] = None
    if len(texts) >= LEAST_FOR_INTERVAL:
        content["wer_interval"] = bootstrap_interval(references, texts, metric="wer")
        content["cer_interval"] = bootstrap_interval(references, texts, metric="cer")
    errors_s: list[float] = []
    for recording in result.scored:
        errors_s += start_errors_s(recording.reference, recording.output)
    scores = [recording.score for recording in result.scored]
    content["speech_s"] = _round_s(sum(figures.speech_s for figures in scores))
    content["uncovered_s"] = _round_s(sum(figures.uncovered_s for figures in scores))
    content["start_error_s"] = _round_s(statistics.median(errors_s) if errors_s else None)
    content["loops"] = sum(figures.loops for figures in scores)
    content["empty_windows"] = sum(figures.empty_windows for figures in scores)
    content["reached_limit"] = sum(recording.reached_limit for recording in result.scored)
    content["each"] = [
        {"audio": recording.row.name, **piece_of(recording.row), **_score_fields(recording)}
        for recording in result.scored
    ]
    return content


def recording_records(result: ScoredRecordings) -> list[dict]:
    """Return the line of transcripts.jsonl for each recording.

    It has the reference, the prediction, the scores, the model's segments, and the speech that the model left out.
    Times count from ``start_s`` if the recording is a piece of a file, and else from the start of the file.
    """
    records = []
    for recording in result.scored:
        uncovered = uncovered_spans(recording.reference, recording.output)
        segments = [
            {"start": segment.start_s, "end": segment.end_s, "text": segment.text} for segment in recording.output
        ]
        record = {
            "audio": recording.row.name,
            **piece_of(recording.row),
            "recording": True,
            "language": recording.language,
            "reference": recording.reference_text,
            "prediction": recording.text,
            "reference_normalized": normalize(recording.reference_text),
            "prediction_normalized": normalize(recording.text),
            **_score_fields(recording),
            "uncovered": [[_round_s(start_s), _round_s(end_s)] for start_s, end_s in uncovered],
            "segments": segments,
        }
        records.append(record)
    return records


def failure_records(result: ScoredRecordings) -> list[dict]:
    """Return the line of left_out.jsonl for each recording that could not be scored as a whole."""
    return [
        {"split": "test", "recording": True, "audio": row.name, "place": row.place, "reason": reason}
        for row, reason in result.failed
    ]


def piece_of(row: Row) -> dict[str, float | None]:
    """Return where in its file a row begins and ends, if it is a piece of one."""
    if not row.start_s and row.end_s is None:
        return {}
    return {"start_s": row.start_s, "end_s": row.end_s}


def _score_fields(recording: ScoredRecording) -> dict:
    """Return the figures of a recording, ready for JSON."""
    content = dataclasses.asdict(recording.score)
    for name in ("speech_s", "uncovered_s", "start_error_s"):
        content[name] = _round_s(content[name])
    return {**content, "reached_limit": recording.reached_limit}


def _round_s(seconds: float | None) -> float | None:
    """Round to milliseconds."""
    return None if seconds is None else round(seconds, 3)
