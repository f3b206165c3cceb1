"""Which column means what, and a row of values as a Row."""

from __future__ import annotations

import math
import os
import re
import textwrap
from functools import lru_cache
from typing import Any

from whisper_peft.data.rows import Row
from whisper_peft.data.subtitles import as_segment
from whisper_peft.data.text import join_segments, language_code
from whisper_peft.errors import UserError

_COLUMNS = {
    "audio": ("audio", "file_name", "file", "path", "audio_filepath", "audio_path", "wav", "filename"),
    "text": ("transcription", "text", "sentence", "transcript", "transcription_text", "normalized_text"),
    "language": ("language", "lang", "locale"),
    "start_s": ("start_s", "start", "offset"),
    "end_s": ("end_s", "end"),
    "no_speech": ("no_speech",),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "segments": ("segments",),
    "prompt": ("prompt",),
}


def row_of(fields: dict[str, Any], names: tuple[str, ...], audio_folder: str, place: str) -> Row:
    """Build a row from the values by their meaning; None stands for empty."""
    audio, text, speaker = fields["audio"], fields.get("text"), fields.get("speaker")
    no_speech = "no_speech" in fields and _flag(fields["no_speech"])
    if audio is None or isinstance(audio, (bool, int, float, list, dict)):
        raise UserError(f"{'no' if audio is None else repr(audio) + ' is no'} name of a sound file.")
    segments = tuple(as_segment(one, f"segment {n}") for n, one in enumerate(fields.get("segments") or (), start=1))
    if "text" not in fields and not no_speech and not segments:
        raise UserError(_no_column("text", names))
    if isinstance(text, (bool, list, dict)):
        raise UserError(f"the text is no string, but {text!r}.")
    start_s = _seconds(fields.get("start_s")) or 0.0
    end_s = _seconds(fields.get("end_s"))
    if end_s is None and "duration" in fields:
        duration_s = _seconds(fields["duration"])
        end_s = None if duration_s is None else start_s + duration_s
    return Row(
        audio=os.path.join(audio_folder, audio) if isinstance(audio, str) else audio,
        text=join_segments(one.text for one in segments) if text is None else str(text),
        language=_language(str(fields["language"])) if fields.get("language") is not None else None,
        start_s=start_s,
        end_s=end_s,
        no_speech=no_speech,
        speaker=None if speaker is None else str(speaker),
        place=place,
        segments=segments,
        prompt=str(fields.get("prompt") or ""),
    )


def find_meanings(names: tuple[str, ...], named: dict[str, str | None]) -> dict[str, list[int]]:
    """Find the columns for each meaning, the most telling name first."""
    lower = [name.strip().lower() for name in names]
    meanings = {}
    for meaning, usual in _COLUMNS.items():
        column = named.get(meaning)
        if column is None:
            found = [index for name in usual for index, other in enumerate(lower) if other == name]
        elif column in names:
            found = [names.index(column)]
        else:
            raise UserError(f"no column {column!r} (data.{meaning}_column); there are {_shown(names)}.")
        if found:
            meanings[meaning] = found
    if "audio" not in meanings:
        raise UserError(_no_column("audio", names))
    # NeMo's duration is the length of a piece; elsewhere it only repeats how long the file is.
    if "duration" in lower and ("audio_filepath" in lower or "offset" in lower):
        meanings["duration"] = [lower.index("duration")]
    return meanings


def _no_column(meaning: str, names: tuple[str, ...]) -> str:
    usual = " or ".join(_COLUMNS[meaning])
    return f"no column for the {meaning} ({usual}), only {_shown(names)}; name it: data.{meaning}_column."


def _shown(names: tuple[str, ...]) -> str:
    return textwrap.shorten(", ".join(map(repr, names)), 300, placeholder=" ...")


def pick(meaning: str, found: list[int], names: tuple[str, ...], values: list[Any]) -> Any:
    """Pick the value that has this meaning, None if it is empty; two that differ are refused."""
    picked, column = None, ""
    for index in found:
        value = values[index].strip() if isinstance(values[index], str) else values[index]
        if value is None or value == "":
            continue
        if picked is None:
            picked, column = value, names[index]
        elif value != picked:
            remedy = f"name it: data.{meaning}_column" if meaning in ("audio", "text") else "keep one of them"
            raise UserError(
                f"columns {column!r} and {names[index]!r} could both be the {meaning}, and differ; {remedy}."
            )
    return picked


@lru_cache
def _language(name: str) -> str | None:
    """Whisper's code; None for the code of a language that Whisper does not know: the recipe's is taken then."""
    try:
        return language_code(name)
    except UserError:
        if re.fullmatch(r"[a-z]{2,3}([-_]\w+)*", name):
            return None
        raise


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UserError(f"{value!r} is no time in seconds.")
    return seconds


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if value is None or word in ("false", "0", "no"):
        return False
    if word in ("true", "1", "yes"):
        return True
    raise UserError(f"no_speech is {value!r}; write true or false.")
