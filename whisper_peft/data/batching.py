"""The step contract: a seeded list of clips per optimizer step, and its cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

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
    parts: Sequence[tuple[int, float]] = (),
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
        parts: (rows, weight) of the sources that the rows are of, one after the other: how often each row comes in an
            epoch; one source of weight 1, by default.
    """
    parts = parts or [(n_rows, 1.0)]
    block = block_size(batch_size, look_ahead)
    per_epoch = steps_per_epoch(clips_per_epoch(parts), batch_size)
    epoch, skip = divmod(start, per_epoch)
    step = start
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(_drawn(parts, seed, epoch))
        again = _times_before(order) if any(weight > 1 for _, weight in parts) else np.zeros_like(order)
        for first in range(0, len(order), block):
            drawn = [*zip(order[first : first + block].tolist(), again[first : first + block].tolist(), strict=True)]
            n_steps = steps_per_epoch(len(drawn), batch_size)
            if skip >= n_steps:
                skip -= n_steps
                continue
            picks = [(duration_s(row), Pick(row, epoch, again=times)) for row, times in drawn]
            for batch in like_lengths(picks, batch_size, (seed, epoch, first))[skip:]:
                yield [replace(pick, slack_s=slack_s(step)) for pick in batch]
                step += 1
            skip = 0
        epoch += 1


def block_size(batch_size: int, look_ahead: int = LOOK_AHEAD) -> int:
    """Rows whose like lengths are put together: a look-ahead, rounded to whole steps."""
    return max(1, round(look_ahead / batch_size)) * batch_size


def clips_per_epoch(parts: Sequence[tuple[int, float]]) -> int:
    """How many clips an epoch has of sources given as (rows, weight)."""
    return sum(_clips_of_part(n_rows, weight) for n_rows, weight in parts)


def _clips_of_part(n_rows: int, weight: float) -> int:
    """One at least: no source is left out without a word."""
    return max(1, round(n_rows * weight)) if n_rows else 0


def _drawn(parts: Sequence[tuple[int, float]], seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch, int64 (n_clips,): each `weight` times; of a fraction, other ones in each epoch."""
    drawn, first = [], 0
    for number, (n_rows, weight) in enumerate(parts):
        whole, rest = divmod(_clips_of_part(n_rows, weight), n_rows) if n_rows else (0, 0)
        drawn += [np.arange(first, first + n_rows)] * whole
        if rest:
            always_same = np.random.default_rng((seed, number, 2)).permutation(n_rows)
            drawn.append(first + always_same[np.arange(epoch * rest, (epoch + 1) * rest) % n_rows])
        first += n_rows
    return np.concatenate(drawn)


def _times_before(order: np.ndarray) -> np.ndarray:
    """How many times each row of an order has come before, int64 (n_clips,)."""
    by_row = np.argsort(order, kind="stable")
    found = np.empty_like(order)
    found[by_row] = np.arange(len(order)) - np.searchsorted(order[by_row], order[by_row])
    return found


def like_lengths(picks: Sequence[tuple[float, Pick]], batch_size: int, seed: tuple[int, ...]) -> list[list[Pick]]:
    """Cuts a block of (seconds, pick) into steps of like lengths, in seeded order."""
    by_length = [pick for _, pick in sorted(picks, key=lambda pair: (pair[0], pair[1].row))]
    batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return [batches[number] for number in np.random.default_rng(seed).permutation(len(batches))]


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
