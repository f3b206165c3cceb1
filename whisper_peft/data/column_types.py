"""What the columns of a typed table may hold: a column of another type is refused before any row is read."""

from __future__ import annotations

import textwrap
from typing import Any

from whisper_peft.errors import UserError
from whisper_peft.files import printable

_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
_NUMBERS = ("int", "uint", "float", "double", "decimal")
# What a column of each meaning may hold, for messages. Columns of other meanings are only hints.
_EXPECTED = {
    "text": "texts",
    "language": "texts",
    "speaker": "texts",
    "prompt": "texts",
    "audio": "sound files as datasets' Audio, as bytes or as paths",
    "start_s": "seconds",
    "end_s": "seconds",
    "duration": "seconds",
    "no_speech": "true or false",
    "segments": "lists of {start, end, text}",
}


def holds_sound(kind: Any) -> bool:
    """Tell whether a column of this type can hold sound files: datasets' Audio, {"bytes", ...}, or bytes."""
    import datasets

    if isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and "bytes" in kind):
        return True
    return _has_type(kind, _BYTES)


def opens_addresses(kind: Any) -> bool:
    """Tell whether reading a cell of this type opens what its path or address leads to, as of an image or a video."""
    if isinstance(kind, dict):
        return any(opens_addresses(child) for child in kind.values())
    if isinstance(kind, (list, tuple)):
        return any(opens_addresses(child) for child in kind)
    if hasattr(kind, "feature"):  # datasets' lists
        return opens_addresses(kind.feature)
    return getattr(kind, "decode", False) is True


def refuse_wrong_type(meaning: str, name: str, kind: Any, place: str) -> None:
    """Refuse a column whose type cannot have its meaning.

    Args:
        meaning: One of ours, as audio or text.
        name: Of the column.
        kind: Its type, one of datasets' features.
        place: The table and its first row, for the message.

    Raises:
        UserError: It is of another type.
    """
    if meaning not in _EXPECTED or _fits(meaning, kind):
        return
    remedy = (
        f"name another column: data.{meaning}_column" if meaning in ("audio", "text") else "mend or drop the column"
    )
    if meaning == "audio" and isinstance(kind, dict) and "array" in kind:
        remedy = "these are samples that were decoded before; store the sound files, as {bytes, path}"
    raise UserError(f"{place}: column {name!r} holds {_shown(kind)}, not {_EXPECTED[meaning]}; {remedy}.")


def _fits(meaning: str, kind: Any) -> bool:
    if meaning == "audio":
        return _is_sound_or_path(kind)
    if _has_type(kind, ("null",)):
        return True
    if meaning in ("start_s", "end_s", "duration"):
        return _has_type(kind, _NUMBERS, _TEXTS)
    if meaning == "no_speech":
        return _has_type(kind, ("bool", "int", "uint"), _TEXTS)
    if meaning == "segments":
        inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
        return isinstance(inner, dict) or isinstance(kind, dict) or _has_type(kind, _TEXTS)
    return hasattr(kind, "int2str") or _has_type(kind, _NUMBERS, _TEXTS)


def _is_sound_or_path(kind: Any) -> bool:
    import datasets

    if isinstance(kind, datasets.Audio):
        return True
    if isinstance(kind, dict):
        stored = kind.get("bytes")
        path = kind.get("path")
        return (
            (stored is not None or path is not None)
            and (stored is None or _has_type(stored, _BYTES, ("null",)))
            and (path is None or _has_type(path, _TEXTS, ("null",)))
        )
    return _has_type(kind, _TEXTS, _BYTES)


def _has_type(kind: Any, *groups: tuple[str, ...]) -> bool:
    """Tell whether a type is a plain value of one of these: by its name without its number of bits."""
    import datasets

    if not isinstance(kind, datasets.Value):
        return False
    name = kind.dtype.partition("(")[0].rstrip("0123456789")
    return any(name in group for group in groups)


def _shown(kind: Any) -> str:
    if isinstance(getattr(kind, "dtype", None), str):
        return kind.dtype
    return textwrap.shorten(printable(kind), 80, placeholder=" ...")
