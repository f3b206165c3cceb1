"""A setting with its rule beside it: what it may be, what it does, and the option that stands for it.

`recipe.py` declares every setting once, with `setting`. From there come the checks of a recipe, the options of the
command line with their help, and the reference tables in docs/recipes.md (written by tools/write_settings_page.py).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from whisper_peft.errors import UserError
from whisper_peft.files import short_repr

_RULE = "rule"
_T = typing.TypeVar("_T")


@dataclass(frozen=True)
class Rule:
    """The rule of a setting: what it does, and which values it may have.

    Attributes:
        help: What the setting does, in plain sentences.
        null: What null stands for, if the setting may be null.
        above: The value must be more than this.
        at_least: The value must be this or more.
        below: The value must be less than this.
        at_most: The value must be this or less. Mostly a bound far above what anybody needs, and far below what would
            exhaust memory or overflow.
        is_share: The value is a share between 0 and 1.
        choices: All values that there are; empty if there are others.
        word: A word that may stand in place of a number, with what it means.
        unit: What the two numbers of a span are called in messages.
        option: The option of the command line that stands for the setting.
        see: The page of docs/ that says more.
    """

    help: str
    null: str | None = None
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    is_share: bool = False
    choices: tuple[str | None, ...] = ()
    word: tuple[str, str] | None = None
    unit: str = "numbers"
    option: str | None = None
    see: str | None = None

    def fault(self, value: object) -> str | None:
        """Say what is wrong with a value of the right type, or return None.

        >>> Rule("Optimizer steps.", above=0).fault(-1)
        'expected more than 0, found -1'
        >>> Rule("The model's task.", choices=("transcribe", "translate")).fault("sing")
        "'sing' is not among transcribe, translate"
        """
        shown = short_repr(value)
        if self.choices and value not in self.choices:
            words = ["null" if choice is None else choice for choice in self.choices]
            return f"{shown} is not among {', '.join(words)}"
        if self.word is not None and isinstance(value, str) and value != self.word[0]:
            return f"expected {self.word[1]} or {self.word[0]}, found {shown}"
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        expected = self._expected(value)
        return None if expected is None else f"expected {expected}, found {shown}"

    def _expected(self, value: float) -> str | None:
        """Name the bound that a number breaks."""
        if self.is_share and not 0 <= value <= 1:
            return "a share between 0 and 1"
        if self.above is not None and value <= self.above:
            return f"more than {self.above:,}"
        if self.at_least is not None and value < self.at_least:
            return f"{self.at_least:,} or more"
        if self.below is not None and value >= self.below:
            return f"less than {self.below:,}"
        if self.at_most is not None and value > self.at_most:
            return f"at most {self.at_most:,}"
        return None


def setting(default: _T, help: str, **rule: typing.Any) -> _T:
    """Declare a setting as a field of a dataclass.

    Args:
        default: The default value.
        help: What the setting does.
        **rule: The other attributes of `Rule`.
    """
    return dataclasses.field(default=default, metadata={_RULE: Rule(help, **rule)})


def field_names(part: type) -> list[str]:
    """List the names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(part)]


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        key: Its full name, for example "train.steps".
        kind: Its type.
        default: Its default value.
        rule: Its rule.
    """

    key: str
    kind: object
    default: object
    rule: Rule


def list_settings(part: type, prefix: str = "") -> Iterator[Setting]:
    """List the settings of a dataclass and of the dataclasses in it, in their order."""
    kinds = typing.get_type_hints(part)
    for field in dataclasses.fields(part):
        kind = kinds[field.name]
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from list_settings(typing.cast(type, kind), f"{key}.")
        else:
            yield Setting(key, kind, field.default, field.metadata[_RULE])


def allowed_types(kind: object) -> tuple[type, ...]:
    """List the types that a setting may have.

    >>> allowed_types(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    if isinstance(kind, types.UnionType):
        return typing.get_args(kind)
    return (typing.cast(type, kind),)


def check_value(value: object, setting: Setting, place: str) -> object:
    """Return a value as its setting has it; refuse a value that the setting cannot have.

    Args:
        value: The value as YAML or Python gives it.
        setting: A setting whose value is no list of sources.
        place: What the message begins with.

    Raises:
        UserError: The value is of another type or outside the bounds.
    """
    if setting.kind == tuple[float, float]:
        return _check_span(value, setting, place)
    allowed = allowed_types(setting.kind)
    if typing.get_origin(allowed[0]) is tuple:
        return _check_names(value, setting.key, place)
    value = _convert_number(value, allowed)
    is_bool_by_mistake = isinstance(value, bool) and bool not in allowed
    if is_bool_by_mistake or not isinstance(value, allowed):
        names = ["null" if item is type(None) else item.__name__ for item in allowed]
        raise UserError(f"{place}{setting.key}: expected {' or '.join(names)}, found {short_repr(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}{setting.key}: expected a finite number, found {short_repr(value)}.")
    fault = setting.rule.fault(value)
    if fault is not None:
        raise UserError(f"{place}{setting.key}: {fault}.")
    return value


def _convert_number(value: object, allowed: tuple[type, ...]) -> object:
    """Read numbers as YAML 1.1 writes them: 1e-3 is a string to it, and 10.0 may stand for 10."""
    is_number = isinstance(value, (int, str)) and not isinstance(value, bool)
    if float in allowed and is_number:
        try:
            return float(typing.cast(str, value))
        except (ValueError, OverflowError):
            return str(value)
    if int in allowed and isinstance(value, float) and value.is_integer() and float not in allowed:
        return int(value)
    return value


def _check_names(value: object, key: str, place: str) -> tuple[str, ...]:
    """Return a list of names as a tuple; one name alone is a list, too."""
    items = [value] if isinstance(value, str) else value or []
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{place}{key}: expected a list of names, found {short_repr(value)}.")
    return tuple(items)


def _check_span(value: object, setting: Setting, place: str) -> tuple[float, float]:
    """Return the lowest and the highest number of a span."""
    numbers = value if isinstance(value, (list, tuple)) else ()
    known = [number for number in numbers if isinstance(number, (int, float)) and not isinstance(number, bool)]
    place_of_key = f"{place}{setting.key}"
    if len(known) != 2 or len(numbers) != 2 or not -1000 < known[0] <= known[1] < 1000:
        raise UserError(
            f"{place_of_key}: expected two numbers, the lower one first, as [0.9, 1.1]; found {short_repr(value)}."
        )
    rule = setting.rule
    lowest = typing.cast(float, rule.at_least)
    highest = typing.cast(float, rule.at_most)
    if known[0] < lowest or known[1] > highest:
        raise UserError(
            f"{place_of_key}: expected {rule.unit} between {lowest:g} and {highest:g}, found {short_repr(value)}."
        )
    return (float(known[0]), float(known[1]))
