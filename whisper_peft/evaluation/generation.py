"""Model and clips to text: encode once, take the token loss, generate."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from whisper_peft.data.batching import SLACK_S, clips_at_once
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import LeftOut, Pick, SpeechDataset, leave_signals_to_main
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.errors import UserError
from whisper_peft.model.build import condense_silence, whisper_of
from whisper_peft.model.devices import best_device, free_unused_memory, is_out_of_memory
from whisper_peft.model.head import states_at, token_losses
from whisper_peft.recipe import rule_of

PER_CLIP = ("rows", "input_features", "decoder_input_ids", "labels")  # of a batch, what is cut with it
# Of a batch that is transcribed at a time: seconds of windows, and clips. On a CPU larger ones only pad more.
AT_ONCE = {"cuda": (240.0, 64), "cpu": (120.0, 16)}


@dataclass(frozen=True)
class Transcript:
    """What the model made of one row."""

    row: int
    text: str
    n_tokens: int  # generated, without prefix and end
    reached_limit: bool  # the generation was stopped by the limit, not by the model
    loss_sum: float = 0.0  # teacher-forced, over the reference's tokens
    loss_tokens: int = 0


@dataclass
class Transcripts:
    """The transcripts of a data set in the order of its rows, and the rows that could not be read."""

    transcripts: list[Transcript] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def full_limit(preparation: Preparation) -> int:
    """How many tokens the model can generate after its prefix."""
    return preparation.max_label_tokens - (4 if preparation.multilingual else 2)


def training_limit(dataset: SpeechDataset, preparation: Preparation) -> int:
    """1.5 times the longest reference and 10 tokens: enough for every right answer, and short for a loop."""
    longest = max((preparation.n_tokens(dataset.text(number)) for number in range(len(dataset))), default=0)
    return min(full_limit(preparation), int(1.5 * longest) + 10)


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
    """Transcribes rows of a dataset, longest first.

    Args:
        model: Whisper, or an adapter on one; put into eval mode and back.
        dataset: makes the examples.
        rows: which of them.
        batch_size: clips at a time; "auto": as many as fill 240 s of windows, 64 at most (a CPU: 120 s, 16).
        slack_s: seconds of silence behind the longest clip of a batch; infinite: the model's whole window.
        max_new_tokens: limit on generation; 0: no text is made, for the losses alone.
        beams: 1 is greedy.
        stop_loops: for a comparison of checkpoints: whether a transcript that only repeats itself is ended (greedy
            only), or one that passes 1.5 times the longest reference of its batch and 10 tokens.
        with_loss: also the teacher-forced loss of the references.
        prompt_ids: tokens that stand before every transcript, see `longform.prompt_ids`.
        workers: processes that read audio.
        autocast: gives the context of reduced precision.
        progress: told after each batch how many clips it had.
    """
    import torch
    from torch.utils.data import DataLoader

    batches = _batches(dataset, rows, batch_size, slack_s)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=SpeechCollator(dataset.preparation), num_workers=workers,
        worker_init_fn=leave_signals_to_main if workers else None,
        generator=torch.Generator(),  # else drawing its seed would move the training's random state
    )  # fmt: skip
    found, pieces = Transcripts(), Pieces()
    was_training = model.training
    model.eval()
    try:
        for picked, batch in zip(batches, loader, strict=True):
            if batch["rows"]:
                language = dataset.language_of(picked[0].row)
                found.transcripts += pieces.each(batch, lambda piece, language=language: _transcribe_batch(
                    model, dataset.preparation, piece, language=language, task=dataset.task,
                    max_new_tokens=max_new_tokens, beams=beams, stop_loops=stop_loops, with_loss=with_loss,
                    prompt_ids=prompt_ids, autocast=autocast,
                ))  # fmt: skip
            found.left_out += batch["left_out"]
            progress(len(picked))
    finally:
        model.train(was_training)
    found.transcripts.sort(key=lambda transcript: transcript.row)
    found.left_out.sort(key=lambda left_out: left_out.row)
    return found


class Pieces:
    """A batch whole, or in as few pieces as memory allows; what was learnt of it holds for the batches that follow."""

    def __init__(self) -> None:
        self.window_frames_at_once = sys.maxsize

    def each(self, batch: dict, work: Callable[[dict], list[Transcript]]) -> list[Transcript]:
        """`work` of every piece, one after the other."""
        n_clips, window_frames = len(batch["rows"]), batch["input_features"].shape[-1]
        done: list[Transcript] = []
        while len(done) < n_clips:
            clips = max(1, min(n_clips - len(done), self.window_frames_at_once // window_frames))
            part = slice(len(done), len(done) + clips)
            try:
                done += work({key: batch[key][part] for key in PER_CLIP})
            except RuntimeError as error:
                if not is_out_of_memory(error) or clips == 1:
                    raise
                self.window_frames_at_once = clips // 2 * window_frames
            else:
                continue
            free_unused_memory()
        return done


def _batches(dataset: SpeechDataset, rows: Sequence[int], batch_size: int | str, slack_s: float) -> list[list[Pick]]:
    """Picks of like length and one language (the prefix is the same for all), longest first."""
    seconds = {row: dataset.duration_s(row) for row in rows}
    budget_s, most_clips = AT_ONCE["cuda" if best_device().type == "cuda" else "cpu"]
    batches: list[list[Pick]] = []
    most = 0
    for row in sorted(rows, key=lambda row: (dataset.language_of(row) or "", -seconds[row], row)):
        last = batches[-1] if batches else None
        if last is None or len(last) >= most or dataset.language_of(last[0].row) != dataset.language_of(row):
            batches.append([])
            window_s = max(0.1, min(dataset.preparation.window_s, seconds[row] + slack_s))
            most = min(most_clips, clips_at_once(window_s, budget_s)) if batch_size == "auto" else batch_size
        batches[-1].append(Pick(row, slack_s=slack_s))
    return batches


def _transcribe_batch(
    model, preparation: Preparation, batch: dict, *, language: str | None, task: str, max_new_tokens: int, beams: int,
    stop_loops: bool, with_loss: bool, prompt_ids: Sequence[int], autocast: Callable,
) -> list[Transcript]:  # fmt: skip
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    whisper = whisper_of(model)
    device, dtype = whisper.device, next(whisper.get_encoder().parameters()).dtype
    with torch.no_grad(), autocast():
        features = batch["input_features"].to(device, dtype)
        encoded = BaseModelOutput(last_hidden_state=whisper.get_encoder()(features).last_hidden_state)
        losses, counts = [0.0] * len(features), [0] * len(features)
        if with_loss:
            labels = batch["labels"].to(device)
            wanted = labels != IGNORED
            targets = labels[wanted]
            with states_at(whisper, wanted) as states:
                whisper(
                    encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"].to(device), use_cache=False
                )
            each = torch.zeros(labels.shape, device=device)
            each[wanted] = token_losses(whisper, states.pop(), targets)
            losses, counts = each.sum(1).tolist(), wanted.sum(1).tolist()
        sequences: list[list[int]] = [[] for _ in batch["rows"]]
        loops = Loops(len(sequences), eot=preparation.eot) if stop_loops and beams == 1 else None
        if stop_loops:
            longest = int((batch["labels"] != IGNORED).sum(1).max())
            max_new_tokens = min(max_new_tokens, int(1.5 * longest) + 10)
        if max_new_tokens:
            sequences = generate(
                whisper, preparation, encoded, language=language, task=task, max_new_tokens=max_new_tokens, beams=beams,
                loops=loops, prompt_ids=prompt_ids,
            )  # fmt: skip
    looped = loops.found.tolist() if loops else [False] * len(sequences)
    return [
        Transcript(row, preparation.decode(ids), len(ids), stopped or 0 < max_new_tokens <= len(ids), loss, count)
        for row, ids, stopped, loss, count in zip(batch["rows"], sequences, looped, losses, counts, strict=True)
    ]


class Loops:
    """A stopping criterion: ends a transcript whose tail repeats itself with a period of up to 32 tokens.

    Four periods and 24 tokens at least must be equal, which no transcript of speech has. What it ends is counted like
    what reaches the limit.
    """

    longest_period, least_tokens, every = 32, 24, 4

    def __init__(self, n_clips: int, *, eot: int):
        import torch

        self.eot = eot
        self.found = torch.zeros(n_clips, dtype=torch.bool)

    def __call__(self, input_ids, scores, **kwargs):
        """bool (batch,): which of the sequences (batch, n_tokens) are done."""
        import torch

        n_tokens = input_ids.shape[1]
        if n_tokens % self.every == 0:  # a look costs little, but not nothing
            found, ended = torch.zeros_like(input_ids[:, 0], dtype=torch.bool), input_ids[:, -1] == self.eot
            for period in range(1, self.longest_period + 1):
                n_equal = max(self.least_tokens, 4 * period) - period
                if n_tokens < n_equal + period:
                    break
                tail = input_ids[:, n_tokens - n_equal :]
                found |= (tail == input_ids[:, n_tokens - n_equal - period : n_tokens - period]).all(dim=1)
            self.found = self.found.to(found.device) | (found & ~ended)  # behind its end a transcript is padded with it
        return self.found.to(input_ids.device)


def generate(
    whisper,
    preparation: Preparation,
    encoded,
    *,
    language: str | None,
    task: str,
    max_new_tokens: int,
    beams: int = 1,
    loops: Loops | None = None,
    prompt_ids: Sequence[int] = (),
    timestamps: bool = False,
) -> list[list[int]]:
    """Token ids of each clip, without prefix and end-of-text.

    The encoder's output is passed in: `generate(input_features=…)` would encode again, and pad short input with
    what sounds like loud noise.
    """
    import torch

    words = {"language": language, "task": task} if preparation.multilingual else {}
    if prompt_ids:
        words["prompt_ids"] = torch.tensor(prompt_ids, device=whisper.device)
    with errors_only():
        output = whisper.generate(
            encoder_outputs=encoded, max_new_tokens=max_new_tokens, num_beams=beams, use_cache=True,
            return_timestamps=timestamps, stopping_criteria=[loops] if loops else None,
            force_unique_generate_call=True,  # else a stray timestamp token makes it look for audio it was not given
            **words,
        )  # fmt: skip
    prefix = [*prompt_ids, *preparation.prefix(language, task, timestamps=timestamps)]
    sequences = []
    for ids in output.tolist():
        if ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]
        sequences.append(ids[: ids.index(preparation.eot)] if preparation.eot in ids else ids)
    return sequences


@contextlib.contextmanager
def errors_only():
    """At every batch Whisper's generate warns of what it does itself: two limits, its own logits processors."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def set_window(model, window: str) -> float:
    """Makes a model take windows of a kind, and returns the silence in seconds that each batch wants behind it.

    Raises:
        UserError: a kind of window that does not exist.
    """
    windows = rule_of("features.window").choices
    if window not in windows:
        raise UserError(f"--window {window}: expected one of {', '.join(map(str, windows))}.")
    condense_silence(model, window)
    return SLACK_S[window]
