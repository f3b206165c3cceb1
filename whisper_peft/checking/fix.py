"""Cleaned manifests: bad clips are left out, texts get one form, and moved texts go back where that is certain."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.checking.checks import CheckedData
from whisper_peft.checking.findings import KINDS, SourceRows, mark_unprintable
from whisper_peft.checking.report import FixResult
from whisper_peft.checking.texts import without_markup
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError

# Kinds of findings for which a row is left out: by what is wrong with its sound, its text, and both together.
BAD_SOUND = ("times-elsewhere", "missing", "unreadable", "truncated", "over-window", "silence", "wrong-rate")
BAD_TEXT = ("bad-segments", "unknown-language", "over-token-limit", "empty-text", "wrong-script", "broken-characters")
BAD_PAIR = ("two-texts", "unlikely-text", "too-much-text", "too-little-text")
# Kinds that are noted for the second of two rows only.
TWICE = ("duplicate-audio", "duplicate-row")
# The list of changes, and the folder for sounds that were inside a table.
CHANGES = "changes.jsonl"
SOUND = "sound"
_OTHER_OUTPUT = "name another --fix"


@dataclass(frozen=True)
class FixedRow:
    """The decision about a row: kept, changed or left out.

    Attributes:
        line: Its line in the cleaned manifest; None if it is left out.
        change: What was done with it; None if nothing was.
    """

    line: dict | None
    change: dict | None


@dataclass(frozen=True)
class FixPaths:
    """The places of the cleaned manifests.

    Attributes:
        output: What the user named: a .jsonl file or a folder.
        folder: Folder of the manifests.
        names: File name of each source's manifest.
        changes: Path of the list of changes.
    """

    output: Path
    folder: Path
    names: list[str]
    changes: Path


def write_fixed_manifests(checked: CheckedData, output: Path) -> FixResult:
    """Write manifests of the good clips, and a list of what was changed and left out. The sources stay as they are.

    Args:
        checked: The sources with what was found.
        output: A new .jsonl file for one source, otherwise a new folder with a manifest for each source.

    Returns:
        Where the files are, and how many rows were kept, changed and left out.

    Raises:
        UserError: There is something at `output`, or `output` is a file although there are several sources, or
            although a source has its sound inside.
    """
    paths = _choose_paths(checked.sources, output)
    manifests: list[list[dict]] = []
    changes: list[dict] = []
    n_changed = 0
    n_left_out = 0
    for source, listed in enumerate(checked.sources):
        lines = []
        for number, row in enumerate(listed.rows):
            fixed = _fix_row(checked, source, number, row)
            if fixed.line is not None:
                lines.append(fixed.line)
            if fixed.change is None:
                continue
            changes.append(
                {"source": listed.name, "row": number, "place": mark_unprintable(row.place), **fixed.change},
            )
            if fixed.line is None:
                n_left_out += 1
            else:
                n_changed += 1
        manifests.append(lines)
    _write_files(paths, manifests, changes)
    return FixResult(
        manifests=[str(paths.folder / name) for name in paths.names],
        changes=str(paths.changes),
        kept=sum(len(lines) for lines in manifests),
        changed=n_changed,
        left_out=n_left_out,
    )


def _choose_paths(sources: Sequence[SourceRows], output: Path) -> FixPaths:
    if output.suffix != ".jsonl":
        return FixPaths(output, output, _choose_names(sources), output / CHANGES)
    if len(sources) > 1:
        raise UserError(f"--fix {output}: {len(sources)} sources make as many manifests; name a folder.")
    changes = output.with_name(f"{output.stem}.{CHANGES}")
    runs.refuse_existing(changes, _OTHER_OUTPUT)
    return FixPaths(output, output.parent, [output.name], changes)


def _choose_names(sources: Sequence[SourceRows]) -> list[str]:
    """Choose a file name for each source: that of its split, as far as a file may have it. No two are alike."""
    names: list[str] = []
    for source in sources:
        split = re.split(r"[:/\\]", source.split)[-1]
        stem = re.sub(r"[^\w+-]+", "-", split).strip("-") or "source"
        name = f"{stem}.jsonl"
        number = 1
        while name in names or name == CHANGES:
            number += 1
            name = f"{stem}-{number}.jsonl"
        names.append(name)
    return names


def _leave_out(reason: str, detail: str) -> FixedRow:
    return FixedRow(None, {"left_out": reason, "detail": detail})


def _fix_row(checked: CheckedData, source: int, number: int, row: Row) -> FixedRow:
    """Decide what becomes of a row."""
    text_row = number
    for mispairing in checked.facts[source].mispairings:
        if number in mispairing.doubtful:
            return _leave_out("shifted-texts", "at the edge of a stretch of moved texts")
        if number in mispairing.rows:
            right = mispairing.text_of.get(number)
            if right is None or right in mispairing.doubtful:
                return _leave_out("shifted-texts", "its text is not found for sure")
            text_row = right
    if isinstance(row.audio, str) and row.audio != mark_unprintable(row.audio):
        return _leave_out("name", f"{mark_unprintable(row.audio)}: a manifest is UTF-8, this name is not")
    fault = _worst_fault(checked, source, number, text_row)
    if fault is not None:
        return _leave_out(*fault)
    before = checked.sources[source].rows[text_row].text
    text = without_markup(before)
    if not text and not row.no_speech:
        return _leave_out("markup", f"nothing but markup: {before[:80]}")
    change = None
    if text_row != number:
        change = {"changed": "shifted-texts", "before": row.text, "after": text}
    elif text != " ".join(before.split()):
        change = {"changed": "text", "before": before, "after": text}
    return FixedRow(_manifest_line(row, text, moved=text_row != number), change)


def _worst_fault(checked: CheckedData, source: int, number: int, text_row: int) -> tuple[str, str] | None:
    """Return the worst reason to leave a row out, with its detail.

    Args:
        checked: The sources with what was found.
        source: Number of the source.
        number: Number of the row.
        text_row: Number of the row that its text comes from.
    """
    occurrences = checked.findings.occurrences
    kinds = [kind for kind in (*BAD_SOUND, *BAD_PAIR, *TWICE) if (source, number) in occurrences.get(kind, ())]
    kinds += [kind for kind in BAD_TEXT if (source, text_row) in occurrences.get(kind, ())]
    # A sound that is in two splits leaves the first one, which learns. What is scored stays.
    is_first_split = checked.sources[source].split == checked.sources[0].split
    if is_first_split and (source, number) in occurrences.get("shared-audio", ()):
        kinds.append("shared-audio")
    if not kinds:
        return None
    kind = min(kinds, key=list(KINDS).index)
    faulty_row = text_row if kind in BAD_TEXT else number
    return kind, occurrences[kind][source, faulty_row].detail


def _manifest_line(row: Row, text: str, *, moved: bool) -> dict:
    """Write a row in the keys of our manifests. What it does not have is missing.

    Args:
        row: The row.
        text: Its clean text.
        moved: Whether the text comes from another row. The row's own segments and prompt are wrong then.
    """
    line: dict = {"audio": row.audio, "text": text}
    if row.language:
        line["language"] = row.language
    if row.start_s:
        line["start_s"] = row.start_s
    if row.end_s is not None:
        line["end_s"] = row.end_s
    if row.no_speech:
        line["no_speech"] = True
    if row.speaker is not None:
        line["speaker_id"] = row.speaker
    if row.segments and not moved:
        line["segments"] = [
            {"start": segment.start_s, "end": segment.end_s, "text": without_markup(segment.text)}
            for segment in row.segments
        ]
    if row.prompt and not moved:
        line["prompt"] = without_markup(row.prompt)
    return line


def _write_files(paths: FixPaths, manifests: Sequence[Sequence[dict]], changes: Sequence[dict]) -> None:
    """Write the manifests and the list of changes, each whole or not at all."""
    if paths.output == paths.folder:
        with runs.new_folder(paths.output, _OTHER_OUTPUT) as new:
            for name, lines in zip(paths.names, manifests, strict=True):
                named = [_name_sound(line, new / SOUND, paths.output / SOUND) for line in lines]
                runs.rewrite_jsonl(new / name, named)
            runs.rewrite_jsonl(new / paths.changes.name, list(changes))
        return
    [lines] = manifests
    named = [_name_sound(line, None, paths.output) for line in lines]
    with runs.new_file(paths.output, _OTHER_OUTPUT) as new:
        runs.rewrite_jsonl(new, named)
    with runs.new_file(paths.changes, _OTHER_OUTPUT) as new:
        runs.rewrite_jsonl(new, list(changes))


def _name_sound(line: dict, folder: Path | None, named: Path) -> dict:
    """Return the line with the absolute path of its sound. A sound from inside a table is written to a file.

    Args:
        line: A line whose `audio` is a path, the contents of a file, or a sound inside another file.
        folder: Where sounds are written; None if they cannot be.
        named: The same folder by its final name; without a folder, the output, for the message.
    """
    audio = line["audio"]
    if isinstance(audio, str):
        return {**line, "audio": os.path.abspath(audio)}
    if folder is None:
        raise UserError(f"--fix {named}: the sound is inside the source's own files; name a folder to write it into.")
    sound = audio if isinstance(audio, bytes) else audio.read()
    if isinstance(sound, str):
        return {**line, "audio": os.path.abspath(sound)}
    name = f"{hashlib.blake2b(sound, digest_size=16).hexdigest()}.audio"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(sound)
    return {**line, "audio": str(named.absolute() / name)}
