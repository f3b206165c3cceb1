"""SRC -> rows of (audio reference, text, language, start, end); nothing is decoded, no sound file is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from whisper_peft.data.columns import (
    ColumnOptions,
    NoPromptColumnError,
    build_row,
    describe_ignored_prompt,
    describe_missing_column,
    find_ignored_prompt,
    find_meanings,
    pick_value,
)
from whisper_peft.data.folders import Columnar, Recording, Table, find_source, is_name_of_split
from whisper_peft.data.parquet import typed_rows
from whisper_peft.data.rows import Row
from whisper_peft.data.spoken import refuse_slips
from whisper_peft.data.subtitles import WINDOW_S, cut, read_segments, utf8_bytes
from whisper_peft.data.tables import find_split_column, find_unasked_split, read_table, split_of
from whisper_peft.errors import UserError
from whisper_peft.files import printable


def load_source(
    source: str,
    *,
    audio_column: str | None = None,
    text_column: str | None = None,
    prompt_column: str | None = None,
    times: str | None = None,
    n_tokens: Callable[[str], int] = utf8_bytes,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Read the rows of a source; an existing path always wins over the reading as PATH:split or as a Hub data set.

    Args:
        source: a folder, manifest, packed release, Parquet file, recording with segments beside it, or the name of a
            Hub data set, with `:split`, `:split+split` or `:config:split` where it has them.
        audio_column: column or key that names or holds the sound, if not one of the usual.
        text_column: column or key of the transcript, if not one of the usual.
        prompt_column: column or key of what was said before each clip; without it, no column is taken for that.
        times: "ignore" passes over the columns with start and end, and takes each file whole.
        n_tokens: text -> how many tokens the model has for it, where long recordings are cut into clips.
        say: told, one line at a time, what was passed over.

    Raises:
        UserError: There is no such source, or it cannot be read; the message names the place and the remedy.
    """
    uncut = load_uncut(
        source,
        audio_column=audio_column,
        text_column=text_column,
        prompt_column=prompt_column,
        times=times,
        say=say,
    )
    return [clip for row in uncut for clip in clips_of(row, n_tokens)]


def load_uncut(
    source: str,
    *,
    audio_column: str | None = None,
    text_column: str | None = None,
    prompt_column: str | None = None,
    times: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Read the rows of a source, and leave its recordings whole.

    Args:
        source: See `load_source`, as for all other arguments.
        audio_column: See `load_source`.
        text_column: See `load_source`.
        prompt_column: See `load_source`.
        times: See `load_source`.
        say: See `load_source`.

    Returns:
        One row a clip or recording. A recording has `is_recording`: it has captions beside it, or it is a row whose
        segments go beyond the window.

    Raises:
        UserError: See `load_source`.
    """
    asked = ColumnOptions(audio_column, text_column, prompt_column, times)
    rows: list[Row] = []
    for found in find_source(source):
        if isinstance(found, Recording):
            recording = Row(
                str(found.audio),
                "",
                language=found.language,
                speaker=found.audio.stem,
                place=found.segments.name,
                segments=tuple(read_segments(found.segments)),
                is_recording=True,
            )
            rows.append(recording)
        else:
            read = typed_rows if isinstance(found, Columnar) else _rows
            for row in read(found, asked, say):
                rows.append(_marked(row))
    if not rows:
        raise UserError(f"{printable(source)}: no rows in it.")
    refuse_slips(rows, source)
    return rows


def load_sources(sources: Sequence[str], read: Callable[..., list[Row]], say: Callable[[str], None]) -> list[list[Row]]:
    """Read several sources, of which not all need to have the prompt column that the user names.

    Args:
        sources: What `read` takes.
        read: `load_source`, with what else it is to be told.
        say: Told which sources have no prompts.

    Raises:
        UserError: See `load_source`; or none of them has the column.
    """
    found = []
    without: list[NoPromptColumnError] = []
    for source in sources:
        try:
            found.append(read(source))
        except NoPromptColumnError as error:
            without.append(error)
            found.append(read(source, prompt_column=None))
    if without and len(without) == len(sources):
        raise without[0]
    for error in without:
        say(f"{error} Its clips have no prompts.")
    return found


def _marked(row: Row) -> Row:
    """Mark a row of a table as a recording where its segments go beyond the window."""
    goes_beyond = max((segment.end_s for segment in row.segments), default=0.0) > WINDOW_S
    has_text = any(segment.text.strip() for segment in row.segments)
    if row.fault or not goes_beyond or not has_text:
        return row
    return dataclasses.replace(row, is_recording=True)


def clips_of(row: Row, n_tokens: Callable[[str], int] = utf8_bytes) -> list[Row]:
    """Cut a recording into clips.

    Args:
        row: As `load_uncut` gives it.
        n_tokens: See `load_source`.

    Returns:
        The clips of a recording; the row itself where it is a clip.
    """
    if not row.is_recording:
        return [row]
    moved = [
        dataclasses.replace(segment, start_s=row.start_s + segment.start_s, end_s=row.start_s + segment.end_s)
        for segment in row.segments
        if segment.text.strip()
    ]
    return cut(row, moved, n_tokens=n_tokens)


def _rows(table: Table, asked: ColumnOptions, say: Callable[[str], None]) -> Iterator[Row]:
    """Read the rows of a table; which column means what is found once, and again where the keys of a .jsonl change."""
    audio_folder = str(table.audio_folder or table.path.parent)
    names: tuple[str, ...] | None = None
    meanings: dict[str, list[int]] = {}
    split_column: int | None = None
    unasked: int | None = None
    like_split: int | None = None
    seen_splits: dict[str, str] = {}  # a column's name by the values in it that are names of splits
    has_prompt = is_said = False
    place = printable(table.path)
    number = 0
    for number, row_names, values in read_table(table.path):
        try:
            if row_names != names:
                names, meanings = row_names, find_meanings(row_names, asked)
                split_column, unasked = find_split_column(names), find_ignored_prompt(names, asked)
                like_split = find_unasked_split(names)
                has_prompt = has_prompt or "prompt" in meanings
            if table.splits and split_of(None if split_column is None else values[split_column]) not in table.splits:
                continue
            if unasked is not None and values[unasked] and not is_said:
                say(describe_ignored_prompt(place, names[unasked]))
                is_said = True
            if like_split is not None and isinstance(values[like_split], str) and is_name_of_split(values[like_split]):
                seen_splits.setdefault(values[like_split], names[like_split])
            fields = {meaning: pick_value(meaning, found, names, values) for meaning, found in meanings.items()}
            if table.only_under is None or _first_folder(fields["audio"]) == table.only_under:
                yield build_row(fields, names, audio_folder, f"{table.path.name}:{number}")
        except UserError as error:
            raise UserError(f"{place}:{number}: {error}") from None
    if len(seen_splits) > 1:
        column = next(iter(seen_splits.values()))
        say(
            f"{place}: the column {column!r} names splits ({', '.join(seen_splits)}), and the rows of all of them are "
            "taken; to name one of them, call the column 'split'."
        )
    if number and asked.prompt is not None and not has_prompt:
        raise NoPromptColumnError(f"{place}: {describe_missing_column('prompt', asked.prompt, names or ())}")


def _first_folder(audio: Any) -> str:
    return str(audio).replace("\\", "/").removeprefix("./").split("/")[0]
