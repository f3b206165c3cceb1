"""The transcribe command: print or write each result when it is ready, and name the recordings that failed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import click

from whisper_peft.cli.lines import shown_path, transcript_line
from whisper_peft.cli.printer import Printer
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.files import printable

LIST_ON_STDIN = "-"


def transcribe_all(
    out: Printer,
    model: str,
    audio: tuple[str, ...],
    *,
    formats: tuple[str, ...],
    output: str | None,
    word_times: bool,
    **options,
) -> int:
    """Transcribe recordings; print or write each when it is ready.

    Args:
        out: Prints what the command says.
        model: Hub id, model folder, run folder or adapter folder.
        audio: Files, folders and patterns; ``-`` stands for a list of paths on stdin.
        formats: Names of formats; empty for txt.
        output: Folder for the files; None prints the transcripts.
        word_times: Whether to find the times of words.
        **options: The other options of `transcribe_each`.

    Returns:
        The exit code: 1 if a recording could not be used.

    Raises:
        UserError: Nothing can be done, or the only recording that is named cannot be used.
        Interrupted: Ctrl-C or SIGTERM. The finished transcripts are written or printed.
    """
    from whisper_peft.data.audio_files import find_recordings
    from whisper_peft.evaluation.transcribing import transcribe_each
    from whisper_peft.evaluation.transcript_files import WITH_TIMES, parse_formats

    chosen = parse_formats(formats or ("txt",))
    recordings = find_recordings(_expand_list(audio))
    alone = len(recordings) == 1
    if output is None and len(chosen) > 1:
        raise click.UsageError(f"--format {','.join(chosen)}: several formats need --output DIR.")
    if output is None and chosen != ("txt",) and not alone and not out.as_json:
        raise click.UsageError(f"--format {chosen[0]}: several recordings need --output DIR.")
    if not recordings:
        raise UserError("-: the list on stdin names no recordings.")
    results = _Results(out, format=chosen[0], named=not alone, n_recordings=len(recordings))
    with _interrupt_on_sigterm(), out.seconds_bar("transcribing") as seconds_done:
        transcripts = transcribe_each(
            model,
            recordings,
            output=output,
            formats=chosen,
            word_times=word_times,
            times=any(format in WITH_TIMES for format in chosen),
            say=out.say,
            progress=seconds_done,
            **options,
        )
        try:
            for number, transcript in transcripts:
                results.add(number, transcript)
        except (KeyboardInterrupt, Interrupted) as stop:
            results.finish()
            raise results.interruption(stop, output) from None
    if alone and results.failed:
        raise UserError(f"{results.failed[0]['audio']}: {results.failed[0]['error']}.")
    results.finish()
    if results.n_before:
        out.say(
            f"{results.n_before} of {len(recordings)} recordings were done before. Their files in {shown_path(output)} "
            "stay as they are; to make one again, delete its files."
        )
    if output is not None and results.n_written:
        out.say(f"Wrote the transcripts of {results.n_written} recordings to {shown_path(output)}.")
    if results.failed:
        _say_error(f"{len(results.failed)} of {len(recordings)} recordings could not be used; the others are done.")
    return 1 if results.failed else 0


class _Results:
    """The results so far. Each is printed in the order of the recordings, as soon as those before it are ready.

    Args:
        out: Prints the transcripts.
        format: Format of the printed transcripts.
        named: Whether a transcript is printed after the name of its recording.
        n_recordings: Number of recordings.
    """

    def __init__(self, out: Printer, *, format: str, named: bool, n_recordings: int):
        self.out = out
        self.format = format
        self.named = named
        self.n_recordings = n_recordings
        self.transcripts: dict[int, dict] = {}
        self.failed: list[dict] = []
        self.n_before = 0
        self.n_written = 0
        self._following = 0

    def add(self, number: int, transcript: dict) -> None:
        """Store a result, and print all results whose turn has come."""
        self.transcripts[number] = transcript
        if "error" in transcript:
            self.failed.append(transcript)
            if self.named:
                _say_error(f"{transcript['audio']}: {transcript['error']}.")
        self.n_before += "done_before" in transcript
        self.n_written += "outputs" in transcript and "text" in transcript
        while self._following in self.transcripts:
            self._print(self._following)
            self._following += 1

    def finish(self) -> None:
        """Print the results that still wait for an earlier recording, or all of them as JSON."""
        numbers = sorted(self.transcripts)
        if not self.out.as_json:
            for number in numbers:
                if number >= self._following:
                    self._print(number)
            return
        content: dict[str, object] = {
            "transcripts": [self.transcripts[number] for number in numbers if "error" not in self.transcripts[number]]
        }
        if self.failed:
            content["failed"] = self.failed
        self.out.result(content, [])

    def interruption(self, stop: BaseException, output: str | None) -> Interrupted:
        """Say what was finished before the stop, and how to go on."""
        number = int(signal.SIGINT)
        if isinstance(stop, Interrupted):
            number = stop.exit_code - 128
        n_done = len(self.transcripts) - len(self.failed)
        done = f"{n_done} of {self.n_recordings} recordings are done"
        if output is None:
            return Interrupted(number, f"{done} and printed; with --output DIR a second run would go on from here.")
        return Interrupted(
            number, f"{done}, with their files in {shown_path(output)}; run the same command again to do the others."
        )

    def _print(self, number: int) -> None:
        from tqdm import tqdm

        from whisper_peft.evaluation.transcript_files import render_transcript

        transcript = self.transcripts[number]
        if self.out.as_json or "text" not in transcript or "outputs" in transcript:
            return
        if self.format == "txt":
            text = transcript_line(transcript, named=self.named)
        else:
            text = render_transcript(transcript, self.format).rstrip("\n")
        # The progress bar is taken away for this line, and comes back after it.
        with tqdm.external_write_mode(file=sys.stdout):
            click.echo(printable(text, keep_line_breaks=True))
            sys.stdout.flush()


def _say_error(line: str) -> None:
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        click.echo(f"Error: {printable(line)}", err=True)


def _expand_list(audio: tuple[str, ...]) -> Iterator[str]:
    """Yield the names that were given; for ``-``, the lines on stdin that are not blank."""
    for name in audio:
        if name != LIST_ON_STDIN:
            yield name
            continue
        for line in sys.stdin.buffer:
            path = os.fsdecode(line.rstrip(b"\r\n"))
            if path.strip():
                yield path


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the body as Ctrl-C does, with its own exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number, "")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
