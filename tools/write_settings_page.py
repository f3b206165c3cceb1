"""Write the reference tables of all settings into docs/recipes.md.

    python tools/write_settings_page.py

The tables stand between two marks and come from the rules in whisper_peft/recipe.py. A test compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

from whisper_peft.recipe import Recipe
from whisper_peft.settings import Rule, Setting, list_settings

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN = "<!-- settings: written by tools/write_settings_page.py -->"
END = "<!-- end of settings -->"


def describe(rule: Rule) -> str:
    """Write what a setting does as the cell of a table."""
    parts = [rule.help]
    words = [f"`{choice}`" for choice in rule.choices if choice is not None]
    if words:
        parts.append(f"One of {', '.join(words)}.")
    if rule.null is not None:
        parts.append(f"`null`: {rule.null}.")
    if rule.see is not None:
        parts.append(f"See [{rule.see.partition('#')[0]}]({rule.see}).")
    if rule.option is not None:
        parts.append(f"Option: `{rule.option}`.")
    return " ".join(parts)


def row_of(setting: Setting) -> str:
    """Write one setting as a row of its table."""
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    name = setting.key.rpartition(".")[2]
    return f"| `{name}` | `{default}` | {describe(setting.rule)} |"


def docstrings(part: type, prefix: str = "") -> dict[str, str]:
    """Collect what is said of each part of a recipe, by its name."""
    texts = {}
    for field in dataclasses.fields(part):
        kind = typing.get_type_hints(part)[field.name]
        if dataclasses.is_dataclass(kind):
            name = f"{prefix}{field.name}"
            texts[name] = " ".join((kind.__doc__ or "").split())
            texts |= docstrings(typing.cast(type, kind), f"{name}.")
    return texts


def tables() -> str:
    """Write all tables, one for each part of a recipe."""
    rows: dict[str, list[str]] = {}
    for setting in list_settings(Recipe):
        rows.setdefault(setting.key.rpartition(".")[0], []).append(row_of(setting))
    texts = docstrings(Recipe)
    sections = []
    for part, lines in sorted(rows.items(), key=lambda item: list(texts).index(item[0])):
        head = f"### {part}\n\n{texts[part]}\n\n| key | default | what it does |\n|---|---|---|\n"
        sections.append(head + "\n".join(lines) + "\n")
    return "\n".join(sections)


def page_with_tables(page: str) -> str:
    """Replace what stands between the two marks of a page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
