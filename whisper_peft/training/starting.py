"""Where a process of a run begins: before the first step, or after the newest checkpoint, and at which clip."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.data.batching import Block, Stitching, slack_policy
from whisper_peft.data.dataset import Pick, SpeechDataset
from whisper_peft.data.samplers import StepSampler, StreamSampler
from whisper_peft.data.stitching import TOKENS_OF_A_PREFIX
from whisper_peft.data.subtitles import TOKENS_OF_A_TIME
from whisper_peft.training.prepare import Prepared

if TYPE_CHECKING:
    from whisper_peft.training.trainer import OneDeviceArguments


@dataclass(frozen=True)
class Start:
    """Where this process begins: before the first step, or after the newest checkpoint.

    Attributes:
        checkpoint: The newest complete checkpoint; None for a new run.
        step: Number of steps made before.
        place: Where the next step is among the clips, as `steps.json` of the checkpoint has it; empty for a new run
            and for checkpoints of earlier versions.
    """

    checkpoint: Path | None
    step: int
    place: dict


def find_start(run: Path) -> Start:
    """Find the newest complete checkpoint of a run, and read where it stands among the clips."""
    checkpoints = runs.complete_checkpoints(run)
    if not checkpoints:
        return Start(None, 0, {})
    newest = checkpoints[-1]
    kept = newest / runs.STEPS
    place = runs.read_json(kept) if kept.is_file() else {}
    return Start(newest, runs.checkpoint_step(newest), place)


def forget_after(run: Path, step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint: it will be written again."""
    for name in (runs.METRICS, runs.LEFT_OUT):
        kept = [record for record in runs.read_jsonl(run / name) if record.get("step", 0) <= step]
        runs.rewrite_jsonl(run / name, kept)
    complete = {path.name for path in runs.complete_checkpoints(run)}
    for folder in (run / runs.CHECKPOINTS).glob("checkpoint-*"):
        if folder.name not in complete:
            shutil.rmtree(folder)


def make_sampler(prepared: Prepared, start: Start, arguments: OneDeviceArguments) -> StepSampler | StreamSampler:
    """Make the sampler of a run, which begins where the checkpoint stands among the clips.

    Args:
        prepared: The run.
        start: Where this process begins.
        arguments: The Trainer's arguments, which know the number of this process.
    """
    recipe = prepared.recipe
    features = recipe.features
    slack_s = slack_policy(
        features.window,
        slack_s=features.slack_s,
        full_share=features.full_share,
        full_last=features.full_last,
        n_steps=recipe.train.steps,
        seed=recipe.train.seed,
    )
    stitching = make_stitching(features.stitch, prepared.speech.train)
    stream = prepared.speech.stream
    if stream is None:
        block = start.place.get("block")
        return StepSampler(
            prepared.speech.train,
            recipe.train.batch_size,
            slack_s=slack_s,
            seed=recipe.train.seed,
            start=start.step,
            parts=prepared.speech.parts,
            begin=Block(**block) if block else None,
            rank=arguments.process_index,
            n_ranks=arguments.world_size,
            stitching=stitching,
        )
    first_step = 0
    if start.checkpoint is not None:
        saved = runs.read_json(start.checkpoint / runs.STREAM)
        stream.go_on(saved["stream"])
        first_step = saved["first_step"]
    return StreamSampler(
        stream,
        prepared.speech.train,
        recipe.train.batch_size,
        buffer_rows=recipe.data.shuffle_buffer,
        slack_s=slack_s,
        seed=recipe.train.seed,
        start=start.step,
        first=first_step,
        stitching=stitching,
    )


def make_stitching(share: float, dataset: SpeechDataset) -> Stitching | None:
    """Say how training clips are joined into longer windows; None if no share of them is.

    Args:
        share: The setting `features.stitch`.
        dataset: The training clips.
    """
    if not share:
        return None
    preparation = dataset.preparation

    def count_tokens(pick: Pick) -> int:
        row = pick.given or dataset.rows[pick.row]
        n_times = max(1, len(row.segments))
        return preparation.n_tokens(dataset.clean(row.text)) + TOKENS_OF_A_TIME * n_times

    max_tokens = preparation.max_label_tokens - TOKENS_OF_A_PREFIX
    return Stitching(share, preparation.window_s, max_tokens, count_tokens)
