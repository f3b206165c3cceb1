"""The run folder: its names, atomic creation, and what a resumed run reads.

runs/x/  recipe.yaml · run.json · metrics.jsonl · left_out.jsonl · checkpoints/ · adapter/ or model/
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import printable_json, read_json_file, short_repr

RECIPE, FACTS, METRICS, LEFT_OUT = "recipe.yaml", "run.json", "metrics.jsonl", "left_out.jsonl"
# The scored clips, each with its reference and its prediction; an evaluation has this file, too.
TRANSCRIPTS = "transcripts.jsonl"
LONGEST_NAME = 230  # bytes: file systems take 255, and a temporary name is longer than the final one
CHECKPOINTS, ADAPTER, MODEL = "checkpoints", "adapter", "model"
COMPLETE = "complete.json"  # written into a checkpoint after everything else
STREAM = "stream.json"  # in a checkpoint: where its streamed sources are
STEPS = "steps.json"  # in a checkpoint: which block of clips the next step is in, and how many clips were met


def refuse_existing(path: Path, remedy: str = "choose another place") -> None:
    """Refuse a place where something is already, or where nothing can be made: nothing of the user's is overwritten.

    Raises:
        UserError: It exists, its name is too long, or the folder above it cannot be written to.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(f"{short_repr(str(path))}: a name too long for a new file; choose a shorter one.")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; {remedy}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{path}: cannot be made in {above}; name another place.")


def refuse_odd_name(path: Path) -> None:
    """Refuse a folder for weights whose name is not UTF-8: the libraries that write weights cannot write there.

    Raises:
        UserError: Its name, or that of a folder above it, has bytes that are not UTF-8.
    """
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{path.absolute()}: the name is not UTF-8, and weights cannot be written there; name another folder."
        ) from None


@contextlib.contextmanager
def new_folder(path: str | Path, remedy: str = "choose another place") -> Iterator[Path]:
    """A folder that appears whole or not at all: yields a temporary one beside `path`, renamed on success."""
    path = Path(path)
    refuse_existing(path, remedy)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); name another place.") from None
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's 0700 is for secrets
        for file in folder.rglob("*"):  # and safetensors writes its files as 0600
            file.chmod(file.stat().st_mode | 0o444)
        refuse_existing(path, remedy)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(path: str | Path, remedy: str = "choose another place") -> Iterator[Path]:
    """A file that appears whole or not at all: yields a temporary one's place beside `path`, renamed on success."""
    path = Path(path)
    refuse_existing(path, remedy)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); name another place.") from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # mkstemp's 0600 is for secrets
        refuse_existing(path, remedy)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: object) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    page = printable_json(json.dumps(content, indent=2, ensure_ascii=False))
    beside.write_text(page + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: str | Path) -> dict:
    """Read a JSON object, of ours or of a checkpoint.

    Raises:
        UserError: It is missing, not JSON, or not an object.
    """
    return read_json_file(path)


def append_jsonl(path: str | Path, *records: dict) -> None:
    """Appends records, one JSON object a line."""
    # A file name that is not UTF-8 has halves of surrogate pairs, which are escaped in JSON.
    lines = "".join(printable_json(json.dumps(record, ensure_ascii=False)) + "\n" for record in records).encode("utf-8")
    with Path(path).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill cut the last line short: it must not swallow the next one
                lines = b"\n" + lines
        file.write(lines)


def read_jsonl(path: str | Path) -> list[dict]:
    """The records of a .jsonl file of ours; a line that a kill cut short is dropped."""
    records = []
    if Path(path).exists():
        for line in Path(path).read_bytes().split(b"\n"):  # not splitlines: a transcript may hold other line breaks
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def rewrite_jsonl(path: str | Path, records: list[dict]) -> None:
    """Replaces a .jsonl file as a whole."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    beside.touch()
    append_jsonl(beside, *records)
    os.replace(beside, path)


def is_run(path: str | Path) -> bool:
    """Whether a folder is a run of ours."""
    return (Path(path) / FACTS).is_file() and (Path(path) / RECIPE).is_file()


def update_facts(run: Path, **facts: object) -> dict:
    """Adds to run.json and returns the whole of it."""
    path = run / FACTS
    content = {**(read_json(path) if path.exists() else {}), **facts}
    write_json(path, content)
    return content


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was written after, from its name (checkpoint-<step>)."""
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints that were written to the end, oldest first."""
    found = [path.parent for path in Path(run, CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=checkpoint_step)


def mark_complete(checkpoint: Path, **facts: object) -> None:
    """Says that everything of this checkpoint is on disk; resuming takes only marked ones."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    write_json(checkpoint / COMPLETE, facts)


def verify_checkpoint(checkpoint: Path, remedy: str) -> None:
    """Compare the files of a checkpoint with the sizes and checksums in its mark; files of the user's are passed over.

    Args:
        checkpoint: One that is marked complete. The mark of an earlier version has no checksums, and nothing is said.
        remedy: What to do where a file is not as it was written.

    Raises:
        UserError: A file is gone or damaged.
    """
    if not (checkpoint / COMPLETE).is_file():
        raise UserError(f"{checkpoint}: no such checkpoint any more; {remedy}.")
    known = read_json(checkpoint / COMPLETE).get("files")
    for name, mark in known.items() if isinstance(known, dict) else ():
        file = checkpoint / name
        if not file.is_file():
            raise UserError(f"{file}: gone since the checkpoint was written; {remedy}.")
        if _checksum(file) != mark:
            raise UserError(f"{file}: not as it was written (its checksum is another), so it is damaged; {remedy}.")


def checksums(checkpoint: Path) -> dict[str, str]:
    """Name the files of a checkpoint, each with its size and checksum, for its mark."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != COMPLETE)
    return {file.relative_to(checkpoint).as_posix(): _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    """Size and CRC-32: against damage, not against forgery, and as quick as the disk."""
    checksum, size = 0, 0
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
            size += len(chunk)
    return f"{size} bytes, CRC-32 {checksum:08x}"


def trained_to_the_end(checkpoint: Path, steps: int) -> bool:
    """Whether training was over with this checkpoint, at the last of so many steps or by early stopping."""
    return read_json(checkpoint / COMPLETE).get("last_of") == steps


def remove_old_checkpoints(run: Path, keep: int, best: Path | None) -> None:
    """Removes all but the `keep` newest complete checkpoints and the best one."""
    for checkpoint in complete_checkpoints(run)[:-keep]:
        if best is None or checkpoint.name != best.name:
            (checkpoint / COMPLETE).unlink()  # first the mark: half a checkpoint must not look whole
            shutil.rmtree(checkpoint)
