"""Sound that a table names by a path or an address; only files here, and those of the Hub data set itself, are opened.

A table is made by strangers. An address in it, as http://192.168.0.1/, would be requested from the user's machine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from whisper_peft.data.audio import AudioError
from whisper_peft.data.rows import Packed
from whisper_peft.files import printable

# "http://...", "zip://x::http://..."; a drive of Windows has one letter. "\\server\share" is a request, too.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|\\\\|.*::[A-Za-z][A-Za-z0-9+.-]+://", re.DOTALL)
_WINDOWS_SHARE = re.compile(r"[\\/]{2}")
# Archives inside a Hub data set, which `datasets` names as zip://clips/1.wav::hf://datasets/owner/name@.../clips.zip.
_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd")
_NEVER_OPENED = "an address, and addresses in a data set are never opened; download the file, and write its path"


@dataclass(frozen=True)
class Unusable:
    """A sound that is known to be unusable before it is read."""

    name: str
    reason: str

    def read(self) -> bytes:
        """Refuse it.

        Raises:
            AudioError: Always, with the reason.
        """
        raise AudioError(self.reason)


@dataclass(frozen=True)
class HubFile:
    """A sound file of a Hub data set that the user named; fetched when it is read."""

    name: str  # an address that begins with hf:// or leads into an archive there

    def read(self) -> bytes:
        """Fetch it.

        Raises:
            AudioError: It cannot be had; one file is no reason to end a run.
        """
        import fsspec

        try:
            with fsspec.open(self.name) as file:
                return file.read()
        except Exception as error:  # every file system has errors of its own
            reason = " ".join(printable(error).split())[:200] or type(error).__name__
            raise AudioError(f"cannot be fetched ({reason})") from None


def is_address(name: str) -> bool:
    """Tell whether a name is an address of the network or of another file system, and not a path here.

    Example:
        >>> is_address("s3://bucket/1.wav"), is_address("C:/clips/1.wav")
        (True, False)
    """
    return bool(_ADDRESS.match(name)) or (os.name == "nt" and bool(_WINDOWS_SHARE.match(name)))


def placed_sound(name: str, source: str) -> str | Packed:
    """Find where a sound lies that a table names.

    Args:
        name: Path or address, as the table has it.
        source: Folder that paths start from, which is absolute, or name of the Hub data set, as owner/name.

    Returns:
        An absolute path; or what fetches a file of that Hub data set; or what says why the sound cannot be used.
    """
    is_of_hub = not os.path.isabs(source)
    if not is_address(name):
        if not is_of_hub or os.path.isabs(name):
            return os.path.join(source, name)
        name = f"hf://datasets/{source}/{name.removeprefix('./')}"
    if is_of_hub and _is_inside(name, source):
        return HubFile(name)
    return Unusable(name, _NEVER_OPENED)


def _is_inside(address: str, repository: str) -> bool:
    """Tell whether an address is of a file in a Hub data set, or in an archive in it."""
    *archives, place = address.split("::")
    home = f"hf://datasets/{repository}"
    return (
        place.startswith((f"{home}/", f"{home}@"))
        and ".." not in PurePosixPath(place).parts
        and all(link.partition("://")[0] in _ARCHIVES for link in archives)
    )
