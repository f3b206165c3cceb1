"""train(recipe): how it treats bad clips, splits and starting models, and what it says before the first step."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import soundfile
from conftest import QUICKSTART, WORDS, make_speech, make_tiny_model, make_wave, tiny_recipe

from whisper_peft import Recipe, UserError, evaluate, load_recipe, override, prepare, runs, train
from whisper_peft.recipe_dicts import as_dict, flatten
from whisper_peft.training.defaults import resolve

QUICK = {"train.steps": 1, "train.batch_size": 2, "evaluate.compare_clips": 0, "evaluate.max_clips": 2}


def half_an_mp3(folder: Path) -> bytes:
    """Return the contents of a file whose header promises 2 s of sound, but which ends halfway."""
    soundfile.write(folder / "whole.mp3", make_wave(2.0), 16000)
    content = (folder / "whole.mp3").read_bytes()
    (folder / "whole.mp3").unlink()
    return content[: len(content) // 2]


def add_bad_clips(folder: Path, *, missing: int = 1) -> None:
    """Add missing files, a truncated mp3, an empty text, and a clip and a text over the limits to the good clips.

    The tiny model takes 3 s and 64 tokens, where Whisper takes 30 s and 448.
    """
    (folder / "cut.mp3").write_bytes(half_an_mp3(folder))
    soundfile.write(folder / "long.wav", make_wave(4.0), 16000)
    for name in ("empty", "wordy"):
        soundfile.write(folder / f"{name}.wav", make_wave(0.5), 16000)
    with (folder / "metadata.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                *((f"gone-{number}.wav", "पानी") for number in range(missing)),
                ("cut.mp3", "घर"),
                ("empty.wav", "  "),
                ("long.wav", "रात"),
                ("wordy.wav", " ".join(WORDS * 2)),
            ]
        )


def test_five_bad_clips_among_sixty_good_ones_are_left_out_and_named(tiny_model, speech, tmp_path):
    add_bad_clips(make_speech(tmp_path / "clips", 60, seconds=(0.3, 0.8)))
    recipe = tiny_recipe(
        tiny_model,
        speech,
        **{
            "data.train": [str(tmp_path / "clips")],
            "train.epochs": 2.0,
            "train.steps": None,
            "train.batch_size": 8,
            "evaluate.every_steps": 50,
            "evaluate.max_clips": 2,
            "evaluate.compare_clips": 0,
            "train.workers": 1,
        },
    )
    seen = []
    result = train(recipe, output=tmp_path / "run", loss=counting_loss(seen))
    assert result.facts["steps"] == 18 and result.facts["left_out"] == 5
    # Each good clip is learnt once an epoch, and nothing takes the place of a bad one.
    assert sum(seen) == 2 * 60
    named = {Path(line["audio"]).name: line for line in runs.read_jsonl(result.run / "left_out.jsonl")}
    assert set(named) == {"gone-0.wav", "cut.mp3", "empty.wav", "long.wav", "wordy.wav"}
    # Each bad clip is listed once, although there are two epochs.
    assert len(runs.read_jsonl(result.run / "left_out.jsonl")) == 5
    for name, reason in {
        "gone-0.wav": "no such file",
        "cut.mp3": "truncated",
        "empty.wav": "empty text",
        "long.wav": "4.0 s of audio",
        "wordy.wav": "text tokens",
    }.items():
        assert reason in named[name]["reason"]
        assert named[name]["split"] == "train" and named[name]["place"].startswith("metadata.csv:")


def counting_loss(seen: list):
    """Return a loss that notes its number of clips, which is the number of ends of text."""
    from whisper_peft import load_preparation, token_loss_sum

    eot = load_preparation(str(QUICKSTART / "model")).eot

    def loss(logits, labels):
        assert logits.shape[:-1] == labels.shape and (labels >= 0).all()
        seen.append(int((labels == eot).sum()))
        return token_loss_sum(logits, labels)

    return loss


def test_ten_bad_clips_among_six_good_ones_stop_the_run_which_can_be_resumed(tiny_model, speech, tmp_path):
    clips = make_speech(tmp_path / "clips", 6)
    # Only decoding shows that the file is truncated, so the first look at headers lets it pass.
    content = half_an_mp3(clips)
    with (clips / "metadata.csv").open("a", newline="", encoding="utf-8") as file:
        for number in range(10):
            (clips / f"cut-{number}.mp3").write_bytes(content)
            csv.writer(file).writerow([f"cut-{number}.mp3", "घर"])
    run = tmp_path / "run"
    changes = {"data.train": [str(clips)], "train.steps": 6, "train.batch_size": 4}
    with pytest.raises(UserError) as stop:
        train(tiny_recipe(tiny_model, speech, **{**QUICK, **changes}), output=run)
    message = str(stop.value)
    assert "10 of the first 16 training clips cannot be used" in message and "\n" not in message
    assert f"{run}/left_out.jsonl" in message
    assert f"whisper-peft train --resume {run} --set data.max_left_out=1" in message
    assert len(runs.read_jsonl(run / "left_out.jsonl")) == 10
    # This step is the end of the first epoch.
    assert runs.complete_checkpoints(run)[-1].name == "checkpoint-4"
    assert "finished" not in runs.read_json(run / "run.json") and not (run / "adapter").exists()

    # The command line reads --set data.max_left_out=1 like this.
    result = train(resume=run, changes={"data.max_left_out": 1})
    assert result.facts["steps"] == 6 and result.facts["left_out"] == 10
    assert len(runs.read_jsonl(run / "left_out.jsonl")) == 10
    assert load_recipe(run / "recipe.yaml").data.max_left_out == 1


def test_too_many_bad_clips_in_a_small_data_set_stop_the_run_before_it_begins(tiny_model, speech, tmp_path):
    # 9 of the 13 clips are bad.
    add_bad_clips(make_speech(tmp_path / "clips", 4), missing=5)
    changes = {"data.train": [str(tmp_path / "clips")], "train.steps": 4, "train.batch_size": 4}
    recipe = tiny_recipe(tiny_model, speech, **{**QUICK, **changes})
    with pytest.raises(UserError, match=r"data\.train: \d of 13 clips cannot be used"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = train(recipe, changes={"data.max_left_out": 1}, output=tmp_path / "run")
    assert result.facts["steps"] == 4
    assert result.facts["left_out"] == 9


def test_without_an_eval_source_a_tenth_of_train_is_held_out_and_named(tiny_model, speech, tmp_path):
    said = []
    result = train(
        tiny_recipe(tiny_model, speech, **{**QUICK, "data.eval": None, "data.test": None, "evaluate.compare_clips": 5}),
        output=tmp_path / "run",
        say=said.append,
    )
    data = result.facts["data"]
    assert (data["train_clips"], data["eval_clips"], data["eval_held_out"]) == (11, 1, True)
    assert any("1 eval (held out of train)" in line and "optimistic" in line for line in said)
    # No figure is called one of the test split.
    assert result.facts["after"]["split"] == "eval"
    heard = {transcript["audio"] for transcript in runs.read_jsonl(result.run / "transcripts.jsonl")}
    assert len(heard) == 1


def test_one_split_selects_the_checkpoint_and_another_gives_the_report(lora_run, speech):
    """The eval split selects the best checkpoint, and the final figures of the run are those of the test split."""
    facts = runs.read_json(lora_run / "run.json")
    heard = runs.read_jsonl(lora_run / "transcripts.jsonl")
    assert {Path(line["audio"]).parent for line in heard} == {speech / "test"}
    assert facts["final"]["split"] == "test"
    report = evaluate(lora_run, speech / "test")
    for key in ("wer", "cer", "wer_normalized", "clips", "reached_limit"):
        assert getattr(report, key) == facts["final"][key], key
    assert report.token_loss == pytest.approx(facts["final"]["token_loss"], rel=1e-4)
    evaluations = [line for line in runs.read_jsonl(lora_run / "metrics.jsonl") if "eval_wer" in line]
    best = min(evaluations, key=lambda line: line["eval_wer"])
    assert facts["best_step"] == best["step"] and facts["best_metric"] == "wer"


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_training_does_not_change_a_frozen_encoder(mode, tiny_model, speech, tmp_path):
    from safetensors.torch import load_file

    changes = {**QUICK, "train.mode": mode, "train.freeze": "encoder", "train.steps": 2, "train.learning_rate": 0.01}
    result = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")
    if mode == "full":
        before = load_file(tiny_model / "model.safetensors")
        after = load_file(result.model / "model.safetensors")
        moved = {name for name in before if not before[name].equal(after[name])}
        assert moved and all(".decoder." in name for name in moved)
    else:
        weights = load_file(result.model / "adapter_model.safetensors")
        moved = {name for name in weights if "lora_B" in name and weights[name].any()}
        assert moved and all(".decoder." in name for name in moved)


def test_full_training_changes_every_weight_except_the_encoder_positions(full_run, tiny_model):
    from safetensors.torch import load_file

    before, after = load_file(tiny_model / "model.safetensors"), load_file(full_run / "model" / "model.safetensors")
    same = {name for name in before if before[name].equal(after[name])}
    assert same == {"model.encoder.embed_positions.weight"}


@pytest.mark.parametrize("start", ["run", "adapter"])
def test_training_continues_from_an_adapter_where_it_ended(start, lora_run, tiny_model, speech, tmp_path):
    from safetensors.torch import load_file

    model = lora_run if start == "run" else lora_run / "adapter"
    said = []
    changes = {**QUICK, "train.learning_rate": 1e-6, "evaluate.compare_clips": 4}
    result = train(tiny_recipe(model, speech, **changes), output=tmp_path / "run", say=said.append)
    assert any("going on from" in line for line in said)
    first = load_file(lora_run / "adapter" / "adapter_model.safetensors")
    second = load_file(result.model / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert (weight - second[name]).abs().max() < 1e-5
    assert any(not first[name].equal(second[name]) for name in first)
    facts = runs.read_json(lora_run / "run.json")
    # The new run starts where the other run ended.
    assert result.facts["before"]["wer"] == facts["final"]["wer"]
    assert result.facts["base"] == facts["base"]
    config = json.loads((result.model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)


def test_full_training_of_an_adapter_is_refused(lora_run, speech, tmp_path):
    with pytest.raises(UserError, match=r"an adapter; .*whisper-peft merge"):
        train(tiny_recipe(lora_run, speech, **{"train.mode": "full"}), output=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_training_continues_from_the_model_of_a_full_run(full_run, speech, tmp_path):
    result = train(tiny_recipe(full_run, speech, **QUICK), output=tmp_path / "run")
    assert result.facts["base"]["path"] == str(full_run / "model")


def test_remarks_come_before_the_first_step(tiny_model, speech, tmp_path):
    for changes, remark in (
        ({"train.warmup_steps": 5}, "train.warmup_steps 5 is not below the run's 1 steps"),
        ({"train.learning_rate": 1e-5}, "looks like one for --mode full"),
        ({"train.mode": "full", "train.learning_rate": 0.5}, "looks like one for --mode lora"),
    ):
        said = []
        recipe = tiny_recipe(tiny_model, speech, **{**QUICK, **changes})
        prepare(recipe, output=tmp_path / "run", say=said.append)
        notes = [line for line in said if line.startswith("Note: ")]
        # This note comes because the splits are small here.
        few = [line for line in notes if "4 eval clips choose the best checkpoint" in line]
        notes = [line for line in notes if line not in few]
        assert len(few) == 1
        assert len(notes) == 1 and remark in notes[0]
        assert not (tmp_path / "run").exists()
    said = []
    prepare(tiny_recipe(tiny_model, speech, **QUICK), output=tmp_path / "run", say=said.append)
    assert said and [line for line in said if line.startswith("Note")] == few


@pytest.mark.parametrize("d_model", [384, 512, 768, 1024, 1280])
def test_a_learning_rate_that_suits_the_other_mode_gets_a_remark(d_model):
    rates = {}
    for mode in ("full", "lora"):
        recipe = override(Recipe(), {"train.mode": mode, "model.language": "hi", "train.steps": 1000})
        resolved, remarks = resolve(recipe, n_rows=100, d_model=d_model, multilingual=True)
        assert not remarks and resolved.train.warmup_steps < 1000
        rates[mode] = resolved.train.learning_rate
    assert rates["lora"] > 10 * rates["full"]
    for mode, other in (("full", "lora"), ("lora", "full")):
        changes = {"train.mode": mode, "train.learning_rate": rates[other], "train.steps": 1000}
        _, remarks = resolve(override(Recipe(), changes), n_rows=100, d_model=d_model, multilingual=True)
        assert len(remarks) == 1 and f"looks like one for --mode {other}" in remarks[0]


def test_the_cer_is_the_best_metric_for_a_script_without_spaces():
    for language, metric in (("hi", "wer"), ("thai", "cer"), ("ja", "cer"), (None, "wer")):
        recipe = override(Recipe(), {"model.language": language, "train.steps": 10})
        resolved, _ = resolve(recipe, n_rows=100, d_model=512, multilingual=True)
        assert resolved.evaluate.best_metric == metric
    kept, _ = resolve(override(recipe, {"evaluate.best_metric": "loss"}), n_rows=9, d_model=512, multilingual=True)
    assert kept.evaluate.best_metric == "loss"


def test_a_language_whisper_does_not_know_borrows_a_token(tiny_model, speech, tmp_path):
    unknown = {**QUICK, "model.language": "bhojpuri"}
    with pytest.raises(UserError, match=r"bhojpuri.*--language-token"):
        train(tiny_recipe(tiny_model, speech, **unknown), output=tmp_path / "run")
    advised = tiny_recipe(tiny_model, speech, **{**unknown, "model.language_token": "hindi"})
    assert prepare(advised).recipe.model.language_token == "hi"
    assert not (tmp_path / "run").exists()
    seen = []

    def spy(logits, labels):
        seen.append(labels.tolist())
        return logits.sum() * 0 + labels.numel() * logits.float().logsumexp(-1).mean()

    changes = {**QUICK, "model.language": None, "model.language_token": "Hindi"}
    result = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", loss=spy)
    tokens = json.loads((tiny_model / "generation_config.json").read_text())["lang_to_id"]
    assert set(seen[0]) & set(tokens.values()) == {tokens["<|hi|>"]}
    assert json.loads((result.model / "generation_config.json").read_text())["language"] == "hi"


def test_an_english_only_checkpoint_trains_without_language_tokens(speech, tmp_path):
    from whisper_peft import SpeechDataset, load_preparation, load_source

    model = make_tiny_model(tmp_path / "tiny.en")
    page = json.loads((model / "generation_config.json").read_text())
    for key in ("lang_to_id", "task_to_id", "language", "task"):
        page.pop(key, None)
    (model / "generation_config.json").write_text(json.dumps({**page, "is_multilingual": False}))
    with pytest.raises(UserError, match="English-only checkpoint cannot be given the language 'hi'"):
        train(tiny_recipe(model, speech, **QUICK), output=tmp_path / "run")

    changes = {**QUICK, "model.language": "en", "evaluate.compare_clips": 2}
    starts = []

    def look(logits, labels):
        from whisper_peft import token_loss_sum

        starts.append(labels[0].item())
        return token_loss_sum(logits, labels)

    result = train(tiny_recipe(model, speech, **changes), output=tmp_path / "run", loss=look)
    preparation = load_preparation(str(model))
    assert not preparation.multilingual
    # This token comes straight after <|startoftranscript|>.
    assert starts[0] == preparation.no_timestamps
    timed = SpeechDataset(load_source(str(speech / "test")), preparation, timestamps=1.0)[0].decoder_input_ids
    assert timed[:2].tolist() == [preparation.token_id("<|startoftranscript|>"), preparation.first_timestamp]
    assert "language" not in json.loads((result.model / "generation_config.json").read_text())
    assert evaluate(result.run, speech / "test", max_clips=2).language is None


def test_impossible_settings_are_refused_in_one_line(tiny_model, speech, tmp_path):
    for changes, message in (
        ({"data.train": []}, "data.train: not set"),
        ({"data.train": [str(tmp_path / "nothing")]}, "no such file or folder"),
        ({"train.epochs": 1.0}, "train.steps and train.epochs: both are set"),
        ({"train.precision": "fp16"}, "fp16 needs a CUDA device"),
        ({"model.language": None}, "model.language: not set"),
        ({"model.name": str(tmp_path / "no-model")}, "no such folder"),
        ({"model.name": str(speech)}, "holds no model"),
        ({"lora.targets": "attention+brain"}, "unknown word 'brain'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            train(tiny_recipe(tiny_model, speech, **{**QUICK, **changes}), output=tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists(), changes
    with pytest.raises(UserError, match="--output: not set"):
        train(tiny_recipe(tiny_model, speech))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"exists already; whisper-peft train --resume"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("event", ["on_step_end", "on_log", "on_evaluate"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_that_a_callback_stops_is_evaluated_and_stored_at_that_step(event, mode, tiny_model, speech, tmp_path):
    from transformers import TrainerCallback

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == (3 if event != "on_evaluate" else 2)

    callback = type("Stop", (TrainerCallback,), {event: stop})()
    recipe = tiny_recipe(tiny_model, speech, **{"train.mode": mode, "train.steps": 9, "evaluate.every_steps": 2})
    facts = train(recipe, output=tmp_path / "run", callbacks=[callback]).facts
    assert facts["steps"] == (2 if event == "on_evaluate" else 3)
    scored = [line["step"] for line in runs.read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval_wer" in line]
    assert scored == ([2] if event == "on_evaluate" else [2, 3]) and facts["best_step"] in scored
    assert runs.complete_checkpoints(tmp_path / "run")[-1].name == f"checkpoint-{facts['steps']}"


@pytest.mark.parametrize("changed", ["base", "eval", "test"])
def test_a_run_is_not_resumed_on_another_base_or_other_clips(changed, tiny_model, tmp_path):
    model = tmp_path / "base"
    shutil.copytree(tiny_model, model)
    for seed, name in enumerate(("train", "eval", "test")):
        make_speech(tmp_path / name, 6, seed=seed)
    recipe = tiny_recipe(model, tmp_path, **QUICK)
    train(recipe, output=tmp_path / "run")
    if changed == "base":
        make_tiny_model(model, init_std=0.05)
    else:
        rows = (tmp_path / changed / "metadata.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / changed / "metadata.csv").write_text("".join(rows[:-1]), encoding="utf-8")
    word = "weights of" if changed == "base" else f"data.{changed}"
    with pytest.raises(UserError, match=f"{word}.* changed since the run began"):
        train(resume=tmp_path / "run", changes={"train.steps": 2})


def test_a_run_stopped_early_and_killed_while_scoring_resumes_without_training(tiny_model, speech, tmp_path):
    changes = {"train.steps": 9, "evaluate.every_steps": 1, "train.early_stopping": 1, "train.learning_rate": 1e-6}
    recipe = tiny_recipe(tiny_model, speech, **changes)
    facts = train(recipe, output=tmp_path / "run").facts
    assert facts["steps"] < 9
    # A kill during the final scoring leaves the run like this.
    shutil.rmtree(tmp_path / "run" / "adapter")
    runs.update_facts(tmp_path / "run", finished=None, after=None, final=None)
    resumed_facts = train(resume=tmp_path / "run").facts
    assert (resumed_facts["steps"], resumed_facts["best_step"]) == (facts["steps"], facts["best_step"])
    assert resumed_facts["after"] == facts["after"]


def test_splits_that_share_clips_get_a_remark(tiny_model, speech, tmp_path):
    said = []
    recipe = tiny_recipe(tiny_model, speech, **{"data.eval": str(speech / "test")})
    prepare(recipe, say=said.append)
    assert any("data.test shares 4 of its 4 clips with data.eval" in line for line in said)
    assert not any("data.train" in line for line in said)


def test_wrong_settings_are_refused_before_the_run_folder_is_made(tiny_model, speech, tmp_path):
    for changes, word in (
        ({"train.report_to": ["nonsense"]}, "train.report_to: 'nonsense' is not known or not installed"),
        ({"lora.modules_to_save": ["nonsense"]}, "no module 'nonsense'"),
        ({"train.freeze": "encoder", "lora.targets": "encoder"}, "leaves nothing to train"),
    ):
        with pytest.raises(UserError, match=word):
            train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match="cannot be made in"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "file.txt" / "run")


def test_training_in_several_processes_is_refused(tiny_model, speech, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes is not supported yet"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "run")


def test_an_adapter_that_continues_training_keeps_its_rank_and_a_note_says_so(lora_run, speech, tmp_path):
    said = []
    prepared = prepare(tiny_recipe(lora_run, speech, **{"lora.rank": 64}), say=said.append)
    note = "lora.rank: ignored; the adapter that you continue training has rank 4."
    assert prepared.recipe.lora.rank == 4
    assert note in prepared.remarks and f"Note: {note}" in said


def test_the_hours_of_a_large_corpus_are_estimated_from_a_sample(tiny_model, speech, monkeypatch):
    from whisper_peft import SpeechDataset, load_preparation, load_source
    from whisper_peft.training import facts

    dataset = SpeechDataset(load_source(str(speech / "train")), load_preparation(str(tiny_model)), language="hi")
    asked = []
    dataset.duration_s = lambda row: asked.append(row) or 36.0 * (1 + row % 2)
    assert facts.hours(dataset, {1, 3}) == pytest.approx((6 * 36 + 4 * 72) / 3600, abs=1e-3) and len(asked) == 10
    monkeypatch.setattr(facts, "MOST_HEADERS", 5)
    asked.clear()
    assert 0.1 <= facts.hours(dataset, {1, 3}) <= 0.2 and len(asked) == 5 and not {1, 3} & set(asked)


def test_a_dry_run_resolves_the_recipe_and_writes_nothing(tiny_model, speech, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = prepare(tiny_recipe(tiny_model, speech, **{"train.learning_rate": None}))
    assert prepared.run is None and not prepared.is_resumed and prepared.plan.clips == 12
    recipe = prepared.recipe
    assert dataclasses.is_dataclass(recipe)
    assert recipe.train.learning_rate > 0 and recipe.train.warmup_steps is not None and recipe.train.steps == 4
    assert recipe.lora.alpha == 8 and recipe.train.precision in ("fp32", "bf16", "fp16")
    # The recipe has the same keys in the same order.
    assert list(flatten(as_dict(recipe))) == list(flatten(as_dict(Recipe())))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="exists already"):
        prepare(tiny_recipe(tiny_model, speech), output=tmp_path)


def test_a_pickled_base_is_refused(tiny_model, speech, tmp_path):
    import shutil

    model = tmp_path / "pickled"
    shutil.copytree(tiny_model, model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"only pytorch_model.bin in place of model.safetensors: pickled weights, which can run code"
    ):
        train(tiny_recipe(model, speech, **QUICK), output=tmp_path / "run")


@pytest.mark.parametrize("changes", [{"lora.rslora": True}, {"lora.dora": True}, {"lora.targets": "decoder"}])
def test_each_kind_of_adapter_trains_and_is_named_in_its_config(changes, tiny_model, speech, tmp_path):
    result = train(tiny_recipe(tiny_model, speech, **{**QUICK, **changes}), output=tmp_path / "run")
    config = json.loads((result.model / "adapter_config.json").read_text())
    assert config["use_rslora"] == ("lora.rslora" in changes) and config["use_dora"] == ("lora.dora" in changes)
    assert ("encoder" in config["target_modules"]) == ("lora.targets" not in changes)
    assert config["task_type"] is None and config["r"] == 4 and config["lora_alpha"] == 8
