"""A cleaned manifest of what was checked: bad clips out, texts in one form, moved texts back where that is certain."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from whisper_peft import runs
from whisper_peft.checking.checks import CheckedData
from whisper_peft.checking.findings import KINDS, printable
from whisper_peft.checking.report import FixResult
from whisper_peft.checking.texts import without_markup
from whisper_peft.data.rows import Row
from whisper_peft.errors import UserError

BAD_SOUND = ("times-elsewhere", "missing", "unreadable", "truncated", "over-window", "silence", "wrong-rate")
BAD_TEXT = ("bad-segments", "unknown-language", "over-token-limit", "empty-text", "wrong-script", "broken-characters")
BAD_PAIR = ("two-texts", "unlikely-text", "too-much-text", "too-little-text")
TWICE = ("duplicate-audio", "duplicate-row")
CHANGES, SOUND = "changes.jsonl", "sound"


def write_mended(checked: CheckedData, output: Path) -> FixResult:
    """Write manifests of the clips that are good, and a list of what was changed and left out; the source stays.

    Args:
        checked: what was found.
        output: a new .jsonl file for one source; else a new folder, with a manifest for each.

    Returns:
        Where they are, and how many clips were kept, changed and left out.

    Raises:
        UserError: something is at `output`, or a source has its sound inside and `output` is no folder.
    """
    if output.suffix == ".jsonl":
        if len(checked.parts) > 1:
            raise UserError(f"--fix {output}: {len(checked.parts)} sources make as many manifests; name a folder.")
        names = [output.name]
        changes = output.with_name(f"{output.stem}.{CHANGES}")
        runs.refuse_existing(changes, "name another --fix")
        folder = output.parent
    else:
        names, changes, folder = _names(checked), output / CHANGES, output
    counts = {"kept": 0, "changed": 0, "left_out": 0}
    listed: list[dict] = []
    manifests = []
    for part in range(len(checked.parts)):
        lines = []
        for number, row in enumerate(checked.parts[part].rows):
            line, record = _mended_row(checked, part, number, row)
            if record:
                source, place = checked.parts[part].name, printable(row.place)
                listed.append({"source": source, "row": number, "place": place, **record})
                counts["left_out" if line is None else "changed"] += 1
            if line is not None:
                lines.append(line)
        counts["kept"] += len(lines)
        manifests.append(lines)
    _write(output, folder, names, manifests, changes, listed)
    return FixResult([str(folder / name) for name in names], str(changes), **counts)


def _mended_row(checked: CheckedData, part: int, number: int, row: Row) -> tuple[dict | None, dict | None]:
    """(line of the manifest, what was done to it): either may be missing."""
    findings = checked.findings
    text_row = number
    for one in checked.mispairings[part]:
        if number in one.doubtful:
            return None, {"left_out": "shifted-texts", "detail": "at the edge of a stretch of moved texts"}
        if number in one.rows:
            if number not in one.text_of or one.text_of[number] in one.doubtful:
                return None, {"left_out": "shifted-texts", "detail": "its text is not found for sure"}
            text_row = one.text_of[number]
    if isinstance(row.audio, str) and row.audio != printable(row.audio):
        return None, {"left_out": "name", "detail": f"{printable(row.audio)}: a manifest is UTF-8, this name is not"}
    kinds = [kind for kind in (*BAD_SOUND, *BAD_PAIR, *TWICE) if (part, number) in findings.found.get(kind, ())]
    kinds += [kind for kind in BAD_TEXT if (part, text_row) in findings.found.get(kind, ())]
    if (part, number) in findings.found.get("shared-audio", ()) and checked.parts[part].split == checked.parts[0].split:
        kinds.append("shared-audio")  # what is scored stays, what learns goes
    if kinds:
        kind = min(kinds, key=list(KINDS).index)
        place = (part, text_row if kind in BAD_TEXT else number)
        return None, {"left_out": kind, "detail": findings.found[kind][place][1]}
    before = checked.parts[part].rows[text_row].text
    text = without_markup(before)
    if not text and not row.no_speech:
        return None, {"left_out": "markup", "detail": f"nothing but markup: {before[:80]}"}
    record = None
    if text_row != number:
        record = {"changed": "shifted-texts", "before": row.text, "after": text}
    elif text != " ".join(before.split()):
        record = {"changed": "text", "before": before, "after": text}
    return _line(row, text, moved=text_row != number), record


def _line(row: Row, text: str, *, moved: bool) -> dict:
    """A row in the keys of our manifests; what it does not have is not there."""
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
            {"start": one.start_s, "end": one.end_s, "text": without_markup(one.text)} for one in row.segments
        ]
    if row.prompt and not moved:
        line["prompt"] = without_markup(row.prompt)
    return line


def _write(
    output: Path, folder: Path, names: list[str], manifests: list[list[dict]], changes: Path, listed: list[dict]
) -> None:
    if output == folder:
        with runs.new_folder(output, "name another --fix") as new:
            for name, lines in zip(names, manifests, strict=True):
                runs.rewrite_jsonl(new / name, [_with_path(line, new / SOUND, output / SOUND) for line in lines])
            runs.rewrite_jsonl(new / changes.name, listed)
        return
    lines = [_with_path(line, None, output) for line in manifests[0]]
    with runs.new_file(output, "name another --fix") as new:
        runs.rewrite_jsonl(new, lines)
    with runs.new_file(changes, "name another --fix") as new:
        runs.rewrite_jsonl(new, listed)


def _with_path(line: dict, folder: Path | None, named: Path) -> dict:
    """The line with the absolute path of its sound, which is written into `folder` if it was inside a table."""
    if isinstance(line["audio"], str):
        return {**line, "audio": os.path.abspath(line["audio"])}
    if folder is None:
        raise UserError(f"--fix {named}: the sound is inside the source's own files; name a folder to write it into.")
    sound = line["audio"] if isinstance(line["audio"], bytes) else line["audio"].read()
    if isinstance(sound, str):
        return {**line, "audio": os.path.abspath(sound)}
    name = f"{hashlib.blake2b(sound, digest_size=16).hexdigest()}.audio"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(sound)
    return {**line, "audio": str(named.absolute() / name)}


def _names(checked: CheckedData) -> list[str]:
    """A file name for each source: of its split, as far as a file may be called so, and no two alike."""
    names: list[str] = []
    for part in checked.parts:
        word = re.sub(r"[^\w+-]+", "-", re.split(r"[:/\\]", part.split)[-1]).strip("-") or "source"
        name, number = f"{word}.jsonl", 1
        while name in names or name == CHANGES:
            number += 1
            name = f"{word}-{number}.jsonl"
        names.append(name)
    return names
