"""From SRC to what is in it: AudioFolder and Common Voice folders, manifests, Parquet, subtitles, and their splits."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.archives import MARK, is_archive, unpacked
from whisper_peft.data.recordings import (
    SOUND_SUFFIXES,
    SUBTITLE_SUFFIXES,
    Recording,
    recording_of,
    recordings_in,
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
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
_SCRIPTED = frozenset({"client_id", "path", "sentence"})  # columns of a Common Voice release of read sentences
_MOST_OF_NAME = 60  # characters of a split's name in a message
_MOST_SPLITS = 50  # a column "split" with more values, none of them train, dev or test, is about something else


@dataclass(frozen=True)
class Columnar:
    """A table with typed columns: a Parquet file, a folder of them, or a Hub data set."""

    source: str  # as the user named it, without splits
    config: str | None = None
    splits: tuple[str, ...] = ()  # of files: values of the column "split"
    is_file: bool = False

    @property
    def name(self) -> str:
        """For messages and fingerprints."""
        return ":".join(filter(None, [self.source, self.config, "+".join(self.splits)]))


@dataclass(frozen=True)
class Table:
    """One file of rows, and where its audio paths start from."""

    path: Path
    audio_folder: Path | None = None  # else the folder of the file
    only_under: str | None = None  # only rows whose audio path starts with this folder
    splits: tuple[str, ...] = ()  # only rows with these values in the column split; none: all rows


def find_source(source: str) -> list[Table | Columnar | Recording]:
    """Find what a source names; an existing path always wins over the reading as PATH:split, hf: means the Hub.

    Raises:
        UserError: There is nothing of the kind, it may not be read, or a split is not named, not there or empty.
    """
    try:
        return _find_source(source)
    except OSError as error:
        raise UnusableFileError(error.filename or source, reason_of(error)) from None


def _find_source(source: str) -> list[Table | Columnar | Recording]:
    path, config, splits = _path_and_splits(source)
    if path is None:
        return [Columnar(source.removeprefix(HUB_PREFIX).split(":")[0], config, tuple(splits))]
    if path.is_file() and is_archive(path):
        path = _only_folder(unpacked(path))
    name = source.rpartition(":")[0] if splits else source
    if path.is_dir():
        return _in_folder(path, name, config, splits)
    return _of_file(path, name, splits)


def _of_file(path: Path, name: str, splits: list[str]) -> list[Table | Columnar | Recording]:
    suffix = path.suffix.lower()
    is_table = suffix in TABLE_SUFFIXES and not (suffix in SUBTITLE_SUFFIXES and recording_of(path))
    if is_table:
        return [_in_splits(Table(path, audio_folder=_release_audio(path)), name, splits)]
    if suffix == ".parquet":
        return [Columnar(str(path), splits=tuple(splits), is_file=True)]
    if splits:
        raise UserError(
            f"{name}: {path.name} is a file, and only folders have splits; leave ':{'+'.join(splits)}' out."
        )
    if suffix in SOUND_SUFFIXES:
        recording = recording_of(path)
        if recording is None:
            raise UserError(
                f"{path}: no segment times beside it; put them into {path.stem}.srt, .vtt or .json (or "
                f"{path.stem}.LANGUAGE.srt), or name clips of up to 30 s in a manifest."
            )
        return [recording]
    if suffix in SUBTITLE_SUFFIXES and (recording := recording_of(path)):
        return [recording]
    if suffix in (".srt", ".vtt"):
        raise UserError(f"{path}: no recording of this name beside it, as {path.stem}.wav or {path.stem}.mp4.")
    packed = " Unpack it and name the folder." if suffix in (".zip", ".gz", ".7z", ".rar") else ""
    raise UserError(f"{path}: no source.{packed} {KINDS_OF_SRC}.")


def _release_audio(path: Path) -> Path | None:
    """The folder of the sound of a Common Voice table, scripted or spontaneous; None for other tables."""
    columns = _columns_of(path) if path.suffix.lower() == ".tsv" else set()
    for wanted, name in ((_SCRIPTED, "clips"), (SPONTANEOUS, "audios")):
        if wanted <= columns and (path.parent / name).is_dir():
            return path.parent / name
    return None


def _in_splits(table: Table, name: str, splits: list[str]) -> Table:
    """The table with the splits that its column "split" names; see `choose_splits`."""
    return dataclasses.replace(table, splits=choose_splits(name, count_splits(table.path), splits))


def choose_splits(name: str, counts: dict[str, int], wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose among the values of a column "split".

    Args:
        name: The source, as the user wrote it without splits.
        counts: Rows of each value; empty where there is no such column.
        wanted: The splits that the user names; none: the table has to have one only.

    Returns:
        The values whose rows are meant; empty for all rows.

    Raises:
        UserError: A split is not there, or none is named and the table has several: test clips must not be learnt from.
    """
    shown = [
        (printable(split)[:_MOST_OF_NAME], f"{size:,} row{'' if size == 1 else 's'}")
        for split, size in list(counts.items())[:_MOST_SPLITS]
    ]
    if not wanted:
        if len(counts) < 2 or not _are_splits(counts):
            return ()
        named = _listed(f"{name}:{split} ({rows})" for split, rows in shown)
        raise UserError(f"{name}: its column 'split' has several splits; name one, or join them with +: {named}.")
    if not counts:
        raise UserError(
            f"{name}: no column 'split' in it, and otherwise only folders have splits; leave ':{'+'.join(wanted)}' out."
        )
    chosen = []
    for split in wanted:
        found = find_split(split, counts)
        if found is None:
            has = _listed(f"{other} ({rows})" for other, rows in shown)
            raise UserError(f"{name}: no split {split!r} in its column 'split'; it has {has}.")
        chosen.append(found)
    return tuple(dict.fromkeys(chosen))


def is_name_of_split(value: str) -> bool:
    """Tell whether a value is a usual name of a split: train, dev, test and their synonyms."""
    return len(names_of_split(value)) > 1


def _are_splits(counts: dict[str, int]) -> bool:
    """Whether the values of a column "split" look like splits, and not like numbers of pieces or the like."""
    known = any(find_split(name, counts) for names in _SPLIT_NAMES for name in names)
    return known or len(counts) <= _MOST_SPLITS


def _only_folder(folder: Path) -> Path:
    """The folder in a folder of nothing else, as archives have it."""
    while len(inside := [entry for entry in os.scandir(folder) if entry.name != MARK]) == 1 and inside[0].is_dir():
        folder = Path(inside[0])
    return folder


def _path_and_splits(source: str) -> tuple[Path | None, str | None, list[str]]:
    """(path, configuration, splits); no path for a Hub data set."""
    pieces = source.split(":")
    for n_tail in range(0 if source.startswith(HUB_PREFIX) else 3):  # PATH, PATH:split, PATH:config:split
        name, tail = ":".join(pieces[: len(pieces) - n_tail]), pieces[len(pieces) - n_tail :]
        if name and _exists(expand_home(name)):
            return expand_home(name).absolute(), *_config_and_splits(source, name, tail)
    hub = re.fullmatch(r"(?:hf:)?([\w.-]+/[\w.-]+)((?::[^/:]+){0,2})", source)
    if hub:
        return None, *_config_and_splits(source, hub[1], hub[2].split(":")[1:])
    raise UserError(f"{source}: no such file or folder. {KINDS_OF_SRC}.")


def _config_and_splits(source: str, name: str, tail: list[str]) -> tuple[str | None, list[str]]:
    if not tail:
        return None, []
    chosen = [split.strip() for split in tail[-1].split("+")]
    if not all(chosen):
        raise UserError(f"{source}: a split without a name; write {name}:train or {name}:train+dev.")
    return (tail[0] if len(tail) == 2 else None), list(dict.fromkeys(chosen))


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def _in_folder(folder: Path, name: str, config: str | None, splits: list[str]) -> list[Table | Columnar | Recording]:
    own = _metadata(folder)
    if own and (not splits or count_splits(own)):
        return [_in_splits(Table(own), name, splits)]
    if config is not None and (own or _common_voice_folder(folder)):
        raise UserError(f"{folder}: has no configurations; leave ':{config}' out.")
    release = None if own else _common_voice_folder(folder)
    if release:
        return _common_voice_tables(release, splits)
    spontaneous = None if own else _spontaneous_table(folder)
    if spontaneous:
        return [_in_splits(spontaneous, name, splits)]
    subfolders = _subfolders(folder)
    below = {child.name: table for child in subfolders if (table := _metadata(child))}
    if not own and not below:
        return _without_metadata(folder, config, splits)
    if not splits:
        if len(below) > 1:
            raise UserError(f"{folder}: name one of its splits: {_listed(f'{folder}:{name}' for name in below)}.")
        return [_in_splits(Table(table), str(table), []) for table in below.values()]
    tables = []
    for split in splits:
        child = find_split(split, below)
        inside = find_split(split, (subfolder.name for subfolder in subfolders))
        if child:
            tables.append(_in_splits(Table(below[child]), str(below[child]), []))
        elif own and inside:
            tables.append(Table(own, only_under=inside))
        else:
            found = _listed(below) if below else "none"
            raise UserError(f"{folder}: no split {split!r} in it; its splits: {found}.")
    return tables


def _metadata(folder: Path) -> Path | None:
    found = [folder / name for name in ("metadata.csv", "metadata.jsonl", "metadata.tsv") if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder}: {_listed(path.name for path in found)}; leave one of them, or name it as the source."
        )
    return found[0] if found else None


def _without_metadata(folder: Path, config: str | None, splits: list[str]) -> list[Columnar | Recording]:
    """Parquet files, here or below, or else recordings with their segments beside them."""
    if next(folder.rglob("*.parquet"), None):
        return [Columnar(str(folder), config, tuple(splits))]
    names = sorted(entry.name for entry in os.scandir(folder))
    if config is None and len(splits) < 2:
        recordings = recordings_in(folder, *splits)
        if recordings:
            return recordings
    manifests = [name for name in names if Path(name).suffix in TABLE_SUFFIXES]
    hint = f"; did you mean {_listed(f'{folder / name}' for name in manifests[:3])}?" if manifests else "."
    raise UserError(f"{folder}: no metadata.csv or metadata.jsonl in it, nor in its subfolders{hint} {KINDS_OF_SRC}.")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())


def find_split(wanted: str, names: Iterable[str]) -> str | None:
    """Find a split by its own name, else by a synonym: dev, valid, val and validation are one."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in names_of_split(wanted) if name in by_lower), None)


def names_of_split(wanted: str) -> tuple[str, ...]:
    """The names that a split may have, in small letters: its own first, then its synonyms."""
    synonyms = next((group for group in _SPLIT_NAMES if wanted.lower() in group), ())
    return (wanted.lower(), *synonyms)


def _common_voice_folder(folder: Path) -> Path | None:
    """The language folder of an unpacked release: this one, or the only such one below it; None if there is none."""
    if _common_voice_splits(folder):
        return folder
    languages = [child for child in _subfolders(folder) if _common_voice_splits(child)]
    if len(languages) > 1:
        raise UserError(f"{folder}: several languages; name one: {_listed(f'{child}:train' for child in languages)}.")
    return languages[0] if languages else None


def _common_voice_splits(folder: Path) -> dict[str, Path]:
    """The split tables of a Common Voice language folder, by name; its other tables have other columns."""
    return {path.stem: path for path in sorted(folder.glob("*.tsv")) if _columns_of(path) >= _SCRIPTED}


def _columns_of(path: Path) -> set[str]:
    """The names in the first line of a .tsv file; none where it cannot be read."""
    try:
        with open_file(path) as file:
            first = file.readline(1 << 16)
    except UnusableFileError:
        return set()
    return set(first.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t"))


def _spontaneous_table(folder: Path) -> Table | None:
    """The table of an unpacked Spontaneous Speech release: of this folder, or of the only such one below it."""
    tables = _spontaneous_tables(folder)
    if not tables:
        tables = [table for child in _subfolders(folder) for table in _spontaneous_tables(child)]
    if len(tables) > 1:
        raise UserError(f"{folder}: several languages; name one of the tables: {_listed(map(str, tables))}.")
    return Table(tables[0], audio_folder=_release_audio(tables[0])) if tables else None


def _spontaneous_tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.tsv")) if _columns_of(path) >= SPONTANEOUS]


def _common_voice_tables(folder: Path, splits: list[str]) -> list[Table]:
    found = _common_voice_splits(folder)
    sizes = {name: _count_rows(path) for name, path in found.items()}
    has = ", ".join(f"{name} ({size:,} rows)" for name, size in sizes.items())
    if not splits:
        raise UserError(f"{folder}: name a split of this release, as in {folder}:train; it has {has}.")
    names = []
    for split in splits:
        name = find_split(split, found)
        if name is None or not sizes[name]:
            what = "is empty" if name else "is not there"
            raise UserError(f"{folder}: split {split!r} {what}; this release has {has}.")
        names.append(name)
    return [Table(found[name], audio_folder=folder / "clips") for name in dict.fromkeys(names)]


def _count_rows(path: Path) -> int:
    with open(path, "rb") as file:
        return max(0, sum(1 for line in file if line.strip()) - 1)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
