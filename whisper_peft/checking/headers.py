"""How long each row is, by the header of its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whisper_peft.checking.findings import Findings, SourceRows
from whisper_peft.checking.limits import Limits
from whisper_peft.checking.threads import map_in_threads
from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.rows import Row

# Words of an AudioError that say that a file holds less sound than it states.
_WORDS_OF_TRUNCATION = ("truncated", "breaks off", "but the recording has only")


@dataclass(frozen=True, slots=True)
class RowLength:
    """The length of a row, by the header of its file.

    Attributes:
        seconds: Seconds of the row; None if they are not known.
        file_s: Seconds of the whole file; None if they are not known.
        fault: Why the seconds are not known; "" if they are.
    """

    seconds: float | None
    file_s: float | None
    fault: str = ""


def read_row_lengths(source: SourceRows, progress: bool) -> list[RowLength]:
    """Read the headers of a source, one result for each row."""
    return list(map_in_threads(_header_reader(), source.rows, f"headers of {source.name}", progress))


def _header_reader() -> Callable[[Row], RowLength]:
    """Return a function that reads the header of a row. A recording of many rows is read once."""
    # Path of a recording -> its seconds, or why they are not known.
    recordings: dict[str, float | str] = {}

    def read(row: Row) -> RowLength:
        if row.end_s is None or not isinstance(row.audio, str):
            length = _length_of_file(row)
        else:
            if row.audio not in recordings:
                recordings[row.audio] = _length_of_file(row)
            length = recordings[row.audio]
        if isinstance(length, str):
            return RowLength(None, None, fault=length)
        return _length_of_row(row, length)

    return read


def _length_of_file(row: Row) -> float | str:
    """Return the seconds of a row's file, or why they are not known."""
    try:
        return duration_s(row.sound())
    except AudioError as error:
        return str(error)


def _length_of_row(row: Row, file_s: float) -> RowLength:
    """Tell the seconds of a row inside its file."""
    fault = ""
    if row.start_s < 0:
        fault = f"starts at {row.start_s:g} s, before the recording"
    elif row.start_s >= file_s:
        fault = f"starts at {row.start_s:g} s, but the recording has only {file_s:.2f} s"
    elif row.end_s is not None and row.end_s <= row.start_s:
        fault = f"ends at {row.end_s:g} s, before it starts"
    if fault:
        return RowLength(None, file_s, fault)
    end_s = file_s if row.end_s is None else row.end_s
    return RowLength(end_s - row.start_s, file_s)


def look_at_length(findings: Findings, source: int, number: int, length: RowLength, limits: Limits) -> None:
    """Note a row whose length is not known, or too long for the model.

    Args:
        findings: Takes what is found.
        source: Number of the source.
        number: Number of the row.
        length: The length of the row.
        limits: What the model takes.
    """
    if length.seconds is None:
        findings.add(kind_of_audio_fault(length.fault), source, number, length.fault)
    elif length.seconds > limits.window_s:
        detail = f"{length.seconds:.1f} s; the model takes {limits.window_s:g} s"
        findings.add("over-window", source, number, detail, weight=length.seconds)


def kind_of_audio_fault(reason: str) -> str:
    """Return the kind of finding for the message of an AudioError.

    Example:
        >>> kind_of_audio_fault("no such file"), kind_of_audio_fault("not a sound file")
        ('missing', 'unreadable')
    """
    if "no such file" in reason:
        return "missing"
    if any(words in reason for words in _WORDS_OF_TRUNCATION):
        return "truncated"
    return "unreadable"
