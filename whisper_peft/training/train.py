"""train(recipe): base score, fit, final score, run folder."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.batching import clips_per_epoch, slack_policy, steps_per_epoch
from whisper_peft.data.dataset import Augment
from whisper_peft.data.features import Preparation
from whisper_peft.data.text import language_code
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.evaluation.scoring import figures, left_out_record, records
from whisper_peft.evaluation.transcribing import (
    Transcripts,
    full_limit,
    training_limit,
    transcribe_rows,
)
from whisper_peft.model.architecture import Architecture
from whisper_peft.model.build import (
    build_model,
    check_mode,
    condense_silence,
    load_config,
    load_preparation,
    target_pattern,
)
from whisper_peft.model.devices import dtype_of, free_unused_memory
from whisper_peft.model.locating import Located, locate, with_base
from whisper_peft.progress import bar
from whisper_peft.recipe import Recipe, override
from whisper_peft.recipe_files import given, load_recipe, save_recipe
from whisper_peft.training.arguments import tensorboard_callback, training_arguments
from whisper_peft.training.artefacts import load_weights, replace_artefact, set_generation_language
from whisper_peft.training.defaults import adapters_own, resolve
from whisper_peft.training.facts import check_unchanged, first_facts, hours, padding_share, peak_memory_bytes
from whisper_peft.training.first_look import first_look
from whisper_peft.training.fitting import check_memory
from whisper_peft.training.speech import Speech, check_languages, load_rows, make_speech, overlap_remarks

RESUMABLE = ("train.steps", "data.max_left_out")  # what --resume may change: neither touches the steps already made


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
    changes: dict[str, object] | None = None,
    dry_run: bool = False,
    force: bool = False,
    augment: Augment | None = None,
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
        changes: recipe keys to set, as ``{"train.steps": 200}``; with `resume` only train.steps (to a higher number)
            and data.max_left_out.
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
        recipe = _resumed_recipe(run, changes or {}, say)
    else:
        recipe = given(recipe, changes or {})
        if output is None and not dry_run:
            raise UserError("--output: not set; name the run folder to write.")
        run = Path(output) if output is not None else Path("run")
        if not dry_run:
            runs.refuse_existing(run, f"whisper-peft train --resume {run} goes on with it, or name another --output")
    if name := recipe.model.language_token or recipe.model.language:
        language_code(name)  # raises: before anything slow
    target_pattern(recipe.lora.targets)  # likewise
    located = locate(recipe.model.name)
    check_mode(located, recipe.train.mode, recipe.train.quantize)
    if located.adapter:
        located = with_base(located)
    elif located.from_hub and resume is not None:  # the commit that the run began with, whatever is newest now
        located = dataclasses.replace(located, commit=runs.read_json(run / runs.FACTS)["base"].get("commit"))
    prepared = functools.cache(lambda: load_preparation(located.base, revision=located.commit))
    rows = load_rows(recipe, n_tokens=lambda text: prepared().n_tokens(text))
    preparation = prepared()
    config = load_config(located.base, revision=located.commit)
    recipe, remarks = resolve(
        recipe, n_rows=clips_per_epoch(rows.parts), d_model=config.d_model, multilingual=preparation.multilingual,
        row_languages={row.language for row in rows.train},
    )  # fmt: skip
    remarks += overlap_remarks(rows)
    if located.adapter and recipe.train.mode == "lora":
        recipe, more = adapters_own(recipe, located.adapter)
        remarks += more
    speech = make_speech(rows, recipe, preparation, augment=augment)
    check_languages(speech, preparation)
    recipe, planned = check_memory(recipe, speech, Architecture.of(config), force=force)
    for remark in remarks:
        say(f"Note: {remark}")
    for line in (*summary(recipe, speech, located), planned):
        say(line)
    if resume is None:  # else it was looked at when the run began, and has not changed since
        for line in first_look(rows, speech, recipe, preparation):
            say(line)
    if dry_run:
        return recipe
    if resume is None:
        facts = first_facts(recipe, speech, located)
    else:
        facts = runs.read_json(run / runs.FACTS)
        check_unchanged(run, facts, speech, located)
    located = dataclasses.replace(located, commit=facts["base"].get("commit"))  # whatever is newest on the Hub by then
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
        facts = runs.update_facts(run, finished=None)
    return _fit(
        run.resolve(), recipe, speech, located, preparation, model, facts, loss=loss, callbacks=callbacks,
        on_checkpoint=on_checkpoint, say=say, progress=progress, began=began,
    )  # fmt: skip


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


def _resumed_recipe(run: Path, changes: dict[str, object], say: Callable[[str], None]) -> Recipe:
    if not runs.is_run(run):
        raise UserError(f"{run}: not a run folder (no {runs.FACTS} and {runs.RECIPE} in it).")
    recipe = load_recipe(run / runs.RECIPE)
    facts = runs.read_json(run / runs.FACTS)
    for key in changes:
        if key not in RESUMABLE:
            raise UserError(f"{key}: cannot change when a run is resumed; only {' and '.join(RESUMABLE)} can.")
    changed = override(recipe, changes)
    if changed.train.steps < recipe.train.steps:
        raise UserError(f"train.steps: can only be raised on resume; the run has {recipe.train.steps}.")
    if changed.train.steps > recipe.train.steps:
        say(
            f"Steps raised from {recipe.train.steps} to {changed.train.steps}: the {recipe.train.schedule} schedule "
            "goes on as if it had been planned for that many from the start: the learning rate steps up at this point."
        )
    elif facts.get("finished"):
        raise UserError(f"{run}: finished already; raise --steps above {recipe.train.steps} to train further.")
    return changed


def _fit(
    run: Path, recipe: Recipe, speech: Speech, located: Located, preparation: Preparation, model, facts: dict, *,
    loss: Callable | None, callbacks: Sequence, on_checkpoint: Sequence, say: Callable, progress: bool, began: float,
) -> TrainResult:  # fmt: skip
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState

    from whisper_peft.training import callbacks as events
    from whisper_peft.training.loss import token_loss_sum
    from whisper_peft.training.trainer import SpeechTrainer, StreamSampler

    checkpoint = next(reversed(runs.complete_checkpoints(run)), None)
    start = runs.checkpoint_step(checkpoint) if checkpoint else 0
    _forget_after(run, start)

    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(f"Training {trainable:,} of {total:,} parameters.")
    set_generation_language(model, speech)
    condense_silence(model, recipe.features.window)
    slack_s = slack_policy(
        recipe.features.window, slack_s=recipe.features.slack_s, full_share=recipe.features.full_share,
        full_last=recipe.features.full_last, n_steps=recipe.train.steps, seed=recipe.train.seed,
    )  # fmt: skip

    left_out = events.LeftOutRule(
        run, n_rows=speech.clips_per_epoch or recipe.train.steps * recipe.train.batch_size,
        batch_size=recipe.train.batch_size, start=start,
        max_share=recipe.data.max_left_out, to_record=left_out_record,
    )  # fmt: skip
    signals = events.Signals()
    extra = [events.GradientCheck(), events.ScheduleGoesOn(), left_out, signals, *callbacks, events.LastStep()]
    if progress:
        extra.append(events.Progress(recipe.train.batch_size))
    if "tensorboard" in recipe.train.report_to:
        extra.append(tensorboard_callback(run))
    if recipe.train.early_stopping:
        extra.append(EarlyStoppingCallback(early_stopping_patience=recipe.train.early_stopping))
    per_epoch = steps_per_epoch(speech.clips_per_epoch, recipe.train.batch_size)
    stream = None
    if speech.stream is not None:
        saved = runs.read_json(checkpoint / runs.STREAM) if checkpoint else {"first_step": 0}
        if checkpoint:
            speech.stream.go_on(saved["stream"])
        stream = StreamSampler(
            speech.stream, recipe.train.batch_size, buffer_rows=recipe.data.shuffle_buffer, slack_s=slack_s,
            seed=recipe.train.seed, start=start, first=saved["first_step"],
        )  # fmt: skip
    extra.append(events.RunFiles(
        run, recipe.train.keep_checkpoints, list(on_checkpoint), per_epoch,
        cut_short=lambda: bool(signals.received or left_out.stopped),
        add_to=lambda checkpoint: stream and runs.write_json(
            checkpoint / runs.STREAM, stream.state_at(runs.checkpoint_step(checkpoint))
        ),
    ))  # fmt: skip

    def finer_cut(clips: int) -> None:
        """Kept for the rest of the run, and for its resume."""
        say(f"Out of memory: the step is made again with {clips} clips at a time; its result is the same.")
        finer = {"train.micro_batch_s": trainer.micro_batch_s, "train.micro_batch_size": trainer.micro_batch_size}
        save_recipe(override(recipe, finer), run / runs.RECIPE)

    trainer = SpeechTrainer(
        model, training_arguments(recipe, run), dataset=speech.train, batch_size=recipe.train.batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        micro_batch_s=recipe.train.micro_batch_s or math.inf, slack_s=slack_s, start=start, parts=speech.parts,
        stream=stream, masks=recipe.augment.masks, loss=loss or token_loss_sum,
        on_batch=left_out.on_batch, on_finer_cut=finer_cut, callbacks=extra,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # figures go to metrics.jsonl, progress to the bar

    limits = {name: training_limit(data, preparation) for name, data in (("eval", speech.eval), speech.scored)}

    def score(split: str, rows: Sequence[int], limit: int, label: str, *, slack_s: float = math.inf,
              selecting: bool = False) -> Transcripts:  # fmt: skip
        dataset = speech.eval if split == "eval" else speech.test
        with bar(f"scoring {label}", len(rows), progress) as update:
            found = transcribe_rows(
                trainer.model, dataset, rows, batch_size=recipe.evaluate.batch_size,
                slack_s=slack_s, stop_loops=selecting, max_new_tokens=limit,
                beams=recipe.evaluate.beams, workers=recipe.train.workers, progress=update,
                autocast=trainer.accelerator.autocast,
            )  # fmt: skip
        left_out.add(split, found.left_out, step=trainer.state.global_step)
        return found

    selection = _fixed_rows(len(speech.eval), recipe.evaluate.max_clips)

    # Checkpoints are compared on the windows that are trained on; the figures of the run are of the model's whole
    # window, since that is what it will be run with elsewhere.
    short = math.inf if recipe.features.window == "full" else recipe.features.slack_s

    def evaluate_model() -> dict:
        result = figures(speech.eval, score("eval", selection, limits["eval"], "eval", slack_s=short, selecting=True))
        step, steps = trainer.state.global_step, recipe.train.steps
        say(f"Step {step} of {steps}: {_rates(result)} on {result['clips']} eval clips.")
        return {**result, "loss": result["token_loss"]}

    trainer.evaluate_model = evaluate_model
    split, scored = speech.scored
    compared = _fixed_rows(len(scored), recipe.evaluate.compare_clips) if recipe.evaluate.compare_clips else []
    with signals.caught():
        if compared and "before" not in facts:
            found = score(split, compared, limits[split], f"{split} before training")
            before = {**figures(scored, found), "split": split, "max_new_tokens": limits[split]}
            facts = runs.update_facts(run, before=before)
            say(f"Before: {_rates(before)} on {before['clips']} {split} clips.")
        tick = time.monotonic()
        if checkpoint and runs.trained_to_the_end(checkpoint, recipe.train.steps):
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))  # killed while scoring
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - tick + facts.get("train_seconds", 0.0)
        step = trainer.state.global_step
        kept = trainer.kept + facts.get("kept_unaugmented", 0)
        runs.update_facts(
            run, train_seconds=round(seconds, 1), steps=step, peak_memory_bytes=peak_memory_bytes(),
            kept_unaugmented=kept,
        )  # fmt: skip
        if signals.received:
            raise Interrupted(
                signals.received, f"interrupted after step {step}, saved; whisper-peft train --resume {run} goes on."
            )
        if left_out.stopped:
            raise UserError(
                f"data.train: {left_out.stopped}. Mend them and start a new run, or accept them: "
                f"whisper-peft train --resume {run} --set data.max_left_out=1"
            )
        if kept:
            say(f"Augmentation: {kept} clips stayed as they were: too long with it, or their noise unreadable.")
        best = trainer.state.best_global_step or step
        load_weights(trainer.model, run / runs.CHECKPOINTS / f"checkpoint-{best}")
        folder = runs.ADAPTER if recipe.train.mode == "lora" else runs.MODEL
        replace_artefact(run / folder, trainer.model, located, facts["base"])

        after = final = None
        if compared or split == "test":
            found = score(split, range(len(scored)), limits[split], f"{split} after training")
            if compared:
                after = {**figures(scored, _subset(found, compared)), "split": split, "max_new_tokens": limits[split]}
            again = [one.row for one in found.transcripts if one.reached_limit]
            full = full_limit(preparation)
            if again and limits[split] < full:  # what ended below the short limit is the same under the full one
                redone = {one.row: one for one in score(split, again, full, f"{split}, full limit").transcripts}
                found.transcripts = [redone.get(one.row, one) for one in found.transcripts]
            final = {**figures(scored, found), "split": split, "max_new_tokens": full}
            runs.rewrite_jsonl(run / "transcripts.jsonl", records(scored, found))
    facts = runs.update_facts(
        run, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), best_step=best, best_metric=recipe.evaluate.best_metric,
        after=after, final=final, trainable_parameters=trainable, parameters=total,
        train_hours=_stream_hours(trainer, start) if stream else hours(speech.train, left_out.rows("train")),
        empty_steps=trainer.empty_steps, padding_share=padding_share(trainer),
        left_out=len(left_out.known), seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    return TrainResult(run, facts)


def _stream_hours(trainer, start: int) -> float | None:
    """Hours that were drawn of a stream; not known of a run that another process began."""
    return None if start else round(trainer.speech_s / 3600, 3)


def _forget_after(run: Path, step: int) -> None:
    """Drops what a killed run wrote after its last checkpoint: it will be written again."""
    for name in (runs.METRICS, runs.LEFT_OUT):
        kept = [record for record in runs.read_jsonl(run / name) if record.get("step", 0) <= step]
        runs.rewrite_jsonl(run / name, kept)
    complete = {path.name for path in runs.complete_checkpoints(run)}
    for folder in (run / runs.CHECKPOINTS).glob("checkpoint-*"):
        if folder.name not in complete:
            shutil.rmtree(folder)


def _fixed_rows(n_rows: int, most: int | None) -> list[int]:
    """At most so many rows, always the same ones."""
    return list(range(n_rows)) if not most or n_rows <= most else sorted(random.Random(0).sample(range(n_rows), most))


def _subset(found: Transcripts, rows: Sequence[int]) -> Transcripts:
    chosen = set(rows)
    return Transcripts(
        [one for one in found.transcripts if one.row in chosen], [one for one in found.left_out if one.row in chosen]
    )


def _rates(result: dict) -> str:
    return f"WER {result['wer']:.1%}, CER {result['cer']:.1%}, token loss {result['token_loss']:.3f}"
