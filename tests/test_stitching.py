"""Stitching: which clips are joined, what lies between them, and where their speech is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_clip_without_a_silence_or_without_speech_is_taken_whole():
    for wave in (tone(1.0, 0.2), np.zeros(16000, np.float32), np.zeros(0, np.float32), tone(0.03, 0.2)):
        start_s, end_s = find_speech(wave, 16000)
        assert start_s == 0.0
        assert end_s == pytest.approx(len(wave) / 16000)


def test_a_click_is_no_speech():
    wave = np.concatenate([np.zeros(16000), tone(1.0, 0.2), np.zeros(16000)]).astype(np.float32)
    wave[3200:3300] = 0.9
    start_s, _ = find_speech(wave, 16000)
    assert start_s == pytest.approx(1.0, abs=0.12)


def test_noise_has_the_level_and_the_colour_of_the_quiet_parts():
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
def test_groups_are_of_one_voice_and_no_clip_is_lost(voices, share, seed):
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
    again = gather(order, of_row, share, np.random.default_rng(seed), most_clips=7)
    assert np.array_equal(new, again[0])
    assert np.array_equal(groups, again[1])


def test_a_share_of_a_usual_set_is_joined():
    of_row = np.random.default_rng(0).integers(0, 60, 683)
    _, groups = gather(np.arange(683), of_row, 0.2, np.random.default_rng(1))
    assert 0.17 * 683 <= (groups >= 0).sum() <= 0.2 * 683 + 1


@given(st.lists(st.floats(0.1, 30), max_size=60), st.floats(5, 30))
def test_windows_are_full_and_never_over_their_length(seconds, window_s):
    windows = fill_windows(seconds, window_s)
    assert [place for window in windows for place in range(window.start, window.stop)] == list(range(len(seconds)))
    for window in windows:
        clips = seconds[window]
        assert len(clips) == 1 or sum(clips) + GAP_S[1] * (len(clips) - 1) <= window_s
