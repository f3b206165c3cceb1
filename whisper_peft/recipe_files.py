"""Recipes as files: load, save, find, list and copy them, and make the paths in them absolute."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import parse_yaml, read_text
from whisper_peft.recipe import Recipe, Source
from whisper_peft.recipe_dicts import as_dict, from_dict, override

PACKAGE = Path(__file__).parent
# It begins paths to what ships with the package.
PACKAGE_PREFIX = "package:"
# It begins a name that is meant on the Hub, although a folder of that name is here.
HUB_PREFIX = "hf:"
MAX_RECIPE_BYTES = 1024**2


def expand_home(path: str | Path) -> Path:
    """Replace ~ by the user's home. A path with a user that does not exist stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe.

    Relative paths of sources and of the model are resolved against the recipe's folder, ``package:`` ones against
    the installed package.

    Args:
        name: Path of a recipe, of a run folder, or the name of a shipped recipe.

    Raises:
        UserError: There is no such recipe, it is not YAML, or it has an unknown or impossible setting.
    """
    path = find_recipe(name)
    try:
        page = parse_yaml(read_text(path, max_bytes=MAX_RECIPE_BYTES), unique_keys=True)
    except ValueError as error:
        raise UserError(f"{path}: not a YAML page ({error}).") from None
    if page is None:
        page = {}
    return make_paths_absolute(from_dict(page, place=f"{path}: "), path.parent)


def read_recipe(recipe: Recipe | str | Path | None, changes: typing.Mapping[str, object]) -> Recipe:
    """Return the recipe that a user names, with changes, and with absolute paths.

    Args:
        recipe: A recipe, or what `load_recipe` takes; None for the defaults.
        changes: New values by their keys. Relative paths in them are relative to the working directory.

    Raises:
        UserError: The recipe cannot be loaded, a change is impossible, or a source of the recipe is missing beside it.
    """
    if recipe is None:
        recipe = Recipe()
    elif not isinstance(recipe, Recipe):
        name = recipe
        recipe = load_recipe(name)
        refuse_sources_elsewhere(recipe, name, changes)
    return make_paths_absolute(override(recipe, changes), Path.cwd())


def refuse_sources_elsewhere(recipe: Recipe, name: str | Path, changes: typing.Container[str]) -> None:
    """Refuse a source that is missing beside the recipe while the working directory has one of that name.

    Otherwise another data set could be read than the one that the recipe means.

    Args:
        recipe: A recipe from `load_recipe`.
        name: Name or path of the recipe.
        changes: Keys of settings that do not come from the recipe.

    Raises:
        UserError: There is such a source.
    """
    data = recipe.data
    augment = recipe.augment
    sources = [
        *(("data.train", "--train ", source.source) for source in data.sources),
        ("data.eval", "--eval ", data.eval),
        ("data.test", "--test ", data.test),
        ("augment.noise_folder", "--set augment.noise_folder=", augment.noise_folder),
        ("augment.room_folder", "--set augment.room_folder=", augment.room_folder),
    ]
    for key, option, source in sources:
        if not source or Path(source).is_absolute() or key in changes:
            continue
        # A source may name a split behind a colon.
        places = [source, source.rpartition(":")[0]]
        if any(Path(place).exists() for place in places if place):
            raise UserError(
                f"{name}: {key}: no {source} beside the recipe. There is one in the working directory; to use that "
                f"one, pass {option}{source}, or correct the recipe."
            )


def find_recipe(name: str | Path) -> Path:
    """Find the file of a recipe.

    Args:
        name: Path of a file or a run folder, or the name of a shipped recipe.

    Raises:
        UserError: There is no such recipe.
    """
    path = Path(name)
    if _exists(path / "recipe.yaml"):
        return (path / "recipe.yaml").resolve()
    if _exists(path) and path.is_file():
        return path.resolve()
    shipped = {file.stem: file for file in shipped_recipes()}
    if str(name) in shipped:
        return shipped[str(name)]
    near = difflib.get_close_matches(str(name), shipped, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise UserError(f"{name}: no such recipe. {hint}Shipped ones: {', '.join(shipped)} (whisper-peft recipes list).")


def shipped_recipes() -> list[Path]:
    """List the files of the recipes that ship with the package, by name."""
    # In a wheel they lie inside the package, in a checkout beside it.
    folder = PACKAGE / "recipes"
    if not folder.is_dir():
        folder = PACKAGE.parent / "recipes"
    return sorted(folder.glob("*.yaml"))


def copy_recipe(name: str, destination: str | Path) -> Path:
    """Copy a recipe to a new file.

    Raises:
        UserError: The file exists already, or cannot be written.
    """
    source = find_recipe(name)
    destination = Path(destination)
    if destination.exists():
        raise UserError(f"{destination}: exists already; choose another file name.")
    try:
        destination.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror}); choose another place.") from None
    return destination


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as a YAML page that `load_recipe` reads back equal."""
    import yaml

    page = yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=False)
    Path(path).write_text(page, encoding="utf-8")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # The name is too long for any file.
        return False


def make_paths_absolute(recipe: Recipe, folder: Path) -> Recipe:
    """Return a copy of a recipe in which relative paths that exist are absolute.

    Args:
        recipe: A recipe. Names that are no paths here, such as Hub ids, stay as they are.
        folder: The folder that relative paths are relative to.
    """
    train: list[str | Source] = []
    for source in recipe.data.train:
        if isinstance(source, Source):
            train.append(dataclasses.replace(source, source=_make_absolute(source.source, folder)))
        else:
            train.append(_make_absolute(source, folder))
    data = dataclasses.replace(
        recipe.data,
        train=tuple(train),
        eval=_make_optional_absolute(recipe.data.eval, folder),
        test=_make_optional_absolute(recipe.data.test, folder),
    )
    model = dataclasses.replace(recipe.model, name=_make_absolute(recipe.model.name, folder))
    augment = dataclasses.replace(
        recipe.augment,
        noise_folder=_make_optional_absolute(recipe.augment.noise_folder, folder),
        room_folder=_make_optional_absolute(recipe.augment.room_folder, folder),
    )
    return dataclasses.replace(recipe, data=data, model=model, augment=augment)


def _make_optional_absolute(name: str | None, folder: Path) -> str | None:
    return None if name is None else _make_absolute(name, folder)


def _make_absolute(name: str, folder: Path) -> str:
    """Make the path in a name absolute, if there is one: PATH, PATH:SPLIT or PATH:CONFIG:SPLIT."""
    if not name or name.startswith(HUB_PREFIX):
        return name
    if name.startswith(PACKAGE_PREFIX):
        return str(PACKAGE / name.removeprefix(PACKAGE_PREFIX))
    parts = name.split(":")
    for n_last in range(min(3, len(parts))):
        path = ":".join(parts[: len(parts) - n_last])
        rest = "".join(f":{part}" for part in parts[len(parts) - n_last :])
        if path and _exists(folder / expand_home(path)):
            return str((folder / expand_home(path)).resolve()) + rest
    return name
