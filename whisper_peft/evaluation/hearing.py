"""transcribe(MODEL, AUDIO...): many recordings, each of any length, to texts, with times, and to files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.batching import clips_at_once
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.recordings import NamedRecording, find_recordings
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError
from whisper_peft.evaluation.chunks import transcribe_in_chunks
from whisper_peft.evaluation.loading import load_to_run
from whisper_peft.evaluation.longform import Decoding, prompt_ids, tokens_left, transcribe_short_wave, transcribe_waves
from whisper_peft.evaluation.transcribing import AT_ONCE, resolve_language, set_window, transcribe_rows
from whisper_peft.evaluation.transcript_files import (
    WITH_TIMES,
    output_names,
    output_paths,
    parse_formats,
    write_transcript,
)
from whisper_peft.evaluation.word_times import add_word_times, alignment_heads
from whisper_peft.model.devices import best_device

if TYPE_CHECKING:
    import numpy as np

# Long recordings side by side. The scores of a stretch are kept: up to 0.4 GB for each of them.
LONG_AT_ONCE = {"cuda": 8, "cpu": 2}
# So many recordings are looked at together; what is ready waits for no more than these to come in order.
BLOCK = 64


@dataclass
class _Job:
    """A recording that is to be heard."""

    number: int  # its place among all that were named
    path: str
    seconds: float  # by its header
    outputs: dict[str, Path] = field(default_factory=dict)


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
        language: A name or code; None: the one the model was trained for, as its generation config says.
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
        UserError: A recording is missing or unreadable.
    """
    found = {}
    heard = transcribe_each(
        model, audio, language=language, task=task, batch_size=batch_size, window=window, beams=beams, base=base,
        quantize=quantize, precision=precision, prompt=prompt, times=times, word_times=word_times, chunked=chunked,
        output=output, formats=formats,
    )  # fmt: skip
    for number, transcript in heard:
        if "error" in transcript:
            raise UserError(f"{transcript['audio']}: {transcript['error']}.")
        found[number] = transcript
        progress(1)
    return [found[number] for number in sorted(found)]


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
        _refuse_file(Path(output))
    jobs, ready = _plan(named, Path(output) if output is not None else None, chosen)
    yield from ready
    if not jobs:
        return
    loaded, preparation, _, _ = load_to_run(model, base=base, quantize=quantize, precision=precision)
    if word_times:
        alignment_heads(loaded)  # refuse before hours of work
    code = resolve_language(loaded, preparation, language)
    ids, n_cut = prompt_ids(preparation, prompt)
    if n_cut:
        say(
            f"--prompt: {n_cut} tokens were cut at its start; the model takes the last {preparation.max_prompt_tokens}."
        )
    hearer = _Hearer(
        loaded, preparation, Decoding(code, task, beams, ids), batch_size=batch_size,
        slack_s=set_window(loaded, window), timed=timed, word_times=word_times, chunked=chunked,
        progress=_counted(progress, sum(job.seconds for job in jobs)),
    )  # fmt: skip
    for first in range(0, len(jobs), BLOCK):
        for job, transcript in hearer.hear(jobs[first : first + BLOCK]):
            if job.outputs and "error" not in transcript:
                write_transcript(transcript, job.outputs)
                transcript["outputs"] = [str(path) for path in job.outputs.values()]
            yield job.number, transcript


def _refuse_file(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a folder.")


def _counted(progress: Callable[[float, float], object], total_s: float) -> Callable[[float], object]:
    return lambda seconds: progress(seconds, total_s)


def _plan(
    named: Sequence[NamedRecording], output: Path | None, formats: Sequence[str]
) -> tuple[list[_Job], list[tuple[int, dict]]]:
    """Find what is to be heard, and what is over without it: files that are missing, and those that are done."""
    jobs: list[_Job] = []
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
        job = _Job(number, path, seconds[number])
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


@dataclass
class _Hearer:
    """A model that recordings are given to, some at a time."""

    model: object
    preparation: Preparation
    decoding: Decoding
    batch_size: int | str
    slack_s: float  # of silence behind the longest short recording of a batch
    timed: bool
    word_times: bool
    chunked: bool
    progress: Callable[[float], object]  # told how many more seconds are done

    def hear(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, dict]]:
        """Yield recordings with their transcripts: the short ones, then the long ones and those with times."""
        nearly_s = self.preparation.window_s - 0.5  # a header may say a little less than there is
        short = deque(job for job in jobs if not self.timed and job.seconds <= nearly_s)
        long = [job for job in jobs if self.timed or job.seconds > nearly_s]
        while short:
            batch = self._next_batch(short)
            heard = self._hear_short(batch)
            for job in batch:
                if job.number in heard:
                    self.progress(job.seconds)
                    yield job, heard[job.number]
                else:  # it holds more than its header states, or is refused with the reason
                    long.append(job)
        long.sort(key=lambda job: job.number)
        yield from self._hear_in_chunks(long) if self.chunked else self._hear_long(long)

    def _next_batch(self, short: deque[_Job]) -> list[_Job]:
        """Take as many recordings as are transcribed at a time, in their order."""
        budget_s, most = AT_ONCE[_device_kind()]
        batch: list[_Job] = []
        longest_s = 0.1
        while short:
            longest_s = max(longest_s, short[0].seconds)
            window_s = min(self.preparation.window_s, longest_s + self.slack_s)
            size = min(most, clips_at_once(window_s, budget_s)) if self.batch_size == "auto" else self.batch_size
            if len(batch) >= size:
                break
            batch.append(short.popleft())
        return batch

    def _hear_short(self, batch: Sequence[_Job]) -> dict[int, dict]:
        """Transcripts by number; without those that could not be used so."""
        rows = [Row(job.path, "", self.decoding.language, no_speech=True) for job in batch]
        found = transcribe_rows(
            self.model, SpeechDataset(rows, self.preparation, task=self.decoding.task), range(len(rows)),
            batch_size=self.batch_size, slack_s=self.slack_s,
            max_new_tokens=tokens_left(self.preparation, self.decoding), beams=self.decoding.beams, with_loss=False,
            prompt_ids=self.decoding.prompt_ids,
        )  # fmt: skip
        return {
            batch[transcript.row].number: self._named(
                batch[transcript.row], {"text": transcript.text, "reached_limit": transcript.reached_limit}
            )
            for transcript in found.transcripts
        }

    def _named(self, job: _Job, transcript: dict) -> dict:
        return {"audio": job.path, **transcript, "language": self._language}

    @property
    def _language(self) -> str:
        return self.decoding.language or "en"

    def _open(self, job: _Job) -> tuple[np.ndarray | None, dict | None]:
        """Read a recording: its wave, or the transcript that is final without a walk through it."""
        try:
            wave = load_audio(job.path, sample_rate_hz=self.preparation.sample_rate_hz)
        except AudioError as error:
            return None, {"audio": job.path, "error": str(error)}
        if not self.timed and len(wave) <= self.preparation.window_samples:
            return None, self._named(job, transcribe_short_wave(self.model, self.preparation, wave, self.decoding))
        return wave, None

    def _hear_long(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, dict]]:
        """Several recordings side by side; the next one is read when there is room for it."""
        waves: dict[int, np.ndarray] = {}
        final: list[tuple[_Job, dict]] = []
        shares: dict[int, float] = {}
        by_number = {job.number: job for job in jobs}

        def load_next() -> Iterator[tuple[int, np.ndarray]]:
            for job in jobs:
                wave, transcript = self._open(job)
                if wave is None:
                    final.append((job, transcript))
                    self.progress(job.seconds)
                else:
                    waves[job.number] = wave
                    yield job.number, wave

        def tell(number: int, share: float) -> None:
            more = share - shares.get(number, 0.0)
            if more > 0:
                shares[number] = share
                self.progress(more * by_number[number].seconds)

        at_once = LONG_AT_ONCE[_device_kind()] if self.batch_size == "auto" else self.batch_size
        heard = transcribe_waves(
            self.model, self.preparation, load_next(), self.decoding, at_once=at_once, progress=tell
        )
        for number, transcript in heard:
            yield from final
            final.clear()
            yield by_number[number], self._finished(by_number[number], waves.pop(number), transcript)
            tell(number, 1.0)
        yield from final

    def _hear_in_chunks(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, dict]]:
        """One recording after the other, each in chunks."""
        budget_s, most = AT_ONCE[_device_kind()]
        size = min(most, clips_at_once(self.preparation.window_s, budget_s))
        at_once = size if self.batch_size == "auto" else self.batch_size
        for job in jobs:
            told_s = 0.0

            def tell(share: float, job: _Job = job) -> None:
                nonlocal told_s
                self.progress(share * job.seconds - told_s)
                told_s = share * job.seconds

            wave, final = self._open(job)
            if wave is None:
                tell(1.0)
                yield job, final
                continue
            transcript = transcribe_in_chunks(
                self.model, self.preparation, wave, self.decoding, at_once=at_once, progress=tell
            )
            yield job, self._finished(job, wave, transcript)

    def _finished(self, job: _Job, wave, transcript: dict) -> dict:
        if self.word_times:
            add_word_times(
                self.model, self.preparation, wave, transcript["segments"], language=self.decoding.language,
                task=self.decoding.task,
            )  # fmt: skip
        return self._named(job, transcript)


def _device_kind() -> str:
    return "cuda" if best_device().type == "cuda" else "cpu"
