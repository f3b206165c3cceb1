"""The pages in docs/ are true: their commands and code run, and their lists equal those of the code."""

from __future__ import annotations

import importlib.util
import re

import pytest
from conftest import ROOT
from test_readme import blocks, reader_folder, run_page  # noqa: F401  (a fixture)

import whisper_peft
from whisper_peft.recipe_dicts import SETTINGS
from whisper_peft.recipe_files import shipped_recipes

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if "```bash" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_and_code_of_a_page_run(page, reader_folder, tiny_model, tiny_model_30s, capsys):  # noqa: F811 - the imported fixture
    # The page cli.md uses the recipe of recipes.md.
    if page.stem == "cli":
        text = dict(blocks(DOCS / "recipes.md"))["yaml"]
        (reader_folder / "my.yaml").write_text(text.replace("openai/whisper-small", str(tiny_model)), encoding="utf-8")
    if page.stem == "export":
        tiny_model = tiny_model_30s
    assert run_page(page, tiny_model, capsys).strip()


def test_the_tables_of_settings_list_every_setting_of_the_recipe():
    path = ROOT / "tools" / "write_settings_page.py"
    spec = importlib.util.spec_from_file_location("write_settings_page", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert script.page_with_tables(page) == page, "run: python tools/write_settings_page.py"
    assert page.count("\n| `") >= len(SETTINGS)


def test_the_recipes_page_lists_every_shipped_recipe():
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for recipe in shipped_recipes():
        assert f"| `{recipe.stem}` |" in page
    for script in (*(ROOT / "recipes").glob("*.py"), *(ROOT / "recipes").glob("*.ipynb")):
        assert f"`{script.name}`" in page


def test_the_python_page_lists_the_public_api():
    headings = re.findall(r"^### (\w+)$", (DOCS / "python-api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(whisper_peft.__all__)
    for name in whisper_peft.__all__:
        assert getattr(whisper_peft, name).__doc__, name


def test_the_code_has_the_messages_on_the_command_line_page():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "whisper_peft").rglob("*.py"))
    # Join the parts of strings that are written over several lines.
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    messages = re.findall(r"^\| `([^`]+)` \|", page.partition("## Errors")[2], re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        assert re.search(re.escape(message).replace("30\\ s", r"\{[^{}]*\}\ s"), code), message


def test_the_architecture_page_lists_every_module():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "whisper_peft"
    sections = re.split(r"^### ", page.partition("## Every file")[2], flags=re.MULTILINE)[1:]
    listed = set()
    for section in sections:
        room = re.match(r"`(\w+/)`", section)
        prefix = room[1] if room else ""
        listed |= {prefix + name for name in re.findall(r"^\| `([\w./]+)` \|", section, re.MULTILINE)}
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert listed == {name for name in modules if not name.endswith(("__init__.py", "__main__.py"))}
