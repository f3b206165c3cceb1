"""The command `evaluate`: transcribe a labelled source, score the transcripts, and write them down."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from whisper_peft import runs
from whisper_peft.data.columns import ColumnOptions
from whisper_peft.data.dataset import LeftOut, SpeechDataset
from whisper_peft.data.doubtful_times import read_lengths, refuse_foreign_times
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.data.sources import cut_into_clips, load_uncut
from whisper_peft.data.spoken import settle_languages
from whisper_peft.data.text import AUTO_LANGUAGE, clean_text, language_code
from whisper_peft.errors import UserError
from whisper_peft.evaluation.clip_transcripts import Transcripts, transcribe_rows
from whisper_peft.evaluation.evaluation_result import EvaluationResult
from whisper_peft.evaluation.exported import (
    ExportTranscriber,
    label_for_export,
    open_transcriber,
    refuse_options,
    transcribe_rows_in_runtime,
)
from whisper_peft.evaluation.generation import full_limit, use_window
from whisper_peft.evaluation.languages import listen_for_languages, resolve_language
from whisper_peft.evaluation.loading import load_to_run
from whisper_peft.evaluation.metrics import bootstrap_interval, score
from whisper_peft.evaluation.normalizers import normalize
from whisper_peft.evaluation.transcriber import Transcriber
from whisper_peft.evaluation.whole_recordings import (
    ScoredRecordings,
    failure_records,
    piece_of,
    recording_figures,
    recording_records,
    score_recordings,
    transcriber_of_model,
)
from whisper_peft.model.locating import Located
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import load_recipe
from whisper_peft.runtimes.exports import Export, find_export


def figures(dataset: SpeechDataset, result: Transcripts) -> dict[str, Any]:
    """Compute error rates, token loss and counts over the transcripts of a data set.

    Args:
        dataset: The data set, which has the references.
        result: Its transcripts.

    Returns:
        The rates and counts of `metrics.score`; ``token_loss``, the mean over all tokens of the references, in nats;
        ``reached_limit``, the number of transcripts that the limit on tokens ended; and ``left_out``, the number of
        clips that could not be used.

    Raises:
        UserError: No clip could be used.
    """
    if not result.transcripts:
        reasons = "; ".join(f"{clip.place}: {clip.audio}: {clip.reason}" for clip in result.left_out[:3])
        raise UserError(f"none of the {len(result.left_out)} clips to score can be used ({reasons}).")
    references, predictions = _paired_texts(dataset, result)
    n_tokens = sum(transcript.loss_tokens for transcript in result.transcripts)
    token_loss = None
    if n_tokens:
        token_loss = sum(transcript.loss_sum for transcript in result.transcripts) / n_tokens
    return {
        **score(references, predictions),
        "token_loss": token_loss,
        "reached_limit": sum(transcript.reached_limit for transcript in result.transcripts),
        "left_out": len(result.left_out),
    }


def _paired_texts(dataset: SpeechDataset, result: Transcripts) -> tuple[list[str], list[str]]:
    """Return the reference and the prediction of each transcript."""
    references = [dataset.text(transcript.row) for transcript in result.transcripts]
    predictions = [transcript.text for transcript in result.transcripts]
    return references, predictions


def records(dataset: SpeechDataset, result: Transcripts) -> list[dict]:
    """Return the line of transcripts.jsonl for each clip.

    Args:
        dataset: The data set, which has the references.
        result: Its transcripts.
    """
    lines = []
    for transcript in result.transcripts:
        row = dataset.rows[transcript.row]
        reference = dataset.text(transcript.row)
        token_loss = None
        if transcript.loss_tokens:
            token_loss = transcript.loss_sum / transcript.loss_tokens
        line = {
            "audio": row.name,
            **piece_of(row),
            "reference": reference,
            "prediction": transcript.text,
            "reference_normalized": normalize(reference),
            "prediction_normalized": normalize(transcript.text),
            "token_loss": token_loss,
            "reached_limit": transcript.reached_limit,
        }
        lines.append(line)
    return lines


def left_out_record(split: str, clip: LeftOut) -> dict:
    """Return the line of left_out.jsonl for a clip of a split."""
    return {"split": split, "row": clip.row, "audio": clip.audio, "place": clip.place, "reason": clip.reason}


def label_rows(
    model,
    located: Located,
    preparation: Preparation,
    rows: Sequence[Row],
    *,
    language: str | None,
    task: str | None,
    name: str = "the clips",
    clean: Callable[[str], str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SpeechDataset:
    """Make a data set from rows with transcripts, cleaned and labelled as in the run that a model comes from.

    Args:
        model: The model, as `load_model` returns it together with `located` and `preparation`.
        located: The place where the model was found.
        preparation: The preparation of its checkpoint.
        rows: The rows to score.
        language: Language of rows that name none. None takes the one that the model was trained for; "auto" takes what
            the model hears.
        task: "transcribe" or "translate"; None takes the run's, or "transcribe".
        name: Name of the source, for messages.
        clean: Cleans the texts. None cleans them as in the run that the model comes from.
        say: Called with a line if rows name a language that Whisper does not know, and are taken for another one.

    Returns:
        The data set.

    Raises:
        UserError: A row names a language that Whisper or this model does not know.
        UserError: Neither the rows, nor the model, nor `language` names the language.
    """
    trained = load_recipe(located.run / runs.RECIPE) if located.run else Recipe()
    borrowed_token = trained.model.language_token
    spoken = trained.model.language if language is None else language
    code = None
    has_unknown = any(row.unknown_language for row in rows)
    if has_unknown and spoken and spoken != AUTO_LANGUAGE and not borrowed_token:
        code = language_code(spoken)
    rows = settle_languages(rows, name, language=code, borrowed=bool(borrowed_token), say=say)
    if language is not None or any(row.language is None for row in rows):
        language = resolve_language(model, preparation, language)
    if language == AUTO_LANGUAGE:
        language = None
        # A run with a borrowed token always takes that token, so there is nothing to listen for.
        if borrowed_token is None:
            rows = listen_for_languages(model, preparation, rows)
    dataset = SpeechDataset(
        rows,
        preparation,
        language=language,
        task=task or trained.model.task,
        language_token=borrowed_token,
        clean=clean or partial(clean_text, **dataclasses.asdict(trained.data.text)),
    )
    languages_and_places = [(dataset.language_of(row), row.place or row.name) for row in dataset.rows]
    preparation.check_languages(languages_and_places, dataset.task)
    return dataset


def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    language: str | None = None,
    task: str | None = None,
    output: str | Path | None = None,
    batch_size: int | str = "auto",
    window: str = "full",
    beams: int | None = None,
    max_new_tokens: int | None = None,
    max_clips: int | None = None,
    base: str | None = None,
    quantize: str = "as-trained",
    precision: str = "auto",
    audio_column: str | None = None,
    text_column: str | None = None,
    times: str | None = None,
    cut: bool = False,
    progress: Callable[[int, int], object] = lambda clips, total: None,
    recordings_progress: Callable[[float, float], object] = lambda seconds, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> EvaluationResult:
    """Transcribe a labelled source and score it. References are cleaned as in the run that the model comes from.

    A recording with segment times is scored twice: in clips of up to 30 s, and as a whole. The whole recording is
    decoded with times, as `transcribe` does. Its scores show what those of clips cannot show: speech that is missed at
    the edges of windows, wrong times, and loops.

    Args:
        model: Any MODEL: Hub id, model, adapter or run folder, or an exported model, which its own runtime decodes.
        source: Any SRC with transcripts.
        language: Name or code of the language of rows that name none. None takes the one that the model was trained
            for; "auto" takes what the model hears in each clip.
        task: "transcribe" or "translate"; None takes what the run was trained for, or "transcribe".
        output: New folder for report.json, transcripts.jsonl and left_out.jsonl; None writes nothing.
        batch_size: Clips at a time; "auto": as many as fill 240 s of windows, 64 at most (a CPU: 120 s, 16).
        window: "full" (30 s, as every other program runs the model). "condensed" and "tight" are quicker, and need a
            model that was trained with them.
        beams: Number of beams; 1 is greedy. None is 1; for an exported model, the number that its runtime takes.
        max_new_tokens: Limit on the generated tokens of a clip; None takes the model's own. Transcripts that reach it
            are counted.
        max_clips: Score only this many clips, the first ones. A recording with clips behind these is not scored as a
            whole.
        base: The adapter's base, if it has moved.
        quantize: Load the base in "8bit", "4bit" or "none"; "as-trained": in the bits that the adapter was trained on.
        precision: "fp32", "bf16" or "fp16"; "auto": the best half precision on a GPU, fp32 on a CPU.
        audio_column: The table's column with audio files, if it has an unusual name.
        text_column: The table's column with transcripts, if it has an unusual name.
        times: "use" or "ignore" the columns with start and end; None asks if they do not fit the files.
        cut: Score recordings in clips only.
        progress: Called with the clips of a batch that is done, and the number of all clips.
        recordings_progress: Called with the seconds of whole recordings that were done since its last call, and the
            seconds of all of them.
        say: Called with each line that the user should know.

    Returns:
        The figures. `recordings` is None without whole recordings, or with `cut`.

    Raises:
        UserError: There is no such model or source, or no clip can be used.
    """
    if output is not None:
        runs.refuse_existing(Path(output), "name another --output")
    uncut = load_uncut(str(source), ColumnOptions(audio=audio_column, text=text_column, times=times))
    clips_of_rows = [cut_into_clips(row) for row in uncut]
    rows = [clip for clips in clips_of_rows for clip in clips][:max_clips]
    recordings = [] if cut else _find_recordings(uncut, clips_of_rows, len(rows), say)
    if times is None:
        refuse_foreign_times(str(source), rows, read_lengths(rows))
    listening = _Listening(
        rows=rows,
        recordings=recordings,
        name=str(source),
        language=language,
        task=task,
        beams=beams,
        progress=lambda clips: progress(clips, len(rows)),
        recordings_progress=recordings_progress,
        say=say,
    )
    exported = find_export(model)
    if exported is None:
        heard = _hear_with_model(
            listening,
            model,
            batch_size=batch_size,
            window=window,
            max_new_tokens=max_new_tokens,
            base=base,
            quantize=quantize,
            precision=precision,
        )
    else:
        refuse_options(
            exported,
            window=window,
            base=base,
            quantize=quantize,
            precision=precision,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        heard = _hear_in_runtime(listening, exported)
    dataset = heard.dataset
    clip_transcripts = heard.clip_transcripts
    scored = heard.scored
    clip_figures = figures(dataset, clip_transcripts)
    references, predictions = _paired_texts(dataset, clip_transcripts)
    result = EvaluationResult(
        model=str(model),
        source=str(source),
        language=dataset.language,
        **clip_figures,
        wer_interval=bootstrap_interval(references, predictions, metric="wer"),
        cer_interval=bootstrap_interval(references, predictions, metric="cer"),
        **heard.settings,
        seconds=round(time.monotonic() - heard.began, 1),
        recordings=None if scored is None else recording_figures(scored),
    )
    if output is not None:
        _write_report(output, result, dataset, clip_transcripts, scored)
    return result


@dataclasses.dataclass(frozen=True)
class _Listening:
    """The sound to hear, and the wishes that do not depend on what hears it.

    Attributes:
        rows: The clips.
        recordings: The recordings to score as a whole, each with the number of its first clip.
        name: Name of the source, for messages.
        language: Language that the user named, "auto" or None.
        task: Task that the user named, or None.
        beams: Number of beams that the user named, or None.
        progress: Called with the clips that were done since its last call.
        recordings_progress: Called with the seconds of whole recordings that were done, and the seconds of all.
        say: Called with each line that the user should know.
    """

    rows: Sequence[Row]
    recordings: list[tuple[Row, int]]
    name: str
    language: str | None
    task: str | None
    beams: int | None
    progress: Callable[[int], object]
    recordings_progress: Callable[[float, float], object]
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class _HeardSource:
    """The transcripts of a source.

    Attributes:
        dataset: The clips, cleaned and labelled.
        clip_transcripts: Their transcripts.
        scored: The whole recordings; None if there are none.
        settings: The fields of `EvaluationResult` that say how it was heard.
        began: Time when the first clip was heard, by the monotonic clock, in seconds.
    """

    dataset: SpeechDataset
    clip_transcripts: Transcripts
    scored: ScoredRecordings | None
    settings: dict[str, Any]
    began: float


def _hear_with_model(
    listening: _Listening,
    model: str | Path,
    *,
    batch_size: int | str,
    window: str,
    max_new_tokens: int | None,
    base: str | None,
    quantize: str,
    precision: str,
) -> _HeardSource:
    """Let a model in transformers hear a source. The options are those of `evaluate`."""
    loaded, preparation, located, chosen_precision = load_to_run(
        model, base=base, quantize=quantize, precision=precision
    )
    dataset = label_rows(
        loaded,
        located,
        preparation,
        listening.rows,
        language=listening.language,
        task=listening.task,
        name=listening.name,
        say=listening.say,
    )
    began = time.monotonic()
    limit = min(max_new_tokens or full_limit(preparation), full_limit(preparation))
    beams = listening.beams or 1
    with use_window(loaded, window) as slack_s:
        clip_transcripts = transcribe_rows(
            loaded,
            dataset,
            range(len(dataset)),
            batch_size=batch_size,
            slack_s=slack_s,
            max_new_tokens=limit,
            beams=beams,
            progress=listening.progress,
        )
    scored = None
    if listening.recordings:
        recordings = _with_languages(listening.recordings, dataset, listening.language)

        def open_model(progress: Callable[[float], object]) -> Transcriber:
            return transcriber_of_model(loaded, dataset, recordings, progress, batch_size=batch_size, beams=beams)

        scored = score_recordings(dataset, recordings, open_model, progress=listening.recordings_progress)
    settings = {"max_new_tokens": limit, "beams": beams, "window": window, "precision": chosen_precision}
    return _HeardSource(dataset, clip_transcripts, scored, settings, began)


def _hear_in_runtime(listening: _Listening, exported: Export) -> _HeardSource:
    """Let an exported model hear a source in its own runtime."""
    dataset = label_for_export(
        exported,
        listening.rows,
        language=listening.language,
        task=listening.task,
        name=listening.name,
        say=listening.say,
    )
    transcriber = open_transcriber(
        exported,
        language=dataset.language,
        task=dataset.task,
        prompt=None,
        beams=listening.beams,
        timed=True,
        word_times=False,
        progress=lambda seconds: None,
    )
    began = time.monotonic()
    clip_transcripts = transcribe_rows_in_runtime(
        transcriber.runtime, dataset, beams=listening.beams, progress=listening.progress
    )
    scored = None
    if listening.recordings:

        def with_progress(progress: Callable[[float], object]) -> ExportTranscriber:
            return dataclasses.replace(transcriber, progress=progress)

        recordings = _with_languages(listening.recordings, dataset, listening.language)
        scored = score_recordings(dataset, recordings, with_progress, progress=listening.recordings_progress)
    version = exported.format.runtime_version()
    settings = {
        "max_new_tokens": None,
        "beams": listening.beams,
        "window": "full",
        "precision": exported.quantization,
        "runtime": f"{exported.format.runtime} ({version})",
    }
    return _HeardSource(dataset, clip_transcripts, scored, settings, began)


def _write_report(
    output: str | Path,
    result: EvaluationResult,
    dataset: SpeechDataset,
    clip_transcripts: Transcripts,
    scored: ScoredRecordings | None,
) -> None:
    """Write report.json, transcripts.jsonl and left_out.jsonl into a new folder."""
    transcripts = records(dataset, clip_transcripts)
    left_out = [left_out_record("test", clip) for clip in clip_transcripts.left_out]
    if scored is not None:
        transcripts += recording_records(scored)
        left_out += failure_records(scored)
    with runs.new_folder(output, "name another --output") as folder:
        runs.write_json(folder / "report.json", result.as_dict())
        runs.rewrite_jsonl(folder / runs.TRANSCRIPTS, transcripts)
        runs.rewrite_jsonl(folder / runs.LEFT_OUT, left_out)


def _find_recordings(
    uncut: Sequence[Row], clips_of_rows: Sequence[list[Row]], n_clips: int, say: Callable[[str], None]
) -> list[tuple[Row, int]]:
    """Find the recordings that can be scored as a whole, because all of their clips are scored.

    Args:
        uncut: The rows of the source.
        clips_of_rows: The clips that each row is cut into.
        n_clips: Number of clips that are scored, the first ones.
        say: Called with a line if recordings are not scored as a whole.

    Returns:
        Each recording, and the number of its first clip.
    """
    recordings = []
    n_passed_over = 0
    first = 0
    for row, clips in zip(uncut, clips_of_rows, strict=True):
        if row.is_recording and first + len(clips) <= n_clips:
            recordings.append((row, first))
        elif row.is_recording:
            n_passed_over += 1
        first += len(clips)
    if n_passed_over:
        say(
            f"{n_passed_over} of {n_passed_over + len(recordings)} recordings are not scored as a whole, because "
            "--max-clips leaves out some of their clips."
        )
    return recordings


def _with_languages(recordings: Sequence[tuple[Row, int]], dataset: SpeechDataset, language: str | None) -> list[Row]:
    """Give each recording the language of its clips, or none if the model listens to the recording itself.

    Args:
        recordings: Recordings, each with the number of its first clip.
        dataset: The clips.
        language: The language that the user named, "auto" or None.
    """
    if language is not None and language.strip().lower() == AUTO_LANGUAGE and not dataset.language_token:
        return [row for row, _ in recordings]
    return [dataclasses.replace(row, language=dataset.language_of(first_clip)) for row, first_clip in recordings]
