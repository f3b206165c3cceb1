"""Recipes as nested dicts: make one from them, check every value, and change single settings by their keys."""

from __future__ import annotations

import dataclasses
import difflib
import typing

from whisper_peft.errors import UserError
from whisper_peft.files import YamlSyntaxError, parse_yaml, short_repr
from whisper_peft.recipe import Recipe, Source
from whisper_peft.settings import Rule, Setting, check_value, field_names, list_settings

SETTINGS: dict[str, Setting] = {entry.key: entry for entry in list_settings(Recipe)}


def rule_of(key: str) -> Rule:
    """Return the rule of a setting by its key, for example "train.steps"."""
    return SETTINGS[key].rule


def from_dict(page: object, *, place: str = "") -> Recipe:
    """Make a recipe from nested dicts and lists. Settings that are missing have their defaults.

    Args:
        page: A dict of parts.
        place: What error messages begin with.

    Raises:
        UserError: A setting is unknown or impossible.
    """
    if not isinstance(page, dict):
        raise UserError(f"{place}expected the parts {', '.join(field_names(Recipe))}, found {type(page).__name__}.")
    return _build(Recipe, page, place=place)


def as_dict(recipe: Recipe) -> dict:
    """Return the recipe as plain nested dicts and lists."""
    return typing.cast(dict, _without_tuples(dataclasses.asdict(recipe)))


def parse_settings(recipe: Recipe, settings: typing.Iterable[str], *, place: str = "") -> dict[str, object]:
    """Parse settings of the form key=value; values are read as YAML.

    Args:
        recipe: A recipe that has all the keys.
        settings: For example ["train.steps=5"].
        place: What error messages begin with.

    Returns:
        The values by their keys.

    Raises:
        UserError: A setting has no =, or its key is unknown.

    Example:
        >>> parse_settings(Recipe(), ["train.steps=5", "data.test=null"])
        {'train.steps': 5, 'data.test': None}
    """
    changes: dict[str, object] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{place}{text}: expected key=value, for example train.steps=100.")
        try:
            changes[key.strip()] = parse_yaml(value)
        except YamlSyntaxError:
            changes[key.strip()] = value
        except ValueError as error:
            raise UserError(f"{place}{key}: {error}.") from None
    # An unknown key is refused here, with the option that it came from.
    override(recipe, changes, place=place)
    return changes


def override(recipe: Recipe, changes: typing.Mapping[str, object], *, place: str = "") -> Recipe:
    """Return a copy of a recipe with some settings changed.

    Args:
        recipe: The recipe; it stays as it is.
        changes: New values by their keys, for example {"train.steps": 5}.
        place: What error messages begin with.

    Raises:
        UserError: A key is unknown, or a value is impossible.
    """
    page = as_dict(recipe)
    for key, value in changes.items():
        part = page
        *parents, last = key.split(".")
        for name in parents:
            if not isinstance(part.get(name), dict):
                _refuse_key(key, list(flatten(page)), place)
            part = part[name]
        if last not in part or isinstance(part[last], dict):
            _refuse_key(key, list(flatten(page)), place)
        part[last] = value
    return _build(Recipe, page, place=place)


def flatten(page: dict, prefix: str = "") -> dict[str, object]:
    """Name every setting of nested dicts by its full key.

    >>> flatten({"train": {"steps": 5, "seed": 42}})
    {'train.steps': 5, 'train.seed': 42}
    """
    values: dict[str, object] = {}
    for key, value in page.items():
        if isinstance(value, dict):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _without_tuples(value: object) -> object:
    """Turn the tuples of nested values into lists, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tuples(item) for item in value]
    return value


def _refuse_key(key: str, known: list[str], place: str) -> typing.NoReturn:
    """Refuse an unknown key, with the nearest one that is known."""
    parent, _, name = key.rpartition(".")
    nearest = _find_nearest(key, known)
    if nearest is not None and parent:
        nearest = nearest.removeprefix(f"{parent}.")
    hint = f" Did you mean '{nearest}'?" if nearest not in (None, name) else ""
    raise UserError(f"{place}{key}: unknown key.{hint}")


def _find_nearest(key: str, known: list[str]) -> str | None:
    """Find the key that looks most like a wrong one, or has the same last name in another part."""
    similar = difflib.get_close_matches(key, known, n=1)
    if similar:
        return similar[0]
    last = key.split(".")[-1]
    same_name = [other for other in known if other.endswith(f".{last}")]
    return same_name[0] if same_name else None


def _build(part: type, page: dict, place: str, prefix: str = "") -> typing.Any:
    """Build a dataclass of settings from a dict, and check every value."""
    known = field_names(part)
    kinds = typing.get_type_hints(part)
    rules = {item.name: item.metadata.get("rule") for item in dataclasses.fields(part)}
    values = {}
    for key, value in page.items():
        full_key = f"{prefix}{key}"
        if key not in known:
            _refuse_key(full_key, [prefix + name for name in known], place)
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            if value is not None and not isinstance(value, dict):
                names = ", ".join(field_names(typing.cast(type, kind)))
                raise UserError(f"{place}{full_key}: expected the keys {names}, found {short_repr(value)}.")
            values[key] = _build(typing.cast(type, kind), value or {}, place, f"{full_key}.")
        elif full_key == "data.train":
            values[key] = _build_sources(value, place)
        else:
            rule = rules[key] or Rule("")
            values[key] = check_value(value, Setting(full_key, kind, None, rule), place)
    return part(**values)


def _build_sources(value: object, place: str) -> tuple[str | Source, ...]:
    """Build the training sources from one source or a list of them."""
    items = [value] if isinstance(value, (str, dict)) else value or []
    if not isinstance(items, (list, tuple)):
        raise UserError(f"{place}data.train: expected a list of names, found {short_repr(value)}.")
    return tuple(_build_source(item, f"data.train[{number}]", place) for number, item in enumerate(items))


def _build_source(item: object, key: str, place: str) -> str | Source:
    if isinstance(item, (str, Source)):
        return item
    if not isinstance(item, dict) or "source" not in item:
        raise UserError(f"{place}{key}: expected a source, or one as {{source: SRC, weight: 0.5, language: hindi}}.")
    return _build(Source, item, place, f"{key}.")
