"""A model that recordings are given to: some at a time, short ones in batches, long ones side by side or in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.batching import clips_at_once
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.evaluation.chunks import transcribe_in_chunks
from whisper_peft.evaluation.generation import AT_ONCE, transcribe_rows
from whisper_peft.evaluation.languages import listen_for_languages
from whisper_peft.evaluation.longform import transcribe_short_wave, transcribe_waves
from whisper_peft.evaluation.pieces import Decoding, tokens_left
from whisper_peft.evaluation.word_times import add_word_times
from whisper_peft.model.devices import best_device

if TYPE_CHECKING:
    import numpy as np

# Long recordings side by side. The scores of a stretch are kept: up to 0.4 GB for each of them.
LONG_AT_ONCE = {"cuda": 8, "cpu": 2}


def long_at_once() -> int:
    """Tell how many long recordings go side by side on this machine, where nothing else is asked for."""
    return LONG_AT_ONCE[_device_kind()]


@dataclass
class Job:
    """A recording that is to be heard."""

    number: int  # its place among all that were named
    row: Row  # the sound, or the piece of it, and the language where that is known
    seconds: float  # by its header
    outputs: dict[str, Path] = field(default_factory=dict)  # files to write, by format
    language: str | None = None  # Whisper's code, as `Hearer.hear` sets it; None for an English-only checkpoint


@dataclass
class Hearer:
    """A model that recordings are given to."""

    model: object
    preparation: Preparation
    decoding: Decoding
    listens: bool  # whether each recording is decoded in the language that the model hears in it
    batch_size: int | str
    slack_s: float  # of silence behind the longest short recording of a batch
    timed: bool
    word_times: bool
    chunked: bool
    progress: Callable[[float], object]  # told how many more seconds are done

    def hear(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Yield recordings with their transcripts: the short ones, then the long ones and those with times."""
        self._set_languages(jobs)
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
        for language in dict.fromkeys(job.language for job in long):
            spoken = [job for job in long if job.language == language]
            yield from self._hear_in_chunks(spoken) if self.chunked else self._hear_long(spoken)

    def _set_languages(self, jobs: Sequence[Job]) -> None:
        """Give each recording its language; of a long one only the first window is listened to."""
        if not self.listens:
            for job in jobs:
                job.language = job.row.language or self.decoding.language
            return
        window_s = self.preparation.window_s
        rows = []
        for job in jobs:
            is_long = job.seconds > 2 * window_s
            rows.append(replace(job.row, end_s=job.row.start_s + window_s) if is_long else job.row)
        for job, row in zip(jobs, listen_for_languages(self.model, self.preparation, rows), strict=True):
            job.language = row.language

    def _decoding_of(self, job: Job) -> Decoding:
        return replace(self.decoding, language=job.language)

    def _next_batch(self, short: deque[Job]) -> list[Job]:
        """Take as many recordings as are transcribed at a time, in their order."""
        budget_s, most = AT_ONCE[_device_kind()]
        batch: list[Job] = []
        longest_s = 0.1
        while short:
            longest_s = max(longest_s, short[0].seconds)
            window_s = min(self.preparation.window_s, longest_s + self.slack_s)
            size = min(most, clips_at_once(window_s, budget_s)) if self.batch_size == "auto" else self.batch_size
            if len(batch) >= size:
                break
            batch.append(short.popleft())
        return batch

    def _hear_short(self, batch: Sequence[Job]) -> dict[int, dict]:
        """Transcripts by number; without those that could not be used so."""
        rows = [Row(job.row.audio, "", job.language, job.row.start_s, job.row.end_s, no_speech=True) for job in batch]
        found = transcribe_rows(
            self.model,
            SpeechDataset(rows, self.preparation, task=self.decoding.task),
            range(len(rows)),
            batch_size=self.batch_size,
            slack_s=self.slack_s,
            max_new_tokens=tokens_left(self.preparation, self.decoding),
            beams=self.decoding.beams,
            with_loss=False,
            prompt_ids=self.decoding.prompt_ids,
        )
        return {
            batch[transcript.row].number: self._named(
                batch[transcript.row], {"text": transcript.text, "reached_limit": transcript.reached_limit}
            )
            for transcript in found.transcripts
        }

    def _named(self, job: Job, transcript: dict) -> dict:
        return {"audio": job.row.name, **transcript, "language": job.language or "en"}

    def _open(self, job: Job) -> tuple[np.ndarray | None, dict | None]:
        """Read a recording: its wave, or the transcript that is final without a walk through it."""
        try:
            wave = load_audio(
                job.row.sound(),
                start_s=job.row.start_s,
                end_s=job.row.end_s,
                sample_rate_hz=self.preparation.sample_rate_hz,
            )
        except AudioError as error:
            return None, {"audio": job.row.name, "error": str(error)}
        if not self.timed and len(wave) <= self.preparation.window_samples:
            transcript = transcribe_short_wave(self.model, self.preparation, wave, self._decoding_of(job))
            return None, self._named(job, transcript)
        return wave, None

    def _hear_long(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Several recordings of one language side by side; the next one is read when there is room for it."""
        waves: dict[int, np.ndarray] = {}
        final: list[tuple[Job, dict]] = []
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

        at_once = long_at_once() if self.batch_size == "auto" else self.batch_size
        decoding = self._decoding_of(jobs[0])
        heard = transcribe_waves(self.model, self.preparation, load_next(), decoding, at_once=at_once, progress=tell)
        for number, transcript in heard:
            yield from final
            final.clear()
            yield by_number[number], self._finished(by_number[number], waves.pop(number), transcript)
            tell(number, 1.0)
        yield from final

    def _hear_in_chunks(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """One recording after the other, each in chunks."""
        budget_s, most = AT_ONCE[_device_kind()]
        size = min(most, clips_at_once(self.preparation.window_s, budget_s))
        at_once = size if self.batch_size == "auto" else self.batch_size
        for job in jobs:
            told_s = 0.0

            def tell(share: float, job: Job = job) -> None:
                nonlocal told_s
                self.progress(share * job.seconds - told_s)
                told_s = share * job.seconds

            wave, final = self._open(job)
            if wave is None:
                tell(1.0)
                yield job, final
                continue
            decoding = self._decoding_of(job)
            transcript = transcribe_in_chunks(
                self.model, self.preparation, wave, decoding, at_once=at_once, progress=tell
            )
            yield job, self._finished(job, wave, transcript)

    def _finished(self, job: Job, wave, transcript: dict) -> dict:
        if self.word_times:
            add_word_times(
                self.model,
                self.preparation,
                wave,
                transcript["segments"],
                language=job.language,
                task=self.decoding.task,
            )
        return self._named(job, transcript)


def _device_kind() -> str:
    return "cuda" if best_device().type == "cuda" else "cpu"
