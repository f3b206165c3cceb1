"""The clips of a data set to text, in batches, with the token losses of their references."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import LeftOut, Pick, SpeechDataset, leave_signals_to_main
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.evaluation.generation import (
    Loops,
    auto_batch_size,
    encode,
    full_limit,
    generate,
    teacher_forced_losses,
)
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import free_unused_memory, is_out_of_memory

# The parts of a batch that have one entry for each clip.
PER_CLIP = ("rows", "input_features", "decoder_input_ids", "labels")


@dataclass(frozen=True)
class Transcript:
    """The text that a model made of one row.

    Attributes:
        row: Number of the row in its data set.
        text: The text.
        n_tokens: Number of generated tokens, without prefix and end.
        reached_limit: The limit ended the generation, not the model.
        loss_sum: Teacher-forced token losses of the reference, summed, in nats.
        loss_tokens: Number of tokens of the reference.
    """

    row: int
    text: str
    n_tokens: int
    reached_limit: bool
    loss_sum: float = 0.0
    loss_tokens: int = 0


@dataclass
class Transcripts:
    """The transcripts of a data set in the order of its rows, and the rows that could not be read."""

    transcripts: list[Transcript] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def training_limit(dataset: SpeechDataset, preparation: Preparation) -> int:
    """Return the limit on generation during training: enough for every right answer, and short for a loop."""
    longest = max((preparation.n_tokens(dataset.text(number)) for number in range(len(dataset))), default=0)
    return min(full_limit(preparation), _generous_limit(longest))


def _generous_limit(reference_tokens: int) -> int:
    """Return a number of tokens that no right transcript of a reference passes."""
    return int(1.5 * reference_tokens) + 10


def transcribe_rows(
    model,
    dataset: SpeechDataset,
    rows: Sequence[int],
    *,
    batch_size: int | str = "auto",
    slack_s: float = math.inf,
    max_new_tokens: int,
    beams: int = 1,
    stop_loops: bool = False,
    with_loss: bool = True,
    prompt_ids: Sequence[int] = (),
    workers: int = 0,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    progress: Callable[[int], object] = lambda clips: None,
) -> Transcripts:
    """Transcribe rows of a data set, the longest first.

    Args:
        model: Whisper, or an adapter on one. It is put into eval mode, and back afterwards.
        dataset: The data set, which makes the examples.
        rows: Numbers of the rows to transcribe.
        batch_size: Clips at a time; "auto": as many as fill 240 s of windows, 64 at most (a CPU: 120 s, 16).
        slack_s: Silence behind the longest clip of a batch, in seconds; infinite for the model's whole window.
        max_new_tokens: Limit on the generated tokens of a clip; 0 makes no text, for the losses alone.
        beams: Number of beams; 1 is greedy.
        stop_loops: End a transcript that only repeats itself (greedy only), or that passes 1.5 times the longest
            reference of its batch and 10 tokens. This is quick, and good enough to compare checkpoints.
        with_loss: Compute the teacher-forced losses of the references, too.
        prompt_ids: Tokens that stand before every transcript, see `pieces.prompt_ids`.
        workers: Number of processes that read audio.
        autocast: Returns the context of reduced precision.
        progress: Called after each batch with its number of clips.

    Returns:
        The transcripts, and the rows that could not be used.
    """
    import torch
    from torch.utils.data import DataLoader

    batches = _batches(dataset, rows, batch_size, slack_s)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=SpeechCollator(dataset.preparation),
        num_workers=workers,
        worker_init_fn=leave_signals_to_main if workers else None,
        # Without a generator of its own, the loader draws its seed from the training's random state, and so moves it.
        generator=torch.Generator(),
    )
    result = Transcripts()
    micro_batches = MicroBatches()
    was_training = model.training
    model.eval()
    try:
        for picks, batch in zip(batches, loader, strict=True):
            if batch["rows"]:
                transcribe_batch = partial(
                    _transcribe_batch,
                    model,
                    dataset.preparation,
                    language=dataset.language_of(picks[0].row),
                    task=dataset.task,
                    max_new_tokens=max_new_tokens,
                    beams=beams,
                    stop_loops=stop_loops,
                    with_loss=with_loss,
                    prompt_ids=prompt_ids,
                    autocast=autocast,
                )
                result.transcripts += micro_batches.run(batch, transcribe_batch)
            result.left_out += batch["left_out"]
            progress(len(picks))
    finally:
        model.train(was_training)
    result.transcripts.sort(key=lambda transcript: transcript.row)
    result.left_out.sort(key=lambda left_out: left_out.row)
    return result


class MicroBatches:
    """Cuts batches into as few micro-batches as memory allows.

    It starts with whole batches. After an out-of-memory error it halves the micro-batch, and remembers its size for the
    batches that follow.
    """

    def __init__(self) -> None:
        # Clips times frames of their window. Memory grows with this product.
        self.window_frames_at_once = sys.maxsize

    def run(self, batch: dict, work: Callable[[dict], list[Transcript]]) -> list[Transcript]:
        """Apply `work` to each micro-batch of a batch, one after the other.

        Raises:
            RuntimeError: Memory does not hold one clip, or `work` failed for another reason.
        """
        n_clips = len(batch["rows"])
        window_frames = batch["input_features"].shape[-1]
        done: list[Transcript] = []
        while len(done) < n_clips:
            clips = max(1, min(n_clips - len(done), self.window_frames_at_once // window_frames))
            part = slice(len(done), len(done) + clips)
            ran_out = False
            try:
                done += work({key: batch[key][part] for key in PER_CLIP})
            except RuntimeError as error:
                if not is_out_of_memory(error) or clips == 1:
                    raise
                self.window_frames_at_once = clips // 2 * window_frames
                ran_out = True
            # Inside the except block, the error's traceback would still hold the tensors.
            if ran_out:
                free_unused_memory()
        return done


def _batches(dataset: SpeechDataset, rows: Sequence[int], batch_size: int | str, slack_s: float) -> list[list[Pick]]:
    """Put rows of like length and one language (the prefix is the same for all) into batches, the longest first."""
    seconds = {row: dataset.duration_s(row) for row in rows}
    batches: list[list[Pick]] = []
    largest = 0
    for row in sorted(rows, key=lambda row: (dataset.language_of(row) or "", -seconds[row], row)):
        is_full = not batches or len(batches[-1]) >= largest
        if is_full or dataset.language_of(batches[-1][0].row) != dataset.language_of(row):
            batches.append([])
            window_s = max(0.1, min(dataset.preparation.window_s, seconds[row] + slack_s))
            largest = auto_batch_size(window_s) if isinstance(batch_size, str) else batch_size
        batches[-1].append(Pick(row, slack_s=slack_s))
    return batches


def _transcribe_batch(
    model,
    preparation: Preparation,
    batch: dict,
    *,
    language: str | None,
    task: str,
    max_new_tokens: int,
    beams: int,
    stop_loops: bool,
    with_loss: bool,
    prompt_ids: Sequence[int],
    autocast: Callable[[], contextlib.AbstractContextManager],
) -> list[Transcript]:
    """Transcribe the clips of a micro-batch. Its sound is encoded once, for the losses and for the text."""
    import torch

    rows = batch["rows"]
    whisper = whisper_of(model)
    loops = None
    if stop_loops:
        longest = int((batch["labels"] != IGNORED).sum(1).max())
        max_new_tokens = min(max_new_tokens, _generous_limit(longest))
        if beams == 1:
            loops = Loops(len(rows), eot=preparation.eot)
    losses = [0.0] * len(rows)
    token_counts = [0] * len(rows)
    texts: list[list[int]] = [[] for _ in rows]
    with torch.no_grad(), autocast():
        encoded = encode(whisper, batch["input_features"])
        if with_loss:
            sums, counts = teacher_forced_losses(whisper, encoded, batch["decoder_input_ids"], batch["labels"])
            losses = sums.tolist()
            token_counts = counts.tolist()
        if max_new_tokens:
            texts = generate(
                whisper,
                preparation,
                encoded,
                language=language,
                task=task,
                max_new_tokens=max_new_tokens,
                beams=beams,
                loops=loops,
                prompt_ids=prompt_ids,
            )
    ended_as_loops = [False] * len(rows) if loops is None else loops.ended.tolist()
    return [
        Transcript(
            row=row,
            text=preparation.decode(ids),
            n_tokens=len(ids),
            reached_limit=is_loop or 0 < max_new_tokens <= len(ids),
            loss_sum=loss,
            loss_tokens=count,
        )
        for row, ids, is_loop, loss, count in zip(rows, texts, ended_as_loops, losses, token_counts, strict=True)
    ]
