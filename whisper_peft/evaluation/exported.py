"""Exported models as MODEL of `transcribe` and `evaluate`: their own runtimes do the decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.dataset import Example, LeftOut, SpeechDataset
from whisper_peft.data.rows import Row
from whisper_peft.data.spoken import settle_languages
from whisper_peft.data.text import AUTO_LANGUAGE, clean_text, language_code
from whisper_peft.errors import UserError
from whisper_peft.evaluation.clip_transcripts import Transcript, Transcripts
from whisper_peft.evaluation.pieces import finish_transcript
from whisper_peft.evaluation.transcriber import Job
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import from_dict
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.opening import open_runtime
from whisper_peft.runtimes.runtime import Request, Runtime, RuntimeOutput

if TYPE_CHECKING:
    import numpy as np

# Sample rate of every Whisper.
RATE_HZ = 16_000
# The options that only transformers has, with the values that ask for nothing.
_NEUTRAL = {
    "window": "full",
    "base": None,
    "quantize": "as-trained",
    "precision": "auto",
    "chunked": False,
    "max_new_tokens": None,
    "batch_size": "auto",
}


def refuse_options(export: Export, **options: object) -> None:
    """Refuse options that a runtime has no use for, because it decodes in its own way.

    Args:
        export: The exported model.
        **options: Options of `transcribe` or `evaluate`, by name.

    Raises:
        UserError: The user gave such an option.
    """
    for name, value in options.items():
        if value != _NEUTRAL[name]:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option}: {export.folder.name} is an export that {export.format.runtime} runs in its own way; leave "
                f"{option} away, or name the run or the model that it was made from."
            )


def language_of_export(export: Export, language: str | None) -> str | None:
    """Decide the language to decode in: the one that is named, or else the one that the model was trained for.

    Returns:
        Whisper's code; "auto" if the runtime listens for it; None for an English-only model.

    Raises:
        UserError: Neither the user nor the export names a language, or an English-only model is asked for another.
    """
    if not export.multilingual:
        if language is not None and language.strip().lower() not in (AUTO_LANGUAGE, "en", "english"):
            raise UserError(f"--language {language}: {export.folder.name} is English-only.")
        return None
    if language is None:
        language = export.language
    if language is None:
        raise UserError(
            "--language: the model does not say which language it was trained for; name it, or let the runtime listen "
            "for it with --language auto."
        )
    language = language.strip("<|> ")
    return AUTO_LANGUAGE if language.lower() == AUTO_LANGUAGE else language_code(language)


@dataclass
class ExportTranscriber:
    """An export that transcribes recordings one after the other.

    Attributes:
        runtime: The export in its runtime.
        request: The wishes of the user. A job that names its language is decoded in that.
        timed: Give every recording segments with times, not only the long ones.
        window_s: Length of the model's window, in seconds.
        fallback: Language of a transcript if nobody names one: "en" for an English-only model, else None.
        progress: Called with the seconds of sound that were done since its last call.
    """

    runtime: Runtime
    request: Request
    timed: bool
    window_s: float
    fallback: str | None
    progress: Callable[[float], object]

    def transcribe(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Yield recordings with their transcripts, in order; see `Transcriber.transcribe`."""
        for job in jobs:
            yield job, self._transcribe_job(job)
            self.progress(job.seconds)

    def _transcribe_job(self, job: Job) -> dict:
        row = job.row
        try:
            wave = load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s, sample_rate_hz=RATE_HZ)
        except AudioError as error:
            return {"audio": row.name, "error": str(error)}
        language = row.language or self.request.language
        output = self.runtime.transcribe(wave, dataclasses.replace(self.request, language=language))
        transcript = _transcript_of(output, len(wave) / RATE_HZ, word_times=self.request.word_times)
        if not self.timed and len(wave) <= self.window_s * RATE_HZ:
            del transcript["segments"]
        return {"audio": row.name, **transcript, "language": output.language or language or self.fallback}


def _transcript_of(output: RuntimeOutput, length_s: float, *, word_times: bool) -> dict:
    """Turn a runtime's answer into a transcript as `transcribe` returns it. No runtime says that it hit a limit."""
    timed_texts = [(segment.start_s, segment.end_s, segment.text) for segment in output.segments]
    transcript = finish_transcript(timed_texts, length_s, reached_limit=False)
    spoken = [segment for segment in output.segments if segment.text.strip() and segment.start_s < length_s]
    for segment, kept in zip(spoken, transcript["segments"], strict=True):
        if word_times:
            kept["words"] = [
                {"word": word.text.strip(), "start": round(word.start_s, 2), "end": round(word.end_s, 2)}
                for word in segment.words
            ]
    return transcript


def open_transcriber(
    export: Export,
    *,
    language: str | None,
    task: str,
    prompt: str | None,
    beams: int | None,
    timed: bool,
    word_times: bool,
    progress: Callable[[float], object],
) -> ExportTranscriber:
    """Open an export for recordings.

    Args:
        export: The exported model.
        language: Whisper's code; None lets the runtime listen for it, or is for an English-only model.
        task: "transcribe" or "translate".
        prompt: Names and jargon; None for none.
        beams: Number of beams; None takes the runtime's own.
        timed: Give every recording segments with times, not only the long ones.
        word_times: Whether to find the times of words.
        progress: Called with the seconds of sound that were done since its last call.

    Raises:
        UserError: The runtime is not installed or does not load the export, or the model does not know the language.
    """
    preparation = export.preparation()
    preparation.check_languages([(language, "--language")] if language else [], task)
    request = Request(language, task, (prompt or "").strip() or None, word_times, beams, times=timed)
    fallback = None if export.multilingual else "en"
    return ExportTranscriber(open_runtime(export), request, timed, preparation.window_s, fallback, progress)


def label_for_export(
    export: Export,
    rows: Sequence[Row],
    *,
    language: str | None,
    task: str | None,
    name: str,
    say: Callable[[str], None],
) -> SpeechDataset:
    """Make a data set from rows with transcripts, for an export to be scored on.

    Args:
        export: The exported model.
        rows: The rows to score.
        language: Language of rows that name none. None takes the one that the model was trained for.
        task: "transcribe" or "translate"; None takes the one that the model was trained for.
        name: Name of the source, for messages.
        say: Called with a line if rows name a language that Whisper does not know, and are taken for another one.

    Raises:
        UserError: A row names a language that Whisper or this model does not know, or none is named.
        UserError: The language is "auto", which only transformers can score.
    """
    recipe = _recipe_of(export)
    code = None
    if language is not None or any(row.language is None for row in rows):
        code = language_of_export(export, language)
    if code == AUTO_LANGUAGE:
        raise UserError(
            "--language auto: an export is scored in a language that is known before; name it with --language."
        )
    preparation = export.preparation()
    borrowed_token = recipe.model.language_token
    named_code = code if language is not None else None
    rows = settle_languages(rows, name, language=named_code, borrowed=bool(borrowed_token), say=say)
    dataset = SpeechDataset(
        rows,
        preparation,
        language=code,
        task=task or export.task,
        language_token=borrowed_token,
        clean=partial(clean_text, **dataclasses.asdict(recipe.data.text)),
    )
    preparation.check_languages([(dataset.language_of(row), row.place or row.name) for row in rows], dataset.task)
    return dataset


def _recipe_of(export: Export) -> Recipe:
    """Return the recipe of the run that the model comes from; the default one if it is not known."""
    file = export.folder / runs.PROVENANCE
    if not file.is_file():
        return Recipe()
    return from_dict(runs.read_json(file).get("recipe") or {})


def transcribe_rows_in_runtime(
    runtime: Runtime,
    dataset: SpeechDataset,
    *,
    beams: int | None,
    progress: Callable[[int], object] = lambda clips: None,
) -> Transcripts:
    """Transcribe every row of a data set in the runtime of an export, one after the other.

    Args:
        runtime: The export in its runtime.
        dataset: The clips. A row that could not be an example is left out, as it is with transformers.
        beams: Number of beams; None takes the runtime's own.
        progress: Called after each clip with 1.

    Returns:
        The transcripts, without losses, and the rows that could not be used.
    """
    result = Transcripts()
    for number in range(len(dataset)):
        example = dataset[number]
        if isinstance(example, LeftOut):
            result.left_out.append(example)
        else:
            assert isinstance(example, Example)
            wave = _read_row(dataset.rows[number])
            output = runtime.transcribe(wave, Request(dataset.language_of(number), dataset.task, beams=beams))
            result.transcripts.append(Transcript(number, output.text, n_tokens=0, reached_limit=False))
        progress(1)
    return result


def _read_row(row: Row) -> np.ndarray:
    return load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s, sample_rate_hz=RATE_HZ)
