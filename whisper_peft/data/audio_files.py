"""The recordings that somebody names: files, folders, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.recordings import SOUND_SUFFIXES
from whisper_peft.recipe_files import expand_home


@dataclass(frozen=True)
class NamedRecording:
    """A recording, or a name that leads to none."""

    path: str
    place: str  # below the folder that was named; the file's name where the file itself was
    problem: str = ""  # why there is no recording, without a full stop


def find_recordings(names: Iterable[str | Path | NamedRecording]) -> list[NamedRecording]:
    """Find the recordings that are named, in the order in which they are named.

    Args:
        names: Paths of files; folders, in which all sound files are taken, those in folders below, too, in the order
            of their paths; patterns such as ``talks/*.mp3``, where no file has that very name. What was found already
            stays as it is.

    Returns:
        One record for each recording. What is missing has its reason; whether a file is sound is not looked at.
    """
    found: list[NamedRecording] = []
    for name in names:
        if isinstance(name, NamedRecording):
            found.append(name)
            continue
        path = str(expand_home(name))
        if os.path.lexists(path) or not glob.has_magic(path):
            found += _at(path)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            found.append(NamedRecording(path, path, "no file matches this pattern"))
        for match in matches:
            found += _at(match)
    return found


def _at(path: str) -> list[NamedRecording]:
    """The recording at a path, or those in the folder there."""
    if not os.path.isdir(path):
        return [NamedRecording(path, os.path.basename(path))]
    files = []
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in names:
            is_sound = name.lower().endswith(SOUND_SUFFIXES) and not name.startswith(".")
            if is_sound:
                files.append(os.path.join(folder, name))
    if not files:
        return [NamedRecording(path, path, f"a folder without sound files ({', '.join(SOUND_SUFFIXES)})")]
    return [NamedRecording(file, os.path.relpath(file, path)) for file in sorted(files)]
