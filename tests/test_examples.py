"""The worked examples (`>>>`) in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

FEWEST_EXAMPLES = 25


def with_examples() -> dict[str, Path]:
    """Find the modules of the package that have examples."""
    paths = sorted((ROOT / "whisper_peft").rglob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if ">>> " in path.read_text(encoding="utf-8")}


MODULES = with_examples()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_enough_examples():
    examples = sum(path.read_text(encoding="utf-8").count(">>> ") for path in MODULES.values())
    assert examples >= FEWEST_EXAMPLES
