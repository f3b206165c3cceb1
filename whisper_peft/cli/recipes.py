"""The recipes command: list, show and copy the recipes that ship with the package."""

from __future__ import annotations

import click

from whisper_peft.cli.lines import first_comment
from whisper_peft.cli.options import output_options
from whisper_peft.cli.printer import Printer


@click.group()
def recipes() -> None:
    """List, show and copy the recipes that ship with whisper-peft."""


@recipes.command("list")
@output_options
def list_recipes(out: Printer) -> None:
    """Print the name and the first line of each recipe."""
    from whisper_peft.recipe_files import shipped_recipes

    abouts = {path.stem: first_comment(path) for path in shipped_recipes()}
    content = {"recipes": [{"name": name, "about": about} for name, about in abouts.items()]}
    out.result(content, [f"{name:20} {about}" for name, about in abouts.items()])


@recipes.command("show")
@click.argument("name")
@output_options
def show_recipe(out: Printer, name: str) -> None:
    """Print a recipe."""
    from whisper_peft.recipe_dicts import as_dict
    from whisper_peft.recipe_files import find_recipe, load_recipe

    page = find_recipe(name).read_text(encoding="utf-8").rstrip()
    out.result(as_dict(load_recipe(name)), [page])


@recipes.command("copy")
@click.argument("name")
@click.argument("file", type=click.Path())
@output_options
def copy_recipe(out: Printer, name: str, file: str) -> None:
    """Copy a recipe to FILE, to edit it."""
    from whisper_peft.recipe_files import copy_recipe as run_copy

    path = run_copy(name, file)
    out.result({"recipe": str(path)}, [f"Wrote {path}. Train with it: whisper-peft train {path}"])
