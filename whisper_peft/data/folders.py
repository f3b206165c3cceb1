"""From SRC to the tables in it: AudioFolder and Common Voice folders, manifests, and their splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.tables import TABLE_SUFFIXES
from whisper_peft.errors import UserError

KINDS_OF_SRC = (
    "A source is a folder with metadata.csv or metadata.jsonl (AudioFolder; FOLDER:split for one of its splits), "
    "an unpacked Common Voice release (DIR:train, DIR:train+dev), or a manifest (.jsonl, .csv, .tsv)"
)
_LATER = "come in a later version"
_LATER_SUFFIXES = {
    ".parquet": "Parquet files",
    ".arrow": "Arrow files",
    ".gz": "packed releases",
    ".tgz": "packed releases",
    ".tar": "packed releases",
    ".zip": "packed releases",
    ".srt": "subtitles",
    ".vtt": "subtitles",
}
_SOUND_SUFFIXES = frozenset(
    [".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".aac", ".wma", ".aiff", ".aif"]
)
_SPLIT_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)


@dataclass(frozen=True)
class Table:
    """One file of rows, and where its audio paths start from."""

    path: Path
    audio_folder: Path | None = None  # else the folder of the file
    only_under: str | None = None  # only rows whose audio path starts with this folder


def find_tables(source: str) -> list[Table]:
    """Find the tables that a source names; an existing path always wins over the reading as PATH:split.

    Raises:
        UserError: There is nothing of the kind, or a split is not named, not there or empty.
    """
    path, splits = _path_and_splits(source)
    if path.is_dir():
        return _tables_of_folder(path, splits)
    if splits:
        raise UserError(
            f"{source}: {path.name} is a file, and only folders have splits; leave ':{'+'.join(splits)}' out."
        )
    _check_kind(path)
    is_common_voice = (path.parent / "clips").is_dir() and path in _common_voice_splits(path.parent).values()
    return [Table(path, audio_folder=path.parent / "clips" if is_common_voice else None)]


def _check_kind(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return
    if suffix in _LATER_SUFFIXES:
        raise UserError(f"{path}: {_LATER_SUFFIXES[suffix]} {_LATER}. {KINDS_OF_SRC}.")
    if suffix in _SOUND_SUFFIXES:
        raise UserError(f"{path}: a sound file alone has no transcript. {KINDS_OF_SRC}.")
    raise UserError(f"{path}: no source. {KINDS_OF_SRC}.")


def _path_and_splits(source: str) -> tuple[Path, list[str]]:
    path = Path(source).expanduser()
    if _exists(path):
        return path.absolute(), []
    name, colon, splits = source.rpartition(":")
    if colon and name and _exists(Path(name).expanduser()):
        chosen = [split.strip() for split in splits.split("+")]
        if not all(chosen):
            raise UserError(f"{source}: a split without a name; write {name}:train or {name}:train+dev.")
        return Path(name).expanduser().absolute(), list(dict.fromkeys(chosen))
    hub = re.fullmatch(r"(hf:)?[\w.-]+/[\w.-]+(:[^/]*)?", source)
    and_hub = f" Hub data sets (owner/name:config:split) {_LATER}." if hub else ""
    raise UserError(f"{source}: no such file or folder.{and_hub} {KINDS_OF_SRC}.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _tables_of_folder(folder: Path, splits: list[str]) -> list[Table]:
    own = _metadata(folder)
    if own and not splits:
        return [Table(own)]
    release = None if own else _common_voice_folder(folder)
    if release:
        return _common_voice_tables(release, splits)
    subfolders = _subfolders(folder)
    below = {child.name: table for child in subfolders if (table := _metadata(child))}
    if not own and not below:
        raise UserError(f"{folder}: {_no_metadata(folder)}")
    if not splits:
        if len(below) > 1:
            raise UserError(f"{folder}: name one of its splits: {_listed(f'{folder}:{name}' for name in below)}.")
        return [Table(table) for table in below.values()]
    tables = []
    for split in splits:
        name = _find_split(split, below)
        inside = _find_split(split, (child.name for child in subfolders))
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


def _no_metadata(folder: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(folder))
    if any(name.endswith(".parquet") for name in names):
        return f"Parquet folders {_LATER}. {KINDS_OF_SRC}."
    manifests = [name for name in names if Path(name).suffix in TABLE_SUFFIXES]
    hint = f"; did you mean {_listed(f'{folder / name}' for name in manifests[:3])}?" if manifests else "."
    return f"no metadata.csv or metadata.jsonl in it, nor in its subfolders{hint} {KINDS_OF_SRC}."


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())


def _find_split(wanted: str, names: Iterable[str]) -> str | None:
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
        name = _find_split(split, found)
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
