"""Exports for mlx-whisper: it loads them, computes what transformers computes, and says it in our words."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from conftest import make_wave
from openai_vocabulary import KINDS, alignment_heads, openai_tokenizer
from spoken_exports import (
    HEARD_LANGUAGE,
    SPOKEN,
    compare_on_english,
    gap,
    make_check_source,
    save_speaking_checkpoint,
    transformers_outputs,
    write_export,
)

from whisper_peft.delivery.exporting.mlx import MlxWriter
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.runtimes.mlx_whisper_runtime import MlxWhisper
from whisper_peft.runtimes.runtime import Request


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A multilingual checkpoint that always says the same and is wide enough for groups of 64, and its export."""
    folder = tmp_path_factory.mktemp("speaking")
    model = ModelToExport(save_speaking_checkpoint("base", folder / "model", d_model=64), "model")
    return model, write_export(model, folder / "export", "mlx", "float16")


@pytest.fixture(scope="module")
def spoken_outputs(speaking):
    """The encoder's output and the logits of the speaking checkpoint in transformers, and what it was given."""
    wave = make_wave(30.0)
    tokens = [*openai_tokenizer("base", "hi", "transcribe").sot_sequence, 300, 301]
    return (wave, tokens, *transformers_outputs(speaking[0].folder, wave, tokens))


def logits_of(runtime: MlxWhisper, tokens: list[int], encoded: np.ndarray) -> np.ndarray:
    """Return the logits (n_tokens, n_vocabulary) of a forced decoder input."""
    import mlx.core as mx

    logits = runtime.whisper.logits(mx.array([tokens]), mx.array(encoded)[None])
    return np.array(logits[0].astype(mx.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_logits_are_those_of_transformers(kind, openai_models, tmp_path):
    runtime = MlxWhisper(write_export(openai_models[kind], tmp_path / "export", "mlx", "float32"))
    wave = make_wave(30.0)
    tokenizer = openai_tokenizer(kind, "hi" if KINDS[kind].multilingual else None, "transcribe")
    tokens = [*tokenizer.sot_sequence, *tokenizer.encode(" two words")]
    encoded, logits = transformers_outputs(openai_models[kind].folder, wave, tokens)
    output = runtime.encode(wave)
    # mlx-whisper computes the spectrum in float32, transformers in float64.
    assert output.dtype == np.float32 and gap(output, encoded) < 1e-3
    assert gap(logits_of(runtime, tokens, encoded), logits) < 1e-4
    assert runtime.whisper.is_multilingual == KINDS[kind].multilingual
    assert not runtime.whisper.is_multilingual or runtime.whisper.num_languages == KINDS[kind].n_languages
    assert runtime.whisper.alignment_heads.tolist() == alignment_heads(kind)


# Largest relative gap of encoder output and logits. The speaking model's logits are large, so their gap is small.
@pytest.mark.parametrize(
    ("quantization", "limit"),
    [("float16", 0.01), ("bfloat16", 0.05), ("q8", 0.05), ("q4", 0.5)],
)
def test_smaller_types_are_close(speaking, spoken_outputs, tmp_path, quantization, limit):
    export = write_export(speaking[0], tmp_path / "export", "mlx", quantization)
    runtime = MlxWhisper(export)
    wave, tokens, encoded, logits = spoken_outputs
    encoder_gap = gap(runtime.encode(wave), encoded)
    assert 0 < encoder_gap < limit
    ours = logits_of(runtime, tokens, encoded)
    assert 0 < gap(ours, logits) < limit
    assert (ours.argmax(axis=-1) == logits.argmax(axis=-1)).all()


def test_q8_is_what_mlx_itself_makes_of_the_weights(speaking, tmp_path):
    """The quantiser of mlx.nn, which mlx-whisper's own converter takes, gives the same numbers."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_whisper.load_models import load_model

    export = write_export(speaking[0], tmp_path / "export", "mlx", "q8")
    whisper = load_model(str(speaking[1].path), dtype=mx.float16)
    nn.quantize(whisper, group_size=64, bits=8)
    expected = dict(tree_flatten(whisper.parameters()))
    stored = mx.load(str(export.path / "weights.safetensors"))
    assert set(stored) == set(expected)
    assert all(mx.array_equal(stored[name], expected[name]).item() for name in stored)
    assert stored["decoder.token_embedding.weight"].dtype == mx.uint32


def test_it_transcribes_without_a_word_of_its_own(speaking, capfd):
    runtime = MlxWhisper(speaking[1])
    capfd.readouterr()
    output = runtime.transcribe(make_wave(2.0), Request(None, word_times=True))
    assert capfd.readouterr() == ("", "")
    assert output.text == SPOKEN and output.language == HEARD_LANGUAGE
    (segment,) = output.segments
    assert (segment.start_s, segment.end_s) == pytest.approx((0.0, 1.0), abs=0.5)
    assert [word.text for word in segment.words] == [f" {word}" for word in SPOKEN.split()]
    assert all(type(word.end_s) is float and 0 <= word.start_s <= word.end_s <= 30 for word in segment.words)


def test_types_that_mlx_whisper_refuses_by_default_are_transcribed(speaking, tmp_path):
    """mlx-whisper itself refuses float32 weights unless fp16=False; the note says so."""
    import mlx_whisper

    writer = MlxWriter()
    (tmp_path / "export").mkdir()
    writer.write(speaking[0], tmp_path / "export", "float32")
    (note,) = writer.notes(speaking[0], "float32")
    assert "fp16=False" in note
    with pytest.raises(TypeError, match="incorrect dtype"):
        mlx_whisper.transcribe(make_wave(1.0), path_or_hf_repo=str(tmp_path / "export"), language="hi")
    export = dataclasses.replace(speaking[1], folder=tmp_path / "export", quantization="float32")
    assert MlxWhisper(export).transcribe(make_wave(1.0), Request("hi")).text == SPOKEN


def test_the_request_reaches_mlx_whisper(speaking, monkeypatch):
    import mlx_whisper
    from mlx_whisper.transcribe import ModelHolder

    asked = {}

    def transcribe(wave, **options):
        # Whoever asks for the path of the export gets the model that the runtime has loaded.
        assert ModelHolder.get_model(options.pop("path_or_hf_repo"), None) is runtime.whisper
        asked.update(options)
        return {"segments": [], "language": "ta"}

    monkeypatch.setattr(mlx_whisper, "transcribe", transcribe)
    monkeypatch.setattr(ModelHolder, "model", "another model")
    monkeypatch.setattr(ModelHolder, "model_path", str(speaking[1].path))
    runtime = MlxWhisper(speaking[1])
    runtime.transcribe(make_wave(1.0), Request("ta", "translate", prompt="Wangari Maathai", beams=1))
    assert asked.pop("fp16", True) is runtime.in_float16
    assert asked == {
        "language": "ta", "task": "translate", "word_timestamps": False, "initial_prompt": "Wangari Maathai"
    }  # fmt: skip
    assert ModelHolder.model == "another model"
    with pytest.raises(UserError, match="5 beams: mlx-whisper has no beam search"):
        runtime.transcribe(make_wave(1.0), Request("ta", beams=5))


@pytest.mark.slow
def test_the_whole_export_is_proved(speaking, tmp_path):
    from whisper_peft import export

    report = export(
        speaking[0].folder,
        tmp_path / "out",
        format="mlx",
        check=make_check_source(tmp_path / "clips"),
        language="hi",
    )
    assert report.proved and report.encoder_gap < 0.05
    assert [comparison.differing for comparison in report.comparisons] == [0, 0]
    assert report.comparisons[0].runtime.wer == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["n_vocab"] == 51865 and "d_model" not in config


@pytest.mark.parametrize("kept", [0, 4, 0.5, -100])
def test_a_cut_file_is_refused_in_one_line(speaking, tmp_path, kept):
    content = (speaking[1].path / "weights.safetensors").read_bytes()
    length = int(kept * len(content)) if 0 < kept < 1 else kept
    (tmp_path / "weights.safetensors").write_bytes(content[:length])
    (tmp_path / "config.json").write_bytes((speaking[1].path / "config.json").read_bytes())
    with pytest.raises(UserError, match="mlx-whisper does not load it") as error:
        MlxWhisper(dataclasses.replace(speaking[1], folder=tmp_path))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


@pytest.mark.parametrize("page", ['{"n_mels": 80', '{"n_mels": 80, "d_model": 64}', "{}"])
def test_a_damaged_config_is_refused_in_one_line(speaking, tmp_path, page):
    (tmp_path / "config.json").write_text(page)
    (tmp_path / "weights.safetensors").write_bytes((speaking[1].path / "weights.safetensors").read_bytes())
    with pytest.raises(UserError, match="mlx-whisper does not load it"):
        MlxWhisper(dataclasses.replace(speaking[1], folder=tmp_path))


def test_a_model_too_narrow_for_groups_is_not_quantised(openai_models, tmp_path):
    with pytest.raises(UserError, match=r"--quantization q4 takes groups of 64 weights, and .* has 16 in a row"):
        write_export(openai_models["base"], tmp_path / "export", "mlx", "q4")


def test_other_positions_of_the_encoder_are_refused(openai_models, tmp_path, monkeypatch):
    import torch

    source = ModelToExport(openai_models["base"].folder, "model")
    whisper = source.load()
    with torch.no_grad():
        whisper.model.encoder.embed_positions.weight[7, 3] += 0.1
    monkeypatch.setattr(ModelToExport, "load", lambda self: whisper)
    with pytest.raises(UserError, match="the positions of its encoder are no sinusoids"):
        MlxWriter().write(source, tmp_path, "bfloat16")


def test_only_quantising_needs_mlx(speaking, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlx" else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match=r"--quantization q8: mlx.* is not installed; pip install .*\[mlx\]"):
        write_export(speaking[0], tmp_path / "quantised", "mlx", "q8")
    write_export(speaking[0], tmp_path / "plain", "mlx", "bfloat16")


@pytest.mark.slow
def test_real_english_is_transcribed_as_in_transformers(shared, tmp_path):
    export = write_export(
        ModelToExport(shared / "models" / "whisper-base", "base"), tmp_path / "export", "mlx", "float16"
    )
    assert compare_on_english(shared, MlxWhisper(export)) < 0.1
