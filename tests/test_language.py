"""Guards that keep the package readable: docstrings are plain, and a line of code does one thing.

ruff checks the other rules of docstrings (D400, D401, D205, D417).
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from conftest import ROOT

MODULES = sorted((ROOT / "whisper_peft").rglob("*.py"))
# An entry of Args may not begin with these words: it would say what the value belongs to, not what it is.
FRAGMENT = re.compile(r"^(of|that|likewise)\b", re.IGNORECASE)
OPENING = re.compile(r"^(What|Of|Whether|Likewise)\b")
# These modules hold real tables, which no formatter can lay out: languages, kinds of findings, scripts.
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
    """List the entries under Args and Attributes in a docstring, without the names of the values."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    return [text for section in sections for text in re.findall(r"^    \*{0,2}\w+: (.*)$", section, re.MULTILINE)]


def test_docstrings_do_not_begin_with_a_fragment():
    faults = []
    for path in MODULES:
        for line, text in documented(parse(path)):
            sentences = [text.splitlines()[0]] if OPENING.match(text) else []
            sentences += [entry for entry in entries_of_args(text) if FRAGMENT.match(entry)]
            faults += [f"{named(path)}:{line}: {sentence}" for sentence in sentences]
    assert faults == []


def conditionals_of(statement: ast.stmt) -> int:
    """Count the conditional expressions of a statement, but not those of the statements inside it."""
    inside = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    return sum(isinstance(part, ast.IfExp) for child in inside for part in ast.walk(child))


def is_double(statement: ast.stmt) -> bool:
    """Tell whether a statement assigns a written-out tuple to a tuple."""
    if not isinstance(statement, ast.Assign):
        return False
    return isinstance(statement.targets[0], (ast.Tuple, ast.List)) and isinstance(
        statement.value, (ast.Tuple, ast.List)
    )


def test_a_line_has_one_assignment_and_a_statement_one_conditional():
    faults = []
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.stmt) and (is_double(node) or conditionals_of(node) > 1):
                faults.append(f"{named(path)}:{node.lineno}")
    assert faults == []


def test_only_modules_with_tables_switch_the_formatter_off():
    with_pragma = {named(path) for path in MODULES if re.search(r"#\s*fmt:", path.read_text(encoding="utf-8"))}
    assert with_pragma <= TABLES


def test_no_two_modules_define_the_same_name_at_their_top():
    """A name that two modules define means two things to a reader; commands may share the name of their function."""
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


def test_no_variable_is_called_one_or_found():
    """`one` and `found` can be a row, a segment, a path or a dict; a noun says which."""
    names = []
    for path in MODULES:
        stored = [node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)]
        names += [f"{named(path)}: {name}" for name in stored if name in ("one", "found")]
    assert names == []
