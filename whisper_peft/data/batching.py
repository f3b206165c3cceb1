"""The step contract: a seeded list of clips per optimizer step, and its cut into micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whisper_peft.data.dataset import Pick
from whisper_peft.data.stitching import MOST_CLIPS, fill_windows, gather
from whisper_peft.errors import UserError

SLACK_S = {"full": math.inf, "condensed": 0.2, "tight": 0.5}  # of a window, where the user says nothing
STITCHING = 2  # in a seed: what is drawn for stitching, beside the order of the epoch
LOOK_AHEAD = 256  # rows whose headers are read at a time to put like lengths together


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps that visit every row once."""
    return math.ceil(n_rows / batch_size)


@dataclass(frozen=True)
class Block:
    """Where a look-ahead begins; a resumed run reads on from there.

    Attributes:
        step: The optimizer step that its first clips are in.
        epoch: The epoch that it is of.
        first: The place of its first row in the epoch's order.
    """

    step: int = 0
    epoch: int = 0
    first: int = 0


def steps(
    n_rows: int,
    batch_size: int,
    *,
    seed: int,
    duration_s: Callable[[int], float | None],
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
        duration_s: seconds of a row, from its header; 0 where it cannot be told; None where the header shows that the
            clip cannot be used: see `like_lengths`.
        slack_s: step -> seconds of silence wanted behind its longest clip; infinite, as by default: the whole window.
        start: the first step to yield, counted over all epochs; the ones before cost nothing but their shuffle.
        look_ahead: rows put in order of length at a time, rounded to whole steps.
        parts: (rows, weight) of the sources that the rows are of, one after the other: how often each row comes in an
            epoch; one source of weight 1, by default.
        stitching: How a share of the clips is joined into longer windows; None joins none.
        voices: int64 (n_rows,), with `stitching`: equal for rows that may be joined.
    """
    begin = block_of(start, n_rows, batch_size, look_ahead=look_ahead, parts=parts)
    options = {"seed": seed, "duration_s": duration_s, "look_ahead": look_ahead, "parts": parts}
    options |= {"stitching": stitching, "voices": voices}
    for block, batches in blocks(n_rows, batch_size, begin=begin, **options):
        for step, picks in enumerate(batches, start=block.step):
            if step >= start:
                yield [replace(pick, slack_s=slack_s(step)) for pick in picks]


def block_of(
    start: int, n_rows: int, batch_size: int, *, look_ahead: int = LOOK_AHEAD, parts: Sequence[tuple[int, float]] = ()
) -> Block:
    """Find the block that a step is in, without reading a header.

    It holds where every block has as many steps as its rows fill. A block with fewer usable clips than steps has fewer:
    then only a `Block` that was kept tells where a later step is.
    """
    rows = block_size(batch_size, look_ahead)
    per_epoch = steps_per_epoch(clips_per_epoch(parts or [(n_rows, 1.0)]), batch_size)
    epoch, within = divmod(start, per_epoch)
    number, ahead = divmod(within, rows // batch_size)
    return Block(start - ahead, epoch, number * rows)


def blocks(
    n_rows: int,
    batch_size: int,
    *,
    seed: int,
    duration_s: Callable[[int], float | None],
    look_ahead: int = LOOK_AHEAD,
    parts: Sequence[tuple[int, float]] = (),
    begin: Block = Block(),
    stitching: Stitching | None = None,
    voices: np.ndarray | None = None,
) -> Iterator[tuple[Block, list[list[Pick]]]]:
    """Endless blocks: where each begins, and its steps; see `steps`. A block without a usable clip has none.

    Raises:
        UserError: A whole epoch has no usable clip.
    """
    parts = parts or [(n_rows, 1.0)]
    rows = block_size(batch_size, look_ahead)
    step, epoch, first = begin.step, begin.epoch, begin.first
    waiting: list[Pick] = []  # clips of blocks without a step: they are named in the next one
    since: Block | None = None
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(_drawn(parts, seed, epoch))
        groups = None
        if stitching is not None:
            rng = np.random.default_rng((seed, epoch, STITCHING))
            order, groups = gather(order, voices, stitching.share, rng, most_clips=most_joined(batch_size))
        again = _times_before(order) if any(weight > 1 for _, weight in parts) else np.zeros_like(order)
        is_whole, before = first == 0, step
        for place in range(first, len(order), rows):
            drawn = zip(order[place : place + rows].tolist(), again[place : place + rows].tolist(), strict=True)
            picks = [(duration_s(row), Pick(row, epoch, again=times)) for row, times in drawn]
            if stitching is not None:
                picks = stitching.windows(picks, groups[place : place + rows], batch_size)
            batches = like_lengths(picks, batch_size, (seed, epoch, place))
            since = since or Block(step, epoch, place)
            if not batches:
                waiting += [pick for _, pick in picks]
                continue
            batches[0] = batches[0] + waiting
            yield since, batches
            step += len(batches)
            waiting, since = [], None
        if is_whole and step == before:
            raise UserError(
                f"data.train: none of the {n_rows} clips can be used, as their headers and texts show; "
                "whisper-peft check names each with its reason."
            )
        epoch, first = epoch + 1, 0


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
        self, picks: Sequence[tuple[float | None, Pick]], groups: np.ndarray, batch_size: int
    ) -> list[tuple[float | None, Pick]]:
        """Join the clips of each group in a block.

        Args:
            picks: (seconds, pick) of the block, in the order of the epoch; None for a clip that cannot be used.
            groups: int64 (n_picks,), see `stitching.gather`.
            batch_size: Clips in a step, the most that a window can have.

        Returns:
            (seconds, pick) of windows and of clips that stay alone. A pick has its window's other clips in `joined`.
        """
        units = [(seconds, pick) for seconds, pick in picks if seconds is None]
        usable = [pair for pair in zip(groups.tolist(), picks, strict=True) if pair[1][0] is not None]
        for group, members in itertools.groupby(usable, key=lambda pair: pair[0]):
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


def _around_windows(by_length: Sequence[Pick], batch_size: int) -> list[list[Pick]]:
    """Cut clips and stitched windows into steps of `batch_size` clips; only the last step may have fewer.

    A step takes as many windows as fit, the longest first, and the longest single clips beside them. Where the single
    clips are used up, a window is cut in two.

    Args:
        by_length: Windows and single clips, the shortest first. No window has more clips than a step.
        batch_size: Clips in a step.
    """
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
    return batches + [singles[i : i + batch_size] for i in range(0, len(singles), batch_size)]


def like_lengths(
    picks: Sequence[tuple[float | None, Pick]], batch_size: int, seed: tuple[int, ...]
) -> list[list[Pick]]:
    """Cut a block into steps of like lengths, in seeded order.

    Clips that cannot be used, whose seconds are None, take no place in a step. The others are spread over as many steps
    as the block would have had, or fewer where there are not so many, so that no step is empty. The unusable ones come
    along behind a step's own clips, only to be named in left_out.jsonl.

    Args:
        picks: (seconds, pick) of every clip.
        batch_size: clips in a step.
        seed: of the order of the steps.

    Returns:
        The steps; none where no clip can be used.
    """
    usable = [(seconds, pick) for seconds, pick in picks if seconds is not None]
    unusable = [pick for seconds, pick in picks if seconds is None]
    by_length = [pick for _, pick in sorted(usable, key=lambda pair: (pair[0], pair[1].row))]
    if any(pick.joined for pick in by_length):
        batches = _around_windows(by_length, batch_size)
    elif unusable:
        n_steps = min(steps_per_epoch(len(picks), batch_size), len(usable))
        edges = [round(number * len(usable) / max(1, n_steps)) for number in range(n_steps + 1)]
        batches = [by_length[start:end] for start, end in itertools.pairwise(edges)]
    else:
        batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    batches = [batches[number] for number in np.random.default_rng(seed).permutation(len(batches))]
    for number, pick in enumerate(unusable if batches else ()):
        batches[number % len(batches)].append(pick)
    return batches


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
