"""ONNX exports: what optimum writes, and what onnxruntime makes of it. Most tests need the extra onnx."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import make_speech, make_tiny_model, make_wave
from openai_vocabulary import KINDS, save_checkpoint

import whisper_peft
from whisper_peft import UserError, score
from whisper_peft.data.audio import load_audio
from whisper_peft.data.features import Preparation
from whisper_peft.delivery.exporting import export as export_module
from whisper_peft.delivery.exporting.onnx import OnnxWriter
from whisper_peft.delivery.exporting.proof import measure_encoder_gap
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.evaluation.longform import transcribe_wave
from whisper_peft.model.build import load_model
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.formats import EXPORT_FORMATS
from whisper_peft.runtimes.onnx_runtime import OnnxWhisper
from whisper_peft.runtimes.opening import open_runtime
from whisper_peft.runtimes.runtime import Request

FORMAT = EXPORT_FORMATS["onnx"]
COMPANIONS = {
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def without_optimum(monkeypatch):
    """Pretend that optimum is not installed, as Python says it of a module within a package that is missing."""
    find_spec = importlib.util.find_spec

    def find(name: str, *arguments):
        if name.startswith("optimum."):
            raise ModuleNotFoundError("No module named 'optimum'", name="optimum")
        return find_spec(name, *arguments)

    monkeypatch.setattr("importlib.util.find_spec", find)


def test_without_optimum_the_export_is_refused_with_the_commands_for_an_environment(without_optimum, tmp_path):
    assert FORMAT.runtime_version() is None
    with pytest.raises(UserError) as refusal:
        whisper_peft.export(tmp_path / "model", tmp_path / "out", format="onnx")
    line = str(refusal.value)
    assert "\n" not in line
    assert "optimum.onnxruntime is not installed" in line
    assert "it holds transformers below 4.58" in line
    assert line.endswith('python -m venv onnx-env; onnx-env/bin/pip install "whisper-peft[onnx]".')
    assert not (tmp_path / "out").exists()


def test_without_optimum_an_export_is_not_opened(without_optimum, tmp_path):
    made = Export(tmp_path, FORMAT, "float32", ".", None, "transcribe", True, None)
    with pytest.raises(UserError, match=r"onnxruntime, which runs this model, is not installed; it wants an environm"):
        open_runtime(made)


def test_other_formats_are_installed_beside_the_rest():
    assert EXPORT_FORMATS["ggml"].remedy == 'pip install "whisper-peft[ggml]" installs it'


def test_a_model_with_unequal_numbers_of_heads_is_refused(tmp_path):
    source = ModelToExport(make_tiny_model(tmp_path / "model", encoder_attention_heads=1), "my-model")
    with pytest.raises(UserError, match="my-model: 1 attention heads in the encoder and 2 in the decoder"):
        OnnxWriter().check(source)


@dataclass
class Exported:
    """A random model in transformers and, in float32, in onnxruntime."""

    folder: Path
    source: ModelToExport
    model: Any
    preparation: Preparation
    runtime: OnnxWhisper

    @property
    def language(self) -> str | None:
        return "ml" if self.preparation.multilingual else None


def write(source: ModelToExport, folder: Path, quantization: str = "float32") -> Export:
    """Write a model without a proof, which says nothing about random weights."""
    folder.mkdir()
    writer = OnnxWriter()
    writer.check(source)
    weights = writer.write(source, folder, quantization)
    multilingual = source.preparation.multilingual
    return Export(folder, FORMAT, quantization, weights, None, "transcribe", multilingual, source.alignment_heads)


@pytest.fixture(scope="module", params=["base", "base.en", "large-v3"])
def exported(request, tmp_path_factory) -> Exported:
    work = tmp_path_factory.mktemp(request.param)
    # Four layers of the decoder are enough, also of those with many.
    changes = {"encoder_attention_heads": KINDS[request.param].decoder_heads, "decoder_layers": 4}
    folder = save_checkpoint(request.param, work / "model", **changes)
    page = json.loads((folder / "generation_config.json").read_text())
    page["alignment_heads"] = [[2, 1], [3, 0]]
    (folder / "generation_config.json").write_text(json.dumps(page))
    source = ModelToExport(folder, request.param)
    made = write(source, work / "export")
    model, preparation, _ = load_model(folder)
    return Exported(made.folder, source, model, preparation, OnnxWhisper(made))


def log_mel_and_tokens(exported: Exported):
    """Return one window of sound, and the prefix with some text."""
    import torch

    preparation = exported.preparation
    wave = make_wave(3.0, seed=1)
    log_mel = torch.from_numpy(preparation.encode_stretch(wave, preparation.window_frames))[None]
    ids = [*preparation.prefix(exported.language), *preparation.words.encode(" one two three")]
    return log_mel, torch.tensor([ids])


@pytest.mark.onnx
def test_the_folder_has_the_layout_of_transformers_js(exported):
    names = {file.name for file in exported.folder.iterdir() if file.is_file()}
    assert names >= COMPANIONS
    assert not [name for name in names if "safetensors" in name]
    models = sorted(file.name for file in (exported.folder / "onnx").iterdir())
    assert models == ["decoder_model_merged.onnx", "encoder_model.onnx"]
    page = json.loads((exported.folder / "generation_config.json").read_text())
    assert page["alignment_heads"] == [[2, 1], [3, 0]]
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"}


@pytest.mark.onnx
def test_encoder_and_logits_are_those_of_transformers(exported):
    import torch

    gap = measure_encoder_gap(exported.model, exported.preparation, exported.runtime, make_wave(3.0, seed=1))
    assert gap is not None and gap < 1e-5
    log_mel, ids = log_mel_and_tokens(exported)
    with torch.no_grad():
        expected = exported.model(input_features=log_mel, decoder_input_ids=ids, output_attentions=False).logits
    # The second way through the decoder reads what the first has kept.
    whisper = exported.runtime.whisper
    first = whisper(input_features=log_mel, decoder_input_ids=ids[:, :-2])
    second = whisper(input_features=log_mel, decoder_input_ids=ids[:, -2:], past_key_values=first.past_key_values)
    logits = torch.cat([first.logits, second.logits], dim=1)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.onnx
def test_cross_attentions_are_those_of_transformers(exported):
    import torch

    log_mel, ids = log_mel_and_tokens(exported)
    exported.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = exported.model(input_features=log_mel, decoder_input_ids=ids, output_attentions=True)
    attentions = exported.runtime.whisper(input_features=log_mel, decoder_input_ids=ids).cross_attentions
    assert len(attentions) == 4
    for attention, other in zip(attentions, expected.cross_attentions, strict=True):
        torch.testing.assert_close(attention, other, atol=1e-5, rtol=0)


@pytest.mark.onnx
def test_a_short_recording_is_one_segment_with_the_text_of_transformers(exported):
    import torch

    wave = make_wave(2.0, seed=2)
    output = exported.runtime.transcribe(wave, Request(exported.language))
    log_mel = torch.from_numpy(exported.preparation.encode_stretch(wave, exported.preparation.window_frames))[None]
    options = {"language": "ml", "task": "transcribe"} if exported.preparation.multilingual else {}
    ids = exported.model.generate(input_features=log_mel, **options)[0].tolist()
    (segment,) = output.segments
    assert output.text == exported.preparation.decode(ids) != ""
    assert (segment.start_s, segment.end_s) == (0.0, 2.0)
    assert output.language == exported.language


@pytest.mark.onnx
def test_word_times_of_random_weights_are_in_order_and_spell_the_segments(exported):
    output = exported.runtime.transcribe(make_wave(2.0, seed=2), Request(exported.language, word_times=True))
    assert output.segments
    for segment in output.segments:
        assert "".join(word.text for word in segment.words) == segment.text
        assert all(word.start_s <= word.end_s for word in segment.words)


@pytest.mark.onnx
def test_word_times_without_alignment_heads_are_refused(exported):
    runtime = OnnxWhisper.__new__(OnnxWhisper)
    runtime.export = Export(exported.folder, FORMAT, "float32", ".", None, "transcribe", True, None)
    with pytest.raises(UserError, match="names no alignment_heads"):
        runtime.transcribe(make_wave(1.0), Request("ml", word_times=True))


@pytest.mark.onnx
def test_int8_is_smaller_and_close(exported, tmp_path):
    import torch

    made = write(exported.source, tmp_path / "int8", "int8")
    models = sorted(file.name for file in (made.folder / "onnx").iterdir())
    assert models == ["decoder_model_merged_quantized.onnx", "encoder_model_quantized.onnx"]
    whole = (exported.folder / "onnx" / "decoder_model_merged.onnx").stat().st_size
    assert (made.folder / "onnx" / models[0]).stat().st_size < 0.75 * whole
    log_mel, ids = log_mel_and_tokens(exported)
    expected = exported.runtime.whisper(input_features=log_mel, decoder_input_ids=ids).logits
    logits = OnnxWhisper(made).whisper(input_features=log_mel, decoder_input_ids=ids).logits
    correlation = torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1]
    assert 0.99 < correlation < 1 - 1e-7


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ModelToExport:
    """A random multilingual model with one layer in the decoder."""
    folder = tmp_path_factory.mktemp("small") / "model"
    save_checkpoint("base", folder, encoder_attention_heads=8, decoder_layers=1)
    page = json.loads((folder / "generation_config.json").read_text())
    del page["alignment_heads"]
    (folder / "generation_config.json").write_text(json.dumps(page))
    return ModelToExport(folder, "small")


@pytest.mark.onnx
@pytest.mark.parametrize(("quantization", "suffix"), [("float32", ""), ("int8", "_quantized")])
def test_weights_in_a_file_of_their_own_move_with_the_folder(small, tmp_path, monkeypatch, quantization, suffix):
    """Parts over 2 GB have such files; optimum writes them for small ones, too, if it is told to."""
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    made = write(small, tmp_path / "made", quantization)
    names = {f"{part}{suffix}.onnx" for part in ("decoder_model_merged", "encoder_model")}
    on_disk = {file.name for file in (made.folder / "onnx").iterdir()}
    assert on_disk == names | {f"{name}_data" for name in names}
    page = json.loads((made.folder / "config.json").read_text())
    dtype = {"float32": "fp32", "int8": "q8"}[quantization]
    assert page["transformers.js_config"] == {
        "dtype": dtype,
        "use_external_data_format": dict.fromkeys(sorted(names), 1),
    }
    moved = Path(shutil.move(made.folder, tmp_path / "moved"))
    runtime = OnnxWhisper(Export(moved, FORMAT, quantization, ".", None, "transcribe", True, None))
    model, preparation, _ = load_model(small.folder)
    gap = measure_encoder_gap(model, preparation, runtime, make_wave(2.0))
    assert gap is not None and gap < (1e-5 if quantization == "float32" else 0.2)


@pytest.mark.onnx
def test_a_damaged_export_gives_one_line(small, tmp_path):
    made = write(small, tmp_path / "made")
    path = made.folder / "onnx" / "encoder_model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="onnxruntime does not load it") as refusal:
        OnnxWhisper(made)
    assert "\n" not in str(refusal.value)


@pytest.mark.onnx
def test_export_from_end_to_end_with_the_proof(small, tmp_path, monkeypatch):
    """The proof runs in onnxruntime. Whether random weights pass is chance, so this test does not let it decide."""
    monkeypatch.setattr(export_module, "find_failure", lambda report, quantized: None)
    make_speech(tmp_path / "speech", 2, seed=5)
    options = {"format": "onnx", "check": tmp_path / "speech", "language": "ml"}
    report = whisper_peft.export(small.folder, tmp_path / "out", **options)
    assert report.proved and report.runtime == "onnxruntime"
    assert report.encoder_gap is not None and report.encoder_gap < 1e-5
    assert report.comparisons[0].differing == 0
    page = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (page["format"], page["quantization"], page["weights"]) == ("onnx", "float32", ".")
    assert {file.name for file in tmp_path.iterdir()} == {"speech", "out"}


@pytest.fixture(scope="module")
def base(shared) -> ModelToExport:
    """The real multilingual base."""
    return ModelToExport(shared / "models" / "whisper-base", "whisper-base")


@pytest.mark.onnx
def test_the_real_base_says_in_onnxruntime_what_it_says_in_transformers(base, shared, tmp_path):
    runtime = OnnxWhisper(write(base, tmp_path / "float32"))
    quantized = OnnxWhisper(write(base, tmp_path / "int8", "int8"))
    model, preparation, _ = load_model(base.folder)
    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    waves = [load_audio(story, start_s=start_s, end_s=end_s) for start_s, end_s in ((7.2, 15.2), (21.1, 30.8))]
    expected = [transcribe_wave(model, preparation, wave, language="en")["text"] for wave in waves]
    assert all("Wangari" in text or "seeds" in text or "village" in text for text in expected)
    assert [runtime.transcribe(wave, Request("en")).text for wave in waves] == expected
    assert score(expected, [quantized.transcribe(wave, Request("en")).text for wave in waves])["cer"] < 0.1
    assert runtime.transcribe(waves[0], Request(None)).language == "en"

    minute = load_audio(story, start_s=0.0, end_s=45.0)
    output = runtime.transcribe(minute, Request("en", word_times=True, prompt="Wangari Maathai, Mount Kenya."))
    words = [word for segment in output.segments for word in segment.words]
    starts_s = [word.start_s for word in words]
    assert 60 < len(words) < 160
    assert starts_s == sorted(starts_s)
    assert 35 < words[-1].end_s <= 45.5
    assert "".join(word.text for word in words).strip() == output.text
    assert runtime.transcribe(minute, Request("en")).segments[-1].end_s > 35
