"""train(recipe): everything that can be refused or settled before the first step, and the run folder."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import clips_per_epoch
from whisper_peft.data.dataset import AugmentFunction
from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.model.architecture import Architecture
from whisper_peft.model.build import build_model, check_mode
from whisper_peft.model.configs import load_config, load_preparation
from whisper_peft.model.devices import dtype_of, free_unused_memory, return_large_blocks
from whisper_peft.model.locating import Located, locate_start
from whisper_peft.model.lora import make_target_pattern
from whisper_peft.recipe import Recipe, as_dict
from whisper_peft.recipe_files import read_recipe, save_recipe
from whisper_peft.training.defaults import adapters_own, refuse_workers, resolve
from whisper_peft.training.facts import (
    check_unchanged,
    commit_of,
    first_facts,
    share_of_full_windows,
    warn_of_recordings,
)
from whisper_peft.training.first_look import first_look, refuse_unusable
from whisper_peft.training.planning import check_memory
from whisper_peft.training.resuming import check_checkpoints, resumed_recipe
from whisper_peft.training.session import Session
from whisper_peft.training.splits import (
    MOST_OF_TEXT,
    MOST_SCORED,
    Speech,
    check_languages,
    load_rows,
    make_speech,
    overlap_remarks,
)

LONG_WINDOW = 500  # positions of the encoder, about 10 s: above, or checkpointing, memory matters more than time


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; the same is in its run.json."""

    run: Path
    facts: dict

    @property
    def model(self) -> Path:
        """The adapter or the model that was trained."""
        return self.run / (runs.ADAPTER if (self.run / runs.ADAPTER).exists() else runs.MODEL)


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    base: str | Path | None = None,
    changes: dict[str, object] | None = None,
    dry_run: bool = False,
    force: bool = False,
    augment: AugmentFunction | None = None,
    loss: Callable | None = None,
    callbacks: Sequence = (),
    on_checkpoint: Sequence[Callable[[Path], None]] = (),
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> TrainResult | Recipe:
    """Fine-tunes Whisper as a recipe says, or goes on with a run.

    Args:
        recipe: a Recipe, a path, or the name of a shipped one; not with `resume`.
        output: the new run folder.
        resume: a run folder to go on with, from its newest complete checkpoint.
        base: where the base of the adapter that is trained further is now; with `resume`, where the run's base is.
        changes: recipe keys to set, as ``{"train.steps": 200}``; with `resume` only train.steps (to a higher number),
            data.max_left_out and train.workers, and where data or model lie that have moved: data.train, data.eval,
            data.test, model.name, augment.noise_folder and augment.room_folder.
        dry_run: read the sources and resolve the recipe, train nothing; returns the resolved Recipe.
        force: train although the plan says that there is not enough memory.
        augment: (wave float32 (n_samples,) at 16 kHz, numpy Generator) -> wave; seeded by seed, epoch and row; after
            the recipe's own augmentation.
        loss: (logits (n_targets, vocab), labels (n_targets,)) -> summed loss; None: cross-entropy.
        callbacks: transformers TrainerCallbacks.
        on_checkpoint: functions of a checkpoint folder, called when it is complete.
        say: told one line at a time what happens.
        progress: show bars on stderr.

    Returns:
        TrainResult, or the resolved Recipe of a dry run.

    Raises:
        UserError: settings, data or model that cannot be used; too many clips left out.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    from transformers import set_seed

    began = time.monotonic()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "WORLD_SIZE: training with several processes is not supported yet; start one, without a launcher."
        )
    if resume is not None:
        run = Path(resume)
        recipe = resumed_recipe(run, changes or {}, say)
        check_checkpoints(run)
    else:
        recipe = read_recipe(recipe, changes or {})
        if output is None and not dry_run:
            raise UserError("--output: not set; name the run folder to write.")
        run = Path(output) if output is not None else Path("run")
        if not dry_run:
            runs.refuse_existing(run, f"whisper-peft train --resume {run} goes on with it, or name another --output")
    runs.refuse_odd_name(run)
    refuse_workers(recipe.train.workers)
    if name := recipe.model.language_token or recipe.model.language:
        language_code(name)  # raises: before anything slow
    make_target_pattern(recipe.lora.targets)  # likewise
    located = locate_start(recipe.model.name, base, resumed=resume is not None)
    check_mode(located, recipe.train.mode, recipe.train.quantize)
    if located.adapter is None and located.from_hub and resume is not None:
        # The commit that the run began with, whatever is newest now.
        began_with = runs.read_json(run / runs.FACTS)["base"]
        located = dataclasses.replace(located, commit=commit_of(began_with, located))
    prepared = functools.cache(lambda: load_preparation(located.base, revision=located.commit))
    rows = load_rows(recipe, n_tokens=lambda text: prepared().n_tokens(text))
    preparation = prepared()
    config = load_config(located.base, revision=located.commit)
    recipe, remarks = resolve(
        recipe, n_rows=clips_per_epoch(rows.parts), d_model=config.d_model, multilingual=preparation.multilingual,
        row_languages={row.language for row in rows.train},
        references=[row.text[:MOST_OF_TEXT] for row in rows.eval[:MOST_SCORED]],
    )  # fmt: skip
    remarks += [*rows.remarks, *overlap_remarks(rows)]
    recipe, more = adapters_own(recipe, located)
    remarks += more
    speech = make_speech(rows, recipe, preparation, augment=augment)
    check_languages(speech, preparation)
    recipe, load, planned = check_memory(recipe, speech, Architecture.of(config), force=force)
    for remark in remarks:
        say(f"Note: {remark}")
    for line in (*summary(recipe, speech, located), planned):
        say(line)
    if resume is None:  # else it was looked at when the run began, and has not changed since
        for line in first_look(rows, speech, recipe, preparation):
            say(line)
        refuse_unusable(speech, recipe)
        full_windows = share_of_full_windows(speech.train)
        warning = warn_of_recordings(as_dict(recipe), full_windows)
        if warning:
            say(f"Warning: {warning}")
    if dry_run:
        return recipe
    if resume is None:
        facts = {**first_facts(recipe, speech, located, full_windows), "recipe": as_dict(recipe)}
    else:
        facts = runs.read_json(run / runs.FACTS)
        check_unchanged(run, facts, speech, located)
        if Path(located.base).is_dir() and "path" in facts["base"]:
            facts["base"]["path"] = str(Path(located.base).resolve())  # it may have moved
    # Whatever is newest on the Hub by then.
    located = dataclasses.replace(located, commit=commit_of(facts["base"], located))
    if load.positions > LONG_WINDOW or recipe.train.gradient_checkpointing:
        return_large_blocks()
    set_seed(recipe.train.seed)
    model = build_model(
        located, recipe.train.mode, lora=dataclasses.asdict(recipe.lora), freeze=recipe.train.freeze,
        quantize=recipe.train.quantize, autocast_dtype=dtype_of(recipe.train.precision),
    )  # fmt: skip
    free_unused_memory()  # loading leaves some
    if resume is None:  # all that can be refused has been: a folder appears only for a run that can begin
        with runs.new_folder(run, f"whisper-peft train --resume {run} goes on with it") as folder:
            save_recipe(recipe, folder / runs.RECIPE)
            runs.write_json(folder / runs.FACTS, facts)
            (folder / runs.CHECKPOINTS).mkdir()
            (folder / runs.METRICS).touch()
            (folder / runs.LEFT_OUT).touch()
    else:
        save_recipe(recipe, run / runs.RECIPE)
        runs.update_facts(run, finished=None, recipe=as_dict(recipe), base=facts["base"])
    session = Session(run.resolve(), recipe, speech, located, preparation, say=say, progress=progress)
    try:
        facts = session.fit(model, loss=loss, callbacks=callbacks, on_checkpoint=on_checkpoint, began=began)
    except Exception:
        if resume is None and not runs.complete_checkpoints(session.run):
            shutil.rmtree(session.run)  # nothing to go on from: a folder would only block the run's name
        raise
    return TrainResult(session.run, facts)


def summary(recipe: Recipe, speech: Speech, located: Located) -> list[str]:
    """What is about to happen, in a few lines."""
    train, lora = recipe.train, recipe.lora
    test = "none (the final figure is of the selection set, optimistic)" if speech.test is None else len(speech.test)
    at_once = train.micro_batch_size
    at_once = f"{train.micro_batch_s:g} s of windows" if at_once == "auto" else at_once
    kind = "all weights" if train.mode == "full" else f"LoRA rank {lora.rank}, alpha {lora.alpha}, {lora.targets}"
    if located.adapter and train.mode == "lora":
        kind = f"LoRA, going on from {located.adapter}"
    if train.quantize:
        kind += f" on a {train.quantize} base"
    return [
        f"Model: {located.base}; {kind}; {train.precision}.",
        f"Clips: {'a stream of' if speech.stream else len(speech.train)} train, {len(speech.eval)} eval"
        + (" (held out of train)" if speech.held_out else "")
        + f", test: {test}.",
        f"Steps: {train.steps} of {train.batch_size} clips ({at_once} at a time), {recipe.features.window} windows; "
        f"learning rate {train.learning_rate:g}, {train.schedule} after {train.warmup_steps} warm-up steps; "
        f"evaluation every {recipe.evaluate.every_steps} steps, best by {recipe.evaluate.best_metric}.",
    ]
