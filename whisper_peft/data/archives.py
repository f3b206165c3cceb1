"""A packed release, as it was downloaded, unpacked beside itself once; nothing in it gets outside that folder."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from whisper_peft.errors import UserError
from whisper_peft.runs import new_folder, read_json, write_json

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
UNPACKED = ".unpacked"
MARK = "whisper_peft.json"  # written last into the folder: which archive it is of
_HEADROOM_BYTES = 1 << 28  # of the disk, left alone


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is a packed release."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(path: Path) -> Path:
    """Unpack an archive into `<name>.unpacked` beside it, unless that was done before.

    Only files and folders come out; links and devices are passed over. The folder appears whole or not at all.

    Returns:
        The folder.

    Raises:
        UserError: It is no archive or broken off, a name in it leads outside, or there is no room for it.
    """
    stem = next(path.name[: -len(suffix)] for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix))
    folder = path.with_name(stem + UNPACKED)
    state = path.stat()
    archive = {"archive": path.name, "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
    if folder.exists():
        if not (folder / MARK).is_file() or read_json(folder / MARK) != archive:
            raise UserError(
                f"{path}: {folder.name} beside it is not what was unpacked from it; delete or rename that folder, or "
                "name an unpacked release as the source."
            )
        return folder
    try:
        with new_folder(folder) as new:
            _extract(path, new)
            write_json(new / MARK, archive)
    except FileExistsError as error:
        raise UserError(f"{path}: {Path(error.filename).name} is twice in it; it cannot be unpacked.") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be unpacked beside itself ({error.strerror or error}); unpack it elsewhere and name the "
            "folder as the source."
        ) from None
    return folder


def _extract(path: Path, folder: Path) -> None:
    from tqdm import tqdm

    try:
        with (
            open(path, "rb") as file,
            tqdm(
                total=path.stat().st_size, unit="B", unit_scale=True, desc=f"unpacking {path.name}", leave=False
            ) as bar,
            tarfile.open(fileobj=file, mode="r:*") as archive,
        ):
            for member, place in _files(path, archive):
                target = folder / place
                if member.size > shutil.disk_usage(folder).free - _HEADROOM_BYTES:
                    raise UserError(f"{path}: no room on this disk to unpack {place} ({member.size:,} bytes).")
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as out:
                    shutil.copyfileobj(archive.extractfile(member), out)
                bar.update(file.tell() - bar.n)
            while archive.fileobj.read(1 << 20):  # what is packed is held against its checksum at its very end
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: no archive, or broken off ({str(error).splitlines()[0]}); download it again."
        ) from None


def _files(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The regular files of an archive, with the place of each inside the folder."""
    for member in archive:
        place = PurePosixPath(member.name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or "\0" in member.name or ":" in member.name.split("/")[0]:
            raise UserError(f"{path}: {member.name!r} in it leads out of the folder; do not trust this archive.")
        if member.isfile():
            yield member, place
