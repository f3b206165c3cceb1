"""A row becomes one example or is left out with its reason, augmentation is seeded, and nothing is written to disk."""

from __future__ import annotations

import builtins
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_wave

from whisper_peft.data.dataset import Example, LeftOut, Pick, SpeechDataset
from whisper_peft.data.features import IGNORED
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.sources import load_source
from whisper_peft.data.text import clean_text
from whisper_peft.model.configs import load_preparation

# The window of the tiny model.
WINDOW_S = 3


@pytest.fixture(scope="module")
def preparation(tiny_model):
    return load_preparation(str(tiny_model))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A good clip of one second."""
    path = tmp_path_factory.mktemp("clip") / "good.wav"
    soundfile.write(path, make_wave(1.0), 16_000)
    return path


def row(audio: str | Path | bytes, text: str = "घर पानी", **changes) -> Row:
    return Row(audio=audio if isinstance(audio, bytes) else str(audio), text=text, place="metadata.csv:2", **changes)


def cut_wav(folder: Path) -> Path:
    path = folder / "cut.wav"
    soundfile.write(path, make_wave(2.5), 16_000)
    path.write_bytes(path.read_bytes()[:40_000])
    return path


def cut_mp3(folder: Path) -> Path:
    path = folder / "cut.mp3"
    soundfile.write(path, make_wave(2.9), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def of_seconds(folder: Path, seconds: float) -> Path:
    path = folder / "long.wav"
    soundfile.write(path, make_wave(seconds), 16_000)
    return path


def noise_bytes(folder: Path) -> Path:
    path = folder / "noise.wav"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.wav"
    path.touch()
    return path


def not_finite(folder: Path) -> Path:
    path = folder / "nan.wav"
    wave = make_wave(1.0)
    wave[100] = np.nan
    soundfile.write(path, wave, 16_000, subtype="FLOAT")
    return path


BAD = {
    "missing": (lambda folder, clip: row(folder / "none.wav"), "no such file"),
    "a folder": (lambda folder, clip: row(folder), "a folder, not a file"),
    "empty file": (lambda folder, clip: row(empty_file(folder)), "empty"),
    "unreadable": (lambda folder, clip: row(noise_bytes(folder)), "cannot be read"),
    "truncated wav": (lambda folder, clip: row(cut_wav(folder)), "truncated"),
    "truncated mp3": (lambda folder, clip: row(cut_mp3(folder)), "truncated"),
    "truncated bytes": (lambda folder, clip: row(cut_wav(folder).read_bytes()), "truncated"),
    "not finite": (lambda folder, clip: row(not_finite(folder)), "no numbers"),
    "too long": (lambda folder, clip: row(of_seconds(folder, 4.0)), "4.0 s of audio; the model takes 3 s"),
    "a little too long": (lambda folder, clip: row(of_seconds(folder, 3.001)), "the model takes 3 s"),
    "piece past the end": (lambda folder, clip: row(clip, start_s=5.0, end_s=6.0), "starts at 5 s"),
    "piece longer than the clip": (lambda folder, clip: row(clip, start_s=0.5, end_s=2.5), "ends at 2.5 s"),
    "piece of nothing": (lambda folder, clip: row(clip, start_s=0.5, end_s=0.5), "no such piece"),
    "empty text": (lambda folder, clip: row(clip, ""), "empty text"),
    "text of spaces": (lambda folder, clip: row(clip, " \n\t "), "empty text"),
    "too many tokens": (lambda folder, clip: row(clip, "घर " * 60), "text tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_clip_is_left_out_with_its_reason(preparation, clip, tmp_path, name):
    make, reason = BAD[name]
    bad = make(tmp_path, clip)
    dataset = SpeechDataset([row(clip), bad, row(clip)], preparation, language="hi")
    left_out = dataset[Pick(1, 0)]
    assert isinstance(left_out, LeftOut)
    assert reason in left_out.reason
    assert (left_out.row, left_out.place) == (1, "metadata.csv:2")
    assert left_out.audio == ("bytes" if isinstance(bad.audio, bytes) else bad.audio)
    # The result is the same in every epoch.
    assert left_out == dataset[Pick(1, 7)] == dataset[1]
    # The length of a bad clip can be read, too, so that the sampler goes on.
    assert dataset.duration_s(1) >= 0.0
    assert [isinstance(dataset[i], Example) for i in (0, 2)] == [True, True]


def test_a_good_clip_becomes_its_features_and_tokens(preparation, clip):
    example = SpeechDataset([row(clip)], preparation, language="hi")[Pick(0, 0)]
    features, floor = preparation.encode_audio(soundfile.read(clip, dtype="float32")[0])
    inputs, labels = preparation.encode_text([Segment("घर पानी")], language="hi")
    assert (example.row, example.floor, example.seconds) == (0, floor, 1.0)
    assert np.array_equal(example.input_features, features)
    assert np.array_equal(example.decoder_input_ids, inputs)
    assert np.array_equal(example.labels, labels)


def test_a_clip_of_exactly_one_window_fits(preparation, tmp_path):
    dataset = SpeechDataset([row(of_seconds(tmp_path, 3.0))], preparation, language="hi")
    assert dataset[0].input_features.shape == (80, 300)


def test_clips_of_other_rates_and_channels_and_clips_as_bytes_are_read(preparation, tmp_path):
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack([make_wave(1.0)[:11_025]] * 2, axis=1), 11_025)
    dataset = SpeechDataset([row(path), row(path.read_bytes())], preparation, language="hi")
    assert dataset[0].seconds == pytest.approx(1.0, abs=0.01)
    assert np.array_equal(dataset[0].input_features, dataset[1].input_features)
    assert dataset.duration_s(0) == dataset.duration_s(1) == pytest.approx(1.0)


def test_a_piece_of_a_recording_is_a_clip_of_its_own(preparation, tmp_path):
    wave = make_wave(10.0)
    path = tmp_path / "long.wav"
    soundfile.write(path, wave, 16_000, subtype="FLOAT")
    dataset = SpeechDataset([row(path, start_s=4.0, end_s=6.5), row(path, start_s=8.5)], preparation, language="hi")
    assert [dataset[i].seconds for i in (0, 1)] == [2.5, 1.5]
    assert [dataset.duration_s(i) for i in (0, 1)] == [2.5, 1.5]
    assert np.array_equal(dataset[0].input_features, preparation.encode_audio(wave[64_000:104_000])[0])


def test_durations_are_read_from_the_header(preparation, clip, monkeypatch):
    import whisper_peft.data.dataset as module

    dataset = SpeechDataset([row(clip), row("none.wav"), row(clip, start_s=0.25)], preparation, language="hi")
    # Reading a length decodes nothing.
    monkeypatch.setattr(module, "read_sound", None)
    assert [dataset.duration_s(i) for i in range(3)] == [1.0, 0.0, 0.75]


def test_a_row_without_speech_needs_no_text(preparation, clip):
    dataset = SpeechDataset(
        [row(clip, "", no_speech=True), row(clip, "[noise]", no_speech=True)], preparation, language="hi"
    )
    for number in (0, 1):
        assert dataset[number].decoder_input_ids.tolist() == preparation.prefix("hi")
        assert dataset[number].labels.tolist() == [*preparation.prefix("hi")[1:], preparation.eot]


def test_each_row_has_the_prefix_of_its_language_and_task(preparation, clip):
    rows = [row(clip), row(clip, language="mr"), row(clip, language="en")]

    def prefixes(**options) -> list[list[int]]:
        dataset = SpeechDataset(rows, preparation, **options)
        return [dataset[i].decoder_input_ids[:4].tolist() for i in range(3)]

    assert prefixes(language="hi") == [preparation.prefix(code) for code in ("hi", "mr", "en")]
    assert prefixes(language="hi", task="translate") == [
        preparation.prefix(code, "translate") for code in ("hi", "mr", "en")
    ]
    borrowed = prefixes(language="hi", language_token="ne")
    assert borrowed == [preparation.prefix("ne")] * 3


def test_a_share_of_the_clips_gets_its_prompt(preparation, clip):
    rows = [row(clip, "घर", prompt="पानी")] * 200

    def prompted(seed: int = 1, epoch: int = 0, **options) -> list[bool]:
        dataset = SpeechDataset(rows, preparation, language="hi", seed=seed, **options)
        start = preparation.token_id("<|startofprev|>")
        return [dataset[Pick(number, epoch)].decoder_input_ids[0] == start for number in range(len(rows))]

    assert not any(prompted()) and all(prompted(prompts=1.0))
    some = prompted(prompts=0.5)
    assert 70 < sum(some) < 130 and some == prompted(prompts=0.5)
    assert some != prompted(prompts=0.5, epoch=1) and some != prompted(prompts=0.5, seed=2)
    example = SpeechDataset(rows, preparation, language="hi", prompts=1.0)[0]
    inputs, labels = preparation.encode_text([Segment("घर")], language="hi", prompt="पानी")
    assert np.array_equal(example.decoder_input_ids, inputs) and np.array_equal(example.labels, labels)
    assert (example.labels == IGNORED).sum() == len(
        preparation.tokenizer(" पानी", add_special_tokens=False).input_ids
    ) + 1


def test_the_text_of_a_row_is_learnt_and_not_its_segments(preparation, clip):
    """Text and segments of a row may differ, and the text is what is scored."""
    dataset = SpeechDataset([row(clip, "घर", segments=(Segment("पानी", 0.0, 0.5),))], preparation, language="hi")
    assert preparation.decode(dataset[0].decoder_input_ids) == dataset.text(0) == "घर"


def test_a_share_of_the_clips_is_learnt_with_times(preparation, clip):
    rows = [row(clip, "घर")] * 40

    def dataset(seed: int = 1, **options) -> SpeechDataset:
        return SpeechDataset(rows, preparation, language="hi", seed=seed, **options)

    def timed(examples: SpeechDataset, epoch: int = 0) -> list[bool]:
        inputs = [examples[Pick(number, epoch)].decoder_input_ids for number in range(len(rows))]
        with_times = [bool((ids >= preparation.first_timestamp).any()) for ids in inputs]
        assert with_times == [preparation.no_timestamps not in ids for ids in inputs]
        return with_times

    assert not any(timed(dataset())) and all(timed(dataset(timestamps=1.0)))
    half = dataset(timestamps=0.5)
    some = timed(half)
    assert 8 < sum(some) < 32 and some == timed(pickle.loads(pickle.dumps(half))) == timed(dataset(timestamps=0.5))
    assert some != timed(half, epoch=1) and some != timed(dataset(2, timestamps=0.5))
    prompted = SpeechDataset(
        [replace(plain_row, prompt="पानी") for plain_row in rows],
        preparation,
        language="hi",
        seed=1,
        prompts=0.5,
        timestamps=0.5,
    )
    start, inputs = preparation.token_id("<|startofprev|>"), [prompted[i].decoder_input_ids for i in range(len(rows))]
    kinds = [(ids[0] == start, preparation.no_timestamps in ids) for ids in inputs]
    # Prompt and times are drawn independently of each other.
    assert min(map(kinds.count, set(kinds))) > 2 and len(set(kinds)) == 4


def times(preparation, ids: np.ndarray) -> list[float]:
    return [
        round(0.02 * int(token - preparation.first_timestamp), 2)
        for token in ids
        if token >= preparation.first_timestamp
    ]


SEGMENTS = {
    "none": ((), [0.0, 2.49]),
    "two": ((("घर", 0.0, 0.911), ("पानी", 1.0, 2.0)), [0.0, 0.92, 1.0, 2.0]),
    "overlapping": ((("घर", 0.0, 1.4), ("पानी", 1.0, 2.0)), [0.0, 1.4, 1.4, 2.0]),
    "past the clip": ((("घर", -0.5, 0.9), ("पानी", 1.0, 2.9)), [0.0, 0.9, 1.0, 2.49]),
    "of another text": ((("घर", 0.0, 0.9), ("सड़क", 1.0, 2.0)), [0.0, 2.49]),
    "one empty": ((("घर", 0.0, 0.9), (" ", 1.0, 1.2), ("पानी", 1.5, 2.0)), [0.0, 0.9, 1.5, 2.0]),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_times_of_a_clip_are_those_of_its_segments(preparation, tmp_path, name):
    """A clip has the times of its segments if their texts join to its text; time tokens are 0.02 s apart."""
    segments, expected = SEGMENTS[name]
    segments = tuple(Segment(*segment) for segment in segments)
    source = row(of_seconds(tmp_path, 2.493), "घर  पानी", segments=segments)
    example = SpeechDataset([source], preparation, language="hi", timestamps=1.0)[0]
    assert times(preparation, example.decoder_input_ids) == pytest.approx(expected, abs=0.0101)
    assert example.labels[-1] == preparation.eot and np.array_equal(example.labels[:-1], example.decoder_input_ids[1:])
    assert preparation.decode(example.labels) == "घर पानी"
    plain = SpeechDataset([source], preparation, language="hi")[0]
    assert preparation.no_timestamps in plain.decoder_input_ids and not times(preparation, plain.decoder_input_ids)


def test_no_clip_is_left_out_because_of_its_times(preparation, clip, tmp_path):
    """A clip that exceeds the token limit with its times is learnt without them; the window's end has a time, too."""
    most = preparation.max_label_tokens - len(preparation.prefix("hi"))
    text = next(text for n in range(200, 0, -1) if preparation.n_tokens(text := "a " * n + "a") <= most)
    text += "a" * (most - preparation.n_tokens(text))
    if preparation.n_tokens(text) > most:
        pytest.fail("the text was to fill the limit")
    rows = [row(clip, text), row(clip, "", no_speech=True), row(of_seconds(tmp_path, 3.0), "घर")]
    full, silent, long = (SpeechDataset(rows, preparation, language="hi", timestamps=1.0)[i] for i in range(3))
    assert len(full.labels) >= preparation.max_label_tokens - 1 and not times(preparation, full.decoder_input_ids)
    assert silent.labels.tolist() == [*preparation.prefix("hi")[1:], preparation.eot]
    assert times(preparation, long.decoder_input_ids) == [0.0, 3.0]


def test_a_wave_of_another_length_keeps_only_start_and_end_time(preparation, clip):
    """If the user's function changes the length, times inside the clip are unknown; only start and end stay known."""
    source = row(clip, "घर पानी", segments=(Segment("घर", 0.0, 0.3), Segment("पानी", 0.4, 0.8)))

    def found(augment) -> list[float]:
        dataset = SpeechDataset([source], preparation, language="hi", timestamps=1.0, augment=augment)
        return times(preparation, dataset[0].decoder_input_ids)

    assert found(lambda wave, rng: wave * 0.5) == [0.0, 0.3, 0.4, 0.8]
    assert found(lambda wave, rng: np.repeat(wave, 2)) == [0.0, 2.0]
    # A wave that became longer than the window is replaced by the original, with its times.
    assert found(lambda wave, rng: np.tile(wave, 4)) == [0.0, 0.3, 0.4, 0.8]


def test_the_transcript_is_cleaned_before_it_is_learnt(preparation, clip):
    def shout(text: str) -> str:
        return text.upper() + "!"

    dataset = SpeechDataset([row(clip, "घर  abc")], preparation, language="hi", clean=shout)
    assert dataset.text(0) == "घर  ABC!"
    assert preparation.decode(dataset[0].labels) == "घर  ABC!"
    assert SpeechDataset([row(clip, " क़  a ")], preparation, language="hi").text(0) == clean_text(" क़  a ") == "क़ a"
    emptied = SpeechDataset([row(clip, "...")], preparation, language="hi", clean=lambda text: text.strip("."))
    assert emptied[0].reason == "empty text"


# Augmentation


def louder(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return wave * rng.uniform(0.2, 2.0) + 0.01 * rng.standard_normal(len(wave))


def features(dataset: SpeechDataset, number: int, epoch: int) -> np.ndarray:
    return dataset[Pick(number, epoch)].input_features


def test_augmentation_depends_on_seed_epoch_and_row_alone(preparation, clip):
    def dataset(seed: int) -> SpeechDataset:
        return SpeechDataset([row(clip), row(clip)], preparation, language="hi", augment=louder, seed=seed)

    original, twin, other = dataset(1), dataset(1), dataset(2)
    later = features(original, 1, 3)
    # A draw for another row changes nothing.
    features(original, 0, 0)
    np.random.seed(5)
    in_worker = pickle.loads(pickle.dumps(original))
    for same in (original, twin, in_worker):
        assert np.array_equal(features(same, 1, 3), later)
    for seed, number, epoch in ((other, 1, 3), (original, 0, 3), (original, 1, 2)):
        assert not np.array_equal(features(seed, number, epoch), later)
    plain = SpeechDataset([row(clip), row(clip)], preparation, language="hi")
    assert np.array_equal(features(plain, 1, 3), features(plain, 0, 0))


def test_the_users_function_gets_its_own_copy_of_the_wave(preparation, clip):
    seen = []

    def spoil(wave, rng):
        seen.append((wave.dtype, wave.shape, isinstance(rng, np.random.Generator)))
        wave[:] = 0
        # The result is half as long, and it is a list instead of an array.
        return list(wave[:8000])

    dataset = SpeechDataset([row(clip)], preparation, language="hi", augment=spoil)
    assert dataset[0].seconds == 0.5
    assert dataset[0].floor == pytest.approx(-1.5)
    assert seen[0] == (np.float32, (16_000,), True)


def test_a_clip_that_becomes_longer_than_the_window_is_not_augmented(preparation, clip):
    plain = SpeechDataset([row(clip)], preparation, language="hi")[0]
    stretched = SpeechDataset([row(clip)], preparation, language="hi", augment=lambda wave, rng: np.tile(wave, 4))[0]
    assert np.array_equal(stretched.input_features, plain.input_features)
    assert stretched.seconds == 1.0
    fits = SpeechDataset([row(clip)], preparation, language="hi", augment=lambda wave, rng: np.tile(wave, WINDOW_S))[0]
    assert fits.seconds == 3.0


def test_augmentation_cannot_make_a_too_long_clip_usable(preparation, tmp_path):
    dataset = SpeechDataset(
        [row(of_seconds(tmp_path, 4.0))], preparation, language="hi", augment=lambda wave, rng: wave[:16_000]
    )
    assert "the model takes 3 s" in dataset[0].reason


@pytest.mark.parametrize("wrong", [lambda wave: wave[None], lambda wave: wave[:0], lambda wave: wave * np.nan])
def test_a_clip_is_left_out_if_the_users_function_returns_no_wave(preparation, clip, wrong):
    dataset = SpeechDataset([row(clip)], preparation, language="hi", augment=lambda wave, rng: wrong(wave))
    assert "augment returned" in dataset[0].reason


def test_a_bug_in_the_users_function_raises_instead_of_leaving_the_clip_out(preparation, clip):
    def broken(wave, rng):
        return wave.no_such_thing

    with pytest.raises(AttributeError):
        SpeechDataset([row(clip)], preparation, language="hi", augment=broken)[0]


def test_the_dataset_writes_nothing_to_disk(preparation, speech, monkeypatch):
    rows = load_source(str(speech / "train"))
    dataset = SpeechDataset(rows, preparation, language="hi", augment=louder)
    # The first import of a module may write its bytecode, so it happens before the watch begins.
    dataset[0]
    before = {path: path.stat().st_mtime_ns for path in (speech / "train").iterdir()}
    real_open, modes = builtins.open, []
    real_os_open, flags = os.open, []

    def watched(file, mode="r", *arguments, **options):
        modes.append(mode)
        return real_open(file, mode, *arguments, **options)

    def watched_by_flags(path, flag, *arguments, **options):
        flags.append(flag)
        return real_os_open(path, flag, *arguments, **options)

    def refused(*arguments, **options):
        raise AssertionError("the data path made a file or a folder")

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(os, "open", watched_by_flags)
    for name in ("mkdir", "rename", "replace"):
        monkeypatch.setattr(os, name, refused)
    examples = [dataset[Pick(number, 1)] for number in range(len(dataset))]
    monkeypatch.undo()
    assert all(isinstance(example, Example) for example in examples)
    assert all(not set(mode) & set("wax+") for mode in modes)
    assert flags and not any(flag & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for flag in flags)
    assert {path: path.stat().st_mtime_ns for path in (speech / "train").iterdir()} == before
    # The dataset keeps no example in memory.
    assert not any(isinstance(value, Example) for value in vars(dataset).values())


def test_rows_are_not_changed_by_the_dataset(preparation, clip):
    original = row(clip, "घर ")
    dataset = SpeechDataset([original], preparation, language="hi", augment=louder)
    dataset[0]
    assert len(dataset) == 1
    assert dataset.rows[0] == replace(original)
