"""The Trainer's arguments for a resolved recipe."""

from __future__ import annotations

from pathlib import Path

from whisper_peft import runs
from whisper_peft.model.devices import best_device
from whisper_peft.recipe import Recipe


def training_arguments(recipe: Recipe, run: Path, *, metric: str | None = None):
    """Make the Trainer's arguments for a resolved recipe.

    Args:
        recipe: Resolved.
        run: The run folder.
        metric: The figure that chooses the checkpoint; None: the recipe's `evaluate.best_metric`.
    """
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
        **({} if train.optimizer == "adamw" else {"optim": train.optimizer}),  # transformers' own is torch's, fused
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        **checkpointing,
        eval_strategy="steps",
        eval_steps=recipe.evaluate.every_steps,
        save_strategy="steps",
        save_steps=recipe.evaluate.every_steps,
        save_total_limit=None,  # old checkpoints are removed only after the new one is marked complete
        metric_for_best_model=metric or recipe.evaluate.best_metric,
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
    """TensorBoard with its files in the run folder, under every transformers we allow."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(run / "tensorboard")))
