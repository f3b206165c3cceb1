"""What is known of a model's making, without a path of the machine it was made on."""

from __future__ import annotations

from pathlib import Path

from whisper_peft import runs
from whisper_peft.evaluation.metrics import MEASURES, bootstrap_interval
from whisper_peft.model.identity import BASE_FACTS
from whisper_peft.recipe import as_dict
from whisper_peft.recipe_files import PACKAGE, PACKAGE_PREFIX, load_recipe
from whisper_peft.training.facts import warn_of_recordings

PROVENANCE = "whisper_peft.json"  # in a merged folder: what its card is written from
TRANSCRIPTS = "transcripts.jsonl"


def provenance(run: Path) -> dict:
    """Recipe and facts of a run, and the intervals of its final figures.

    Returns:
        `recipe` and `facts` (run.json), each source as its last name, `intervals` (measure -> low, high), and `base`,
        which weights it began with.
    """
    facts = without_paths(runs.read_json(run / runs.FACTS))
    recipe = without_paths(as_dict(load_recipe(run / runs.RECIPE)))
    return {"recipe": recipe, "facts": facts, "intervals": _intervals(run), "base": facts["base"]}


def known_provenance(folder: Path, run: Path | None) -> dict:
    """Of a model or adapter folder: from its run, or from what lies beside the weights; empty where nothing does."""
    if run is None and folder.name in (runs.ADAPTER, runs.MODEL) and runs.is_run(folder.parent):
        run = folder.parent
    if run is not None:
        return provenance(run)
    if (folder / PROVENANCE).is_file():
        return runs.read_json(folder / PROVENANCE)
    return {"base": without_paths(runs.read_json(folder / BASE_FACTS))} if (folder / BASE_FACTS).is_file() else {}


def warning_of(known: dict) -> str | None:
    """Warn of a model that was not trained for long recordings, as far as its making is known.

    Args:
        known: What `known_provenance` gives.
    """
    data = (known.get("facts") or {}).get("data") or {}
    return warn_of_recordings(known.get("recipe") or {}, data.get("full_windows"))


def without_paths(value: object) -> object:
    """JSON content with every absolute path cut to its last name; what ships with the package keeps its name there."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    head, colon, split = value.rpartition(":")  # DIR:split
    path, tail = (Path(head), colon + split) if colon and "/" not in split else (Path(value), "")
    if path.is_relative_to(PACKAGE):
        return f"{PACKAGE_PREFIX}{path.relative_to(PACKAGE).as_posix()}{tail}"
    return path.name + tail


def _intervals(run: Path) -> dict[str, tuple[float, float]]:
    """Of every measure, over the clips that the run's final figures are of."""
    records, final = runs.read_jsonl(run / TRANSCRIPTS), runs.read_json(run / runs.FACTS).get("final")
    if not final or len(records) != final["clips"]:
        return {}
    references, predictions = ([one[key] for one in records] for key in ("reference", "prediction"))
    return {measure: bootstrap_interval(references, predictions, metric=measure) for measure in MEASURES}
