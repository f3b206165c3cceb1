"""Parquet files and Hub data sets by the datasets library; the sound stays packed until a clip is read.

Their cells are read with Audio(decode=False): datasets itself would decode with torchcodec, which needs FFmpeg's
libraries (PITFALLS 16). Loading scripts are never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.addresses import Unusable, placed_sound
from whisper_peft.data.cards import check_cards
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
from whisper_peft.data.folders import Columnar, choose_splits, find_split, names_of_split
from whisper_peft.data.rows import Packed, Row
from whisper_peft.data.tables import NO_SPLIT, find_split_column, split_of
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, foreign_content, open_file, printable, reason_of, short_repr

if TYPE_CHECKING:
    import datasets

PARQUET_REVISION = "refs/convert/parquet"  # where the Hub keeps what it made of script-based data sets
_BLOCK_ROWS = 1000  # read at a time, their sound not
_PARQUET_MARK = b"PAR1"  # the first and the last bytes of every Parquet file


@dataclass(frozen=True)
class Cell:
    """A sound file in a table: its contents, or only its path."""

    name: str
    source: str = field(compare=False)  # folder that paths in the table start from, or name of the Hub data set
    table: datasets.Dataset = field(compare=False, repr=False)
    number: int = field(compare=False)
    column: str = field(compare=False)

    def read(self) -> str | bytes:
        """Read it.

        Raises:
            AudioError: There is no sound in the cell, or only an address that is not opened.
        """
        stored = stored_sound(self.table[self.number][self.column], self.source)
        return stored if isinstance(stored, (str, bytes)) else stored.read()


def stored_sound(value: Any, source: str) -> str | bytes | Packed:
    """Read a cell, which is {"bytes", "path"}, bytes or a path, as an audio reference of a row.

    Args:
        value: The cell's value.
        source: Folder that paths start from, or name of the Hub data set.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        return Unusable("(no sound)", "no sound in this row")
    if isinstance(value, str):
        return placed_sound(value, source)
    return value


def typed_rows(
    columns: Columnar, asked: ColumnOptions, say: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """Read the rows of a table with typed columns, its sound left where it is.

    Args:
        columns: The table.
        asked: What the user says about its columns.
        say: Told, one line at a time, what was passed over.

    Raises:
        UserError: See `open_columns`; or it is not clear which column is which, or which split is meant.
    """
    table = open_columns(columns)
    reader = Reader(columns, table.features, asked)
    if reader.remark:
        say(reader.remark)
    table = _in_splits(table, reader, columns)
    sound = table.select_columns([reader.audio])
    others = table.select_columns(reader.others) if reader.others else None
    number = 0
    while number < len(table):
        block = others[number : number + _BLOCK_ROWS] if others else {}
        for within in range(min(_BLOCK_ROWS, len(table) - number)):
            values = {name: block[name][within] for name in reader.others}
            yield reader.row(
                values, Cell(f"{columns.name}#{number}", reader.source, sound, number, reader.audio), number
            )
            number += 1


class Reader:
    """What the columns of a table mean, and rows made of their values.

    Args:
        columns: the table.
        features: of its columns, by name.
        asked: what the user says about them.

    Raises:
        UserError: It is not clear which column is which.
    """

    def __init__(self, columns: Columnar, features: datasets.Features, asked: ColumnOptions):
        self.place = columns.name
        self.source = os.path.dirname(columns.source) if columns.is_file else columns.source
        sounds = [name for name, kind in features.items() if holds_sound(kind)]
        if asked.audio is None and len(sounds) > 1:
            raise UserError(f"{self.place}: {' and '.join(sounds)} hold sound; name one: data.audio_column.")
        try:
            self.names = tuple(features)
            asked = dataclasses.replace(asked, audio=asked.audio or (sounds[0] if sounds else None))
            self.meanings = find_meanings(self.names, asked)
            if asked.prompt is not None and "prompt" not in self.meanings:
                raise NoPromptColumnError(describe_missing_column("prompt", asked.prompt, self.names))
        except NoPromptColumnError as error:
            raise NoPromptColumnError(f"{self.place}: {error}") from None
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from None
        self.audio = self.names[self.meanings["audio"][0]]
        for meaning, found in self.meanings.items():
            for index in found:
                refuse_wrong_type(meaning, self.names[index], features[self.names[index]], f"{self.place}:1")
        wanted = {self.names[index] for found in self.meanings.values() for index in found} - {self.audio}
        self.others = [name for name in self.names if name in wanted]
        self.labels = {name: features[name].int2str for name in self.others if hasattr(features[name], "int2str")}
        ignored = find_ignored_prompt(self.names, asked)
        self.remark = None if ignored is None else describe_ignored_prompt(self.place, self.names[ignored])
        self._find_splits(columns, features)

    def _find_splits(self, columns: Columnar, features: datasets.Features) -> None:
        """Find the column that says which split a row is in, and the splits that are wanted, in all their names."""
        column = find_split_column(self.names)
        self.split_column = None if column is None else self.names[column]
        if self.split_column is None:
            return
        kind = features[self.split_column]
        self.split_name = getattr(kind, "int2str", split_of)
        if not hasattr(kind, "int2str") and getattr(kind, "dtype", "") not in ("string", "large_string"):
            self.split_column = None  # numbers of pieces, or the like
        self.wanted_splits = {name for split in columns.splits for name in names_of_split(split)}
        self.is_file = columns.is_file
        self.seen_split: str | None = None

    def takes(self, values: dict[str, Any]) -> bool:
        """Tell whether a row of a stream is of a split that is wanted.

        Raises:
            UserError: No split is named, and this is the second one that comes.
        """
        if self.split_column is None:
            return True
        value = values[self.split_column]
        split = NO_SPLIT if value is None else split_of(_labelled(value, self.split_name))
        if self.wanted_splits and not self.is_file and len(names_of_split(split)) == 1:
            return True  # no name of a split: its files are split already, and the column says something else
        if self.wanted_splits:
            return split.lower() in self.wanted_splits
        if self.seen_split is None:
            self.seen_split = split
        if split != self.seen_split:
            raise UserError(
                f"{self.place}: its column 'split' has several splits, {self.seen_split!r} and {split!r}; name one: "
                f"{self.place}:{printable(self.seen_split)}."
            )
        return True

    def row(self, values: dict[str, Any], audio: str | bytes | Packed, number: int) -> Row:
        """Build the row of one example from the values of `others`, by name."""
        for name, label in self.labels.items():
            values[name] = _labelled(values[name], label)
        listed = [audio if name == self.audio else values.get(name) for name in self.names]
        place = f"{self.place}:{number + 1}"
        try:
            fields = {
                meaning: pick_value(meaning, found, self.names, listed) for meaning, found in self.meanings.items()
            }
            return build_row(fields, self.names, self.source, place)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None


def _labelled(value: Any, label: Callable[[Any], str]) -> Any:
    """Return the word that a number of a column of labels stands for; a number that stands for none stays itself."""
    if value is None:
        return None
    try:
        return label(value)
    except (ValueError, IndexError):
        return value


def _in_splits(table: datasets.Dataset, reader: Reader, columns: Columnar) -> datasets.Dataset:
    """The rows of the splits that are wanted, where the table has a column "split"."""
    if reader.split_column is None:
        if columns.is_file:
            choose_splits(columns.source, {}, columns.splits)  # raises where one is wanted
        return table
    values = [
        NO_SPLIT if value is None else split_of(_labelled(value, reader.split_name))
        for value in table[reader.split_column]
    ]
    counts = dict(Counter(values))
    splits: tuple[str, ...] = columns.splits
    if not columns.is_file:  # its files may be split already, and the column may say something else
        splits = tuple(split for split in splits if find_split(split, counts))
        if columns.splits and not splits:
            return table
    chosen = choose_splits(columns.source, counts, splits)
    if not chosen:
        return table
    return table.select([number for number, value in enumerate(values) if value in chosen])


def open_columns(columns: Columnar, *, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Open the splits of a table, one after the other; sound columns are not decoded.

    Raises:
        UserError: It is not there, cannot be reached or read, or a split or configuration has to be named.
    """
    import datasets

    with _as_user_errors(columns.source):
        for path in _parquet_files(columns):
            _refuse_broken(path)
        if columns.is_file:
            table = datasets.load_dataset("parquet", data_files=[columns.source], split="train", streaming=streaming)
        else:
            table = _of_repository(columns, streaming)
        for name, kind in (table.features or {}).items():
            if isinstance(kind, datasets.Audio):
                table = table.cast_column(name, datasets.Audio(decode=False))
    if table.features is None:
        raise UserError(f"{columns.name}: its columns are not known before it is read; set data.streaming to false.")
    # Reading an image or a video opens whatever address stands in its cell.
    return table.select_columns([name for name, kind in table.features.items() if not opens_addresses(kind)])


def _parquet_files(columns: Columnar) -> list[Path]:
    """List the Parquet files of a source on this machine.

    Raises:
        OSError: A folder cannot be read; the datasets library would pass over it.
    """
    if columns.is_file:
        return [Path(columns.source)]
    found = []
    for folder, _, names in os.walk(columns.source, onerror=_raise if os.path.isdir(columns.source) else None):
        found += [Path(folder, name) for name in names if name.endswith(".parquet")]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _refuse_broken(path: Path) -> None:
    """Refuse what is no Parquet file by its first and last bytes, and a table that the library cannot read.

    Raises:
        UserError: It cannot be opened, is a pointer or a page in place of the file, has no end or no rows, or two of
            its columns have one name.
    """
    with open_file(path, allow_empty=True) as file:
        head = file.read(4096)
        foreign = foreign_content(head)
        if foreign:
            raise UnusableFileError(path, foreign)
        if not head.startswith(_PARQUET_MARK):
            raise UserError(f"{path}: cannot be read as a data set (it is no Parquet file).")
        file.seek(-len(_PARQUET_MARK), os.SEEK_END)
        if file.read() != _PARQUET_MARK:
            raise UserError(
                f"{path}: cannot be read as a data set (its end is missing: truncated); download or write it again."
            )
    _refuse_unreadable_table(path)


def _refuse_unreadable_table(path: Path) -> None:
    """Refuse a table without rows, or with two columns of one name; the library says neither in plain words.

    Raises:
        UserError: It is such a table.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            n_rows, names = table.metadata.num_rows, table.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError):
        return  # the library says more
    if n_rows == 0:
        raise UserError(f"{printable(path)}: no rows in it; remove it, or write it again.")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UserError(f"{printable(path)}: two columns are called {short_repr(doubled[0])}; rename one of them.")


def revision_of(columns: Columnar) -> str:
    """What a table's contents are known by: the commit of a Hub data set, or the names and sizes of local files.

    Raises:
        UserError: The Hub cannot be reached.
    """
    import huggingface_hub

    path = Path(columns.source)
    if path.exists():
        files = [path] if columns.is_file else sorted(path.rglob("*.parquet"))
        return ", ".join(f"{file.relative_to(path.parent)}: {file.stat().st_size}" for file in files)
    with _as_user_errors(columns.source):
        return huggingface_hub.HfApi().dataset_info(columns.source).sha


def _of_repository(columns: Columnar, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    import datasets

    name, revision = columns.source, None
    check_cards(name)
    try:
        configs = datasets.get_dataset_config_names(name)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        revision = PARQUET_REVISION
        try:
            configs = datasets.get_dataset_config_names(name, revision=revision)
        except Exception as other:
            raise UserError(
                f"{name}: it is made by a loading script, which is not run, and its Parquet revision "
                f"({PARQUET_REVISION}) cannot be had either ({_brief(other)}); take a data set in Parquet or download "
                "its files."
            ) from None
        logging.getLogger(__name__).warning(
            "%s: made by a loading script, which is not run; its Parquet revision (%s) is taken.", name, revision
        )
    config, wanted = columns.config, list(columns.splits)
    if config is None and len(wanted) == 1 and wanted[0] in configs and len(configs) > 1:
        raise UserError(f"{name}: {wanted[0]!r} is a configuration; add the split: {name}:{wanted[0]}:train.")
    if config is None:
        if len(configs) > 1 and "default" not in configs:
            raise UserError(
                f"{name}: name one of its configurations, as in {name}:{configs[0]}:train: {_list(configs)}."
            )
        config = "default" if "default" in configs else configs[0]
    elif config not in configs:
        raise UserError(f"{name}: no configuration {config!r}; there are {_list(configs)}.")
    names = datasets.get_dataset_split_names(name, config, revision=revision)
    if not wanted:
        if len(names) > 1:
            raise UserError(f"{name}: name one of its splits: {', '.join(names)}.")
        wanted = names
    found = [find_split(split, names) for split in wanted]
    if None in found and len(names) == 1:
        table = datasets.load_dataset(name, config, split=names[0], revision=revision, streaming=streaming)
        if find_split_column(tuple(table.features or ())) is not None:
            return table  # its rows say which split they are in
    if None in found:
        raise UserError(f"{name}: no split {wanted[found.index(None)]!r}; there are {', '.join(names)}.")
    tables = [
        datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
        for split in dict.fromkeys(found)
    ]
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def _list(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _as_user_errors(source: str) -> Iterator[None]:
    """Turns what goes wrong on the way to a data set into one line."""
    import datasets
    import huggingface_hub

    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        gated = isinstance(error, huggingface_hub.errors.GatedRepoError) or "gated" in str(error)
        if gated:
            raise UserError(
                f"{source}: a gated data set; accept its terms on its page while logged in, then log in here "
                "(hf auth login, or HF_TOKEN)."
            ) from None
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            raise UserError(
                f"{source}: no such file or folder, and no such data set on the Hub, or a private one (hf auth login, "
                "or HF_TOKEN)."
            ) from None
        if isinstance(error, (ConnectionError, huggingface_hub.errors.OfflineModeIsEnabled)) or _is_network(error):
            raise UserError(
                f"{source}: no such file or folder, and the Hub cannot be reached ({_brief(error)})."
            ) from None
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise UnusableFileError(error.filename, reason_of(error)) from None
        # Whatever the libraries stumble over: they parse cards, indices and tables that strangers wrote.
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
            error = error.__cause__  # its own text says only that there was an error
        raise UserError(f"{source}: cannot be read as a data set ({_brief(error)}).") from None


def _is_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("requests", "httpx", "aiohttp", "urllib3")
