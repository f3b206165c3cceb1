"""Find the sound that a table names by a path or an address.

Only files on this machine, and those of the Hub data set that the user named, are opened. A table is made by strangers:
an address in it, such as http://192.168.0.1/, would be requested from the user's machine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from whisper_peft.data.audio import AudioError
from whisper_peft.data.rows import Packed
from whisper_peft.files import printable

# "http://..." or "zip://x::http://...". A drive of Windows has one letter. "\\server\share" is a request, too.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|\\\\|.*::[A-Za-z][A-Za-z0-9+.-]+://", re.DOTALL)
_WINDOWS_SHARE = re.compile(r"[\\/]{2}")
# Archives inside a Hub data set. `datasets` names a file in one as zip://clips/1.wav::hf://datasets/owner/name@.../x.zip
_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd")
_NEVER_OPENED = "an address, and addresses in a data set are never opened; download the file, and write its path"
# A message shows this number of characters of a reason.
_LONGEST_REASON = 200


@dataclass(frozen=True)
class UnusableSound:
    """A sound that is known to be unusable before it is read."""

    name: str
    reason: str

    def read(self) -> bytes:
        """Refuse to read the sound.

        Raises:
            AudioError: Always, with the reason.
        """
        raise AudioError(self.reason)


@dataclass(frozen=True)
class HubSound:
    """A sound file of the Hub data set that the user named; it is fetched when it is read."""

    # An address that begins with hf:// or leads into an archive there.
    name: str

    def read(self) -> bytes:
        """Fetch the file.

        Raises:
            AudioError: The file cannot be fetched. One file is no reason to end a run.
        """
        import fsspec  # type: ignore[import-untyped]  # fsspec ships no types

        try:
            with fsspec.open(self.name) as file:
                return file.read()
        except Exception as error:
            # Every file system has errors of its own.
            reason = " ".join(printable(error).split())[:_LONGEST_REASON] or type(error).__name__
            raise AudioError(f"cannot be fetched ({reason})") from None


def is_address(name: str) -> bool:
    """Tell whether a name is an address in the network or in another file system, and not a path on this machine.

    Example:
        >>> is_address("s3://bucket/1.wav"), is_address("C:/clips/1.wav")
        (True, False)
    """
    return bool(_ADDRESS.match(name)) or (os.name == "nt" and bool(_WINDOWS_SHARE.match(name)))


def locate_sound(name: str, source: str) -> str | Packed:
    """Find where a sound lies that a table names.

    Args:
        name: Path or address of the sound, as the table has it.
        source: The absolute folder that paths start from, or the name of the Hub data set, as owner/name.

    Returns:
        An absolute path, or an object that fetches the file of that Hub data set, or an object that says why the sound
        cannot be used.

    Example:
        >>> locate_sound("1.wav", "/data/clips")
        '/data/clips/1.wav'
        >>> locate_sound("clips/1.wav", "owner/name")
        HubSound(name='hf://datasets/owner/name/clips/1.wav')
    """
    is_on_hub = not os.path.isabs(source)
    if not is_address(name):
        if not is_on_hub or os.path.isabs(name):
            return os.path.join(source, name)
        name = f"hf://datasets/{source}/{name.removeprefix('./')}"
    if is_on_hub and _is_inside(name, source):
        return HubSound(name)
    return UnusableSound(name, _NEVER_OPENED)


def _is_inside(address: str, repository: str) -> bool:
    """Tell whether an address leads to a file in a Hub data set, or in an archive in that data set.

    Example:
        >>> _is_inside("hf://datasets/owner/name/1.wav", "owner/name")
        True
        >>> _is_inside("hf://datasets/owner/name/../other/1.wav", "owner/name")
        False
    """
    *archives, place = address.split("::")
    home = f"hf://datasets/{repository}"
    return (
        place.startswith((f"{home}/", f"{home}@"))
        and ".." not in PurePosixPath(place).parts
        and all(archive.partition("://")[0] in _ARCHIVES for archive in archives)
    )
