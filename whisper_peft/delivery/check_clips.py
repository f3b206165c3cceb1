"""The clips on which `merge` and `export` check what they made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whisper_peft import runs
from whisper_peft.data.rows import Row
from whisper_peft.data.sources import load_source
from whisper_peft.errors import UserError
from whisper_peft.recipe_files import PACKAGE, load_recipe, make_paths_absolute

# The clips that ship with the package, and their language.
SHIPPED_CLIPS = PACKAGE / "quickstart" / "speech" / "test"
SHIPPED_LANGUAGE = "hindi"
# What they are called in reports.
SHIPPED_NAME = "the shipped Hindi clips"


def find_check_rows(
    run: Path | None, check: str | Path | None, language: str | None, say: Callable[[str], None]
) -> tuple[Sequence[Row], str, str | None]:
    """Choose clips to check on: those that the user names, else the run's own, else the shipped ones.

    Args:
        run: The run that the model comes from, if it comes from one.
        check: SRC, if the user names one.
        language: Language of the clips, if the user names it.
        say: Called with a line about each split of the run that cannot be read.

    Returns:
        The rows, where they came from in words, and their language.

    Raises:
        UserError: `check` cannot be read.
    """
    if check is not None:
        return load_source(str(check)), f"{check} (--check)", language
    if run is not None:
        source = _load_clips_of_run(run, say)
        if source is not None:
            return *source, language
    shipped = load_source(str(SHIPPED_CLIPS))
    return shipped, SHIPPED_NAME, SHIPPED_LANGUAGE if language is None else language


def _load_clips_of_run(run: Path, say: Callable[[str], None]) -> tuple[Sequence[Row], str] | None:
    """Load the first of a run's sources that is still in its place, and name its split; None if all are gone."""
    recipe = make_paths_absolute(load_recipe(run / runs.RECIPE), run)
    sources = [("test", recipe.data.test), ("eval", recipe.data.eval)]
    sources += [("train", part.source) for part in recipe.data.sources]
    # The clips are heard without prompts.
    columns: dict[str, Any] = {**recipe.data.columns, "prompt_column": None}
    for split, source in sources:
        if not source:
            continue
        try:
            return load_source(source, **columns), f"the run's own {split} clips"
        except UserError as error:
            # It was moved or deleted since training. Another split does as well.
            say(f"Note: the run's {split} clips cannot be read ({error}) Name their new place with --check SRC.")
    return None
