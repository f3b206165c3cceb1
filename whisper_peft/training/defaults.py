"""What a recipe leaves open, decided from mode, model size, data and hardware, and said before the first step."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection

from whisper_peft.data.batching import SLACK_S, steps_per_epoch
from whisper_peft.data.text import has_spaces, is_mostly_spaceless, language_code
from whisper_peft.errors import UserError
from whisper_peft.model.adapter_configs import read_adapter_config
from whisper_peft.model.devices import best_precision
from whisper_peft.model.locating import Located
from whisper_peft.model.lora import describe_targets
from whisper_peft.recipe import Lora, Recipe, rule_of

# Learning rates of full fine-tuning: the values published with Whisper's fine-tuning advice, a fortieth of those of
# pre-training (Radford et al. 2022, table 17), by the width of the model; at 128, what suits the shipped miniature.
FULL_LEARNING_RATES = {128: 1e-3, 384: 3.75e-5, 512: 2.5e-5, 768: 1.25e-5, 1024: 6.25e-6, 1280: 4.375e-6}
LORA_LEARNING_RATES = {128: 4e-3, 768: 1e-3, 1024: 5e-4, 1280: 3e-4}
EPOCHS = 3.0


def learning_rate(mode: str, d_model: int) -> float:
    """The default learning rate of a mode for a model of this width."""
    table = FULL_LEARNING_RATES if mode == "full" else LORA_LEARNING_RATES
    return next((rate for width, rate in table.items() if d_model <= width), min(table.values()))


def resolve(
    recipe: Recipe,
    *,
    n_rows: int,
    d_model: int,
    multilingual: bool,
    row_languages: Collection[str | None] = (),
    references: Collection[str] = (),
) -> tuple[Recipe, list[str]]:
    """Fills what a recipe leaves null.

    Args:
        recipe: as the user wrote it.
        n_rows: of the training set.
        d_model: width of the model.
        multilingual: whether the checkpoint has language tokens.
        row_languages: codes that the training rows name.
        references: some texts of the clips that select the checkpoint; their script decides, too, by what.

    Returns:
        The recipe without open ends, and remarks worth a user's eye before the first step.

    Raises:
        UserError: settings that contradict each other or this machine.
    """
    import torch
    from transformers.integrations import get_available_reporting_integrations

    train, evaluate, model, remarks = recipe.train, recipe.evaluate, recipe.model, []
    if train.steps and train.epochs:
        raise UserError("train.steps and train.epochs: both are set; choose one.")
    per_epoch = steps_per_epoch(n_rows, train.batch_size)
    steps = train.steps or math.ceil((train.epochs or EPOCHS) * per_epoch)
    most_steps = rule_of("train.steps").at_most
    if most_steps is not None and steps > most_steps:
        raise UserError(
            f"train.epochs: {train.epochs:g} passes over {n_rows:,} clips are {steps:,} steps of {train.batch_size}; "
            f"at most {most_steps:,} steps are made, so take fewer."
        )

    usual = learning_rate(train.mode, d_model)
    rate = usual if train.learning_rate is None else train.learning_rate
    if not usual / 10 <= rate <= usual * 10:
        other = "lora" if train.mode == "full" else "full"
        remarks.append(
            f"train.learning_rate {rate:g} is far from the {usual:g} that fits --mode {train.mode} on this model"
            + (f"; it looks like one for --mode {other}." if (rate > usual) == (train.mode == "full") else ".")
        )
    warmup = train.warmup_steps
    if warmup is None:
        warmup = min(500 if train.mode == "full" else 50, steps // 10)
    elif warmup >= steps:
        remarks.append(
            f"train.warmup_steps {warmup} is not below the run's {steps} steps: the learning rate will never reach "
            f"{rate:g}. A tenth of the steps is usual."
        )
    if torch.backends.mps.is_available() and not torch.cuda.is_available():
        remarks.append("the MPS device is used, on which this package was never tested.")
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        remarks.append("several GPUs are visible; one is used.")
    wanted = best_precision() if train.precision == "auto" else train.precision
    if wanted == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision: fp16 needs a CUDA device; take auto or fp32.")
    if train.optimizer != "adamw":
        refuse_optimizer(train.optimizer)
    if train.mode == "full" and train.freeze is None and recipe.lora.modules_to_save:
        remarks.append("lora.modules_to_save has no effect with --mode full.")
    borrowed = model.language_token and language_code(model.language_token)
    language = (model.language and not borrowed and language_code(model.language)) or None  # else any name will do
    spoken = {borrowed or language, *row_languages} - {None}
    if not multilingual and language not in (None, "en"):
        raise UserError(f"{model.name}: an English-only checkpoint cannot be given the language '{language}'.")
    short = None if recipe.features.window == "full" else SLACK_S[recipe.features.window]
    best = evaluate.best_metric
    if best is None:
        best = "wer" if all(map(has_spaces, spoken)) and not is_mostly_spaceless(references) else "cer"
    available = get_available_reporting_integrations() if train.report_to else []
    for name in set(train.report_to) - set(available):
        extra = "pip install 'whisper-peft[tensorboard]', or " if name == "tensorboard" else ""
        known = f"there is {', '.join(available)}; " if available else ""
        raise UserError(f"train.report_to: '{name}' is not known or not installed; {known}{extra}leave it out.")
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(model, language=language, language_token=borrowed),
        lora=dataclasses.replace(recipe.lora, alpha=recipe.lora.alpha or 2 * recipe.lora.rank),
        train=dataclasses.replace(
            train, steps=steps, epochs=None, learning_rate=rate, warmup_steps=warmup, precision=wanted,
            workers=min(2, usable_cores()) if train.workers is None else train.workers,
        ),
        features=dataclasses.replace(recipe.features, slack_s=recipe.features.slack_s or short),
        evaluate=dataclasses.replace(
            evaluate, every_steps=min(evaluate.every_steps or max(1, math.ceil(steps / 5)), steps), best_metric=best
        ),
    ), remarks  # fmt: skip


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container or taskset may allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_workers(workers: int | None) -> None:
    """Refuse more processes that read audio than there are cores: they would only take memory from each other.

    Raises:
        UserError: There are more.
    """
    cores = usable_cores()
    if workers is not None and workers > cores:
        raise UserError(
            f"train.workers: {workers:,} processes to read audio, but this machine has {cores} cores for it; take at "
            f"most --set train.workers={cores}."
        )


def selecting_metric(best_metric: str, languages: Collection[str | None], references: Collection[str]) -> str:
    """Name the figure that chooses the checkpoint.

    Args:
        best_metric: `evaluate.best_metric`, resolved.
        languages: Codes of the clips that select the checkpoint.
        references: Some of their texts.

    Returns:
        `best_metric` itself, or `cer_normalized` in place of `cer` where words have no spaces between them: spaces
        are then a habit, which must choose nothing.
    """
    is_spaced = all(map(has_spaces, set(languages) - {None})) and not is_mostly_spaceless(references)
    if best_metric != "cer" or is_spaced:
        return best_metric
    return "cer_normalized"


def refuse_optimizer(name: str) -> None:
    """Refuses one that this machine cannot run.

    Raises:
        UserError: paged on a CPU, or 8-bit with a bitsandbytes that has it for GPUs only.
    """
    import bitsandbytes
    import torch

    if torch.cuda.is_available():
        return
    if name.startswith("paged"):
        raise UserError(f"train.optimizer: {name} pages between a GPU's memory and the main one; take adamw_8bit here.")
    kernel = "bitsandbytes::optimizer_update_8bit_blockwise"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(kernel, "CPU"):
        raise UserError(
            f"train.optimizer: bitsandbytes {bitsandbytes.__version__} has {name} for GPUs only; take adamw, or a "
            "newer bitsandbytes."
        )


def adapters_own(recipe: Recipe, located: Located) -> tuple[Recipe, list[str]]:
    """A recipe that goes on with an adapter has its rank and so on, and remarks where other ones were asked for.

    Any other recipe is as it was.
    """
    if not located.adapter or recipe.train.mode != "lora":
        return recipe, []
    config = read_adapter_config(located.adapter)
    lora = recipe.lora
    own = {  # what is not there has peft's own default
        "rank": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rslora": config.get("use_rslora", False),
        "dora": config.get("use_dora", False),
        "modules_to_save": tuple(config.get("modules_to_save") or ()),
        "targets": describe_targets(config.get("target_modules") or ""),
    }
    usual = dataclasses.replace(Lora(), alpha=2 * lora.rank)
    asked = [key for key, value in own.items() if getattr(lora, key) not in (value, getattr(usual, key))]
    remarks = [f"lora.{key}: the adapter that is gone on with has {own[key]}, and keeps it." for key in asked]
    if located.quantize != recipe.train.quantize:
        words = {None: "an unquantised", "8bit": "an 8bit", "4bit": "a 4bit"}
        before, now = words[located.quantize], words[recipe.train.quantize]
        remarks.append(
            f"train.quantize: the adapter that is gone on with was trained on {before} base, this run has {now} one."
        )
    return dataclasses.replace(recipe, lora=dataclasses.replace(lora, **own)), remarks
