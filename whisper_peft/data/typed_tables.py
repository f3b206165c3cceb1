"""Tables with typed columns: Parquet files and Hub data sets, opened by the datasets library and read row by row.

The sound stays packed until a clip is read. Cells are read with Audio(decode=False): datasets itself would decode with
torchcodec, which needs FFmpeg's libraries.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whisper_peft.data.addresses import UnusableSound, locate_sound
from whisper_peft.data.column_types import holds_sound, opens_addresses, refuse_wrong_type
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
from whisper_peft.data.folders import Columnar
from whisper_peft.data.hub import explain_errors, load_repository
from whisper_peft.data.parquet import find_parquet_files, refuse_broken_file
from whisper_peft.data.rows import Packed, Row
from whisper_peft.data.split_names import choose_splits, find_split, list_split_names
from whisper_peft.data.tables import find_split_column, read_split
from whisper_peft.errors import UserError
from whisper_peft.files import printable

if TYPE_CHECKING:
    import datasets

# So many rows are read at a time, without their sound.
_BLOCK_ROWS = 1000


@dataclass(frozen=True)
class Cell:
    """A sound file in a table: its contents, or only its path."""

    name: str
    # The folder that paths in the table start from, or the name of the Hub data set.
    source: str = field(compare=False)
    table: datasets.Dataset = field(compare=False, repr=False)
    number: int = field(compare=False)
    column: str = field(compare=False)

    def read(self) -> str | bytes:
        """Return the contents of the sound file, or its path.

        Raises:
            AudioError: There is no sound in the cell, or only an address that is not opened.
        """
        stored = read_sound_cell(self.table[self.number][self.column], self.source)
        if isinstance(stored, (str, bytes)):
            return stored
        return stored.read()


def read_sound_cell(value: Any, source: str) -> str | bytes | Packed:
    """Return the sound of a cell as a row refers to it.

    Args:
        value: The cell's value: {"bytes", "path"}, bytes or a path.
        source: The folder that paths start from, or the name of the Hub data set.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        return UnusableSound("(no sound)", "no sound in this row")
    if isinstance(value, str):
        return locate_sound(value, source)
    return value


def open_table(columns: Columnar, *, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Open the splits of a table, one after the other. Sound columns are not decoded.

    Args:
        columns: The table.
        streaming: If True, rows are read as they come, and nothing is stored.

    Raises:
        UserError: The table is not there, cannot be reached or read, or a split or configuration has to be named.
    """
    import datasets

    with explain_errors(columns.source):
        for path in find_parquet_files(columns):
            refuse_broken_file(path)
        if columns.is_file:
            table = datasets.load_dataset("parquet", data_files=[columns.source], split="train", streaming=streaming)
        else:
            table = load_repository(columns, streaming=streaming)
        for name, kind in (table.features or {}).items():
            if isinstance(kind, datasets.Audio):
                table = table.cast_column(name, datasets.Audio(decode=False))
    if table.features is None:
        raise UserError(f"{columns.name}: its columns are not known before it is read; set data.streaming to false.")
    # Reading an image or a video would open whatever address stands in its cell.
    return table.select_columns([name for name, kind in table.features.items() if not opens_addresses(kind)])


class RowReader:
    """The meaning of a table's columns, and the rows that are built from their values.

    Args:
        columns: The table.
        features: The types of the table's columns, by name.
        options: What the user says about the columns.

    Raises:
        UserError: It is not clear which column is which.
    """

    def __init__(self, columns: Columnar, features: datasets.Features, options: ColumnOptions):
        self.place = columns.name
        self.source = os.path.dirname(columns.source) if columns.is_file else columns.source
        self.names = tuple(features)
        try:
            self.meanings = self._find_meanings(features, options)
        except NoPromptColumnError as error:
            raise NoPromptColumnError(f"{self.place}: {error}") from None
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from None
        self.audio_column = self.names[self.meanings["audio"][0]]
        wanted = set()
        for meaning, places in self.meanings.items():
            for place in places:
                name = self.names[place]
                refuse_wrong_type(meaning, name, features[name], f"{self.place}:1")
                wanted.add(name)
        # The columns that are read beside the sound.
        self.other_columns = [name for name in self.names if name in wanted and name != self.audio_column]
        # For each column of labels, the function that turns a label's number into its word.
        self.labels: dict[str, Callable[[Any], str]] = {
            name: features[name].int2str for name in self.other_columns if hasattr(features[name], "int2str")
        }
        # A line for the user, or None.
        self.remark: str | None = None
        ignored = find_ignored_prompt(self.names, options)
        if ignored is not None:
            self.remark = describe_ignored_prompt(self.place, self.names[ignored])
        # The column that says which split a row is in, or None.
        self.split_column = self._find_split_column(features)
        self.split_label: Callable[[Any], str] | None = None
        if self.split_column is not None:
            self.split_label = getattr(features[self.split_column], "int2str", None)
        # The wanted splits, under each of their names.
        self.wanted_splits = {name for split in columns.splits for name in list_split_names(split)}
        self.is_file = columns.is_file
        self.seen_split: str | None = None

    def _find_meanings(self, features: datasets.Features, options: ColumnOptions) -> dict[str, list[int]]:
        """Find the columns for each meaning; a column whose type can hold sound is the sound.

        Raises:
            UserError: It is not clear which column is which.
        """
        sounds = [name for name, kind in features.items() if holds_sound(kind)]
        if options.audio is None and sounds:
            if len(sounds) > 1:
                raise UserError(f"{' and '.join(sounds)} hold sound; name one: data.audio_column.")
            options = dataclasses.replace(options, audio=sounds[0])
        meanings = find_meanings(self.names, options)
        if options.prompt is not None and "prompt" not in meanings:
            raise NoPromptColumnError(describe_missing_column("prompt", options.prompt, self.names))
        return meanings

    def _find_split_column(self, features: datasets.Features) -> str | None:
        place = find_split_column(self.names)
        if place is None:
            return None
        name = self.names[place]
        kind = features[name]
        if hasattr(kind, "int2str") or getattr(kind, "dtype", "") in ("string", "large_string"):
            return name
        # Numbers of pieces or the like.
        return None

    def read_split(self, value: Any) -> str:
        """Return the split that a cell of the split column names."""
        if self.split_label is not None:
            value = _read_label(value, self.split_label)
        return read_split(value)

    def is_wanted(self, values: dict[str, Any]) -> bool:
        """Tell whether a row of a stream is in a split that is wanted.

        Args:
            values: The row's values by the names of their columns.

        Raises:
            UserError: No split is named, and this row is in another split than the rows before.
        """
        if self.split_column is None:
            return True
        split = self.read_split(values[self.split_column])
        if self.wanted_splits:
            # If the value is no usual name of a split, the files of a folder are split already, and the column says
            # something else.
            is_other_thing = not self.is_file and len(list_split_names(split)) == 1
            return is_other_thing or split.lower() in self.wanted_splits
        if self.seen_split is None:
            self.seen_split = split
        if split != self.seen_split:
            raise UserError(
                f"{self.place}: its column 'split' has several splits, {self.seen_split!r} and {split!r}; name one: "
                f"{self.place}:{printable(self.seen_split)}."
            )
        return True

    def build_row(self, values: dict[str, Any], audio: str | bytes | Packed, number: int) -> Row:
        """Build a row.

        Args:
            values: The values of `other_columns`, by name. Numbers of labels become words in place.
            audio: The row's sound.
            number: The number of the row in the table, from 0.

        Raises:
            UserError: A value has the wrong type, or there is no text.
        """
        for name, label in self.labels.items():
            values[name] = _read_label(values[name], label)
        by_name = {**values, self.audio_column: audio}
        in_order = [by_name.get(name) for name in self.names]
        place = f"{self.place}:{number + 1}"
        try:
            fields = {
                meaning: pick_value(meaning, places, self.names, in_order) for meaning, places in self.meanings.items()
            }
            return build_row(fields, self.names, self.source, place)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


def _read_label(value: Any, label: Callable[[Any], str]) -> Any:
    """Return the word that a label's number stands for; a number that stands for no word stays as it is."""
    if value is None:
        return None
    try:
        return label(value)
    except (ValueError, IndexError):
        return value


def read_typed_rows(
    columns: Columnar, options: ColumnOptions, say: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """Read the rows of a table with typed columns. The sound stays in the table.

    Args:
        columns: The table.
        options: What the user says about the table's columns.
        say: Called with each line about what was passed over.

    Raises:
        UserError: See `open_table`; or it is not clear which column is which, or which split is meant.
    """
    table = open_table(columns)
    reader = RowReader(columns, table.features, options)
    if reader.remark:
        say(reader.remark)
    table = _select_splits(table, reader, columns)
    sound = table.select_columns([reader.audio_column])
    others = table.select_columns(reader.other_columns) if reader.other_columns else None
    for first in range(0, len(table), _BLOCK_ROWS):
        block = {} if others is None else others[first : first + _BLOCK_ROWS]
        for number in range(first, min(first + _BLOCK_ROWS, len(table))):
            values = {name: block[name][number - first] for name in reader.other_columns}
            cell = Cell(f"{columns.name}#{number}", reader.source, sound, number, reader.audio_column)
            yield reader.build_row(values, cell, number)


def _select_splits(table: datasets.Dataset, reader: RowReader, columns: Columnar) -> datasets.Dataset:
    """Select the rows of the wanted splits, if the table has a column "split"."""
    if reader.split_column is None:
        if columns.is_file:
            # A single file has no splits then: this refuses a split that the user names.
            choose_splits(columns.source, {}, columns.splits)
        return table
    row_splits = [reader.read_split(value) for value in table[reader.split_column]]
    counts = dict(Counter(row_splits))
    wanted: tuple[str, ...] = columns.splits
    if not columns.is_file:
        # The files of a folder may be split already, and the column may say something else.
        wanted = tuple(split for split in wanted if find_split(split, counts))
        if columns.splits and not wanted:
            return table
    chosen = choose_splits(columns.source, counts, wanted)
    if not chosen:
        return table
    return table.select([number for number, split in enumerate(row_splits) if split in chosen])
