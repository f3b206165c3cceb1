"""train(recipe): prepare, load the model, open the run folder, fit."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.dataset import AugmentFunction
from whisper_peft.errors import UserError
from whisper_peft.model.build import build_model
from whisper_peft.model.devices import dtype_of, free_unused_memory, return_large_blocks
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import as_dict
from whisper_peft.recipe_files import save_recipe
from whisper_peft.training.facts import commit_of, first_facts
from whisper_peft.training.prepare import Prepared, prepare
from whisper_peft.training.session import fit

# Positions of the encoder, about 10 s. On longer windows, and with gradient checkpointing, memory matters more than
# the tenth of time that `return_large_blocks` costs.
LONG_WINDOW = 500


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        run: The run folder.
        facts: What its run.json holds.
    """

    run: Path
    facts: dict

    @property
    def model(self) -> Path:
        """The adapter or the model that was trained."""
        adapter = self.run / runs.ADAPTER
        return adapter if adapter.exists() else self.run / runs.MODEL


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    base: str | Path | None = None,
    changes: dict[str, object] | None = None,
    force: bool = False,
    augment: AugmentFunction | None = None,
    loss: Callable | None = None,
    callbacks: Sequence = (),
    on_checkpoint: Sequence[Callable[[Path], None]] = (),
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> TrainResult:
    """Fine-tune Whisper as a recipe says, or continue a run.

    `prepare` does the same up to the first step, and writes nothing.

    Args:
        recipe: A Recipe, a path, or the name of a shipped one; not with `resume`.
        output: The new run folder.
        resume: A run folder to continue, from its newest complete checkpoint.
        base: Where the base of the adapter is now, or with `resume`, where the run's base is now; None if it has not
            moved.
        changes: Recipe keys to set, as ``{"train.steps": 200}``. With `resume` only train.steps (to a higher number),
            data.max_left_out and train.workers, and where data or model lie that have moved: data.train, data.eval,
            data.test, model.name, augment.noise_folder and augment.room_folder.
        force: True to train although the plan says that there is not enough memory.
        augment: Changes each training clip after the recipe's own augmentation: (wave float32 (n_samples,) at 16 kHz,
            numpy Generator) -> wave. The generator is seeded by seed, epoch and row.
        loss: Computes the summed loss: (logits (n_targets, vocab), labels (n_targets,)) -> scalar; None is
            cross-entropy.
        callbacks: TrainerCallbacks of transformers.
        on_checkpoint: Functions that are called with the folder of each checkpoint when it is complete.
        say: Is called with each line about what happens.
        progress: True to show bars on stderr.

    Returns:
        The run folder and its facts.

    Raises:
        UserError: Settings, data or model cannot be used, or too many clips were left out.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    from transformers import set_seed

    began = time.monotonic()
    if output is None and resume is None:
        raise UserError("--output: not set; name the run folder to write.")
    prepared = prepare(
        recipe,
        output=output,
        resume=resume,
        base=base,
        changes=changes,
        force=force,
        augment=augment,
        say=say,
    )
    facts = _facts_of(prepared)
    # From here on the commit is fixed, so that the weights are those that were just hashed.
    located = dataclasses.replace(prepared.located, commit=commit_of(facts["base"], prepared.located))
    prepared = dataclasses.replace(prepared, located=located)
    resolved = prepared.recipe
    if prepared.load.positions > LONG_WINDOW or resolved.train.gradient_checkpointing:
        return_large_blocks()
    set_seed(resolved.train.seed)
    model = build_model(
        located,
        resolved.train.mode,
        lora=dataclasses.asdict(resolved.lora),
        freeze=resolved.train.freeze,
        quantize=resolved.train.quantize,
        autocast_dtype=dtype_of(resolved.train.precision),
    )
    # Loading leaves memory behind that nothing uses any more.
    free_unused_memory()
    run = _open_run(prepared, facts)
    try:
        facts = fit(
            prepared,
            run,
            model,
            loss=loss,
            callbacks=callbacks,
            on_checkpoint=on_checkpoint,
            say=say,
            progress=progress,
            began=began,
        )
    except Exception:
        if not prepared.is_resumed and not runs.complete_checkpoints(run):
            # There is nothing to go on from, so the folder would only block the run's name.
            shutil.rmtree(run)
        raise
    return TrainResult(run, facts)


def _facts_of(prepared: Prepared) -> dict:
    """Return what run.json says at the start of this process."""
    recipe = prepared.recipe
    located = prepared.located
    if not prepared.is_resumed:
        assert prepared.full_windows is not None, "a new run was looked at"
        facts = first_facts(recipe, prepared.speech, located, prepared.full_windows)
        return {**facts, "recipe": as_dict(recipe)}
    facts = prepared.facts
    if Path(located.base).is_dir() and "path" in facts["base"]:
        # The base may have moved since the run began.
        return {**facts, "base": {**facts["base"], "path": str(Path(located.base).resolve())}}
    return facts


def _open_run(prepared: Prepared, facts: dict) -> Path:
    """Make the folder of a new run, or write the new settings into a resumed one.

    All that can be refused has been by now: a folder appears only for a run that can begin.

    Returns:
        The run folder, absolute.
    """
    run = prepared.run
    assert run is not None, "train names an output or a run to resume"
    if prepared.is_resumed:
        save_recipe(prepared.recipe, run / runs.RECIPE)
        runs.update_facts(run, finished=None, recipe=as_dict(prepared.recipe), base=facts["base"])
        return run.resolve()
    with runs.new_folder(run, f"whisper-peft train --resume {run} continues it") as folder:
        save_recipe(prepared.recipe, folder / runs.RECIPE)
        runs.write_json(folder / runs.FACTS, facts)
        (folder / runs.CHECKPOINTS).mkdir()
        (folder / runs.METRICS).touch()
        (folder / runs.LEFT_OUT).touch()
    return run.resolve()
