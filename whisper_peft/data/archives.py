"""A packed release, as it was downloaded, unpacked beside itself once; nothing in it gets outside that folder."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, foreign_content, open_file, reason_of, short_repr
from whisper_peft.runs import new_folder, read_json, write_json

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar")
UNPACKED = ".unpacked"
MARK = "whisper_peft.json"  # written last into the folder: which archive it is of
_HEADROOM_BYTES = 1 << 28  # of the disk, left alone
# Sound hardly shrinks when it is packed, and its tables shrink tenfold. What grows more was made to fill disks.
_MOST_GROWTH = 100
_ALWAYS_ALLOWED_BYTES = 1 << 30
# The shortest clip of a release takes some kilobytes.
_FEWEST_BYTES_OF_A_FILE = 100
_ALWAYS_ALLOWED_FILES = 10_000
_DEEPEST = 50  # folders within folders
_MOST_BEHIND_THE_END = 1 << 24  # tar fills its last record up with some kilobytes
_BLOCK_BYTES = 1 << 20
# Names of over 256 bytes and other facts stand in headers of their own, which tarfile reads into memory whole.
_LARGEST_HEADER_BYTES = 1 << 20
_HEADERS_BEFORE_A_MEMBER = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# What the modules that unpack raise over damaged content. An OSError with a number is of the disk.
_DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,  # tarfile reads headers that announce headers by calling itself
)


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is a packed release."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(path: Path) -> Path:
    """Unpack an archive into `<name>.unpacked` beside it, unless that was done before.

    Only files and folders come out; links and devices are passed over. The folder appears whole or not at all.

    Returns:
        The folder.

    Raises:
        UserError: It is no archive, is damaged or broken off, a name in it leads outside, there is no room for it, or
            it holds far more than such a file can.
    """
    stem = next(path.name[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix))
    folder = path.with_name(stem + UNPACKED)
    with open_file(path) as file:
        state = os.fstat(file.fileno())
        archive = {"archive": path.name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
        if folder.exists():
            if not (folder / MARK).is_file() or read_json(folder / MARK) != archive:
                raise UserError(
                    f"{path}: {folder.name} beside it is not what was unpacked from it; delete or rename that folder, "
                    "or name an unpacked release as the source."
                )
            return folder
        foreign = foreign_content(file.read(4096))
        if foreign:
            raise UnusableFileError(path, foreign)
        file.seek(0)
        try:
            with new_folder(folder) as new:
                _extract(path, file, state.st_size, new)
                write_json(new / MARK, archive)
        except FileExistsError as error:
            raise UserError(f"{path}: {Path(error.filename).name} is twice in it; it cannot be unpacked.") from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be unpacked beside itself ({reason_of(error)}); unpack it elsewhere and name the "
                "folder as the source."
            ) from None
    return folder


class _Member(tarfile.TarInfo):
    """The header of a member; a damaged one is an error and not the end of the archive, as it is for tarfile."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Member:
        """Read a block of 512 bytes.

        Raises:
            ReadError: It is damaged, or announces more than fits into memory.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # two blocks of zeros are the end
            raise tarfile.ReadError(str(error)) from None
        if member.size < 0:
            raise tarfile.ReadError("a file of negative size")
        if member.type in _HEADERS_BEFORE_A_MEMBER and member.size > _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _extract(path: Path, file: BinaryIO, packed_bytes: int, folder: Path) -> None:
    """Unpack into a folder.

    Args:
        path: Of the archive, for messages.
        file: The archive, at its start.
        packed_bytes: Its size.
        folder: An empty folder.
    """
    from tqdm import tqdm

    bar = tqdm(total=packed_bytes, unit="B", unit_scale=True, desc=f"unpacking {path.name}", leave=False, disable=None)
    try:
        with bar, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as archive:
            for member, place in _files(path, archive, packed_bytes):
                if member.size > shutil.disk_usage(folder).free - _HEADROOM_BYTES:
                    raise UserError(
                        f"{path}: no room on this disk to unpack {short_repr(str(place))} ({member.size:,} bytes)."
                    )
                _write(archive, member, folder / place)
                bar.update(file.tell() - bar.n)
            # What is packed is held against its checksum at its very end.
            n_behind = 0
            while block := archive.fileobj.read(_BLOCK_BYTES):
                n_behind += len(block)
                if n_behind > _MOST_BEHIND_THE_END:
                    raise tarfile.ReadError("much more behind its end")
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason.startswith("file could not be opened"):
        reason = "it does not begin as an archive does"
    return UserError(f"{path}: no archive, or broken off ({reason}); download it again.")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    packed = archive.extractfile(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as out:
        shutil.copyfileobj(packed, out, _BLOCK_BYTES)


def _files(path: Path, archive: tarfile.TarFile, packed_bytes: int) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
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
        archive.members.clear()  # a release of millions of clips would fill gigabytes
        n_members += 1
        n_bytes += max(0, member.size)
        if n_members > most_members or n_bytes > most_bytes:
            raise UserError(
                f"{path}: {packed_bytes:,} bytes that unpack to over {min(n_bytes, most_bytes):,} bytes and "
                f"{n_members:,} files: no release of speech does; do not trust this archive. If you do, unpack it "
                "yourself and name the folder as the source."
            )
        if member.size < 0 or archive.offset <= read_to:
            raise tarfile.ReadError("a file that ends before it begins")
        read_to = archive.offset
        place = PurePosixPath(member.name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or "\0" in member.name or ":" in member.name.split("/")[0]:
            raise UserError(
                f"{path}: {short_repr(member.name)} in it leads out of the folder; do not trust this archive."
            )
        if len(place.parts) > _DEEPEST:
            raise UserError(f"{path}: {short_repr(member.name)} in it is more than {_DEEPEST} folders deep.")
        if member.isfile():
            yield member, place
