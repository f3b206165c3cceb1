"""Exports: what is written, the proof in the runtime, exports as MODEL, and exports on the Hub."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_speech, make_tiny_model, make_wave
from openai_vocabulary import save_checkpoint

import whisper_peft
from whisper_peft import UserError
from whisper_peft.delivery.card import CardWords
from whisper_peft.delivery.exporting import export as export_module
from whisper_peft.delivery.exporting.proof import load_recordings
from whisper_peft.delivery.exporting.report import ExportReport, compare, find_failure
from whisper_peft.delivery.publishing import pack_export
from whisper_peft.evaluation import exported
from whisper_peft.runtimes.exports import find_export
from whisper_peft.runtimes.formats import EXPORT_FORMATS
from whisper_peft.runtimes.opening import open_runtime
from whisper_peft.runtimes.runtime import Request, RuntimeOutput, RuntimeSegment, RuntimeWord


class Parrot:
    """A runtime that always says the same, and remembers what it was asked."""

    def __init__(self, *texts: str):
        self.texts = texts
        self.requests: list[Request] = []

    def transcribe(self, wave: np.ndarray, request: Request) -> RuntimeOutput:
        self.requests.append(request)
        length_s = len(wave) / 16000
        segments = []
        for number, text in enumerate(self.texts):
            start_s = number * length_s / len(self.texts)
            end_s = (number + 1) * length_s / len(self.texts)
            words = (RuntimeWord(text, start_s, end_s),) if request.word_times else ()
            segments.append(RuntimeSegment(text, start_s, end_s, words))
        return RuntimeOutput(tuple(segments), request.language or "ta")

    def encode(self, wave: np.ndarray) -> None:
        return None


@pytest.fixture
def without_runtime(monkeypatch):
    """Pretend that faster-whisper is not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, *arguments):
        return None if name == "faster_whisper" else find_spec(name, *arguments)

    monkeypatch.setattr("importlib.util.find_spec", find)


def write_unproved(model: Path, output: Path, monkeypatch, **options) -> Path:
    """Export a model for which a proof says nothing, because its weights are random."""
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, *rest: None if "whisper" in name else object())
        whisper_peft.export(model, output, unproved=True, **options)
    return output


@pytest.fixture(scope="module")
def export_folder(tmp_path_factory) -> Path:
    """A tiny model in CTranslate2, without a proof."""
    work = tmp_path_factory.mktemp("export")
    patch = pytest.MonkeyPatch()
    model = make_tiny_model(work / "model", window_s=30, max_target_positions=448)
    page = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**page, "language": "<|hi|>"}))
    folder = write_unproved(model, work / "export", patch, format="ctranslate2", quantization="float32")
    return folder


def report_of(comparison) -> ExportReport:
    return ExportReport("m", "ggml", "f16", "whisper.cpp", "1", 1, True, "clips", "hi", None, (comparison,))


def compared(references: list[str], transformers: list[str], runtime: list[str]):
    return compare(
        "clips",
        references,
        transformers,
        runtime,
        sound_seconds=10.0,
        transformers_seconds=2.0,
        runtime_seconds=1.0,
    )


SENTENCES = [f"sentence number {number} of a test" for number in range(16)]


def test_equal_outputs_pass():
    comparison = compared(SENTENCES, SENTENCES, [text.upper() + " " for text in SENTENCES])
    assert comparison.differing == 0
    assert comparison.runtime.real_time_factor == 0.1
    assert find_failure(report_of(compared(SENTENCES, SENTENCES, SENTENCES)), quantized=False) is None


def test_a_worse_error_rate_fails_if_its_interval_lies_above_zero():
    worse = [text.replace("sentence", "sentense") for text in SENTENCES]
    comparison = compared(SENTENCES, SENTENCES, worse)
    assert comparison.cer_difference[0] > 0
    assert "the CER of clips is 3." in find_failure(report_of(comparison), quantized=False)
    # A quantised export may lose up to five points.
    assert find_failure(report_of(comparison), quantized=True) is None
    much_worse = [text.replace("sentence", "x") for text in SENTENCES]
    assert "at most 5 points" in find_failure(report_of(compared(SENTENCES, SENTENCES, much_worse)), quantized=True)


def test_the_error_rate_of_a_few_outputs_fails_only_above_ten_points():
    few = SENTENCES[:4]
    comparison = compared(few, few, [text.replace("sentence", "sentense") for text in few])
    assert comparison.cer_difference[0] > 0
    assert find_failure(report_of(comparison), quantized=False) is None
    comparison = compared(few, few, [text.replace("sentence", "sen") for text in few])
    assert comparison.new_faults == []
    assert "at most 10 points" in find_failure(report_of(comparison), quantized=False)


def test_one_worse_clip_does_not_fail_because_the_interval_reaches_zero():
    worse = [*SENTENCES[:-1], SENTENCES[-1].replace("sentence", "s")]
    comparison = compared(SENTENCES, SENTENCES, worse)
    assert comparison.cer_gap > 0.01 and comparison.cer_difference[0] == 0
    assert find_failure(report_of(comparison), quantized=False) is None


@pytest.mark.parametrize(
    ("text", "fault", "words"),
    [
        ("", "empty", "is empty"),
        ("ha na " * 20, "looping", "loops"),
        ("sentence", "ended_early", "ends early"),
    ],
)
def test_a_new_fault_of_one_output_fails(text, fault, words):
    comparison = compared(SENTENCES, SENTENCES, [*SENTENCES[:-1], text])
    (new,) = comparison.new_faults
    assert (new["number"], new["fault"], new["runtime"]) == (15, fault, text)
    assert f"1 of 16 clips {words} in whisper.cpp and not in transformers" in find_failure(
        report_of(comparison), quantized=False
    )
    # The same fault in transformers is no fault of the export.
    assert compared(SENTENCES, [*SENTENCES[:-1], text], [*SENTENCES[:-1], text]).new_faults == []


N_TOKENS = 6


def first_tokens_in_transformers(model, preparation, prompt: list[int], wave: np.ndarray) -> list[int]:
    """Decode greedily, token by token, without any rule about tokens."""
    import torch

    features = torch.from_numpy(preparation.encode_stretch(wave, preparation.window_frames))[None]
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(N_TOKENS):
            logits = model(input_features=features, decoder_input_ids=torch.tensor([tokens])).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def first_tokens_in_ctranslate2(whisper, prompt: list[int], preparation, wave: np.ndarray) -> list[int]:
    from faster_whisper.transcribe import get_ctranslate2_storage

    features = get_ctranslate2_storage(preparation.encode_stretch(wave, preparation.window_frames)[None])
    (result,) = whisper.model.generate(
        features,
        [prompt],
        beam_size=1,
        max_length=len(prompt) + 2 * N_TOKENS,
        suppress_blank=False,
        suppress_tokens=[],
        max_initial_timestamp_index=1500,
    )
    return result.sequences_ids[0][:N_TOKENS]


@pytest.mark.parametrize("kind", ["base", "base.en", "large-v3"])
def test_ctranslate2_hears_what_transformers_hears(kind, tmp_path, monkeypatch):
    model = save_checkpoint(kind, tmp_path / "model")
    folder = write_unproved(model, tmp_path / "out", monkeypatch, format="ctranslate2", quantization="float32")
    export = find_export(folder)
    assert (export.multilingual, export.quantization, export.path) == (kind != "base.en", "float32", folder)
    loaded, preparation, _ = whisper_peft.load_model(model)
    runtime = open_runtime(export)
    gap = export_module.measure_encoder_gap(loaded, preparation, runtime, make_wave(2.0))
    assert gap < 1e-3
    page = json.loads((folder / "config.json").read_text())
    assert [list(pair) for pair in page["alignment_heads"]] == export.alignment_heads
    if kind != "base.en":
        assert len(page["lang_ids"]) == {"base": 99, "large-v3": 100}[kind]
    prompt = preparation.prefix(None if kind == "base.en" else "hi")
    expected = first_tokens_in_transformers(loaded, preparation, prompt, make_wave(2.0))
    assert first_tokens_in_ctranslate2(runtime.whisper, prompt, preparation, make_wave(2.0)) == expected


def test_an_export_says_what_it_is_and_where_it_came_from(export_folder):
    page = json.loads((export_folder / "export.json").read_text())
    assert page["format"] == "ctranslate2" and page["runtime"] == "faster-whisper" and page["language"] == "hi"
    report = json.loads((export_folder / "export_report.json").read_text())
    assert report["proved"] is False and report["runtime_version"] is None and report["comparisons"] == []
    assert {path.name for path in export_folder.iterdir()} >= {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "processor",
    }


def test_an_export_is_proved_and_its_report_has_both_sides(tiny_model_30s, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "open_runtime", lambda export: Parrot("आज"))
    monkeypatch.setattr(export_module, "find_failure", lambda report, quantized: None)
    said: list[str] = []
    done: list[int] = []
    report = whisper_peft.export(
        tiny_model_30s,
        tmp_path / "out",
        format="ctranslate2",
        check=speech / "test",
        language="hi",
        say=said.append,
        progress=lambda outputs, total: done.append(total),
    )
    clips, *recordings = report.comparisons
    assert report.proved and clips.number == 4 and clips.sound == "clips"
    assert report.checked_on == "4 clips and 1 joined recordings of test (--check)" and report.language == "hi"
    assert [recording.sound for recording in recordings] == ["recordings"]
    assert set(done) == {len(done)}
    assert "Proving in faster-whisper on 4 clips and 1 joined recordings of test (--check)." in said
    assert json.loads((tmp_path / "out" / "export_report.json").read_text()) == json.loads(json.dumps(report.as_dict()))


def test_recordings_are_filled_with_clips_of_one_speaker_as_long_as_there_are_enough(tiny_model_30s, tmp_path):
    make_speech(tmp_path / "speech", 24, seconds=(2.0, 4.0))
    rows = whisper_peft.load_source(str(tmp_path / "speech"))
    voices = ["a"] * 10 + ["b"] * 10 + [f"voice {number}" for number in range(4)]
    rows = [dataclasses.replace(row, speaker=voice) for row, voice in zip(rows, voices, strict=True)]
    dataset = whisper_peft.SpeechDataset(rows, whisper_peft.load_preparation(tiny_model_30s), language="hi")
    recordings = load_recordings(dataset, 6)
    lengths_s = [len(recording.wave) / 16000 for recording in recordings]
    assert len(recordings) >= 3 and max(lengths_s) <= 25 and all(length_s > 15 for length_s in lengths_s[:2])
    numbers = [[int(text) for text in recording.text.split() if text.isdigit()][1::2] for recording in recordings]
    assert {voices[number] for number in numbers[0]} == {"a"} and {voices[number] for number in numbers[1]} == {"b"}
    spoken = [number for of_recording in numbers for number in of_recording]
    assert len(spoken) == len(set(spoken)) >= 20


def test_a_failed_proof_leaves_nothing_behind(tiny_model_30s, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "open_runtime", lambda export: Parrot(""))
    with pytest.raises(UserError, match=r"out: not written: 4 of 4 clips are empty in faster-whisper"):
        whisper_peft.export(
            tiny_model_30s, tmp_path / "out", format="ctranslate2", check=speech / "test", language="hi"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tiny_model_30s, speech, tmp_path, monkeypatch):
    from whisper_peft.delivery.exporting.ctranslate2 import CTranslate2Writer

    def fill(self, source, folder, quantization):
        (folder / "model.bin").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CTranslate2Writer, "write", fill)
    with pytest.raises(OSError, match="No space left"):
        whisper_peft.export(tiny_model_30s, tmp_path / "out", format="ctranslate2", check=speech / "test")
    assert list(tmp_path.iterdir()) == []


def test_wrong_wishes_get_one_line_each(tiny_model_30s, tmp_path, without_runtime, export_folder):
    wishes = {
        "--quantization int7: ctranslate2 has float16, ": {"format": "ctranslate2", "quantization": "int7"},
        "--clips 4: at least 5 clips make a proof": {"format": "ctranslate2", "clips": 4},
        "--format gguf: expected one of ctranslate2, ggml": {"format": "gguf"},
        "faster-whisper, which runs it, is not installed, so the export cannot be proved": {"format": "ctranslate2"},
    }
    for message, options in wishes.items():
        with pytest.raises(UserError, match=message):
            whisper_peft.export(tiny_model_30s, tmp_path / "out", **options)
    with pytest.raises(UserError, match="exists already; export never overwrites"):
        whisper_peft.export(tiny_model_30s, export_folder, format="ctranslate2")
    with pytest.raises(UserError, match="exported already"):
        whisper_peft.export(export_folder, tmp_path / "out", format="ctranslate2", unproved=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["tokenizer", "weights", "other"])
def test_a_damaged_model_is_refused_and_nothing_is_written(damage, tiny_model_30s, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_30s, model)
    if damage == "tokenizer":
        for name in ("tokenizer.json", "vocab.json"):
            (model / name).unlink(missing_ok=True)
    elif damage == "weights":
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model"):
        whisper_peft.export(model, tmp_path / "out", format="ctranslate2")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_format_has_an_extra_of_its_own():
    needed = importlib.metadata.requires("whisper-peft")
    for format in EXPORT_FORMATS.values():
        of_extra = [line for line in needed if f'extra == "{format.extra}"' in line or f"'{format.extra}'" in line]
        assert any(format.module.split(".")[0] in line.replace("-", "_") for line in of_extra), of_extra


@pytest.fixture
def parrot(monkeypatch) -> Parrot:
    """The runtime of every export in this test."""
    runtime = Parrot(" एक", " दो")
    monkeypatch.setattr(exported, "open_runtime", lambda export: runtime)
    return runtime


def test_transcribe_runs_an_export_in_its_runtime(export_folder, tmp_path, parrot):
    import soundfile

    soundfile.write(tmp_path / "a.wav", make_wave(2.0), 16000)
    (transcript,) = whisper_peft.transcribe(export_folder, [tmp_path / "a.wav"], prompt=" Asha ")
    assert transcript == {
        "audio": str(tmp_path / "a.wav"),
        "text": "एक दो",
        "reached_limit": False,
        "language": "hi",
    }
    assert parrot.requests == [Request("hi", "transcribe", "Asha")]
    (timed,) = whisper_peft.transcribe(
        export_folder, [tmp_path / "a.wav"], word_times=True, beams=3, language="auto", output=tmp_path / "texts"
    )
    assert timed["segments"][1] == {
        "start": 1.0,
        "end": 2.0,
        "text": "दो",
        "words": [{"word": "दो", "start": 1.0, "end": 2.0}],
    }
    assert timed["language"] == "ta"
    assert (tmp_path / "texts" / "a.txt").read_text(encoding="utf-8").split() == ["एक", "दो"]
    assert parrot.requests[1] == Request(None, "transcribe", None, True, 3, times=True)


def test_options_that_only_transformers_has_are_refused_for_an_export(export_folder, speech, tmp_path, parrot):
    import soundfile

    soundfile.write(tmp_path / "a.wav", make_wave(1.0), 16000)
    for name, value in {"chunked": True, "window": "tight", "precision": "bf16", "batch_size": 2}.items():
        with pytest.raises(
            UserError, match=f"--{name.replace('_', '-')}: export is an export that faster-whisper runs"
        ):
            whisper_peft.transcribe(export_folder, [tmp_path / "a.wav"], **{name: value})
    with pytest.raises(UserError, match="--max-new-tokens: export is an export"):
        whisper_peft.evaluate(export_folder, speech / "test", max_new_tokens=3)
    with pytest.raises(UserError, match="--language auto: an export is scored"):
        whisper_peft.evaluate(export_folder, speech / "test", language="auto")


def test_evaluate_scores_an_export_in_its_runtime(export_folder, tmp_path, parrot):
    make_speech(tmp_path / "speech", 3)
    result = whisper_peft.evaluate(export_folder, tmp_path / "speech", output=tmp_path / "report")
    assert result.clips == 3 and result.cer > 0 and result.token_loss is None
    assert result.runtime.startswith("faster-whisper (1.") and result.precision == "float32" and result.beams is None
    assert all(request == Request("hi") for request in parrot.requests)
    page = json.loads((tmp_path / "report" / "report.json").read_text())
    assert page["runtime"] == result.runtime
    lines = (tmp_path / "report" / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == ["एक दो"] * 3


def test_evaluate_takes_the_languages_of_the_rows_for_an_export_of_several_languages(export_folder, tmp_path, parrot):
    folder = tmp_path / "export"
    shutil.copytree(export_folder, folder)
    page = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**page, "language": None}))
    make_speech(tmp_path / "speech", 2)
    with pytest.raises(UserError, match="does not say which language"):
        whisper_peft.evaluate(folder, tmp_path / "speech")
    rows = [{"audio": str(tmp_path / "speech" / f"{n}.wav"), "text": "एक दो", "language": "ta"} for n in range(2)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    assert whisper_peft.evaluate(folder, tmp_path / "rows.jsonl").cer == 0
    assert parrot.requests == [Request("ta"), Request("ta")]


def test_evaluate_cleans_references_of_an_export_as_in_its_run(export_folder, tmp_path, parrot):
    folder = tmp_path / "export"
    shutil.copytree(export_folder, folder)
    (folder / "whisper_peft.json").write_text(json.dumps({"recipe": {"data": {"text": {"remove_punctuation": True}}}}))
    make_speech(tmp_path / "speech", 1)
    (tmp_path / "speech" / "metadata.csv").write_text("file_name,transcription\n0.wav,एक! दो?\n", encoding="utf-8")
    assert whisper_peft.evaluate(folder, tmp_path / "speech").cer == 0


def test_a_damaged_export_gets_one_line(export_folder, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(export_folder, folder)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer[:1000])
    with pytest.raises(UserError, match="faster-whisper does not load it"):
        open_runtime(find_export(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: gone"):
        open_runtime(find_export(folder))
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "model.bin").write_bytes(b"none")
    with pytest.raises(UserError, match="faster-whisper does not load it"):
        open_runtime(find_export(folder))
    page = json.loads((folder / "export.json").read_text())
    strange = [{"format": "other"}, {"language": 5}, {"weights": "a\0b"}, {"alignment_heads": [[1]]}, {"task": "sing"}]
    for change in strange:
        (folder / "export.json").write_text(json.dumps({**page, **change}))
        with pytest.raises(UserError, match="damaged; export the model again"):
            find_export(folder)
    (folder / "export.json").write_text(json.dumps({**page, "weights": "../../model.bin"}))
    with pytest.raises(UserError, match="gone; export the model again"):
        find_export(folder)


def test_an_export_is_published_in_the_layout_of_its_loader_with_the_proof(export_folder, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(export_folder, folder)
    comparison = compared(SENTENCES, SENTENCES, SENTENCES)
    report = json.loads((folder / "export_report.json").read_text())
    report |= report_of(comparison).as_dict() | {"runtime": "faster-whisper", "runtime_version": "1.2.1"}
    report["comparisons"][0]["texts"] = [{"reference": "a secret"}]
    (folder / "export_report.json").write_text(json.dumps(report))
    (folder / "eval").mkdir()
    (folder / "eval" / "transcripts.jsonl").write_text("a secret")
    (folder / "notes.txt").write_text("a secret")
    published = whisper_peft.publish(folder, "me/hindi-ct2", dry_run=True, base="openai/whisper-tiny")
    names = {file.name for file in published.files}
    assert published.kind == "export"
    assert not names & {"notes.txt", "eval/transcripts.jsonl", "whisper_peft.json"}
    package = pack_export(find_export(folder), "me/hindi-ct2", CardWords(), base="openai/whisper-tiny")
    (public,) = (file.content for file in package.files if file.name == "export_report.json")
    assert b"secret" not in public and b"cer_difference" in public
    assert {"model.bin", "config.json", "tokenizer.json", "export.json", "README.md"} <= names
    assert 'WhisperModel("me/hindi-ct2").transcribe("recording.wav", language="hi")' in published.card
    assert "library_name: ctranslate2" in published.card and "| 16 clips | faster-whisper | 0.0% | 0.0% |" in (
        published.card
    )


def test_the_shipped_clips_prove_only_a_model_of_their_language(tiny_model_30s, tmp_path, monkeypatch):
    written: list[Path] = []
    monkeypatch.setattr(
        "whisper_peft.delivery.exporting.ctranslate2.CTranslate2Writer.write",
        lambda self, source, folder, quantization: written.append(folder),
    )
    with pytest.raises(UserError, match="not trained for Hindi alone; name clips"):
        whisper_peft.export(tiny_model_30s, tmp_path / "out", format="ctranslate2")
    assert not written and list(tmp_path.iterdir()) == []
