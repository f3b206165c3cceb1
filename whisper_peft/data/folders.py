"""Find what a source holds: AudioFolder and Common Voice folders, manifests, Parquet, recordings, and their splits."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.archives import ARCHIVE_RECORD, is_archive, unpack
from whisper_peft.data.recordings import (
    SOUND_SUFFIXES,
    SUBTITLE_SUFFIXES,
    Recording,
    find_captioned_recording,
    find_captioned_recordings,
)
from whisper_peft.data.tables import SPONTANEOUS, TABLE_SUFFIXES, count_splits
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, open_file, printable, reason_of
from whisper_peft.recipe_files import HUB_PREFIX, expand_home

KINDS_OF_SRC = (
    "A source is a folder with metadata.csv or metadata.jsonl (AudioFolder; FOLDER:split for one of its splits), "
    "a Common Voice release, unpacked or as .tar.gz (DIR:train, DIR:train+dev), a manifest (.jsonl, .csv, .tsv; "
    "FILE:split where it has a column split), "
    "Parquet files, a recording with .srt, .vtt or .json segments beside it (talk.srt, talk.en.vtt), or a Hub data set "
    "(owner/name:config:split)"
)


@dataclass(frozen=True)
class Columnar:
    """A table with typed columns: a Parquet file, a folder of them, or a Hub data set."""

    # As the user named it, without splits.
    source: str
    config: str | None = None
    # For a Hub data set, its splits; for files, values of the column "split".
    splits: tuple[str, ...] = ()
    is_file: bool = False

    @property
    def name(self) -> str:
        """The source with its configuration and splits, for messages and fingerprints."""
        return ":".join(filter(None, [self.source, self.config, "+".join(self.splits)]))


@dataclass(frozen=True)
class Table:
    """One file of rows, and the folder in which its audio paths start."""

    path: Path
    # None stands for the folder of the file.
    audio_folder: Path | None = None
    # Only rows whose audio path starts with this folder are taken.
    only_under: str | None = None
    # Only rows with these values in the column "split" are taken; all rows if there are none.
    splits: tuple[str, ...] = ()


def find_source(source: str) -> list[Table | Columnar | Recording]:
    """Find what a source names.

    A path that exists always wins over the reading as PATH:split; hf: always means the Hub.

    Raises:
        UserError: There is no such source, it may not be read, or a split is not named, not there or empty.
    """
    try:
        return _find_source(source)
    except OSError as error:
        raise UnusableFileError(error.filename or source, reason_of(error)) from None


def _find_source(source: str) -> list[Table | Columnar | Recording]:
    path, config, splits = _parse_source(source)
    if path is None:
        repository = source.removeprefix(HUB_PREFIX).split(":")[0]
        return [Columnar(repository, config, tuple(splits))]
    if path.is_file() and is_archive(path):
        path = _descend(unpack(path))
    name = source.rpartition(":")[0] if splits else source
    if path.is_dir():
        return _find_in_folder(path, name, config, splits)
    return _find_in_file(path, name, splits)


def _parse_source(source: str) -> tuple[Path | None, str | None, list[str]]:
    """Take a source apart.

    Returns:
        The path, or None for a Hub data set; the configuration; the splits.
    """
    pieces = source.split(":")
    # A source is PATH, PATH:split or PATH:config:split.
    most_tail = -1 if source.startswith(HUB_PREFIX) else 2
    for n_tail in range(most_tail + 1):
        name = ":".join(pieces[: len(pieces) - n_tail])
        tail = pieces[len(pieces) - n_tail :]
        if name and _is_there(expand_home(name)):
            return expand_home(name).absolute(), *_parse_tail(source, name, tail)
    hub = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)((?::[^/:]+){0,2})", source)
    if hub:
        return None, *_parse_tail(source, hub[1], hub[2].split(":")[1:])
    raise UserError(f"{source}: no such file or folder. {KINDS_OF_SRC}.")


def _parse_tail(source: str, name: str, tail: list[str]) -> tuple[str | None, list[str]]:
    """Read what stands behind the path of a source.

    Args:
        source: The source, as the user wrote it.
        name: Its path, or the name of the Hub data set.
        tail: What stands behind it: nothing, the splits, or a configuration and the splits.

    Returns:
        The configuration, and the splits.
    """
    if not tail:
        return None, []
    splits = [split.strip() for split in tail[-1].split("+")]
    if not all(splits):
        raise UserError(f"{source}: a split without a name; write {name}:train or {name}:train+dev.")
    config = tail[0] if len(tail) == 2 else None
    return config, list(dict.fromkeys(splits))


def _is_there(path: Path) -> bool:
    """Tell whether there is something at a path; raise PermissionError if that cannot be known."""
    try:
        os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        # A name with a NUL gives a ValueError.
        return False
    return True


def _descend(folder: Path) -> Path:
    """Go down through folders that hold nothing but one folder, as archives usually do."""
    while True:
        entries = [entry for entry in os.scandir(folder) if entry.name != ARCHIVE_RECORD]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = Path(entries[0])


# Files ----------------------------------------------------------------------------------------------------------------

_PACKED_SUFFIXES = (".zip", ".gz", ".7z", ".rar")


def _find_in_file(path: Path, name: str, splits: list[str]) -> list[Table | Columnar | Recording]:
    """Find what a file holds.

    Args:
        path: The file.
        name: The source, as the user wrote it without splits.
        splits: The splits that the user names.
    """
    suffix = path.suffix.lower()
    # A .json file beside a recording holds its segments; without a recording it is a table.
    captioned = find_captioned_recording(path) if suffix in SUBTITLE_SUFFIXES else None
    if suffix in TABLE_SUFFIXES and captioned is None:
        return [_choose_table_splits(Table(path, audio_folder=_find_release_audio(path)), name, splits)]
    if suffix == ".parquet":
        return [Columnar(str(path), splits=tuple(splits), is_file=True)]
    if splits:
        raise UserError(
            f"{name}: {path.name} is a file, and only folders have splits; leave ':{'+'.join(splits)}' out."
        )
    if suffix in SOUND_SUFFIXES:
        recording = find_captioned_recording(path)
        if recording is None:
            raise UserError(
                f"{path}: no segment times beside it; put them into {path.stem}.srt, .vtt or .json (or "
                f"{path.stem}.LANGUAGE.srt), or name clips of up to 30 s in a manifest."
            )
        return [recording]
    if captioned is not None:
        return [captioned]
    if suffix in (".srt", ".vtt"):
        raise UserError(
            f"{path}: no recording of this name beside it; put it there, as {path.stem}.wav or {path.stem}.mp4."
        )
    advice = " Unpack it and name the folder." if suffix in _PACKED_SUFFIXES else ""
    raise UserError(f"{path}: this file is no source.{advice} {KINDS_OF_SRC}.")


# Folders --------------------------------------------------------------------------------------------------------------

_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
# A message suggests so many manifests.
_MOST_SUGGESTED = 3


def _find_in_folder(
    folder: Path, name: str, config: str | None, splits: list[str]
) -> list[Table | Columnar | Recording]:
    """Find what a folder holds.

    Args:
        folder: The folder.
        name: The source, as the user wrote it without splits.
        config: The configuration that the user names.
        splits: The splits that the user names.
    """
    metadata = _find_metadata(folder)
    if metadata and (not splits or count_splits(metadata)):
        return [_choose_table_splits(Table(metadata), name, splits)]
    release = None if metadata else _find_release(folder)
    if config is not None and (metadata or release):
        raise UserError(f"{folder}: has no configurations; leave ':{config}' out.")
    if release:
        return _find_release_tables(release, splits)
    spontaneous = None if metadata else _find_spontaneous_table(folder)
    if spontaneous:
        return [_choose_table_splits(spontaneous, name, splits)]
    split_tables = {}
    for subfolder in _list_subfolders(folder):
        table = _find_metadata(subfolder)
        if table:
            split_tables[subfolder.name] = table
    if not metadata and not split_tables:
        return _find_without_metadata(folder, config, splits)
    return _find_audio_folder_splits(folder, metadata, split_tables, splits)


def _find_audio_folder_splits(
    folder: Path, metadata: Path | None, split_tables: dict[str, Path], splits: list[str]
) -> list[Table | Columnar | Recording]:
    """Find the splits of an AudioFolder whose splits are its subfolders.

    Args:
        folder: The folder.
        metadata: Its own table, which may list clips in its subfolders.
        split_tables: The tables of its subfolders, by the name of the subfolder.
        splits: The splits that the user names.
    """
    if not splits:
        if len(split_tables) > 1:
            names = _join(f"{folder}:{name}" for name in split_tables)
            raise UserError(f"{folder}: it has several splits; name one: {names}.")
        return [_choose_table_splits(Table(path), str(path), []) for path in split_tables.values()]
    subfolder_names = [subfolder.name for subfolder in _list_subfolders(folder)]
    tables: list[Table | Columnar | Recording] = []
    for split in splits:
        with_table = find_split(split, split_tables)
        without_table = find_split(split, subfolder_names)
        if with_table:
            path = split_tables[with_table]
            tables.append(_choose_table_splits(Table(path), str(path), []))
        elif metadata and without_table:
            tables.append(Table(metadata, only_under=without_table))
        else:
            names = _join(split_tables) or "none"
            raise UserError(f"{folder}: no split {split!r} in it; its splits: {names}.")
    return tables


def _find_metadata(folder: Path) -> Path | None:
    """Find the table of an AudioFolder; None if there is none."""
    paths = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
    if len(paths) > 1:
        names = _join(path.name for path in paths)
        raise UserError(f"{folder}: it holds {names}; keep one of them, or name one as the source.")
    return paths[0] if paths else None


def _find_without_metadata(folder: Path, config: str | None, splits: list[str]) -> list[Table | Columnar | Recording]:
    """Find Parquet files in a folder or below it, or else recordings with their segments beside them."""
    if next(folder.rglob("*.parquet"), None):
        return [Columnar(str(folder), config, tuple(splits))]
    names = sorted(entry.name for entry in os.scandir(folder))
    if config is None and len(splits) < 2:
        # A single split may be the language of the captions.
        recordings = find_captioned_recordings(folder, *splits)
        if recordings:
            return list(recordings)
    manifests = [str(folder / name) for name in names if Path(name).suffix in TABLE_SUFFIXES]
    hint = "."
    if manifests:
        hint = f"; did you mean {_join(manifests[:_MOST_SUGGESTED])}?"
    raise UserError(f"{folder}: no metadata.csv or metadata.jsonl in it, nor in its subfolders{hint} {KINDS_OF_SRC}.")


def _list_subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())


# Splits ---------------------------------------------------------------------------------------------------------------

# The usual names of splits; those in one group mean the same.
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
# A column "split" with more values, none of them train, dev or test, is about something else.
_MOST_SPLITS = 50
# So many characters of a split's name are shown in a message.
_LONGEST_NAME = 60


def find_split(wanted: str, names: Iterable[str]) -> str | None:
    """Find a split by its own name, else by a synonym.

    Args:
        wanted: The split that the user names.
        names: The splits that there are.

    Returns:
        The name that the split has there; None if it is not there.

    Example:
        >>> find_split("dev", ["train", "validation"])
        'validation'
    """
    by_lower = {name.lower(): name for name in names}
    for name in names_of_split(wanted):
        if name in by_lower:
            return by_lower[name]
    return None


def names_of_split(wanted: str) -> tuple[str, ...]:
    """List the names that a split may have, in small letters: its own name first, then the synonyms.

    Example:
        >>> names_of_split("Train"), names_of_split("other")
        (('train', 'train', 'training'), ('other',))
    """
    for group in _SPLIT_NAMES:
        if wanted.lower() in group:
            return (wanted.lower(), *group)
    return (wanted.lower(),)


def is_name_of_split(value: str) -> bool:
    """Tell whether a value is a usual name of a split: train, dev, test and their synonyms."""
    return len(names_of_split(value)) > 1


def choose_splits(name: str, counts: dict[str, int], wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose among the values of a column "split".

    Args:
        name: The source, as the user wrote it without splits.
        counts: Number of rows for each value; empty if there is no such column.
        wanted: The splits that the user names. If there are none, the table may have only one split.

    Returns:
        The values whose rows are meant; empty for all rows.

    Raises:
        UserError: A split is not there, or no split is named and the table has several. A model must not learn from
            test clips.

    Example:
        >>> choose_splits("m.csv", {"train": 5, "validation": 3}, ["dev"])
        ('validation',)
    """
    if not wanted:
        if len(counts) < 2 or not _are_splits(counts):
            return ()
        choices = _join(f"{name}:{split}" for split in _describe_splits(counts))
        raise UserError(f"{name}: its column 'split' has several splits; name one, or join them with +: {choices}.")
    if not counts:
        raise UserError(
            f"{name}: no column 'split' in it, and otherwise only folders have splits; leave ':{'+'.join(wanted)}' out."
        )
    chosen = []
    for wanted_split in wanted:
        split = find_split(wanted_split, counts)
        if split is None:
            splits = _join(_describe_splits(counts))
            raise UserError(f"{name}: no split {wanted_split!r} in its column 'split'; it has {splits}.")
        chosen.append(split)
    return tuple(dict.fromkeys(chosen))


def _describe_splits(counts: dict[str, int]) -> list[str]:
    """Write the first splits with their numbers of rows.

    Example:
        >>> _describe_splits({"train": 5000, "test": 1})
        ['train (5,000 rows)', 'test (1 row)']
    """
    described = []
    for split, count in list(counts.items())[:_MOST_SPLITS]:
        rows = "1 row" if count == 1 else f"{count:,} rows"
        described.append(f"{printable(split)[:_LONGEST_NAME]} ({rows})")
    return described


def _are_splits(counts: dict[str, int]) -> bool:
    """Tell whether the values of a column "split" look like splits, and not like numbers of pieces or the like."""
    is_known = any(is_name_of_split(value) for value in counts)
    return is_known or len(counts) <= _MOST_SPLITS


def _choose_table_splits(table: Table, name: str, splits: list[str]) -> Table:
    """Return a table with the values of its column "split" that are meant; see `choose_splits`."""
    return dataclasses.replace(table, splits=choose_splits(name, count_splits(table.path), splits))


# Common Voice ---------------------------------------------------------------------------------------------------------

# The columns by which a Common Voice release of read sentences is known.
_SCRIPTED = frozenset({"client_id", "path", "sentence"})
# So many bytes of the first line of a table are read.
_LONGEST_HEADER_BYTES = 1 << 16


def _find_release_audio(path: Path) -> Path | None:
    """Find the sound of a Common Voice table, scripted or spontaneous; None for other tables."""
    if path.suffix.lower() != ".tsv":
        return None
    columns = _read_columns(path)
    for release_columns, name in ((_SCRIPTED, "clips"), (SPONTANEOUS, "audios")):
        if release_columns <= columns and (path.parent / name).is_dir():
            return path.parent / name
    return None


def _find_release(folder: Path) -> Path | None:
    """Find the language folder of an unpacked release: this folder, or the only such folder in it.

    Returns:
        None if there is none.
    """
    if _find_split_tables(folder):
        return folder
    languages = [subfolder for subfolder in _list_subfolders(folder) if _find_split_tables(subfolder)]
    if len(languages) > 1:
        names = _join(f"{language}:train" for language in languages)
        raise UserError(f"{folder}: several languages in it; name one: {names}.")
    return languages[0] if languages else None


def _find_split_tables(folder: Path) -> dict[str, Path]:
    """Find the split tables of a Common Voice language folder, by name; its other tables have other columns."""
    return {path.stem: path for path in sorted(folder.glob("*.tsv")) if _read_columns(path) >= _SCRIPTED}


def _read_columns(path: Path) -> set[str]:
    """Read the names in the first line of a .tsv file; none if the file cannot be read."""
    try:
        with open_file(path) as file:
            first_line = file.readline(_LONGEST_HEADER_BYTES)
    except UnusableFileError:
        return set()
    return set(first_line.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t"))


def _find_release_tables(folder: Path, splits: list[str]) -> list[Table | Columnar | Recording]:
    """Find the tables of the splits that the user names in a Common Voice language folder."""
    split_tables = _find_split_tables(folder)
    sizes = {name: _count_rows(path) for name, path in split_tables.items()}
    described = _join(f"{name} ({size:,} rows)" for name, size in sizes.items())
    if not splits:
        raise UserError(f"{folder}: name a split of this release, as in {folder}:train; it has {described}.")
    names = []
    for split in splits:
        name = find_split(split, split_tables)
        if name is None:
            raise UserError(f"{folder}: split {split!r} is not there; this release has {described}.")
        if not sizes[name]:
            raise UserError(f"{folder}: split {split!r} is empty; this release has {described}.")
        names.append(name)
    return [Table(split_tables[name], audio_folder=folder / "clips") for name in dict.fromkeys(names)]


def _count_rows(path: Path) -> int:
    """Count the lines of a table that are not empty, without its first line."""
    with open(path, "rb") as file:
        return max(0, sum(1 for line in file if line.strip()) - 1)


def _find_spontaneous_table(folder: Path) -> Table | None:
    """Find the table of an unpacked Spontaneous Speech release: in this folder, or in the only such folder in it.

    Returns:
        None if there is none.
    """
    paths = _list_spontaneous_tables(folder)
    if not paths:
        for subfolder in _list_subfolders(folder):
            paths += _list_spontaneous_tables(subfolder)
    if len(paths) > 1:
        raise UserError(f"{folder}: several languages in it; name one of the tables: {_join(map(str, paths))}.")
    return Table(paths[0], audio_folder=_find_release_audio(paths[0])) if paths else None


def _list_spontaneous_tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.tsv")) if _read_columns(path) >= SPONTANEOUS]


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
