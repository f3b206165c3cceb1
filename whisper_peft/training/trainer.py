"""The one Seq2SeqTrainer subclass: whole optimizer steps, cut into micro-batches.

Imported only when training starts: transformers' trainer takes seconds to import.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, TrainerControl, TrainerState

from whisper_peft.data.batching import clips_at_once, cut
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

# What the model and the loss take of a batch, and what is cut into micro-batches with it.
MODEL_INPUTS = ("input_features", "decoder_input_ids", "labels")


class OneDeviceArguments(Seq2SeqTrainingArguments):
    """Training arguments that never ask for DataParallel: several visible GPUs without a launcher mean the first."""

    @property
    def n_gpu(self) -> int:
        """Return 1, or 0 on a machine without GPUs."""
        return min(1, super().n_gpu)


class SpeechTrainer(Seq2SeqTrainer):
    """A Trainer whose batch is a whole optimizer step, cut into micro-batches, with a token-mean loss.

    Args:
        model: Whisper, or an adapter on one.
        args: The Trainer's arguments.
        dataset: The training rows.
        sampler: Gives the clips of each optimizer step, from the first step that is still to be made.
        evaluate_model: Scores the model between steps: (steps made, autocast) -> metrics without a prefix.
        micro_batch_size: Number of clips in memory at once; "auto" takes as many as `micro_batch_s` allows.
        micro_batch_s: Seconds of audio windows in memory at once.
        masks: Settings of SpecAugment, see `set_masks`; None for none.
        loss: Computes the summed loss of a micro-batch: (logits (n_targets, vocab), labels (n_targets,)) -> scalar.
        on_batch: Is called with the batch of each step before it is trained on.
        on_finer_cut: Is called after a step ran out of memory, with the number of clips at a time, and with
            `micro_batch_s` and `micro_batch_size` as they are from now on.
        callbacks: TrainerCallbacks.

    Attributes:
        empty_steps: Number of steps in which no clip could be used.
        kept: Number of clips that were trained on without their augmentation.
        speech_s: Seconds of speech trained on.
        window_s: Seconds of audio windows trained on, with their padding.
    """

    # Set by the Trainer; the type checker does not see into transformers.
    control: TrainerControl

    def __init__(
        self,
        model,
        args: OneDeviceArguments,
        *,
        dataset: SpeechDataset,
        sampler: StepSampler | StreamSampler,
        evaluate_model: Callable[[int, Callable], dict],
        micro_batch_size: int | str = "auto",
        micro_batch_s: float = math.inf,
        masks: Mapping[str, float] | None = None,
        loss: Callable = token_loss_sum,
        on_batch: Callable[[dict], None] = lambda batch: None,
        on_finer_cut: Callable[[int, float, int | str], None] = lambda clips, micro_batch_s, micro_batch_size: None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        # The Trainer insists on an evaluation set where it is told to evaluate. It never reads this one: `evaluate`
        # below calls `evaluate_model`, which has its own rows.
        super().__init__(model=model, args=args, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)
        self.sampler = sampler
        self.evaluate_model = evaluate_model
        self.micro_batch_size = micro_batch_size
        self.micro_batch_s = micro_batch_s
        self.masks = masks
        self.loss = loss
        self.on_batch = on_batch
        self.on_finer_cut = on_finer_cut
        self.empty_steps = 0
        self.kept = 0
        self.speech_s = 0.0
        self.window_s = 0.0

    def get_train_dataloader(self) -> DataLoader:
        """Return endless optimizer steps, one a batch.

        It is not prepared by accelerate, which would hand each process other whole batches.
        """
        dataset = self.train_dataset
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=SpeechCollator(dataset.preparation),
            num_workers=workers,
            worker_init_fn=leave_signals_to_main if workers else None,
            pin_memory=self.args.device.type == "cuda",
            # The loader draws a seed at its start. With its own generator, training's random state stays as it is.
            generator=torch.Generator(),
        )

    def load_finished_state(self, checkpoint: Path) -> None:
        """Take over the state of a checkpoint after which no step is left to make."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def training_step(self, model, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """Run the backward pass of one whole optimizer step, micro-batch by micro-batch.

        Returns:
            The token-mean loss, a scalar.

        Raises:
            UserError: The loss is not a finite number, or a single clip is too much for the memory.
        """
        model.train()
        self.on_batch(inputs)
        n_ranks = self.accelerator.num_processes
        n_targets = (inputs["labels"] != IGNORED).sum().to(self.args.device)
        n_tokens = self.accelerator.reduce(n_targets, "sum").item()
        if n_tokens == 0:
            return self._skip_step(model)
        self.speech_s += inputs["seconds"]
        self.kept += inputs["kept"]
        n_clips = len(inputs["labels"])
        if n_clips == 0:
            # All clips of this process were left out, but not those of others. It must take part in their reduction.
            inputs = without_targets(inputs)
        inputs["input_features"] = self._common_window(inputs["input_features"])
        window_s = inputs["input_features"].shape[-1] / self.train_dataset.preparation.frames_per_s
        self.window_s += window_s * n_clips
        # Data parallel training takes the mean over processes, so each process scales its sum by their number.
        loss = self._in_micro_batches(model, inputs, window_s, n_ranks / n_tokens)
        if not loss.isfinite():
            rate = self.args.learning_rate
            raise UserError(
                f"step {self.state.global_step + 1}: the training loss is {loss.item()}, which is not a finite number. "
                f"Nothing after the last checkpoint is kept. Take a lower train.learning_rate (now {rate:g}) or "
                "train.precision=fp32, and look at the data with whisper-peft check."
            )
        return loss

    def _skip_step(self, model) -> torch.Tensor:
        """Count a step whose clips were all left out. The optimizer finds no gradient, so no weight changes."""
        self.empty_steps += 1
        if self.args.fp16:
            # The gradient scaler of fp16 insists on a gradient, and skips a step in which one is not finite.
            weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            weight.grad = torch.full_like(weight, torch.inf)
        return torch.zeros((), device=self.args.device)

    def _in_micro_batches(self, model, inputs: dict, window_s: float, scale: float) -> torch.Tensor:
        """Run a step in as few micro-batches as memory allows.

        If memory runs out, the whole step is made again with a finer cut and the same random numbers: it is the same
        step.

        Args:
            model: The model as the Trainer wraps it.
            inputs: The batch of the step.
            window_s: Seconds of the window of each clip.
            scale: Factor for the summed loss.

        Raises:
            UserError: One clip at a time is still too much.
        """
        random_state = _random_state()
        n_clips = len(inputs["labels"])
        while True:
            clips = self._clips_at_once(n_clips, window_s)
            try:
                return self._backward(model, inputs, cut(n_clips, clips), scale)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.accelerator.num_processes > 1:
                    raise
            # Outside of the except clause: there the error would still hold the tensors of the failed forward pass.
            if clips == 1:
                raise UserError(
                    f"out of memory with one clip of {window_s:.1f} s at a time; take --set "
                    "train.gradient_checkpointing=true, --quantize 4bit or a smaller model. The run goes on from its "
                    "last checkpoint with what it began with; other settings want a new run."
                )
            clips = math.ceil(clips / 2)
            self.micro_batch_s = clips * window_s
            if self.micro_batch_size != "auto":
                self.micro_batch_size = clips
            model.zero_grad()
            free_unused_memory()
            _restore(random_state)
            self.on_finer_cut(clips, self.micro_batch_s, self.micro_batch_size)

    def _clips_at_once(self, n_clips: int, window_s: float) -> int:
        """Return the number of clips of a step that are in memory at once."""
        if isinstance(self.micro_batch_size, int):
            return min(n_clips, self.micro_batch_size)
        return min(n_clips, clips_at_once(window_s, self.micro_batch_s))

    def _backward(self, model, inputs: dict, pieces: list[slice], scale: float) -> torch.Tensor:
        """Run the backward pass of each micro-batch, and return the scaled loss of the step, a scalar."""
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(pieces):
            # Processes exchange their gradients only once a step, with the last micro-batch.
            is_last = number == len(pieces) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, {key: inputs[key][piece] for key in MODEL_INPUTS})
                loss = loss * scale
                self.accelerator.backward(loss)
            total += loss.detach()
            # The graph of this micro-batch must be gone before the next forward pass.
            del loss
        return self.accelerator.reduce(total, "mean")

    def _common_window(self, features: torch.Tensor) -> torch.Tensor:
        """Pad the features of this process to the window of the step's longest clip in any process.

        Args:
            features: float32 (n_clips, n_mels, n_frames).
        """
        if self.accelerator.num_processes == 1:
            return features
        frames = torch.tensor([features.shape[-1]], device=self.args.device)
        missing = int(self.accelerator.gather(frames).max()) - features.shape[-1]
        floor = features.amin(dim=(1, 2), keepdim=True).expand(-1, features.shape[1], missing)
        return torch.cat([features, floor], dim=2)

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Return the summed loss of a micro-batch. Logits are computed only where there are labels."""
        inputs = self._prepare_inputs(inputs)
        has_label = inputs["labels"] != IGNORED
        targets = inputs["labels"][has_label]
        whisper = whisper_of(self.accelerator.unwrap_model(model))
        features = inputs["input_features"]
        if self.masks:
            # Masks are written into the features, and the step may have to be made again.
            features = features.clone()
        with (
            logits_at(whisper, has_label, then=lambda logits: self.loss(logits, targets)),
            set_masks(whisper, self.masks, features.shape[-1]),
        ):
            outputs = model(input_features=features, decoder_input_ids=inputs["decoder_input_ids"], use_cache=False)
        # `logits_at` has put the loss where the logits would be.
        loss = outputs.logits
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval", **generation) -> dict:
        """Score the model with `evaluate_model`. The Trainer's own loop would keep the logits of all clips."""
        scores = self.evaluate_model(self.state.global_step, self.accelerator.autocast)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in scores.items()}
        self.log({key: value for key, value in metrics.items() if isinstance(value, (int, float))})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def without_targets(empty: dict) -> dict:
    """Return an empty batch as a batch of one clip without labels, which adds nothing to the loss.

    Args:
        empty: A batch of no clips; its features have the shape (0, n_mels, n_frames).
    """
    features = empty["input_features"]
    return {
        "input_features": features.new_zeros((1, *features.shape[1:])),
        "decoder_input_ids": empty["decoder_input_ids"].new_zeros((1, 1)),
        "labels": empty["labels"].new_full((1, 1), IGNORED),
    }


def _random_state() -> tuple:
    """Return the states of the generators that dropout and SpecAugment draw from: torch's, CUDA's and numpy's."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda, np.random.get_state()


def _restore(state: tuple) -> None:
    """Set the random generators back, see `_random_state`."""
    torch_state, cuda_state, numpy_state = state
    torch.set_rng_state(torch_state)
    if cuda_state is not None:
        torch.cuda.set_rng_state(cuda_state)
    np.random.set_state(numpy_state)
