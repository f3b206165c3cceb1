"""The types that columns of a typed table may have; a column of another type is refused before any row is read."""

from __future__ import annotations

import textwrap
from typing import Any

from whisper_peft.errors import UserError
from whisper_peft.files import printable

_TEXTS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
_NUMBERS = ("int", "uint", "float", "double", "decimal")
# What a column of each meaning must hold, in words for messages. Columns of other meanings are only hints.
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
    """Tell whether reading a cell of this type opens the file or address that it names, as images and videos do."""
    if isinstance(kind, dict):
        return any(opens_addresses(child) for child in kind.values())
    if isinstance(kind, (list, tuple)):
        return any(opens_addresses(child) for child in kind)
    # datasets' lists have the type of their items in this attribute.
    if hasattr(kind, "feature"):
        return opens_addresses(kind.feature)
    return getattr(kind, "decode", False) is True


def refuse_wrong_type(meaning: str, name: str, kind: Any, place: str) -> None:
    """Refuse a column whose type cannot have its meaning.

    Args:
        meaning: One of our meanings, such as audio or text.
        name: The name of the column.
        kind: The type of the column, one of datasets' features.
        place: The table and its first row, for the message.

    Raises:
        UserError: The column has another type.
    """
    if meaning not in _EXPECTED or _fits(meaning, kind):
        return
    remedy = "mend or drop the column"
    if meaning == "audio" and isinstance(kind, dict) and "array" in kind:
        remedy = "these are samples that were decoded before; store the sound files, as {bytes, path}"
    elif meaning in ("audio", "text"):
        remedy = f"name another column: data.{meaning}_column"
    raise UserError(f"{place}: column {name!r} holds {_name_type(kind)}, not {_EXPECTED[meaning]}; {remedy}.")


def _fits(meaning: str, kind: Any) -> bool:
    """Tell whether a column of this type can have this meaning."""
    if meaning == "audio":
        return _is_sound_or_path(kind)
    if _has_type(kind, ("null",)):
        return True
    if meaning in ("start_s", "end_s", "duration"):
        return _has_type(kind, _NUMBERS, _TEXTS)
    if meaning == "no_speech":
        return _has_type(kind, ("bool", "int", "uint"), _TEXTS)
    if meaning == "segments":
        # A list of mappings has two spellings: [{...}], and datasets' own list type. A mapping alone passes here: the
        # message about its first cell shows what to write.
        item = getattr(kind, "feature", None)
        if isinstance(kind, list) and kind:
            item = kind[0]
        return isinstance(item, dict) or isinstance(kind, dict) or _has_type(kind, _TEXTS)
    # Numbers are texts that are spelt as they stand. Labels have a text for each number.
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
    """Tell whether a type is a plain value of one of these groups.

    Args:
        kind: One of datasets' features.
        groups: Names of types, without their number of bits.
    """
    import datasets

    if not isinstance(kind, datasets.Value):
        return False
    name = kind.dtype.partition("(")[0].rstrip("0123456789")
    return any(name in group for group in groups)


def _name_type(kind: Any) -> str:
    """Name a type in a message."""
    if isinstance(getattr(kind, "dtype", None), str):
        return kind.dtype
    return textwrap.shorten(printable(kind), 80, placeholder=" ...")
