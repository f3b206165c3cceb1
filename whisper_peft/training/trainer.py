"""The one Seq2SeqTrainer subclass, and the callbacks of a run.

Imported only when training starts: transformers' trainer takes seconds to import.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from whisper_peft.data.batching import (
    Block,
    Stitching,
    clips_at_once,
    cut,
)
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import SpeechDataset, leave_signals_to_main
from whisper_peft.data.features import IGNORED
from whisper_peft.data.samplers import StepSampler, StreamSampler
from whisper_peft.errors import UserError
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import free_unused_memory, is_out_of_memory
from whisper_peft.model.head import logits_at
from whisper_peft.model.specaugment import set_masks
from whisper_peft.training.loss import token_loss_sum


class OneDeviceArguments(Seq2SeqTrainingArguments):
    """Training arguments that never ask for DataParallel: several visible GPUs without a launcher mean the first."""

    def __post_init__(self) -> None:
        """Forgets the precision of the run before: transformers 4 leaves it where accelerate reads, the environment."""
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, super().n_gpu)


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
        parts: (rows, weight) of the sources, see `steps`.
        stream: gives the steps, where the rows are of a stream.
        begin: the block that `start` is in, where a checkpoint kept it.
        masks: of SpecAugment, see `set_masks`; None: none.
        evaluate_model: () -> metrics (without prefix), or None.
        loss: (logits (n_targets, vocab), labels (n_targets,)) -> summed loss over the micro-batch's targets.
        on_batch: told each step's batch before it is trained on.
        stitching: how a share of the clips is joined into longer windows; None: none.
        on_finer_cut: told how many clips are in memory at once from now on, after a step ran out of memory.
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
        parts: Sequence[tuple[int, float]] = (),
        stitching: Stitching | None = None,
        stream: StreamSampler | None = None,
        begin: Block | None = None,
        masks: Mapping[str, float] | None = None,
        evaluate_model: Callable[[], dict] | None = None,
        loss: Callable = token_loss_sum,
        on_batch: Callable[[dict], None] = lambda batch: None,
        on_finer_cut: Callable[[int], None] = lambda clips: None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        super().__init__(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)
        self.batch_size, self.micro_batch_size, self.micro_batch_s = batch_size, micro_batch_size, micro_batch_s
        self.slack_s, self.start, self.parts, self.masks = slack_s, start, parts, masks
        self.sampler = stream or StepSampler(
            dataset, batch_size, slack_s=slack_s, seed=self.args.seed, start=start, parts=parts, begin=begin,
            rank=self.accelerator.process_index, n_ranks=self.accelerator.num_processes, stitching=stitching,
        )  # fmt: skip
        self.evaluate_model, self.loss, self.on_batch, self.on_finer_cut = evaluate_model, loss, on_batch, on_finer_cut
        self.empty_steps, self.kept, self.speech_s, self.window_s = 0, 0, 0.0, 0.0

    def get_train_dataloader(self) -> DataLoader:
        """Endless optimizer steps, one a batch."""
        dataset, workers = self.train_dataset, self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=self.sampler,
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
        self.kept += inputs["kept"]
        if len(labels) == 0:  # this rank's share was left out, others' was not: it must take part in their reduction
            inputs = without_targets(inputs)
        inputs["input_features"] = self._common_window(inputs["input_features"])
        window_s = inputs["input_features"].shape[-1] / self.train_dataset.preparation.frames_per_s
        self.window_s += window_s * len(labels)
        loss = self._in_pieces(model, inputs, window_s, n_ranks / n_tokens)  # data parallel takes the mean over ranks
        if not loss.isfinite():
            rate = self.args.learning_rate
            raise UserError(
                f"step {self.state.global_step + 1}: the training loss is {loss.item()}, which is not a finite number. "
                f"Nothing after the last checkpoint is kept. Take a lower train.learning_rate (now {rate:g}) or "
                "train.precision=fp32, and look at the data with whisper-peft check."
            )
        return loss

    def _in_pieces(self, model, inputs: dict, window_s: float, scale: float) -> torch.Tensor:
        """The step's micro-batches; where memory runs out the whole step again, cut finer: it is the same step."""
        random_state = _random_state()
        while True:
            fitting = clips_at_once(window_s, self.micro_batch_s)
            clips = min(len(inputs["labels"]), fitting if self.micro_batch_size == "auto" else self.micro_batch_size)
            try:
                return self._backward(model, inputs, cut(len(inputs["labels"]), clips), scale)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
            if clips == 1:
                raise UserError(
                    f"out of memory with one clip of {window_s:.1f} s at a time; take --set "
                    "train.gradient_checkpointing=true, --quantize 4bit or a smaller model. The run goes on from its "
                    "last checkpoint with what it began with; other settings want a new run."
                )
            clips = -(-clips // 2)
            self.micro_batch_s = clips * window_s
            if self.micro_batch_size != "auto":
                self.micro_batch_size = clips
            model.zero_grad()
            free_unused_memory()
            _restore(random_state)
            self.on_finer_cut(clips)

    def _backward(self, model, inputs: dict, pieces: list[slice], scale: float) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, {key: inputs[key][piece] for key in MODEL_INPUTS})
                loss = loss * scale
                self.accelerator.backward(loss)
            total += loss.detach()
            del loss  # and with it what its functions still hold
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
        targets = inputs["labels"][wanted]
        whisper, features = whisper_of(self.accelerator.unwrap_model(model)), inputs["input_features"]
        if self.masks:
            features = features.clone()  # masks are written into it, and the step may have to be made again
        with (
            logits_at(whisper, wanted, then=lambda logits: self.loss(logits, targets)),
            set_masks(whisper, self.masks, features.shape[-1]),
        ):
            outputs = model(input_features=features, decoder_input_ids=inputs["decoder_input_ids"], use_cache=False)
        loss = outputs.logits
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


def _random_state() -> tuple:
    """What dropout draws from, and SpecAugment: numpy's."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda, np.random.get_state()


def _restore(state: tuple) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
    np.random.set_state(state[2])


MODEL_INPUTS = ("input_features", "decoder_input_ids", "labels")


def first_batches(trainer: SpeechTrainer, count: int) -> list[dict]:
    """The first optimizer steps as the trainer will see them; for tests and curious eyes."""
    return list(itertools.islice(iter(trainer.get_train_dataloader()), count))
