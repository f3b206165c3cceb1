"""Find the tables and the sound of unpacked Common Voice releases, of read sentences or of Spontaneous Speech."""

from __future__ import annotations

import os
from pathlib import Path

from whisper_peft.data.split_names import find_split
from whisper_peft.data.tables import SPONTANEOUS
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, open_file

# Folder of the sound in a release of read sentences, and in one of Spontaneous Speech.
SCRIPTED_AUDIO = "clips"
_SPONTANEOUS_AUDIO = "audios"
# The columns by which a Common Voice release of read sentences is known.
_SCRIPTED = frozenset({"client_id", "path", "sentence"})
# The largest number of bytes that are read of the first line of a table.
_LONGEST_HEADER_BYTES = 1 << 16


def find_release_audio(path: Path) -> Path | None:
    """Find the sound of a Common Voice table, scripted or spontaneous; None for other tables."""
    if path.suffix.lower() != ".tsv":
        return None
    columns = _read_columns(path)
    for release_columns, name in ((_SCRIPTED, SCRIPTED_AUDIO), (SPONTANEOUS, _SPONTANEOUS_AUDIO)):
        if release_columns <= columns and (path.parent / name).is_dir():
            return path.parent / name
    return None


def find_release(folder: Path) -> Path | None:
    """Find the language folder of an unpacked release: this folder, or the only such folder in it.

    Returns:
        None if there is none.
    """
    if _find_split_tables(folder):
        return folder
    languages = [subfolder for subfolder in list_subfolders(folder) if _find_split_tables(subfolder)]
    if len(languages) > 1:
        names = ", ".join(f"{language}:train" for language in languages)
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


def find_release_tables(folder: Path, splits: list[str]) -> list[Path]:
    """Find the tables of the splits that the user names in a Common Voice language folder.

    Raises:
        UserError: No split is named, or a split is empty or not there.
    """
    split_tables = _find_split_tables(folder)
    sizes = {name: _count_rows(path) for name, path in split_tables.items()}
    described = ", ".join(f"{name} ({size:,} rows)" for name, size in sizes.items())
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
    return [split_tables[name] for name in dict.fromkeys(names)]


def _count_rows(path: Path) -> int:
    """Count the lines of a table that are not empty, without its first line."""
    with open(path, "rb") as file:
        return max(0, sum(1 for line in file if line.strip()) - 1)


def find_spontaneous_table(folder: Path) -> Path | None:
    """Find the table of an unpacked Spontaneous Speech release: in this folder, or in the only such folder in it.

    Returns:
        None if there is none.
    """
    paths = _list_spontaneous_tables(folder)
    if not paths:
        for subfolder in list_subfolders(folder):
            paths += _list_spontaneous_tables(subfolder)
    if len(paths) > 1:
        raise UserError(f"{folder}: several languages in it; name one of the tables: {', '.join(map(str, paths))}.")
    return paths[0] if paths else None


def _list_spontaneous_tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.tsv")) if _read_columns(path) >= SPONTANEOUS]


def list_subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, in the order of their names."""
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir())
