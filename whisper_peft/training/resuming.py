"""Going on with a run: what may change in between, what may have moved, and what must be as it was written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr
from whisper_peft.recipe import Recipe, Source, as_dict, flatten, override
from whisper_peft.recipe_files import load_recipe, make_paths_absolute

# Neither touches the steps that are made already.
RESUMABLE = ("train.steps", "data.max_left_out", "train.workers")
# Where things lie; what they hold must be the same. Each with the option that names a new place.
MOVABLE = {
    "data.train": "--train ",
    "data.eval": "--eval ",
    "data.test": "--test ",
    "model.name": "--model ",
    "augment.noise_folder": "--set augment.noise_folder=",
    "augment.room_folder": "--set augment.room_folder=",
}
# They change time and memory, or what is written down, but no step.
HARMLESS = (
    *RESUMABLE, "train.micro_batch_size", "train.micro_batch_s", "train.keep_checkpoints", "train.logging_steps",
    "train.report_to", "evaluate.batch_size",
)  # fmt: skip


def resumed_recipe(run: Path, changes: Mapping[str, object], say: Callable[[str], None]) -> Recipe:
    """Read the recipe of a run to go on with, and make the changes that a resumed run allows.

    Args:
        run: The run folder.
        changes: Recipe keys to set, of `RESUMABLE` and `MOVABLE`.
        say: Told one line at a time what happens.

    Returns:
        The recipe, whose sources and model are there.

    Raises:
        UserError: It is no run, its settings were edited, a change is not allowed, or something is not in its place.
    """
    if not runs.is_run(run):
        raise UserError(f"{run}: not a run folder (no {runs.FACTS} and {runs.RECIPE} in it).")
    recipe = load_recipe(run / runs.RECIPE)
    facts = runs.read_json(run / runs.FACTS)
    began_with = facts.get("recipe")  # runs of earlier versions do not know it
    if began_with is not None:
        _refuse_edited(run, recipe, began_with)
    for key in changes:
        if key not in RESUMABLE and key not in MOVABLE:
            raise UserError(
                f"{key}: cannot change when a run is resumed; only {', '.join(RESUMABLE)} can, and the places of what "
                f"has moved ({', '.join(MOVABLE)})."
            )
    changed = make_paths_absolute(override(recipe, _of_moved_sources(recipe, changes)), Path.cwd())
    steps = recipe.train.steps if began_with is None else began_with["train"]["steps"]
    if changed.train.steps < steps:
        raise UserError(f"train.steps: can only be raised on resume; the run has {steps}.")
    if changed.train.steps > steps:
        say(
            f"Steps raised from {steps} to {changed.train.steps}: the {recipe.train.schedule} schedule "
            "goes on as if it had been planned for that many from the start: the learning rate steps up at this point."
        )
    elif facts.get("finished"):
        raise UserError(f"{run}: finished already; raise --steps above {steps} to train further.")
    _refuse_lost(run, changed)
    return changed


def check_checkpoints(run: Path) -> None:
    """Refuse to go on from a checkpoint whose files are not those that were written.

    Both the newest checkpoint and the best one so far are looked at.

    Raises:
        UserError: A file is gone or damaged.
    """
    newest = next(reversed(runs.complete_checkpoints(run)), None)
    if newest is None:
        return
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
    """Refuse settings that were edited by hand, where they would change the steps of the run."""
    before = flatten(began_with)
    now = flatten(as_dict(recipe))
    for key in now:
        if key in HARMLESS or key not in before:
            continue
        old, new = before[key], now[key]
        if key in MOVABLE:
            old, new = _without_place(old), _without_place(new)
        if old != new:
            raise UserError(
                f"{run / runs.RECIPE}: {key} was {short_repr(old)} when the run began, and is {short_repr(new)} now; "
                "put it back, or start a new run with it."
            )


def _without_place(value: object) -> object:
    """What a source is besides its place: whether there is one, and its weight and language."""
    if isinstance(value, list):
        return [_without_place(source) for source in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != "source"}
    return None if value is None else "a place"


def _of_moved_sources(recipe: Recipe, changes: Mapping[str, object]) -> dict[str, object]:
    """The changes, with the weights and languages that the training sources had."""
    changes = dict(changes)
    for key, has in (("data.eval", recipe.data.eval), ("data.test", recipe.data.test)):
        if key in changes and has is None:
            raise UserError(f"{key}: the run has no such source, so none can have moved; start a new run with it.")
    if "data.train" in changes:
        named = override(Recipe(), {"data.train": changes["data.train"]}).data.sources
        known = recipe.data.train
        if len(named) != len(known):
            raise UserError(
                f"data.train: the run has {len(known)} training sources; name the new places of all, in their order."
            )
        changes["data.train"] = [
            dataclasses.asdict(dataclasses.replace(old, source=new.source)) if isinstance(old, Source) else new.source
            for old, new in zip(known, named, strict=True)
        ]
    return changes


def _refuse_lost(run: Path, recipe: Recipe) -> None:
    """Refuse a run whose data is not where it was, and name the option that tells its new place.

    `locating.locate_start` does the same for the model.
    """
    data, augment = recipe.data, recipe.augment
    named = [("data.train", source.source) for source in data.sources]
    named += [("data.eval", data.eval), ("data.test", data.test)]
    named += [("augment.noise_folder", augment.noise_folder), ("augment.room_folder", augment.room_folder)]
    for key, name in named:
        if name and os.path.isabs(name) and not any(map(os.path.exists, _readings(name))):
            raise UserError(
                f"{run}: {key}: there is no {name} any more. If it has moved, name its new place: whisper-peft train "
                f"--resume {run} {MOVABLE[key]}PLACE"
            )


def _readings(name: str) -> tuple[str, str, str]:
    """A source as a path, as PATH:split, and as PATH:config:split."""
    head = name.rpartition(":")[0]
    return name, head, head.rpartition(":")[0]
