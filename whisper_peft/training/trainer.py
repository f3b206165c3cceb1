"""The one Seq2SeqTrainer subclass, and the callbacks of a run.

Imported only when training starts: transformers' trainer takes seconds to import.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from whisper_peft import runs
from whisper_peft.data.batching import clips_at_once, cut, steps, steps_per_epoch
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Pick, SpeechDataset, leave_signals_to_main
from whisper_peft.data.features import IGNORED
from whisper_peft.errors import Interrupted
from whisper_peft.model.build import whisper_of
from whisper_peft.model.head import logits_at
from whisper_peft.training.loss import token_loss_sum


class OneDeviceArguments(Seq2SeqTrainingArguments):
    """Training arguments that never ask for DataParallel: several visible GPUs without a launcher mean the first."""

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, super().n_gpu)


class StepSampler:
    """The picks of each optimizer step from `start` on, this rank's share of them.

    Not prepared by accelerate, which would hand each rank other whole batches; and it begins at `start` instead of
    reading what was trained on already.
    """

    def __init__(
        self, dataset: SpeechDataset, batch_size: int, *, slack_s: Callable[[int], float], seed: int, start: int,
        rank: int, n_ranks: int,
    ):  # fmt: skip
        self.dataset, self.batch_size, self.slack_s, self.seed, self.start = dataset, batch_size, slack_s, seed, start
        self.rank, self.n_ranks = rank, n_ranks

    def __iter__(self) -> Iterator[list[Pick]]:
        """Endless."""
        drawn = steps(
            len(self.dataset), self.batch_size, seed=self.seed, duration_s=self.dataset.duration_s,
            slack_s=self.slack_s, start=self.start,
        )  # fmt: skip
        return (picks[self.rank :: self.n_ranks] for picks in drawn)


class SpeechTrainer(Seq2SeqTrainer):
    """Whole optimizer steps, cut into micro-batches, with a token-mean loss; evaluation is passed in.

    Args:
        model: Whisper, or an adapter on one.
        args: OneDeviceArguments.
        dataset: the training rows.
        batch_size: clips in an optimizer step.
        micro_batch_size: clips in memory at once; "auto": as many as `micro_batch_s` allows.
        micro_batch_s: seconds of audio windows in memory at once.
        slack_s: step -> seconds of silence behind its longest clip, see `slack_policy`.
        start: the step to begin with.
        evaluate_model: () -> metrics (without prefix), or None.
        loss: (logits (n_targets, vocab), labels (n_targets,)) -> summed loss over the micro-batch's targets.
        on_batch: told each step's batch before it is trained on.
        callbacks: of transformers.
    """

    def __init__(
        self,
        model,
        args: OneDeviceArguments,
        *,
        dataset: SpeechDataset,
        batch_size: int,
        micro_batch_size: int | str = "auto",
        micro_batch_s: float = math.inf,
        slack_s: Callable[[int], float] = lambda step: math.inf,
        start: int = 0,
        evaluate_model: Callable[[], dict] | None = None,
        loss: Callable = token_loss_sum,
        on_batch: Callable[[dict], None] = lambda batch: None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        super().__init__(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)
        self.batch_size, self.micro_batch_size, self.micro_batch_s = batch_size, micro_batch_size, micro_batch_s
        self.slack_s, self.start = slack_s, start
        self.evaluate_model, self.loss, self.on_batch = evaluate_model, loss, on_batch
        self.empty_steps, self.speech_s, self.window_s = 0, 0.0, 0.0

    def get_train_dataloader(self) -> DataLoader:
        """Endless optimizer steps, one a batch."""
        dataset, workers = self.train_dataset, self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=StepSampler(
                dataset, self.batch_size, slack_s=self.slack_s, seed=self.args.seed, start=self.start,
                rank=self.accelerator.process_index, n_ranks=self.accelerator.num_processes,
            ),
            collate_fn=SpeechCollator(dataset.preparation),
            num_workers=workers,
            worker_init_fn=leave_signals_to_main if workers else None,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),  # the loader draws a seed at its start; training's random state stays as it is
        )  # fmt: skip

    def training_step(self, model, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """One whole optimizer step: backward over its micro-batches; returns the token-mean loss."""
        model.train()
        self.on_batch(inputs)
        labels, n_ranks = inputs["labels"], self.accelerator.num_processes
        n_tokens = self.accelerator.reduce((labels != IGNORED).sum().to(self.args.device), "sum").item()
        if n_tokens == 0:  # every clip of the step was left out: nothing to learn, and the optimizer finds no gradient
            self.empty_steps += 1
            if self.args.fp16:  # the gradient scaler insists on one; it skips a step whose gradient is not finite
                weight = next(p for p in model.parameters() if p.requires_grad)
                weight.grad = torch.full_like(weight, torch.inf)
            return torch.zeros((), device=self.args.device)
        self.speech_s += inputs["seconds"]
        if len(labels) == 0:  # this rank's share was left out, others' was not: it must take part in their reduction
            inputs = without_targets(inputs)
        inputs["input_features"] = self._common_window(inputs["input_features"])
        window_s = inputs["input_features"].shape[-1] / self.train_dataset.preparation.frames_per_s
        self.window_s += window_s * len(labels)
        fitting = clips_at_once(window_s, self.micro_batch_s)
        pieces = cut(len(inputs["labels"]), fitting if self.micro_batch_size == "auto" else self.micro_batch_size)
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, {key: inputs[key][piece] for key in MODEL_INPUTS})
                loss = loss * (n_ranks / n_tokens)  # data parallel takes the mean over ranks
                self.accelerator.backward(loss)
            total += loss.detach()
        return self.accelerator.reduce(total, "mean")

    def _common_window(self, features: torch.Tensor) -> torch.Tensor:
        """The step's window is that of its longest clip over all ranks; each saw its own clips only."""
        if self.accelerator.num_processes == 1:
            return features
        frames = torch.tensor([features.shape[-1]], device=self.args.device)
        missing = int(self.accelerator.gather(frames).max()) - features.shape[-1]
        floor = features.amin(dim=(1, 2), keepdim=True).expand(-1, features.shape[1], missing)
        return torch.cat([features, floor], dim=2)

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """The summed loss of a micro-batch; logits only where it is taken."""
        inputs = self._prepare_inputs(inputs)
        wanted = inputs["labels"] != IGNORED
        with logits_at(whisper_of(self.accelerator.unwrap_model(model)), wanted):
            outputs = model(
                input_features=inputs["input_features"], decoder_input_ids=inputs["decoder_input_ids"], use_cache=False
            )
        loss = self.loss(outputs.logits, inputs["labels"][wanted])
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval", **generation) -> dict:
        """Scores by generation, with the function that was passed in; keeps no logits."""
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.evaluate_model().items()}
        self.log({key: value for key, value in metrics.items() if isinstance(value, (int, float))})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def without_targets(empty: dict) -> dict:
    """An empty batch as one of a single clip that no loss is taken of."""
    features = empty["input_features"]
    return {
        "input_features": features.new_zeros((1, *features.shape[1:])),
        "decoder_input_ids": empty["decoder_input_ids"].new_zeros((1, 1)),
        "labels": empty["labels"].new_full((1, 1), IGNORED),
    }


MODEL_INPUTS = ("input_features", "decoder_input_ids", "labels")


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
        cut_short: Callable[[], bool] = lambda: False,
    ):  # fmt: skip
        self.run, self.keep, self.on_checkpoint, self.steps_per_epoch = run, keep, on_checkpoint, steps_per_epoch
        self.cut_short = cut_short  # whether training stops only to be gone on with

    def on_log(self, args, state, control, logs=None, **kwargs):
        """One line of metrics.jsonl."""
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step, "time": time.time(), **logs}
            record["epoch"] = round(state.global_step / self.steps_per_epoch, 4)  # the Trainer's own is of max_steps
            runs.append_jsonl(self.run / runs.METRICS, record)

    def on_save(self, args, state, control, **kwargs):
        """Everything of the checkpoint is on disk now."""
        if not state.is_world_process_zero:
            return
        folder = self.run / runs.CHECKPOINTS
        checkpoint = folder / f"checkpoint-{state.global_step}"
        last = state.global_step >= state.max_steps or (control.should_training_stop and not self.cut_short())
        runs.mark_complete(checkpoint, step=state.global_step, last_of=state.max_steps if last else None)
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


class LeftOutRule(TrainerCallback):
    """Names each unusable clip in left_out.jsonl, and stops the run when there are too many of them.

    Judged at the end of the first epoch or after 200 rows, whichever is first, and from then on; never for fewer than
    10 clips.
    """

    def __init__(self, run: Path, *, n_rows: int, batch_size: int, start: int, max_share: float, to_record: Callable):
        self.path, self.n_rows, self.max_share, self.to_record = run / runs.LEFT_OUT, n_rows, max_share, to_record
        self.batch_size, self.step = batch_size, start
        self.known = {
            (one["split"], one["row"]): one["reason"] for one in runs.read_jsonl(self.path)
        }  # a resumed run meets some again
        self.seen = min(n_rows, start * batch_size)
        self.stopped: str | None = None

    @property
    def reasons(self) -> list[str]:
        """Why training clips were left out, so far."""
        return [reason for (split, _), reason in self.known.items() if split == "train"]

    def rows(self, split: str) -> set[int]:
        """Which rows of a split were left out, so far."""
        return {row for known, row in self.known if known == split}

    def add(self, split: str, left_out: list, *, step: int) -> None:
        """Writes down the clips that are not known yet, and the steps made when they were met."""
        fresh = [one for one in left_out if (split, one.row) not in self.known]
        runs.append_jsonl(self.path, *({**self.to_record(split, one), "step": step} for one in fresh))
        self.known.update({(split, one.row): one.reason for one in fresh})

    def on_batch(self, batch: dict) -> None:
        """Looks at a step before it is trained on."""
        self.add("train", batch["left_out"], step=self.step + 1)
        self.seen = min(self.n_rows, self.seen + len(batch["rows"]) + len(batch["left_out"]))

    def on_step_end(self, args, state, control, **kwargs):
        """Stops after a checkpoint."""
        self.step = state.global_step
        n_out = len(self.reasons)
        judged = self.seen >= min(200, self.n_rows)
        if judged and n_out >= 10 and n_out > self.max_share * self.seen:
            most = max(set(self.reasons), key=self.reasons.count)
            self.stopped = (
                f"{n_out} of the first {self.seen} training clips cannot be used (for example: {most}); all are named "
                f"in {self.path}"
            )
            control.should_save = control.should_training_stop = True


class Signals(TrainerCallback):
    """Ctrl-C and SIGTERM: a checkpoint after the step in progress, then the end; a second one ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.training = False

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


def first_batches(trainer: SpeechTrainer, count: int) -> list[dict]:
    """The first optimizer steps as the trainer will see them; for tests and curious eyes."""
    return list(itertools.islice(iter(trainer.get_train_dataloader()), count))


__all__ = [
    "GradientCheck", "LastStep", "LeftOutRule", "OneDeviceArguments", "Progress", "RunFiles", "ScheduleGoesOn",
    "Signals", "SpeechTrainer", "first_batches", "steps_per_epoch",
]  # fmt: skip
