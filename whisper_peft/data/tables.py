"""Read tables that are text files: .csv as spreadsheets write it, .tsv without quoting, .jsonl.

Reading is strict, so that no row is lost. Many programs read the .tsv of Common Voice with the quoting of csv, and lose
the rows between two stray quotes. Only the tables of its Spontaneous Speech releases are written with quoting: there, a
field loses its quotes if it is quoted from its first character to its last one.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from whisper_peft.errors import UserError
from whisper_peft.files import foreign_content, open_file, parse_json, printable, reason_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
# The columns by which a Spontaneous Speech release is known.
SPONTANEOUS = frozenset({"client_id", "audio_file", "transcription"})

# A row of a table: its line number, the names of its columns, and its values.
_TableRow = tuple[int, tuple[str, ...], list[Any]]


def read_table(path: Path) -> Iterator[_TableRow]:
    """Read a table row by row; values are texts, except in .jsonl.

    Yields:
        The line number of a row, the names of its columns, and its values.

    Raises:
        UserError: The file cannot be opened, is not UTF-8, or a row does not fit; the message has the file and the
            line.
    """
    read, newline = _choose_reader(path.suffix.lower())
    shown = printable(path)
    with open_file(path, allow_empty=True) as binary:
        foreign = foreign_content(binary.read(4096))
        if foreign:
            raise UserError(f"{shown}: {foreign}.")
        binary.seek(0)
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)
        number = 0
        try:
            for number, names, values in read(shown, _read_lines(shown, file)):
                yield number, names, values
        except UnicodeDecodeError as error:
            raise UserError(
                f"{shown}: not UTF-8 after line {number} ({error.reason}, byte 0x{error.object[error.start]:02x}); "
                "save it as UTF-8."
            ) from None
        except OSError as error:
            raise UserError(f"{shown}: {reason_of(error)}, after line {number}.") from None


def _choose_reader(suffix: str) -> tuple[Callable[[str, Iterator[str]], Iterator[_TableRow]], str]:
    """Return the function that reads tables with this suffix, and what ends their lines, as for `open`."""
    if suffix == ".csv":
        # Only a text in a csv may hold line breaks.
        return _read_csv, ""
    # Elsewhere, a carriage return alone is not the end of a line.
    if suffix == ".tsv":
        return _read_tsv, "\n"
    return _read_jsonl, "\n"


# Common Voice says so of rows that are in no split.
NO_SPLIT = "unassigned"
_SPLIT = "split"
# Other tables give their column of splits these names. Such a column may hold anything else, too. So a message names
# it, and it is never obeyed.
_LIKE_SPLIT = ("subset", "partition", "set", "fold", "data_split", "dataset_split")


def find_split_column(names: tuple[str, ...]) -> int | None:
    """Find the column that says which split a row is in.

    Returns:
        Its place among the names; None if there is no such column.

    Example:
        >>> find_split_column(("audio", "text", "Split"))
        2
    """
    lower = [name.strip().lower() for name in names]
    return lower.index(_SPLIT) if _SPLIT in lower else None


def find_unasked_split(names: tuple[str, ...]) -> int | None:
    """Find a column that may say which split a row is in, under another name than "split".

    Returns:
        Its place among the names; None if there is no such column, or a column "split".

    Example:
        >>> find_unasked_split(("audio", "text", "subset"))
        2
    """
    lower = [name.strip().lower() for name in names]
    if _SPLIT in lower:
        return None
    for name in _LIKE_SPLIT:
        if name in lower:
            return lower.index(name)
    return None


def read_split(value: Any) -> str:
    """Return the split that a cell names.

    Example:
        >>> read_split(" train "), read_split("")
        ('train', 'unassigned')
    """
    if value is None:
        return NO_SPLIT
    return str(value).strip() or NO_SPLIT


def count_splits(path: Path) -> dict[str, int]:
    """Count the rows of each split that the table's split column names; nothing if it has no such column.

    Raises:
        UserError: See `read_table`.
    """
    # In these tables, all rows have the same columns.
    has_header = path.suffix.lower() in (".csv", ".tsv")
    if not has_header and not _mentions_splits(path):
        return {}
    counts: Counter[str] = Counter()
    has_column = False
    for _, names, values in read_table(path):
        column = find_split_column(names)
        if column is not None:
            has_column = True
            counts[read_split(values[column])] += 1
        elif has_header:
            return {}
        else:
            counts[NO_SPLIT] += 1
    return dict(counts) if has_column else {}


def _mentions_splits(path: Path) -> bool:
    """Tell whether any line of a .jsonl file can have the key "split".

    Most files do not have it, and are then read only once.
    """
    with open_file(path, allow_empty=True) as file:
        tail = b""
        while block := file.read(1 << 20):
            if b'"split"' in (tail + block).lower():
                return True
            tail = block[-16:]
    return False


# A text of hours has fewer characters than a line may have.
_MOST_CHARACTERS = 1 << 25


def _read_lines(shown: str, file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file.

    Args:
        shown: The path, as messages show it.
        file: The file, open as text.

    Raises:
        UserError: A line is too long, or holds NUL.
    """
    number = 0
    while line := file.readline(_MOST_CHARACTERS):
        number += 1
        if len(line) == _MOST_CHARACTERS:
            raise UserError(f"{shown}:{number}: a line of more than {_MOST_CHARACTERS:,} characters; this is no table.")
        if "\0" in line:
            raise UserError(f"{shown}:{number}: NUL bytes in it: not UTF-8, or damaged; save it as UTF-8.")
        yield line


def _read_csv(shown: str, lines: Iterator[str]) -> Iterator[_TableRow]:
    """Read the lines of a .csv; see `read_table`."""
    header = next(lines, "")
    # Spreadsheets write ";" where the comma is the decimal sign.
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    names: tuple[str, ...] | None = None
    number = 1
    try:
        for values in reader:
            if names is None:
                names = tuple(values)
            elif any(values):
                yield number, names, _fit_values(shown, number, names, values, "a comma or a line break needs quotes")
            number = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            cause = "a text that long, or a quote that is opened and not closed"
        else:
            cause = "a quote that is opened and not closed, or stands alone"
        raise UserError(
            f'{shown}:{number}: {error}: {cause}; within quotes it is written twice (""). Files without quoting are '
            "named .tsv."
        ) from None


# The largest number of lines in one field.
_MOST_LINES = 1000


def _read_tsv(shown: str, lines: Iterator[str]) -> Iterator[_TableRow]:
    """Read the lines of a .tsv; see `read_table`."""
    names: tuple[str, ...] | None = None
    is_quoted = False
    number = 0
    for line in lines:
        number += 1
        values = _split_fields(line)
        if names is None:
            names = tuple(values)
            is_quoted = set(names) >= SPONTANEOUS
            continue
        first = number
        # A quoted text may go on in the next lines.
        while is_quoted and len(values) < len(names) and _is_open(values[-1]) and number - first < _MOST_LINES:
            next_line = next(lines, None)
            if next_line is None:
                break
            number += 1
            line = f"{line}{next_line}"
            values = _split_fields(line)
        if is_quoted:
            values = [_unquote(value) for value in values]
        if any(values):
            yield first, names, _fit_values(shown, first, names, values, "a tab or a line break cannot stand in a .tsv")


def _split_fields(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _is_open(value: str) -> bool:
    """Tell whether a field begins with a quote that is not closed in it."""
    return value.startswith('"') and _QUOTED.fullmatch(value) is None


def _unquote(value: str) -> str:
    """Return a field as it was before it was quoted.

    A field that needed no quotes has its own, as a text of one quoted word does.

    Example:
        >>> _unquote('"one ""two"" three"'), _unquote('"Yes"')
        ('one "two" three', '"Yes"')
    """
    match = _QUOTED.fullmatch(value)
    if match is None:
        return value
    needs_quotes = '""' in match[1] or "\n" in match[1]
    return match[1].replace('""', '"') if needs_quotes else value


def _fit_values(shown: str, number: int, names: tuple[str, ...], values: list[str], rule: str) -> list[str]:
    """Return as many values as there are columns; empty ones at the end of a line are taken off.

    Args:
        shown: The path, as messages show it.
        number: Number of the row's first line.
        names: Names of the columns.
        values: Values of the row.
        rule: What the user has to know about texts in such a table.

    Raises:
        UserError: The row has more values, or fewer.
    """
    while len(values) > len(names) and not values[-1]:
        values.pop()
    if len(values) != len(names):
        raise UserError(
            f"{shown}:{number}: {len(values)} fields, but the first line names {len(names)}; in a text, {rule}."
        )
    return values


def _read_jsonl(shown: str, lines: Iterator[str]) -> Iterator[_TableRow]:
    """Read the lines of a .jsonl; see `read_table`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip()[0] == "[":
            raise UserError(
                f"{shown}: a JSON list, and a manifest has one JSON object a line. If these are segments, put the "
                "recording beside this file, under the same name."
            )
        try:
            fields = parse_json(line)
        except ValueError as error:
            raise UserError(f"{shown}:{number}: not JSON ({error}); a manifest has one object a line.") from None
        if not isinstance(fields, dict):
            raise UserError(f"{shown}:{number}: not a JSON object; a manifest has one object a line.")
        if "\\ud" in line.lower() and _has_half_a_character(fields):
            raise UserError(f"{shown}:{number}: half of a surrogate pair (\\ud...) in a text; write the text as UTF-8.")
        yield number, tuple(fields), list(fields.values())


def _has_half_a_character(fields: dict[str, Any]) -> bool:
    """Tell whether a text holds half of a surrogate pair, which would only fail at the tokenizer."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
