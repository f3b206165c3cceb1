"""A cleaned manifest of what was checked: bad clips out, texts in one form, moved texts back where that is certain."""

from __future__ import annotations

from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.checking import Checked
from whisper_peft.data.findings import KINDS
from whisper_peft.data.rows import Row
from whisper_peft.data.wording import without_markup
from whisper_peft.errors import UserError

BAD_SOUND = ("missing", "unreadable", "truncated", "over-window", "silence", "wrong-rate")
BAD_TEXT = ("over-token-limit", "empty-text", "wrong-script", "broken-characters")
BAD_PAIR = ("two-texts", "unlikely-text", "too-much-text", "too-little-text")
TWICE = ("duplicate-audio", "duplicate-row")
CHANGES = "changes.jsonl"


def write_mended(checked: Checked, output: Path) -> dict:
    """Write manifests of the clips that are good, and a list of what was changed and left out; the source stays.

    Args:
        checked: what was found.
        output: a new .jsonl file for one source; else a new folder, with a manifest for each.

    Returns:
        `manifests`, `changes` (the path of the list), and how many clips were `kept`, `changed` and `left_out`.

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
                listed.append({"source": checked.parts[part].name, "row": number, "place": row.place, **record})
                counts["left_out" if line is None else "changed"] += 1
            if line is not None:
                lines.append(line)
        counts["kept"] += len(lines)
        manifests.append(lines)
    _write(output, folder, names, manifests, changes, listed)
    return {"manifests": [str(folder / name) for name in names], "changes": str(changes), **counts}
