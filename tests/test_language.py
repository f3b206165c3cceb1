"""The package is written so that one can read it: guards for docstrings and for folded code.

ruff holds the rest (D400, D401, D205, D417).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = sorted((ROOT / "whisper_peft").rglob("*.py"))
# What an entry of Args may not begin with: it would say what the value belongs to, not what it is.
FRAGMENT = re.compile(r"^(of|that|likewise)\b", re.IGNORECASE)
OPENING = re.compile(r"^(What|Of|Whether|Likewise)\b")
# Real tables, which no formatter can lay out: languages, kinds of findings, scripts.
TABLES = {"data/languages.py", "checking/findings.py", "checking/texts.py"}


def named(path: Path) -> str:
    return path.relative_to(ROOT / "whisper_peft").as_posix()


def documented(tree: ast.Module) -> list[tuple[int, str]]:
    """Collect the docstrings of a module with their lines."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(node.body[0].lineno, text) for node in nodes if (text := ast.get_docstring(node))]


def entries_of_args(docstring: str) -> list[str]:
    """List what the Args and Attributes of a docstring say of each value."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    return [text for section in sections for text in re.findall(r"^    \*{0,2}\w+: (.*)$", section, re.MULTILINE)]


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_docstrings_say_what_a_thing_is(path):
    for line, text in documented(ast.parse(path.read_text(encoding="utf-8"))):
        assert not OPENING.match(text), f"{named(path)}:{line}: {text.splitlines()[0]}"
        for entry in entries_of_args(text):
            assert not FRAGMENT.match(entry), f"{named(path)}:{line}: {entry}"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_one_assignment_a_line_and_one_decision_a_statement(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.stmt):
            continue
        place = f"{named(path)}:{node.lineno}"
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Tuple, ast.List)):
            assert not isinstance(node.value, (ast.Tuple, ast.List)), f"{place}: one assignment a line"
        parts = [
            part for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt) for part in ast.walk(child)
        ]
        assert sum(isinstance(part, ast.IfExp) for part in parts) <= 1, f"{place}: two conditional expressions"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_the_formatter_formats(path):
    text = path.read_text(encoding="utf-8")
    assert named(path) in TABLES or not re.search(r"#\s*fmt:", text), named(path)


def test_names_at_the_top_of_modules_are_unlike():
    """A name that two modules define means two things to a reader. The commands have the names of their functions."""
    owners: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                owners.setdefault(node.name, []).append(named(path))
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        owners.setdefault(target.id, []).append(named(path))
    double = {
        name: modules
        for name, modules in owners.items()
        if len([module for module in modules if not module.startswith("cli/")]) > 1 and not name.startswith("__")
    }
    assert double == {}
