"""Each row of docs/faults.md has a test of its own."""

from __future__ import annotations

import re

from conftest import ROOT

ROWS = set(range(1, 43))


def test_the_table_has_every_row_and_every_row_has_a_test():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    in_table = {int(number) for number in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    assert in_table == ROWS
    tested = set()
    for path in (ROOT / "tests" / "faults").glob("test_fault_*.py"):
        for name in re.findall(r"^def (test_row_\w+)\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            tested |= {int(number) for number in re.findall(r"(?:row|and)_(\d\d)(?=_)", name)}
    assert tested >= ROWS, sorted(ROWS - tested)
