"""The fields of a checkpoint's JSON files: what each may hold, before transformers or peft sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.files import UnusableFileError, short_repr

MAX_TOKEN_ID = 1_000_000  # no Whisper vocabulary comes near it


@dataclass(frozen=True)
class Kind:
    """What a field may hold.

    Args:
        wanted: The kind in words, for the message.
        accepts: Tells whether a value is of this kind.
    """

    wanted: str
    accepts: Callable[[object], bool]


def whole(least: int, most: int) -> Kind:
    """Accept a whole number within limits; true and false are none."""
    return Kind(
        f"a whole number from {least:,} to {most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def number(least: float, most: float) -> Kind:
    """Accept a finite number within limits."""

    def accepts(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return least <= value <= most and math.isfinite(value)

    return Kind(f"a number from {least:g} to {most:g}", accepts)


def one_of(words: Iterable[str]) -> Kind:
    """Accept one of some words."""
    known = tuple(words)
    shown = ", ".join(known[:8])
    return Kind(f"one of {shown}", lambda value: isinstance(value, str) and value in known)


def text(most_characters: int = 1000) -> Kind:
    """Accept a text that is not absurdly long."""
    return Kind(
        f"a text of at most {most_characters:,} characters",
        lambda value: isinstance(value, str) and len(value) <= most_characters,
    )


def list_of(kind: Kind, most: int = MAX_TOKEN_ID) -> Kind:
    """Accept a list whose items are all of one kind."""
    return Kind(
        f"a list, each item {kind.wanted}",
        lambda value: isinstance(value, (list, tuple)) and len(value) <= most and all(map(kind.accepts, value)),
    )


def map_of(kind: Kind) -> Kind:
    """Accept an object whose values are all of one kind."""
    return Kind(
        f"an object, each value {kind.wanted}",
        lambda value: isinstance(value, dict) and all(map(kind.accepts, value.values())),
    )


def either(*kinds: Kind) -> Kind:
    """Accept a value of any of some kinds."""
    return Kind(" or ".join(kind.wanted for kind in kinds), lambda value: any(kind.accepts(value) for kind in kinds))


def exactly(value: object, wanted: str) -> Kind:
    """Accept one value."""
    return Kind(wanted, lambda found: found is value)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NULL = exactly(None, "null")
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TOKEN = whole(0, MAX_TOKEN_ID)


def optional(kind: Kind) -> Kind:
    """Accept null, too."""
    return either(kind, NULL)


def check_fields(place: str | Path, page: Mapping[str, object], kinds: Mapping[str, Kind]) -> None:
    """Hold the fields of a page against their kinds; fields that are not there are fine.

    Args:
        place: The file, for the message.
        page: Its content.
        kinds: The kind of each known field.

    Raises:
        UnusableFileError: A field holds something else. The message names it.
    """
    for name, kind in kinds.items():
        if name in page and not kind.accepts(page[name]):
            refuse_field(place, name, page[name], f"expected {kind.wanted}")


def refuse_field(place: str | Path, name: str, value: object, why: str) -> None:
    """Refuse the value of a field.

    Raises:
        UnusableFileError: Always.
    """
    raise UnusableFileError(place, f"{name} is {short_repr(value)}; {why}")
