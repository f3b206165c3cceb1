"""Tell from the times of many rows whether they are times of another recording, or of a cut that was made already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError
from whisper_peft.files import printable

ELSEWHERE, CUT = "times-elsewhere", "times-cut"
_TOLERANCE_S, _TOLERANCE = 0.3, 0.05  # two lengths that differ by no more than either are the same
_FEW = 2  # rows; fewer are no pattern
_SOME, _MANY = 0.2, 0.5  # shares of the rows with times
_MOST_HEADERS = 200  # that are read where nothing else reads them
_UNITS = ((1000.0, "milliseconds"), (16_000.0, "samples"), (48_000.0, "samples"))


@dataclass(frozen=True)
class Doubt:
    """A question about the columns with start and end."""

    kind: str  # of finding: ELSEWHERE or CUT
    rows: tuple[int, ...]
    question: str  # a whole clause, without a full stop


def doubt_times(rows: Sequence[Row], files_s: Sequence[float | None]) -> list[Doubt]:
    """Hold the times of rows against the lengths of their files.

    Args:
        rows: The rows of a source. Those with segments come from a recording, and are passed over.
        files_s: Seconds of each row's file; None where they are not known.

    Returns:
        What is doubtful about the columns; nothing where only few rows do not fit their files.
    """
    timed = [number for number, row in enumerate(rows) if _is_timed(row) and files_s[number]]
    beyond = [number for number in timed if _latest(rows[number]) > files_s[number] + _tolerance(files_s[number])]
    cut_before = [number for number in beyond if _is_alike(_length(rows[number]), files_s[number])]
    agrees = sum(_is_alike(rows[number].stated_s, files_s[number]) for number in beyond)
    stated = "; the column duration agrees with the files" if agrees > _MANY * len(beyond) else ""
    if len(cut_before) >= max(_FEW, _SOME * len(timed)):
        question = (
            "start and end (or offset and duration) seem to be times in another recording: in "
            f"{len(cut_before):,} of {len(timed):,} rows the file is as long as the piece, and ends before it{stated}"
        )
        return [Doubt(ELSEWHERE, tuple(beyond), question)]
    if len(beyond) > max(_FEW, _MANY * len(timed)):
        unit = _unit([(_latest(rows[number]), files_s[number]) for number in beyond])
        seem = f"seem to be {unit}, not seconds" if unit else "do not seem to be times in these files"
        question = (
            f"start and end {seem}: in {len(beyond):,} of {len(timed):,} rows they lie beyond the end of the "
            f"file{stated}"
        )
        return [Doubt(ELSEWHERE, tuple(beyond), question)]
    outside = frozenset(beyond)
    return _doubt_cuts(rows, files_s, [number for number in timed if number not in outside], len(timed))


def _doubt_cuts(
    rows: Sequence[Row], files_s: Sequence[float | None], within: Sequence[int], n_timed: int
) -> list[Doubt]:
    """Pieces that leave out a part of a file which no other row uses."""
    used = Counter(rows[number].name for number in within)
    short = [
        number
        for number in within
        if used[rows[number].name] == 1 and not _is_alike(_length(rows[number], files_s[number]), files_s[number])
    ]
    question = "start and end leave out a part of the file that no other row uses"
    stated = [number for number in short if _is_alike(rows[number].stated_s, files_s[number])]
    if stated:
        question += "; the column duration agrees with the files, start and end do not"
    is_pattern = len(short) >= max(_FEW, _MANY * n_timed)
    doubtful = tuple(short if is_pattern else stated)
    return [Doubt(CUT, doubtful, question)] if doubtful else []


def refuse_elsewhere(name: str, rows: Sequence[Row], files_s: Sequence[float | None], *, key: str = "") -> None:
    """Refuse to cut sound at times that are not times in these files.

    Args:
        name: The source.
        rows: Its rows.
        files_s: Seconds of each row's file; None where they are not known.
        key: The recipe's key of the source, with a colon and a space, for the message.

    Raises:
        UserError: The columns with start and end seem to mean something else.
    """
    for doubt in doubt_times(rows, files_s):
        if doubt.kind == ELSEWHERE:
            first = rows[doubt.rows[0]]
            raise UserError(
                f"{key}{printable(name)}: the columns {doubt.question}, as in {printable(first.place or first.name)} "
                f"({describe_times(first, files_s[doubt.rows[0]])}). Take each file whole with --times ignore, or keep "
                "to these times with --times use."
            )


def read_lengths(rows: Sequence[Row]) -> list[float | None]:
    """Read from headers how long the files of the first rows with times are; None for all other rows."""
    known: dict[object, float | None] = {}
    lengths: list[float | None] = [None] * len(rows)
    for number, row in enumerate(rows):
        if not _is_timed(row):
            continue
        file = number if isinstance(row.audio, bytes) else row.name
        if file not in known:
            if len(known) >= _MOST_HEADERS:
                break
            known[file] = _seconds_of(row)
        lengths[number] = known[file]
    return lengths


def _seconds_of(row: Row) -> float | None:
    try:
        return duration_s(row.sound())
    except AudioError:
        return None


def describe_times(row: Row, file_s: float | None) -> str:
    """Say which times a row has, and how long its file is."""
    end = "" if row.end_s is None else f", end {row.end_s:g} s"
    file = "" if file_s is None else f"; the file has {file_s:.2f} s"
    return f"start {row.start_s:g} s{end}{file}"


def _is_timed(row: Row) -> bool:
    return (row.start_s > 0 or row.end_s is not None) and not row.segments


def _latest(row: Row) -> float:
    return row.start_s if row.end_s is None else max(row.start_s, row.end_s)


def _length(row: Row, file_s: float | None = None) -> float | None:
    end_s = file_s if row.end_s is None else row.end_s
    return None if end_s is None else end_s - row.start_s


def _tolerance(seconds: float) -> float:
    return max(_TOLERANCE_S, _TOLERANCE * seconds)


def _is_alike(one_s: float | None, other_s: float) -> bool:
    return one_s is not None and abs(one_s - other_s) <= _tolerance(other_s)


def _unit(pairs: Sequence[tuple[float, float]]) -> str | None:
    """The unit in which times lie within their files: (latest time, seconds of the file) of each row."""
    for factor, unit in _UNITS:
        if all(latest / factor <= file_s + _tolerance(file_s) for latest, file_s in pairs):
            return unit
    return None
