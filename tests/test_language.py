"""The package is written so that one can read it: guards for docstrings and for folded code.

ruff holds the rest (D400, D401, D205, D417).
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from conftest import ROOT

MODULES = sorted((ROOT / "whisper_peft").rglob("*.py"))
# What an entry of Args may not begin with: it would say what the value belongs to, not what it is.
FRAGMENT = re.compile(r"^(of|that|likewise)\b", re.IGNORECASE)
OPENING = re.compile(r"^(What|Of|Whether|Likewise)\b")
# Real tables, which no formatter can lay out: languages, kinds of findings, scripts.
TABLES = {"data/languages.py", "checking/findings.py", "checking/texts.py"}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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


def test_docstrings_say_what_a_thing_is():
    faults = []
    for path in MODULES:
        for line, text in documented(parse(path)):
            sentences = [text.splitlines()[0]] if OPENING.match(text) else []
            sentences += [entry for entry in entries_of_args(text) if FRAGMENT.match(entry)]
            faults += [f"{named(path)}:{line}: {sentence}" for sentence in sentences]
    assert faults == []


def conditionals_of(statement: ast.stmt) -> int:
    """Count the conditional expressions of a statement, those of the statements in it left out."""
    inside = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    return sum(isinstance(part, ast.IfExp) for child in inside for part in ast.walk(child))


def is_double(statement: ast.stmt) -> bool:
    """Tell whether a statement assigns a written-out tuple to a tuple."""
    if not isinstance(statement, ast.Assign):
        return False
    return isinstance(statement.targets[0], (ast.Tuple, ast.List)) and isinstance(
        statement.value, (ast.Tuple, ast.List)
    )


def test_one_assignment_a_line_and_one_decision_a_statement():
    faults = []
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.stmt) and (is_double(node) or conditionals_of(node) > 1):
                faults.append(f"{named(path)}:{node.lineno}")
    assert faults == []


def test_the_formatter_formats():
    with_pragma = {named(path) for path in MODULES if re.search(r"#\s*fmt:", path.read_text(encoding="utf-8"))}
    assert with_pragma <= TABLES


def test_names_at_the_top_of_modules_are_unlike():
    """A name that two modules define means two things to a reader. The commands have the names of their functions."""
    owners: dict[str, list[str]] = {}
    for path in MODULES:
        for node in parse(path).body:
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


def test_variables_are_called_what_they_are():
    """`one` and `found` can be a row, a segment, a path or a dict: the noun says which."""
    names = []
    for path in MODULES:
        stored = [node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)]
        names += [f"{named(path)}: {name}" for name in stored if name in ("one", "found")]
    assert names == []
