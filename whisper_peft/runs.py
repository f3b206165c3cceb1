"""The run folder: the name of every file in it, folders that appear whole, and checkpoints that a run resumes from.

runs/x/
    recipe.yaml        the resolved recipe
    run.json           what the run was made with, and its figures
    metrics.jsonl      loss, learning rate and evaluations by step
    left_out.jsonl     the clips that could not be used, with the reasons
    transcripts.jsonl  the scored clips
    checkpoints/       the newest and the best
    adapter/, model/   the result: one of the two
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

# The resolved recipe of the run.
RECIPE = "recipe.yaml"
# The facts about the run: settings, versions, data, figures.
FACTS = "run.json"
# Loss, learning rate and evaluations by step.
METRICS = "metrics.jsonl"
# The clips that could not be used, with the reasons. An evaluation writes this file, too.
LEFT_OUT = "left_out.jsonl"
# The scored clips, each with its reference and its prediction. An evaluation writes this file, too.
TRANSCRIPTS = "transcripts.jsonl"
# In a merged folder or an export: how the model was trained. Its card is written from it.
PROVENANCE = "whisper_peft.json"
CHECKPOINTS = "checkpoints"
# The result of a run: one of these two.
ADAPTER = "adapter"
MODEL = "model"
# Files in a checkpoint. COMPLETE is written after everything else and marks the checkpoint as whole.
COMPLETE = "complete.json"
# Where the streamed sources are.
STREAM = "stream.json"
# Which block of clips the next step is in, and how many clips the run has met.
STEPS = "steps.json"
# Longest name of a new file or folder, in bytes. File systems allow 255, and a temporary name is longer.
LONGEST_NAME = 230


def refuse_existing(path: Path, remedy: str = "choose another place") -> None:
    """Refuse a place where something exists or where nothing can be made.

    Args:
        path: The place of a new file or folder.
        remedy: What the user can do if something exists there.

    Raises:
        UserError: The place is taken, its name is too long, or the folder above it cannot be written to.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(f"{short_repr(str(path))}: a name too long for a new file; choose a shorter one.")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; {remedy}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{path}: cannot be made in {above}; name another place.")


def refuse_odd_name(path: Path) -> None:
    """Refuse a folder whose name is not UTF-8. The libraries that write weights cannot write there.

    Raises:
        UserError: The name of the folder, or of a folder above it, has bytes that are not UTF-8.
    """
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{path.absolute()}: the name is not UTF-8, and weights cannot be written there; name another folder."
        ) from None


@contextlib.contextmanager
def new_folder(path: str | Path, remedy: str = "choose another place") -> Iterator[Path]:
    """Make a folder that appears whole or not at all.

    Args:
        path: The place of the new folder.
        remedy: What the user can do if something exists there.

    Yields:
        A temporary folder beside `path`. It is renamed to `path` when the body ends without an exception, else removed.

    Raises:
        UserError: The place is taken, or nothing can be made there.
    """
    path = Path(path)
    refuse_existing(path, remedy)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); name another place.") from None
    try:
        yield folder
        # mkdtemp gives 0700 and safetensors 0600, as for secrets. Others should be able to read the result.
        folder.chmod(0o755)
        for file in folder.rglob("*"):
            file.chmod(file.stat().st_mode | 0o444)
        refuse_existing(path, remedy)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(path: str | Path, remedy: str = "choose another place") -> Iterator[Path]:
    """Make a file that appears whole or not at all.

    Args:
        path: The place of the new file.
        remedy: What the user can do if something exists there.

    Yields:
        A temporary file beside `path`. It is renamed to `path` when the body ends without an exception, else removed.

    Raises:
        UserError: The place is taken, or nothing can be made there.
    """
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
        # mkstemp gives 0600, as for secrets.
        part.chmod(0o644)
        refuse_existing(path, remedy)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file. A reader sees the old file or the new one, never half of it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    page = printable_json(json.dumps(content, indent=2, ensure_ascii=False))
    beside.write_text(page + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: str | Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        UserError: The file is missing, is not JSON, or holds something else than an object.
    """
    return read_json_file(path)


def append_jsonl(path: str | Path, *records: dict) -> None:
    """Append records to a .jsonl file, one JSON object a line."""
    # A file name that is not UTF-8 has halves of surrogate pairs, which are escaped in JSON.
    lines = "".join(printable_json(json.dumps(record, ensure_ascii=False)) + "\n" for record in records).encode("utf-8")
    with Path(path).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # A kill may have cut the last line short. It must not swallow the next one.
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        file.write(lines)


def read_jsonl(path: str | Path) -> list[dict]:
    """Read the records of a .jsonl file of ours. A line that a kill cut short is dropped.

    Returns:
        The records; none if there is no such file.
    """
    records = []
    if Path(path).exists():
        # A transcript may hold other line breaks, so splitlines would cut it.
        for line in Path(path).read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def rewrite_jsonl(path: str | Path, records: list[dict]) -> None:
    """Replace all records of a .jsonl file. A reader sees the old file or the new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.unlink(missing_ok=True)
    beside.touch()
    append_jsonl(beside, *records)
    os.replace(beside, path)


def is_run(path: str | Path) -> bool:
    """Tell whether a folder is a run folder."""
    return (Path(path) / FACTS).is_file() and (Path(path) / RECIPE).is_file()


def update_facts(run: Path, **facts: object) -> dict:
    """Add facts to run.json, and return all that it holds."""
    path = run / FACTS
    content = read_json(path) if path.exists() else {}
    content = {**content, **facts}
    write_json(path, content)
    return content


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step that a checkpoint was written after.

    >>> checkpoint_step(Path("runs/hindi/checkpoints/checkpoint-40"))
    40
    """
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(run: str | Path) -> list[Path]:
    """List the checkpoints of a run that were written to the end, oldest first."""
    marks = Path(run, CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")
    return sorted((mark.parent for mark in marks), key=checkpoint_step)


def mark_complete(checkpoint: Path, **facts: object) -> None:
    """Mark a checkpoint as complete, after all its files are on the disk. A run resumes from marked ones only."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    write_json(checkpoint / COMPLETE, facts)


def verify_checkpoint(checkpoint: Path, remedy: str) -> None:
    """Compare the files of a checkpoint with the sizes and checksums in its mark.

    Files that the user added are passed over. A mark of an earlier version has no checksums; its files are not checked.

    Args:
        checkpoint: A checkpoint that is marked complete.
        remedy: What the user can do if a file has changed.

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
    """Return the sizes and checksums of a checkpoint's files by their names, for its mark."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != COMPLETE)
    return {file.relative_to(checkpoint).as_posix(): _checksum(file) for file in files}


def _checksum(file: Path) -> str:
    """Return size and CRC-32 of a file. They reveal damage, not forgery, and cost no more than reading the file."""
    checksum = 0
    size = 0
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
            size += len(chunk)
    return f"{size} bytes, CRC-32 {checksum:08x}"


def trained_to_the_end(checkpoint: Path, steps: int) -> bool:
    """Tell whether training ended with this checkpoint: at the last of `steps` steps, or by early stopping."""
    return read_json(checkpoint / COMPLETE).get("last_of") == steps


def remove_old_checkpoints(run: Path, keep: int, best: Path | None) -> None:
    """Remove all complete checkpoints but the `keep` newest ones and the best one."""
    for checkpoint in complete_checkpoints(run)[:-keep]:
        if best is None or checkpoint.name != best.name:
            # The mark goes first: half a checkpoint must not look whole.
            (checkpoint / COMPLETE).unlink()
            shutil.rmtree(checkpoint)
