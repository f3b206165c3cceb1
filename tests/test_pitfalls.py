"""One test for each number of docs/pitfalls.md, and a list of the numbers whose feature is not built yet."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, make_speech, make_wave, tiny_recipe
from spoken import make_spoken, write_manifest
from transformers import TrainerCallback

import whisper_peft
from whisper_peft import (
    SpeechCollator,
    SpeechDataset,
    UserError,
    evaluate,
    load_preparation,
    load_source,
    merge,
    normalize,
    runs,
    score,
    train,
)

NOT_BUILT_YET = {
    19: "hallucination on silence, noise and music",
    20: "paired comparison of two models, error rates by slice",
    22: "forgetting: English and long-form scores before and after",
}
QUICK = {"train.steps": 2, "evaluate.compare_clips": 0, "evaluate.max_clips": 1}


def test_every_number_has_a_test_or_is_not_built_yet():
    held = {int(name[5:7]) for name in globals() if re.match(r"test_\d\d_", name)}
    assert held | NOT_BUILT_YET.keys() == set(range(1, 36))
    assert not held & NOT_BUILT_YET.keys()


def test_the_page_has_the_same_numbers_as_the_tests():
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", page, re.MULTILINE)]
    assert numbers == list(range(1, 36))
    entries = dict(zip(numbers, re.split(r"^\d+\. \*\*", page, flags=re.MULTILINE)[1:], strict=True))
    assert {number for number, entry in entries.items() if "not built yet" in entry} == NOT_BUILT_YET.keys()


@pytest.fixture(scope="module")
def preparation(tiny_model):
    return load_preparation(str(tiny_model))


@pytest.fixture(scope="module")
def batch(preparation, speech):
    dataset = SpeechDataset(load_source(str(speech / "train")), preparation, language="hi")
    return SpeechCollator(preparation)([dataset[number] for number in range(8)])


def test_01_encoder_adapters_train_under_gradient_checkpointing(tiny_model, speech, tmp_path):
    from safetensors.torch import load_file

    recipe = tiny_recipe(tiny_model, speech, **{**QUICK, "train.gradient_checkpointing": True})
    weights = load_file(train(recipe, output=tmp_path / "run").model / "adapter_model.safetensors")
    encoder = [name for name in weights if ".encoder." in name and "lora_B" in name]
    assert encoder and all(weights[name].any() for name in encoder)

    # Re-entrant checkpointing has the same effect: the graph ends at the encoder's output.
    class Detach(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            def cut(module, inputs, output):
                output.last_hidden_state = output.last_hidden_state.detach()
                return output

            model.get_base_model().get_encoder().register_forward_hook(cut)

    with pytest.raises(AssertionError, match="no gradient"):
        train(recipe, output=tmp_path / "broken", callbacks=[Detach()])


def test_02_the_decoder_gets_exactly_one_start_of_transcript(batch, preparation):
    start = preparation.token_id("<|startoftranscript|>")
    assert (batch["decoder_input_ids"] == start).sum(1).tolist() == [1] * 8
    assert batch["decoder_input_ids"][:, 0].eq(start).all() and not batch["labels"].eq(start).any()
    # This is why a test for the bos token never fires.
    assert preparation.tokenizer.bos_token_id == preparation.eot


def test_03_the_model_learns_the_end_of_text_once_and_padding_never(batch, preparation):
    # This is why masking by the id of the padding would mask the end of the text.
    assert preparation.tokenizer.pad_token_id == preparation.eot
    lengths = set()
    for labels, inputs in zip(batch["labels"].tolist(), batch["decoder_input_ids"].tolist(), strict=True):
        length = labels.index(preparation.eot) + 1
        assert -100 not in labels[:length] and set(labels[length:]) <= {-100}
        assert inputs[length:] == [preparation.eot] * (len(inputs) - length)
        lengths.add(length)
    # The lengths differ, so there is padding.
    assert len(lengths) > 1


def test_04_adapters_load_and_run_without_a_task_type(lora_run, tiny_model):
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

    assert json.loads((lora_run / "adapter" / "adapter_config.json").read_text())["task_type"] is None
    model = PeftModel.from_pretrained(WhisperForConditionalGeneration.from_pretrained(tiny_model), lora_run / "adapter")
    assert type(model) is PeftModel
    output = model(input_features=torch.zeros(1, 80, 300), labels=torch.tensor([[1, 2, 3]]))
    assert output.loss.isfinite()


def first_loss(recipe, folder: Path) -> tuple[float, bytes]:
    result = train(recipe, output=folder)
    loss = next(record["loss"] for record in runs.read_jsonl(result.run / "metrics.jsonl") if "loss" in record)
    return loss, (result.model / "adapter_model.safetensors").read_bytes()


def test_05_every_adapter_is_plain_lora(lora_run, tiny_model, speech, tmp_path):
    """AdaLoRA changes its ranks only if somebody calls its update; the other variants of peft need no such call."""
    settings = {"lora.rslora": True, "lora.dora": True, "lora.targets": "attention+decoder", **QUICK}
    varied = train(tiny_recipe(tiny_model, speech, **settings), output=tmp_path / "run").run
    for run in (lora_run, varied):
        assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_06_the_cut_into_micro_batches_does_not_change_the_loss(tiny_model, speech, tmp_path):
    changes = {**QUICK, "lora.dropout": 0.0, "train.batch_size": 8}
    losses = []
    for micro in (1, 3, 8):
        recipe = tiny_recipe(tiny_model, speech, **{**changes, "train.micro_batch_size": micro})
        run = train(recipe, output=tmp_path / str(micro)).run
        losses.append([record["loss"] for record in runs.read_jsonl(run / "metrics.jsonl") if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4) and losses[0] == pytest.approx(losses[2], abs=2e-4)


def test_07_a_remark_on_warm_up_and_learning_rate_comes_before_the_first_step(tiny_model, speech, tmp_path):
    events = []

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            events.append("step")

    changes = {**QUICK, "train.warmup_steps": 50, "train.learning_rate": 1e-6}
    train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", say=events.append, callbacks=[Steps()])
    before = "\n".join(events[: events.index("step")])
    assert "train.warmup_steps 50 is not below the run's 2 steps" in before
    assert "far from" in before and "looks like one for --mode full" in before


def test_08_one_split_selects_the_checkpoint_and_another_gives_the_report(lora_run, speech, tmp_path, tiny_model):
    facts = runs.read_json(lora_run / "run.json")
    assert facts["final"]["split"] == "test"
    heard = {Path(clip["audio"]).parent.name for clip in runs.read_jsonl(lora_run / "transcripts.jsonl")}
    assert heard == {"test"}
    said = []
    changes = {**QUICK, "data.test": None, "train.steps": 1, "evaluate.compare_clips": 2}
    facts = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", say=said.append).facts
    assert facts["final"]["split"] == "eval" and any("selection set, optimistic" in line for line in said)


def test_09_the_error_rate_selects_the_best_checkpoint(tiny_model, speech, tmp_path, monkeypatch):
    from whisper_peft.training import scorer as room

    real, rates, losses = room.figures, iter([0.5, 0.2, 0.4, 0.6, 0.9]), iter([4.0, 3.0, 2.0, 1.0, 0.9])

    def rising(*arguments):
        """Let the WER rise while the loss falls."""
        return {**real(*arguments), "wer": next(rates), "token_loss": next(losses)}

    monkeypatch.setattr(room, "figures", rising)
    changes = {**QUICK, "train.steps": 9, "evaluate.every_steps": 1, "train.early_stopping": 2}
    facts = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run").facts
    assert facts["best_step"] == 2 and facts["best_metric"] == "wer" and facts["steps"] == 4


def left_out(folder: Path, preparation, clips: dict[str, tuple[float, str]]) -> dict[str, str]:
    """Make clips from seconds and text; return the name of each clip that is left out, with the reason."""
    folder.mkdir()
    lines = []
    for name, (seconds, text) in clips.items():
        soundfile.write(folder / f"{name}.wav", make_wave(seconds), 16000)
        lines.append(json.dumps({"file_name": f"{name}.wav", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    dataset = SpeechDataset(load_source(str(folder)), preparation, language="hi")
    kept = SpeechCollator(preparation)([dataset[number] for number in range(len(clips))])
    # The texts that are kept are whole, not cut.
    for row, labels in zip(kept["rows"], kept["labels"].tolist(), strict=True):
        tokens = [token for token in labels if token >= 0]
        assert preparation.decode(tokens) == list(clips.values())[row][1]
    return {Path(clip.audio).stem: clip.reason for clip in kept["left_out"]}


def test_10_the_text_limit_counts_tokens_not_characters(preparation, tmp_path):
    # Here a letter of Hindi is one token, and a letter of Malayalam is three.
    hindi, malayalam = "न" * 40, "മ" * 40
    reasons = left_out(tmp_path / "clips", preparation, {"hindi": (1.0, hindi), "malayalam": (1.0, malayalam)})
    assert list(reasons) == ["malayalam"] and re.search(r"\d+ text tokens.*the model takes 64", reasons["malayalam"])


def test_11_audio_over_the_window_is_left_out_whole(preparation, tmp_path):
    reasons = left_out(tmp_path / "clips", preparation, {"fits": (3.0, "घर"), "long": (3.2, "घर")})
    assert list(reasons) == ["long"] and "3.2 s of audio; the model takes 3 s" in reasons["long"]


def test_12_a_text_belongs_to_the_file_that_its_row_names(tmp_path):
    folder = make_speech(tmp_path / "clips", 12)
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for number in range(12):
        (folder / f"{number}.wav").rename(folder / f"rec_{number}.wav")
    renamed = [lines[0], *(f"rec_{line}" for line in reversed(lines[1:]))]
    (folder / "metadata.csv").write_text("\n".join(renamed), encoding="utf-8")
    for row in load_source(str(folder)):
        assert row.text.split()[-1] == re.fullmatch(r"rec_(\d+)", Path(row.audio).stem)[1]
    (folder / "metadata.csv").unlink()
    (folder / "texts.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    # Nothing is paired by sorting the names.
    with pytest.raises(UserError, match="no metadata"):
        load_source(str(folder))
    rows = make_spoken(tmp_path / "sorted", 60, name="rec_{}")
    texts = [row["text"] for row in rows]
    # Somebody else did pair the texts by sorting the names.
    for row, text in zip(sorted(rows, key=lambda row: row["audio"]), texts, strict=True):
        row["text"] = text
    report = whisper_peft.check(write_manifest(tmp_path / "sorted" / "all.jsonl", rows), audio=False)
    assert report.findings[0].kind == "other-order" and report.findings[0].count > 50


def test_13_a_bad_clip_does_not_stop_a_run_and_no_other_clip_takes_its_place(tiny_model, speech, tmp_path):
    folder = make_speech(tmp_path / "clips", 7)
    (folder / "3.wav").write_bytes(b"not audio")
    seen, eot = [], whisper_peft.load_preparation(str(tiny_model)).eot

    def count(logits, labels):
        seen.append(int((labels == eot).sum()))
        return whisper_peft.token_loss_sum(logits, labels)

    changes = {**QUICK, "data.train": [str(folder)], "train.batch_size": 7, "train.steps": 1}
    result = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", loss=count)
    (named,) = runs.read_jsonl(result.run / "left_out.jsonl")
    assert Path(named["audio"]).name == "3.wav" and named["place"] == "metadata.csv:5" and named["reason"]
    assert sum(seen) == 6 and result.facts["left_out"] == 1


def test_14_check_finds_leaks_duplicates_scripts_silence_clipping_and_texts_too_long(tmp_path):
    """Each kind of fault is in one clip of two splits; test_checking.py and test_check_cli.py test every kind."""
    rows = make_spoken(tmp_path, 60)
    train_rows, test_rows = rows[:50], rows[50:]
    for row in test_rows:
        row["speaker_id"] += "-test"
    test_rows[0]["speaker_id"] = rows[0]["speaker_id"]
    test_rows[1]["text"] = rows[1]["text"]
    shutil.copy(tmp_path / rows[2]["audio"], tmp_path / "copy.wav")
    train_rows.append({**rows[2], "audio": "copy.wav"})
    rows[3]["text"] = "kal raat ghar par paani"
    rows[4]["text"] = " ".join(row["text"] for row in rows[10:16])
    wave, rate_hz = soundfile.read(tmp_path / rows[5]["audio"])
    soundfile.write(tmp_path / rows[5]["audio"], 0 * wave, rate_hz)
    wave, rate_hz = soundfile.read(tmp_path / rows[6]["audio"])
    soundfile.write(tmp_path / rows[6]["audio"], np.clip(30 * wave, -0.95, 0.95), rate_hz)
    splits = [
        str(write_manifest(tmp_path / "train.jsonl", train_rows)),
        str(write_manifest(tmp_path / "t.jsonl", test_rows)),
    ]
    names = {
        finding.kind: {Path(clip.name).name for clip in finding.clips}
        for finding in whisper_peft.check(splits, language="hi").findings
    }
    for kind, number in {"wrong-script": 3, "too-much-text": 4, "silence": 5, "clipping": 6}.items():
        assert names[kind] == {rows[number]["audio"]}, kind
    assert names["duplicate-audio"] == {"copy.wav"}
    assert names["shared-text"] == {rows[1]["audio"], test_rows[1]["audio"]}
    assert test_rows[0]["audio"] in names["shared-speaker"] and not {"shared-audio"} & names.keys()


def test_15_common_voice_is_read_with_stray_quotes_and_an_empty_split(tmp_path):
    release = tmp_path / "cv" / "hi"
    (release / "clips").mkdir(parents=True)
    header = "client_id\tpath\tsentence\tup_votes"
    rows = ['a\t1.mp3\tउसने "कहा\t2', "b\t2.mp3\tघर\t2", 'c\t3.mp3\tपानी" है\t2', "d\t4.mp3\tरात\t2"]
    (release / "train.tsv").write_text("\n".join([header, *rows]), encoding="utf-8")
    (release / "dev.tsv").write_text(header + "\n", encoding="utf-8")
    train_rows = load_source(f"{tmp_path / 'cv'}:train")
    assert [row.text for row in train_rows] == ['उसने "कहा', "घर", 'पानी" है', "रात"]
    assert [Path(row.audio).name for row in train_rows] == ["1.mp3", "2.mp3", "3.mp3", "4.mp3"]
    for split in ("dev", "test"):
        with pytest.raises(
            UserError, match=rf"split '{split}' is (empty|not there); this release has .*train \(4 rows"
        ):
            load_source(f"{tmp_path / 'cv'}:{split}")


def test_16_the_data_path_needs_neither_torchcodec_nor_datasets(preparation, tmp_path, monkeypatch):
    for name in ("torchcodec", "datasets", "torchaudio", "librosa"):
        # With None in its place, importing the package raises an error.
        monkeypatch.setitem(sys.modules, name, None)
    wave = make_wave(1.0)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"clip.{suffix}", wave, 16000)
    write_webm(tmp_path / "clip.webm", wave)
    lines = ["file_name,text", *(f"clip.{suffix},घर" for suffix in ("wav", "flac", "ogg", "mp3", "webm"))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    dataset = SpeechDataset(load_source(str(tmp_path)), preparation, language="hi")
    batch = SpeechCollator(preparation)([dataset[number] for number in range(5)])
    assert not batch["left_out"] and len(batch["rows"]) == 5 and batch["seconds"] == pytest.approx(5.0, abs=0.3)


def write_webm(path: Path, wave: np.ndarray) -> None:
    """Write Opus in webm, as browsers record it; libsndfile cannot read it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        samples = np.repeat(wave, 3)
        for start in range(0, len(samples) - 959, 960):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 960], format="flt", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_17_no_features_are_written_to_disk(tiny_model, speech, tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    before = {path: path.stat().st_size for path in speech.rglob("*")}
    run = train(tiny_recipe(tiny_model, speech, **QUICK), output=tmp_path / "run").run
    assert {path: path.stat().st_size for path in speech.rglob("*")} == before
    # The bytes of the log-mel features of one clip.
    one_clip = 80 * 300 * 4
    large = [
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*")
        if path.is_file()
        and path.stat().st_size >= one_clip
        and path.parent.name not in ("adapter",)
        and run / "checkpoints" not in path.parents
    ]
    assert not large
    assert not [path for path in run.rglob("*") if path.suffix in (".arrow", ".npy", ".npz")]


def test_18_vowel_signs_survive_normalisation(lora_run):
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    right, wrong = "किताब की कीमत", "काताब का कामत"
    # This is the pitfall: the two words become the same.
    assert BasicTextNormalizer()(right) == BasicTextNormalizer()(wrong)
    assert normalize(right) != normalize(wrong) and normalize("की।") == "की"
    figures = score([right], [wrong])
    assert figures["wer"] == figures["wer_normalized"] == 1.0 and figures["cer_normalized"] > 0.2
    facts = runs.read_json(lora_run / "run.json")["final"]
    # Both kinds of rates are stored, and the normaliser is named.
    assert {"wer", "wer_normalized", "cer", "cer_normalized", "normalizer"} <= facts.keys()


def test_21_the_metric_works_without_a_network(monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("the metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    metric = whisper_peft.speech_error_rate()
    scores = metric.compute(references=["एक दो तीन चार"], predictions=["एक दो तीन"])
    assert scores["wer"] == 0.25 and scores["wer_deletions"] == 1
    import evaluate as library

    assert isinstance(metric, library.Metric)


def test_23_every_artefact_has_its_generation_config(lora_run, full_run, tmp_path):
    from transformers import GenerationConfig

    merge(lora_run, tmp_path / "merged")
    for folder in (lora_run / "adapter", full_run / "model", tmp_path / "merged"):
        # A stranger reads the folder like this.
        config = GenerationConfig.from_pretrained(folder)
        assert config.language == "hi" and config.task == "transcribe" and config.is_multilingual
        assert config.lang_to_id["<|hi|>"] and config.task_to_id["transcribe"] and config.suppress_tokens
        assert config.alignment_heads == [[0, 0]] and config.no_timestamps_token_id


def test_24_no_artefact_keeps_forced_decoder_ids(tiny_model, speech, tmp_path):
    base = tmp_path / "old"
    shutil.copytree(tiny_model, base)
    # Older checkpoints have it in both files.
    for name in ("config.json", "generation_config.json"):
        content = {**runs.read_json(base / name), "forced_decoder_ids": [[1, None], [2, 388]]}
        runs.write_json(base / name, content)
    result = train(tiny_recipe(base, speech, **QUICK), output=tmp_path / "run")
    full = train(tiny_recipe(base, speech, **{**QUICK, "train.mode": "full"}), output=tmp_path / "full")
    merge(result.run, tmp_path / "merged")
    for folder in (result.model, full.model, tmp_path / "merged"):
        for path in folder.glob("*config.json"):
            assert not json.loads(path.read_text()).get("forced_decoder_ids"), path


def test_25_artefacts_load_from_their_folder_alone(lora_run, full_run, tmp_path, speech):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    merge(lora_run, tmp_path / "merged")
    shutil.copytree(full_run / "model", tmp_path / "full")
    shutil.copytree(lora_run / "adapter", tmp_path / "adapter")
    for name in ("merged", "full", "adapter"):
        processor = WhisperProcessor.from_pretrained(tmp_path / name)
        features = processor(make_wave(1.0), sampling_rate=16000, return_tensors="pt").input_features
        assert features.shape == (1, 80, 300)
        if name != "adapter":
            model = WhisperForConditionalGeneration.from_pretrained(tmp_path / name)
            assert processor.batch_decode(model.generate(features, max_new_tokens=3))
    assert evaluate(tmp_path / "adapter", speech / "test", max_clips=1).clips == 1


def test_26_merge_folds_into_the_unquantised_base(tiny_model, speech, tmp_path):
    from safetensors.torch import load_file

    changes = {**QUICK, "train.quantize": "4bit", "train.learning_rate": 0.02}
    run = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")
    report = merge(run.run, tmp_path / "merged")
    # The loss by quantising is shown, but the limit does not apply to it.
    assert report.quantized.logit_gap > report.logit_limit > report.logit_gap
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "merged"))
    adapter, name = load_file(run.model / "adapter_model.safetensors"), "model.encoder.layers.0.fc1"
    factors = [adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA"]
    # Alpha is twice the rank.
    exact = base[f"{name}.weight"] + 2 * factors[0] @ factors[1]
    assert factors[0].any() and torch.allclose(merged[f"{name}.weight"], exact, atol=1e-6)


def closed_by_a_time(model: Path, rows) -> int:
    """Count the clips for which the generation of transformers, when asked for times, says when the text ends."""
    from transformers import WhisperForConditionalGeneration

    whisper, preparation = WhisperForConditionalGeneration.from_pretrained(model).eval(), load_preparation(str(model))
    batch = SpeechCollator(preparation)([SpeechDataset(rows, preparation, language="hi")[i] for i in range(len(rows))])
    tokens = whisper.generate(
        input_features=batch["input_features"],
        language="hi",
        task="transcribe",
        return_timestamps=True,
        max_new_tokens=20,
        force_unique_generate_call=True,
    )
    return int(((tokens >= preparation.first_timestamp).sum(dim=1) >= 2).sum())


def test_27_an_export_is_loaded_and_compared_in_the_program_that_will_use_it(tiny_model_30s, speech, tmp_path):
    # A model with random weights says something else there, so its export is refused with one line.
    options = {"format": "ctranslate2", "quantization": "float32", "check": speech / "test", "language": "hi"}
    try:
        report = whisper_peft.export(tiny_model_30s, tmp_path / "out", **options)
    except UserError as error:
        assert "out: not written: " in str(error) and " in faster-whisper" in str(error)
        assert list(tmp_path.iterdir()) == []
    else:
        assert report.proved and report.encoder_gap < 1e-3
    # whisper.cpp has OpenAI's tokens built in, and would misread others.
    with pytest.raises(UserError, match=r"its vocabulary has \d+ tokens, and whisper.cpp knows only those of OpenAI"):
        whisper_peft.export(tiny_model_30s, tmp_path / "ggml", **{**options, "format": "ggml", "quantization": "f16"})


def test_28_a_model_keeps_its_times_only_if_it_trains_on_timed_clips(tiny_model, tmp_path):
    """A model that says times is trained further, with no timed clips and with a half; the bounds were set first."""
    folder = make_speech(tmp_path / "clips", 8)
    table = "file_name,transcription\n" + "".join(f"{number}.wav,घर पानी\n" for number in range(8))
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    rows = load_source(str(folder))

    def trained(model: Path, share: float, steps: int, name: str) -> Path:
        changes = {
            "features.timestamps": share,
            "train.mode": "full",
            "train.learning_rate": 0.01,
            "train.steps": steps,
            "train.batch_size": 8,
            "evaluate.compare_clips": 0,
            "evaluate.max_clips": 1,
            "evaluate.every_steps": steps,
            "data.train": [str(folder)],
            "data.eval": str(folder),
            "data.test": None,
        }
        return train(tiny_recipe(model, tmp_path, **changes), output=tmp_path / name).model

    able = trained(tiny_model, 1.0, 60, "able")
    assert closed_by_a_time(able, rows) == 8
    assert closed_by_a_time(trained(able, 0.0, 40, "without"), rows) <= 1
    assert closed_by_a_time(trained(able, 0.5, 40, "with"), rows) >= 7


def test_29_resuming_continues_optimiser_schedule_sampler_and_random_numbers(tiny_model, speech, tmp_path):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise MemoryError("in the second epoch")

    changes = {**QUICK, "train.steps": 6, "lora.dropout": 0.3, "evaluate.every_steps": 2, "train.schedule": "cosine"}
    recipe = tiny_recipe(tiny_model, speech, **changes)
    with pytest.raises(MemoryError):
        train(recipe, output=tmp_path / "crashed", callbacks=[Crash()])
    resumed = train(resume=tmp_path / "crashed")
    whole = train(recipe, output=tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (resumed.model / name).read_bytes() == (whole.model / name).read_bytes()
    steps = [
        [(record["step"], record["loss"], record["learning_rate"]) for record in records if "loss" in record]
        for records in (runs.read_jsonl(run.run / "metrics.jsonl") for run in (resumed, whole))
    ]
    assert steps[0] == steps[1] and len(steps[0]) == 6


def test_30_merge_never_overwrites(lora_run, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(lora_run / "adapter", adapter)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with pytest.raises(UserError, match="never overwrites"):
        merge(adapter, adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_31_evaluation_generates_and_keeps_no_logits(tiny_model, speech, tmp_path, monkeypatch):
    import gc

    from whisper_peft.training import scorer as room
    from whisper_peft.training.trainer import SpeechTrainer

    def never(*arguments, **options):
        raise AssertionError("the Trainer's own loop collects logits")

    for name in ("evaluation_loop", "prediction_loop", "prediction_step"):
        monkeypatch.setattr(SpeechTrainer, name, never, raising=False)
    kept, real = [], room.figures

    def look(dataset, transcripts):
        """Collect the tensors as wide as the vocabulary that are alive after an evaluation."""
        gc.collect()
        alive = [entry for entry in gc.get_objects() if type(entry) is torch.Tensor and entry.ndim == 3]
        kept.extend(tuple(entry.shape) for entry in alive if entry.shape[-1] == 531)
        return real(dataset, transcripts)

    monkeypatch.setattr(room, "figures", look)
    run = train(tiny_recipe(tiny_model, speech, **{**QUICK, "evaluate.max_clips": 4}), output=tmp_path / "run").run
    assert not kept
    evaluations = [entry for entry in runs.read_jsonl(run / "metrics.jsonl") if "eval_wer" in entry]
    assert evaluations and "eval_loss" in evaluations[0]


def test_32_an_8_bit_base_generates_in_every_precision(tiny_model, speech, tmp_path):
    # With and without autocast, the first convolution and its input have the same type.
    for precision in ("fp32", "bf16"):
        changes = {**QUICK, "train.quantize": "8bit", "train.precision": precision}
        run = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / precision).run
        for quantize in ("8bit", "4bit", "none"):
            assert evaluate(run, speech / "test", quantize=quantize, max_clips=2).clips == 2


def test_33_training_never_uses_data_parallel(tiny_model, speech, tmp_path, monkeypatch):
    from whisper_peft.training.trainer import OneDeviceArguments

    parent = OneDeviceArguments.__mro__[2]
    assert "n_gpu" in vars(parent)
    monkeypatch.setattr(parent, "n_gpu", property(lambda self: 4))
    wrapped = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            wrapped.append((args.n_gpu, type(model).__name__))

    train(
        tiny_recipe(tiny_model, speech, **{**QUICK, "train.mode": "full"}), output=tmp_path / "run", callbacks=[Look()]
    )
    assert wrapped == [(1, "WhisperForConditionalGeneration")] * 2


def test_34_a_run_predicts_its_memory_and_survives_running_out_of_it(tiny_model, speech, tmp_path, monkeypatch):
    from whisper_peft.training.trainer import SpeechTrainer

    told = whisper_peft.plan(changes={"model.name": "openai/whisper-large-v3"}, gpu_memory="8GB")
    assert told.memory.peak > 0 and told.clips_at_once >= 1 and (told.fits or told.remedy)
    events, real = [], SpeechTrainer.compute_loss

    def wrong(self, model, inputs, **options):
        if len(inputs["labels"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, inputs, **options)

    monkeypatch.setattr(SpeechTrainer, "compute_loss", wrong)
    train(tiny_recipe(tiny_model, speech, **QUICK), output=tmp_path / "run", say=events.append)
    first = next(i for i, line in enumerate(events) if "GB predicted" in line)
    assert first < next(i for i, line in enumerate(events) if "Out of memory: the step is made again" in line)
    assert runs.read_json(tmp_path / "run" / "run.json")["steps"] == 2


def test_35_the_oldest_versions_that_we_allow_are_tested():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)[1]
    bounds = dict(re.findall(r'"([\w-]+)>=([\w.]+)"', dependencies))
    assert {"torch", "transformers", "peft", "datasets", "accelerate", "evaluate", "jiwer"} <= bounds.keys()
    # Each dependency has a lower bound, and none has an upper one.
    assert len(bounds) == dependencies.count('"') // 2
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "tests" / "oldest.txt").read_text(), re.M))

    def numbers(version: str) -> list[int]:
        parts = [int(part) for part in re.findall(r"\d+", version)]
        return parts + [0] * (5 - len(parts))

    for name, bound in bounds.items():
        assert numbers(pinned[name]) == numbers(bound), name
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install -q -r tests/oldest.txt" in ci and 'pip install -q -e ".[test]"' in ci
    # The extra augment is tested alone because it holds soxr below its newest version.
    assert 'pip install -q -e ".[test,augment]"' in ci
