"""transcribe(MODEL, AUDIO...): many recordings, each of any length, to texts, with times, and to files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.audio_files import NamedRecording, find_recordings
from whisper_peft.data.rows import Row
from whisper_peft.data.text import AUTO_LANGUAGE
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import set_window
from whisper_peft.evaluation.languages import resolve_language
from whisper_peft.evaluation.loading import load_to_run
from whisper_peft.evaluation.pieces import Decoding, prompt_ids
from whisper_peft.evaluation.transcriber import Hearer, Job
from whisper_peft.evaluation.transcript_files import (
    WITH_TIMES,
    output_names,
    output_paths,
    parse_formats,
    write_transcript,
)
from whisper_peft.evaluation.word_times import alignment_heads

# So many recordings are looked at together; what is ready waits for no more than these to come in order.
BLOCK = 64


def transcribe(
    model: str | Path,
    audio: Iterable[str | Path],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int | str = "auto",
    window: str = "full",
    beams: int = 1,
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
        model: Any MODEL: Hub id, model, adapter or run folder.
        audio: Files of any format, folders, and patterns such as ``talks/*.mp3``.
        language: A name or code; None: the one the model was trained for, as its generation config says; "auto": the
            one that the model hears in each recording.
        task: transcribe or translate.
        batch_size: Recordings at a time; "auto": as many short ones as fill 240 s of windows, 64 at most (a CPU: 120 s,
            16), and 8 long ones (a CPU: 2).
        window: full (30 s), or condensed or tight, quicker, for a model trained so. Long recordings, and those with
            times, are always heard in full windows.
        beams: 1 is greedy.
        base: The adapter's base, if it has moved.
        quantize: The base in "8bit", "4bit" or "none"; "as-trained": as the adapter knew it.
        precision: "fp32", "bf16" or "fp16"; "auto": the best half precision on a GPU, fp32 on a CPU.
        prompt: Names and jargon, as they are spelt. They stand before every window, without being a part of the text.
        times: Whether recordings that fit into one window have segments with times, too.
        word_times: Whether segments have the times of their words.
        chunked: Whether a long recording is cut into chunks of one window, decoded several at once.
        output: A folder for files named after the recordings; None writes nothing. What is there already is done.
        formats: Of the files: txt, srt, vtt, tsv, json. All but txt have times.
        progress: Told how many recordings were done since it was last told.

    Returns:
        One ``{"audio": path, "text": transcript, "reached_limit": …, "language": code}`` each, in the order given. One
        longer than the model's window (30 s), or with `times`, also has ``segments``: ``{"start": seconds, "end":
        seconds, "text": …}``, with `word_times` also ``words``: ``{"word": …, "start": …, "end": …}``. With `output`
        ``outputs`` names the files; one that was done already has ``done_before`` instead of a text.

    Raises:
        UserError: A recording is missing or unreadable, or the model does not know the language.
    """
    transcripts = {}
    heard = transcribe_each(
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
    for number, transcript in heard:
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
    beams: int = 1,
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
    """Transcribe recordings, and hand each over as soon as it is done; a bad one does not stop the others.

    Args:
        model: See `transcribe`, as for all that is not named here.
        audio: See `transcribe`; also what `find_recordings` found.
        language: See `transcribe`.
        task: See `transcribe`.
        batch_size: See `transcribe`.
        window: See `transcribe`.
        beams: See `transcribe`.
        base: See `transcribe`.
        quantize: See `transcribe`.
        precision: See `transcribe`.
        prompt: See `transcribe`.
        times: See `transcribe`.
        word_times: See `transcribe`.
        chunked: See `transcribe`.
        output: See `transcribe`. Each file is written before its recording is handed over.
        formats: See `transcribe`.
        say: Told what happens, one line at a time.
        progress: Told the seconds of sound that were done since it was last told, and those of all recordings.

    Yields:
        The recording's place among all that were named, from 0, and its transcript as of `transcribe`. A recording that
        cannot be used has ``error``, the reason, instead of a text.

    Raises:
        UserError: What concerns all recordings: the model, the language, the output folder.
    """
    named = find_recordings(audio)
    chosen = parse_formats(formats)
    timed = times or word_times or (output is not None and any(name in WITH_TIMES for name in chosen))
    if output is not None:
        _refuse_unusable(Path(output))
    jobs, ready = _plan(named, Path(output) if output is not None else None, chosen)
    yield from ready
    if not jobs:
        return
    loaded, preparation, _, _ = load_to_run(model, base=base, quantize=quantize, precision=precision)
    if word_times:
        alignment_heads(loaded)  # refuse before hours of work
    code = resolve_language(loaded, preparation, language)
    listens = code == AUTO_LANGUAGE
    preparation.check_languages([] if listens else [(code, "--language")], task)
    ids, n_cut = prompt_ids(preparation, prompt)
    if n_cut:
        say(
            f"--prompt: {n_cut} tokens were cut at its start; the model takes the last {preparation.max_prompt_tokens}."
        )
    hearer = Hearer(
        loaded,
        preparation,
        Decoding(None if listens else code, task, beams, ids),
        listens=listens,
        batch_size=batch_size,
        slack_s=set_window(loaded, window),
        timed=timed,
        word_times=word_times,
        chunked=chunked,
        progress=_counted(progress, sum(job.seconds for job in jobs)),
    )
    for first in range(0, len(jobs), BLOCK):
        for job, transcript in hearer.hear(jobs[first : first + BLOCK]):
            if job.outputs and "error" not in transcript:
                transcript = _write(transcript, job)
            yield job.number, transcript


def _refuse_unusable(output: Path) -> None:
    if output.is_dir():
        return
    if output.exists():
        raise UserError(f"{output}: a file; --output names a folder.")
    runs.refuse_existing(output)


def _write(transcript: dict, job: Job) -> dict:
    """Write the files of a recording; where that fails, the recording has an error, and the others go on."""
    try:
        write_transcript(transcript, job.outputs)
    except UserError as error:
        return {"audio": job.row.name, "error": str(error).removesuffix(".")}
    return {**transcript, "outputs": [str(path) for path in job.outputs.values()]}


def _counted(progress: Callable[[float, float], object], total_s: float) -> Callable[[float], object]:
    return lambda seconds: progress(seconds, total_s)


def _plan(
    named: Sequence[NamedRecording], output: Path | None, formats: Sequence[str]
) -> tuple[list[Job], list[tuple[int, dict]]]:
    """Find what is to be heard, and what is over without it: files that are missing, and those that are done."""
    jobs: list[Job] = []
    ready: list[tuple[int, dict]] = []
    places: dict[int, tuple[str, str]] = {}
    seconds: dict[int, float] = {}
    for number, recording in enumerate(named):
        try:
            if recording.problem:
                raise AudioError(recording.problem)
            seconds[number] = duration_s(recording.path)
            places[number] = (recording.path, recording.place)
        except AudioError as error:
            ready.append((number, {"audio": recording.path, "error": str(error)}))
    names = dict(zip(places, output_names(list(places.values())), strict=True))
    taken: set[str] = set()
    for number, (path, _) in places.items():
        job = Job(number, Row(path, ""), seconds[number])
        if output is not None:
            job.outputs = output_paths(output, names[number], formats)
            is_done = names[number] in taken or all(file.exists() for file in job.outputs.values())
            taken.add(names[number])
            if is_done:
                files = [str(file) for file in job.outputs.values()]
                ready.append((number, {"audio": path, "done_before": True, "outputs": files}))
                continue
        jobs.append(job)
    return jobs, ready
