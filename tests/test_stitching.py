"""Stitching joins clips of one voice, with natural noise between them and the time of each text."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import soundfile
from conftest import make_speech, make_tiny_model, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import SpeechCollator, SpeechDataset, load_preparation, override, train
from whisper_peft.data.batching import Stitching, steps
from whisper_peft.data.dataset import Example, LeftOut, Pick
from whisper_peft.data.rows import Row
from whisper_peft.data.stitching import GAP_S, fill_windows, find_speech, gather, noise_like


def tone(seconds: float, level: float) -> np.ndarray:
    time_s = np.arange(round(seconds * 16000)) / 16000
    return (level * np.sin(2 * np.pi * 220 * time_s) * (1 + 0.5 * np.sin(2 * np.pi * 4 * time_s))).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.003])
@pytest.mark.parametrize(("before_s", "after_s"), [(0.0, 0.0), (0.5, 1.5), (2.0, 0.1)])
def test_speech_is_found_over_the_noise_of_its_own_clip(noise, before_s, after_s):
    speech = tone(2.0, 0.2)
    wave = np.concatenate([np.zeros(round(before_s * 16000)), speech, np.zeros(round(after_s * 16000))])
    wave = (wave + noise * np.random.default_rng(0).standard_normal(len(wave))).astype(np.float32)
    start_s, end_s = find_speech(wave, 16000)
    assert start_s == pytest.approx(before_s, abs=0.12)
    assert end_s == pytest.approx(before_s + 2.0, abs=0.12)


def test_the_speech_of_a_clip_without_silence_or_without_speech_is_the_whole_clip():
    for wave in (tone(1.0, 0.2), np.zeros(16000, np.float32), np.zeros(0, np.float32), tone(0.03, 0.2)):
        start_s, end_s = find_speech(wave, 16000)
        assert start_s == 0.0
        assert end_s == pytest.approx(len(wave) / 16000)


def test_a_click_does_not_count_as_speech():
    wave = np.concatenate([np.zeros(16000), tone(1.0, 0.2), np.zeros(16000)]).astype(np.float32)
    wave[3200:3300] = 0.9
    start_s, _ = find_speech(wave, 16000)
    assert start_s == pytest.approx(1.0, abs=0.12)


def test_the_noise_between_clips_has_the_level_and_spectrum_of_their_quiet_parts():
    rng = np.random.default_rng(0)
    hum = 0.01 * np.sin(2 * np.pi * 100 * np.arange(32000) / 16000)
    wave = np.concatenate([hum, tone(1.0, 0.3)]).astype(np.float32)
    made = noise_like(wave, 8000, rng)
    assert made.dtype == np.float32
    assert made.shape == (8000,)
    assert np.sqrt(np.mean(made**2)) == pytest.approx(0.01 / np.sqrt(2), rel=0.2)
    power = np.abs(np.fft.rfft(made)) ** 2
    below_400_hz = power[: round(400 / 2)].sum()
    assert below_400_hz > 0.95 * power.sum()
    assert not noise_like(np.zeros(16000, np.float32), 800, rng).any()
    assert noise_like(wave, 0, rng).shape == (0,)


voices = st.lists(st.integers(0, 5), min_size=1, max_size=200)


@given(voices, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_group_has_one_voice_and_no_clip_is_lost(voices, share, seed):
    order = np.random.default_rng(seed).permutation(len(voices))
    of_row = np.array(voices)
    new, groups = gather(order, of_row, share, np.random.default_rng(seed), most_clips=7)
    assert sorted(new) == sorted(order)
    chosen = groups[groups >= 0]
    assert len(chosen) <= max(0, round(share * len(voices)))
    for name in set(chosen.tolist()):
        places = np.flatnonzero(groups == name)
        assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
        assert 2 <= len(places) <= 7
        assert len(set(of_row[new[places]].tolist())) == 1
    second_result = gather(order, of_row, share, np.random.default_rng(seed), most_clips=7)
    assert np.array_equal(new, second_result[0])
    assert np.array_equal(groups, second_result[1])


def test_nearly_the_whole_share_of_a_usual_data_set_is_joined():
    of_row = np.random.default_rng(0).integers(0, 60, 683)
    _, groups = gather(np.arange(683), of_row, 0.2, np.random.default_rng(1))
    assert 0.17 * 683 <= (groups >= 0).sum() <= 0.2 * 683 + 1


@given(st.lists(st.floats(0.1, 30), max_size=60), st.floats(5, 30))
def test_a_stitched_window_never_exceeds_its_length_and_no_clip_is_lost(seconds, window_s):
    windows = fill_windows(seconds, [10] * len(seconds), window_s=window_s, max_tokens=100)
    assert [place for window in windows for place in range(window.start, window.stop)] == list(range(len(seconds)))
    for window in windows:
        clips = seconds[window]
        assert len(clips) == 1 or sum(clips) + GAP_S[1] * (len(clips) - 1) <= window_s
        assert len(clips) <= 10


def take_steps(n_steps: int, seconds: list[float], batch_size: int, share: float, start: int = 0) -> list[list[Pick]]:
    voices = np.arange(len(seconds)) % 7
    drawn = steps(
        len(seconds),
        batch_size,
        seed=3,
        duration_s=seconds.__getitem__,
        start=start,
        stitching=Stitching(share, 30.0, 440, lambda pick: 20),
        voices=voices,
    )
    return list(itertools.islice(drawn, n_steps))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.5, 20), min_size=1, max_size=300),
    st.integers(1, 12),
    st.floats(0, 1),
)
def test_a_step_has_its_number_of_clips_and_an_epoch_has_each_clip_once(seconds, batch_size, share):
    n_steps = -(-len(seconds) // batch_size)
    epoch = take_steps(n_steps, seconds, batch_size, share)
    sizes = [sum(len(pick.clips) for pick in step) for step in epoch]
    assert sum(sizes) == len(seconds)
    assert all(size <= batch_size for size in sizes)
    rows = [clip.row for step in epoch for pick in step for clip in pick.clips]
    assert sorted(rows) == list(range(len(seconds)))
    for step in epoch:
        for pick in step:
            # All clips of a stitched window have one voice.
            assert len({clip.row % 7 for clip in pick.clips}) == 1
            assert len(pick.clips) == 1 or sum(seconds[clip.row] for clip in pick.clips) <= 30


@pytest.mark.parametrize("start", [0, 1, 31, 32, 33, 80])
def test_starting_at_a_later_step_gives_the_same_steps_as_skipping(start):
    seconds = np.random.default_rng(0).uniform(1, 8, 300).tolist()
    whole = take_steps(start + 40, seconds, 8, 0.3)
    assert take_steps(40, seconds, 8, 0.3, start) == whole[start:]
    other_epoch = take_steps(80, seconds, 8, 0.3)
    windows = [
        {frozenset(clip.row for clip in pick.clips) for step in part for pick in step if pick.joined}
        for part in (other_epoch[:38], other_epoch[38:76])
    ]
    assert windows[0]
    # The windows are drawn again in each epoch.
    assert windows[0] != windows[1]


@pytest.fixture(scope="module")
def preparation(tmp_path_factory):
    """Make the preparation of a tiny model with a window of 10 s."""
    model = make_tiny_model(tmp_path_factory.mktemp("wide") / "model", max_source_positions=500)
    preparation = load_preparation(str(model))
    assert preparation.window_s == 10
    return preparation


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Row]:
    """Make three clips of one speaker, each with 0.5 s of silence, 1 s of sound and 0.5 s of silence."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number, text in enumerate(("घर पानी", "किताब सड़क", "लाल नीला")):
        silence = np.zeros(8000, np.float32)
        soundfile.write(folder / f"{number}.wav", np.concatenate([silence, tone(1.0, 0.3), silence]), 16000)
        rows.append(Row(str(folder / f"{number}.wav"), text, "hi", speaker="a"))
    return rows


WINDOW = Pick(0, joined=(Pick(1), Pick(2)))


def test_a_stitched_window_has_all_clips_in_order_and_the_time_of_each_text(preparation, clips):
    dataset = SpeechDataset(clips, preparation, timestamps=1.0)
    window = dataset[WINDOW]
    assert isinstance(window, Example)
    assert window.n_clips == 3
    assert 3 * 2.0 + 2 * GAP_S[0] <= window.seconds <= 3 * 2.0 + 2 * GAP_S[1] + 0.01
    times = [
        (int(token) - preparation.first_timestamp) * 0.02
        for token in window.labels
        if token >= preparation.first_timestamp
    ]
    assert len(times) == 6
    assert times == sorted(times)
    assert times[0] == pytest.approx(0.5, abs=0.15)
    assert times[1] == pytest.approx(1.5, abs=0.15)
    assert 0.5 + 0.5 + GAP_S[0] - 0.3 <= times[2] - times[1] <= 0.5 + 0.5 + GAP_S[1] + 0.3
    texts = [token for token in window.labels.tolist() if 0 <= token < preparation.eot]
    assert preparation.decode(texts) == "घर पानी किताब सड़क लाल नीला"
    second_window = SpeechDataset(clips, preparation, timestamps=1.0)[WINDOW]
    assert np.array_equal(window.input_features, second_window.input_features)
    other = dataset[dataclasses.replace(WINDOW, epoch=1)]
    # Another epoch has other gaps.
    assert other.seconds != window.seconds


def test_a_stitched_window_without_times_has_the_joined_text(preparation, clips):
    window = SpeechDataset(clips, preparation)[WINDOW]
    assert not (window.labels >= preparation.first_timestamp).any()
    assert preparation.decode(window.labels.tolist()) == "घर पानी किताब सड़क लाल नीला"


def test_a_single_timed_clip_has_the_times_of_its_speech(preparation, clips):
    labels = SpeechDataset(clips, preparation, timestamps=1.0)[0].labels
    times = [(int(token) - preparation.first_timestamp) * 0.02 for token in labels if token > preparation.no_timestamps]
    assert times == pytest.approx([0.5, 1.5], abs=0.15)


def test_a_clip_that_cannot_be_used_is_left_out_of_its_window(preparation, clips):
    rows = [clips[0], dataclasses.replace(clips[1], audio="gone.wav"), dataclasses.replace(clips[2], text=" ")]
    dataset = SpeechDataset(rows, preparation)
    window = dataset[WINDOW]
    assert window.n_clips == 1
    assert [(clip.row, clip.reason) for clip in window.left_out] == [(1, "no such file"), (2, "empty text")]
    rows[0] = dataclasses.replace(clips[0], audio="gone.wav")
    nothing = dataset[WINDOW]
    assert isinstance(nothing, LeftOut)
    batch = SpeechCollator(preparation)([nothing, window])
    assert batch["n_clips"] == 1
    assert sorted(clip.row for clip in batch["left_out"]) == [0, 1, 1, 2, 2]


def test_clips_that_augmentation_made_longer_still_fit_into_the_window(preparation, clips):
    dataset = SpeechDataset(clips, preparation, augment=lambda wave, rng: np.tile(wave, 2))
    window = dataset[WINDOW]
    assert window.seconds <= preparation.window_s
    assert window.n_clips == 2
    assert [clip.reason for clip in window.left_out] == ["augmented, it has no room in its stitched window"]


def test_a_resumed_run_with_stitching_equals_an_uninterrupted_one(tiny_model, tmp_path):
    make_speech(tmp_path / "train", 24, seconds=(0.3, 0.6))
    make_speech(tmp_path / "eval", 2, seed=1)
    recipe = override(
        tiny_recipe(tiny_model, tmp_path),
        {"features.stitch": 0.5, "features.timestamps": 0.5, "data.test": None, "train.steps": 6},
    )
    first = override(recipe, {"train.steps": 3, "train.schedule": "constant", "train.warmup_steps": 0})
    constant = override(recipe, {"train.schedule": "constant", "train.warmup_steps": 0})
    straight = train(constant, output=tmp_path / "straight").run
    begun = train(first, output=tmp_path / "begun").run
    train(resume=begun, changes={"train.steps": 6})
    weights = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (straight, begun)]
    assert weights[0] == weights[1]
