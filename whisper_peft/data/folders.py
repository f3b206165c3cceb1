"""Find what a source holds: AudioFolder and Common Voice folders, manifests, Parquet, recordings, and their splits."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.archives import ARCHIVE_RECORD, is_archive, unpack
from whisper_peft.data.common_voice import (
    SCRIPTED_AUDIO,
    find_release,
    find_release_audio,
    find_release_tables,
    find_spontaneous_table,
    list_subfolders,
)
from whisper_peft.data.recordings import (
    SOUND_SUFFIXES,
    SUBTITLE_SUFFIXES,
    Recording,
    find_captioned_recording,
    find_captioned_recordings,
)
from whisper_peft.data.split_names import choose_splits, find_split
from whisper_peft.data.tables import TABLE_SUFFIXES, count_splits
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, reason_of
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
        return [_choose_table_splits(Table(path, audio_folder=find_release_audio(path)), name, splits)]
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


_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
# The largest number of manifests that a message suggests.
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
    release = None if metadata else find_release(folder)
    if config is not None and (metadata or release):
        raise UserError(f"{folder}: has no configurations; leave ':{config}' out.")
    if release:
        return [Table(path, audio_folder=release / SCRIPTED_AUDIO) for path in find_release_tables(release, splits)]
    spontaneous = None if metadata else find_spontaneous_table(folder)
    if spontaneous:
        table = Table(spontaneous, audio_folder=find_release_audio(spontaneous))
        return [_choose_table_splits(table, name, splits)]
    split_tables = {}
    for subfolder in list_subfolders(folder):
        path = _find_metadata(subfolder)
        if path:
            split_tables[subfolder.name] = path
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
    subfolder_names = [subfolder.name for subfolder in list_subfolders(folder)]
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


def _choose_table_splits(table: Table, name: str, splits: list[str]) -> Table:
    """Return a table with the values of its column "split" that are meant; see `choose_splits`."""
    return dataclasses.replace(table, splits=choose_splits(name, count_splits(table.path), splits))


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
