"""How a model was made, without any path of the machine that it was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whisper_peft import runs
from whisper_peft.evaluation.metrics import ERROR_MEASURES, bootstrap_interval
from whisper_peft.model.identity import BASE_FACTS
from whisper_peft.recipe_dicts import as_dict
from whisper_peft.recipe_files import PACKAGE, PACKAGE_PREFIX, load_recipe
from whisper_peft.training.facts import warn_of_recordings

# In a merged folder: how close the merged model is to the adapter.
MERGE_REPORT = "merge_report.json"


def provenance(run: Path) -> dict[str, Any]:
    """Collect the recipe and the facts of a run, and the intervals of its final figures.

    Returns:
        `recipe` and `facts` (run.json), with each source shortened to its last name; `intervals` (measure -> low,
        high); and `base`, the weights that training began with.
    """
    facts = without_paths(runs.read_json(run / runs.FACTS))
    recipe = without_paths(as_dict(load_recipe(run / runs.RECIPE)))
    return {"recipe": recipe, "facts": facts, "intervals": _final_intervals(run), "base": facts["base"]}


def known_provenance(folder: Path, run: Path | None) -> dict[str, Any]:
    """Collect what is known of a model or an adapter.

    Args:
        folder: The model or adapter folder.
        run: The run that it came from, if that is known.

    Returns:
        What `provenance` returns of its run, or what lies beside the weights; empty if nothing is known.
    """
    if run is None and folder.name in (runs.ADAPTER, runs.MODEL) and runs.is_run(folder.parent):
        run = folder.parent
    if run is not None:
        return provenance(run)
    if (folder / runs.PROVENANCE).is_file():
        return runs.read_json(folder / runs.PROVENANCE)
    if (folder / BASE_FACTS).is_file():
        return {"base": without_paths(runs.read_json(folder / BASE_FACTS))}
    return {}


def warning_of(known: dict[str, Any]) -> str | None:
    """Warn of a model that was not trained for long recordings, as far as its making is known.

    Args:
        known: What `known_provenance` returns.
    """
    data = (known.get("facts") or {}).get("data") or {}
    return warn_of_recordings(known.get("recipe") or {}, data.get("full_windows"))


def without_paths(value: Any) -> Any:
    """Cut every absolute path in JSON content to its last name.

    What ships with the package keeps its name there, which is the same on every machine.

    Example:
        >>> without_paths({"train": ["/home/me/speech:train"], "test": "me/hindi:test"})
        {'train': ['speech:train'], 'test': 'me/hindi:test'}
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    split = ""
    # DIR:split
    before, colon, after = value.rpartition(":")
    if colon and "/" not in after:
        path = Path(before)
        split = colon + after
    if path.is_relative_to(PACKAGE):
        return f"{PACKAGE_PREFIX}{path.relative_to(PACKAGE).as_posix()}{split}"
    return path.name + split


def _final_intervals(run: Path) -> dict[str, tuple[float, float]]:
    """Compute the interval of each measure, over the clips that the run's final figures come from."""
    transcripts = runs.read_jsonl(run / runs.TRANSCRIPTS)
    final = runs.read_json(run / runs.FACTS).get("final")
    if not final or len(transcripts) != final["clips"]:
        return {}
    references = [transcript["reference"] for transcript in transcripts]
    predictions = [transcript["prediction"] for transcript in transcripts]
    return {measure: bootstrap_interval(references, predictions, metric=measure) for measure in ERROR_MEASURES}
