"""prepare(recipe): everything that can be refused or settled before the first step; nothing is trained or written."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import clips_per_epoch
from whisper_peft.data.dataset import AugmentFunction
from whisper_peft.data.features import Preparation
from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.model.activations import Load
from whisper_peft.model.architecture import Architecture
from whisper_peft.model.build import check_mode
from whisper_peft.model.configs import load_config, load_preparation
from whisper_peft.model.locating import Located, locate_start
from whisper_peft.model.lora import make_target_pattern
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import as_dict
from whisper_peft.recipe_files import read_recipe
from whisper_peft.training.defaults import keep_adapter_settings, refuse_workers, resolve
from whisper_peft.training.facts import check_unchanged, commit_of, share_of_full_windows, warn_of_recordings
from whisper_peft.training.first_look import first_look, refuse_unusable
from whisper_peft.training.planning import MemoryPlan, choose_micro_batch, plan_line
from whisper_peft.training.resolved import ResolvedRecipe
from whisper_peft.training.resuming import check_checkpoints, resumed_recipe
from whisper_peft.training.splits import Speech, check_languages, load_rows, make_speech, overlap_remarks


@dataclass(frozen=True)
class Prepared:
    """A run that can begin. Nothing is loaded, trained or written yet.

    Attributes:
        recipe: The settings, each with a value; also the micro-batch that fits this device.
        run: The run folder, new or resumed; None if no output was named.
        is_resumed: True if the run goes on from an earlier process.
        facts: What the run.json of a resumed run holds; empty for a new run.
        located: The base of the model, and the adapter that is trained further.
        preparation: The input that the checkpoint asks for.
        speech: The three splits as data sets.
        plan: The predicted memory, and the micro-batch that follows from it.
        load: The micro-batch that needs the most memory.
        full_windows: Share of training clips that fill their window; None for a resumed run, whose facts have it.
        remarks: What the user should know before the first step, a line each.
    """

    recipe: ResolvedRecipe
    run: Path | None
    is_resumed: bool
    facts: dict
    located: Located
    preparation: Preparation
    speech: Speech
    plan: MemoryPlan
    load: Load
    full_windows: float | None
    remarks: tuple[str, ...]


def prepare(
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    base: str | Path | None = None,
    changes: dict[str, object] | None = None,
    force: bool = False,
    augment: AugmentFunction | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Settle and check everything that comes before the first step of a run: what a dry run does.

    The sources are read, the recipe is resolved, the memory is predicted, and the first clips are looked at. No weights
    are loaded and nothing is written.

    Args:
        recipe: A Recipe, a path, or the name of a shipped one; not with `resume`.
        output: The run folder that `train` would make; None if nothing is to be trained.
        resume: A run folder that `train` would continue.
        base: Where the base of the adapter is now, or with `resume`, where the run's base is now; None if it has not
            moved.
        changes: Recipe keys to set, see `train`.
        force: True to accept a run that is predicted to need more memory than there is.
        augment: See `train`.
        say: Is called with each line about what happens.

    Returns:
        The run as it would begin.

    Raises:
        UserError: Settings, data or model cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "WORLD_SIZE: training with several processes is not supported yet; start one, without a launcher."
        )
    run, written = _read_recipe(recipe, output=output, resume=resume, changes=changes or {}, say=say)
    _refuse_early(written)
    is_resumed = resume is not None
    facts = {}
    if run is not None and is_resumed:
        facts = runs.read_json(run / runs.FACTS)
    located = _locate(written, base, facts, is_resumed=is_resumed)
    # Only recordings that are cut into clips need the tokenizer before the sources are read.
    preparation_of_base = functools.cache(lambda: load_preparation(located.base, revision=located.commit))
    rows = load_rows(written, n_tokens=lambda text: preparation_of_base().n_tokens(text))
    preparation = preparation_of_base()
    config = load_config(located.base, revision=located.commit)
    resolved, remarks = resolve(
        written,
        n_rows=clips_per_epoch(rows.parts),
        d_model=config.d_model,
        multilingual=preparation.multilingual,
        row_languages={row.language for row in rows.train},
        references=rows.references,
    )
    remarks += [*rows.remarks, *overlap_remarks(rows)]
    resolved, adapter_remarks = keep_adapter_settings(resolved, located)
    remarks += adapter_remarks
    speech = make_speech(rows, resolved, preparation, augment=augment)
    check_languages(speech, preparation)
    resolved, plan, load = choose_micro_batch(resolved, speech, Architecture.of(config), force=force)
    for remark in remarks:
        say(f"Note: {remark}")
    for line in (*summary(resolved, speech, located), plan_line(plan)):
        say(line)
    full_windows = None
    if run is None or not is_resumed:
        for line in first_look(rows, speech, resolved, preparation):
            say(line)
            remarks.append(line)
        refuse_unusable(speech, resolved)
        full_windows = share_of_full_windows(speech.train)
        warning = warn_of_recordings(as_dict(resolved), full_windows)
        if warning:
            say(f"Warning: {warning}")
            remarks.append(warning)
    else:
        # The data was looked at when the run began. Now it only has to be the same.
        check_unchanged(run, facts, speech, located)
        located = dataclasses.replace(located, commit=commit_of(facts["base"], located))
    return Prepared(
        recipe=resolved,
        run=run,
        is_resumed=is_resumed,
        facts=facts,
        located=located,
        preparation=preparation,
        speech=speech,
        plan=plan,
        load=load,
        full_windows=full_windows,
        remarks=tuple(remarks),
    )


def _read_recipe(
    recipe: Recipe | str | Path | None,
    *,
    output: str | Path | None,
    resume: str | Path | None,
    changes: dict[str, object],
    say: Callable[[str], None],
) -> tuple[Path | None, Recipe]:
    """Read the recipe of a new or a resumed run, and find its folder.

    Returns:
        The run folder, None if no output was named; and the recipe.

    Raises:
        UserError: The recipe cannot be used, the new folder cannot be made, or the run cannot go on.
    """
    if resume is not None:
        run = Path(resume)
        resumed = resumed_recipe(run, changes, say)
        check_checkpoints(run)
        runs.refuse_odd_name(run)
        return run, resumed
    written = read_recipe(recipe, changes)
    if output is None:
        return None, written
    run = Path(output)
    runs.refuse_existing(run, f"whisper-peft train --resume {run} continues it, or name another --output")
    runs.refuse_odd_name(run)
    return run, written


def _refuse_early(recipe: Recipe) -> None:
    """Refuse settings that can be judged before anything slow.

    Raises:
        UserError: Too many workers, a language that Whisper does not know, or LoRA targets that do not exist.
    """
    refuse_workers(recipe.train.workers)
    language = recipe.model.language_token or recipe.model.language
    if language:
        language_code(language)
    make_target_pattern(recipe.lora.targets)


def _locate(recipe: Recipe, base: str | Path | None, facts: dict, *, is_resumed: bool) -> Located:
    """Find the model that a run starts from.

    Args:
        recipe: The recipe of the run.
        base: Where the base is now; None if it has not moved.
        facts: What run.json of a resumed run holds; empty for a new run.
        is_resumed: True if the run goes on from an earlier process.

    Raises:
        UserError: It is not found, or cannot be trained in this mode.
    """
    located = locate_start(recipe.model.name, base, resumed=is_resumed)
    check_mode(located, recipe.train.mode, recipe.train.quantize)
    if is_resumed and located.adapter is None and located.from_hub:
        # A resumed run keeps the commit that it began with, whatever is newest on the Hub now.
        located = dataclasses.replace(located, commit=commit_of(facts["base"], located))
    return located


def summary(recipe: ResolvedRecipe, speech: Speech, located: Located) -> list[str]:
    """Say in a few lines what is about to happen."""
    train = recipe.train
    test_set = "none (the final figure is of the selection set, optimistic)"
    if speech.test is not None:
        test_set = str(len(speech.test))
    train_set = "a stream of" if speech.stream else str(len(speech.train))
    held_out = " (held out of train)" if speech.held_out else ""
    at_once = str(train.micro_batch_size)
    if train.micro_batch_size == "auto":
        at_once = f"{train.micro_batch_s:g} s of windows"
    return [
        f"Model: {located.base}; {_trained_part(recipe, located)}; {train.precision}.",
        f"Clips: {train_set} train, {len(speech.eval)} eval{held_out}, test: {test_set}.",
        f"Steps: {train.steps} of {train.batch_size} clips ({at_once} at a time), {recipe.features.window} windows; "
        f"learning rate {train.learning_rate:g}, {train.schedule} after {train.warmup_steps} warm-up steps; "
        f"evaluation every {recipe.evaluate.every_steps} steps, best by {recipe.evaluate.best_metric}.",
    ]


def _trained_part(recipe: ResolvedRecipe, located: Located) -> str:
    """Name what is trained: all weights, a new adapter, or one that is there."""
    lora = recipe.lora
    if recipe.train.mode == "full":
        trained = "all weights"
    elif located.adapter:
        trained = f"LoRA, going on from {located.adapter}"
    else:
        trained = f"LoRA rank {lora.rank}, alpha {lora.alpha}, {lora.targets}"
    if recipe.train.quantize:
        trained += f" on a {recipe.train.quantize} base"
    return trained
