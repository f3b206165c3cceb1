"""From SRC to what is in it: AudioFolder and Common Voice folders, manifests, Parquet, subtitles, and their splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
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
from whisper_peft.data.tables import TABLE_SUFFIXES
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, reason_of
from whisper_peft.recipe_files import expanded

KINDS_OF_SRC = (
    "A source is a folder with metadata.csv or metadata.jsonl (AudioFolder; FOLDER:split for one of its splits), "
    "a Common Voice release, unpacked or as .tar.gz (DIR:train, DIR:train+dev), a manifest (.jsonl, .csv, .tsv), "
    "Parquet files, a recording with .srt, .vtt or .json segments beside it (talk.srt, talk.en.vtt), or a Hub data set "
    "(owner/name:config:split)"
)
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)


@dataclass(frozen=True)
class Columnar:
    """A table with typed columns: a Parquet file, a folder of them, or a Hub data set."""

    source: str  # as the user named it, without splits
    config: str | None = None
    splits: tuple[str, ...] = ()
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
        return [Columnar(source.removeprefix("hf:").split(":")[0], config, tuple(splits))]
    if path.is_file() and is_archive(path):
        path = _only_folder(unpacked(path))
    if path.is_dir():
        return _in_folder(path, config, splits)
    if splits:
        raise UserError(
            f"{source}: {path.name} is a file, and only folders have splits; leave ':{'+'.join(splits)}' out."
        )
    return [_of_file(path)]


def _of_file(path: Path) -> Table | Columnar | Recording:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Columnar(str(path), is_file=True)
    if suffix in SOUND_SUFFIXES:
        recording = recording_of(path)
        if recording is None:
            raise UserError(
                f"{path}: no segment times beside it; put them into {path.stem}.srt, .vtt or .json (or "
                f"{path.stem}.LANGUAGE.srt), or name clips of up to 30 s in a manifest."
            )
        return recording
    if suffix in SUBTITLE_SUFFIXES and (recording := recording_of(path)):
        return recording
    if suffix in (".srt", ".vtt"):
        raise UserError(f"{path}: no recording of this name beside it, as {path.stem}.wav or {path.stem}.mp4.")
    if suffix not in TABLE_SUFFIXES:
        packed = " Unpack it and name the folder." if suffix in (".zip", ".gz", ".7z", ".rar") else ""
        raise UserError(f"{path}: no source.{packed} {KINDS_OF_SRC}.")
    is_common_voice = (path.parent / "clips").is_dir() and path in _common_voice_splits(path.parent).values()
    return Table(path, audio_folder=path.parent / "clips" if is_common_voice else None)


def _only_folder(folder: Path) -> Path:
    """The folder in a folder of nothing else, as archives have it."""
    while len(inside := [entry for entry in os.scandir(folder) if entry.name != MARK]) == 1 and inside[0].is_dir():
        folder = Path(inside[0])
    return folder


def _path_and_splits(source: str) -> tuple[Path | None, str | None, list[str]]:
    """(path, configuration, splits); no path for a Hub data set."""
    pieces = source.split(":")
    for n_tail in range(0 if source.startswith("hf:") else 3):  # PATH, PATH:split, PATH:config:split
        name, tail = ":".join(pieces[: len(pieces) - n_tail]), pieces[len(pieces) - n_tail :]
        if name and _exists(expanded(name)):
            return expanded(name).absolute(), *_config_and_splits(source, name, tail)
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


def _in_folder(folder: Path, config: str | None, splits: list[str]) -> list[Table | Columnar | Recording]:
    own = _metadata(folder)
    if own and not splits:
        return [Table(own)]
    if config is not None and (own or _common_voice_folder(folder)):
        raise UserError(f"{folder}: has no configurations; leave ':{config}' out.")
    release = None if own else _common_voice_folder(folder)
    if release:
        return _common_voice_tables(release, splits)
    subfolders = _subfolders(folder)
    below = {child.name: table for child in subfolders if (table := _metadata(child))}
    if not own and not below:
        return _without_metadata(folder, config, splits)
    if not splits:
        if len(below) > 1:
            raise UserError(f"{folder}: name one of its splits: {_listed(f'{folder}:{name}' for name in below)}.")
        return [Table(table) for table in below.values()]
    tables = []
    for split in splits:
        name = find_split(split, below)
        inside = find_split(split, (child.name for child in subfolders))
        if name:
            tables.append(Table(below[name]))
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
    synonyms = next((group for group in _SPLIT_NAMES if wanted.lower() in group), ())
    return next((by_lower[name] for name in (wanted.lower(), *synonyms) if name in by_lower), None)


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
    splits = {}
    for path in sorted(folder.glob("*.tsv")):
        with open(path, "rb") as file:
            columns = file.readline().lstrip(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\t")
        if {b"client_id", b"path", b"sentence"} <= set(columns):
            splits[path.stem] = path
    return splits


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
