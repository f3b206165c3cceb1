"""Continuing a run: what may change in between, what may have moved, and what must be as it was written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr
from whisper_peft.recipe import Recipe, Source
from whisper_peft.recipe_dicts import as_dict, flatten, override
from whisper_peft.recipe_files import load_recipe, make_paths_absolute

# Settings that do not touch the steps that are made already.
RESUMABLE = ("train.steps", "data.max_left_out", "train.workers")
# Places where things lie; what they hold must be the same. Each with the option that names a new place.
MOVABLE = {
    "data.train": "--train ",
    "data.eval": "--eval ",
    "data.test": "--test ",
    "model.name": "--model ",
    "augment.noise_folder": "--set augment.noise_folder=",
    "augment.room_folder": "--set augment.room_folder=",
}
# Settings that may be edited by hand: they change time and memory, or what is written down, but no step.
HARMLESS = (
    *RESUMABLE,
    "train.micro_batch_size",
    "train.micro_batch_s",
    "train.keep_checkpoints",
    "train.logging_steps",
    "train.report_to",
    "evaluate.batch_size",
)


def resumed_recipe(run: Path, changes: Mapping[str, object], say: Callable[[str], None]) -> Recipe:
    """Read the recipe of a run to continue, and make the changes that a resumed run allows.

    Args:
        run: The run folder.
        changes: Recipe keys to set, of `RESUMABLE` and `MOVABLE`.
        say: Is called with each line about what happens.

    Returns:
        The recipe, whose sources and model are there.

    Raises:
        UserError: It is no run, its settings were edited, a change is not allowed, or something is not in its place.
    """
    if not runs.is_run(run):
        raise UserError(f"{run}: not a run folder (no {runs.FACTS} and {runs.RECIPE} in it).")
    recipe = load_recipe(run / runs.RECIPE)
    facts = runs.read_json(run / runs.FACTS)
    # Runs of earlier versions do not know the recipe that they began with.
    began_with = facts.get("recipe")
    if began_with is not None:
        _refuse_edited(run, recipe, began_with)
    for key in changes:
        if key not in RESUMABLE and key not in MOVABLE:
            raise UserError(
                f"{key}: cannot change when a run is resumed; only {', '.join(RESUMABLE)} can, and the places of what "
                f"has moved ({', '.join(MOVABLE)})."
            )
    changed = make_paths_absolute(override(recipe, _keep_source_settings(recipe, changes)), Path.cwd())
    planned = as_dict(recipe) if began_with is None else began_with
    _check_steps(run, changed, planned["train"]["steps"], is_finished=bool(facts.get("finished")), say=say)
    _refuse_lost(run, changed)
    return changed


def _check_steps(run: Path, changed: Recipe, steps: int, *, is_finished: bool, say: Callable[[str], None]) -> None:
    """Check that there are steps left to make.

    Args:
        run: The run folder.
        changed: The recipe with its changes.
        steps: Number of steps that the run was planned for.
        is_finished: True if the run came to its end.
        say: Is called with a line if the steps were raised.

    Raises:
        UserError: There are fewer steps than before, or none are left.
    """
    new_steps = changed.train.steps
    assert new_steps is not None, "the recipe of a run is resolved"
    if new_steps < steps:
        raise UserError(f"train.steps: can only be raised on resume; the run has {steps}.")
    if new_steps > steps:
        say(
            f"Steps raised from {steps} to {new_steps}: the {changed.train.schedule} schedule goes on as if it had "
            "been planned for that many from the start: the learning rate steps up at this point."
        )
    elif is_finished:
        raise UserError(f"{run}: finished already; raise --steps above {steps} to train further.")


def check_checkpoints(run: Path) -> None:
    """Refuse to continue from a checkpoint whose files are not those that were written.

    Both the newest checkpoint and the best one so far are looked at.

    Raises:
        UserError: A file is gone or damaged.
    """
    checkpoints = runs.complete_checkpoints(run)
    if not checkpoints:
        return
    newest = checkpoints[-1]
    runs.verify_checkpoint(
        newest, f"remove {newest}, and the run goes on from the checkpoint before it, if there is one"
    )
    best = runs.read_json(newest / "trainer_state.json").get("best_global_step")
    if best and newest.name != f"checkpoint-{best}":
        runs.verify_checkpoint(
            newest.with_name(f"checkpoint-{best}"),
            "it holds the run's best weights; bring it back from a copy, or start a new run",
        )


def _refuse_edited(run: Path, recipe: Recipe, began_with: dict) -> None:
    """Refuse settings that were edited by hand, where they would change the steps of the run.

    Args:
        run: The run folder.
        recipe: The recipe as it is now.
        began_with: The recipe as it was when the run began.

    Raises:
        UserError: There is such a setting.
    """
    before = flatten(began_with)
    for key, new in flatten(as_dict(recipe)).items():
        if key in HARMLESS or key not in before:
            continue
        old = before[key]
        if key in MOVABLE:
            old = _without_place(old)
            new = _without_place(new)
        if old != new:
            raise UserError(
                f"{run / runs.RECIPE}: {key} was {short_repr(old)} when the run began, and is {short_repr(new)} now; "
                "put it back, or start a new run with it."
            )


def _without_place(value: object) -> object:
    """Return what a setting says besides a place: whether there is one, and a source's weight and language.

    Example:
        >>> _without_place([{"source": "/data/train", "weight": 2.0}, "/data/more"])
        [{'weight': 2.0}, 'a place']
    """
    if isinstance(value, list):
        return [_without_place(source) for source in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "source"}
    return None if value is None else "a place"


def _keep_source_settings(recipe: Recipe, changes: Mapping[str, object]) -> dict[str, object]:
    """Return the changes, in which training sources that have moved keep their weights and languages.

    Args:
        recipe: The recipe of the run.
        changes: Recipe keys to set.

    Raises:
        UserError: The run has no such source, or another number of them.
    """
    for key, old in (("data.eval", recipe.data.eval), ("data.test", recipe.data.test)):
        if key in changes and old is None:
            raise UserError(f"{key}: the run has no such source, so none can have moved; start a new run with it.")
    if "data.train" not in changes:
        return dict(changes)
    known = recipe.data.train
    moved = override(Recipe(), {"data.train": changes["data.train"]}).data.sources
    if len(moved) != len(known):
        raise UserError(
            f"data.train: the run has {len(known)} training sources; name the new places of all, in their order."
        )
    sources: list[object] = []
    for old_source, new_source in zip(known, moved, strict=True):
        if isinstance(old_source, Source):
            sources.append(dataclasses.asdict(dataclasses.replace(old_source, source=new_source.source)))
        else:
            sources.append(new_source.source)
    return {**changes, "data.train": sources}


def _refuse_lost(run: Path, recipe: Recipe) -> None:
    """Refuse a run whose data is not where it was, and name the option that tells its new place.

    `locating.locate_start` does the same for the model.

    Raises:
        UserError: A source or a folder is not in its place.
    """
    data = recipe.data
    augment = recipe.augment
    places: list[tuple[str, str | None]] = [("data.train", source.source) for source in data.sources]
    places += [
        ("data.eval", data.eval),
        ("data.test", data.test),
        ("augment.noise_folder", augment.noise_folder),
        ("augment.room_folder", augment.room_folder),
    ]
    for key, name in places:
        # What is not an absolute path is the name of a data set on the Hub.
        if not name or not os.path.isabs(name):
            continue
        if not any(map(os.path.exists, _readings(name))):
            raise UserError(
                f"{run}: {key}: there is no {name} any more. If it has moved, name its new place: whisper-peft train "
                f"--resume {run} {MOVABLE[key]}PLACE"
            )


def _readings(name: str) -> tuple[str, str, str]:
    """Return the paths that a source may name: itself, the PATH of PATH:split, and that of PATH:config:split.

    Example:
        >>> _readings("/data/cv:hi:train")
        ('/data/cv:hi:train', '/data/cv:hi', '/data/cv')
    """
    without_split = name.rpartition(":")[0]
    without_config = without_split.rpartition(":")[0]
    return name, without_split, without_config
