"""train(recipe): base score, fit, final score, run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import platform
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import __version__, runs
from whisper_peft.data import sources
from whisper_peft.data.batching import slack_policy
from whisper_peft.data.dataset import Augment, SpeechDataset
from whisper_peft.data.features import Preparation
from whisper_peft.data.text import language_code
from whisper_peft.errors import Interrupted, UserError
from whisper_peft.evaluation.scoring import figures, left_out_record, records
from whisper_peft.evaluation.transcribing import (
    Transcripts,
    best_device,
    full_limit,
    training_limit,
    transcribe_rows,
)
from whisper_peft.model.build import (
    Located,
    base_identity,
    build_model,
    check_base,
    condense_silence,
    load_config,
    load_preparation,
    locate,
    target_pattern,
)
from whisper_peft.recipe import Recipe, absolute, load_recipe, override, save_recipe
from whisper_peft.training.artefacts import load_weights, replace_artefact, set_generation_language
from whisper_peft.training.defaults import resolve
from whisper_peft.training.speech import Speech, check_languages, load_rows, make_speech

RESUMABLE = ("train.steps", "data.max_left_out")  # what --resume may change: neither touches the steps already made
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "jiwer")


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
        augment: (wave float32 (n_samples,) at 16 kHz, numpy Generator) -> wave; seeded by seed, epoch and row.
        loss: (logits (batch, longest, vocab), labels (batch, longest)) -> summed loss; None: cross-entropy.
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
    began = time.monotonic()
    if resume is not None:
        run = Path(resume)
        recipe = _resumed_recipe(run, changes or {}, say)
    else:
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe else Recipe()
        recipe = absolute(override(recipe, changes or {}), Path.cwd())
        if output is None and not dry_run:
            raise UserError("--output: not set; name the run folder to write.")
        run = Path(output) if output is not None else Path("run")
        if not dry_run:
            runs.refuse_existing(run, f"whisper-peft train --resume {run} goes on with it, or name another --output")
    for name in filter(None, (recipe.model.language, recipe.model.language_token)):
        language_code(name)  # raises: before anything slow
    target_pattern(recipe.lora.targets)  # likewise
    rows = load_rows(recipe)
    located = locate(recipe.model.name)
    if located.adapter:
        check_base(located, located.base)
        if recipe.train.mode == "full":
            build_model(located, "full")  # raises: an adapter cannot be trained in full
    preparation = load_preparation(located.base)
    recipe, remarks = resolve(
        recipe, n_rows=len(rows.train), d_model=load_config(located.base).d_model,
        multilingual=preparation.multilingual, window_s=preparation.window_s,
    )  # fmt: skip
    speech = make_speech(rows, recipe, preparation, augment=augment)
    check_languages(speech, preparation)
    for remark in remarks:
        say(f"Note: {remark}")
    for line in summary(recipe, speech, located):
        say(line)
    if dry_run:
        return recipe
    if resume is None:
        with runs.new_folder(run, f"whisper-peft train --resume {run} goes on with it") as folder:
            save_recipe(recipe, folder / runs.RECIPE)
            runs.write_json(folder / runs.FACTS, _first_facts(recipe, speech, located))
            (folder / runs.CHECKPOINTS).mkdir()
            (folder / runs.METRICS).touch()
            (folder / runs.LEFT_OUT).touch()
    else:
        save_recipe(recipe, run / runs.RECIPE)
        runs.update_facts(run, finished=None)
    return _fit(
        run.resolve(), recipe, speech, located, preparation, loss=loss, callbacks=callbacks,
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
    return [
        f"Model: {located.base}; {kind}; {train.precision}.",
        f"Clips: {len(speech.train)} train, {len(speech.eval)} eval"
        + (" (held out of train)" if speech.held_out else "")
        + f", test: {test}.",
        f"Steps: {train.steps} of {train.batch_size} clips ({at_once} at a time), {recipe.features.window} windows; "
        f"learning rate "
        f"{train.learning_rate:g}, {train.schedule} after {train.warmup_steps} warm-up steps; evaluation every "
        f"{recipe.evaluate.every_steps} steps, best by {recipe.evaluate.best_metric}.",
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


def _first_facts(recipe: Recipe, speech: Speech, located: Located) -> dict:
    import torch

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cuda = torch.cuda.is_available()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "mode": recipe.train.mode,
        "versions": {"python": platform.python_version(), "whisper-peft": __version__, **versions},
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU ({platform.machine()})",
        "base": base_identity(located.base),
        "data": {
            "fingerprint": sources.fingerprint(speech.train.rows),
            "train_clips": len(speech.train),
            "eval_clips": len(speech.eval),
            "eval_held_out": speech.held_out,
            "test_clips": None if speech.test is None else len(speech.test),
        },
    }


def _fit(
    run: Path, recipe: Recipe, speech: Speech, located: Located, preparation: Preparation, *, loss: Callable | None,
    callbacks: Sequence, on_checkpoint: Sequence, say: Callable, progress: bool, began: float,
) -> TrainResult:  # fmt: skip
    from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState, set_seed

    from whisper_peft.training import trainer as parts
    from whisper_peft.training.loss import token_loss_sum

    facts = runs.read_json(run / runs.FACTS)
    if facts["data"]["fingerprint"] != sources.fingerprint(speech.train.rows):
        raise UserError(f"{run}: the training data has changed since the run began; start a new run.")
    checkpoint = next(reversed(runs.complete_checkpoints(run)), None)
    start = runs.checkpoint_step(checkpoint) if checkpoint else 0
    _forget_after(run, start)

    set_seed(recipe.train.seed)
    model = build_model(located, recipe.train.mode, lora=dataclasses.asdict(recipe.lora), freeze=recipe.train.freeze)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(f"Training {trainable:,} of {total:,} parameters.")
    set_generation_language(model, speech)
    condense_silence(model, recipe.features.window)
    slack_s = slack_policy(
        recipe.features.window, slack_s=recipe.features.slack_s, full_share=recipe.features.full_share,
        full_last=recipe.features.full_last, n_steps=recipe.train.steps, seed=recipe.train.seed,
    )  # fmt: skip

    left_out = parts.LeftOutRule(
        run, n_rows=len(speech.train), batch_size=recipe.train.batch_size, start=start,
        max_share=recipe.data.max_left_out, to_record=left_out_record,
    )  # fmt: skip
    signals = parts.Signals()
    extra = [parts.GradientCheck(), parts.ScheduleGoesOn(), left_out, signals, *callbacks, parts.LastStep()]
    if progress:
        extra.append(parts.Progress(recipe.train.batch_size))
    if "tensorboard" in recipe.train.report_to:
        extra.append(tensorboard_callback(run))
    if recipe.train.early_stopping:
        extra.append(EarlyStoppingCallback(early_stopping_patience=recipe.train.early_stopping))
    per_epoch = parts.steps_per_epoch(len(speech.train), recipe.train.batch_size)
    extra.append(parts.RunFiles(run, recipe.train.keep_checkpoints, list(on_checkpoint), per_epoch))
    trainer = parts.SpeechTrainer(
        model, training_arguments(recipe, run), dataset=speech.train, batch_size=recipe.train.batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        micro_batch_s=recipe.train.micro_batch_s, slack_s=slack_s, start=start, loss=loss or token_loss_sum,
        on_batch=left_out.on_batch, callbacks=extra,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # figures go to metrics.jsonl, progress to the bar

    limits = {name: training_limit(data, preparation) for name, data in (("eval", speech.eval), speech.scored)}

    def score(split: str, rows: Sequence[int], limit: int, label: str, slack_s: float = math.inf) -> Transcripts:
        dataset = speech.eval if split == "eval" else speech.test
        with _bar(f"scoring {label}", len(rows), progress) as update:
            found = transcribe_rows(
                trainer.model, dataset, rows, batch_size=recipe.evaluate.batch_size,
                slack_s=slack_s, max_new_tokens=limit,
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
        result = figures(speech.eval, score("eval", selection, limits["eval"], "eval", short))
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
        if start >= recipe.train.steps:
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))  # killed while scoring
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - tick + facts.get("train_seconds", 0.0)
        step = trainer.state.global_step
        runs.update_facts(run, train_seconds=round(seconds, 1), steps=step, peak_memory_bytes=peak_memory_bytes())
        if signals.received:
            raise Interrupted(
                signals.received, f"interrupted after step {step}, saved; whisper-peft train --resume {run} goes on."
            )
        if left_out.stopped:
            raise UserError(
                f"data.train: {left_out.stopped}. Mend them and start a new run, or accept them: "
                f"whisper-peft train --resume {run} --set data.max_left_out=1"
            )
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
    hours = _hours(speech.train, left_out)
    facts = runs.update_facts(
        run, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), best_step=best, best_metric=recipe.evaluate.best_metric,
        after=after, final=final, train_hours=hours, trainable_parameters=trainable, parameters=total,
        empty_steps=trainer.empty_steps, padding_share=_padding_share(trainer),
        left_out=len(left_out.known), seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    return TrainResult(run, facts)


def training_arguments(recipe: Recipe, run: Path):
    """The Trainer's arguments for a resolved recipe."""
    from whisper_peft.training.trainer import OneDeviceArguments

    train = recipe.train
    # transformers 5.20 or so renamed gradient checkpointing. Re-entrant, it leaves encoder adapters without gradient.
    known = OneDeviceArguments.__dataclass_fields__
    word = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    checkpointing = {word: train.gradient_checkpointing, f"{word}_kwargs": {"use_reentrant": False}}
    return OneDeviceArguments(
        output_dir=str(run / runs.CHECKPOINTS),
        max_steps=train.steps,
        per_device_train_batch_size=1,  # of the loader: one optimizer step is one batch
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        **checkpointing,
        eval_strategy="steps",
        eval_steps=recipe.evaluate.every_steps,
        save_strategy="steps",
        save_steps=recipe.evaluate.every_steps,
        save_total_limit=None,  # old checkpoints are removed only after the new one is marked complete
        metric_for_best_model=recipe.evaluate.best_metric,
        greater_is_better=False,
        logging_steps=train.logging_steps,
        report_to=[name for name in train.report_to if name != "tensorboard"] or "none",
        dataloader_num_workers=train.workers,
        ignore_data_skip=True,  # the sampler begins where the checkpoint ended
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,  # peft hides the names of the model's arguments
        label_names=["labels"],
        seed=train.seed,
        use_cpu=best_device().type == "cpu",  # said plainly, else bf16 is refused there
        disable_tqdm=True,  # a bar of our own, with clips per second
    )


def tensorboard_callback(run: Path):
    """TensorBoard with its files in the run folder, under every transformers we allow.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.report_to: tensorboard is not installed; pip install 'whisper-peft[tensorboard]', or leave it out."
        ) from None
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(run / "tensorboard")))


def peak_memory_bytes() -> int:
    """Peak of the GPU's allocator, or of this process's resident memory on the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


def _padding_share(trainer) -> float | None:
    """How much of the windows trained on was silence behind clips; of this process, if the run was resumed."""
    return round(1 - trainer.speech_s / trainer.window_s, 4) if trainer.window_s else None


def _hours(dataset: SpeechDataset, left_out) -> float:
    out = {row for split, row in left_out.known if split == "train"}
    return round(sum(dataset.duration_s(i) for i in range(len(dataset)) if i not in out) / 3600, 3)


@contextlib.contextmanager
def _bar(label: str, total: int, shown: bool):
    if not shown:
        yield lambda clips: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="clip", leave=False, disable=None) as bar:
        yield bar.update
