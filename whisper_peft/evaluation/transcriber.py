"""A model that transcribes recordings: short ones in batches, long ones side by side or in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.evaluation.chunks import transcribe_in_chunks
from whisper_peft.evaluation.clip_transcripts import transcribe_rows
from whisper_peft.evaluation.generation import auto_batch_size, device_kind
from whisper_peft.evaluation.languages import listen_for_languages
from whisper_peft.evaluation.longform import transcribe_short_wave, transcribe_waves
from whisper_peft.evaluation.pieces import Decoding, tokens_left
from whisper_peft.evaluation.word_times import add_word_times

if TYPE_CHECKING:
    import numpy as np

# Long recordings that are decoded side by side. The scores of a stretch are kept: up to 0.4 GB for each recording.
LONG_AT_ONCE = {"cuda": 8, "cpu": 2}
# A recording counts as short only if its header leaves this much room in the window, in seconds, because a header may
# state a little less than the file holds.
HEADER_MARGIN_S = 0.5


def long_at_once() -> int:
    """Return how many long recordings go side by side on this machine, unless the user names a number."""
    return LONG_AT_ONCE[device_kind()]


@dataclass
class Job:
    """A recording that waits to be transcribed.

    Attributes:
        number: Its place among all recordings that the user named, from 0.
        row: The file, or the piece of it, and its language if that is known.
        seconds: Its length by its header.
        outputs: Files to write, by format.
        language: Whisper's code; None for an English-only checkpoint. `Transcriber.transcribe` sets it.
    """

    number: int
    row: Row
    seconds: float
    outputs: dict[str, Path] = field(default_factory=dict)
    language: str | None = None


@dataclass
class Transcriber:
    """A model that transcribes recordings, and how it does so.

    Attributes:
        model: Whisper in eval mode, or an adapter on one, on its device.
        preparation: The preparation of its checkpoint.
        decoding: How recordings are decoded.
        listens: Decode each recording in the language that the model hears in it.
        batch_size: Recordings at a time, or "auto".
        slack_s: Silence behind the longest short recording of a batch, in seconds.
        timed: Give every recording times, not only the long ones.
        word_times: Give the times of words, too.
        chunked: Cut long recordings into chunks that are decoded together.
        progress: Called with the seconds of sound that were done since its last call.
    """

    model: object
    preparation: Preparation
    decoding: Decoding
    listens: bool
    batch_size: int | str
    slack_s: float
    timed: bool
    word_times: bool
    chunked: bool
    progress: Callable[[float], object]

    def transcribe(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Yield recordings with their transcripts: the short ones first, then the long ones and those with times."""
        self._set_languages(jobs)
        short: deque[Job] = deque()
        long: list[Job] = []
        for job in jobs:
            if self.timed or job.seconds > self.preparation.window_s - HEADER_MARGIN_S:
                long.append(job)
            else:
                short.append(job)
        while short:
            batch = self._take_batch(short)
            transcripts = self._transcribe_short(batch)
            for job in batch:
                if job.number in transcripts:
                    self.progress(job.seconds)
                    yield job, transcripts[job.number]
                else:
                    # It holds more than its header states, or cannot be read. Read alone, it gives its text or reason.
                    long.append(job)
        long.sort(key=lambda job: job.number)
        for language in dict.fromkeys(job.language for job in long):
            jobs_of_language = [job for job in long if job.language == language]
            if self.chunked:
                yield from self._transcribe_in_chunks(jobs_of_language)
            else:
                yield from self._transcribe_long(jobs_of_language)

    def _set_languages(self, jobs: Sequence[Job]) -> None:
        """Give each recording its language. The model listens to no more than the first window of a long one."""
        if not self.listens:
            for job in jobs:
                job.language = job.row.language or self.decoding.language
            return
        window_s = self.preparation.window_s
        rows = []
        for job in jobs:
            row = job.row
            if job.seconds > 2 * window_s:
                row = replace(row, end_s=row.start_s + window_s)
            rows.append(row)
        for job, row in zip(jobs, listen_for_languages(self.model, self.preparation, rows), strict=True):
            job.language = row.language

    def _decoding_of(self, job: Job) -> Decoding:
        return replace(self.decoding, language=job.language)

    def _size_or(self, automatic: int) -> int:
        """Return the batch size that the user named, or else the automatic one."""
        return automatic if isinstance(self.batch_size, str) else self.batch_size

    def _take_batch(self, short: deque[Job]) -> list[Job]:
        """Take as many recordings from the front as are transcribed at a time."""
        batch: list[Job] = []
        longest_s = 0.1
        while short:
            longest_s = max(longest_s, short[0].seconds)
            window_s = min(self.preparation.window_s, longest_s + self.slack_s)
            if len(batch) >= self._size_or(auto_batch_size(window_s)):
                break
            batch.append(short.popleft())
        return batch

    def _transcribe_short(self, batch: Sequence[Job]) -> dict[int, dict]:
        """Return the transcripts of a batch by number, without those that could not be used so."""
        rows = [Row(job.row.audio, "", job.language, job.row.start_s, job.row.end_s, no_speech=True) for job in batch]
        result = transcribe_rows(
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
        by_number = {}
        for transcript in result.transcripts:
            job = batch[transcript.row]
            content = {"text": transcript.text, "reached_limit": transcript.reached_limit}
            by_number[job.number] = self._describe(job, content)
        return by_number

    def _describe(self, job: Job, transcript: dict) -> dict:
        """Add the file and the language to a transcript."""
        return {"audio": job.row.name, **transcript, "language": job.language or "en"}

    def _open(self, job: Job) -> np.ndarray | dict:
        """Read a recording. Return its wave, or a transcript if nothing is left to do: the text, or an error."""
        try:
            wave = load_audio(
                job.row.sound(),
                start_s=job.row.start_s,
                end_s=job.row.end_s,
                sample_rate_hz=self.preparation.sample_rate_hz,
            )
        except AudioError as error:
            return {"audio": job.row.name, "error": str(error)}
        if not self.timed and len(wave) <= self.preparation.window_samples:
            transcript = transcribe_short_wave(self.model, self.preparation, wave, self._decoding_of(job))
            return self._describe(job, transcript)
        return wave

    def _transcribe_long(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Transcribe recordings of one language side by side. The next one is read when there is room for it."""
        waves: dict[int, np.ndarray] = {}
        finished: list[tuple[Job, dict]] = []
        shares: dict[int, float] = {}
        by_number = {job.number: job for job in jobs}

        def read_waves() -> Iterator[tuple[int, np.ndarray]]:
            for job in jobs:
                opened = self._open(job)
                if isinstance(opened, dict):
                    finished.append((job, opened))
                    self.progress(job.seconds)
                else:
                    waves[job.number] = opened
                    yield job.number, opened

        def tell(number: int, share: float) -> None:
            increase = share - shares.get(number, 0.0)
            if increase > 0:
                shares[number] = share
                self.progress(increase * by_number[number].seconds)

        transcripts = transcribe_waves(
            self.model,
            self.preparation,
            read_waves(),
            self._decoding_of(jobs[0]),
            at_once=self._size_or(long_at_once()),
            progress=tell,
        )
        for number, transcript in transcripts:
            yield from finished
            finished.clear()
            yield by_number[number], self._complete(by_number[number], waves.pop(number), transcript)
            tell(number, 1.0)
        yield from finished

    def _transcribe_in_chunks(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Transcribe one recording after the other, each in chunks."""
        at_once = self._size_or(auto_batch_size(self.preparation.window_s))
        for job in jobs:
            told_s = 0.0

            def tell(share: float, job: Job = job) -> None:
                nonlocal told_s
                self.progress(share * job.seconds - told_s)
                told_s = share * job.seconds

            opened = self._open(job)
            if isinstance(opened, dict):
                tell(1.0)
                yield job, opened
                continue
            transcript = transcribe_in_chunks(
                self.model,
                self.preparation,
                opened,
                self._decoding_of(job),
                at_once=at_once,
                progress=tell,
            )
            yield job, self._complete(job, opened, transcript)

    def _complete(self, job: Job, wave: np.ndarray, transcript: dict) -> dict:
        """Add to a transcript what does not come from decoding: times of words, file and language."""
        if self.word_times:
            add_word_times(
                self.model,
                self.preparation,
                wave,
                transcript["segments"],
                language=job.language,
                task=self.decoding.task,
            )
        return self._describe(job, transcript)
