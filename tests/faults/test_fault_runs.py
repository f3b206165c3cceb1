"""Runs: each learns something or stops, resumes only what it began with, and may be moved."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from conftest import make_speech, make_wave, tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import UserError, load_preparation, load_source, prepare, runs, train
from whisper_peft.cli.commands import cli
from whisper_peft.data.batching import blocks, group_by_length, steps
from whisper_peft.data.dataset import Pick, SpeechDataset
from whisper_peft.data.rows import Row, fingerprint, split_fingerprint
from whisper_peft.training import defaults, facts

QUICK = {"train.steps": 2, "train.batch_size": 2, "evaluate.compare_clips": 0, "evaluate.every_steps": 1}


def manifest(folder: Path, rows: list[tuple[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,transcription", *(f"{name},{text}" for name, text in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def missing(folder: Path) -> Path:
    return manifest(folder, [(f"C:\\data\\{n:03}.ogg", f"घर {n}") for n in range(100)])


def too_long(folder: Path) -> Path:
    folder.mkdir()
    # The window of the tiny model is 3 s.
    soundfile.write(folder / "long.wav", make_wave(4.0), 16000)
    return manifest(folder, [("long.wav", f"घर {n}") for n in range(12)])


def unreadable(folder: Path) -> Path:
    folder.mkdir()
    (folder / "noise.wav").write_bytes(os.urandom(4000))
    return manifest(folder, [("noise.wav", f"घर {n}") for n in range(12)])


def empty_texts(folder: Path) -> Path:
    folder.mkdir()
    soundfile.write(folder / "good.wav", make_wave(0.5), 16000)
    return manifest(folder, [("good.wav", " ")] * 12)


def cut_files(folder: Path) -> Path:
    """Write truncated files with whole headers, so that only decoding finds the fault."""
    folder.mkdir()
    soundfile.write(folder / "whole.flac", make_wave(2.0), 16000)
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return manifest(folder, [("cut.flac", f"घर {n}") for n in range(4)])


def mostly_missing(folder: Path) -> Path:
    make_speech(folder, 30)
    with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"gone-{n}.wav,घर {n}\n" for n in range(12))
    return folder


@pytest.mark.parametrize("make", [missing, too_long, unreadable, empty_texts, cut_files, mostly_missing])
def test_row_11_a_run_with_too_few_usable_clips_stops_before_the_model_is_loaded(
    make, tiny_model, speech, tmp_path, monkeypatch
):
    from whisper_peft.training import train as room

    def refuse(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(room, "build_model", refuse)
    source = make(tmp_path / "clips")
    recipe = tiny_recipe(tiny_model, speech, **{**QUICK, "data.train": [str(source)]})
    for begin in (train, prepare):
        with pytest.raises(UserError, match=r"data\.train: .* can be used|data\.train: .* cannot be used") as stop:
            begin(recipe, output=tmp_path / "run")
        assert "\n" not in str(stop.value) and "whisper-peft check" in str(stop.value)
    assert {path.name for path in tmp_path.iterdir()} == {"clips"}


def test_row_11_train_without_usable_clips_exits_with_1_also_in_a_dry_run(
    tiny_model, speech, tmp_path, monkeypatch, capsys
):
    from whisper_peft.cli import commands as room

    source = missing(tmp_path / "clips")
    for more in ([], ["--dry-run"]):
        words = ["train", "--model", str(tiny_model), "--language", "hi", "--train", str(source), "--steps", "4"]
        words += ["--eval", str(speech / "eval"), "--output", str(tmp_path / "run"), *more]
        monkeypatch.setattr("sys.argv", ["whisper-peft", *words])
        with pytest.raises(SystemExit) as stop:
            room.main()
        assert stop.value.code == 1
        assert "100 of 100 clips cannot be used" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert cli is not None


@pytest.mark.parametrize("split", ["eval", "test"])
def test_row_11_an_eval_or_test_split_without_a_usable_clip_is_refused(split, tiny_model, speech, tmp_path):
    source = cut_files(tmp_path / "clips")
    recipe = tiny_recipe(tiny_model, speech, **{**QUICK, f"data.{split}": str(source)})
    with pytest.raises(UserError, match=rf"data\.{split}: none of the 4 clips can be used, .*cut\.flac.*truncated"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_row_11_missing_clips_count_by_the_weight_of_their_source(tiny_model, speech, tmp_path):
    """Twelve missing clips of a source that is rarely drawn are far less than a tenth of the drawn clips."""
    rare = mostly_missing(tmp_path / "clips")
    sources = [{"source": str(speech / "train"), "weight": 50.0}, {"source": str(rare), "weight": 0.1}]
    prepare(tiny_recipe(tiny_model, speech, **{**QUICK, "data.train": sources}))


def test_row_11_a_short_run_with_too_many_bad_clips_never_counts_as_trained(tiny_model, speech, tmp_path):
    """The bad clips have whole headers, and the run ends before it has seen 200 clips or an epoch."""
    folder = make_speech(tmp_path / "clips", 24, seconds=(1.5, 2.5))
    shutil.copy(cut_files(tmp_path / "cut") / "cut.flac", folder)
    with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"cut.flac,घर {n}\n" for n in range(60))
    run = tmp_path / "run"
    changes = {**QUICK, "train.steps": 3, "train.batch_size": 16, "data.train": [str(folder)], "evaluate.max_clips": 2}
    with pytest.raises(UserError, match=r"of the first \d+ training clips cannot be used .*truncated"):
        train(tiny_recipe(tiny_model, speech, **changes), output=run)
    assert not (run / "adapter").exists() and "finished" not in runs.read_json(run / "run.json")
    with pytest.raises(UserError, match=r"of the first \d+ training clips cannot be used"):
        # All steps are done, and the run still does not count as trained.
        train(resume=run)
    assert train(resume=run, changes={"data.max_left_out": 1}).facts["steps"] == 3


def test_row_11_unusable_clips_take_no_place_in_a_step(tiny_model, speech, tmp_path):
    """Six of ten clips are missing; if they took places, most steps would be empty."""
    folder = make_speech(tmp_path / "clips", 4)
    with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"gone-{n}.wav,घर {n}\n" for n in range(6))
    changes = {**QUICK, "train.steps": 8, "train.batch_size": 1, "data.train": [str(folder)], "evaluate.every_steps": 3}
    changes |= {"data.max_left_out": 1, "evaluate.max_clips": 1, "lora.dropout": 0.0}
    whole = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "whole")
    assert whole.facts["empty_steps"] == 0 and whole.facts["left_out"] == 6
    named = runs.read_jsonl(whole.run / "left_out.jsonl")
    assert len(named) == 6 and all("no such file" in clip["reason"] for clip in named)
    # A resumed run takes the same steps: an epoch has four steps, not ten.
    train(tiny_recipe(tiny_model, speech, **{**changes, "train.keep_checkpoints": 9}), output=tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "adapter")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / f"checkpoint-{step}")
    runs.update_facts(tmp_path / "part", finished=None)
    part = train(resume=tmp_path / "part")
    weights = "adapter/adapter_model.safetensors"
    assert (part.run / weights).read_bytes() == (whole.run / weights).read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(0.1, 30.0)), min_size=1, max_size=40), st.integers(1, 9))
def test_a_step_is_never_empty_and_every_clip_comes_once(seconds, batch_size):
    picks = [(duration, Pick(number)) for number, duration in enumerate(seconds)]
    batches = group_by_length(picks, batch_size, (0,))
    usable = {number for number, duration in enumerate(seconds) if duration is not None}
    if not usable:
        assert batches == []
        return
    assert sorted(pick.row for batch in batches for pick in batch) == list(range(len(seconds)))
    for batch in batches:
        assert 1 <= sum(pick.row in usable for pick in batch) <= batch_size
    assert len(batches) == min(-(-len(seconds) // batch_size), len(usable))


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 39), max_size=39), st.integers(1, 5), st.integers(0, 30))
def test_a_block_that_is_drawn_again_has_the_same_steps(unusable, batch_size, start):
    def seconds(row: int) -> float | None:
        return None if row in unusable else 1.0 + row

    options = {"seed": 1, "duration_s": seconds, "look_ahead": 8}
    drawn = []
    for block, batches in itertools.islice(blocks(40, batch_size, **options), 40):
        drawn += [(block, batch) for batch in batches]
    start = min(start, len(drawn) - 1)
    block = drawn[start][0]
    redrawn_block, redrawn_batches = next(blocks(40, batch_size, begin=block, **options))
    assert redrawn_block == block and redrawn_batches[start - block.step] == drawn[start][1]


def test_data_without_a_usable_row_ends_in_a_message_and_not_in_a_loop():
    with pytest.raises(UserError, match=r"none of the 600 clips can be used"):
        next(steps(600, 8, seed=0, duration_s=lambda row: None))


def test_the_header_and_the_text_of_a_clip_show_why_it_is_unusable(tiny_model, tmp_path):
    soundfile.write(tmp_path / "good.wav", make_wave(1.0), 16000)
    soundfile.write(tmp_path / "long.wav", make_wave(4.0), 16000)
    (tmp_path / "empty.wav").touch()
    preparation = load_preparation(str(tiny_model))
    good = str(tmp_path / "good.wav")
    cases = [
        (Row(good, "घर"), None),
        (Row(good, "", no_speech=True), None),
        (Row(good, "घर", start_s=0.2, end_s=0.9), None),
        (Row(str(tmp_path / "gone.wav"), "घर"), "no such file"),
        (Row(str(tmp_path / "gone.wav"), "घर", start_s=0.2, end_s=0.9), "no such file"),
        (Row(str(tmp_path / "long.wav"), "घर"), "4.0 s of audio; the model takes 3 s"),
        (Row(str(tmp_path / "empty.wav"), "घर"), "empty"),
        (Row(good, " "), "empty text"),
        (Row(good, "घर", start_s=5.0), "no such piece"),
        (Row(good, "घर पानी किताब " * 30), "text tokens"),
    ]
    for row, reason in cases:
        dataset = SpeechDataset([row], preparation, language="hi")
        fault = dataset.fault(0)
        assert (fault is None) == (reason is None) and (reason or "") in (fault or ""), (row, fault)
        assert (dataset.usable_s(0) is None) == (reason is not None)


@pytest.mark.parametrize("step", [1, 3])
def test_row_03_a_loss_that_is_not_finite_ends_the_run_and_the_message_names_the_step(
    step, tiny_model, speech, tmp_path
):
    calls = []

    def loss(logits, labels):
        calls.append(1)
        return logits.float().sum() * (float("nan") if len(calls) >= step else 0.01)

    changes = {**QUICK, "train.steps": 4, "train.batch_size": 4, "evaluate.max_clips": 1, "train.logging_steps": 10}
    run = tmp_path / "run"
    with pytest.raises(UserError, match=rf"step {step}: the training loss is nan.*learning_rate") as stop:
        train(tiny_recipe(tiny_model, speech, **changes), output=run, loss=loss)
    assert "\n" not in str(stop.value)
    # After the first step, the folder holds a checkpoint to resume from.
    assert run.exists() == (step > 1)


def test_row_03_weights_that_are_not_finite_after_the_last_step_are_not_saved(tiny_model, speech, tmp_path):
    from transformers import TrainerCallback

    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))

    recipe = tiny_recipe(tiny_model, speech, **{**QUICK, "train.steps": 1})
    with pytest.raises(UserError, match=r"after step 1 the token loss of 4 eval clips is not a finite number"):
        train(recipe, output=tmp_path / "run", callbacks=[Broken()])
    assert not (tmp_path / "run").exists()


def test_row_15_memory_is_shown_in_one_unit_everywhere(tiny_model, speech, tmp_path, monkeypatch):
    from whisper_peft import plan
    from whisper_peft.cli.lines import plan_lines
    from whisper_peft.training import planning

    device = planning.Device("cpu", "a machine", 20 * planning.GIB, 19 * planning.GIB)
    monkeypatch.setattr(planning, "found_device", lambda: device)
    recipe = tiny_recipe(tiny_model, speech)
    said = []
    prepare(recipe, say=said.append)
    assert any("19.0 GB free (a machine)" in line for line in said)
    run_plan = plan(recipe)
    assert plan_lines(run_plan)[0] == "a machine: 20.0 GB, 19.0 GB free"
    said_peak = next(line for line in said if "GB predicted" in line).split(" GB predicted")[0].split()[-1]
    assert said_peak == f"{run_plan.memory.peak / planning.GIB:.1f}"
    assert planning.imagined_device("8GB").memory == 8 * planning.GIB
    assert "1e9" not in Path(planning.__file__).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tiny_model, speech, tmp_path_factory) -> Path:
    """A run of two steps."""
    return train(tiny_recipe(tiny_model, speech, **QUICK), output=tmp_path_factory.mktemp("trained") / "run").run


@pytest.fixture
def small_run(trained, tmp_path) -> Path:
    """A copy of `trained`, which is therefore a moved run, too."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("batch_size: 2", "batch_size: 3", "train.batch_size"),
        ("rank: 4", "rank: 2", "lora.rank"),
        ("seed: 42", "seed: 43", "train.seed"),
        ("normal_form: NFC", "normal_form: NFD", "data.text.normal_form"),
    ],
)
def test_row_16_edited_settings_are_refused_on_resume(old, new, key, small_run):
    page = small_run / "recipe.yaml"
    text = page.read_text(encoding="utf-8")
    assert text.count(old) == 1
    page.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=rf"recipe\.yaml: {key} was .* when the run began, and is .* now; put it back"):
        train(resume=small_run, changes={"train.steps": 3})


def test_row_16_a_run_of_an_older_version_with_a_harmless_edit_resumes(small_run, speech):
    page = small_run / "recipe.yaml"
    page.write_text(page.read_text(encoding="utf-8").replace("keep_checkpoints: 2", "keep_checkpoints: 3"))
    # Rewrite the files as an earlier version wrote them.
    facts = runs.read_json(small_run / "run.json")
    facts.pop("recipe")
    for checkpoint in runs.complete_checkpoints(small_run):
        mark = runs.read_json(checkpoint / runs.COMPLETE)
        mark.pop("files")
        runs.write_json(checkpoint / runs.COMPLETE, mark)
        (checkpoint / runs.STEPS).unlink()
    for name in ("train", "eval", "test"):
        rows = load_source(str(speech / name))
        facts["data"]["fingerprints"][name] = fingerprint(rows, with_places=True)
    runs.write_json(small_run / "run.json", facts)
    assert train(resume=small_run, changes={"train.steps": 3}).facts["steps"] == 3
    assert runs.read_json(small_run / "run.json")["recipe"]["train"]["steps"] == 3


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_row_16_a_damaged_checkpoint_is_refused_on_resume(name, small_run):
    newest = runs.complete_checkpoints(small_run)[-1]
    content = bytearray((newest / name).read_bytes())
    content[-1] ^= 1
    (newest / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not as it was written .*damaged; remove .*checkpoint-2"):
        train(resume=small_run, changes={"train.steps": 3})


def test_row_16_a_damaged_best_checkpoint_is_refused_before_training(small_run):
    import json

    state_file = small_run / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(state_file.read_text())
    state["best_global_step"] = 1
    state_file.write_text(json.dumps(state))
    mark = runs.read_json(state_file.parent / runs.COMPLETE)
    runs.mark_complete(state_file.parent, **{**mark, "files": runs.checksums(state_file.parent)})
    weights = small_run / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 64
    weights.write_bytes(content)
    with pytest.raises(
        UserError, match=r"checkpoint-1/adapter_model\.safetensors: not as it was written.*best weights"
    ):
        train(resume=small_run, changes={"train.steps": 3})


def test_a_moved_run_resumes_with_its_moved_data_and_its_moved_base(tiny_model, speech, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(speech, tmp_path / "speech")
    train(tiny_recipe(tmp_path / "model", tmp_path / "speech", **QUICK), output=tmp_path / "run")
    new = tmp_path / "elsewhere"
    new.mkdir()
    run = Path(shutil.move(tmp_path / "run", new / "my-run"))
    speech = Path(shutil.move(tmp_path / "speech", new / "clips"))
    model = Path(shutil.move(tmp_path / "model", new / "base"))
    changes = {"train.steps": 3}
    for key, option, place in (
        ("data.train", "--train", [str(speech / "train")]),
        ("data.eval", "--eval", str(speech / "eval")),
        ("data.test", "--test", str(speech / "test")),
    ):
        with pytest.raises(UserError, match=rf"{key}: there is no .* any more\. .*--resume .*my-run {option} PLACE"):
            train(resume=run, changes=changes)
        changes[key] = place
    with pytest.raises(UserError, match=r"If it has moved, say where it is now with --model MODEL\."):
        train(resume=run, changes=changes)
    result = train(resume=run, changes={**changes, "model.name": str(model)})
    assert result.facts["steps"] == 3 and result.facts["base"]["path"] == str(model)
    from whisper_peft import evaluate

    # The run has stored the new place of its base.
    assert evaluate(run, speech / "test", max_clips=2).clips == 2


def test_a_run_that_began_from_an_adapter_resumes_after_the_adapter_has_moved(tiny_model, speech, tmp_path):
    first = train(tiny_recipe(tiny_model, speech, **QUICK), output=tmp_path / "first")
    train(tiny_recipe(first.run / "adapter", speech, **QUICK), output=tmp_path / "run")
    moved = Path(shutil.move(tmp_path / "first", tmp_path / "elsewhere")) / "adapter"
    with pytest.raises(UserError, match=r"say where it is now with --model MODEL"):
        train(resume=tmp_path / "run", changes={"train.steps": 3})
    result = train(resume=tmp_path / "run", changes={"train.steps": 3, "model.name": str(moved)})
    assert result.facts["steps"] == 3


def test_row_16_other_data_in_a_new_place_is_refused_on_resume(small_run, tmp_path):
    other = make_speech(tmp_path / "other", 12, seed=77)
    for begin in (train, prepare):
        with pytest.raises(UserError, match=r"data\.train has changed since the run began"):
            begin(resume=small_run, changes={"train.steps": 3, "data.train": [str(other)]})
    with pytest.raises(UserError, match=r"data\.train: the run has 1 training sources; name the new places of all"):
        train(resume=small_run, changes={"train.steps": 3, "data.train": [str(other), str(other)]})
    with pytest.raises(UserError, match=r"train\.learning_rate: cannot change"):
        train(resume=small_run, changes={"train.learning_rate": 0.1})


@pytest.mark.parametrize("split", ["train", "eval", "test"])
def test_row_16_another_recording_under_the_same_name_is_refused_on_resume(split, tiny_model, speech, tmp_path):
    data = shutil.copytree(speech, tmp_path / "speech")
    run = train(tiny_recipe(tiny_model, data, **QUICK), output=tmp_path / "run").run
    clip = data / split / "3.wav"
    before = clip.read_bytes()
    # Flip one bit of the last sample.
    clip.write_bytes(before[:-2] + bytes([before[-2] ^ 1, before[-1]]))
    with pytest.raises(UserError, match=rf"data\.{split}: .*3\.wav \(metadata.csv:5\) is another recording.*bring it"):
        train(resume=run, changes={"train.steps": 3})
    clip.write_bytes(before)
    assert train(resume=run, changes={"train.steps": 3}).facts["steps"] == 3


def test_row_16_a_run_stores_checksums_of_only_some_recordings_of_a_long_split(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    monkeypatch.setattr(facts, "MOST_SOUNDS", 4)
    rows = [Row(str(path), "a") for _ in range(10)]
    assert list(facts._sounds(rows)) == ["0", "3", "6", "9"]
    assert facts._sounds([Row(str(tmp_path / "gone.wav"), "a"), Row(b"sound", "b")]).keys() == {"1"}


def test_a_fingerprint_depends_on_content_and_not_on_place():
    def rows(root: str) -> list[Row]:
        return [Row(f"{root}/a/1.wav", "one"), Row(f"{root}/b/1.wav", "two"), Row(f"{root}/b/2.wav", "three")]

    here, there = rows("/home/me/data"), rows("/mnt/disk/other name")
    assert fingerprint(here) == fingerprint(there)
    assert fingerprint(here, with_places=True) != fingerprint(there, with_places=True)
    swapped = [Row("/x/b/1.wav", "one"), Row("/x/a/1.wav", "two"), Row("/x/b/2.wav", "three")]
    assert fingerprint(swapped) != fingerprint(here)
    assert split_fingerprint([*here, *there], [3, 3]) == split_fingerprint([*there, *here], [3, 3])
    assert split_fingerprint([*here, *there], [3, 3]) != split_fingerprint([*here, *there], [2, 4])


def test_row_37_more_workers_than_cores_are_refused_with_the_number_of_cores(tiny_model, speech, tmp_path, monkeypatch):
    cores = defaults.usable_cores()
    for workers in (cores + 1, 200, 4096):
        recipe = tiny_recipe(tiny_model, speech, **{**QUICK, "train.workers": workers})
        for begin in (prepare, train):
            with pytest.raises(
                UserError, match=rf"train\.workers: {workers:,} .* {cores} cores .*train\.workers={cores}"
            ):
                begin(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    defaults.refuse_workers(cores)
    defaults.refuse_workers(None)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.batch_size": 10**9},
        {"train.batch_size": 10**400},
        {"evaluate.beams": 10**6},
        {"evaluate.batch_size": 10**9},
        {"train.workers": 10**6},
        {"train.warmup_steps": 10**30},
        {"train.epochs": 1e300},
        {"train.steps": 10**18},
        {"lora.rank": 10**9},
        {"train.logging_steps": 10**40},
    ],
)
def test_row_33_settings_above_the_largest_value_are_refused(changes, tiny_model, speech, tmp_path):
    with pytest.raises(UserError, match=f"{next(iter(changes))}: expected at most"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "run", changes=changes)
    assert not (tmp_path / "run").exists()


def test_row_33_epochs_that_make_too_many_steps_are_refused(tiny_model, speech, monkeypatch):
    from whisper_peft import Recipe, override

    recipe = override(Recipe(), {"train.epochs": 1_000_000, "train.batch_size": 1})
    with pytest.raises(UserError, match=r"train\.epochs: 1e\+06 passes over 8,000 clips are 8,000,000,000 steps"):
        defaults.resolve(recipe, n_rows=8_000, d_model=16, multilingual=True)


def test_row_29_an_output_folder_whose_name_is_not_utf8_is_refused_before_training(tiny_model, speech, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff\xfe"))
    for output in (odd, odd / "inside"):
        with pytest.raises(UserError, match=r"the name is not UTF-8, and weights cannot be written there"):
            train(tiny_recipe(tiny_model, speech), output=output)
    with pytest.raises(UserError, match=r"a name too long for a new file"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / ("x" * 250))
    assert not list(tmp_path.iterdir())


def test_an_output_in_a_folder_without_write_permission_is_refused(tiny_model, speech, tmp_path, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(UserError, match=r"run: cannot be made in .*; name another place"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "run")


def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"):
        runs.refuse_existing(tmp_path / "link")
