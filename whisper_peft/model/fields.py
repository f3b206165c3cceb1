"""The kinds of values that fields of a checkpoint's JSON files may hold, checked before transformers or peft see them.

A table of fields reads like a declaration: `{"d_model": whole(2, 16_384), "use_cache": FLAG}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from whisper_peft.files import UnusableFileError, short_repr

# Larger than the id of any token: the largest vocabulary of a Whisper has 51,866.
MAX_TOKEN_ID = 1_000_000
# Words that a message lists at most.
_MOST_LISTED_CHOICES = 8


@dataclass(frozen=True)
class FieldKind:
    """A kind of values that a field may hold.

    Args:
        wanted: The kind in words, for the message.
        accepts: Tells whether a value is of this kind.
    """

    wanted: str
    accepts: Callable[[object], bool]


def whole(least: int, most: int) -> FieldKind:
    """Accept a whole number from `least` to `most`; true and false are no numbers.

    Example:
        >>> kind = whole(1, 256)
        >>> kind.wanted
        'a whole number from 1 to 256'
        >>> [kind.accepts(value) for value in (32, 0, 32.0, True)]
        [True, False, False, False]
    """
    return FieldKind(
        f"a whole number from {least:,} to {most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def number(least: float, most: float) -> FieldKind:
    """Accept a finite number from `least` to `most`.

    Example:
        >>> kind = number(0.0, 1.0)
        >>> [kind.accepts(value) for value in (0.1, 1, "0.1", float("nan"))]
        [True, True, False, False]
    """

    def accepts(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return least <= value <= most and math.isfinite(value)

    return FieldKind(f"a number from {least:g} to {most:g}", accepts)


def one_of(words: Iterable[str]) -> FieldKind:
    """Accept one of some words.

    Example:
        >>> one_of(("right", "left")).accepts("middle")
        False
    """
    known = tuple(words)
    listed = ", ".join(known[:_MOST_LISTED_CHOICES])
    return FieldKind(f"one of {listed}", lambda value: isinstance(value, str) and value in known)


def short_text(most_characters: int = 1000) -> FieldKind:
    """Accept a text of at most some characters."""
    return FieldKind(
        f"a text of at most {most_characters:,} characters",
        lambda value: isinstance(value, str) and len(value) <= most_characters,
    )


def list_of(kind: FieldKind, most: int = MAX_TOKEN_ID) -> FieldKind:
    """Accept a list of at most some items, all of one kind.

    Example:
        >>> kind = list_of(whole(0, 9), most=3)
        >>> [kind.accepts(value) for value in ([], [1, 2], [1, -2], [1, 2, 3, 4])]
        [True, True, False, False]
    """
    return FieldKind(
        f"a list, each item {kind.wanted}",
        lambda value: isinstance(value, (list, tuple)) and len(value) <= most and all(map(kind.accepts, value)),
    )


def map_of(kind: FieldKind) -> FieldKind:
    """Accept an object whose values are all of one kind.

    Example:
        >>> map_of(whole(0, 9)).accepts({"a": 1, "b": 2})
        True
    """
    return FieldKind(
        f"an object, each value {kind.wanted}",
        lambda value: isinstance(value, dict) and all(map(kind.accepts, value.values())),
    )


def either(*kinds: FieldKind) -> FieldKind:
    """Accept a value of any of some kinds.

    Example:
        >>> either(whole(0, 9), list_of(whole(0, 9))).wanted
        'a whole number from 0 to 9 or a list, each item a whole number from 0 to 9'
    """
    return FieldKind(
        " or ".join(kind.wanted for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds)
    )


FLAG = FieldKind("true or false", lambda value: isinstance(value, bool))
NULL = FieldKind("null", lambda value: value is None)
OBJECT = FieldKind("an object", lambda value: isinstance(value, dict))
TOKEN = whole(0, MAX_TOKEN_ID)


def optional(kind: FieldKind) -> FieldKind:
    """Accept null as well as a kind.

    Example:
        >>> optional(FLAG).wanted
        'true or false or null'
    """
    return either(kind, NULL)


def check_fields(place: str | Path, page: Mapping[str, object], kinds: Mapping[str, FieldKind]) -> None:
    """Check the fields of a page against their kinds; a field may be missing.

    Args:
        place: The file, for the message.
        page: Its content.
        kinds: The kind of each known field.

    Raises:
        UnusableFileError: A field holds something else. The message names it.

    Example:
        >>> check_fields("config.json", {"d_model": 384}, {"d_model": whole(2, 16_384), "use_cache": FLAG})
        >>> check_fields("config.json", {"d_model": "wide"}, {"d_model": whole(2, 16_384)})
        Traceback (most recent call last):
            ...
        whisper_peft.files.UnusableFileError: config.json: d_model is 'wide'; expected a whole number from 2 to 16,384.
    """
    for name, kind in kinds.items():
        if name in page and not kind.accepts(page[name]):
            refuse_field(place, name, page[name], f"expected {kind.wanted}")


def refuse_field(place: str | Path, name: str, value: object, why: str) -> NoReturn:
    """Refuse the value of a field.

    Args:
        place: The file.
        name: The field.
        value: What it holds.
        why: What is wrong with it, or what was expected.

    Raises:
        UnusableFileError: Always.
    """
    raise UnusableFileError(place, f"{name} is {short_repr(value)}; {why}")
