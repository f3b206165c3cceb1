"""plan predicts the memory of a run; train chooses micro-batches that fit, and refuses a run that cannot fit."""

from __future__ import annotations

import re

import pytest
from conftest import tiny_recipe

from whisper_peft import UserError, load_recipe, override, plan, prepare, runs, train
from whisper_peft.model.architecture import PUBLISHED
from whisper_peft.model.lora import describe_targets, make_target_pattern
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_files import shipped_recipes
from whisper_peft.training import planning as room
from whisper_peft.training.fitting import GIB, Clips, Device, fit_to_memory, imagined_device, loads_of_steps
from whisper_peft.training.planning import shape_of

CARDS = {path.stem: path.stem.rpartition("-")[2] for path in shipped_recipes() if re.search(r"-\d+gb$", path.stem)}
CARDS |= {"small-hindi-lora": "8gb", "small-hindi-8bit": "8gb"}


@pytest.mark.parametrize("name", list(CARDS))
def test_a_recipe_with_a_card_in_its_name_fits_that_card(name):
    memory_plan = plan(name, gpu_memory=CARDS[name])
    assert memory_plan.fits and memory_plan.remedy is None
    # A tenth of the card stays free, because a prediction may be wrong by as much.
    assert memory_plan.memory.peak <= 0.9 * memory_plan.device.free
    # The recipe uses at least half of the card.
    assert memory_plan.memory.peak >= 0.5 * memory_plan.device.free


@pytest.mark.parametrize(
    "words, size",
    [
        ("8GB", 8 * GIB),
        ("8gb", 8 * GIB),
        ("7.5 GiB", 7.5 * GIB),
        ("6g", 6 * GIB),
        ("500MB", 500 * 1024**2),
        ("12", 12 * GIB),
    ],
)
def test_the_size_of_a_gpu_is_read_in_every_usual_form(words, size):
    assert imagined_device(words) == Device("cuda", f"a GPU of {size / GIB:g} GB", int(size), int(size))


@pytest.mark.parametrize("words", ["much", "0", "-8GB", "8TB", "", "8GB8"])
def test_a_text_that_is_no_size_is_refused(words):
    with pytest.raises(UserError, match=r"--gpu-memory .*: expected a size, as 8GB"):
        imagined_device(words)


def test_the_shapes_of_published_models_need_no_network(tiny_model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, shape in PUBLISHED.items():
        assert shape_of(f"openai/whisper-{name}") == shape_of(f"hf:openai/whisper-{name}") == shape
    tiny = shape_of(str(tiny_model))
    assert (tiny.d_model, tiny.layers, tiny.ffn_width, tiny.window_s) == (16, 1, 32, 3.0)
    with pytest.raises(UserError, match="no such folder"):
        shape_of("./whisper-small")


def test_more_memory_gives_larger_micro_batches_that_still_fit():
    recipe, shape, clips = override(Recipe(), {"train.batch_size": 20}), PUBLISHED["small"], Clips()
    before = 0
    for size in (2, 3, 4, 6, 8, 12, 16, 24, 40, 80):
        device = imagined_device(f"{size}GB")
        fit = fit_to_memory(recipe, shape, device, clips, most_s=600.0)
        assert fit.load.clips >= before and (fit.memory.peak <= 0.9 * device.free or fit.load.clips == 1)
        before = fit.load.clips
    assert before == 20
    kept = fit_to_memory(override(recipe, {"train.micro_batch_size": 5}), shape, device, clips, most_s=600.0)
    # A size that the user names is not changed.
    assert kept.micro_batch_s is None and kept.load.clips == 5


def test_a_plan_counts_the_steps_with_the_longest_clips_and_texts():
    recipe = override(Recipe(), {"train.batch_size": 2, "train.micro_batch_s": 20.0, "features.window": "tight"})
    clips = Clips(((1.0, 5), (2.0, 9), (9.0, 50), (9.5, 60), (29.0, 300)), 5)
    short, middle, long = loads_of_steps(recipe, PUBLISHED["base"], clips, "cuda")[:3]
    assert (short.clips, short.positions, short.tokens, short.targets) == (2, 125, 14, 24)
    assert (middle.clips, middle.positions, middle.tokens) == (2, 500, 65) and middle.micro_batches == 1
    assert (long.clips, long.positions, long.tokens) == (1, 1475, 305)
    full = loads_of_steps(override(recipe, {"features.window": "full"}), PUBLISHED["base"], clips, "cuda")
    assert {load.positions for load in full} == {1500} and {load.clips for load in full} == {1}
    condensed = loads_of_steps(override(recipe, {"features.window": "condensed"}), PUBLISHED["base"], clips, "cuda")
    assert condensed[0].positions == 110 + 64


def test_a_plan_reads_the_data_and_takes_the_time_from_a_run(tiny_model, speech, lora_run):
    memory_plan = plan(tiny_recipe(tiny_model, speech))
    assert memory_plan.clips == 12 and memory_plan.hours_per_epoch is None and memory_plan.device.kind == "cpu"
    timed = plan(lora_run)
    facts = runs.read_json(lora_run / "run.json")
    assert timed.hours_per_epoch == pytest.approx(3 * facts["train_seconds"] / facts["steps"] / 3600)
    assert plan(tiny_recipe(tiny_model, speech), step_s=2.0).hours_per_epoch == pytest.approx(3 * 2 / 3600)
    elsewhere = tiny_recipe(tiny_model, speech, **{"data.train": ["nowhere/at/all"]})
    # A plan is made without the data, too.
    assert plan(elsewhere).clips == 0
    # A source that is named on the command line must exist.
    with pytest.raises(UserError, match="nowhere"):
        plan(tiny_recipe(tiny_model, speech), changes={"data.train": ["nowhere/at/all"]})


def test_a_plan_for_training_an_adapter_further_has_the_size_of_that_adapter(tiny_model, speech, lora_run, tmp_path):
    changes = {"lora.rank": 64, "lora.targets": "decoder", "train.steps": 1, "evaluate.compare_clips": 0}
    first = train(tiny_recipe(tiny_model, speech, **{**changes, "lora.rank": 3}), output=tmp_path / "first").run
    on = tiny_recipe(tiny_model, speech, **{"model.name": str(first / "adapter"), "lora.rank": 64})
    learnt = runs.read_json(first / "run.json")["trainable_parameters"]
    assert plan(on).trainable == learnt < plan(tiny_recipe(tiny_model, speech, **changes)).trainable
    resolved = prepare(on).recipe
    assert (resolved.lora.rank, resolved.lora.targets) == (3, "attention+mlp+decoder")


@pytest.mark.parametrize(
    "named, words",
    [
        (["q_proj", "v_proj"], "attention"),
        (["fc1", "fc2", "q_proj"], "attention+mlp"),
        (["model.decoder.layers.0.encoder_attn.q_proj"], "attention+decoder"),
        ("all-linear", "attention+mlp"),
        (make_target_pattern("encoder+mlp"), "mlp+encoder"),
        (make_target_pattern("attention+mlp"), "attention+mlp"),
    ],
)
def test_the_target_words_of_a_saved_adapter_are_recovered(named, words):
    assert describe_targets(named) == words


def test_train_prints_the_plan_first_and_takes_micro_batches_that_fit(tiny_model, speech, tmp_path, monkeypatch):
    changes = {"evaluate.compare_clips": 0, "train.batch_size": 8, "features.window": "full", "train.steps": 1}
    whole = plan(tiny_recipe(tiny_model, speech, **changes, **{"train.micro_batch_size": 8})).memory.peak
    said, small = [], Device("cpu", "a small machine", 10**9, round(whole / 0.9) - 1000)
    monkeypatch.setattr(room, "found_device", lambda: small)
    run = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", say=said.append).run
    (line,) = [line for line in said if line.startswith("Memory:")]
    at_once = int(re.search(r"micro-batches of up to (\d) of the 8 clips", line)[1])
    assert 2 < at_once < 8 and said.index(line) < next(
        i for i, message in enumerate(said) if message.startswith("Training")
    )
    assert load_recipe(run).train.micro_batch_s == pytest.approx(3.0 * at_once, abs=3.0)


def test_train_refuses_a_run_that_clearly_does_not_fit_unless_forced(tiny_model, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "found_device", lambda: Device("cpu", "a tiny machine", 10**9, 10**8))
    recipe = tiny_recipe(tiny_model, speech, **{"evaluate.compare_clips": 0, "train.steps": 1})
    with pytest.raises(UserError, match=r"GB free \(a tiny machine\).*It does not fit: .*; or --force"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(recipe, output=tmp_path / "run", force=True).facts["steps"] == 1
    almost = Device("cpu", "almost enough", 10**9, int(plan(recipe).memory.peak / 1.1))
    monkeypatch.setattr(room, "found_device", lambda: almost)
    # A prediction may be wrong, so a run that almost fits is tried.
    assert train(recipe, output=tmp_path / "almost").facts["steps"] == 1


def test_the_remedy_is_the_nearest_setting_that_fits():
    # Model, mode and card, with a pattern of the remedy.
    cases = {
        ("small", "full", "5GB"): "train.gradient_checkpointing=true|--mode lora",
        ("medium", "full", "12GB"): "--mode lora",
        ("large-v3", "lora", "6GB"): "--quantize|gradient_checkpointing",
    }
    for (name, mode, card), words in cases.items():
        memory_plan = plan(changes={"model.name": f"openai/whisper-{name}", "train.mode": mode}, gpu_memory=card)
        assert not memory_plan.fits and re.search(words, memory_plan.remedy), (name, memory_plan.remedy)
    hopeless = plan(changes={"model.name": "openai/whisper-large-v3"}, gpu_memory="1GB")
    assert not hopeless.fits and "smaller model" in hopeless.remedy
    by_hand = plan(changes={"model.name": "openai/whisper-medium", "train.micro_batch_size": 8}, gpu_memory="8GB")
    assert "train.micro_batch_size=auto" in by_hand.remedy


def test_the_parts_of_the_planned_memory_sum_to_its_peak():
    """The parts of the memory sum to the peak, and the share of the device is one of them."""
    memory_plan = plan(changes={"model.name": "openai/whisper-base"}, gpu_memory="4GB")
    parts = memory_plan.as_dict()["memory"]
    assert parts.pop("peak") == sum(parts.values()) and parts["context"] == 550_000_000
