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
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from whisper_peft import runs
from whisper_peft.errors import Interrupted


class GradientCheck(TrainerCallback):
    """After the first step that the gradient scaler did not skip: everything that should learn has a gradient.

    Encoder adapters that get none (gradient checkpointing in re-entrant mode) leave a loss that still falls.
    """

    done = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Checks once."""
        if self.done:
            return
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if all(p.grad is None for _, p in trainable):
            return  # a step without clips
        broken = [name for name, p in trainable if p.grad is not None and not p.grad.isfinite().all()]
        if broken and args.fp16:
            return  # the scaler skips this step; look at the next
        adapted = any("lora_B" in name for name, _ in trainable)
        missing = [name for name, p in trainable if p.grad is None]
        zero = [
            name for name, p in trainable
            if p.grad is not None and (not adapted or "lora_B" in name) and not p.grad.any()
        ]  # fmt: skip
        for names, what in ((missing, "no gradient"), (broken, "a non-finite gradient"), (zero, "a zero gradient")):
            if names:
                raise AssertionError(f"after the first step {len(names)} trainable tensors have {what}: {names[:3]}")
        self.done = True


class RunFiles(TrainerCallback):
    """Writes metrics.jsonl, marks checkpoints complete, removes old ones, and calls the user's `on_checkpoint`."""

    def __init__(
        self, run: Path, keep: int, on_checkpoint: list[Callable[[Path], None]], steps_per_epoch: int, *,
        cut_short: Callable[[], bool] = lambda: False, add_to: Callable[[Path], None] = lambda checkpoint: None,
    ):  # fmt: skip
        self.run, self.keep, self.on_checkpoint, self.steps_per_epoch = run, keep, on_checkpoint, steps_per_epoch
        self.cut_short = cut_short  # whether training stops only to be gone on with
        self.add_to = add_to  # writes what else belongs to a checkpoint

    def on_log(self, args, state, control, logs=None, **kwargs):
        """One line of metrics.jsonl."""
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step, "time": time.time(), **logs}
            # The Trainer's own is of max_steps; of a stream nobody knows it.
            record["epoch"] = round(state.global_step / self.steps_per_epoch, 4) if self.steps_per_epoch else None
            runs.append_jsonl(self.run / runs.METRICS, record)

    def on_save(self, args, state, control, **kwargs):
        """Everything of the checkpoint is on disk now."""
        if not state.is_world_process_zero:
            return
        folder = self.run / runs.CHECKPOINTS
        checkpoint = folder / f"checkpoint-{state.global_step}"
        last = state.global_step >= state.max_steps or (control.should_training_stop and not self.cut_short())
        self.add_to(checkpoint)
        last_of = state.max_steps if last else None
        runs.mark_complete(checkpoint, step=state.global_step, last_of=last_of, files=runs.checksums(checkpoint))
        best = folder / f"checkpoint-{state.best_global_step}" if state.best_global_step else None
        runs.remove_old_checkpoints(self.run, self.keep, best)
        for function in self.on_checkpoint:
            function(checkpoint)


class ScheduleGoesOn(TrainerCallback):
    """The first learning rate after a resume is the schedule's, not the checkpoint's: steps may have been raised."""

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        """Every schedule of ours is a factor of the step; without raised steps this changes nothing."""
        rates = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
        for group, (base, factor) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = base * factor(lr_scheduler.last_epoch)
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what get_last_lr reports


class LastStep(TrainerCallback):
    """Evaluates and saves after the last step, wherever it falls; stands behind the callbacks that may stop a run.

    Who stops with a checkpoint of his own (a signal, too many unusable clips) is left alone.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for both."""
        if state.global_step >= state.max_steps or (control.should_training_stop and not control.should_save):
            control.should_evaluate = control.should_save = True

    on_log = on_step_end  # a callback may stop on a loss it does not like: evaluation and checkpoint still follow


LEAST_TO_STOP = 10  # unusable clips that stop a run before its end
FEW = 2  # unusable clips that can be too many at all: one bad file never costs a run


class LeftOutRule(TrainerCallback):
    """Names each unusable clip in left_out.jsonl, and stops the run when there are too many of them.

    It is judged after 200 rows, or at the end of the first epoch or of the run, whichever comes first, and from then
    on. While a run goes on, fewer than 10 clips do not stop it. At its end, a run in which too many of the clips seen
    could not be used is not called trained, however short it was; only a single bad clip is never too many.

    Args:
        run: The run folder.
        n_rows: Training clips of an epoch, or of a run on a stream.
        batch_size: Clips in an optimizer step.
        start: Steps that were made before.
        max_share: `data.max_left_out`.
        to_record: (split, clip) -> a line of left_out.jsonl.
        saved: What `state` gave at the checkpoint that the run goes on from; {} where it kept none.
    """

    def __init__(
        self, run: Path, *, n_rows: int, batch_size: int, start: int, max_share: float, to_record: Callable,
        saved: dict[str, int],
    ):  # fmt: skip
        self.path, self.n_rows, self.max_share, self.to_record = run / runs.LEFT_OUT, n_rows, max_share, to_record
        self.step = start
        self.known = {
            (one["split"], one["row"]): one["reason"] for one in runs.read_jsonl(self.path)
        }  # a resumed run meets some again
        self.seen = saved.get("seen", min(n_rows, start * batch_size))
        self.used = saved.get("used", start)  # an older checkpoint does not say: at least a clip a step
        self.stopped: str | None = None

    @property
    def reasons(self) -> list[str]:
        """Why training clips were left out, so far."""
        return [reason for (split, _), reason in self.known.items() if split == "train"]

    def rows(self, split: str) -> set[int]:
        """Which rows of a split were left out, so far."""
        return {row for known, row in self.known if known == split}

    def state(self) -> dict[str, int]:
        """Return what a checkpoint keeps: how many clips were met, and how many of them were used."""
        return {"seen": self.seen, "used": self.used}

    def add(self, split: str, left_out: list, *, step: int) -> None:
        """Writes down the clips that are not known yet, and the steps made when they were met."""
        fresh = [one for one in left_out if (split, one.row) not in self.known]
        runs.append_jsonl(self.path, *({**self.to_record(split, one), "step": step} for one in fresh))
        self.known.update({(split, one.row): one.reason for one in fresh})

    def on_batch(self, batch: dict) -> None:
        """Looks at a step before it is trained on."""
        self.add("train", batch["left_out"], step=self.step + 1)
        self.seen = min(self.n_rows, self.seen + batch["n_clips"] + len(batch["left_out"]))
        self.used += batch["n_clips"]

    def on_step_end(self, args, state, control, **kwargs):
        """Stops after a checkpoint."""
        self.step = state.global_step
        self.stopped = self.verdict(is_over=state.global_step >= state.max_steps)
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def verdict(self, *, is_over: bool) -> str | None:
        """Say why the run may not go on, or may not be called trained.

        Args:
            is_over: Whether all steps are made.

        Returns:
            What is wrong; None where enough clips could be used.
        """
        n_out = len(self.reasons)
        if not n_out or not (is_over or self.seen >= min(200, self.n_rows)):
            return None
        is_too_many = n_out > self.max_share * self.seen and n_out >= (FEW if is_over else LEAST_TO_STOP)
        is_empty = is_over and not self.used
        if not is_too_many and not is_empty:
            return None
        most = max(set(self.reasons), key=self.reasons.count)
        n_seen = max(self.seen, n_out)
        return (
            f"{n_out} of the first {n_seen} training clips cannot be used (for example: {most}); all are named in "
            f"{self.path}"
        )


class Signals(TrainerCallback):
    """Ctrl-C and SIGTERM: a checkpoint after the step in progress, then the end; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.training, self.process = False, os.getpid()

    @contextlib.contextmanager
    def caught(self):
        """Handles both signals inside the block; elsewhere they do what they did."""
        if threading.current_thread() is not threading.main_thread():
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
            return  # a process that reads audio, before it leaves signals to the main one
        if not self.training or self.received:
            raise Interrupted(number, "interrupted; nothing since the last checkpoint is kept.")
        self.received = number
        print("Stopping after this step, with a checkpoint; once more stops at once.", file=sys.stderr, flush=True)

    def on_train_begin(self, args, state, control, **kwargs):
        """From now on there is a step to finish."""
        self.training = True

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for a checkpoint and the end."""
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """No step any more."""
        self.training = False


class Progress(TrainerCallback):
    """A bar over the steps, with the loss, clips per second and the time left."""

    def __init__(self, batch_size: int):
        self.batch_size, self.bar, self.loss = batch_size, None, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar."""
        from tqdm import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None)
        self.first, self.began = state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remembers the loss."""
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args, state, control, **kwargs):
        """Moves on."""
        rate = (state.global_step - self.first) * self.batch_size / (time.monotonic() - self.began)
        shown = {"clips/s": f"{rate:.2f}"} | ({"loss": f"{self.loss:.3f}"} if self.loss is not None else {})
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar."""
        self.bar.close()
