"""evaluate(MODEL, SRC): transcribe, score, write down."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

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
from whisper_peft.evaluation.generation import full_limit, use_window
from whisper_peft.evaluation.languages import listen_for_languages, resolve_language
from whisper_peft.evaluation.loading import load_to_run
from whisper_peft.evaluation.metrics import bootstrap_interval, score
from whisper_peft.evaluation.normalizers import normalize
from whisper_peft.evaluation.whole_recordings import (
    failure_records,
    piece_of,
    recording_figures,
    recording_records,
    score_recordings,
)
from whisper_peft.model.locating import Located
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import load_recipe


def figures(dataset: SpeechDataset, found: Transcripts) -> dict:
    """Error rates, token loss and counts of one pass over a data set.

    Rates are fractions: raw, and under the mark-preserving normaliser (`…_normalized`); `token_loss` is the mean over
    all reference tokens, in nats.

    Raises:
        UserError: no clip could be read.
    """
    if not found.transcripts:
        reasons = "; ".join(f"{one.place}: {one.audio}: {one.reason}" for one in found.left_out[:3])
        raise UserError(f"none of the {len(found.left_out)} clips to score can be used ({reasons}).")
    references = [dataset.text(one.row) for one in found.transcripts]
    tokens = sum(one.loss_tokens for one in found.transcripts)
    return {
        **score(references, [one.text for one in found.transcripts]),
        "token_loss": sum(one.loss_sum for one in found.transcripts) / tokens if tokens else None,
        "reached_limit": sum(one.reached_limit for one in found.transcripts),
        "left_out": len(found.left_out),
    }


def records(dataset: SpeechDataset, found: Transcripts) -> list[dict]:
    """One JSON-ready record a clip: audio, reference, prediction, both normalised, token loss."""
    return [
        {
            "audio": dataset.rows[one.row].name,
            **piece_of(dataset.rows[one.row]),
            "reference": (reference := dataset.text(one.row)),
            "prediction": one.text,
            "reference_normalized": normalize(reference),
            "prediction_normalized": normalize(one.text),
            "token_loss": one.loss_sum / one.loss_tokens if one.loss_tokens else None,
            "reached_limit": one.reached_limit,
        }
        for one in found.transcripts
    ]


def left_out_record(split: str, one: LeftOut) -> dict:
    """A line of left_out.jsonl."""
    return {"split": split, "row": one.row, "audio": one.audio, "place": one.place, "reason": one.reason}


def labelled(
    model,
    located: Located,
    preparation: Preparation,
    rows: Sequence[Row],
    *,
    language: str | None,
    task: str | None,
    name: str = "the clips",
    say: Callable[[str], None] = lambda line: None,
) -> SpeechDataset:
    """Rows with transcripts as a dataset, cleaned and prompted as in the run that the model comes from.

    Args:
        model: as `load_model` gives it, with `located` and `preparation`.
        located: where the model was found.
        preparation: of the checkpoint.
        rows: to be scored.
        language: for rows that name none; None: what the model was trained for; "auto": what the model hears.
        task: None: the run's, or transcribe.
        name: of the source, for messages.
        say: told what rows in a language that Whisper does not know are taken for.

    Raises:
        UserError: a row names a language that Whisper does not know, or one that the model does not know.
        UserError: neither the rows, nor the model, nor `language` say which language it is.
    """
    trained = load_recipe(located.run / runs.RECIPE) if located.run else Recipe()
    borrowed = trained.model.language_token
    spoken = trained.model.language if language is None else language
    code = None
    has_unknown = any(row.unknown_language for row in rows)
    if has_unknown and spoken and spoken != AUTO_LANGUAGE and not borrowed:
        code = language_code(spoken)
    rows = settle_languages(rows, name, language=code, borrowed=bool(borrowed), say=say)
    if language is not None or any(row.language is None for row in rows):
        language = resolve_language(model, preparation, language)
    if language == AUTO_LANGUAGE:
        language = None
        if trained.model.language_token is None:  # else that token is taken, whatever is spoken
            rows = listen_for_languages(model, preparation, rows)
    dataset = SpeechDataset(
        rows, preparation, language=language, task=task or trained.model.task,
        language_token=trained.model.language_token,
        clean=partial(clean_text, **dataclasses.asdict(trained.data.text)),
    )  # fmt: skip
    spoken = [(dataset.language_of(row), row.place or row.name) for row in dataset.rows]
    preparation.check_languages(spoken, dataset.task)
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
    beams: int = 1,
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
    """Transcribes a labelled source and scores it; references are cleaned as in the run the model comes from.

    A recording with segment times is scored twice: in clips of up to 30 s, and as a whole. The whole recording is
    decoded with times, as `transcribe` does, so its scores show what clips cannot: speech that is passed over at the
    edges of windows, wrong times, loops.

    Args:
        model: any MODEL: Hub id, model, adapter or run folder.
        source: any SRC with transcripts.
        language: a name or code for rows that name none; None: what the model was trained for; "auto": what the
            model hears in each clip.
        task: transcribe or translate; None: what the run was trained for, or transcribe.
        output: a new folder for report.json, transcripts.jsonl and left_out.jsonl; None writes nothing.
        batch_size: clips at a time; "auto": as many as fill 240 s of windows, 64 at most (a CPU: 120 s, 16).
        window: full (30 s, as every other program runs it), or condensed or tight, quicker, for a model trained so.
        beams: 1 is greedy.
        max_new_tokens: limit on generation of a clip; None: the model's own. Outputs that reach it are counted.
        max_clips: only the first so many clips. Recordings that have clips behind these are not scored as a whole.
        base: the adapter's base, if it has moved.
        quantize: the base in "8bit", "4bit" or "none"; "as-trained": as the adapter knew it.
        precision: "fp32", "bf16" or "fp16"; "auto": the best half precision on a GPU, fp32 on a CPU.
        audio_column: where the manifest's columns have other than the usual names.
        text_column: likewise.
        times: "use" or "ignore" the columns with start and end; None: ask where they do not fit the files.
        cut: score recordings in clips only.
        progress: told (clips of this batch, clips in all).
        recordings_progress: told (seconds of whole recordings since it was last told, seconds of all of them).
        say: told one line at a time what else there is to know.

    Returns:
        The figures. `recordings` is None without whole recordings, or with `cut`.

    Raises:
        UserError: no such model or source, or no usable clip.
    """
    if output is not None:
        runs.refuse_existing(Path(output), "name another --output")
    uncut = load_uncut(str(source), ColumnOptions(audio=audio_column, text=text_column, times=times))
    clips = [cut_into_clips(row) for row in uncut]
    rows = [clip for of_one in clips for clip in of_one][:max_clips]
    whole = [] if cut else _whole_recordings(uncut, clips, len(rows), say)
    if times is None:
        refuse_foreign_times(str(source), rows, read_lengths(rows))
    loaded, preparation, located, chosen_precision = load_to_run(
        model, base=base, quantize=quantize, precision=precision
    )
    dataset = labelled(loaded, located, preparation, rows, language=language, task=task, name=str(source), say=say)
    start = time.monotonic()
    limit = min(max_new_tokens or full_limit(preparation), full_limit(preparation))
    with use_window(loaded, window) as slack_s:
        found = transcribe_rows(
            loaded,
            dataset,
            range(len(rows)),
            batch_size=batch_size,
            slack_s=slack_s,
            max_new_tokens=limit,
            beams=beams,
            progress=lambda clips: progress(clips, len(rows)),
        )
    clip_figures = figures(dataset, found)
    scored = None
    if whole:
        scored = score_recordings(
            loaded,
            dataset,
            _in_their_languages(whole, dataset, language),
            batch_size=batch_size,
            beams=beams,
            progress=recordings_progress,
        )
    predictions = [one.text for one in found.transcripts]
    references = [dataset.text(one.row) for one in found.transcripts]
    result = EvaluationResult(
        model=str(model),
        source=str(source),
        language=dataset.language,
        **clip_figures,
        wer_interval=bootstrap_interval(references, predictions, metric="wer"),
        cer_interval=bootstrap_interval(references, predictions, metric="cer"),
        max_new_tokens=limit,
        beams=beams,
        window=window,
        precision=chosen_precision,
        seconds=round(time.monotonic() - start, 1),
        recordings=None if scored is None else recording_figures(scored),
    )
    transcripts = records(dataset, found)
    left_out = [left_out_record("test", one) for one in found.left_out]
    if scored is not None:
        transcripts += recording_records(scored)
        left_out += failure_records(scored)
    if output is not None:
        with runs.new_folder(output, "name another --output") as folder:
            runs.write_json(folder / "report.json", result.as_dict())
            runs.rewrite_jsonl(folder / runs.TRANSCRIPTS, transcripts)
            runs.rewrite_jsonl(folder / runs.LEFT_OUT, left_out)
    return result


def _whole_recordings(
    uncut: Sequence[Row], clips: Sequence[list[Row]], n_clips: int, say: Callable[[str], None]
) -> list[tuple[Row, int]]:
    """Find the recordings of which all clips are scored.

    Args:
        uncut: The rows of the source.
        clips: What each of them is cut into.
        n_clips: Number of clips that are scored, the first ones.
        say: Told how many recordings are not scored as a whole.

    Returns:
        Each recording, and the number of its first clip.
    """
    found = []
    n_passed_over = 0
    first = 0
    for row, of_one in zip(uncut, clips, strict=True):
        if row.is_recording and first + len(of_one) <= n_clips:
            found.append((row, first))
        elif row.is_recording:
            n_passed_over += 1
        first += len(of_one)
    if n_passed_over:
        say(
            f"{n_passed_over} of {n_passed_over + len(found)} recordings are not scored as a whole, because "
            "--max-clips leaves out clips of theirs."
        )
    return found


def _in_their_languages(whole: Sequence[tuple[Row, int]], dataset: SpeechDataset, language: str | None) -> list[Row]:
    """Give each recording the language of its clips, but none where the model is to listen to the recording itself."""
    listens = language is not None and language.strip().lower() == AUTO_LANGUAGE and not dataset.language_token
    rows = []
    for row, first_clip in whole:
        if not listens:
            row = dataclasses.replace(row, language=dataset.language_of(first_clip))
        rows.append(row)
    return rows
