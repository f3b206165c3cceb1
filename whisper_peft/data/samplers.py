"""The samplers: the clips of each optimizer step, from files or from a stream.

Both write the step's slack into every pick and leave the rest to `batching`. A torch DataLoader takes them as its
`batch_sampler`: what they yield at a time is one optimizer step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from whisper_peft.data.batching import (
    STITCHING_DRAW,
    Block,
    MeasuredPick,
    Stitching,
    block_size,
    blocks,
    find_block,
    group_by_length,
    most_joined,
)
from whisper_peft.data.dataset import Pick, SpeechDataset
from whisper_peft.data.rows import Row
from whisper_peft.data.stitching import gather, number_voices
from whisper_peft.data.streams import RowStream
from whisper_peft.errors import UserError


class StepSampler:
    """The picks of each optimizer step from `start` on; this process takes its share of them.

    accelerate does not prepare this sampler: it would hand each process other whole steps. A resumed run begins at
    `start` by arithmetic, so nothing that was trained on already is read again.

    Args:
        dataset: The training rows.
        batch_size: Number of clips in a step.
        slack_s: Function from a step number to the seconds of silence wanted after the step's longest clip.
        seed: Seed of the order.
        start: First step to yield.
        parts: (number of rows, weight) of each source.
        rank: Number of this process.
        n_ranks: Number of processes.
        begin: Block of step `start`, as `state_at` gave it; None where no checkpoint kept one.
        stitching: How a share of the clips is joined into longer windows; None joins none.
    """

    def __init__(
        self,
        dataset: SpeechDataset,
        batch_size: int,
        *,
        slack_s: Callable[[int], float],
        seed: int,
        start: int,
        parts: Sequence[tuple[int, float]],
        rank: int,
        n_ranks: int,
        begin: Block | None = None,
        stitching: Stitching | None = None,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.slack_s = slack_s
        self.seed = seed
        self.start = start
        self.parts = parts
        self.rank = rank
        self.n_ranks = n_ranks
        self.stitching = stitching
        self.begin = begin or find_block(start, len(dataset), batch_size, parts=parts)
        self.drawn: list[Block] = []

    def __iter__(self) -> Iterator[list[Pick]]:
        """Yield the picks of one step after the other, without end."""
        voices = None
        if self.stitching is not None:
            voices = number_voices(self.dataset.rows, self.parts)
        drawn = blocks(
            len(self.dataset),
            self.batch_size,
            seed=self.seed,
            duration_s=self.dataset.usable_s,
            parts=self.parts,
            begin=self.begin,
            stitching=self.stitching,
            voices=voices,
        )
        for block, batches in drawn:
            self.drawn.append(block)
            for step, picks in enumerate(batches, start=block.step):
                if step >= self.start:
                    slack_s = self.slack_s(step)
                    share = picks[self.rank :: self.n_ranks]
                    yield [dataclasses.replace(pick, slack_s=slack_s) for pick in share]

    def state_at(self, step: int) -> dict:
        """Return the block of step `step` as JSON, and forget older blocks.

        The DataLoader's workers read ahead, so the newest block may lie behind that step.

        Args:
            step: Number of steps that are trained, which is also the number of the next one.
        """
        while len(self.drawn) > 1 and self.drawn[1].step <= step:
            self.drawn.pop(0)
        return dataclasses.asdict(self.drawn[0])


class StreamSampler:
    """The picks of each optimizer step of a stream. The rows travel inside the picks.

    One block of the stream is in memory at a time, its clips grouped by length. A checkpoint stores the stream's state
    at the start of the block; see `state_at`. A resumed run draws that block a second time and skips its trained steps.

    Args:
        stream: The stream, at the start of the block of step `start`.
        dataset: The dataset that makes examples of the rows. Here it tells how long a row is and whether it is usable.
        batch_size: Number of clips in a step.
        buffer_rows: Number of rows in a block. It is rounded to whole steps.
        slack_s: Function from a step number to the seconds of silence wanted after the step's longest clip.
        seed: Seed of the order.
        start: First step to yield.
        first: First step of the block.
        stitching: How a share of the clips is joined into longer windows; None joins none.
    """

    def __init__(
        self,
        stream: RowStream,
        dataset: SpeechDataset,
        batch_size: int,
        *,
        buffer_rows: int,
        slack_s: Callable[[int], float],
        seed: int,
        start: int,
        first: int,
        stitching: Stitching | None = None,
    ):
        self.stream = stream
        self.dataset = dataset
        self.batch_size = batch_size
        self.rows_per_block = block_size(batch_size, buffer_rows)
        self.slack_s = slack_s
        self.seed = seed
        self.start = start
        self.first = first
        self.stitching = stitching
        # (first step, state of the stream before it) of each block that was drawn.
        self.blocks: list[tuple[int, dict]] = []

    def __iter__(self) -> Iterator[list[Pick]]:
        """Yield the picks of one step after the other, without end.

        Raises:
            UserError: No clip of a whole block can be used.
        """
        step = self.first
        while True:
            # The state must be taken before the block is drawn: a resumed run draws the block again.
            self.blocks.append((step, self.stream.state()))
            block = self.stream.block
            drawn = self.stream.draw(self.rows_per_block)
            picks = self._measure(drawn, first_place=block * self.rows_per_block)
            if self.stitching is not None:
                picks = self._stitch(picks, [row for row, _ in drawn], block, self.stitching)
            batches = group_by_length(picks, self.batch_size, (self.seed, block))
            if not batches:
                row = drawn[0][0]
                raise UserError(
                    f"data.train: none of the next {self.rows_per_block} clips of the stream can be used, for example "
                    f"{row.name}: {self.dataset.fault(row)}. Mend the source, and go on with --resume."
                )
            for batch in batches:
                if step >= self.start:
                    yield [dataclasses.replace(pick, slack_s=self.slack_s(step)) for pick in batch]
                step += 1

    def _measure(self, drawn: Sequence[tuple[Row, int]], *, first_place: int) -> list[MeasuredPick]:
        """Make the picks of a block; a row's place in the whole stream stands for its number."""
        picks: list[MeasuredPick] = []
        for place, (row, epoch) in enumerate(drawn, start=first_place):
            picks.append((self.dataset.usable_s(row), Pick(place, epoch, given=row)))
        return picks

    def _stitch(
        self, picks: list[MeasuredPick], rows: list[Row], block: int, stitching: Stitching
    ) -> list[MeasuredPick]:
        """Join a share of a block's clips; two sources of a stream count as one where no speaker is named."""
        rng = np.random.default_rng((self.seed, block, STITCHING_DRAW))
        order, groups = gather(
            np.arange(len(picks)),
            number_voices(rows),
            stitching.share,
            rng,
            most_clips=most_joined(self.batch_size),
        )
        return stitching.join_groups([picks[place] for place in order], groups, self.batch_size)

    def state_at(self, step: int) -> dict:
        """Return the stream's state at the start of the block of step `step`, and forget older blocks.

        Args:
            step: Number of steps that are trained, which is also the number of the next one.
        """
        while len(self.blocks) > 1 and self.blocks[1][0] <= step:
            self.blocks.pop(0)
        first_step, state = self.blocks[0]
        return {"first_step": first_step, "stream": state}
