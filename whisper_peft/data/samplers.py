"""The samplers: the clips of each optimizer step, from files or from a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from whisper_peft.data.batching import (
    STITCHING,
    Block,
    Stitching,
    block_of,
    block_size,
    blocks,
    like_lengths,
    most_joined,
)
from whisper_peft.data.dataset import Pick, SpeechDataset
from whisper_peft.data.stitching import gather, voices_of
from whisper_peft.data.streams import RowStream
from whisper_peft.errors import UserError


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
