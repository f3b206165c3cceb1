"""Tables as text files: .csv as spreadsheets write it, .tsv without quoting, .jsonl; strict, so that no row is lost.

Common Voice's .tsv is read with csv quoting by many, and loses the rows between two stray quotes (PITFALLS 15).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whisper_peft.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


def read_table(path: Path) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    """Read a table row by row: (line number, names of the columns, values); text everywhere but in .jsonl.

    Raises:
        UserError: It is not UTF-8, or a row does not fit; with file and line.
    """
    read = {".csv": _read_csv, ".tsv": _read_tsv}.get(path.suffix.lower(), _read_jsonl)
    # Only a csv text may hold line breaks; elsewhere a lone carriage return is not the end of a line.
    with open(path, encoding="utf-8-sig", newline="" if read is _read_csv else "\n") as file:
        number = 0
        try:
            for number, names, values in read(path, _without_nul(path, file)):
                yield number, names, values
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 after line {number} ({error.reason}, byte 0x{error.object[error.start]:02x}); "
                "save it as UTF-8."
            ) from None


def _without_nul(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{path}:{number}: NUL bytes in it: not UTF-8, or damaged; save it as UTF-8.")
        yield line


def _read_csv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
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
                yield number, names, _fitted(path, number, names, values, "a comma or a line break needs quotes")
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{number}: {error}: a quote that is opened and not closed, or stands alone; within quotes it is "
            'written twice (""). Files without quoting are named .tsv.'
        ) from None


def _with_first(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _read_tsv(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    names: tuple[str, ...] | None = None
    for number, line in enumerate(lines, start=1):
        values = line.rstrip("\r\n").split("\t")
        if names is None:
            names = tuple(values)
        elif any(values):
            yield number, names, _fitted(path, number, names, values, "a tab or a line break cannot stand in a .tsv")


def _fitted(path: Path, number: int, names: tuple[str, ...], values: list[str], why: str) -> list[str]:
    while len(values) > len(names) and not values[-1]:
        values.pop()
    if len(values) != len(names):
        raise UserError(
            f"{path}:{number}: {len(values)} fields, but the first line names {len(names)}; in a text, {why}."
        )
    return values


def _read_jsonl(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip()[0] == "[":
            raise UserError(
                f"{path}: a JSON list; a manifest has one object a line. Segment files come in a later version."
            )
        try:
            fields = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(fields, ensure_ascii=False).encode()  # half a character would only fail at the tokenizer
        except UnicodeEncodeError:
            raise UserError(
                f"{path}:{number}: half of a surrogate pair (\\ud...) in a text; write the text as UTF-8."
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); a manifest has one object a line.") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path}:{number}: not a JSON object; a manifest has one object a line.")
        yield number, tuple(fields), list(fields.values())
