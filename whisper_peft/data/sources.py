"""SRC -> rows of (audio reference, text, language, start, end); nothing is decoded, no sound file is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from whisper_peft.data.columns import find_meanings, pick, row_of
from whisper_peft.data.folders import Columnar, Recording, Table, find_source
from whisper_peft.data.hub import typed_rows
from whisper_peft.data.rows import Row
from whisper_peft.data.subtitles import WINDOW_S, cut, read_segments, utf8_bytes
from whisper_peft.data.tables import read_table
from whisper_peft.errors import UserError


def load_source(
    source: str,
    *,
    audio_column: str | None = None,
    text_column: str | None = None,
    n_tokens: Callable[[str], int] = utf8_bytes,
) -> list[Row]:
    """Read the rows of a source; an existing path always wins over the reading as PATH:split or as a Hub data set.

    Args:
        source: a folder, manifest, packed release, Parquet file, recording with segments beside it, or the name of a
            Hub data set, with `:split`, `:split+split` or `:config:split` where it has them.
        audio_column: column or key that names or holds the sound, if not one of the usual.
        text_column: column or key of the transcript, if not one of the usual.
        n_tokens: text -> how many tokens the model has for it, where long recordings are cut into clips.

    Raises:
        UserError: There is no such source, or it cannot be read; the message names the place and the remedy.
    """
    found = find_source(source)
    rows: list[Row] = []
    for one in found:
        if isinstance(one, Recording):
            recording = Row(str(one.audio), "", language=one.language, speaker=one.audio.stem, place=one.segments.name)
            rows += cut(recording, read_segments(one.segments), n_tokens=n_tokens)
        else:
            read = typed_rows if isinstance(one, Columnar) else _rows
            for row in read(one, audio_column, text_column):
                rows += _clips(row, n_tokens)
    if not rows:
        raise UserError(f"{source}: no rows in it.")
    return rows


def _clips(row: Row, n_tokens: Callable[[str], int]) -> list[Row]:
    """The row itself or, if the segments that it names go beyond the window, the clips that they make."""
    if max((one.end_s for one in row.segments), default=0.0) <= WINDOW_S:
        return [row]
    moved = [
        dataclasses.replace(one, start_s=row.start_s + one.start_s, end_s=row.start_s + one.end_s)
        for one in sorted(row.segments, key=lambda one: one.start_s)
        if one.text.strip()
    ]
    return cut(row, moved, n_tokens=n_tokens)


def _rows(table: Table, audio_column: str | None, text_column: str | None) -> Iterator[Row]:
    """Read the rows of a table; which column means what is found once, and again where the keys of a .jsonl change."""
    audio_folder = str(table.audio_folder or table.path.parent)
    names: tuple[str, ...] | None = None
    meanings: dict[str, list[int]] = {}
    for number, row_names, values in read_table(table.path):
        try:
            if row_names != names:
                names, meanings = row_names, find_meanings(row_names, {"audio": audio_column, "text": text_column})
            fields = {meaning: pick(meaning, found, names, values) for meaning, found in meanings.items()}
            if table.only_under is None or _first_folder(fields["audio"]) == table.only_under:
                yield row_of(fields, names, audio_folder, f"{table.path.name}:{number}")
        except UserError as error:
            raise UserError(f"{table.path}:{number}: {error}") from None


def _first_folder(audio: Any) -> str:
    return str(audio).replace("\\", "/").removeprefix("./").split("/")[0]
