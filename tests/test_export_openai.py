"""Exports for openai-whisper: it loads them, computes what transformers computes, and says it in our words."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pickle
import re

import numpy as np
import pytest
from conftest import make_tiny_model, make_wave
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

from whisper_peft.delivery.exporting.openai import OpenAIWriter
from whisper_peft.delivery.exporting.openai_names import openai_tensors
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.runtimes.openai_whisper_runtime import OpenAIWhisper
from whisper_peft.runtimes.runtime import Request


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A multilingual checkpoint that always says the same, and its export."""
    folder = tmp_path_factory.mktemp("speaking")
    model = ModelToExport(save_speaking_checkpoint("base", folder / "model"), "model")
    return model, write_export(model, folder / "export", "openai", "float16")


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_and_logits_are_those_of_transformers(kind, openai_models, tmp_path):
    import torch

    export = write_export(openai_models[kind], tmp_path / "export", "openai", "float32")
    runtime = OpenAIWhisper(export)
    wave = make_wave(30.0)
    tokenizer = openai_tokenizer(kind, "hi" if KINDS[kind].multilingual else None, "transcribe")
    tokens = [*tokenizer.sot_sequence, *tokenizer.encode(" two words")]
    encoded, logits = transformers_outputs(openai_models[kind].folder, wave, tokens)
    output = runtime.encode(wave)
    assert output.dtype == np.float32 and gap(output, encoded) < 1e-4
    with torch.no_grad():
        ours = runtime.whisper.logits(torch.tensor([tokens]), torch.from_numpy(output)[None])
    assert gap(ours[0].numpy(), logits) < 1e-4
    assert runtime.whisper.is_multilingual == KINDS[kind].multilingual
    assert not runtime.whisper.is_multilingual or runtime.whisper.num_languages == KINDS[kind].n_languages
    assert runtime.whisper.alignment_heads.indices().T.tolist() == alignment_heads(kind)


def test_the_file_holds_tensors_and_integers_only(openai_models, tmp_path):
    import torch

    export = write_export(openai_models["base"], tmp_path / "export", "openai", "float16")
    page = torch.load(export.path, weights_only=True)
    assert set(page) == {"dims", "model_state_dict"}
    assert {type(size) for size in page["dims"].values()} == {int}
    assert {tensor.dtype for tensor in page["model_state_dict"].values()} == {torch.float16}
    n_numbers = sum(tensor.numel() for tensor in page["model_state_dict"].values())
    assert export.path.stat().st_size < 2 * n_numbers + 200_000, "the file holds each number once"


def test_the_note_sets_the_alignment_heads_of_the_model(openai_models):
    import whisper

    (note,) = OpenAIWriter().notes(openai_models["large-v3"], "float16")
    dump = re.search(r"set_alignment_heads\(b'(.*)'\)", note)[1].encode()
    sizes = whisper.ModelDimensions(128, 1500, 8, 2, 1, 51866, 448, 40, 20, 32)
    loaded = whisper.Whisper(sizes)
    loaded.set_alignment_heads(dump)
    assert loaded.alignment_heads.indices().T.tolist() == alignment_heads("large-v3")


@pytest.mark.filterwarnings("error")
def test_it_transcribes_without_a_word_of_its_own(speaking, capfd):
    runtime = OpenAIWhisper(speaking[1])
    capfd.readouterr()
    output = runtime.transcribe(make_wave(2.0), Request(None, word_times=True))
    assert capfd.readouterr() == ("", "")
    assert output.text == SPOKEN and output.language == HEARD_LANGUAGE
    (segment,) = output.segments
    assert (segment.start_s, segment.end_s) == pytest.approx((0.0, 1.0), abs=0.5)
    assert [word.text for word in segment.words] == [f" {word}" for word in SPOKEN.split()]
    assert all(type(word.end_s) is float and 0 <= word.start_s <= word.end_s <= 30 for word in segment.words)


def test_the_request_reaches_openai_whisper(speaking, monkeypatch):
    runtime = OpenAIWhisper(speaking[1])
    wave = make_wave(1.0)
    assert runtime.transcribe(wave, Request("hi", beams=2)).text == SPOKEN
    asked = {}

    def transcribe(wave, **options):
        asked.update(options)
        return {"segments": [], "language": "ta"}

    monkeypatch.setattr(runtime.whisper, "transcribe", transcribe)
    runtime.transcribe(wave, Request("ta", "translate", prompt="Wangari Maathai", beams=3))
    assert asked == {
        "language": "ta", "task": "translate", "word_timestamps": False, "initial_prompt": "Wangari Maathai",
        "beam_size": 3, "fp16": False,
    }  # fmt: skip


def test_an_english_only_model_speaks_english(tmp_path):
    model = ModelToExport(save_speaking_checkpoint("base.en", tmp_path / "model"), "model")
    output = OpenAIWhisper(write_export(model, tmp_path / "export", "openai", "float16")).transcribe(
        make_wave(1.0), Request(None)
    )
    assert (output.text, output.language) == (SPOKEN, "en")


def test_the_whole_export_is_proved(speaking, tmp_path):
    from whisper_peft import export

    report = export(
        speaking[0].folder,
        tmp_path / "out",
        format="openai",
        check=make_check_source(tmp_path / "clips"),
        language="hi",
    )
    assert report.proved and report.encoder_gap < 1e-2
    assert [comparison.sound for comparison in report.comparisons] == ["clips", "recordings"]
    assert [comparison.differing for comparison in report.comparisons] == [0, 0]
    assert report.comparisons[0].runtime.wer == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["weights"] == "model.pt"


@pytest.mark.parametrize("kept", [0, 4, 0.5, -100])
def test_a_cut_file_is_refused_in_one_line(speaking, tmp_path, kept):
    content = speaking[1].path.read_bytes()
    length = int(kept * len(content)) if 0 < kept < 1 else kept
    (tmp_path / "float16").write_bytes(content[:length])
    with pytest.raises(UserError, match=r"model\.pt: openai-whisper does not load it") as error:
        OpenAIWhisper(dataclasses.replace(speaking[1], folder=tmp_path))
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


class Intruder:
    """An object that makes a file when a pickle is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_code_is_refused_and_not_run(speaking, tmp_path, zipped, monkeypatch):
    import torch

    # torch would load code where this is set and the caller had not asked for weights only.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    page = {"dims": Intruder(tmp_path / "intruded")}
    if zipped:
        torch.save(page, tmp_path / "float16")
    else:
        (tmp_path / "float16").write_bytes(pickle.dumps(page, protocol=2))
    with pytest.raises(UserError, match="openai-whisper does not load it"):
        OpenAIWhisper(dataclasses.replace(speaking[1], folder=tmp_path))
    assert not (tmp_path / "intruded").exists()


def test_wrong_alignment_heads_are_refused(speaking):
    with pytest.raises(UserError, match=r"export\.json names alignment heads that the model lacks"):
        OpenAIWhisper(dataclasses.replace(speaking[1], alignment_heads=[[99, 0]]))


@pytest.mark.parametrize("format", ["openai", "mlx"])
def test_models_that_the_runtime_would_misread_are_refused(tmp_path, format):
    model = ModelToExport(make_tiny_model(tmp_path / "quickstart"), "model")
    with pytest.raises(UserError, match=r"its vocabulary has .* take --format ctranslate2 or onnx"):
        write_export(model, tmp_path / "export", format, "float32")


def source_with(model, **tensors):
    """A model to export whose loaded weights hold other tensors."""

    class Changed(ModelToExport):
        def load(self):
            whisper = super().load()
            state = {**whisper.state_dict(), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
            whisper.state_dict = lambda: state
            return whisper

    return Changed(model.folder, "model")


def test_no_tensor_is_lost(openai_models):
    import torch

    with pytest.raises(UserError, match=r"its tensor model\.encoder\.gate\.weight has no place"):
        openai_tensors(source_with(openai_models["base"], model__encoder__gate__weight=torch.zeros(2)), "float32")
    with pytest.raises(UserError, match="its output layer differs from its token embedding"):
        openai_tensors(source_with(openai_models["base"], proj_out__weight=torch.zeros(51865, 16)), "float32")
    large = torch.full((16,), 1e6)
    with pytest.raises(UserError, match=r"layer_norm\.bias is too large for float16; take --quantization float32"):
        openai_tensors(source_with(openai_models["base"], model__decoder__layer_norm__bias=large), "float16")


@pytest.mark.parametrize(
    ("format", "module"), [("openai", "whisper"), pytest.param("mlx", "mlx_whisper", marks=pytest.mark.slow)]
)
def test_without_the_runtime_only_unproved_exports(speaking, tmp_path, monkeypatch, format, module):
    from whisper_peft import export

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match=rf"not installed.*whisper-peft\[{format}\].*--unproved"):
        export(speaking[0].folder, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    report = export(speaking[0].folder, tmp_path / "out", format=format, unproved=True)
    assert not report.proved and report.runtime_version is None and report.comparisons == ()
    assert not json.loads((tmp_path / "out" / "export_report.json").read_text())["proved"]


@pytest.mark.slow
def test_real_english_is_transcribed_as_in_transformers(shared, tmp_path):
    export = write_export(
        ModelToExport(shared / "models" / "whisper-base", "base"), tmp_path / "export", "openai", "float16"
    )
    assert compare_on_english(shared, OpenAIWhisper(export)) < 0.1
