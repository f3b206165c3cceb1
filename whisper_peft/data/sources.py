"""The rows of a source, whatever kind it is. Nothing is decoded, and no sound file is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from whisper_peft.data.folders import Columnar, Recording, Table, find_source
from whisper_peft.data.rows import Row
from whisper_peft.data.split_names import is_name_of_split
from whisper_peft.data.spoken import refuse_slips
from whisper_peft.data.subtitles import WINDOW_S, cut_recording, read_segments, utf8_bytes
from whisper_peft.data.tables import find_split_column, find_unasked_split, read_split, read_table
from whisper_peft.data.typed_tables import read_typed_rows
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
    """Read the rows of a source. An existing path always wins over the reading as PATH:split or as a Hub data set.

    Args:
        source: A folder, manifest, packed release, Parquet file, recording with segments beside it, or the name of a
            Hub data set; with `:split`, `:split+split` or `:config:split` where it has them.
        audio_column: The column or key that names or holds the sound. None: one of the usual names.
        text_column: The column or key that holds the transcript. None: one of the usual names.
        prompt_column: The column or key that holds what was said before each clip. None: no column is used as prompt.
        times: "ignore" passes over the columns with start and end, and takes each file whole.
        n_tokens: Returns how many tokens the model has for a text. It is used where recordings are cut into clips.
        say: Called with each line about what was passed over.

    Raises:
        UserError: There is no such source, or it cannot be read. The message names the place and the remedy.
    """
    options = ColumnOptions(audio=audio_column, text=text_column, prompt=prompt_column, times=times)
    clips = []
    for row in load_uncut(source, options, say=say):
        clips += cut_into_clips(row, n_tokens)
    return clips


def load_uncut(
    source: str, options: ColumnOptions | None = None, *, say: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Read the rows of a source, and leave its recordings whole.

    Args:
        source: The source, as `load_source` takes it.
        options: What the user says about the columns. None: the user says nothing.
        say: Called with each line about what was passed over.

    Returns:
        One row for each clip or recording. A recording has `is_recording`: there are captions beside it, or it is a
        row whose segments go beyond the window.

    Raises:
        UserError: See `load_source`.
    """
    options = options or ColumnOptions()
    rows: list[Row] = []
    for part in find_source(source):
        if isinstance(part, Recording):
            rows.append(_read_recording(part))
        elif isinstance(part, Columnar):
            rows += map(_mark_recording, read_typed_rows(part, options, say))
        else:
            rows += map(_mark_recording, _read_table_rows(part, options, say))
    if not rows:
        raise UserError(f"{printable(source)}: no rows in it.")
    refuse_slips(rows, source)
    return rows


def load_sources(sources: Sequence[str], read: Callable[..., list[Row]], say: Callable[[str], None]) -> list[list[Row]]:
    """Read several sources. Not all of them need to have the prompt column that the user names.

    Args:
        sources: The sources.
        read: Reads one source: `load_source` with all other arguments already given.
        say: Called with a line for each source without prompts.

    Returns:
        The rows of each source.

    Raises:
        UserError: See `load_source`; or no source has the prompt column.
    """
    by_source = []
    without_prompts: list[NoPromptColumnError] = []
    for source in sources:
        try:
            rows = read(source)
        except NoPromptColumnError as error:
            without_prompts.append(error)
            rows = read(source, prompt_column=None)
        by_source.append(rows)
    if without_prompts and len(without_prompts) == len(sources):
        raise without_prompts[0]
    for missing_column in without_prompts:
        say(f"{missing_column} Its clips have no prompts.")
    return by_source


def _read_recording(recording: Recording) -> Row:
    """Read a recording and the segments beside it as one row."""
    return Row(
        str(recording.audio),
        "",
        language=recording.language,
        speaker=recording.audio.stem,
        place=recording.segments.name,
        segments=tuple(read_segments(recording.segments)),
        is_recording=True,
    )


def _mark_recording(row: Row) -> Row:
    """Mark a row of a table as a recording if its segments go beyond the window."""
    goes_beyond = max((segment.end_s for segment in row.segments), default=0.0) > WINDOW_S
    has_text = any(segment.text.strip() for segment in row.segments)
    if row.fault or not goes_beyond or not has_text:
        return row
    return dataclasses.replace(row, is_recording=True)


def cut_into_clips(row: Row, n_tokens: Callable[[str], int] = utf8_bytes) -> list[Row]:
    """Cut a recording into clips.

    Args:
        row: A row of `load_uncut`.
        n_tokens: Returns how many tokens the model has for a text.

    Returns:
        The clips of a recording. If the row is a clip, the row itself.
    """
    if not row.is_recording:
        return [row]
    # The times of a row's segments count from its start. Those of clips count from the start of the file.
    moved = [
        dataclasses.replace(segment, start_s=row.start_s + segment.start_s, end_s=row.start_s + segment.end_s)
        for segment in row.segments
        if segment.text.strip()
    ]
    return cut_recording(row, moved, n_tokens=n_tokens)


@dataclass(frozen=True)
class _Header:
    """The use of each column of a text table. A place is an index among the names of the columns."""

    names: tuple[str, ...]
    meanings: dict[str, list[int]]
    # The place of the column that says which split a row is in.
    split: int | None
    # The place of a column that may name splits under another name. It is not obeyed, but the user is told.
    like_split: int | None
    # The place of a column called "prompt" that the user does not name.
    ignored_prompt: int | None

    @classmethod
    def of(cls, names: tuple[str, ...], options: ColumnOptions) -> _Header:
        """Find out what the columns are for."""
        return cls(
            names,
            meanings=find_meanings(names, options),
            split=find_split_column(names),
            like_split=find_unasked_split(names),
            ignored_prompt=find_ignored_prompt(names, options),
        )

    def read_split(self, values: Sequence[Any]) -> str:
        """Return the split that a row is in."""
        return read_split(None if self.split is None else values[self.split])

    def unasked_split_of(self, values: Sequence[Any]) -> str | None:
        """Return the name of a split that stands in a column which is not obeyed; None if there is no such name."""
        if self.like_split is None:
            return None
        value = values[self.like_split]
        return value if isinstance(value, str) and is_name_of_split(value) else None


def _read_table_rows(table: Table, options: ColumnOptions, say: Callable[[str], None]) -> Iterator[Row]:
    """Read the rows of a text table."""
    audio_folder = str(table.audio_folder or table.path.parent)
    place = printable(table.path)
    header: _Header | None = None
    has_prompt = False
    is_ignored_prompt_said = False
    # The names of splits in a column that is not obeyed, each with the name of that column.
    unasked_splits: dict[str, str] = {}
    for number, names, values in read_table(table.path):
        try:
            # The keys of a .jsonl file may change from line to line.
            if header is None or names != header.names:
                header = _Header.of(names, options)
                has_prompt = has_prompt or "prompt" in header.meanings
            if table.splits and header.read_split(values) not in table.splits:
                continue
            ignored = header.ignored_prompt
            if ignored is not None and values[ignored] and not is_ignored_prompt_said:
                say(describe_ignored_prompt(place, names[ignored]))
                is_ignored_prompt_said = True
            unasked_split = header.unasked_split_of(values)
            if unasked_split is not None and header.like_split is not None:
                unasked_splits.setdefault(unasked_split, names[header.like_split])
            fields = {
                meaning: pick_value(meaning, places, names, values) for meaning, places in header.meanings.items()
            }
            if table.only_under is None or _first_folder(fields["audio"]) == table.only_under:
                yield build_row(fields, names, audio_folder, f"{table.path.name}:{number}")
        except UserError as error:
            raise UserError(f"{place}:{number}: {error}") from None
    if len(unasked_splits) > 1:
        column = next(iter(unasked_splits.values()))
        say(
            f"{place}: the column {column!r} names splits ({', '.join(unasked_splits)}), and the rows of all of them "
            "are taken; to name one of them, call the column 'split'."
        )
    if header is not None and options.prompt is not None and not has_prompt:
        raise NoPromptColumnError(f"{place}: {describe_missing_column('prompt', options.prompt, header.names)}")


def _first_folder(audio: Any) -> str:
    return str(audio).replace("\\", "/").removeprefix("./").split("/")[0]
