"""Unpack a release, as it was downloaded, once and beside itself; nothing in it gets outside that folder."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, foreign_content, open_file, reason_of, short_repr
from whisper_peft.runs import new_folder, read_json, write_json

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar")
UNPACKED = ".unpacked"
# A file that is written last into the folder. It records which archive was unpacked there.
ARCHIVE_RECORD = "whisper_peft.json"
# This much of the disk stays free.
_HEADROOM_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 20
# The largest number of bytes behind the end of an archive. tar fills its last record up with some kilobytes.
_MOST_BYTES_BEHIND_END = 1 << 24
# Exceptions that the modules which unpack raise for damaged content. An OSError with a number is a fault of the disk.
# tarfile reads headers that announce headers by calling itself, which ends in a RecursionError.
_DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,
)


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is a packed release.

    Example:
        >>> is_archive(Path("cv-corpus-25.0-te.tar.gz")), is_archive(Path("train.tsv"))
        (True, False)
    """
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(path: Path) -> Path:
    """Unpack an archive into `<name>.unpacked` beside it, unless that was done before.

    Only files and folders come out; links and devices are passed over. The folder appears whole or not at all.

    Args:
        path: The archive.

    Returns:
        The folder.

    Raises:
        UserError: The file is no archive, is damaged or broken off, a name in it leads outside, there is no room for
            its contents, or it holds far more than a file of its size can.
    """
    folder = path.with_name(_remove_suffix(path.name) + UNPACKED)
    with open_file(path) as file:
        state = os.fstat(file.fileno())
        archive = {"archive": path.name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
        if folder.exists():
            _refuse_other_folder(path, folder, archive)
            return folder
        foreign = foreign_content(file.read(4096))
        if foreign:
            raise UnusableFileError(path, foreign)
        file.seek(0)
        try:
            with new_folder(folder) as new:
                _extract(path, file, state.st_size, new)
                write_json(new / ARCHIVE_RECORD, archive)
        except FileExistsError as error:
            raise UserError(
                f"{path}: it holds {Path(error.filename).name} twice, so it cannot be unpacked; unpack it yourself and "
                "name the folder as the source."
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: it cannot be unpacked beside itself ({reason_of(error)}); unpack it elsewhere and name the "
                "folder as the source."
            ) from None
    return folder


def _remove_suffix(name: str) -> str:
    """Return the name of an archive without its suffix."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _refuse_other_folder(path: Path, folder: Path, archive: dict[str, Any]) -> None:
    """Raise UserError if a folder was not unpacked from this archive, as it is now."""
    record = folder / ARCHIVE_RECORD
    if not record.is_file() or read_json(record) != archive:
        raise UserError(
            f"{path}: {folder.name} beside it is not what was unpacked from it; delete or rename that folder, "
            "or name an unpacked release as the source."
        )


# Names of over 256 bytes and other facts stand in headers of their own, which tarfile reads into memory whole.
_LARGEST_HEADER_BYTES = 1 << 20
_HEADERS_BEFORE_A_MEMBER = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Member(tarfile.TarInfo):
    """The header of a member. tarfile takes a damaged header for the end of the archive; this class raises an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Read a block of 512 bytes.

        Raises:
            ReadError: The header is damaged, or announces more than fits into memory.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            is_end = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            if is_end:
                # Two blocks of zeros end an archive, and tarfile expects this error for them.
                raise
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0:
            raise tarfile.ReadError("a file of negative size")
        if member.type in _HEADERS_BEFORE_A_MEMBER and member.size > _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _extract(path: Path, file: BinaryIO, packed_bytes: int, folder: Path) -> None:
    """Unpack an archive into a folder.

    Args:
        path: Path of the archive, for messages.
        file: The archive, at its start.
        packed_bytes: Size of the archive.
        folder: An empty folder.
    """
    from tqdm import tqdm

    bar = tqdm(total=packed_bytes, unit="B", unit_scale=True, desc=f"unpacking {path.name}", leave=False, disable=None)
    try:
        with bar, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as archive:
            for member, place in _list_files(path, archive, packed_bytes):
                if member.size > shutil.disk_usage(folder).free - _HEADROOM_BYTES:
                    raise UserError(
                        f"{path}: no room on this disk to unpack {short_repr(str(place))} ({member.size:,} bytes); "
                        "make room, or unpack it on another disk and name the folder as the source."
                    )
                _write_member(archive, member, folder / place)
                bar.update(file.tell() - bar.n)
            _read_to_end(archive)
    except _DAMAGE as error:
        raise _describe_damage(path, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _describe_damage(path, error) from None


def _read_to_end(archive: tarfile.TarFile) -> None:
    """Read what stands behind the last member, because the packed content is checked against its checksum there."""
    # tarfile sets it to None only for an archive that is closed.
    assert archive.fileobj is not None
    n_behind = 0
    while block := archive.fileobj.read(_BLOCK_BYTES):
        n_behind += len(block)
        if n_behind > _MOST_BYTES_BEHIND_END:
            raise tarfile.ReadError("much more behind its end")


def _describe_damage(path: Path, error: Exception) -> UserError:
    """Return the error that tells a user why an archive cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason.startswith("file could not be opened"):
        reason = "it does not begin as an archive does"
    return UserError(f"{path}: no archive, or broken off ({reason}); download it again.")


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    packed = archive.extractfile(member)
    # Only links and devices have no content, and `_list_files` passes over them.
    assert packed is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as out:
        shutil.copyfileobj(packed, out, _BLOCK_BYTES)


# Sound hardly shrinks when it is packed, and its tables shrink tenfold. What grows more was made to fill disks.
_MOST_GROWTH = 100
_ALWAYS_ALLOWED_BYTES = 1 << 30
# The shortest clip of a release takes some kilobytes.
_FEWEST_BYTES_OF_A_FILE = 100
_ALWAYS_ALLOWED_FILES = 10_000
# Folders within folders.
_DEEPEST = 50


def _list_files(
    path: Path, archive: tarfile.TarFile, packed_bytes: int
) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Yield the regular files of an archive, with the place of each inside the folder.

    Raises:
        UserError: A name leads outside, or the archive holds more than one of its size can.
    """
    most_bytes = max(_ALWAYS_ALLOWED_BYTES, _MOST_GROWTH * packed_bytes)
    most_members = _ALWAYS_ALLOWED_FILES + packed_bytes // _FEWEST_BYTES_OF_A_FILE
    n_members = 0
    n_bytes = 0
    read_to = -1
    while (member := archive.next()) is not None:
        # A release of millions of clips would fill gigabytes of memory, and tarfile documents no way to forget members.
        archive.members.clear()  # type: ignore[attr-defined]
        n_members += 1
        n_bytes += max(0, member.size)
        if n_members > most_members or n_bytes > most_bytes:
            raise UserError(
                f"{path}: its {packed_bytes:,} bytes unpack to over {min(n_bytes, most_bytes):,} bytes and "
                f"{n_members:,} files, as those of no release of speech do; do not trust this archive. If you trust "
                "it, unpack it yourself and name the folder as the source."
            )
        if member.size < 0 or archive.offset <= read_to:
            raise tarfile.ReadError("a file that ends before it begins")
        read_to = archive.offset
        place = _check_place(path, member.name)
        if member.isfile():
            yield member, place


def _check_place(path: Path, name: str) -> PurePosixPath:
    """Return the place of a member inside the folder.

    Args:
        path: Path of the archive, for messages.
        name: Name of the member.

    Raises:
        UserError: The name leads out of the folder, or too deep into it.
    """
    place = PurePosixPath(name.replace("\\", "/"))
    has_drive = ":" in name.split("/")[0]
    if place.is_absolute() or ".." in place.parts or "\0" in name or has_drive:
        raise UserError(f"{path}: {short_repr(name)} in it leads out of the folder; do not trust this archive.")
    if len(place.parts) > _DEEPEST:
        raise UserError(f"{path}: {short_repr(name)} in it is more than {_DEEPEST} folders deep.")
    return place
