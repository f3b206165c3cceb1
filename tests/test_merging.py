"""merge proves that the merged model equals the adapter, never overwrites, and never takes a wrong base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe

from whisper_peft import UserError, evaluate, load_source, merge, runs, train
from whisper_peft.delivery import merging


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_trained_adapter_changes_the_base(lora_run, tiny_model):
    """If the adapter changed nothing, the other tests would prove nothing."""
    from safetensors.torch import load_file

    trained = load_file(lora_run / "adapter" / "adapter_model.safetensors")
    assert all(trained[name].abs().max() > 1e-3 for name in trained if "lora_B" in name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_merged_model_equals_the_adapter_within_the_limits(dtype, lora_run, tiny_model, speech, tmp_path):
    out, said = tmp_path / "merged", []
    report = merge(lora_run, out, dtype=dtype, say=said.append)
    assert report.passed and report.logit_gap <= report.logit_limit
    # float16 is slow on a CPU, so fewer clips are checked.
    assert report.clips == (2 if dtype == "float16" else 4)
    assert "the run's own test clips" in report.checked_on
    assert any(report.checked_on in line for line in said)
    assert runs.read_json(out / "merge_report.json") == report.as_dict()
    if dtype == "float32":
        assert report.logit_limit == pytest.approx(1e-5 * max(10.0, report.largest_logit))
        assert report.transcripts_differing == 0
        ours, theirs = evaluate(lora_run, speech / "test"), evaluate(out, speech / "test")
        assert ours.wer == theirs.wer and ours.token_loss == pytest.approx(theirs.token_loss, abs=1e-5)
    else:
        assert report.unmerged_logit_gap > 0 and report.logit_limit == 2 * report.unmerged_logit_gap
        assert len(report.transcripts) == report.transcripts_differing
    merged, base = weights(out), weights(tiny_model)
    assert {str(weight.dtype) for weight in merged.values()} == {f"torch.{dtype}"}
    moved = {name for name in base if not base[name].to(merged[name].dtype).equal(merged[name])}
    assert moved == {
        name
        for name in base
        if (".layers." in name and name.endswith("_proj.weight")) or name.endswith(("fc1.weight", "fc2.weight"))
    }


def test_a_merged_weight_is_the_base_plus_the_scaled_product_of_lora(lora_run, tiny_model, tmp_path):
    from safetensors.torch import load_file

    merge(lora_run, tmp_path / "merged", dtype="float32")
    merged, base = weights(tmp_path / "merged"), weights(tiny_model)
    adapter = load_file(lora_run / "adapter" / "adapter_model.safetensors")
    name = "model.decoder.layers.0.encoder_attn.v_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"] + 8 / 4 * (b @ a))


def test_the_default_dtype_is_that_of_the_base(tiny_model, speech, tmp_path):
    from transformers import WhisperForConditionalGeneration

    half = tmp_path / "half"
    shutil.copytree(tiny_model, half)
    model = WhisperForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float16)
    model.save_pretrained(half)
    changes = {"train.steps": 2, "evaluate.compare_clips": 0, "train.learning_rate": 0.02}
    result = train(tiny_recipe(half, speech, **changes), output=tmp_path / "run")
    report = merge(result.run, tmp_path / "merged")
    assert report.dtype == "float16"
    assert {weight.dtype for weight in weights(tmp_path / "merged").values()} == {torch.float16}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_is_written_if_the_logits_differ_by_more_than_the_limit(dtype, lora_run, tmp_path, monkeypatch):
    real = merging.load_adapter

    def damaged(model, adapter, **options):
        loaded = real(model, adapter, **options)
        parameter = next(p for name, p in loaded.named_parameters() if "decoder" in name and "lora_B" in name)
        parameter.data += 0.5
        return loaded

    monkeypatch.setattr(merging, "load_adapter", damaged)
    with pytest.raises(UserError, match=r"not written: merged and unmerged differ by .* in logits \(limit"):
        merge(lora_run, tmp_path / "merged", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_merge_never_overwrites_a_file_or_folder(lora_run, tmp_path):
    for name in ("folder", "file"):
        (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match="exists already; merge never overwrites"):
            merge(lora_run, tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in lora_run.rglob("*")}
    with pytest.raises(UserError, match="exists already"):
        merge(lora_run / "adapter", lora_run / "adapter")
    assert {path: path.stat().st_mtime_ns for path in lora_run.rglob("*")} == before
    assert not list((tmp_path / "folder").iterdir()) and (tmp_path / "file").read_text() == "mine"


def test_a_base_with_other_weights_is_refused_and_a_moved_base_can_be_named(tiny_model, speech, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    changes = {"train.steps": 2, "evaluate.compare_clips": 0, "train.learning_rate": 0.02}
    run = train(tiny_recipe(base, speech, **changes), output=tmp_path / "run").run

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(base, other)
    state = load_file(other / "model.safetensors")
    state["model.decoder.layer_norm.bias"] += 1e-3
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not the weights this adapter was trained on \(another SHA-256\)"):
        merge(run, tmp_path / "merged", base=str(other))

    shutil.copytree(base, tmp_path / "kept")
    shutil.rmtree(base)
    # Other weights are refused in the base's own place, too.
    shutil.copytree(other, base)
    with pytest.raises(UserError, match="another SHA-256"):
        merge(run, tmp_path / "merged")
    shutil.rmtree(base)
    for function in (lambda: merge(run, tmp_path / "merged"), lambda: evaluate(run, speech / "test")):
        with pytest.raises(UserError, match=r"the adapter's base has moved.*--base MODEL"):
            function()
    assert not (tmp_path / "merged").exists()
    report = merge(run, tmp_path / "merged", base=str(tmp_path / "kept"))
    assert report.passed and report.base == str(tmp_path / "kept")
    assert evaluate(run, speech / "test", base=str(tmp_path / "kept"), max_clips=1).clips == 1


def test_an_adapter_without_its_run_is_checked_on_the_shipped_clips(lora_run, tmp_path):
    """An adapter without its run has no evaluation clips, so merge takes the shipped clips and says so."""
    adapter = tmp_path / "adapter"
    shutil.copytree(lora_run / "adapter", adapter)
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert report.passed and report.clips == 8 and "the shipped Hindi clips" in report.checked_on


def test_the_user_can_name_the_clips_of_the_check(lora_run, speech, tmp_path):
    report = merge(lora_run, tmp_path / "merged", check=str(speech / "train"), dtype="float32")
    assert report.clips == 8 and f"{speech / 'train'} (--check)" in report.checked_on


def test_the_check_takes_the_eval_clips_if_the_test_clips_are_gone(lora_run, speech, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lora_run, run)
    page = (run / "recipe.yaml").read_text(encoding="utf-8")
    (run / "recipe.yaml").write_text(page.replace(str(speech / "test"), str(tmp_path / "gone")), encoding="utf-8")
    # The test clips are gone, so the clips of eval are taken.
    assert merge(run, tmp_path / "merged").clips == 4


def test_a_full_model_an_unknown_dtype_and_an_adapter_as_base_are_refused(full_run, lora_run, tmp_path):
    with pytest.raises(UserError, match="no adapter to merge"):
        merge(full_run, tmp_path / "merged")
    with pytest.raises(UserError, match="--dtype int8: expected one of"):
        merge(lora_run, tmp_path / "merged", dtype="int8")
    with pytest.raises(UserError, match=r"--base .*: an adapter"):
        merge(lora_run, tmp_path / "merged", base=str(lora_run))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_plain_transformers_pipeline_gives_the_transcripts_of_the_merged_model(dtype, lora_run, speech, tmp_path):
    import soundfile
    from transformers import pipeline

    out = tmp_path / "merged"
    merge(lora_run, out, dtype=dtype)
    evaluate(out, speech / "test", output=tmp_path / "report")
    ours = [record["prediction"] for record in runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")]
    recogniser = pipeline("automatic-speech-recognition", model=str(out), device="cpu")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["language"] == "hi" and generation["task"] == "transcribe"
    heard = []
    for row in load_source(str(speech / "test")):
        wave = soundfile.read(row.audio, dtype="float32")[0]
        # The pipeline pads with the same silence as our collator.
        padded = np.zeros(3 * 16000, np.float32)
        padded[: len(wave)] = wave
        heard.append(recogniser({"raw": padded, "sampling_rate": 16000})["text"].strip())
    assert heard == ours


@pytest.mark.parametrize(
    "changes",
    [
        {"lora.dora": True},
        pytest.param({"lora.rslora": True}, marks=pytest.mark.slow),
        pytest.param({"lora.modules_to_save": ["decoder.layer_norm"]}, marks=pytest.mark.slow),
        {"lora.targets": "encoder", "lora.modules_to_save": ["conv1"]},
    ],
)
def test_every_kind_of_adapter_merges(changes, tiny_model, speech, tmp_path):
    quick = {"train.steps": 2, "evaluate.compare_clips": 0, "train.learning_rate": 0.02}
    result = train(tiny_recipe(tiny_model, speech, **{**quick, **changes}), output=tmp_path / "run")
    for dtype in ("float32", "float16"):
        report = merge(result.run, tmp_path / dtype, dtype=dtype)
        assert report.passed
    merged, base = weights(tmp_path / "float32"), weights(tiny_model)
    assert merged.keys() == base.keys()
    moved = {name for name in base if not base[name].equal(merged[name])}
    for module in changes.get("lora.modules_to_save", ()):
        assert any(f".{module}." in name for name in moved)
