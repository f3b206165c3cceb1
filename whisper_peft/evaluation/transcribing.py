"""The command `transcribe`: recordings of any length to texts, with times if wanted, and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.audio_files import NamedRecording, find_recordings
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.data.text import AUTO_LANGUAGE
from whisper_peft.errors import UserError
from whisper_peft.evaluation.exported import language_of_export, open_transcriber, refuse_options
from whisper_peft.evaluation.generation import use_window
from whisper_peft.evaluation.languages import resolve_language
from whisper_peft.evaluation.loading import load_to_run
from whisper_peft.evaluation.pieces import Decoding, prompt_ids
from whisper_peft.evaluation.transcriber import Job, Transcriber
from whisper_peft.evaluation.transcript_files import (
    WITH_TIMES,
    output_names,
    output_paths,
    parse_formats,
    write_transcript,
)
from whisper_peft.evaluation.word_times import alignment_heads
from whisper_peft.runtimes.exports import find_export

# Recordings that are sorted by length and language together. A later block starts when this one is done, so that its
# results wait for no more than this many recordings.
BLOCK = 64


def transcribe(
    model: str | Path,
    audio: Iterable[str | Path],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int | str = "auto",
    window: str = "full",
    beams: int | None = None,
    base: str | None = None,
    quantize: str = "as-trained",
    precision: str = "auto",
    prompt: str | None = None,
    times: bool = False,
    word_times: bool = False,
    chunked: bool = False,
    output: str | Path | None = None,
    formats: Sequence[str] = ("txt",),
    progress: Callable[[int], object] = lambda clips: None,
) -> list[dict]:
    """Transcribe recordings of any length.

    Args:
        model: Any MODEL: Hub id, model, adapter or run folder, or an exported model, which its own runtime decodes.
        audio: Files of any format, folders, and patterns such as ``talks/*.mp3``.
        language: Name or code. None takes the language in the model's generation config, which is the one that it was
            trained for. "auto" takes the language that the model hears in each recording.
        task: "transcribe" or "translate".
        batch_size: Recordings at a time; "auto": as many short ones as fill 240 s of windows, 64 at most (a CPU: 120 s,
            16), and 8 long ones (a CPU: 2).
        window: "full" (30 s). "condensed" and "tight" are quicker, and need a model that was trained with them. Long
            recordings, and those with times, are always heard in full windows.
        beams: Number of beams; 1 is greedy. None is 1; for an exported model, the number that its runtime takes.
        base: The adapter's base, if it has moved.
        quantize: Load the base in "8bit", "4bit" or "none"; "as-trained": in the bits that the adapter was trained on.
        precision: "fp32", "bf16" or "fp16"; "auto": the best half precision on a GPU, fp32 on a CPU.
        prompt: Names and jargon, as they are spelt. They stand before every window, and are no part of the text.
        times: Give segments with times also to recordings that fit into one window.
        word_times: Give segments the times of their words.
        chunked: Cut a long recording into chunks of one window, and decode several at once.
        output: Folder for files that are named after the recordings; None writes nothing. A recording whose files are
            there already counts as done.
        formats: Formats of the files: txt, srt, vtt, tsv, json. All but txt have times.
        progress: Called with the number of recordings that were done since its last call.

    Returns:
        One ``{"audio": path, "text": transcript, "reached_limit": …, "language": code}`` for each recording, in the
        order given. A recording that is longer than the model's window (30 s), and every one with `times`, also has
        ``segments``: ``{"start": seconds, "end": seconds, "text": …}``. With `word_times`, each segment has ``words``:
        ``{"word": …, "start": …, "end": …}``. With `output`, ``outputs`` names the files; a recording that was done
        already has ``done_before`` instead of a text.

    Raises:
        UserError: A recording is missing or unreadable, or the model does not know the language.
    """
    transcripts = {}
    numbered = transcribe_each(
        model,
        audio,
        language=language,
        task=task,
        batch_size=batch_size,
        window=window,
        beams=beams,
        base=base,
        quantize=quantize,
        precision=precision,
        prompt=prompt,
        times=times,
        word_times=word_times,
        chunked=chunked,
        output=output,
        formats=formats,
    )
    for number, transcript in numbered:
        if "error" in transcript:
            raise UserError(f"{transcript['audio']}: {transcript['error']}.")
        transcripts[number] = transcript
        progress(1)
    return [transcripts[number] for number in sorted(transcripts)]


def transcribe_each(
    model: str | Path,
    audio: Iterable[str | Path | NamedRecording],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int | str = "auto",
    window: str = "full",
    beams: int | None = None,
    base: str | None = None,
    quantize: str = "as-trained",
    precision: str = "auto",
    prompt: str | None = None,
    times: bool = False,
    word_times: bool = False,
    chunked: bool = False,
    output: str | Path | None = None,
    formats: Sequence[str] = ("txt",),
    say: Callable[[str], object] = lambda line: None,
    progress: Callable[[float, float], object] = lambda seconds, total: None,
) -> Iterator[tuple[int, dict]]:
    """Transcribe recordings, and yield each one as soon as it is done. A bad one does not stop the others.

    The arguments are those of `transcribe`, with three differences. `audio` also takes what `find_recordings` returns.
    `say` is called with each line that the user should know. `progress` is called with the seconds of sound that were
    done since its last call, and with the seconds of all recordings.

    Yields:
        The place of a recording among all that were named, from 0, and its transcript as `transcribe` returns it. A
        recording that cannot be used has ``error``, the reason, instead of a text. Output files are written before
        their recording is yielded.

    Raises:
        UserError: No recording can be transcribed, because the model, the language or the output folder is wrong.
    """
    named = find_recordings(audio)
    chosen_formats = parse_formats(formats)
    needs_times = output is not None and any(name in WITH_TIMES for name in chosen_formats)
    folder = None
    if output is not None:
        folder = Path(output)
        _refuse_unusable(folder)
    jobs, finished = _plan(named, folder, chosen_formats)
    yield from finished
    if not jobs:
        return
    total_s = sum(job.seconds for job in jobs)
    exported = find_export(model)
    if exported is not None:
        refuse_options(
            exported,
            window=window,
            base=base,
            quantize=quantize,
            precision=precision,
            chunked=chunked,
            batch_size=batch_size,
        )
        code = language_of_export(exported, language)
        in_runtime = open_transcriber(
            exported,
            language=None if code == AUTO_LANGUAGE else code,
            task=task,
            prompt=prompt,
            beams=beams,
            timed=times or word_times or needs_times,
            word_times=word_times,
            progress=lambda seconds: progress(seconds, total_s),
        )
        yield from _finish_jobs(in_runtime.transcribe(jobs))
        return
    loaded, preparation, _, _ = load_to_run(model, base=base, quantize=quantize, precision=precision)
    if word_times:
        # Refuse a model without alignment heads now, not after hours of work.
        alignment_heads(loaded)
    decoding, listens = _choose_decoding(loaded, preparation, language, task, beams or 1, prompt, say)
    with use_window(loaded, window) as slack_s:
        transcriber = Transcriber(
            loaded,
            preparation,
            decoding,
            listens=listens,
            batch_size=batch_size,
            slack_s=slack_s,
            timed=times or word_times or needs_times,
            word_times=word_times,
            chunked=chunked,
            progress=lambda seconds: progress(seconds, total_s),
        )
        for first in range(0, len(jobs), BLOCK):
            yield from _finish_jobs(transcriber.transcribe(jobs[first : first + BLOCK]))


def _finish_jobs(transcripts: Iterable[tuple[Job, dict]]) -> Iterator[tuple[int, dict]]:
    """Write the files of each recording, and yield its number and its transcript."""
    for job, transcript in transcripts:
        if job.outputs and "error" not in transcript:
            transcript = _write_outputs(transcript, job)
        yield job.number, transcript


def _choose_decoding(
    model: object,
    preparation: Preparation,
    language: str | None,
    task: str,
    beams: int,
    prompt: str | None,
    say: Callable[[str], object],
) -> tuple[Decoding, bool]:
    """Turn what the user asked for into a `Decoding`. Tell as well whether the model listens for the language."""
    code = resolve_language(model, preparation, language)
    listens = code == AUTO_LANGUAGE
    preparation.check_languages([] if listens else [(code, "--language")], task)
    ids, n_cut = prompt_ids(preparation, prompt)
    if n_cut:
        say(
            f"--prompt: {n_cut} tokens were cut at its start; the model takes the last {preparation.max_prompt_tokens}."
        )
    return Decoding(None if listens else code, task, beams, ids), listens


def _refuse_unusable(output: Path) -> None:
    """Refuse an output that is not a folder; a folder that exists is used."""
    if output.is_dir():
        return
    if output.exists():
        raise UserError(f"{output}: a file; --output names a folder.")
    runs.refuse_existing(output)


def _write_outputs(transcript: dict, job: Job) -> dict:
    """Write the files of a recording. If that fails, the recording has an error, and the others go on."""
    try:
        write_transcript(transcript, job.outputs)
    except UserError as error:
        return {"audio": job.row.name, "error": str(error).removesuffix(".")}
    return {**transcript, "outputs": [str(path) for path in job.outputs.values()]}


def _plan(
    named: Sequence[NamedRecording], folder: Path | None, formats: Sequence[str]
) -> tuple[list[Job], list[tuple[int, dict]]]:
    """Sort recordings into those to transcribe, and those that are finished without: unreadable, or done before.

    Args:
        named: The recordings that the user named.
        folder: Output folder; None writes nothing.
        formats: Formats of the files.

    Returns:
        Jobs, and the numbers of the finished recordings with their results.
    """
    places: dict[int, tuple[str, str]] = {}
    seconds: dict[int, float] = {}
    finished: list[tuple[int, dict]] = []
    for number, recording in enumerate(named):
        try:
            if recording.problem:
                raise AudioError(recording.problem)
            seconds[number] = duration_s(recording.path)
            places[number] = (recording.path, recording.place)
        except AudioError as error:
            finished.append((number, {"audio": recording.path, "error": str(error)}))
    names = dict(zip(places, output_names(list(places.values())), strict=True))
    jobs: list[Job] = []
    taken: set[str] = set()
    for number, (path, _) in places.items():
        job = Job(number, Row(path, ""), seconds[number])
        if folder is not None:
            job.outputs = output_paths(folder, names[number], formats)
            # A recording that is named twice has one name, so its second job would write the same files.
            is_done = names[number] in taken or all(file.exists() for file in job.outputs.values())
            taken.add(names[number])
            if is_done:
                files = [str(file) for file in job.outputs.values()]
                finished.append((number, {"audio": path, "done_before": True, "outputs": files}))
                continue
        jobs.append(job)
    return jobs, finished
