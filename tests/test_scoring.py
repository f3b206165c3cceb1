"""evaluate and transcribe: their figures equal hand-scored transcripts and do not depend on the batches."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import QUICKSTART, make_speech, make_wave

from whisper_peft import (
    SpeechDataset,
    UserError,
    evaluate,
    load_model,
    load_preparation,
    load_source,
    normalize,
    runs,
    transcribe,
    transcribe_rows,
)
from whisper_peft.evaluation.clip_transcripts import _batches
from whisper_peft.evaluation.generation import Loops


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Make five clips of different lengths, and two that cannot be used."""
    folder = make_speech(tmp_path_factory.mktemp("mixed") / "clips", 5, seconds=(0.3, 2.5), seed=7)
    soundfile.write(folder / "long.wav", make_wave(4.0), 16000)
    with (folder / "metadata.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("gone.wav", "पानी"), ("long.wav", "रात")])
    return folder


def distance(reference: list, prediction: list) -> int:
    """Return the Levenshtein distance of two lists."""
    row = list(range(len(prediction) + 1))
    for i, a in enumerate(reference, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(prediction, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def test_the_figures_equal_those_of_hand_scored_transcripts(lora_run, mixed, tmp_path):
    report = evaluate(lora_run, mixed, output=tmp_path / "report")
    clips = runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")
    assert report.clips == len(clips) == 5 and report.left_out == 2
    rows = load_source(str(mixed))
    assert [clip["audio"] for clip in clips] == [row.audio for row in rows[:5]]
    assert [clip["reference"] for clip in clips] == [row.text for row in rows[:5]]
    for suffix, prepare in (("", lambda text: text), ("_normalized", normalize)):
        for measure, split in (("wer", str.split), ("cer", list)):
            pairs = [(split(prepare(clip["reference"])), split(prepare(clip["prediction"]))) for clip in clips]
            errors = sum(distance(*pair) for pair in pairs)
            length = sum(len(reference) for reference, _ in pairs)
            name = measure + suffix
            assert getattr(report, name) == pytest.approx(errors / length), name
            kinds = [getattr(report, f"{name}_{kind}") for kind in ("substitutions", "deletions", "insertions")]
            assert sum(kinds) == errors and getattr(report, f"{name}_reference_length") == length
    for clip in clips:
        assert clip["prediction_normalized"] == normalize(clip["prediction"])
    low, high = report.wer_interval
    assert low <= report.wer <= high and report.normalizer and report.language == "hi"


def test_the_report_folder_holds_figures_transcripts_and_left_out_clips(lora_run, mixed, tmp_path):
    report = evaluate(lora_run, mixed, output=tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json",
        "transcripts.jsonl",
        "left_out.jsonl",
    }
    assert {**runs.read_json(tmp_path / "report" / "report.json"), "seconds": 0} == {
        **report.as_dict(),
        "seconds": 0,
        "wer_interval": list(report.wer_interval),
        "cer_interval": list(report.cer_interval),
    }
    left_out = runs.read_jsonl(tmp_path / "report" / "left_out.jsonl")
    assert [Path(clip["audio"]).name for clip in left_out] == ["gone.wav", "long.wav"]
    with pytest.raises(UserError, match="exists already"):
        evaluate(lora_run, mixed, output=tmp_path / "report")


def test_the_batch_size_does_not_change_the_transcripts(lora_run, mixed, tmp_path):
    reports, texts = [], []
    for size in (1, 2, 8):
        reports.append(evaluate(lora_run, mixed, output=tmp_path / str(size), batch_size=size))
        texts.append([clip["prediction"] for clip in runs.read_jsonl(tmp_path / str(size) / "transcripts.jsonl")])
    assert texts[0] == texts[1] == texts[2]
    for report in reports[1:]:
        assert report.wer == reports[0].wer and report.cer == reports[0].cer
        assert report.token_loss == pytest.approx(reports[0].token_loss, rel=1e-5)


def test_the_token_loss_equals_that_of_plain_transformers(full_run, speech):
    """Plain transformers gives the mean loss of each clip, which is weighted by the number of its tokens."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(full_run / "model").eval()
    processor = WhisperProcessor.from_pretrained(full_run / "model")
    processor.tokenizer.set_prefix_tokens(language="hindi", task="transcribe")
    total = tokens = 0
    for row in load_source(str(speech / "test")):
        wave, rate = soundfile.read(row.audio)
        features = processor.feature_extractor(wave, sampling_rate=rate, return_tensors="pt").input_features
        ids = processor.tokenizer(row.text).input_ids
        with torch.no_grad():
            loss = model(
                input_features=features, decoder_input_ids=torch.tensor([ids[:-1]]), labels=torch.tensor([ids[1:]])
            ).loss.item()
        total, tokens = total + loss * (len(ids) - 1), tokens + len(ids) - 1
    assert evaluate(full_run, speech / "test").token_loss == pytest.approx(total / tokens, abs=1e-4)


def test_outputs_that_reach_the_limit_are_counted(tiny_model, lora_run, mixed, tmp_path):
    short = evaluate(tiny_model, mixed, language="hi", max_new_tokens=2, output=tmp_path / "short")
    clips = runs.read_jsonl(tmp_path / "short" / "transcripts.jsonl")
    assert short.max_new_tokens == 2
    assert short.reached_limit == sum(clip["reached_limit"] for clip in clips) == 5
    full = evaluate(lora_run, mixed)
    # This is the limit of the model.
    assert full.max_new_tokens == 64 - 4


def test_loops_are_found_in_loops_and_not_in_speech():
    eot, prefix = 9999, [9000, 9001, 9002, 9003]
    speech = torch.randint(0, 9000, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    # Three times the same is not yet a loop.
    refrain = [*speech[:30], 5, 6, 7, 5, 6, 7, 5, 6, 7, *speech[30:]]
    rows = {
        "speech": [*prefix, *speech],
        "refrain": [*prefix, *refrain],
        "ended": [*prefix, 1, 2, *[eot] * 194],
        "one word": [*prefix, *speech[:50], *[5] * 150],
        "long loop": [*prefix, *speech[:40], *(speech[:30] * 6)],
    }
    loops = Loops(len(rows), eot=eot)
    ids = torch.tensor([tokens[:200] for tokens in rows.values()])
    first = {}
    for n_tokens in range(5, 201):
        for name, done in zip(rows, loops(ids[:, :n_tokens], None).tolist(), strict=True):
            if done:
                first.setdefault(name, n_tokens)
    assert set(first) == {"one word", "long loop"}
    assert 54 + 24 <= first["one word"] <= 54 + 28 and 44 + 120 <= first["long loop"] <= 44 + 124


def test_stopping_loops_changes_only_transcripts_that_loop(speech):
    model, preparation, _ = load_model(QUICKSTART / "model")
    dataset = SpeechDataset(load_source(str(QUICKSTART / "speech" / "test")), preparation, language="hi")

    def heard(**options) -> list[tuple]:
        transcripts = transcribe_rows(
            model, dataset, range(6), max_new_tokens=60, with_loss=False, **options
        ).transcripts
        return [(transcript.text, transcript.n_tokens, transcript.reached_limit) for transcript in transcripts]

    assert heard(stop_loops=True) == heard()
    word = preparation.tokenizer("क", add_special_tokens=False).input_ids[-1]
    # From here on, the model repeats one token.
    with torch.no_grad():
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.copy_(10 * model.proj_out.weight[word])
    assert {transcript[1:] for transcript in heard()} == {(60, True)}
    assert {n_tokens < 32 for _, n_tokens, _ in heard(stop_loops=True)} == {True}
    assert {reached_limit for _, _, reached_limit in heard(stop_loops=True)} == {True}


def test_a_batch_has_clips_of_like_length_in_one_language_within_the_budget(tiny_model, speech):
    preparation = load_preparation(str(tiny_model))
    rows = load_source(str(speech / "train"))
    rows = [dataclasses.replace(row, language=("hi", "mr")[number % 2]) for number, row in enumerate(rows)]
    dataset = SpeechDataset(rows, preparation)
    batches = _batches(dataset, range(len(rows)), 4, 0.5)
    assert sorted(pick.row for batch in batches for pick in batch) == list(range(len(rows)))
    for batch in batches:
        assert len({dataset.language_of(pick.row) for pick in batch}) == 1 and len(batch) <= 4
        seconds = [dataset.duration_s(pick.row) for pick in batch]
        assert seconds == sorted(seconds, reverse=True)
    # 240 s of audio are enough for all clips, so there is one batch for each language.
    assert len(_batches(dataset, range(len(rows)), "auto", 0.5)) == 2
    assert {pick.slack_s for batch in batches for pick in batch} == {0.5}


def test_generation_encodes_each_window_once_and_passes_no_features(lora_run, speech, monkeypatch):
    """`generate(input_features=...)` would encode a second time, and pad short windows with loud noise."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    frames, real = [], WhisperEncoder.forward

    def counted(self, input_features, *arguments, **options):
        frames.append(tuple(input_features.shape))
        return real(self, input_features, *arguments, **options)

    monkeypatch.setattr(WhisperEncoder, "forward", counted)
    evaluate(lora_run, speech / "test", batch_size=3)
    assert frames == [(3, 80, 300), (1, 80, 300)]


def test_a_stray_timestamp_does_not_make_generation_look_for_more_audio(tiny_model, speech):
    """transformers splits the output at timestamp tokens, and would continue behind the last one."""
    from whisper_peft import SpeechCollator, SpeechDataset, transcribe_rows

    model, preparation, _ = load_model(tiny_model)
    # This model says nothing but one timestamp token, again and again.
    with torch.no_grad():
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.copy_(model.proj_out.weight[preparation.first_timestamp + 5] * 1e3)
    dataset = SpeechDataset(load_source(str(speech / "test")), preparation, language="hi")
    assert SpeechCollator(preparation)([dataset[0]])["rows"] == [0]
    transcripts = transcribe_rows(model, dataset, range(4), max_new_tokens=7).transcripts
    assert [(transcript.text, transcript.n_tokens, transcript.reached_limit) for transcript in transcripts] == [
        ("", 7, True)
    ] * 4


def test_every_kind_of_model_is_evaluated(tiny_model, lora_run, full_run, speech, tmp_path):
    adapter = evaluate(lora_run / "adapter", speech / "test", max_clips=2)
    assert adapter.wer == evaluate(lora_run, speech / "test", max_clips=2).wer
    assert evaluate(full_run, speech / "test", max_clips=2).clips == 2
    with pytest.raises(UserError, match="--language: the model does not say"):
        evaluate(tiny_model, speech / "test")
    (tmp_path / "nothing.csv").write_text("file_name,transcription\nnothing.wav,पानी\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of the 1 clips to score can be used"):
        evaluate(lora_run, tmp_path / "nothing.csv")


def test_transcribe_gives_the_transcripts_of_evaluate_in_the_order_of_the_files(lora_run, full_run, speech, tmp_path):
    report = tmp_path / "report"
    evaluate(lora_run, speech / "test", output=report)
    said = [transcript["prediction"] for transcript in runs.read_jsonl(report / "transcripts.jsonl")]
    files = [row.audio for row in load_source(str(speech / "test"))]
    transcripts = transcribe(lora_run, reversed(files))
    assert [transcript["audio"] for transcript in transcripts] == files[::-1]
    assert [transcript["text"] for transcript in transcripts] == said[::-1]
    other_rate = tmp_path / "stereo.flac"
    soundfile.write(other_rate, make_wave(1.0)[:, None].repeat(2, axis=1), 44100)
    assert len(transcribe(full_run, [other_rate], language="hindi")) == 1


def test_transcribe_refuses_files_that_do_not_exist(lora_run, mixed):
    with pytest.raises(UserError, match="no such file") as error:
        transcribe(lora_run, [mixed / "0.wav", mixed / "gone.wav"])
    assert str(mixed / "gone.wav") in str(error.value)
