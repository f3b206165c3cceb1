"""The step contract: a seeded list of clips per optimizer step, and its cut into micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whisper_peft.data.dataset import Pick
from whisper_peft.data.stitching import MOST_CLIPS, fill_windows, gather

SLACK_S = {"full": math.inf, "condensed": 0.2, "tight": 0.5}  # of a window, where the user says nothing
STITCHING = 2  # in a seed: what is drawn for stitching, beside the order of the epoch
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
    stitching: Stitching | None = None,
    voices: np.ndarray | None = None,
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
        stitching: How a share of the clips is joined into longer windows; None joins none.
        voices: int64 (n_rows,), with `stitching`: equal for rows that may be joined.
    """
    parts = parts or [(n_rows, 1.0)]
    block = block_size(batch_size, look_ahead)
    per_epoch = steps_per_epoch(clips_per_epoch(parts), batch_size)
    epoch, skip = divmod(start, per_epoch)
    step = start
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(_drawn(parts, seed, epoch))
        groups = None
        if stitching is not None:
            rng = np.random.default_rng((seed, epoch, STITCHING))
            order, groups = gather(order, voices, stitching.share, rng, most_clips=most_joined(batch_size))
        again = _times_before(order) if any(weight > 1 for _, weight in parts) else np.zeros_like(order)
        for first in range(0, len(order), block):
            drawn = [*zip(order[first : first + block].tolist(), again[first : first + block].tolist(), strict=True)]
            n_steps = steps_per_epoch(len(drawn), batch_size)
            if skip >= n_steps:
                skip -= n_steps
                continue
            picks = [(duration_s(row), Pick(row, epoch, again=times)) for row, times in drawn]
            if stitching is not None:
                picks = stitching.windows(picks, groups[first : first + block], batch_size)
            for batch in fill_steps(picks, batch_size, (seed, epoch, first))[skip:]:
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


@dataclass(frozen=True)
class Stitching:
    """How a share of the clips is joined into longer windows.

    Args:
        share: Share of an epoch's clips, or of a stream's block, that is joined.
        window_s: Longest window, in seconds.
        max_tokens: Largest number of tokens of a window's text.
        n_tokens: Counts the tokens of a pick's text, with its times.
    """

    share: float
    window_s: float
    max_tokens: int
    n_tokens: Callable[[Pick], int]

    def windows(
        self, picks: Sequence[tuple[float, Pick]], groups: np.ndarray, batch_size: int
    ) -> list[tuple[float, Pick]]:
        """Join the clips of each group in a block.

        Args:
            picks: (seconds, pick) of the block, in the order of the epoch.
            groups: int64 (n_picks,), see `stitching.gather`.
            batch_size: Clips in a step, the most that a window can have.

        Returns:
            (seconds, pick) of windows and of clips that stay alone. A pick has its window's other clips in `joined`.
        """
        units = []
        for group, members in itertools.groupby(zip(groups.tolist(), picks, strict=True), key=lambda pair: pair[0]):
            clips = [pick for _, pick in members]
            if group < 0:
                units += clips
                continue
            seconds = [clip_s for clip_s, _ in clips]
            tokens = [self.n_tokens(pick) for _, pick in clips]
            cuts = fill_windows(
                seconds,
                tokens,
                window_s=self.window_s,
                max_tokens=self.max_tokens,
                most_clips=most_joined(batch_size),
            )
            units += [_joined(clips[window]) for window in cuts]
        return units


def most_joined(batch_size: int) -> int:
    """Return the largest number of clips in a stitched window; a window is never larger than a step."""
    return min(MOST_CLIPS, batch_size)


def _joined(clips: Sequence[tuple[float, Pick]]) -> tuple[float, Pick]:
    first = clips[0][1]
    rest = tuple(pick for _, pick in clips[1:])
    return sum(clip_s for clip_s, _ in clips), replace(first, joined=rest)


def fill_steps(units: Sequence[tuple[float, Pick]], batch_size: int, seed: tuple[int, ...]) -> list[list[Pick]]:
    """Cut a block into steps of `batch_size` clips, those of like length together, in seeded order.

    Stitched windows come first: a step takes as many of them as fit, and the longest single clips beside them. Where
    the single clips are used up, a window is cut in two. So only one step of a block has fewer clips than the others.

    Args:
        units: (seconds, pick) of each window or single clip.
        batch_size: Clips in a step; no window has more.
        seed: Of the order of the steps.
    """
    by_length = [pick for _, pick in sorted(units, key=lambda pair: (pair[0], pair[1].row))]
    singles = [pick for pick in by_length if not pick.joined]
    windows = [pick for pick in reversed(by_length) if pick.joined]
    batches = []
    while windows:
        batch: list[Pick] = []
        room = batch_size
        for window in list(windows):
            if len(window.clips) <= room:
                batch.append(window)
                windows.remove(window)
                room -= len(window.clips)
        while room and singles:
            batch.append(singles.pop())
            room -= 1
        if room and windows:
            head, tail = _split(windows.pop(0), room)
            batch.append(head)
            (windows if tail.joined else singles).append(tail)
        batches.append(batch)
    batches += [singles[i : i + batch_size] for i in range(0, len(singles), batch_size)]
    return [batches[number] for number in np.random.default_rng(seed).permutation(len(batches))]


def _split(window: Pick, n_clips: int) -> tuple[Pick, Pick]:
    """Cut a window behind its first `n_clips` clips."""
    clips = window.clips
    head = replace(clips[0], joined=clips[1:n_clips])
    tail = replace(clips[n_clips], joined=clips[n_clips + 1 :])
    return head, tail


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
