"""Which column means what, and how the values of a table become a Row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from whisper_peft.data.addresses import locate_sound
from whisper_peft.data.cues import MOST_S
from whisper_peft.data.rows import Row
from whisper_peft.data.segments import find_fault, read_cell
from whisper_peft.data.text import join_segments, language_code, names_no_language
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr

# The usual names of the columns by their meaning, the most telling name first.
_USUAL_NAMES = {
    "audio": ("audio", "file_name", "file", "path", "audio_filepath", "audio_path", "wav", "filename", "audio_file"),
    "text": ("transcription", "text", "sentence", "transcript", "transcription_text", "normalized_text"),
    "language": ("language", "lang", "locale"),
    "start_s": ("start_s", "start", "begin", "offset"),
    "end_s": ("end_s", "end"),
    "no_speech": ("no_speech",),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "segments": ("segments",),
}
# These are read only where no column has one of the usual names of a language.
_LANGUAGE_CODE_NAMES = ("language_code", "lang_code")
# The meanings that --times ignore passes over.
_TIME_MEANINGS = ("start_s", "end_s", "duration")
# A column of this name is used only if the user names it: in many data sets it holds the sentence or a question.
_PROMPT = "prompt"


class NoPromptColumnError(UserError):
    """A table without the prompt column that the user names. Not all of several sources need to have it."""


@dataclass(frozen=True)
class ColumnOptions:
    """The user's options about the columns of a table.

    Args:
        audio: The column that names or holds the sound. None: one of the usual names.
        text: The column that holds the transcript. None: one of the usual names.
        prompt: The column that holds what was said before each clip. None: there is no such column.
        times: "ignore" passes over the columns with start and end, so that each file is one clip.
    """

    audio: str | None = None
    text: str | None = None
    prompt: str | None = None
    times: str | None = None


def build_row(fields: dict[str, Any], names: tuple[str, ...], audio_folder: str, place: str) -> Row:
    """Build a row from its values.

    Args:
        fields: The values by their meaning. None stands for an empty cell.
        names: The names of the columns, for messages.
        audio_folder: The folder that paths start from, or the name of the Hub data set.
        place: Where the row stands, for messages.

    Raises:
        UserError: A value has the wrong type, or there is no text.
    """
    audio = fields["audio"]
    if audio is None:
        raise UserError("no name of a sound file; write the path of the file.")
    if isinstance(audio, (bool, int, float, list, dict)):
        raise UserError(f"{short_repr(audio)} is no name of a sound file; write the path of the file.")
    if isinstance(audio, str):
        audio = locate_sound(audio, audio_folder)
    no_speech = "no_speech" in fields and _read_flag(fields["no_speech"])
    segments = read_cell(fields.get("segments"))
    if "text" not in fields and not no_speech and not segments:
        raise UserError(_describe_missing_meaning("text", names))
    start_s = _read_seconds(fields.get("start_s")) or 0.0
    end_s = _find_end(fields, start_s)
    length_s = None if end_s is None else end_s - start_s
    speaker = fields.get("speaker")
    language, unknown_language = _read_language(fields.get("language"))
    return Row(
        audio=audio,
        text=_read_text(fields.get("text"), join_segments(segment.text for segment in segments)),
        language=language,
        start_s=start_s,
        end_s=end_s,
        no_speech=no_speech,
        speaker=None if speaker is None else str(speaker),
        place=place,
        segments=segments,
        prompt=_read_text(fields.get("prompt"), ""),
        unknown_language=unknown_language,
        stated_s=_read_stated_length(fields),
        fault=find_fault(segments, length_s),
    )


def find_meanings(names: tuple[str, ...], options: ColumnOptions) -> dict[str, list[int]]:
    """Find the columns for each meaning.

    Args:
        names: The names of the columns.
        options: What the user says about them. A prompt column that is not there is left out: see
            `NoPromptColumnError`.

    Returns:
        For each meaning the places of its columns among `names`, the most telling name first.

    Raises:
        UserError: There is no column for the sound, or not the one that the user names.
    """
    lower = [name.strip().lower() for name in names]
    named = {"audio": options.audio, "text": options.text}
    meanings = {}
    for meaning, usual in _USUAL_NAMES.items():
        column = named.get(meaning)
        if column is None:
            places = _find_places(usual, lower)
        elif column in names:
            places = [names.index(column)]
        else:
            raise UserError(describe_missing_column(meaning, column, names))
        if meaning == "language" and not places:
            places = _find_places(_LANGUAGE_CODE_NAMES, lower)
        if places:
            meanings[meaning] = places
    if "audio" not in meanings:
        raise UserError(_describe_missing_meaning("audio", names))
    if "duration" in lower:
        # NeMo's duration is the length of a piece. In other tables it only repeats how long the file is.
        is_nemo = "audio_filepath" in lower or "offset" in lower
        meanings["duration" if is_nemo else "stated_s"] = [lower.index("duration")]
    if options.prompt is not None and options.prompt in names:
        meanings["prompt"] = [names.index(options.prompt)]
    if options.times == "ignore":
        for meaning in _TIME_MEANINGS:
            meanings.pop(meaning, None)
    return meanings


def _find_places(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Find the columns that have one of the wanted names, in the order of the wanted names."""
    places = []
    for name in wanted:
        places += [index for index, column in enumerate(names) if column == name]
    return places


def find_ignored_prompt(names: tuple[str, ...], options: ColumnOptions) -> int | None:
    """Find the column that is called "prompt" if the user names no prompt column; return its place."""
    lower = [name.strip().lower() for name in names]
    if options.prompt is not None or _PROMPT not in lower:
        return None
    return lower.index(_PROMPT)


def describe_ignored_prompt(place: object, name: str) -> str:
    """Say that a column called "prompt" is ignored, and how to use it."""
    return (
        f"{place}: the column {name!r} is ignored; if it holds what was said before each clip, name it: "
        f"--prompt-column {name}."
    )


def describe_missing_column(meaning: str, column: str, names: tuple[str, ...]) -> str:
    """Say that a column which the user names is not there."""
    return f"no column {short_repr(column)} (data.{meaning}_column); there are {_list_columns(names)}."


def _describe_missing_meaning(meaning: str, names: tuple[str, ...]) -> str:
    """Say that no column has one of the usual names for a meaning."""
    usual = " or ".join(_USUAL_NAMES[meaning])
    return f"no column for the {meaning} ({usual}), only {_list_columns(names)}; name it: data.{meaning}_column."


def _list_columns(names: tuple[str, ...]) -> str:
    return textwrap.shorten(", ".join(map(short_repr, names[:50])), 300, placeholder=" ...")


def pick_value(meaning: str, places: list[int], names: tuple[str, ...], values: list[Any]) -> Any:
    """Pick the value of a row that has this meaning.

    Args:
        meaning: One of our meanings, such as audio or text.
        places: The columns that may have the meaning, by their places.
        names: The names of all columns, for the message.
        values: The values of all columns.

    Returns:
        The first value that is not empty; None if all are empty.

    Raises:
        UserError: Two columns have different values.
    """
    picked = None
    picked_place = -1
    for place in places:
        value = values[place]
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            continue
        if picked is None or (meaning == "language" and _says_no_language(picked)):
            picked = value
            picked_place = place
        elif value != picked and not (meaning == "language" and _agrees_in_language(value, picked)):
            raise UserError(
                f"columns {short_repr(names[picked_place])} and {short_repr(names[place])} could both be the "
                f"{meaning}, and differ; {_remedy_for_two_columns(meaning)}."
            )
    return picked


def _remedy_for_two_columns(meaning: str) -> str:
    if meaning in ("audio", "text"):
        return f"name it: data.{meaning}_column"
    if meaning in _TIME_MEANINGS:
        return "keep one of them, or take each file whole: --times ignore"
    return "keep one of them"


def _read_text(value: Any, otherwise: str) -> str:
    """Read a transcript or a prompt. Numbers are spelt as they stand.

    Args:
        value: The cell.
        otherwise: The text that an empty cell stands for.
    """
    # pandas writes an empty cell as "not a number".
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return otherwise
    if isinstance(value, (bool, list, dict, bytes)):
        raise UserError(f"the text is no string, but {short_repr(value)}; write it as a string.")
    return str(value)


def _read_language(value: Any) -> tuple[str | None, str | None]:
    """Read a cell as a pair: Whisper's code, or the cell's own word if Whisper does not know the language.

    Both are None if the cell names no language.
    """
    if value is None:
        return None, None
    if isinstance(value, str):
        return _look_up_language(value.strip())
    return _look_up_language(short_repr(value))


# Rows name the same few languages again and again.
@lru_cache(maxsize=10_000)
def _look_up_language(name: str) -> tuple[str | None, str | None]:
    if names_no_language(name):
        return None, None
    try:
        return language_code(name), None
    except UserError:
        return None, name


def _says_no_language(value: Any) -> bool:
    return _read_language(value) == (None, None)


def _agrees_in_language(value: Any, picked: Any) -> bool:
    """Tell whether a cell names no language, or the same as another cell in other words ("Hindi", "hi-IN")."""
    return _says_no_language(value) or _read_language(value) == _read_language(picked)


def _find_end(fields: dict[str, Any], start_s: float) -> float | None:
    """Find where the clip ends in its file: at the stated end, else by its duration; None at the end of the file."""
    end_s = _read_seconds(fields.get("end_s"))
    if end_s is not None:
        return end_s
    duration_s = _read_seconds(fields.get("duration"))
    if duration_s is None:
        return None
    return start_s + duration_s


def _read_seconds(value: Any) -> float | None:
    """Read a time in seconds; None if the cell is empty."""
    if value is None:
        return None
    seconds = math.nan
    if not isinstance(value, bool):
        try:
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):
            # An integer of hundreds of digits overflows.
            seconds = math.nan
    # The comparison is false for "not a number".
    if not abs(seconds) <= MOST_S:
        raise UserError(f"{short_repr(value)} is no time in seconds; write a number such as 2.5.")
    return seconds


def _read_stated_length(fields: dict[str, Any]) -> float | None:
    """Read the length that a table states for a clip, in seconds. It is only a hint, so nothing is refused for it."""
    stated = fields.get("stated_s")
    # Beside an end, NeMo's duration states once more how long the clip is.
    if fields.get("end_s") is not None and "stated_s" not in fields:
        stated = fields.get("duration")
    try:
        return _read_seconds(stated)
    except UserError:
        return None


def _read_flag(value: Any) -> bool:
    word = str(value).lower()
    if value is None or word in ("false", "0", "no"):
        return False
    if word in ("true", "1", "yes"):
        return True
    raise UserError(f"no_speech is {short_repr(value)}; write true or false.")
