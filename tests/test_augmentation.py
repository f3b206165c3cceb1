"""Effects on training clips are seeded and keep to the model's limits; SpecAugment masks training input only."""

from __future__ import annotations

import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_speech, make_wave, tiny_recipe

from whisper_peft import (
    Augmentation,
    Row,
    Segment,
    SpeechCollator,
    SpeechDataset,
    UserError,
    load_preparation,
    steps,
    train,
)
from whisper_peft.data.dataset import Pick
from whisper_peft.model.build import build_model
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import locate
from whisper_peft.model.specaugment import set_masks
from whisper_peft.recipe import Augment, Recipe
from whisper_peft.recipe_dicts import override

MASKS = override(Recipe(), {"augment.spec_augment": True}).augment.masks


@pytest.fixture(scope="module")
def preparation(tiny_model):
    return load_preparation(str(tiny_model))


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory) -> str:
    """Two sound files, one shorter than a clip, in other rates and formats, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / "street").mkdir()
    rng = np.random.default_rng(7)
    soundfile.write(folder / "street" / "cars.flac", 0.3 * rng.standard_normal(22_050), 11_025)
    soundfile.write(folder / "fan.wav", 0.01 * rng.standard_normal((4000, 2)), 16_000)
    (folder / "README.txt").write_text("no sound")
    return str(folder)


@pytest.fixture(scope="module")
def room_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rooms")
    echo = np.zeros(3000)
    # The direct sound comes after 44 ms.
    echo[[700, 1500, 2400]] = 0.5, 0.2, 0.1
    soundfile.write(folder / "hall.wav", echo, 16_000)
    return str(folder)


WAVE = make_wave(1.0)


def of(**settings) -> np.ndarray:
    return Augmentation(**settings)(WAVE.copy(), np.random.default_rng(5))


def rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave.astype(np.float64) ** 2)))


EFFECTS = ("speed", "gain", "noise from a folder", "room from a folder")
SIMULATED = ("noise", "room", "telephone")


@pytest.mark.parametrize(
    "effect", [*EFFECTS, *(pytest.param(augmentation, marks=pytest.mark.augment) for augmentation in SIMULATED)]
)
def test_an_effect_depends_on_its_generator_alone(effect, noise_folder, room_folder):
    name = effect.split()[0]
    folders = {"noise": {"noise_folder": noise_folder}, "room": {"room_folder": room_folder}}
    augmentation = Augmentation(**{name: 1.0}, **(folders[name] if "folder" in effect else {}))
    before, states = WAVE.copy(), (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    first = augmentation(WAVE, np.random.default_rng(5))
    random.random(), np.random.random()
    second = pickle.loads(pickle.dumps(augmentation))(WAVE, np.random.default_rng(5))
    assert np.array_equal(first, second) and np.array_equal(WAVE, before)
    random.setstate(states[0])
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert len(first) == len(WAVE) or name == "speed"
    assert not np.array_equal(first, WAVE)
    # Only one room lies in the folder, and the telephone effect draws nothing.
    if effect not in ("room from a folder", "telephone"):
        assert not np.array_equal(augmentation(WAVE, np.random.default_rng(6))[:9000], first[:9000])
    state = np.random.get_state()[1].copy()
    python = random.getstate()
    # The effect does not fail on very short or silent clips.
    for wave in (WAVE[:1], WAVE[:37], np.zeros(800, np.float32)):
        output = augmentation(wave, np.random.default_rng(5))
        assert output.dtype == np.float32 and len(output) and np.isfinite(output).all()
    assert np.array_equal(np.random.get_state()[1], state) and random.getstate() == python
    assert torch.equal(torch.get_rng_state(), states[2])
    # All effects are off by default.
    assert np.array_equal(Augmentation()(WAVE, np.random.default_rng(5)), WAVE)


def test_speed_changes_length_and_pitch_by_its_factor():
    slow, fast = of(speed=1.0, speed_factor=(0.8, 0.8)), of(speed=1.0, speed_factor=(1.25, 1.25))
    assert len(slow) == pytest.approx(20_000, abs=2) and len(fast) == pytest.approx(12_800, abs=2)
    # One bin is 1 Hz.
    peak = np.abs(np.fft.rfft(WAVE)).argmax()
    assert np.abs(np.fft.rfft(fast)).argmax() / len(fast) * 16_000 == pytest.approx(1.25 * peak, rel=0.01)
    assert 14_545 <= len(of(speed=1.0)) <= 17_778


def test_noise_is_as_many_decibels_below_the_clip_as_the_settings_say(noise_folder):
    for below_db in (0.0, 20.0):
        noise = of(noise=1.0, noise_folder=noise_folder, noise_snr_db=(below_db, below_db)) - WAVE
        assert 20 * np.log10(rms(WAVE) / rms(noise)) == pytest.approx(below_db, abs=0.01)


@pytest.mark.augment
def test_coloured_noise_is_as_many_decibels_below_the_clip_as_the_settings_say():
    noise = of(noise=1.0, noise_snr_db=(10.0, 10.0)) - WAVE
    assert 20 * np.log10(rms(WAVE) / rms(noise)) == pytest.approx(10.0, abs=0.01)


def test_gain_only_scales_the_samples():
    factor = of(gain=1.0, gain_db=(-6.0, -6.0)) / WAVE
    assert np.allclose(factor[np.abs(WAVE) > 0.01], 10 ** (-6 / 20), rtol=1e-5)


def test_a_room_keeps_the_position_and_level_of_the_sound(room_folder):
    click = np.zeros(16_000, np.float32)
    click[4000] = 1.0
    heard = Augmentation(room=1.0, room_folder=room_folder)(click, np.random.default_rng(0))
    assert np.abs(heard).argmax() == 4000 and heard[4800] / heard[4000] == pytest.approx(0.4, abs=0.01)
    assert rms(heard) == pytest.approx(rms(click), rel=1e-3)


@pytest.mark.augment
def test_a_simulated_room_has_an_echo():
    click = np.zeros(16_000, np.float32)
    click[4000] = 1.0
    heard = Augmentation(room=1.0)(click, np.random.default_rng(0))
    # The source is at most 2.5 m away; sound takes 7 ms for that.
    direct = int(np.abs(heard).argmax())
    echo, later = heard[direct + 80 : direct + 800], heard[direct + 1600 : direct + 2320]
    assert 4000 <= direct < 4200 and rms(echo) > 0.01 * rms(heard) and rms(echo) > 3 * rms(later)
    assert rms(heard) == pytest.approx(rms(click), rel=1e-3)


@pytest.mark.augment
def test_a_telephone_passes_only_its_frequency_band():
    white = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    # One bin is 0.5 Hz.
    power = np.abs(np.fft.rfft(Augmentation(telephone=1.0)(white, np.random.default_rng(0)))) ** 2
    # These bins are 500 to 3,000 Hz.
    heard = power[1000:6000].mean()
    assert power[8400:].mean() < 1e-4 * heard and power[:200].mean() < 0.05 * heard
    assert heard == pytest.approx((np.abs(np.fft.rfft(white)) ** 2)[1000:6000].mean(), rel=0.2)


# In the dataset


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Row:
    path = tmp_path_factory.mktemp("clip") / "good.wav"
    soundfile.write(path, WAVE, 16_000, subtype="FLOAT")
    return Row(audio=str(path), text="घर पानी")


def dataset(preparation, rows: list[Row], *, seed: int = 0, timestamps: float = 0.0, **settings) -> SpeechDataset:
    return SpeechDataset(
        rows, preparation, language="hi", augmentation=Augmentation(**settings), seed=seed, timestamps=timestamps
    )


def test_the_effects_of_a_clip_depend_on_seed_epoch_and_row_alone(preparation, clip, noise_folder):
    settings = {"speed": 0.5, "gain": 0.5, "noise": 0.5, "noise_folder": noise_folder}
    examples, other = (dataset(preparation, [clip] * 4, seed=seed, **settings) for seed in (0, 1))
    picks = [Pick(row, epoch) for row in range(4) for epoch in range(3)]
    log_mels = [examples[pick].input_features for pick in picks]
    # The order in which clips are drawn does not matter.
    for pick, features in reversed([*zip(picks, log_mels, strict=True)]):
        assert np.array_equal(pickle.loads(pickle.dumps(examples))[pick].input_features, features)
    assert len({features.tobytes() for features in log_mels}) > 8
    assert any(not np.array_equal(other[pick].input_features, examples[pick].input_features) for pick in picks)


def test_a_clip_that_comes_twice_in_an_epoch_gets_different_effects(preparation, clip):
    picks = next(steps(2, 5, seed=0, duration_s=lambda row: 1.0, parts=[(1, 3.0), (1, 2.0)]))
    examples = dataset(preparation, [clip] * 2, gain=1.0)
    assert sorted((pick.row, pick.again) for pick in picks) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert len({examples[pick].input_features.tobytes() for pick in picks}) == 5


def test_the_users_function_follows_the_effects_and_draws_the_same_numbers_without_them(preparation, clip):
    drawn, lengths = [], []

    def function(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn.append(rng.random())
        lengths.append(len(wave))
        return wave

    slow = Augmentation(speed=1.0, speed_factor=(0.5, 0.5))
    for augmentation in (None, slow):
        SpeechDataset([clip], preparation, language="hi", augment=function, augmentation=augmentation)[Pick(0, 2)]
    assert drawn == [np.random.default_rng((0, 2, 0)).random()] * 2 and lengths == [16_000, 32_000]
    # An Augmentation can also be given as the user's function.
    alone = SpeechDataset([clip], preparation, language="hi", augment=slow)[0]
    assert alone.seconds == 2.0


def test_segment_times_are_scaled_with_the_speed(preparation, clip):
    row = replace(clip, segments=(Segment("घर", 0.1, 0.4), Segment("पानी", 0.5, 0.9)))
    slow = dataset(preparation, [row], timestamps=1.0, speed=1.0, speed_factor=(0.5, 0.5), gain=1.0)[0]
    ids = slow.decoder_input_ids
    times = [0.02 * int(token - preparation.first_timestamp) for token in ids if token >= preparation.first_timestamp]
    assert times == pytest.approx([0.2, 0.8, 1.0, 1.8], abs=0.0101)


def test_a_clip_that_an_effect_makes_too_long_is_not_augmented(preparation, clip, tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, make_wave(2.8), 16_000)
    rows = [replace(clip, audio=str(path)), clip]
    settings = {"speed": 1.0, "speed_factor": (0.9, 0.9)}
    long, short = (dataset(preparation, rows, **settings)[number] for number in range(2))
    plain = SpeechDataset(rows, preparation, language="hi")[0]
    assert long.kept and long.seconds == 2.8 and np.array_equal(long.input_features, plain.input_features)
    assert not short.kept and not plain.kept and short.seconds == pytest.approx(1 / 0.9, abs=0.001)
    batch = SpeechCollator(preparation)([long, short, short])
    assert batch["kept"] == 1


def test_a_clip_whose_noise_file_becomes_unreadable_is_not_augmented(preparation, clip, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "a.wav", make_wave(2.0), 16_000)
    noisy = dataset(preparation, [clip], noise=1.0, noise_folder=str(folder))
    silent = dataset(preparation, [clip], no_speech=1.0, noise_folder=str(folder))
    assert not noisy[0].kept
    (folder / "a.wav").write_bytes((folder / "a.wav").read_bytes()[:1000])
    plain = SpeechDataset([clip], preparation, language="hi")[0]
    for example in (noisy[0], silent[0]):
        assert example.kept and np.array_equal(example.input_features, plain.input_features)
        assert np.array_equal(example.labels, plain.labels)


def test_the_window_fits_the_longest_clip_after_augmentation(preparation, clip):
    examples = dataset(preparation, [clip] * 2, speed=1.0, speed_factor=(0.5, 0.5))
    batch = SpeechCollator(preparation)([examples[Pick(number, slack_s=0.2)] for number in range(2)])
    assert batch["input_features"].shape[-1] == pytest.approx(220, abs=4)
    assert batch["seconds"] == pytest.approx(4.0)


def test_a_share_of_the_clips_is_replaced_by_noise_alone(preparation, clip, noise_folder):
    rows = [replace(clip, prompt="नीला")] * 30
    half = dataset(preparation, rows, no_speech=0.5, noise_folder=noise_folder, timestamps=1.0, gain=1.0)
    examples = [half[Pick(number, 1)] for number in range(len(rows))]
    silent = [preparation.decode(example.labels) == "" for example in examples]
    assert 5 < sum(silent) < 25
    assert silent == [preparation.decode(half[Pick(number, 1)].labels) == "" for number in range(len(rows))]
    assert silent != [preparation.decode(half[Pick(number, 2)].labels) == "" for number in range(len(rows))]
    example = examples[silent.index(True)]
    assert example.labels.tolist() == [*preparation.prefix("hi")[1:], preparation.eot] and example.seconds == 1.0
    wave = Augmentation(no_speech=1.0, noise_folder=noise_folder).without_speech(WAVE, np.random.default_rng(0))
    assert len(wave) == len(WAVE) and 5 < 20 * np.log10(rms(WAVE) / rms(wave)) < 30
    assert abs(np.corrcoef(wave, WAVE)[0, 1]) < 0.05


def test_an_unusable_clip_is_left_out_even_where_noise_would_replace_it(preparation, clip, noise_folder):
    rows = [replace(clip, text=""), replace(clip, text="घर " * 60)]
    silent = dataset(preparation, rows, no_speech=1.0, noise_folder=noise_folder)
    assert silent[Pick(0, 1)].reason == "empty text" and "text tokens" in silent[Pick(1, 1)].reason


@pytest.mark.augment
def test_noise_that_replaces_a_clip_can_be_simulated():
    wave = Augmentation(no_speech=1.0).without_speech(WAVE, np.random.default_rng(0))
    assert 5 < 20 * np.log10(rms(WAVE) / rms(wave)) < 30 and abs(np.corrcoef(wave, WAVE)[0, 1]) < 0.1


# What is refused


def test_a_missing_empty_or_unreadable_sound_folder_is_refused(tmp_path, noise_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").write_bytes(b"RIFF no sound")
    for settings, message in (
        ({"noise": 0.5, "noise_folder": str(tmp_path / "none")}, r"augment.noise_folder: no folder .*none; name one"),
        ({"no_speech": 0.5, "noise_folder": str(tmp_path / "empty")}, r"noise_folder: no sound files in .*empty"),
        ({"room": 0.5, "room_folder": str(tmp_path / "broken")}, r"a.wav: .*; mend it, or take it out of augment"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Augmentation(**settings)
        assert "\n" not in str(caught.value)
    # The folder is not used by this effect, so it is not looked at.
    Augmentation(gain=0.5, noise_folder=str(tmp_path / "none"))


@pytest.mark.parametrize("effect", ["noise", "room", "telephone", "no_speech"])
def test_the_error_for_a_missing_package_names_the_pip_command(effect, monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(UserError) as caught:
        Augmentation(**{effect: 0.1})
    assert str(caught.value) == f"augment.{effect}: needs audiomentations; pip install 'whisper-peft[augment]'."


@pytest.mark.augment
def test_simulated_rooms_need_a_package_of_their_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(UserError, match=r"augment.room: needs pyroomacoustics; pip install 'whisper-peft\[augment\]'"):
        Augmentation(room=0.1)
    Augmentation(noise=0.1, telephone=0.1)


# SpecAugment


@pytest.fixture(scope="module")
def whisper(tiny_model):
    return load_base(str(tiny_model)).train()


def seen(whisper, features: torch.Tensor) -> torch.Tensor:
    """Return the features that reach the encoder."""
    log_mels = []
    hook = whisper.get_encoder().register_forward_pre_hook(lambda module, inputs: log_mels.append(inputs[0].clone()))
    try:
        whisper(input_features=features.clone(), decoder_input_ids=torch.tensor([[1]] * len(features)))
    finally:
        hook.remove()
    return log_mels[0]


def test_spec_augment_masks_training_input_and_restores_the_config(whisper):
    features, before = torch.randn(2, 80, 120) - 5, whisper.config.to_dict()
    with set_masks(whisper, MASKS, 120):
        assert whisper.config.apply_spec_augment
        hidden = (seen(whisper, features) == 0).all(dim=1)
    # There are two masks of 10 frames, which may overlap.
    assert ((hidden.sum(1) >= 10) & (hidden.sum(1) <= 20)).all()
    assert whisper.config.to_dict() == before and not before["apply_spec_augment"]
    with set_masks(whisper, {**MASKS, "mask_time_prob": 0.0, "mask_feature_prob": 0.5}, 120):
        assert (seen(whisper, features) == 0).all(dim=2).any(dim=1).all()
    with set_masks(whisper.eval(), MASKS, 120):
        assert torch.equal(seen(whisper, features), features)
    whisper.train()
    # A base may come with SpecAugment switched on.
    whisper.config.apply_spec_augment = True
    try:
        with set_masks(whisper, {}, 120):
            assert torch.equal(seen(whisper, features), features)
        assert whisper.config.apply_spec_augment
    finally:
        whisper.config.apply_spec_augment = False


@pytest.mark.parametrize("window_frames", [2, 8, 10, 12, 24])
@pytest.mark.parametrize("silence", ["condensed", "tight"])
def test_spec_augment_skips_windows_shorter_than_its_masks(whisper, window_frames, silence):
    from whisper_peft import condense_silence

    condense_silence(whisper, silence)
    features = torch.randn(3, 80, window_frames) - 5
    with set_masks(whisper, MASKS, window_frames):
        reached = seen(whisper, features)
    assert torch.isfinite(reached).all()
    assert torch.equal(reached, features) == (window_frames < 10)
    # transformers itself raises this error on such a window.
    if window_frames < 10:
        with pytest.raises(ValueError, match="mask_length"), set_masks(whisper, {**MASKS, "mask_time_length": 1}, 2):
            whisper.config.mask_time_length = 10
            seen(whisper, features)
    condense_silence(whisper, "tight")


# A run


def test_a_run_with_all_augmentations_trains_and_saves_no_masks(tiny_model, speech, noise_folder, tmp_path):
    """Augmentation changes only the training clips, and no saved config mentions the masks."""
    import json

    changes = {
        "augment.speed": 1.0,
        "augment.gain": 0.5,
        "augment.noise": 0.5,
        "augment.no_speech": 0.2,
        "augment.noise_folder": noise_folder,
        "augment.spec_augment": True,
        "features.timestamps": 0.5,
        "augment.speed_factor": [0.5, 0.5],
        "train.mode": "full",
        "train.steps": 4,
        "evaluate.compare_clips": 0,
        "evaluate.every_steps": 4,
        "evaluate.max_clips": 1,
    }
    said = []
    long = make_speech(tmp_path / "long", 4, seconds=(2.0, 2.5))
    recipe = override(tiny_recipe(tiny_model, speech, **changes), {"data.train": [str(speech / "train"), str(long)]})
    result = train(recipe, output=tmp_path / "run", say=said.append)
    kept = result.facts["kept_unaugmented"]
    assert 0 < kept <= 4 and f"Augmentation was skipped for {kept} clips" in "\n".join(said)
    for config in (tmp_path / "run").rglob("config.json"):
        assert json.loads(config.read_text())["apply_spec_augment"] is False
    soundfile.write(Path(noise_folder) / "more.wav", make_wave(0.5), 16_000)
    try:
        with pytest.raises(UserError, match="a folder of augment has changed since the run began"):
            train(resume=tmp_path / "run", changes={"train.steps": 5})
    finally:
        (Path(noise_folder) / "more.wav").unlink()


def test_masks_are_not_written_into_the_batch(tiny_model, speech, tmp_path):
    """A step that runs out of memory is computed again from the same batch, so the batch must stay as it is."""
    from test_trainer import first_batches, make_trainer

    trainer = make_trainer(tmp_path, tiny_model, speech / "train")
    trainer.masks = MASKS
    (batch,) = first_batches(trainer, 1)
    before = batch["input_features"].clone()
    trainer.training_step(trainer.model, batch)
    assert torch.equal(batch["input_features"], before)


def test_plan_counts_the_extra_length_of_slowed_clips(tiny_model, speech):
    from whisper_peft.model.architecture import PUBLISHED
    from whisper_peft.training.fitting import Clips, loads_of_steps

    recipe = override(Recipe(), {"train.micro_batch_size": 1, "train.batch_size": 1})
    slower = override(recipe, {"augment.speed": 0.1, "augment.speed_factor": [0.8, 1.2]})
    faster = override(recipe, {"augment.speed": 0.1, "augment.speed_factor": [1.1, 1.2]})
    clips = Clips(((10.0, 50), (29.0, 100)), 2)
    plain, slow, fast = (
        [load.positions for load in loads_of_steps(settings, PUBLISHED["small"], clips, "cpu")]
        for settings in (recipe, slower, faster)
    )
    # The clip of 10 s becomes 2.5 s longer, and a second has 50 positions.
    assert slow[0] - plain[0] == 125 and slow[1] <= 1500 and fast == plain


def test_masks_larger_than_the_models_mel_bins_are_refused(tiny_model, speech, tmp_path):
    changes = {"augment.spec_augment": True, "augment.mask_feature_length": 81}
    with pytest.raises(UserError, match=r"mask_feature_length: 81; the model has 80 mel bins, take fewer"):
        train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")


def test_the_recipe_has_the_effects_and_defaults_of_the_augmentation_class():
    import inspect

    settings = override(Recipe(), {"augment.gain": 0.1}).augment
    assert settings.effects.keys() == inspect.signature(Augmentation).parameters.keys()
    defaults = {name: parameter.default for name, parameter in inspect.signature(Augmentation).parameters.items()}
    assert {**settings.effects, "gain": 0.0} == defaults
    assert Augment().effects == {} and Augment().masks == {}


def test_the_default_masks_are_those_of_transformers(tiny_model):
    from transformers import WhisperConfig

    assert {name: getattr(WhisperConfig(), name) for name in MASKS} == MASKS and len(MASKS) == 6
    adapter = build_model(locate(tiny_model), "lora", lora={"rank": 2})
    with set_masks(adapter.get_base_model(), MASKS, 100):
        assert adapter.config.apply_spec_augment and adapter.get_base_model().model.config.apply_spec_augment
    assert not adapter.config.apply_spec_augment
