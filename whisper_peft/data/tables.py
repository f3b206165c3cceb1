"""Tables as text files: .csv as spreadsheets write it, .tsv without quoting, .jsonl; strict, so that no row is lost.

Common Voice's .tsv is read with csv quoting by many, and loses the rows between two stray quotes (PITFALLS 15). Only
the tables of its Spontaneous Speech releases are written with quoting: there a field is unquoted where it is quoted
from its first character to its last one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from whisper_peft.errors import UserError
from whisper_peft.files import foreign_content, open_file, parse_json, printable, reason_of

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SPONTANEOUS = frozenset({"client_id", "audio_file", "transcription"})  # columns of a Spontaneous Speech release
NO_SPLIT = "unassigned"  # what Common Voice calls the rows that are in no split
_SPLIT = "split"
# What other tables call the column of splits. It may hold anything else, too, so it is named and never obeyed.
_LIKE_SPLIT = ("subset", "partition", "set", "fold", "data_split", "dataset_split")
_MOST_CHARACTERS = 1 << 25  # of a line; a text of hours has less
_MOST_LINES = 1000  # of one field
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_table(path: Path) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    """Read a table row by row: (line number, names of the columns, values); text everywhere but in .jsonl.

    Raises:
        UserError: It cannot be opened, is not UTF-8, or a row does not fit; with file and line.
    """
    read = {".csv": _read_csv, ".tsv": _read_tsv}.get(path.suffix.lower(), _read_jsonl)
    # Only a csv text may hold line breaks; elsewhere a lone carriage return is not the end of a line.
    newline = "" if read is _read_csv else "\n"
    shown = printable(path)
    with open_file(path, allow_empty=True) as binary:
        foreign = foreign_content(binary.read(4096))
        if foreign:
            raise UserError(f"{shown}: {foreign}.")
        binary.seek(0)
        file = io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)
        number = 0
        try:
            for number, names, values in read(shown, _lines(shown, file)):
                yield number, names, values
        except UnicodeDecodeError as error:
            raise UserError(
                f"{shown}: not UTF-8 after line {number} ({error.reason}, byte 0x{error.object[error.start]:02x}); "
                "save it as UTF-8."
            ) from None
        except OSError as error:
            raise UserError(f"{shown}: {reason_of(error)}, after line {number}.") from None


def find_split_column(names: tuple[str, ...]) -> int | None:
    """Find the column that says which split a row is in; its place among the names."""
    lower = [name.strip().lower() for name in names]
    return lower.index(_SPLIT) if _SPLIT in lower else None


def find_unasked_split(names: tuple[str, ...]) -> int | None:
    """Find a column that may say which split a row is in, under another name than "split"; its place."""
    lower = [name.strip().lower() for name in names]
    if _SPLIT in lower:
        return None
    return next((lower.index(name) for name in _LIKE_SPLIT if name in lower), None)


def split_of(value: Any) -> str:
    """The split that a cell names."""
    return NO_SPLIT if value is None else str(value).strip() or NO_SPLIT


def count_splits(path: Path) -> dict[str, int]:
    """Count the rows of each split that the table's split column names; nothing where it has no such column.

    Raises:
        UserError: See `read_table`.
    """
    if path.suffix.lower() not in (".csv", ".tsv") and not _mentions_splits(path):
        return {}
    counts: Counter[str] = Counter()
    has_column = False
    for _, names, values in read_table(path):
        column = find_split_column(names)
        if column is not None:
            has_column = True
        elif path.suffix.lower() in (".csv", ".tsv"):
            return {}
        counts[split_of(None if column is None else values[column])] += 1
    return dict(counts) if has_column else {}


def _mentions_splits(path: Path) -> bool:
    """Whether any line of a .jsonl file can have the key "split": most files have not, and are read only once."""
    with open_file(path, allow_empty=True) as file:
        tail = b""
        while block := file.read(1 << 20):
            if b'"split"' in (tail + block).lower():
                return True
            tail = block[-16:]
    return False


def _lines(shown: str, file: IO[str]) -> Iterator[str]:
    number = 0
    while line := file.readline(_MOST_CHARACTERS):
        number += 1
        if len(line) == _MOST_CHARACTERS:
            raise UserError(f"{shown}:{number}: a line of more than {_MOST_CHARACTERS:,} characters; this is no table.")
        if "\0" in line:
            raise UserError(f"{shown}:{number}: NUL bytes in it: not UTF-8, or damaged; save it as UTF-8.")
        yield line


def _read_csv(shown: str, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    header = next(lines, "")
    # Spreadsheets write ";" where the comma is the decimal sign.
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(_with_first(header, lines), delimiter=delimiter, strict=True)
    names: tuple[str, ...] | None = None
    number = 1
    try:
        for values in reader:
            if names is None:
                names = tuple(values)
            elif any(values):
                yield number, names, _fitted(shown, number, names, values, "a comma or a line break needs quotes")
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


def _with_first(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _read_tsv(shown: str, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    names: tuple[str, ...] | None = None
    is_quoted = False
    number = 0
    for line in lines:
        number += 1
        values = line.rstrip("\r\n").split("\t")
        if names is None:
            names = tuple(values)
            is_quoted = set(names) >= SPONTANEOUS
            continue
        first = number
        while is_quoted and len(values) < len(names) and _is_open(values[-1]) and number - first < _MOST_LINES:
            more = next(lines, None)
            if more is None:
                break
            number += 1
            line = f"{line}{more}"
            values = line.rstrip("\r\n").split("\t")
        if is_quoted:
            values = [_unquoted(value) for value in values]
        if any(values):
            yield first, names, _fitted(shown, first, names, values, "a tab or a line break cannot stand in a .tsv")


def _is_open(value: str) -> bool:
    """Whether a field begins with a quote that is not closed in it."""
    return value.startswith('"') and _QUOTED.fullmatch(value) is None


def _unquoted(value: str) -> str:
    """A field as it was before it was quoted; one that needed no quotes has its own, as in '"Yes"'."""
    match = _QUOTED.fullmatch(value)
    if match is None or not ('""' in match[1] or "\n" in match[1]):
        return value
    return match[1].replace('""', '"')


def _fitted(shown: str, number: int, names: tuple[str, ...], values: list[str], why: str) -> list[str]:
    while len(values) > len(names) and not values[-1]:
        values.pop()
    if len(values) != len(names):
        raise UserError(
            f"{shown}:{number}: {len(values)} fields, but the first line names {len(names)}; in a text, {why}."
        )
    return values


def _read_jsonl(shown: str, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip()[0] == "[":
            raise UserError(
                f"{shown}: a JSON list; a manifest has one object a line. Segment files come in a later version."
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
    """Whether a text holds half of a surrogate pair, which would only fail at the tokenizer."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
