"""Find the recordings that somebody names as files, as folders, or by patterns."""

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
    # Path below the folder that was named; the file's name if the file itself was named.
    place: str
    # Why there is no recording, without a full stop; empty if there is one.
    problem: str = ""


def find_recordings(names: Iterable[str | Path | NamedRecording]) -> list[NamedRecording]:
    """Find the recordings that are named, in the order in which they are named.

    Args:
        names: Paths of files, paths of folders, or patterns such as ``talks/*.mp3`` where no file has that very name.
            From a folder, all sound files are taken in the order of their paths, those in folders below, too. A
            recording that was found already stays as it is.

    Returns:
        One record for each recording. A missing recording has its reason. Whether a file is sound is not looked at.
    """
    recordings: list[NamedRecording] = []
    for name in names:
        if isinstance(name, NamedRecording):
            recordings.append(name)
            continue
        path = str(expand_home(name))
        if os.path.lexists(path) or not glob.has_magic(path):
            recordings += _find_at(path)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            recordings.append(NamedRecording(path, path, "no file matches this pattern"))
        for match in matches:
            recordings += _find_at(match)
    return recordings


def _find_at(path: str) -> list[NamedRecording]:
    """Find the recording at a path, or the recordings in the folder there."""
    if not os.path.isdir(path):
        return [NamedRecording(path, os.path.basename(path))]
    files = []
    for folder, subfolders, names in os.walk(path):
        # os.walk goes into the subfolders in the order of this list.
        subfolders.sort()
        for name in names:
            is_sound = name.lower().endswith(SOUND_SUFFIXES) and not name.startswith(".")
            if is_sound:
                files.append(os.path.join(folder, name))
    if not files:
        return [NamedRecording(path, path, f"a folder without sound files ({', '.join(SOUND_SUFFIXES)})")]
    return [NamedRecording(file, os.path.relpath(file, path)) for file in sorted(files)]
