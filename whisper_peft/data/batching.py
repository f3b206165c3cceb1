"""The step contract: a seeded list of clips per optimizer step, and its cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from whisper_peft.data.dataset import Pick

LOOK_AHEAD = 256  # rows whose headers are read at a time to put like lengths together


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps that visit every row once."""
    return math.ceil(n_rows / batch_size)


def steps(
    n_rows: int,
    batch_size: int,
    *,
    seed: int,
    duration_s: Callable[[int], float],
    start: int = 0,
    look_ahead: int = LOOK_AHEAD,
) -> Iterator[list[Pick]]:
    """Endless optimizer steps: lists of `batch_size` clips, shuffled, clips of like length together.

    The list depends on the rows and the seed alone, not on memory, window, ranks or workers. Rows are drawn in seeded
    order; only the headers of a look-ahead are read before its first step, so 800,000 rows start as fast as 8.

    Args:
        n_rows: how many rows there are.
        batch_size: clips in a step; the last step of an epoch may have fewer.
        seed: of the order.
        duration_s: seconds of a row, from its header; 0 where it cannot be told.
        start: the first step to yield, counted over all epochs; the ones before cost nothing but their shuffle.
        look_ahead: rows put in order of length at a time, rounded to whole steps.
    """
    block = max(1, round(look_ahead / batch_size)) * batch_size
    per_epoch = steps_per_epoch(n_rows, batch_size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(n_rows)
        for first in range(0, n_rows, block):
            drawn = order[first : first + block]
            n_steps = steps_per_epoch(len(drawn), batch_size)
            if skip >= n_steps:
                skip -= n_steps
                continue
            by_length = sorted((int(row) for row in drawn), key=lambda row: (duration_s(row), row))
            batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
            for number in np.random.default_rng((seed, epoch, first)).permutation(len(batches))[skip:]:
                yield [Pick(row, epoch) for row in batches[number]]
            skip = 0
        epoch += 1


def cut(n_clips: int, micro_batch_size: int) -> list[slice]:
    """The pieces of a step that fit into memory one at a time, as slices over its clips."""
    return [slice(i, min(i + micro_batch_size, n_clips)) for i in range(0, n_clips, micro_batch_size)]
