"""Which column means what, and a row of values as a Row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from whisper_peft.data.addresses import placed_sound
from whisper_peft.data.rows import Row
from whisper_peft.data.segments import find_fault, read_cell
from whisper_peft.data.subtitles import MOST_S
from whisper_peft.data.text import join_segments, language_code, names_no_language
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr

_COLUMNS = {
    "audio": ("audio", "file_name", "file", "path", "audio_filepath", "audio_path", "wav", "filename", "audio_file"),
    "text": ("transcription", "text", "sentence", "transcript", "transcription_text", "normalized_text"),
    "language": ("language", "lang", "locale"),
    "start_s": ("start_s", "start", "begin", "offset"),
    "end_s": ("end_s", "end"),
    "no_speech": ("no_speech",),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "segments": ("segments",),
}
_LANGUAGE_CODES = ("language_code", "lang_code")  # read where no column is called "language" or the like
_TIMES = ("start_s", "end_s", "duration")
_PROMPT = "prompt"  # a column of this name is used only when the user names it


class NoPromptColumnError(UserError):
    """A table without the prompt column that the user names; of several sources not all need to have it."""


@dataclass(frozen=True)
class Columns:
    """What the user says about the columns of a table.

    Args:
        audio: The column that names or holds the sound; None: one of the usual names.
        text: The column of the transcript; likewise.
        prompt: The column of what was said before each clip; None: no column is.
        times: "ignore": the columns with start and end are passed over, and each file is one clip.
    """

    audio: str | None = None
    text: str | None = None
    prompt: str | None = None
    times: str | None = None


def row_of(fields: dict[str, Any], names: tuple[str, ...], audio_folder: str, place: str) -> Row:
    """Build a row from the values by their meaning; None stands for empty.

    Raises:
        UserError: A value is of the wrong type, or there is no text.
    """
    audio = fields["audio"]
    if audio is None:
        raise UserError("no name of a sound file.")
    if isinstance(audio, (bool, int, float, list, dict)):
        raise UserError(f"{short_repr(audio)} is no name of a sound file.")
    no_speech = "no_speech" in fields and _flag(fields["no_speech"])
    segments = read_cell(fields.get("segments"))
    if "text" not in fields and not no_speech and not segments:
        raise UserError(_no_column("text", names))
    start_s = _seconds(fields.get("start_s")) or 0.0
    end_s = _end_of(fields, start_s)
    # NeMo's duration, beside an end, is one more statement of how long the clip is.
    stated = fields.get("stated_s") if fields.get("end_s") is None else fields.get("stated_s", fields.get("duration"))
    speaker = fields.get("speaker")
    language, unknown_language = _language(fields.get("language"))
    return Row(
        audio=placed_sound(audio, audio_folder) if isinstance(audio, str) else audio,
        text=_text(fields.get("text"), join_segments(segment.text for segment in segments)),
        language=language,
        start_s=start_s,
        end_s=end_s,
        no_speech=no_speech,
        speaker=None if speaker is None else str(speaker),
        place=place,
        segments=segments,
        prompt=_text(fields.get("prompt"), ""),
        unknown_language=unknown_language,
        stated_s=_stated(stated),
        fault=find_fault(segments, None if end_s is None else end_s - start_s),
    )


def find_meanings(names: tuple[str, ...], asked: Columns) -> dict[str, list[int]]:
    """Find the columns for each meaning, the most telling name first.

    Args:
        names: The names of the columns.
        asked: What the user says about them. A prompt column that is not there is left out; see `has_prompt`.

    Raises:
        UserError: There is no column for the sound, or not the one that the user names.
    """
    lower = [name.strip().lower() for name in names]
    named = {"audio": asked.audio, "text": asked.text}
    meanings = {}
    for meaning, usual in _COLUMNS.items():
        column = named.get(meaning)
        if column is None:
            found = _places_of(usual, lower)
        elif column in names:
            found = [names.index(column)]
        else:
            raise UserError(missing_column(meaning, column, names))
        if meaning == "language" and not found:
            found = _places_of(_LANGUAGE_CODES, lower)
        if found:
            meanings[meaning] = found
    if "audio" not in meanings:
        raise UserError(_no_column("audio", names))
    if "duration" in lower:
        # NeMo's duration is the length of a piece; elsewhere it only repeats how long the file is.
        is_nemo = "audio_filepath" in lower or "offset" in lower
        meanings["duration" if is_nemo else "stated_s"] = [lower.index("duration")]
    if asked.prompt is not None and asked.prompt in names:
        meanings["prompt"] = [names.index(asked.prompt)]
    if asked.times == "ignore":
        meanings = {meaning: found for meaning, found in meanings.items() if meaning not in _TIMES}
    return meanings


def _places_of(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Find the columns that have one of the wanted names, in the order of the wanted names."""
    places = []
    for name in wanted:
        places += [index for index, column in enumerate(names) if column == name]
    return places


def ignored_prompt(names: tuple[str, ...], asked: Columns) -> int | None:
    """Find the column that is merely called "prompt", where the user names none; its place among the names."""
    lower = [name.strip().lower() for name in names]
    if asked.prompt is not None or _PROMPT not in lower:
        return None
    return lower.index(_PROMPT)


def prompt_remark(place: object, name: str) -> str:
    """Say that a column called "prompt" was passed over, and how it would be used."""
    return (
        f"{place}: the column {name!r} is ignored; if it holds what was said before each clip, name it: "
        f"--prompt-column {name}."
    )


def missing_column(meaning: str, column: str, names: tuple[str, ...]) -> str:
    """Say that a column which the user names is not there."""
    return f"no column {short_repr(column)} (data.{meaning}_column); there are {_shown(names)}."


def _no_column(meaning: str, names: tuple[str, ...]) -> str:
    usual = " or ".join(_COLUMNS[meaning])
    return f"no column for the {meaning} ({usual}), only {_shown(names)}; name it: data.{meaning}_column."


def _shown(names: tuple[str, ...]) -> str:
    return textwrap.shorten(", ".join(map(short_repr, names[:50])), 300, placeholder=" ...")


def pick(meaning: str, found: list[int], names: tuple[str, ...], values: list[Any]) -> Any:
    """Pick the value that has this meaning, None if it is empty; two that differ are refused."""
    picked, column = None, ""
    for index in found:
        value = values[index].strip() if isinstance(values[index], str) else values[index]
        if value is None or value == "":
            continue
        if picked is None or (meaning == "language" and _language(picked) == (None, None)):
            picked, column = value, names[index]
        elif value != picked and not (meaning == "language" and _is_no_other_language(value, picked)):
            remedies = {"audio": "name it: data.audio_column", "text": "name it: data.text_column"}
            if meaning in _TIMES:
                remedy = "keep one of them, or take each file whole: --times ignore"
            else:
                remedy = remedies.get(meaning, "keep one of them")
            raise UserError(
                f"columns {short_repr(column)} and {short_repr(names[index])} could both be the {meaning}, and differ; "
                f"{remedy}."
            )
    return picked


def _text(value: Any, otherwise: str) -> str:
    """A transcript or a prompt; numbers are spelt as they stand, and "not a number" is an empty cell of pandas."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return otherwise
    if isinstance(value, (bool, list, dict, bytes)):
        raise UserError(f"the text is no string, but {short_repr(value)}.")
    return str(value)


def _language(value: Any) -> tuple[str | None, str | None]:
    """(Whisper's code, what the row says where Whisper knows no such language); both None where it says nothing."""
    if value is None:
        return None, None
    return _spoken(value.strip() if isinstance(value, str) else short_repr(value))


def _is_no_other_language(value: Any, picked: Any) -> bool:
    """Whether a cell says the same as another one in other words ("Hindi", "hi-IN"), or nothing."""
    return _language(value) in (_language(picked), (None, None))


@lru_cache(maxsize=10_000)
def _spoken(name: str) -> tuple[str | None, str | None]:
    if names_no_language(name):
        return None, None
    try:
        return language_code(name), None
    except UserError:
        return None, name


def _end_of(fields: dict[str, Any], start_s: float) -> float | None:
    end_s = _seconds(fields.get("end_s"))
    if end_s is not None:
        return end_s
    duration_s = _seconds(fields.get("duration"))
    return None if duration_s is None else start_s + duration_s


def _seconds(value: Any) -> float | None:
    """A time in seconds; None where the cell is empty."""
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
        seconds = math.nan
    if not abs(seconds) <= MOST_S:
        raise UserError(f"{short_repr(value)} is no time in seconds.")
    return seconds


def _stated(value: Any) -> float | None:
    """The length that a table states beside its files: only a hint, so that nothing is refused for it."""
    try:
        return _seconds(value)
    except UserError:
        return None


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if value is None or word in ("false", "0", "no"):
        return False
    if word in ("true", "1", "yes"):
        return True
    raise UserError(f"no_speech is {short_repr(value)}; write true or false.")
