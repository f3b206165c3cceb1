"""Recipes as files: load, save, list, copy; where their paths lead."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path

from whisper_peft.errors import UserError
from whisper_peft.files import parse_yaml, read_text
from whisper_peft.recipe import Recipe, Source, as_dict, from_dict, override

PACKAGE = Path(__file__).parent
PACKAGE_PREFIX = "package:"
# Before a name that is meant on the Hub although a folder of that name is here.
HUB_PREFIX = "hf:"
MAX_RECIPE_BYTES = 1024**2


def expanded(path: str | Path) -> Path:
    """The path with ~ as the user's home; as it is, where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def load_recipe(name: str | Path) -> Recipe:
    """Reads a recipe by path, or by the name of a shipped one.

    Relative paths of sources and of the model are resolved against the recipe's folder, ``package:`` ones against
    the installed package.

    Raises:
        UserError: no such recipe, not YAML, or an unknown or impossible setting (named with the nearest known one).
    """
    path = find_recipe(name)
    try:
        page = parse_yaml(read_text(path, max_bytes=MAX_RECIPE_BYTES), unique_keys=True)
    except ValueError as error:
        raise UserError(f"{path}: not a YAML page ({error}).") from None
    return absolute(from_dict({} if page is None else page, place=f"{path}: "), path.parent)


def given(recipe: Recipe | str | Path | None, changes: typing.Mapping[str, object]) -> Recipe:
    """A recipe as a user named it, with the changes of a command line, and paths made absolute.

    Raises:
        UserError: see `load_recipe`, `refuse_elsewhere` and `override`.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        page, recipe = recipe, load_recipe(recipe)
        refuse_elsewhere(recipe, page, changes)
    return absolute(override(recipe or Recipe(), changes), Path.cwd())


def refuse_elsewhere(recipe: Recipe, name: str | Path, changes: typing.Container[str]) -> None:
    """Keeps a page's relative source from being found in the working directory, when it is not beside the page.

    Args:
        recipe: as `load_recipe` gave it.
        name: of the page, as it was given to `load_recipe`.
        changes: the keys that are not the page's.

    Raises:
        UserError: there is such a source.
    """
    data, augment = recipe.data, recipe.augment
    named = (
        *(("data.train", "--train ", one.source) for one in data.sources),
        ("data.eval", "--eval ", data.eval),
        ("data.test", "--test ", data.test),
        ("augment.noise_folder", "--set augment.noise_folder=", augment.noise_folder),
        ("augment.room_folder", "--set augment.room_folder=", augment.room_folder),
    )
    for key, option, source in named:
        if not source or Path(source).is_absolute() or key in changes:
            continue
        if any(Path(place).exists() for place in (source, source.rpartition(":")[0]) if place):
            raise UserError(
                f"{name}: {key}: no {source} beside the recipe, and that in the working directory is not meant; "
                f"correct the recipe, or name it with {option}{source}."
            )


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
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
    """The recipes that ship with the package, by name."""
    installed = PACKAGE / "recipes"  # in a wheel
    folder = installed if installed.is_dir() else PACKAGE.parent / "recipes"
    return sorted(folder.glob("*.yaml"))


def copy_recipe(name: str, destination: str | Path) -> Path:
    """Copies a shipped recipe to a file of the user's own; never over an existing one."""
    source, destination = find_recipe(name), Path(destination)
    if destination.exists():
        raise UserError(f"{destination}: exists already; choose another file name.")
    try:
        destination.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror}); choose another place.") from None
    return destination


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Writes a recipe as a YAML page that `load_recipe` reads back equal."""
    import yaml

    Path(path).write_text(
        yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=False),
        encoding="utf-8",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


def absolute(recipe: Recipe, folder: Path) -> Recipe:
    """A copy whose sources, folders and model, where they are existing relative paths, are absolute."""

    def fix(name: str | None) -> str | None:
        if not name or name.startswith(HUB_PREFIX):
            return name
        if name.startswith(PACKAGE_PREFIX):
            return str(PACKAGE / name.removeprefix(PACKAGE_PREFIX))
        head, colon, split = name.rpartition(":")
        folder_of_config, colon_2, config = head.rpartition(":")
        for path, tail in ((name, ""), (head, colon + split), (folder_of_config, colon_2 + config + colon + split)):
            if path and _exists(folder / expanded(path)):
                return str((folder / expanded(path)).resolve()) + tail
        return name

    train = tuple(
        dataclasses.replace(one, source=fix(one.source)) if isinstance(one, Source) else fix(one)
        for one in recipe.data.train
    )
    data = dataclasses.replace(recipe.data, train=train, eval=fix(recipe.data.eval), test=fix(recipe.data.test))
    model = dataclasses.replace(recipe.model, name=fix(recipe.model.name))
    augment = dataclasses.replace(
        recipe.augment, noise_folder=fix(recipe.augment.noise_folder), room_folder=fix(recipe.augment.room_folder)
    )
    return dataclasses.replace(recipe, data=data, model=model, augment=augment)
