"""A few steps with the real checkpoint and real recordings; the tests need the folder ../shared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from whisper_peft import (
    Recipe,
    SpeechDataset,
    evaluate,
    load_audio,
    load_preparation,
    load_source,
    merge,
    override,
    runs,
    train,
)


@pytest.fixture(scope="module")
def model(shared) -> Path:
    return shared / "models" / "whisper-base"


@pytest.fixture(scope="module")
def few(shared, tmp_path_factory) -> Path:
    """Write a manifest of the 8 shortest of the first 40 Hindi training clips."""
    rows = load_source(str(shared / "data" / "hindi_tts" / "train"))[:40]
    rows.sort(key=lambda row: len(row.text))
    manifest = tmp_path_factory.mktemp("few") / "few.jsonl"
    lines = [json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False) for row in rows[:8]]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def short(manifest: Path, clips: int) -> Path:
    """Write the first clips of a manifest to a manifest of their own."""
    path = manifest.with_name(f"{clips}.jsonl")
    path.write_text("".join(manifest.read_text(encoding="utf-8").splitlines(keepends=True)[:clips]), encoding="utf-8")
    return path


def run_of(model: Path, few: Path, folder: Path, mode: str) -> Path:
    recipe = override(
        Recipe(),
        {
            "model.name": str(model),
            "model.language": "hindi",
            "data.train": [str(few)],
            "data.eval": str(short(few, 1)),
            "train.mode": mode,
            "train.steps": 2,
            "train.batch_size": 2,
            "train.workers": 0,
            "train.logging_steps": 1,
            "evaluate.compare_clips": 0,
            "evaluate.every_steps": 2,
            "lora.rank": 8,
            "train.warmup_steps": 0,
        },
    )
    return train(recipe, output=folder / mode).run


@pytest.fixture(scope="module")
def lora(model, few, tmp_path_factory) -> Path:
    return run_of(model, few, tmp_path_factory.mktemp("real"), "lora")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lora_and_its_merge_on_the_real_base(dtype, lora, few, tmp_path):
    losses = [line["loss"] for line in runs.read_jsonl(lora / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses) and losses[1] < losses[0] + 1
    check = short(few, 2)
    report = merge(lora, tmp_path / "merged", dtype=dtype, check=str(check))
    assert report.passed and report.clips == 2 and report.logit_gap <= report.logit_limit
    if dtype == "float32":
        assert report.transcripts_differing == 0
        heard = evaluate(lora, check, output=tmp_path / "report")
        assert math.isfinite(heard.token_loss) and heard.max_new_tokens == 444
        ours = [line["prediction"] for line in runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")]

        from transformers import pipeline

        recogniser = pipeline("automatic-speech-recognition", model=str(tmp_path / "merged"), device="cpu")
        files = [row.audio for row in load_source(str(check))]
        theirs = [
            recogniser(
                {"raw": load_audio(file), "sampling_rate": 16000},
                generate_kwargs={"max_new_tokens": 100, "num_beams": 1},
            )
            for file in files
        ]
        assert [line["text"].strip()[:40] for line in theirs] == [text[:40] for text in ours]


@pytest.mark.slow
def test_full_training_of_the_real_base_gives_a_model_that_transformers_loads(model, few, tmp_path):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    run = run_of(model, few, tmp_path, "full")
    losses = [line["loss"] for line in runs.read_jsonl(run / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    loaded = WhisperForConditionalGeneration.from_pretrained(run / "model")
    assert WhisperProcessor.from_pretrained(run / "model").tokenizer.vocab_size > 50_000
    assert loaded.generation_config.language == "hi" and len(loaded.generation_config.alignment_heads) == 8
    assert len(loaded.generation_config.lang_to_id) == 99


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_and_merges(quantize, model, few, tmp_path):
    """A kill -9 in the third of four steps does not change the adapter, although dropout and workers are on."""
    from test_resume import At, child, run_child

    recipe = override(
        Recipe(),
        {
            "model.name": str(model),
            "model.language": "hindi",
            "data.train": [str(short(few, 4))],
            "data.eval": str(short(few, 1)),
            "train.steps": 4,
            "train.batch_size": 2,
            "train.workers": 2,
            "evaluate.compare_clips": 0,
            "evaluate.every_steps": 2,
            "lora.rank": 8,
            "train.precision": "fp32",
            "train.quantize": quantize,
        },
    )
    whole = train(recipe, output=tmp_path / "whole").model
    assert run_child(child, At(3), {"recipe": recipe, "output": tmp_path / "killed"}) == -9
    gone_on = train(resume=tmp_path / "killed").model
    name = "adapter_model.safetensors"
    assert (gone_on / name).read_bytes() == (whole / name).read_bytes()
    # test_lora_and_its_merge_on_the_real_base tests the merge of an unquantised base.
    if quantize:
        report = merge(tmp_path / "killed", tmp_path / "merged", check=str(short(few, 2)))
        assert report.passed and report.logit_gap <= report.logit_limit
        assert report.quantized.base == quantize and report.quantized.logit_gap > report.logit_gap
        as_trained = evaluate(tmp_path / "killed", short(few, 2)).token_loss
        merged = evaluate(tmp_path / "merged", short(few, 2)).token_loss
        assert merged != as_trained == pytest.approx(merged, abs=0.3)


@pytest.mark.slow
def test_a_condensed_window_hardly_changes_the_token_loss_on_real_speech(model, shared):
    """The token loss of the untouched base is near that on 30 s; on a tight window it is not."""
    from whisper_peft import condense_silence, load_base, transcribe_rows

    dataset = SpeechDataset(
        load_source(str(shared / "data" / "hindi_tts" / "validation"))[:16], load_preparation(str(model)), language="hi"
    )
    whisper = load_base(str(model)).eval()

    def loss(window: str, slack_s: float) -> float:
        condense_silence(whisper, window)
        transcripts = transcribe_rows(whisper, dataset, range(16), slack_s=slack_s, max_new_tokens=0).transcripts
        return sum(transcript.loss_sum for transcript in transcripts) / sum(
            transcript.loss_tokens for transcript in transcripts
        )

    whole = loss("full", math.inf)
    assert abs(loss("condensed", 0.2) - whole) < 0.05 < loss("tight", 0.5) - whole


def test_recordings_of_browsers_decode(shared):
    rows = load_source(str(shared / "data" / "webm"))
    assert len(rows) == 8
    for row in rows:
        wave = load_audio(row.audio)
        assert 1.0 < len(wave) / 16000 < 30.0 and 0.001 < abs(wave).max() <= 1.5
        # The text has letters of Malayalam.
        assert any("\u0d00" <= letter < "\u0d80" for letter in row.text)


@pytest.mark.parametrize(
    ("source", "language", "first", "last"),
    [
        ("malayalam/train", "ml", "\u0d00", "\u0d7f"),
        ("common_voice_te:other", "te", "\u0c00", "\u0c7f"),
        ("hindi_tts/test", "hi", "\u0900", "\u097f"),
    ],
)
def test_clips_of_three_languages_are_encoded_with_their_texts(source, language, first, last, shared, model):
    rows = load_source(str(shared / "data" / source))
    assert len(rows) >= 8
    preparation = load_preparation(str(model))
    dataset = SpeechDataset(rows, preparation, language=language)
    for number in range(3):
        example = dataset[number]
        assert example.input_features.shape[0] == 80 and 0 < example.seconds <= 30
        # The floor lies between that of silence and that of clips at full level.
        assert -1.5 <= example.floor < -0.4
        assert example.decoder_input_ids[:4].tolist() == preparation.prefix(language)
        text = preparation.decode([token for token in example.labels if token != preparation.eot])
        assert text.strip() == dataset.text(number)
        assert any(first <= letter <= last for letter in text)


def last_times(source: Path, rows: list) -> dict[int, float | None]:
    """Return the end time of the text of each clip, by the generation of transformers on 30 s; None is no time.

    A clip whose output repeats itself up to the limit is not among them.
    """
    from whisper_peft import SpeechCollator, load_model

    loaded, preparation, _ = load_model(source)
    whisper = loaded.merge_and_unload() if hasattr(loaded, "merge_and_unload") else loaded
    dataset = SpeechDataset(rows, preparation, language="hi")
    batch = SpeechCollator(preparation)([dataset[number] for number in range(len(rows))])
    tokens = whisper.generate(
        input_features=batch["input_features"],
        language="hi",
        task="transcribe",
        return_timestamps=True,
        max_new_tokens=100,
        force_unique_generate_call=True,
    )
    ended = {}
    for number, ids in zip(batch["rows"], tokens.tolist(), strict=True):
        if preparation.eot in ids:
            last = ids[ids.index(preparation.eot) - 1]
            ended[number] = 0.02 * (last - preparation.first_timestamp) if last >= preparation.first_timestamp else None
    return ended


@pytest.mark.slow
def test_times_survive_training_with_a_share_of_timed_clips(model, shared, tmp_path):
    """Pitfall 28: the real base says when a text ends, before and after 16 LoRA steps."""
    clips = load_source(str(shared / "data" / "hindi_tts" / "train"))[:200]
    clips = sorted(clips, key=SpeechDataset.seconds_of)[:64]
    heard = load_source(str(shared / "data" / "hindi_tts" / "test"))[:8]
    lines = [json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False) for row in clips]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = override(
        Recipe(),
        {
            "model.name": str(model),
            "model.language": "hindi",
            "data.train": [str(tmp_path / "train.jsonl")],
            "data.eval": str(shared / "data" / "hindi_tts" / "test"),
            "features.timestamps": 0.5,
            "features.window": "tight",
            "train.steps": 16,
            "train.batch_size": 4,
            "train.workers": 0,
            "train.precision": "fp32",
            "evaluate.compare_clips": 0,
            "evaluate.every_steps": 16,
            "evaluate.max_clips": 1,
            "lora.rank": 8,
        },
    )
    run = train(recipe, output=tmp_path / "run").run
    for source in (model, run):
        ends = last_times(source, heard)
        assert len(ends) >= 4 and None not in ends.values(), (source, ends)
        errors = sorted(abs(end - SpeechDataset.seconds_of(heard[number])) for number, end in ends.items())
        assert errors[len(errors) // 2] < 1.0, (source, errors)
