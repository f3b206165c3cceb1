"""Measure how the package is written: function lengths, folded decisions, pragmas, comments and examples.

    python tools/measure_house.py [FOLDER]

Prints one line a measure. Figures "per 1,000 lines" count all lines of the package's Python files, blank ones included.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from pathlib import Path

PRAGMA = re.compile(r"#\s*(fmt|yapf|isort|pylint):|#\s*(noqa|type:\s*ignore)")
FORMATTER_PRAGMA = re.compile(r"#\s*fmt:")


def function_lengths(tree: ast.Module) -> list[int]:
    """Count the lines of each function's body, its docstring left out."""
    lengths = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            has_docstring = ast.get_docstring(node) is not None
            start = first.end_lineno if has_docstring else first.lineno - 1
            lengths.append(node.body[-1].end_lineno - start)
    return lengths


def count_conditional_expressions(tree: ast.Module) -> int:
    """Count the `a if b else c` expressions."""
    return sum(isinstance(node, ast.IfExp) for node in ast.walk(tree))


def count_chained_conditionals(tree: ast.Module) -> int:
    """Count the statements that hold more than one conditional expression."""
    count = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt):
            continue
        inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
        expressions = [part for child in inner for part in ast.walk(child)]
        count += sum(isinstance(part, ast.IfExp) for part in expressions) > 1
    return count


def count_multiple_assignments(tree: ast.Module) -> int:
    """Count assignments of a written-out tuple to a tuple, `a, b = x, y`."""
    return sum(
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], (ast.Tuple, ast.List))
        and isinstance(node.value, (ast.Tuple, ast.List))
        for node in ast.walk(tree)
    )


def count_comments(text: str) -> tuple[int, int, int]:
    """Count comment lines of their own, trailing comments, and pragmas of the formatter."""
    own = 0
    trailing = 0
    pragmas = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        pragmas += bool(FORMATTER_PRAGMA.search(token.string))
        if PRAGMA.search(token.string):
            continue
        if token.line.strip().startswith("#"):
            own += 1
        else:
            trailing += 1
    return own, trailing, pragmas


def measure(folder: Path) -> dict[str, float]:
    """Measure all Python files below a folder."""
    totals = {"lines": 0, "conditional": 0, "chained": 0, "multiple": 0, "own": 0, "trailing": 0, "pragmas": 0}
    examples = 0
    lengths: list[int] = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        own, trailing, pragmas = count_comments(text)
        totals["lines"] += text.count("\n")
        totals["conditional"] += count_conditional_expressions(tree)
        totals["chained"] += count_chained_conditionals(tree)
        totals["multiple"] += count_multiple_assignments(tree)
        totals["own"] += own
        totals["trailing"] += trailing
        totals["pragmas"] += pragmas
        examples += len(re.findall(r"^\s*>>> ", text, re.MULTILINE))
        lengths += function_lengths(tree)
    thousands = totals["lines"] / 1000
    lengths.sort()
    return {
        "lines of package": totals["lines"],
        "function body, median lines": statistics.median(lengths),
        "function body, 90 % of functions": lengths[int(0.9 * (len(lengths) - 1))],
        "function body, longest": lengths[-1],
        "conditional expressions per 1,000 lines": totals["conditional"] / thousands,
        "statements with more than one of them": totals["chained"],
        "`a, b = x, y` per 1,000 lines": totals["multiple"] / thousands,
        "formatter pragmas per 1,000 lines": totals["pragmas"] / thousands,
        "comment lines of their own per 1,000": totals["own"] / thousands,
        "trailing comments per 1,000": totals["trailing"] / thousands,
        "lines of examples (>>>)": examples,
    }


if __name__ == "__main__":
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "whisper_peft"
    for name, value in measure(package).items():
        print(f"{name:45}{value:10,.1f}")
