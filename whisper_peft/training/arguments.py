"""The Trainer's arguments for a resolved recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft import runs
from whisper_peft.model.devices import best_device
from whisper_peft.training.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from whisper_peft.training.trainer import OneDeviceArguments


def forget_mixed_precision() -> None:
    """Forget the precision of the run before.

    transformers 4 leaves it in an environment variable, where accelerate reads it. Otherwise a run in fp32 that follows
    one in bf16 in the same process would be in bf16, too.
    """
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


def training_arguments(recipe: ResolvedRecipe, run: Path, *, metric: str | None = None) -> OneDeviceArguments:
    """Make the Trainer's arguments.

    Args:
        recipe: The resolved recipe.
        run: The run folder.
        metric: The figure that chooses the checkpoint; None for the recipe's `evaluate.best_metric`.
    """
    from whisper_peft.training.trainer import OneDeviceArguments

    train = recipe.train
    return OneDeviceArguments(
        output_dir=str(run / runs.CHECKPOINTS),
        max_steps=train.steps,
        # A batch of our dataloader is a whole optimizer step.
        per_device_train_batch_size=1,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        lr_scheduler_type="constant_with_warmup" if train.schedule == "constant" else train.schedule,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        **_optimizer(train.optimizer),
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        **_checkpointing(train.gradient_checkpointing),
        eval_strategy="steps",
        eval_steps=recipe.evaluate.every_steps,
        save_strategy="steps",
        save_steps=recipe.evaluate.every_steps,
        # We remove old checkpoints ourselves, after the new one is marked complete.
        save_total_limit=None,
        metric_for_best_model=metric or recipe.evaluate.best_metric,
        greater_is_better=False,
        logging_steps=train.logging_steps,
        # TensorBoard has a callback of ours.
        report_to=[name for name in train.report_to if name != "tensorboard"] or "none",
        dataloader_num_workers=train.workers,
        # Our sampler already begins where the checkpoint ended.
        ignore_data_skip=True,
        restore_callback_states_from_checkpoint=True,
        # peft hides the names of the model's arguments, so the Trainer would remove every column.
        remove_unused_columns=False,
        label_names=["labels"],
        seed=train.seed,
        # On a machine without a GPU, bf16 is refused unless the CPU is asked for.
        use_cpu=best_device().type == "cpu",
        # Our own bar shows clips per second.
        disable_tqdm=True,
    )


def _optimizer(name: str) -> dict[str, Any]:
    """Return the argument that names an optimizer; none for adamw, which is transformers' default (torch's, fused)."""
    return {} if name == "adamw" else {"optim": name}


def _checkpointing(is_wanted: bool) -> dict[str, Any]:
    """Return the arguments of gradient checkpointing, whose name changed at about transformers 5.20."""
    from whisper_peft.training.trainer import OneDeviceArguments

    name = "gradient_checkpointing"
    if "activation_checkpointing" in OneDeviceArguments.__dataclass_fields__:
        name = "activation_checkpointing"
    # In re-entrant mode, the adapters of the encoder would get no gradient, because its inputs are frozen.
    return {name: is_wanted, f"{name}_kwargs": {"use_reentrant": False}}


def tensorboard_callback(run: Path):
    """Make a callback that writes TensorBoard's files into the run folder, under every transformers that we allow."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(run / "tensorboard")))
