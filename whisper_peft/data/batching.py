"""The step contract: a seeded list of clips for each optimizer step, and its cut into micro-batches.

`steps` works in three stages, each a function below:

1. `_draw_epoch` puts the rows of an epoch into seeded order. No file is read.
2. `blocks` takes `look_ahead` rows at a time from that order and reads their lengths, but no sound.
3. `group_by_length` cuts a block into steps of clips of like length.

The module also decides how much silence a step wants after its longest clip (`slack_policy`), and how a step is cut
for memory (`cut`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whisper_peft.data.dataset import Pick
from whisper_peft.data.stitching import MOST_JOINED, fill_windows, gather
from whisper_peft.errors import UserError

# The window of a step: who decides it, and who only carries it.
# 1. `slack_policy` (below) decides the slack of each step, in seconds. Infinite slack means the model's whole window.
#    In evaluation `use_window` does it, for all batches alike.
# 2. The samplers write the slack into every Pick of the step, and SpeechDataset copies it into the Example. Both only
#    carry it.
# 3. SpeechCollator decides the window: the step's longest clip after augmentation plus the slack, at most the model's
#    whole window. With several processes, SpeechTrainer pads to the longest window among them. Only then it is cut.
# `condense_silence` does not change the window: it adds the positions that stand for the silence up to 30 s.
# `training/planning.py` computes the window a second time, from file headers, only to predict memory.

# Default slack in seconds for each kind of window, where `features.slack_s` is not set.
SLACK_S = {"full": math.inf, "condensed": 0.2, "tight": 0.5}

# Rows whose lengths are read together. More rows put more similar lengths into a step, but delay the first step.
LOOK_AHEAD = 256

# Each random decision has its own generator. One of these numbers stands third in its seed, so that it draws other
# numbers than the shuffle, whose seed is (seed, epoch). They must stay: another number changes the clips of every run.
FULL_WINDOW_DRAW = 1
STITCHING_DRAW = 2
FRACTION_DRAW = 2

# (seconds, pick): the length that the header of a clip states. None marks a clip that cannot be used.
MeasuredPick = tuple[float | None, Pick]


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Return the number of optimizer steps that visit every row once.

    Example:
        >>> steps_per_epoch(9, 4)
        3
    """
    return math.ceil(n_rows / batch_size)


@dataclass(frozen=True)
class Block:
    """The place where a block begins. A resumed run reads on from there.

    Attributes:
        step: First optimizer step of the block, counted over all epochs.
        epoch: Epoch of the block.
        first: Place of the block's first row in the order of its epoch.
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
    """Yield optimizer steps without end: shuffled lists of `batch_size` clips, clips of like length together.

    The lists depend on the rows and the seed alone, not on memory, window, processes or workers. Only the headers of
    one block are read before its first step, so the first step comes as fast for 800,000 rows as for 8.

    Args:
        n_rows: Number of rows.
        batch_size: Number of clips in a step. The last step of an epoch may have fewer.
        seed: Seed of the order.
        duration_s: Function from a row number to the seconds that its header states. It returns 0 where nobody can
            tell, and None for a clip that cannot be used; see `group_by_length`.
        slack_s: Function from a step number to the seconds of silence wanted after the step's longest clip. Infinity,
            the default, asks for the model's whole window.
        start: First step to yield, counted over all epochs. The steps before it cost only the shuffle of one epoch.
        look_ahead: Number of rows that are sorted by length together. It is rounded to whole steps.
        parts: (number of rows, weight) of each source, in the order of the rows. The weight says how often each row
            comes in an epoch; see `rows_of_epoch`. The default is one source with weight 1.
        stitching: How a share of the clips is joined into longer windows; None joins none.
        voices: int64 (n_rows,), needed with `stitching`. Rows with the same number may be joined.

    Example:
        Three rows with weight 1.5 give four clips an epoch, so two steps of two clips. In each epoch another row comes
        a second time; the pick's `again` is then 1. The short row 0 and the long row 1 are never in one step.

        >>> lengths_s = [2.0, 9.0, 4.0]
        >>> drawn = steps(3, 2, seed=0, duration_s=lengths_s.__getitem__, parts=[(3, 1.5)])
        >>> for step in range(4):
        ...     print(step, [(pick.epoch, pick.row, pick.again) for pick in next(drawn)])
        0 [(0, 0, 0), (0, 2, 0)]
        1 [(0, 2, 1), (0, 1, 0)]
        2 [(1, 0, 0), (1, 2, 0)]
        3 [(1, 1, 0), (1, 1, 1)]
    """
    begin = find_block(start, n_rows, batch_size, look_ahead=look_ahead, parts=parts)
    drawn = blocks(
        n_rows,
        batch_size,
        seed=seed,
        duration_s=duration_s,
        look_ahead=look_ahead,
        parts=parts,
        begin=begin,
        stitching=stitching,
        voices=voices,
    )
    for block, batches in drawn:
        for step, picks in enumerate(batches, start=block.step):
            if step >= start:
                yield [replace(pick, slack_s=slack_s(step)) for pick in picks]


def find_block(
    start: int, n_rows: int, batch_size: int, *, look_ahead: int = LOOK_AHEAD, parts: Sequence[tuple[int, float]] = ()
) -> Block:
    """Find the block of a step by arithmetic, without reading a header.

    The result is right where every block has as many steps as its rows fill. A block with fewer usable clips than that
    has fewer steps; then only a `Block` that a checkpoint kept tells where a later step is.

    Example:
        Nine rows in steps of two make five steps an epoch; a block of four rows holds two of them. Step 8 is the fourth
        step of the second epoch, so its block begins one step earlier, at the fifth row.

        >>> find_block(8, 9, 2, look_ahead=4)
        Block(step=7, epoch=1, first=4)
    """
    rows_per_block = block_size(batch_size, look_ahead)
    per_epoch = steps_per_epoch(clips_per_epoch(parts or [(n_rows, 1.0)]), batch_size)
    epoch, step_in_epoch = divmod(start, per_epoch)
    block_in_epoch, step_in_block = divmod(step_in_epoch, rows_per_block // batch_size)
    return Block(start - step_in_block, epoch, block_in_epoch * rows_per_block)


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
    """Yield blocks without end: the place where each begins, and its steps.

    The arguments are those of `steps`; `begin` is the first block to yield. A block in which no clip can be used has no
    step and is not yielded.

    Raises:
        UserError: No clip of a whole epoch can be used.
    """
    parts = parts or [(n_rows, 1.0)]
    rows_per_block = block_size(batch_size, look_ahead)
    step = begin.step
    epoch = begin.epoch
    first = begin.first
    # left_out.jsonl names a clip when its step is trained. So the clips of blocks without a step wait for the first
    # step of the next block, and a resumed run reads on from the first block of those that wait.
    waiting: list[Pick] = []
    waiting_since: Block | None = None
    while True:
        step_before_epoch = step
        drawn = _draw_epoch(parts, seed, epoch, batch_size, stitching, voices)
        for place in range(first, len(drawn.order), rows_per_block):
            picks = _measure_block(drawn, slice(place, place + rows_per_block), epoch, duration_s)
            if stitching is not None:
                picks = stitching.join_groups(picks, drawn.groups[place : place + rows_per_block], batch_size)
            batches = group_by_length(picks, batch_size, (seed, epoch, place))
            block = waiting_since or Block(step, epoch, place)
            if not batches:
                waiting += [pick for _, pick in picks]
                waiting_since = block
                continue
            batches[0] = batches[0] + waiting
            yield block, batches
            step += len(batches)
            waiting = []
            waiting_since = None
        if first == 0 and step == step_before_epoch:
            raise UserError(
                f"data.train: none of the {n_rows} clips can be used, as their headers and texts show; "
                "whisper-peft check names each with its reason."
            )
        epoch += 1
        first = 0


def block_size(batch_size: int, look_ahead: int = LOOK_AHEAD) -> int:
    """Return the number of rows in a block: the look-ahead, rounded to whole steps.

    Example:
        >>> block_size(batch_size=100, look_ahead=256)
        300
    """
    return max(1, round(look_ahead / batch_size)) * batch_size


def clips_per_epoch(parts: Sequence[tuple[int, float]]) -> int:
    """Return the number of clips in an epoch of sources that are given as (number of rows, weight).

    Example:
        A source of 1,000 rows with weight 0.25, and one of 3 rows with weight 2, give 250 and 6 clips.

        >>> clips_per_epoch([(1000, 0.25), (3, 2.0)])
        256
    """
    return sum(_clips_of_part(n_rows, weight) for n_rows, weight in parts)


def _clips_of_part(n_rows: int, weight: float) -> int:
    """Return the number of clips of one source in an epoch."""
    if not n_rows:
        return 0
    # At least one clip, so that a small weight never drops a source silently.
    return max(1, round(n_rows * weight))


@dataclass(frozen=True)
class _Epoch:
    """The clips of an epoch in seeded order, before they are grouped by length.

    Attributes:
        order: int64 (n_clips,), the row of each clip.
        times_before: int64 (n_clips,), how many times the row came earlier in this epoch.
        groups: int64 (n_clips,), which clips are stitched together; see `stitching.gather`.
    """

    order: np.ndarray
    times_before: np.ndarray
    groups: np.ndarray


def _draw_epoch(
    parts: Sequence[tuple[int, float]],
    seed: int,
    epoch: int,
    batch_size: int,
    stitching: Stitching | None,
    voices: np.ndarray | None,
) -> _Epoch:
    """Put the rows of an epoch into seeded order, and choose the clips that are stitched."""
    order = np.random.default_rng((seed, epoch)).permutation(rows_of_epoch(parts, seed=seed, epoch=epoch))
    groups = np.full(len(order), -1, dtype=np.int64)
    if stitching is not None:
        assert voices is not None, "stitching joins rows of one voice, so it needs the voices of the rows"
        rng = np.random.default_rng((seed, epoch, STITCHING_DRAW))
        order, groups = gather(order, voices, stitching.share, rng, most_clips=most_joined(batch_size))
    times_before = np.zeros_like(order)
    # Without a weight over 1 every row comes once at most, so there is nothing to count.
    if any(weight > 1 for _, weight in parts):
        times_before = _count_earlier(order)
    return _Epoch(order, times_before, groups)


def rows_of_epoch(parts: Sequence[tuple[int, float]], *, seed: int, epoch: int) -> np.ndarray:
    """List the rows of an epoch, each as often as the weight of its source says.

    A source with `n_rows` rows and weight `w` gives `round(n_rows * w)` clips, at least one. Every row comes
    `n_clips // n_rows` times. The clips that are still missing are taken from a fixed seeded order of the rows, where
    each epoch reads on from the place at which the epoch before stopped. Over many epochs all rows come equally often.

    Args:
        parts: (number of rows, weight) of each source.
        seed: Seed of the fixed orders.
        epoch: Number of the epoch.

    Returns:
        int64 (n_clips,), source after source, not shuffled.

    Example:
        Three rows with weight 1.5 give four clips (Python rounds 4.5 to 4): each row once, and one row a second time.
        After three epochs each row has come four times.

        >>> for epoch in range(3):
        ...     print(rows_of_epoch([(3, 1.5)], seed=0, epoch=epoch).tolist())
        [0, 1, 2, 2]
        [0, 1, 2, 1]
        [0, 1, 2, 0]
    """
    rows = []
    first = 0
    for number, (n_rows, weight) in enumerate(parts):
        if not n_rows:
            continue
        n_times, n_rest = divmod(_clips_of_part(n_rows, weight), n_rows)
        rows += [np.arange(first, first + n_rows)] * n_times
        if n_rest:
            fixed_order = np.random.default_rng((seed, number, FRACTION_DRAW)).permutation(n_rows)
            places = np.arange(epoch * n_rest, (epoch + 1) * n_rest) % n_rows
            rows.append(first + fixed_order[places])
        first += n_rows
    return np.concatenate(rows)


def _count_earlier(order: np.ndarray) -> np.ndarray:
    """Count for each place of an order how many times its row came earlier, int64 (n_clips,).

    Example:
        >>> _count_earlier(np.array([7, 5, 7, 7, 5])).tolist()
        [0, 0, 1, 2, 1]
    """
    by_row = np.argsort(order, kind="stable")
    counts = np.empty_like(order)
    counts[by_row] = np.arange(len(order)) - np.searchsorted(order[by_row], order[by_row])
    return counts


def _measure_block(
    drawn: _Epoch, places: slice, epoch: int, duration_s: Callable[[int], float | None]
) -> list[MeasuredPick]:
    """Make the picks of a block, each with the seconds from its header."""
    rows = drawn.order[places].tolist()
    times_before = drawn.times_before[places].tolist()
    picks: list[MeasuredPick] = []
    for row, times in zip(rows, times_before, strict=True):
        picks.append((duration_s(row), Pick(row, epoch, again=times)))
    return picks


@dataclass(frozen=True)
class Stitching:
    """How a share of the clips is joined into longer windows.

    Args:
        share: Share of an epoch's clips, or of a stream's block, that is joined.
        window_s: Longest window, in seconds.
        max_tokens: Largest number of tokens of a window's text.
        n_tokens: Function that counts the tokens of a pick's text, with its times.
    """

    share: float
    window_s: float
    max_tokens: int
    n_tokens: Callable[[Pick], int]

    def join_groups(self, picks: Sequence[MeasuredPick], groups: np.ndarray, batch_size: int) -> list[MeasuredPick]:
        """Join the clips of each group in a block.

        Args:
            picks: (seconds, pick) of the block, in the order of the epoch; None for a clip that cannot be used.
            groups: int64 (n_picks,), see `stitching.gather`.
            batch_size: Number of clips in a step. A window never has more.

        Returns:
            (seconds, pick) of windows and of clips that stay alone. A pick has its window's other clips in `joined`.
        """
        usable = []
        units: list[MeasuredPick] = []
        for group, (seconds, pick) in zip(groups.tolist(), picks, strict=True):
            if seconds is None:
                units.append((seconds, pick))
            else:
                usable.append((group, seconds, pick))
        for group, members in itertools.groupby(usable, key=lambda member: member[0]):
            clips = [(seconds, pick) for _, seconds, pick in members]
            if group < 0:
                units += clips
            else:
                units += self._join(clips, batch_size)
        return units

    def _join(self, clips: Sequence[tuple[float, Pick]], batch_size: int) -> list[tuple[float, Pick]]:
        """Join the clips of one group into as few windows as their order allows."""
        cuts = fill_windows(
            [seconds for seconds, _ in clips],
            [self.n_tokens(pick) for _, pick in clips],
            window_s=self.window_s,
            max_tokens=self.max_tokens,
            most_clips=most_joined(batch_size),
        )
        return [_join_picks(clips[window]) for window in cuts]


def most_joined(batch_size: int) -> int:
    """Return the largest number of clips in a stitched window. A window is never larger than a step."""
    return min(MOST_JOINED, batch_size)


def _join_picks(clips: Sequence[tuple[float, Pick]]) -> tuple[float, Pick]:
    """Make one pick of a window's clips; its seconds are theirs together, without the gaps."""
    first = clips[0][1]
    rest = tuple(pick for _, pick in clips[1:])
    return sum(clip_s for clip_s, _ in clips), replace(first, joined=rest)


def group_by_length(picks: Sequence[MeasuredPick], batch_size: int, seed: tuple[int, ...]) -> list[list[Pick]]:
    """Cut a block into steps of clips of like length, and put the steps into seeded order.

    A clip that cannot be used takes no place in a step. The usable clips are spread over as many steps as the block
    would have had, or over fewer where there are not so many clips, so that no step is empty. The unusable clips stand
    after a step's own clips, only so that left_out.jsonl names them.

    Args:
        picks: (seconds, pick) of every clip; None for a clip that cannot be used.
        batch_size: Number of clips in a step.
        seed: Seed of the order of the steps.

    Returns:
        The steps; an empty list where no clip can be used.

    Example:
        Six clips make three steps. Clip 3 cannot be used, so the other five are spread over the three steps.

        >>> seconds = [1.0, 8.0, 2.0, None, 9.0, 5.0]
        >>> picks = [(clip_s, Pick(row)) for row, clip_s in enumerate(seconds)]
        >>> for batch in group_by_length(picks, 2, seed=(0,)):
        ...     print([pick.row for pick in batch])
        [1, 4, 3]
        [0, 2]
        [5]
    """
    usable = [(seconds, pick) for seconds, pick in picks if seconds is not None]
    unusable = [pick for seconds, pick in picks if seconds is None]
    if not usable:
        return []
    by_length = [pick for _, pick in sorted(usable, key=lambda clip: (clip[0], clip[1].row))]
    if any(pick.joined for pick in by_length):
        batches = _cut_around_windows(by_length, batch_size)
    elif unusable:
        n_steps = min(steps_per_epoch(len(picks), batch_size), len(usable))
        edges = [round(number * len(usable) / n_steps) for number in range(n_steps + 1)]
        batches = [by_length[start:end] for start, end in itertools.pairwise(edges)]
    else:
        batches = _cut_in_order(by_length, batch_size)
    order = np.random.default_rng(seed).permutation(len(batches))
    batches = [batches[number] for number in order]
    for number, pick in enumerate(unusable):
        batches[number % len(batches)].append(pick)
    return batches


def _cut_in_order(picks: Sequence[Pick], batch_size: int) -> list[list[Pick]]:
    """Cut a list of clips into steps without changing their order; only the last step may have fewer clips."""
    return [list(picks[first : first + batch_size]) for first in range(0, len(picks), batch_size)]


def _cut_around_windows(by_length: Sequence[Pick], batch_size: int) -> list[list[Pick]]:
    """Cut clips and stitched windows into steps of `batch_size` clips; only the last step may have fewer.

    A step takes as many windows as fit, the longest first, and fills up with the longest single clips. Where no single
    clip is left, a window is cut in two.

    Args:
        by_length: Windows and single clips, the shortest first. No window has more clips than a step.
        batch_size: Number of clips in a step.
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
            head, tail = _split_window(windows.pop(0), room)
            batch.append(head)
            if tail.joined:
                windows.append(tail)
            else:
                singles.append(tail)
        batches.append(batch)
    return batches + _cut_in_order(singles, batch_size)


def _split_window(window: Pick, n_clips: int) -> tuple[Pick, Pick]:
    """Cut a window after its first `n_clips` clips."""
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
    """Return the function that gives `steps` the slack of each step.

    Args:
        window: Kind of window. "full" asks for the model's whole window in every step.
        slack_s: Slack of a step on a short window, in seconds; None takes the default of the window kind.
        full_share: Share of the steps, drawn by the seed, that get the whole window all the same.
        full_last: Share of the steps, at the end of the run, that get the whole window all the same.
        n_steps: Number of steps of the run.
        seed: Seed of the draw.

    Example:
        The last tenth of 200 steps is trained on whole windows.

        >>> slack_s = slack_policy("condensed", full_last=0.1, n_steps=200)
        >>> slack_s(179), slack_s(180)
        (0.2, inf)
    """
    short_s = SLACK_S[window]
    if slack_s is not None:
        short_s = slack_s

    def slack_of_step(step: int) -> float:
        if window == "full":
            return math.inf
        if full_last > 0 and step >= n_steps * (1 - full_last):
            return math.inf
        if full_share and np.random.default_rng((seed, step, FULL_WINDOW_DRAW)).random() < full_share:
            return math.inf
        return short_s

    return slack_of_step


def clips_at_once(window_s: float, budget_s: float) -> int:
    """Return how many clips fit into memory at once, at least one.

    Args:
        window_s: Window of the clips, in seconds.
        budget_s: Seconds of windows that fit into memory together. Memory grows with clips times window.

    Example:
        >>> clips_at_once(window_s=30.0, budget_s=240.0)
        8
        >>> clips_at_once(window_s=5.0, budget_s=240.0)
        48
    """
    # The small number undoes rounding of the quotient. The limit is there because the budget may be infinite.
    return max(1, int(min(budget_s / window_s + 1e-6, 1e9)))


def cut(n_clips: int, micro_batch_size: int) -> list[slice]:
    """Cut a step into micro-batches.

    Args:
        n_clips: Number of clips in the step.
        micro_batch_size: Largest number of clips in memory at once.

    Returns:
        One slice over the step's clips for each micro-batch.

    Example:
        >>> cut(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + micro_batch_size, n_clips)) for first in range(0, n_clips, micro_batch_size)]
