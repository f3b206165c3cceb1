"""The defaults: what a recipe leaves open is decided from mode, model size, data and hardware."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection
from typing import TypeVar

from whisper_peft.data.batching import SLACK_S, steps_per_epoch
from whisper_peft.data.text import has_spaces, is_mostly_spaceless, language_code
from whisper_peft.errors import UserError
from whisper_peft.model.adapter_configs import read_adapter_config
from whisper_peft.model.devices import best_precision
from whisper_peft.model.locating import Located
from whisper_peft.model.lora import describe_targets
from whisper_peft.recipe import Features, Lora, Model, Recipe, Train
from whisper_peft.recipe_dicts import rule_of
from whisper_peft.training.resolved import (
    ResolvedEvaluate,
    ResolvedLora,
    ResolvedRecipe,
    ResolvedTrain,
    with_values,
)

# Default learning rates of full fine-tuning, by the largest width (d_model) that they are for. They are the values
# published with Whisper's fine-tuning advice: a fortieth of the rates of pre-training (Radford et al. 2022, table 17).
# The rate at 128 suits the miniature model that ships with the package.
FULL_LEARNING_RATES = {128: 1e-3, 384: 3.75e-5, 512: 2.5e-5, 768: 1.25e-5, 1024: 6.25e-6, 1280: 4.375e-6}
# The same for LoRA.
LORA_LEARNING_RATES = {128: 4e-3, 768: 1e-3, 1024: 5e-4, 1280: 3e-4}
# Passes over the training clips where the recipe names neither steps nor epochs.
EPOCHS = 3.0
# A learning rate this many times larger or smaller than the default is remarked on.
FAR_FROM_DEFAULT = 10
# Longest default warm-up, in steps. A short run warms up for a tenth of its steps.
LONGEST_WARMUP = {"full": 500, "lora": 50}
# Evaluations in a run where the recipe names no interval.
EVALUATIONS = 5
# Processes that read audio where the recipe names no number.
MOST_WORKERS = 2
# peft's own values for what an adapter's config does not name.
PEFT_RANK = 8
PEFT_ALPHA = 8

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def default_learning_rate(mode: str, d_model: int) -> float:
    """Return the default learning rate of a mode for a model of this width.

    Example:
        >>> default_learning_rate("lora", 768), default_learning_rate("full", 768)
        (0.001, 1.25e-05)
    """
    rates = FULL_LEARNING_RATES if mode == "full" else LORA_LEARNING_RATES
    for width, rate in rates.items():
        if d_model <= width:
            return rate
    return min(rates.values())


def default_warmup_steps(mode: str, steps: int) -> int:
    """Return the default number of warm-up steps of a run.

    Example:
        >>> default_warmup_steps("lora", 200), default_warmup_steps("lora", 4000)
        (20, 50)
    """
    return min(LONGEST_WARMUP[mode], steps // 10)


def resolve(
    recipe: Recipe,
    *,
    n_rows: int,
    d_model: int,
    multilingual: bool,
    row_languages: Collection[str | None] = (),
    references: Collection[str] = (),
) -> tuple[ResolvedRecipe, list[str]]:
    """Give everything that a recipe leaves open a value.

    Args:
        recipe: The recipe as the user wrote it.
        n_rows: Number of training clips in an epoch; 0 for a stream.
        d_model: Width of the model.
        multilingual: True if the checkpoint has language tokens.
        row_languages: Language codes that the training rows name.
        references: Some texts of the clips that select the checkpoint. Their script decides about `best_metric`, too.

    Returns:
        The resolved recipe, and remarks that the user should see before the first step.

    Raises:
        UserError: Settings contradict each other, the model or this machine.
    """
    model = recipe.model
    train = recipe.train
    steps = _count_steps(train, n_rows)
    usual_rate = default_learning_rate(train.mode, d_model)
    rate = usual_rate if train.learning_rate is None else train.learning_rate
    remarks = _remarks_on_rate(train.mode, rate, usual_rate)
    warmup_steps = train.warmup_steps
    if warmup_steps is None:
        warmup_steps = default_warmup_steps(train.mode, steps)
    elif warmup_steps >= steps:
        remarks.append(
            f"train.warmup_steps {warmup_steps} is not below the run's {steps} steps: the learning rate will never "
            f"reach {rate:g}. A tenth of the steps is usual."
        )
    remarks += _remarks_on_devices()
    precision = _choose_precision(train.precision)
    if train.optimizer != "adamw":
        refuse_optimizer(train.optimizer)
    if train.mode == "full" and train.freeze is None and recipe.lora.modules_to_save:
        remarks.append("lora.modules_to_save has no effect with --mode full.")
    language, borrowed = _resolve_languages(model)
    if not multilingual and language not in (None, "en"):
        raise UserError(f"{model.name}: an English-only checkpoint cannot be given the language '{language}'.")
    best_metric = recipe.evaluate.best_metric
    if best_metric is None:
        is_spaced = _has_spaced_words({borrowed or language, *row_languages}, references)
        best_metric = "wer" if is_spaced else "cer"
    _refuse_unknown_reports(train.report_to)
    lora = with_values(ResolvedLora, recipe.lora, {"alpha": recipe.lora.alpha or 2 * recipe.lora.rank})
    resolved_train = with_values(
        ResolvedTrain,
        train,
        {
            "steps": steps,
            "epochs": None,
            "learning_rate": rate,
            "warmup_steps": warmup_steps,
            "precision": precision,
            "workers": min(MOST_WORKERS, usable_cores()) if train.workers is None else train.workers,
        },
    )
    every_steps = recipe.evaluate.every_steps or max(1, math.ceil(steps / EVALUATIONS))
    evaluate = with_values(
        ResolvedEvaluate, recipe.evaluate, {"every_steps": min(every_steps, steps), "best_metric": best_metric}
    )
    parts = {
        "model": dataclasses.replace(model, language=language, language_token=borrowed),
        "features": dataclasses.replace(recipe.features, slack_s=_choose_slack_s(recipe.features)),
        "lora": lora,
        "train": resolved_train,
        "evaluate": evaluate,
    }
    return with_values(ResolvedRecipe, recipe, parts), remarks


def _count_steps(train: Train, n_rows: int) -> int:
    """Return the number of optimizer steps of a run.

    Raises:
        UserError: Both steps and epochs are set, or there are more steps than can be made.
    """
    if train.steps and train.epochs:
        raise UserError("train.steps and train.epochs: both are set; choose one.")
    if train.steps:
        return train.steps
    epochs = train.epochs or EPOCHS
    steps = math.ceil(epochs * steps_per_epoch(n_rows, train.batch_size))
    most_steps = rule_of("train.steps").at_most
    if most_steps is not None and steps > most_steps:
        raise UserError(
            f"train.epochs: {epochs:g} passes over {n_rows:,} clips are {steps:,} steps of {train.batch_size}; "
            f"at most {most_steps:,} steps are made, so take fewer."
        )
    return steps


def _remarks_on_rate(mode: str, rate: float, usual_rate: float) -> list[str]:
    """Remark on a learning rate that was probably written for the other mode."""
    if usual_rate / FAR_FROM_DEFAULT <= rate <= usual_rate * FAR_FROM_DEFAULT:
        return []
    remark = f"train.learning_rate {rate:g} is far from the {usual_rate:g} that fits --mode {mode} on this model"
    # The rates of LoRA are the larger ones.
    is_too_large = rate > usual_rate
    if mode == "full" and is_too_large:
        return [f"{remark}; it looks like one for --mode lora."]
    if mode == "lora" and not is_too_large:
        return [f"{remark}; it looks like one for --mode full."]
    return [f"{remark}."]


def _remarks_on_devices() -> list[str]:
    """Remark on a machine where training is untested, or where a part of it stays idle."""
    import torch

    remarks = []
    if torch.backends.mps.is_available() and not torch.cuda.is_available():
        remarks.append("training runs on the MPS device, on which this package was never tested.")
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        remarks.append("several GPUs are visible; one is used.")
    return remarks


def _choose_precision(precision: str) -> str:
    """Return `train.precision`, with `auto` decided for this machine.

    Raises:
        UserError: fp16 is asked for without a CUDA device.
    """
    import torch

    if precision == "auto":
        precision = best_precision()
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision: fp16 needs a CUDA device; take auto or fp32.")
    return precision


def _resolve_languages(model: Model) -> tuple[str | None, str | None]:
    """Return the codes of `model.language` and of `model.language_token`; None where there is none."""
    borrowed = language_code(model.language_token) if model.language_token else None
    # Beside a borrowed token, the language may have any name: Whisper never sees it.
    language = language_code(model.language) if model.language and not borrowed else None
    return language or None, borrowed


def _choose_slack_s(features: Features) -> float | None:
    """Return the seconds of silence after the longest clip of a step; None on full windows, which have no slack."""
    if features.slack_s is not None:
        return features.slack_s
    return None if features.window == "full" else SLACK_S[features.window]


def _has_spaced_words(languages: Collection[str | None], references: Collection[str]) -> bool:
    """Tell whether words have spaces between them in all languages, and in the texts."""
    known = {language for language in languages if language is not None}
    return all(map(has_spaces, known)) and not is_mostly_spaceless(references)


def _refuse_unknown_reports(names: Collection[str]) -> None:
    """Refuse a tracker of `train.report_to` that is not installed.

    Raises:
        UserError: There is such a name.
    """
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in set(names) - set(available):
        remedy = "leave it out"
        if name == "tensorboard":
            remedy = f"pip install 'whisper-peft[tensorboard]', or {remedy}"
        if available:
            remedy = f"there is {', '.join(available)}; {remedy}"
        raise UserError(f"train.report_to: '{name}' is not known or not installed; {remedy}.")


def usable_cores() -> int:
    """Count the cores that this process may use."""
    # Only Linux tells. A container or taskset may allow fewer cores than there are.
    if hasattr(os, "sched_getaffinity"):
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

    Example:
        >>> selecting_metric("cer", {"ja"}, []), selecting_metric("cer", {"hi"}, [])
        ('cer_normalized', 'cer')
    """
    if best_metric != "cer" or _has_spaced_words(languages, references):
        return best_metric
    return "cer_normalized"


def refuse_optimizer(name: str) -> None:
    """Refuse an 8-bit optimizer that this machine cannot run.

    Raises:
        UserError: It is a paged one, and there is no GPU; or this bitsandbytes has it for GPUs only.
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


def keep_adapter_settings(recipe: AnyRecipe, located: Located) -> tuple[AnyRecipe, list[str]]:
    """Take over the settings of the adapter that a run continues to train.

    Args:
        recipe: The recipe. Without such an adapter it is returned as it is.
        located: Where the model is.

    Returns:
        The recipe with the adapter's rank and so on, and remarks where the user asked for others.
    """
    if not located.adapter or recipe.train.mode != "lora":
        return recipe, []
    config = read_adapter_config(located.adapter)
    lora = recipe.lora
    own = {
        "rank": config.get("r", PEFT_RANK),
        "alpha": config.get("lora_alpha", PEFT_ALPHA),
        "dropout": config.get("lora_dropout", 0.0),
        "rslora": config.get("use_rslora", False),
        "dora": config.get("use_dora", False),
        "modules_to_save": tuple(config.get("modules_to_save") or ()),
        "targets": describe_targets(config.get("target_modules") or ""),
    }
    usual = dataclasses.replace(Lora(), alpha=2 * lora.rank)
    remarks = []
    for key, value in own.items():
        # A default is not something that the user asked for.
        if getattr(lora, key) not in (value, getattr(usual, key)):
            remarks.append(f"lora.{key}: ignored; the adapter that you continue training has {key} {value}.")
    if located.quantize != recipe.train.quantize:
        words = {None: "an unquantised", "8bit": "an 8bit", "4bit": "a 4bit"}
        before = words[located.quantize]
        now = words[recipe.train.quantize]
        remarks.append(
            f"train.quantize: the adapter that you continue training was trained on {before} base, this run has {now} "
            "one."
        )
    return dataclasses.replace(recipe, lora=dataclasses.replace(lora, **own)), remarks
