"""Start and end columns whose times do not fit their files: times of another recording, or of a cut already made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError
from whisper_peft.files import printable

# The two kinds of finding.
ELSEWHERE = "times-elsewhere"
CUT = "times-cut"
# Two lengths count as the same if they differ by at most so many seconds, or by this share of the file.
_TOLERANCE_S = 0.3
_TOLERANCE_SHARE = 0.05
# Fewer rows are no pattern.
_FEWEST_ROWS = 2
# Of the rows with times, this share must have a file as long as the piece: only a cut made before explains that.
_CUT_BEFORE_SHARE = 0.2
# Of the rows with times, this share must not fit otherwise: a few wrong rows are mistakes in these rows.
_PATTERN_SHARE = 0.5
# So many headers are read if nothing else reads them.
_MOST_HEADERS = 200
# How many of the unit make a second, and the name of the unit.
_UNITS = ((1000.0, "milliseconds"), (16_000.0, "samples"), (48_000.0, "samples"))


@dataclass(frozen=True)
class Doubt:
    """A question about the columns with start and end."""

    # ELSEWHERE or CUT.
    kind: str
    # The numbers of the rows that raise the question.
    rows: tuple[int, ...]
    # A whole clause, without a full stop.
    question: str


@dataclass(frozen=True)
class _TimedRow:
    """A row with times, beside the length of its file in seconds."""

    number: int
    row: Row
    file_s: float

    def lies_beyond_file(self) -> bool:
        return _latest_s(self.row) > self.file_s + _tolerance_s(self.file_s)

    def fills_file(self) -> bool:
        """Tell whether the piece is as long as the whole file. A piece without an end reaches to the file's end."""
        end_s = self.file_s if self.row.end_s is None else self.row.end_s
        return _is_alike(end_s - self.row.start_s, self.file_s)

    def was_cut_before(self) -> bool:
        """Tell whether a piece with an end is as long as the whole file, although its times lie elsewhere."""
        return self.row.end_s is not None and self.fills_file()

    def has_stated_length(self) -> bool:
        """Tell whether the table states the length of the file for the clip."""
        return self.row.stated_s is not None and _is_alike(self.row.stated_s, self.file_s)


def doubt_times(rows: Sequence[Row], files_s: Sequence[float | None]) -> list[Doubt]:
    """Compare the times of rows with the lengths of their files.

    Args:
        rows: The rows of a source. Rows with segments come from a recording, and are passed over.
        files_s: The length of each row's file in seconds. None: it is not known.

    Returns:
        The doubts about the columns with start and end. There are none if only a few rows do not fit their files.
    """
    timed = []
    for number, row in enumerate(rows):
        file_s = files_s[number]
        if _is_timed(row) and file_s:
            timed.append(_TimedRow(number, row, file_s))
    beyond = [piece for piece in timed if piece.lies_beyond_file()]
    within = [piece for piece in timed if not piece.lies_beyond_file()]
    cut_before = [piece for piece in beyond if piece.was_cut_before()]
    if len(cut_before) >= max(_FEWEST_ROWS, _CUT_BEFORE_SHARE * len(timed)):
        question = (
            "start and end (or offset and duration) seem to be times in another recording: in "
            f"{len(cut_before):,} of {len(timed):,} rows the file is as long as the piece, and ends before it"
        )
    elif len(beyond) > max(_FEWEST_ROWS, _PATTERN_SHARE * len(timed)):
        unit = _find_unit(beyond)
        seem = f"seem to be {unit}, not seconds" if unit else "do not seem to be times in these files"
        question = (
            f"start and end {seem}: in {len(beyond):,} of {len(timed):,} rows they lie beyond the end of the file"
        )
    else:
        return _doubt_cuts(within, len(timed))
    if sum(piece.has_stated_length() for piece in beyond) > _PATTERN_SHARE * len(beyond):
        question += "; the column duration agrees with the files"
    return [Doubt(ELSEWHERE, tuple(piece.number for piece in beyond), question)]


def _doubt_cuts(within: Sequence[_TimedRow], n_timed: int) -> list[Doubt]:
    """Doubt pieces that leave out a part of a file which no other row uses.

    Args:
        within: The rows whose times lie within their files.
        n_timed: The number of all rows with times.
    """
    used = Counter(piece.row.name for piece in within)
    short = [piece for piece in within if used[piece.row.name] == 1 and not piece.fills_file()]
    stated = [piece for piece in short if piece.has_stated_length()]
    question = "start and end leave out a part of the file that no other row uses"
    if stated:
        question += "; the column duration agrees with the files, start and end do not"
    is_pattern = len(short) >= max(_FEWEST_ROWS, _PATTERN_SHARE * n_timed)
    doubtful = short if is_pattern else stated
    if not doubtful:
        return []
    return [Doubt(CUT, tuple(piece.number for piece in doubtful), question)]


def refuse_foreign_times(name: str, rows: Sequence[Row], files_s: Sequence[float | None], *, key: str = "") -> None:
    """Refuse to cut sound at times that are not times in these files.

    Args:
        name: The source.
        rows: The rows of the source.
        files_s: The length of each row's file in seconds. None: it is not known.
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
    """Read the lengths of files from their headers, for the first rows with times; None for all other rows."""
    known: dict[object, float | None] = {}
    lengths: list[float | None] = [None] * len(rows)
    for number, row in enumerate(rows):
        if not _is_timed(row):
            continue
        file = number if isinstance(row.audio, bytes) else row.name
        if file not in known:
            if len(known) >= _MOST_HEADERS:
                break
            known[file] = _read_length(row)
        lengths[number] = known[file]
    return lengths


def _read_length(row: Row) -> float | None:
    """Read the length of a row's file in seconds; None if the file cannot be read."""
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


def _latest_s(row: Row) -> float:
    """Return the latest time of a row. A wrong row may start after its end."""
    return row.start_s if row.end_s is None else max(row.start_s, row.end_s)


def _tolerance_s(file_s: float) -> float:
    return max(_TOLERANCE_S, _TOLERANCE_SHARE * file_s)


def _is_alike(length_s: float, file_s: float) -> bool:
    return abs(length_s - file_s) <= _tolerance_s(file_s)


def _find_unit(pieces: Sequence[_TimedRow]) -> str | None:
    """Find a unit in which the times of all rows lie within their files."""
    for per_second, unit in _UNITS:
        if all(_latest_s(piece.row) / per_second <= piece.file_s + _tolerance_s(piece.file_s) for piece in pieces):
            return unit
    return None
