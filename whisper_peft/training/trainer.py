"""The one Seq2SeqTrainer subclass, and the callbacks of a run.

Imported only when training starts: transformers' trainer takes seconds to import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from whisper_peft.data.batching import (
    STITCHING,
    Block,
    Stitching,
    block_of,
    block_size,
    blocks,
    clips_at_once,
    cut,
    like_lengths,
    most_joined,
)
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Pick, SpeechDataset, leave_signals_to_main
from whisper_peft.data.features import IGNORED
from whisper_peft.data.stitching import gather, voices_of
from whisper_peft.data.streams import RowStream
from whisper_peft.errors import UserError
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import free_unused_memory, is_out_of_memory
from whisper_peft.model.head import logits_at
from whisper_peft.model.specaugment import masked
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


class StepSampler:
    """The picks of each optimizer step from `start` on, this rank's share of them.

    Not prepared by accelerate, which would hand each rank other whole batches; and it begins at `start` instead of
    reading what was trained on already.

    Args:
        dataset: The training rows.
        batch_size: Clips in a step.
        slack_s: step -> seconds of silence wanted behind its longest clip.
        seed: Of the order.
        start: The first step.
        parts: (rows, weight) of the sources.
        rank: Number of this process.
        n_ranks: Number of processes.
        begin: The block that `start` is in, as `state_at` gave it; None where no block was kept.
    """

    def __init__(
        self, dataset: SpeechDataset, batch_size: int, *, slack_s: Callable[[int], float], seed: int, start: int,
        parts: Sequence[tuple[int, float]], rank: int, n_ranks: int, begin: Block | None = None,
        stitching: Stitching | None = None,
    ):  # fmt: skip
        self.dataset, self.batch_size, self.slack_s, self.seed, self.start = dataset, batch_size, slack_s, seed, start
        self.parts, self.rank, self.n_ranks, self.stitching = parts, rank, n_ranks, stitching
        self.begin = begin or block_of(start, len(dataset), batch_size, parts=parts)
        self.drawn: list[Block] = []

    def __iter__(self) -> Iterator[list[Pick]]:
        """Endless."""
        voices = None if self.stitching is None else voices_of(self.dataset.rows, self.parts)
        found = blocks(
            len(self.dataset), self.batch_size, seed=self.seed, duration_s=self.dataset.usable_s, parts=self.parts,
            begin=self.begin, stitching=self.stitching, voices=voices,
        )  # fmt: skip
        for block, batches in found:
            self.drawn.append(block)
            for step, picks in enumerate(batches, start=block.step):
                if step >= self.start:
                    slack_s = self.slack_s(step)
                    share = picks[self.rank :: self.n_ranks]
                    yield [dataclasses.replace(pick, slack_s=slack_s) for pick in share]

    def state_at(self, step: int) -> dict:
        """Return the block that holds the step after so many, as JSON; older blocks are forgotten."""
        while len(self.drawn) > 1 and self.drawn[1].step <= step:
            self.drawn.pop(0)
        return dataclasses.asdict(self.drawn[0])


class StreamSampler:
    """The picks of each optimizer step of a stream; the rows travel with them.

    A block of the stream is in memory at a time, its like lengths put together. `state_at` says where the block lies
    that a step is of, so that a resumed run draws that block again, and goes on inside it.

    Args:
        stream: at the start of the block that step `start` is of.
        dataset: of the same speech; it tells how long a row is, and whether it can be used.
        batch_size: clips in a step.
        buffer_rows: of a block.
        slack_s: step -> seconds of silence wanted behind its longest clip.
        seed: of the order.
        start: the first step.
        first: the first step of the block.
    """

    def __init__(
        self, stream: RowStream, dataset: SpeechDataset, batch_size: int, *, buffer_rows: int,
        slack_s: Callable[[int], float], seed: int, start: int, first: int, stitching: Stitching | None = None,
    ):  # fmt: skip
        self.stream, self.dataset, self.batch_size = stream, dataset, batch_size
        self.rows, self.stitching = block_size(batch_size, buffer_rows), stitching
        self.slack_s, self.seed, self.start, self.first = slack_s, seed, start, first
        self.blocks: list[tuple[int, dict]] = []

    def __iter__(self) -> Iterator[list[Pick]]:
        """Endless.

        Raises:
            UserError: A whole block has no usable clip.
        """
        step = self.first
        while True:
            self.blocks.append((step, self.stream.state()))
            number = self.stream.block
            drawn = enumerate(self.stream.draw(self.rows), start=number * self.rows)
            picks = [(self.dataset.usable_s(row), Pick(place, epoch, given=row)) for place, (row, epoch) in drawn]
            if self.stitching is not None:
                picks = self._stitched(picks, number)
            batches = like_lengths(picks, self.batch_size, (self.seed, number))
            if not batches:
                row = picks[0][1].given
                raise UserError(
                    f"data.train: none of the next {self.rows} clips of the stream can be used, for example "
                    f"{row.name}: {self.dataset.fault(row)}. Mend the source, and go on with --resume."
                )
            for batch in batches:
                if step >= self.start:
                    yield [dataclasses.replace(pick, slack_s=self.slack_s(step)) for pick in batch]
                step += 1

    def _stitched(self, units: list[tuple[float | None, Pick]], block: int) -> list[tuple[float | None, Pick]]:
        """Join a share of a block's clips; two sources of a stream count as one where no speaker is named."""
        voices = voices_of([pick.given for _, pick in units])
        rng = np.random.default_rng((self.seed, block, STITCHING))
        order, groups = gather(
            np.arange(len(units)), voices, self.stitching.share, rng, most_clips=most_joined(self.batch_size)
        )
        return self.stitching.windows([units[place] for place in order], groups, self.batch_size)

    def state_at(self, step: int) -> dict:
        """Of the stream at the start of the block that holds the step after so many; older blocks are forgotten."""
        while len(self.blocks) > 1 and self.blocks[1][0] <= step:
            self.blocks.pop(0)
        return {"first_step": self.blocks[0][0], "stream": self.blocks[0][1]}


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
        masks: of SpecAugment, see `masked`; None: none.
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
            masked(whisper, self.masks, features.shape[-1]),
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
