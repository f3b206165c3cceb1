"""The step contract: a seeded list of clips per optimizer step, and its cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from whisper_peft.data.dataset import Pick

SLACK_S = {"full": math.inf, "condensed": 0.2, "tight": 0.5}  # of a window, where the user says nothing
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
    slack_s: Callable[[int], float] = lambda step: math.inf,
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
        slack_s: step -> seconds of silence wanted behind its longest clip; infinite, as by default: the whole window.
        start: the first step to yield, counted over all epochs; the ones before cost nothing but their shuffle.
        look_ahead: rows put in order of length at a time, rounded to whole steps.
    """
    block = max(1, round(look_ahead / batch_size)) * batch_size
    per_epoch = steps_per_epoch(n_rows, batch_size)
    epoch, skip = divmod(start, per_epoch)
    step = start
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
                yield [Pick(row, epoch, slack_s(step)) for row in batches[number]]
                step += 1
            skip = 0
        epoch += 1


def slack_policy(
    window: str,
    *,
    slack_s: float | None = None,
    full_share: float = 0.0,
    full_last: float = 0.0,
    n_steps: int = 0,
    seed: int = 0,
) -> Callable[[int], float]:
    """How much silence each optimizer step wants behind its longest clip, as a function of the step for `steps`.

    Args:
        window: "full": the model's whole window in every step; anything else: short ones.
        slack_s: seconds behind the longest clip of a step on a short window; None: the window's usual ones.
        full_share: share of steps, drawn by the seed, that get the whole window all the same.
        full_last: share of steps at the end of the run that do.
        n_steps: of the run.
        seed: of the draw.
    """

    short = SLACK_S[window] if slack_s is None else slack_s

    def wanted(step: int) -> float:
        whole = window == "full" or (full_last > 0 and step >= n_steps * (1 - full_last))
        if whole or (full_share and np.random.default_rng((seed, step, 1)).random() < full_share):
            return math.inf
        return short

    return wanted


def clips_at_once(window_s: float, budget_s: float) -> int:
    """How many clips of a window fit into a budget of seconds, one at least: memory grows with their product."""
    return max(1, int(min(budget_s / window_s + 1e-6, 1e9)))  # the budget may be infinite


def cut(n_clips: int, micro_batch_size: int) -> list[slice]:
    """The pieces of a step that fit into memory one at a time, as slices over its clips."""
    return [slice(i, min(i + micro_batch_size, n_clips)) for i in range(0, n_clips, micro_batch_size)]
