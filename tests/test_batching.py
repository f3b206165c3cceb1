"""Steps are seeded and endless, take each row once an epoch, and start anywhere at little cost."""

from __future__ import annotations

import inspect
import itertools
import math
import random
import time

import pytest

from whisper_peft.data.batching import LOOK_AHEAD, clips_at_once, cut, slack_policy, steps, steps_per_epoch
from whisper_peft.data.dataset import Pick


def no_length(row: int) -> float:
    return 0.0


def made_lengths(n_rows: int) -> list[float]:
    rng = random.Random(1)
    return [rng.uniform(0.5, 30.0) for _ in range(n_rows)]


def take(count: int, *arguments, **options) -> list[list[Pick]]:
    return list(itertools.islice(steps(*arguments, **options), count))


@pytest.mark.parametrize(("n_rows", "batch_size"), [(1, 1), (1, 8), (7, 8), (8, 8), (9, 8), (600, 7), (1000, 32)])
def test_each_row_comes_exactly_once_in_an_epoch(n_rows, batch_size):
    lengths = made_lengths(n_rows)
    per_epoch = steps_per_epoch(n_rows, batch_size)
    drawn = take(3 * per_epoch, n_rows, batch_size, seed=0, duration_s=lengths.__getitem__)
    orders = []
    for epoch in range(3):
        of_epoch = drawn[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(pick.row for step in of_epoch for pick in step) == list(range(n_rows))
        assert {pick.epoch for step in of_epoch for pick in step} == {epoch}
        sizes = sorted(map(len, of_epoch))
        # At most one step of an epoch is short.
        assert sizes[1:] == [batch_size] * (per_epoch - 1)
        orders.append({frozenset(pick.row for pick in step) for step in of_epoch})
    if n_rows > 100:
        # Each epoch puts other rows together into steps.
        assert not orders[0] & orders[1]
        assert not orders[1] & orders[2]


def test_the_seed_alone_decides_the_steps():
    lengths = made_lengths(300)
    first = take(100, 300, 8, seed=3, duration_s=lengths.__getitem__)
    random.seed(99)
    assert take(100, 300, 8, seed=3, duration_s=lengths.__getitem__) == first
    assert take(100, 300, 8, seed=4, duration_s=lengths.__getitem__) != first


def test_steps_do_not_depend_on_memory_workers_or_ranks():
    known = set(inspect.signature(steps).parameters)
    assert known == {
        "n_rows",
        "batch_size",
        "seed",
        "duration_s",
        "slack_s",
        "start",
        "look_ahead",
        "parts",
        "stitching",
        "voices",
    }


@pytest.mark.parametrize("start", [0, 1, 5, 31, 32, 33, 37, 38, 39, 75, 76, 200])
def test_a_later_start_gives_the_same_steps_as_skipping(start):
    # An epoch has one block of 256 rows and a rest of 44: 32 + 6 steps.
    n_rows, batch_size = 300, 8
    lengths = made_lengths(n_rows)
    whole = take(start + 50, n_rows, batch_size, seed=5, duration_s=lengths.__getitem__)
    assert take(50, n_rows, batch_size, seed=5, duration_s=lengths.__getitem__, start=start) == whole[start:]


@pytest.mark.parametrize("start", [0, 123_457])
def test_only_the_lengths_of_one_block_are_read_before_the_first_step(start):
    read = []

    def duration_s(row: int) -> float:
        read.append(row)
        return 1.0

    began = time.process_time()
    drawn = steps(800_000, 8, seed=0, duration_s=duration_s, start=start)
    assert not read
    first = next(drawn)
    assert time.process_time() - began < 2.0
    assert len(first) == 8
    assert len(read) <= LOOK_AHEAD
    for _ in range(LOOK_AHEAD // 8 - 1 - start % (LOOK_AHEAD // 8)):
        next(drawn)
    # The next block is not read before the last step of this block is taken.
    assert len(read) == LOOK_AHEAD
    # Each header is read once.
    assert len(set(read)) == LOOK_AHEAD
    next(drawn)
    assert len(read) == 2 * LOOK_AHEAD


def test_a_step_holds_clips_of_like_length():
    lengths = made_lengths(2048)

    def spread(drawn: list[list[Pick]]) -> float:
        return sum(max(lengths[p.row] for p in step) - min(lengths[p.row] for p in step) for step in drawn) / len(drawn)

    sorted_ones = take(256, 2048, 8, seed=0, duration_s=lengths.__getitem__)
    shuffled = take(256, 2048, 8, seed=0, duration_s=no_length)
    assert spread(sorted_ones) < 1.5 < 15 < spread(shuffled)
    longest = [max(lengths[pick.row] for pick in step) for step in sorted_ones]
    # Steps themselves do not come in order of length.
    assert longest != sorted(longest)
    rising = sum(a < b for a, b in itertools.pairwise(longest))
    assert 90 < rising < 165


def test_rows_of_one_length_are_still_shuffled():
    rows = [pick.row for step in take(8, 64, 8, seed=0, duration_s=no_length, look_ahead=16) for pick in step]
    assert rows != list(range(64))


@pytest.mark.parametrize(("look_ahead", "batch_size"), [(1, 8), (8, 8), (100, 8), (256, 1000)])
def test_a_block_is_rounded_to_whole_steps(look_ahead, batch_size):
    n_rows = 4 * batch_size
    drawn = take(4, n_rows, batch_size, seed=0, duration_s=no_length, look_ahead=look_ahead)
    assert [len(step) for step in drawn] == [batch_size] * 4


@pytest.mark.parametrize("n_clips", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8, 100])
def test_micro_batches_cover_all_clips_of_a_step_once_in_order(n_clips, micro_batch_size):
    clips = list(range(n_clips))
    pieces = [clips[piece] for piece in cut(n_clips, micro_batch_size)]
    assert [clip for piece in pieces for clip in piece] == clips
    assert all(0 < len(piece) <= micro_batch_size for piece in pieces)
    assert len(pieces) == -(-n_clips // micro_batch_size)


def test_a_pick_can_be_a_dictionary_key():
    assert {Pick(3, 1): "a"}[Pick(3, 1)] == "a"
    assert Pick(3, 1) != Pick(3, 2)


def test_the_slack_of_a_step_depends_on_seed_and_step_alone():
    policy = slack_policy("tight", slack_s=0.5, full_share=0.25, full_last=0.1, n_steps=400, seed=3)
    wanted = [policy(step) for step in range(400)]
    assert set(wanted) == {0.5, math.inf}
    assert wanted[360:] == [math.inf] * 40 and 0.5 in wanted[320:360]
    assert 0.18 < sum(map(math.isinf, wanted[:360])) / 360 < 0.32
    assert [policy(step) for step in reversed(range(400))] == wanted[::-1]
    assert slack_policy("tight", slack_s=0.5, full_share=0.25, seed=4)(0) in (0.5, math.inf)
    assert {slack_policy("full", slack_s=0.5)(step) for step in range(9)} == {math.inf}
    assert {slack_policy("condensed", slack_s=0.5, n_steps=9)(step) for step in range(20)} == {0.5}


def test_every_pick_carries_the_slack_of_its_step_also_in_a_resumed_run():
    lengths = made_lengths(50)
    whole = take(20, 50, 8, seed=1, duration_s=lengths.__getitem__, slack_s=float)
    assert [{pick.slack_s for pick in picks} for picks in whole] == [{float(step)} for step in range(20)]
    assert take(8, 50, 8, seed=1, duration_s=lengths.__getitem__, slack_s=float, start=12) == whole[12:]
    assert {pick.slack_s for picks in take(3, 50, 8, seed=1, duration_s=lengths.__getitem__) for pick in picks} == {
        math.inf
    }


def test_a_budget_in_seconds_bounds_the_total_windows_of_a_micro_batch():
    assert [clips_at_once(window_s, 240.0) for window_s in (30.0, 4.0, 7.0, 500.0)] == [8, 60, 34, 1]
    for window_s in (0.3, 1.7, 4.44, 29.98):
        n_clips = clips_at_once(window_s, 240.0)
        assert n_clips * window_s <= 240.001 < (n_clips + 1) * window_s + 0.001
