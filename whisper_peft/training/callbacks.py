"""The callbacks of a run: what happens between the steps.

Imported only when training starts: transformers' trainer takes seconds to import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from whisper_peft import runs
from whisper_peft.data.dataset import LeftOut
from whisper_peft.errors import Interrupted

# Unusable clips that can stop a run while it goes on.
FEWEST_TO_STOP = 10
# Unusable clips that can be too many when a run is over; one bad file never costs a run.
FEWEST_AT_THE_END = 2
# Clips that must have been met before a run is judged by how many of them were unusable.
CLIPS_TO_JUDGE = 200


class GradientCheck(TrainerCallback):
    """Checks once that everything that should learn has a gradient.

    It looks after the first step that the gradient scaler did not skip. Encoder adapters get no gradient with gradient
    checkpointing in re-entrant mode, and the loss still falls: nobody would notice.
    """

    is_done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Look at the gradients before the optimizer takes them.

        Raises:
            AssertionError: A trainable tensor has no gradient, or one that is zero or not finite: a bug of ours.
        """
        if self.is_done:
            return
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        gradients = {name: weight.grad for name, weight in trainable.items() if weight.grad is not None}
        if not gradients:
            # All clips of this step were left out.
            return
        not_finite = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        if not_finite and args.fp16:
            # The gradient scaler skips this step, so the next one is looked at.
            return
        # The matrices A of a fresh adapter have no gradient yet, because its matrices B are zero.
        is_adapter = any("lora_B" in name for name in trainable)
        zero = []
        for name, gradient in gradients.items():
            must_learn = not is_adapter or "lora_B" in name
            if must_learn and not gradient.any():
                zero.append(name)
        faults = {
            "no gradient": [name for name in trainable if name not in gradients],
            "a non-finite gradient": not_finite,
            "a zero gradient": zero,
        }
        for fault, names in faults.items():
            if names:
                raise AssertionError(f"after the first step {len(names)} trainable tensors have {fault}: {names[:3]}")
        self.is_done = True


class RunFiles(TrainerCallback):
    """Writes metrics.jsonl, completes checkpoints, removes old ones, and calls the user's `on_checkpoint`.

    Args:
        run: The run folder.
        keep: Number of the newest checkpoints that stay.
        on_checkpoint: Functions that are called with the folder of each complete checkpoint.
        steps_per_epoch: Number of steps in an epoch; 0 for a stream.
        is_cut_short: Tells whether training stops only to be resumed.
        add_to: Writes into a checkpoint what the Trainer does not.
    """

    def __init__(
        self,
        run: Path,
        keep: int,
        on_checkpoint: list[Callable[[Path], None]],
        steps_per_epoch: int,
        *,
        is_cut_short: Callable[[], bool] = lambda: False,
        add_to: Callable[[Path], None] = lambda checkpoint: None,
    ):
        self.run = run
        self.keep = keep
        self.on_checkpoint = on_checkpoint
        self.steps_per_epoch = steps_per_epoch
        self.is_cut_short = is_cut_short
        self.add_to = add_to

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append a line to metrics.jsonl."""
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, "time": time.time(), **logs}
        # The epoch that the Trainer logs is a share of max_steps. For a stream nobody knows the epoch.
        record["epoch"] = None
        if self.steps_per_epoch:
            record["epoch"] = round(state.global_step / self.steps_per_epoch, 4)
        runs.append_jsonl(self.run / runs.METRICS, record)

    def on_save(self, args, state, control, **kwargs):
        """Complete the checkpoint that the Trainer has just written."""
        if not state.is_world_process_zero:
            return
        folder = self.run / runs.CHECKPOINTS
        checkpoint = folder / f"checkpoint-{state.global_step}"
        self.add_to(checkpoint)
        is_last = state.global_step >= state.max_steps
        if control.should_training_stop and not self.is_cut_short():
            is_last = True
        runs.mark_complete(
            checkpoint,
            step=state.global_step,
            last_of=state.max_steps if is_last else None,
            files=runs.checksums(checkpoint),
        )
        best = None
        if state.best_global_step:
            best = folder / f"checkpoint-{state.best_global_step}"
        runs.remove_old_checkpoints(self.run, self.keep, best)
        for function in self.on_checkpoint:
            function(checkpoint)


class ScheduleGoesOn(TrainerCallback):
    """Sets the first learning rate after a resume to the schedule's: the number of steps may have been raised."""

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        """Compute the rate of this step anew. If the steps were not raised, this changes nothing."""
        # Every schedule of ours is a factor that depends on the step.
        rates = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
        for group, (base_rate, factor) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base_rate * factor(lr_scheduler.last_epoch)
        # The Trainer logs what get_last_lr returns, and torch has no public way to set it.
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


class LastStep(TrainerCallback):
    """Asks for an evaluation and a checkpoint after the last step, wherever it falls.

    It must come after the callbacks that can stop training. If they already asked for a checkpoint, it does nothing.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for both if this step is the last."""
        was_stopped = control.should_training_stop and not control.should_save
        if state.global_step >= state.max_steps or was_stopped:
            control.should_evaluate = True
            control.should_save = True

    # A user's callback may stop the run when it reads the loss: then, too, both follow.
    on_log = on_step_end


class LeftOutRule(TrainerCallback):
    """Names each unusable clip in left_out.jsonl, and stops the run when there are too many of them.

    The first check is after 200 rows, or at the end of the first epoch or of the run, whichever comes first. Then there
    is one after every step. While a run goes on, it takes at least 10 unusable clips to stop it. At its end, 2 are
    enough: a run in which too many clips could not be used does not count as trained.

    Args:
        run: The run folder.
        n_rows: Number of training clips in an epoch, or in a run on a stream.
        batch_size: Number of clips in an optimizer step.
        start: Number of steps that were made before.
        max_share: The setting `data.max_left_out`.
        to_record: Makes a line of left_out.jsonl: (split, clip) -> dict.
        saved: What `state` returned at the checkpoint that the run goes on from; empty where it kept none.
    """

    def __init__(
        self,
        run: Path,
        *,
        n_rows: int,
        batch_size: int,
        start: int,
        max_share: float,
        to_record: Callable[[str, LeftOut], dict],
        saved: dict[str, int],
    ):
        self.path = run / runs.LEFT_OUT
        self.n_rows = n_rows
        self.max_share = max_share
        self.to_record = to_record
        self.step = start
        # A resumed run meets some clips again that it has already named: (split, row) -> reason.
        self.known: dict[tuple[str, int], str] = {}
        for record in runs.read_jsonl(self.path):
            self.known[record["split"], record["row"]] = record["reason"]
        self.seen = saved.get("seen", min(n_rows, start * batch_size))
        # The checkpoint of an older version does not say; each of its steps had at least one clip.
        self.used = saved.get("used", start)
        self.stopped: str | None = None

    @property
    def reasons(self) -> list[str]:
        """The reasons of the training clips that were left out so far."""
        return [reason for (split, _), reason in self.known.items() if split == "train"]

    def rows(self, split: str) -> set[int]:
        """Return the rows of a split that were left out so far."""
        return {row for known, row in self.known if known == split}

    def state(self) -> dict[str, int]:
        """Return what a checkpoint keeps: how many clips were met, and how many of them were used."""
        return {"seen": self.seen, "used": self.used}

    def add(self, split: str, left_out: list[LeftOut], step: int) -> None:
        """Write down the clips that are not known yet, with the number of steps made when they were met."""
        fresh = [clip for clip in left_out if (split, clip.row) not in self.known]
        runs.append_jsonl(self.path, *({**self.to_record(split, clip), "step": step} for clip in fresh))
        for clip in fresh:
            self.known[split, clip.row] = clip.reason

    def on_batch(self, batch: dict) -> None:
        """Count the clips of a step before it is trained on."""
        self.add("train", batch["left_out"], self.step + 1)
        self.seen = min(self.n_rows, self.seen + batch["n_clips"] + len(batch["left_out"]))
        self.used += batch["n_clips"]

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the run, with a checkpoint, if too many clips were left out."""
        self.step = state.global_step
        self.stopped = self.verdict(is_over=state.global_step >= state.max_steps)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True

    def verdict(self, *, is_over: bool) -> str | None:
        """Say why the run may not go on, or may not be called trained.

        Args:
            is_over: True if all steps are made.

        Returns:
            The fault; None if enough clips could be used.
        """
        n_out = len(self.reasons)
        can_judge = is_over or self.seen >= min(CLIPS_TO_JUDGE, self.n_rows)
        if not n_out or not can_judge:
            return None
        fewest = FEWEST_AT_THE_END if is_over else FEWEST_TO_STOP
        has_too_many = n_out > self.max_share * self.seen and n_out >= fewest
        has_learnt_nothing = is_over and not self.used
        if not has_too_many and not has_learnt_nothing:
            return None
        most_frequent = max(set(self.reasons), key=self.reasons.count)
        n_seen = max(self.seen, n_out)
        return (
            f"{n_out} of the first {n_seen} training clips cannot be used (for example: {most_frequent}); all are "
            f"named in {self.path}"
        )


class Signals(TrainerCallback):
    """Turns Ctrl-C and SIGTERM into a checkpoint after the step in progress; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_training = False
        self.process = os.getpid()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle both signals inside the block; after it, they do again what they did."""
        if threading.current_thread() is not threading.main_thread():
            # Python sets handlers only in the main thread.
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self.process:
            # A worker that reads audio, in the moment before it leaves signals to the main process.
            return
        if not self.is_training or self.received:
            raise Interrupted(number, "interrupted; nothing since the last checkpoint is kept.")
        self.received = number
        print("Stopping after this step, with a checkpoint; once more stops at once.", file=sys.stderr, flush=True)

    def on_train_begin(self, args, state, control, **kwargs):
        """Note that from now on there is a step to finish."""
        self.is_training = True

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint and the end, if a signal came."""
        if self.received:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Note that there is no step any more."""
        self.is_training = False


class Progress(TrainerCallback):
    """A bar over the steps, with the loss, clips per second and the time left.

    Args:
        batch_size: Number of clips in an optimizer step.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.bar: Any = None
        self.loss: float | None = None
        self.first = 0
        self.began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar."""
        from tqdm import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None)
        self.first = state.global_step
        self.began = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remember the loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar on."""
        clips = (state.global_step - self.first) * self.batch_size
        shown = {"clips/s": f"{clips / (time.monotonic() - self.began):.2f}"}
        if self.loss is not None:
            shown["loss"] = f"{self.loss:.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        self.bar.close()
