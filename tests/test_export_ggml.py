"""ggml files: the layout, what is refused, and whisper.cpp beside transformers."""

from __future__ import annotations

import copy
import ctypes
import importlib.metadata
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_wave
from openai_vocabulary import openai_tokenizer, save_checkpoint, save_processor_files, whisper_config

from whisper_peft.delivery.exporting.ggml import GgmlWriter, pack_values
from whisper_peft.delivery.exporting.openai_names import openai_name
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.runtimes.exports import Export
from whisper_peft.runtimes.formats import EXPORT_FORMATS
from whisper_peft.runtimes.ggml_file import GGML_TYPES, check_ggml_file
from whisper_peft.runtimes.runtime import Request
from whisper_peft.runtimes.whisper_cpp_runtime import WhisperCpp, join_words

KINDS = ("base", "base.en", "large-v3")
SOUND = make_wave(30.0)
QUANTIZED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def load_library(name: str) -> ctypes.CDLL:
    """Load a library that the package of whisper.cpp ships."""
    import _pywhispercpp  # noqa: F401 - it loads the libraries that these need

    for file in importlib.metadata.files("pywhispercpp") or ():
        if file.name.startswith(f"lib{name}-") and file.parent.name == "pywhispercpp.libs":
            return ctypes.CDLL(str(file.locate()))
    pytest.skip(f"this pywhispercpp ships no lib{name} of its own")


def save_model(kind: str, folder: Path) -> Path:
    """Write a random model with OpenAI's vocabulary, and with the proportions that whisper.cpp asks for."""
    import torch
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    save_processor_files(kind, folder)
    config = whisper_config(
        kind,
        d_model=64,
        encoder_layers=2,
        encoder_ffn_dim=256,
        decoder_layers=3,
        decoder_ffn_dim=256,
        decoder_attention_heads=4,
        init_std=0.1,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    tokenizer = openai_tokenizer(kind)
    model.generation_config = GenerationConfig(
        is_multilingual=kind != "base.en",
        decoder_start_token_id=tokenizer.sot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        no_timestamps_token_id=tokenizer.no_timestamps,
    )
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, ModelToExport]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: ModelToExport(save_model(kind, folder / kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def written(sources, tmp_path_factory):
    """A function that exports a model once, and returns the export."""
    exports = {}
    root = tmp_path_factory.mktemp("exports")

    def write(kind: str, quantization: str = "f16") -> Export:
        if (kind, quantization) not in exports:
            folder = root / f"{kind}-{quantization}"
            folder.mkdir()
            exports[kind, quantization] = write_export(sources[kind], folder, quantization)
        return exports[kind, quantization]

    return write


def write_export(source: ModelToExport, folder: Path, quantization: str) -> Export:
    writer = GgmlWriter()
    writer.check(source)
    weights = writer.write(source, folder, quantization)
    multilingual = source.preparation.multilingual
    return Export(folder, EXPORT_FORMATS["ggml"], quantization, weights, None, "transcribe", multilingual, None)


class ContextParameters(ctypes.Structure):
    """The whisper_context_params of whisper.h, version 1.8."""

    _fields_ = (
        ("use_gpu", ctypes.c_bool),
        ("flash_attn", ctypes.c_bool),
        ("gpu_device", ctypes.c_int),
        ("dtw_token_timestamps", ctypes.c_bool),
        ("dtw_aheads_preset", ctypes.c_int),
        ("dtw_n_top", ctypes.c_int),
        ("n_heads", ctypes.c_size_t),
        ("heads", ctypes.c_void_p),
        ("dtw_mem_size", ctypes.c_size_t),
    )


def logits_of_whisper_cpp(path: Path, inputs: list[tuple[np.ndarray, list[int]]], n_vocab: int) -> list[np.ndarray]:
    """Return the logits behind the last token for some sounds and tokens.

    Flash attention is off: whisper.cpp's counts 36 empty positions with the 1,500 of the encoder.
    """
    library = load_library("whisper")
    library.whisper_context_default_params.restype = ContextParameters
    library.whisper_init_from_file_with_params.restype = ctypes.c_void_p
    library.whisper_init_from_file_with_params.argtypes = [ctypes.c_char_p, ContextParameters]
    library.whisper_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    library.whisper_get_logits.argtypes = [ctypes.c_void_p]
    parameters = library.whisper_context_default_params()
    parameters.flash_attn = False
    context = ctypes.c_void_p(library.whisper_init_from_file_with_params(str(path).encode(), parameters))
    assert context
    logits = []
    for wave, tokens in inputs:
        assert library.whisper_pcm_to_mel(context, wave.ctypes.data_as(ctypes.c_void_p), len(wave), 1) == 0
        assert library.whisper_encode(context, 0, 1) == 0
        assert library.whisper_decode(context, (ctypes.c_int * len(tokens))(*tokens), len(tokens), 0, 1) == 0
        rows = np.ctypeslib.as_array(library.whisper_get_logits(context), shape=(len(tokens), n_vocab))
        logits.append(rows[-1].copy())
    library.whisper_free(context)
    return logits


def logits_of_transformers(source: ModelToExport, wave: np.ndarray, tokens: list[int]) -> np.ndarray:
    import torch

    model = source.load().eval()
    features = source.preparation.encode_stretch(wave, source.preparation.window_frames)
    with torch.no_grad():
        output = model(
            input_features=torch.from_numpy(features)[None], decoder_input_ids=torch.tensor([tokens]), use_cache=False
        )
    return output.logits[0, -1].float().numpy()


@pytest.fixture(scope="module")
def expected(sources):
    """A function that returns a sound, the tokens of a text, and the logits of transformers behind them."""
    known = {}

    def compute(kind: str) -> tuple[np.ndarray, list[int], np.ndarray]:
        if kind not in known:
            preparation = sources[kind].preparation
            language = "en" if preparation.multilingual else None
            tokens = [*preparation.prefix(language), *preparation.words.encode(" two words")]
            known[kind] = SOUND, tokens, logits_of_transformers(sources[kind], SOUND, tokens)
        return known[kind]

    return compute


def relative_gap(logits: np.ndarray, expected_logits: np.ndarray) -> float:
    """Return the largest difference against the spread of the expected logits."""
    return float(np.abs(logits - expected_logits).max() / expected_logits.std())


@pytest.mark.parametrize("kind", KINDS)
def test_whisper_cpp_computes_what_transformers_computes(written, expected, kind):
    sound, tokens, logits = expected(kind)
    inputs = [(sound, tokens), (sound[:8000], tokens), (sound, [tokens[-1], *tokens[1:]])]
    same, short_sound, other_token = logits_of_whisper_cpp(written(kind).path, inputs, len(logits))
    assert relative_gap(same, logits) < 0.1
    # The sound and every token count, so a mistake in the encoder or in the vocabulary would show.
    assert relative_gap(short_sound, logits) > 0.3
    assert relative_gap(other_token, logits) > 0.3


@pytest.mark.parametrize(("quantization", "limit"), [("q8_0", 0.15), ("q5_0", 0.9), ("q4_1", 1.5)])
def test_quantised_weights_stay_near(written, expected, quantization, limit):
    sound, tokens, logits = expected("base")
    (quantised,) = logits_of_whisper_cpp(written("base", quantization).path, [(sound, tokens)], len(logits))
    assert relative_gap(quantised, logits) < limit


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_blocks_are_those_of_ggml_itself(quantization):
    """The quantiser of ggml's own library makes the same values, but for roundings at the edge of a step."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    target = GGML_TYPES[quantization]
    values = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    packed = pack_values(values, target)
    library = load_library("ggml-base")
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    own = np.zeros(len(packed), dtype=np.uint8)
    number = target.tensor_number
    size = library.ggml_quantize_chunk(number, values.ctypes.data, own.ctypes.data, 0, *values.shape, None)
    assert size == len(packed) == values.size // target.block_values * target.block_bytes
    assert np.mean(np.frombuffer(packed, np.uint8) == own) > 0.99
    theirs = dequantize(own.reshape(8, -1), GGMLQuantizationType(number))
    ours = dequantize(np.frombuffer(packed, np.uint8).reshape(8, -1), GGMLQuantizationType(number))
    error = np.abs(theirs - values).max()
    assert 0 < np.abs(ours - values).max() <= 1.01 * error
    assert np.abs(ours - theirs).max() <= 1.01 * error * 2


def test_only_large_matrices_are_quantised(written):
    export = written("base", "q8_0")
    content = export.path.read_bytes()
    assert struct.unpack_from("<i", content, 44) == (7 + 2 * 1000,)
    types = {
        "encoder.conv1.weight": 1,
        "encoder.conv1.bias": 0,
        "encoder.positional_embedding": 0,
        "decoder.positional_embedding": 0,
        "encoder.blocks.0.attn_ln.weight": 0,
        "encoder.blocks.0.mlp.0.bias": 0,
        "encoder.blocks.0.mlp.0.weight": 8,
        "decoder.token_embedding.weight": 8,
        "decoder.blocks.2.cross_attn.key.weight": 8,
    }
    for name, number in types.items():
        n_dimensions = {"encoder.conv1.weight": 3, "encoder.blocks.0.attn_ln.weight": 1}.get(name, 2)
        if name.endswith("mlp.0.bias"):
            n_dimensions = 1
        place = content.index(name.encode()) - 4 * n_dimensions - 12
        assert struct.unpack_from("<iii", content, place) == (n_dimensions, len(name), number)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_mel_filters_are_those_of_openai(sources, written, kind):
    ranks = openai_tokenizer(kind).encoding._mergeable_ranks
    assert sources[kind].text_tokens() == sorted(ranks, key=ranks.__getitem__)
    from whisper.audio import mel_filters

    n_mels = sources[kind].config.num_mel_bins
    filters = np.fromfile(written(kind).path, np.float32, n_mels * 201, offset=56).reshape(n_mels, 201)
    np.testing.assert_allclose(filters, mel_filters("cpu", n_mels).numpy(), atol=1e-7)


def test_transcribes_in_silence(written, capfd):
    """The runtime says nothing of its own, gives times inside the recording, and takes every wish."""
    runtime = WhisperCpp(written("base.en"))
    wave = make_wave(0.5)
    output = runtime.transcribe(wave, Request("en", beams=1, word_times=True, prompt="Wangari"))
    assert output.language == "en"
    for segment in output.segments:
        assert 0 <= segment.start_s <= segment.end_s <= 0.5
        for word in segment.words:
            assert 0 <= word.start_s <= word.end_s <= 0.5
    assert runtime.transcribe(wave[:1000], Request("en")).text == ""
    assert runtime.encode(wave) is None
    assert capfd.readouterr() == ("", "")


def test_listens_for_the_language(written, sources):
    heard = WhisperCpp(written("base")).transcribe(make_wave(0.3), Request(None, beams=1)).language
    assert f"<|{heard}|>" in sources["base"].preparation.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("request_made", "message"),
    [
        (Request("xx"), "does not know it in this model"),
        # Cantonese came with large-v3. In an older model its number is that of another token.
        (Request("yue"), "does not know it in this model"),
        (Request("en", beams=9), "room for 8"),
    ],
)
def test_wishes_that_whisper_cpp_would_misread(written, request_made, message):
    with pytest.raises(UserError, match=message):
        WhisperCpp(written("base")).transcribe(make_wave(1.0), request_made)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.1, 0.5, 0.999])
def test_truncated_file(written, tmp_path, share):
    export = copy_export(written("base"), tmp_path)
    content = export.path.read_bytes()
    export.path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"(cut short|are missing).*export the model again"):
        WhisperCpp(export)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"lmgg", b"GGUF"),
        (struct.pack("<i", 51865), struct.pack("<i", 51864)),
        (b"encoder.conv1.weight", b"encoder.conv9.weight"),
        # The type of encoder.blocks.0.mlp.0.weight.
        (struct.pack("<iii", 2, 29, 1), struct.pack("<iii", 2, 29, 30)),
        # The file says that it is float32.
        (struct.pack("<iii", 80, 1, 80), struct.pack("<iii", 80, 0, 80)),
        # The layers of the decoder.
        (struct.pack("<iii", 4, 3, 80), struct.pack("<iii", 4, 2_000_000, 80)),
        (struct.pack("<ii", 80, 201), struct.pack("<ii", -80, 201)),
    ],
)
def test_damaged_file(written, tmp_path, before, after):
    export = copy_export(written("base"), tmp_path)
    content = export.path.read_bytes()
    assert before in content
    export.path.write_bytes(content.replace(before, after, 1))
    with pytest.raises(UserError, match="export the model again"):
        WhisperCpp(export)


def test_bytes_behind_the_last_tensor(written, tmp_path):
    export = copy_export(written("base"), tmp_path)
    with export.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="export the model again"):
        check_ggml_file(export.path)


def copy_export(export: Export, folder: Path) -> Export:
    shutil.copyfile(export.path, folder / export.weights)
    return Export(folder, export.format, export.quantization, export.weights, None, "transcribe", True, None)


def changed(source: ModelToExport, *, config: dict | None = None, preparation: dict | None = None) -> ModelToExport:
    """Return a source whose config or preparation differs in some attributes."""
    other = ModelToExport(source.folder, "changed")
    for name, changes in (("config", config), ("preparation", preparation)):
        part = copy.copy(getattr(source, name))
        for attribute, value in (changes or {}).items():
            setattr(part, attribute, value)
        other.__dict__[name] = part
    return other


@pytest.mark.parametrize(
    ("config", "preparation", "message"),
    [
        ({"vocab_size": 51867}, {}, "knows only those of OpenAI"),
        ({"vocab_size": 51864}, {}, "in a model that is multilingual"),
        ({}, {"multilingual": False}, "in a model that is English-only"),
        ({"vocab_size": 51866}, {}, "in its vocabulary, unlike in OpenAI"),
        ({"encoder_ffn_dim": 128}, {}, "encoder_ffn_dim is 128"),
        ({"activation_function": "relu"}, {}, "activation is relu"),
        ({"scale_embedding": True}, {}, "scale_embedding"),
        ({}, {"window_s": 15.0}, "window has 15 s"),
        ({}, {"hop_samples": 320}, "hop_samples"),
    ],
)
def test_models_that_whisper_cpp_would_misread(sources, config, preparation, message):
    with pytest.raises(UserError, match=message):
        GgmlWriter().check(changed(sources["base"], config=config, preparation=preparation))


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        (("<|hi|>", "<|ml|>"), r"<\|hi\|>"),
        (("<|transcribe|>", "<|translate|>"), "translate"),
        (("<|0.02|>", "<|0.04|>"), "0.0[24]"),
        (("<|startofprev|>", "<|startoflm|>"), "startof"),
        (("<|nospeech|>", "Ġthe"), "in its vocabulary"),
    ],
)
def test_shuffled_tokens(sources, swap, message):
    vocabulary = sources["base"].preparation.tokenizer.get_vocab()
    first, second = swap
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)
    with pytest.raises(UserError, match=message):
        GgmlWriter().check(changed(sources["base"], preparation={"tokenizer": tokenizer}))


def test_words_in_another_order(sources):
    """whisper.cpp reads the words from the file, and the other runtimes have them built in."""
    vocabulary = sources["base"].preparation.tokenizer.get_vocab()
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)
    source = changed(sources["base"], preparation={"tokenizer": tokenizer})
    GgmlWriter().check(source)
    with pytest.raises(UserError, match=r"tokens of text are not those of OpenAI's models; openai-whisper"):
        source.check_openai_layout("openai", "openai-whisper")


@pytest.mark.parametrize("kind", KINDS)
def test_openai_s_own_vocabularies_pass(sources, kind):
    sources[kind].check_openai_layout("openai", "openai-whisper")


def test_vocabulary_without_a_lone_space(sources):
    vocabulary = sources["base"].preparation.tokenizer.get_vocab()
    vocabulary["ĠĠĠĠĠĠĠĠĠĠ"] = vocabulary.pop("Ġ")
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)
    with pytest.raises(UserError, match="no token for a lone space"):
        GgmlWriter().check(changed(sources["base"], preparation={"tokenizer": tokenizer}))


def test_vocabulary_of_another_model(tiny_model):
    with pytest.raises(UserError, match="knows only those of OpenAI"):
        GgmlWriter().check(ModelToExport(tiny_model, "tiny"))


def test_times_without_names_are_no_harm(sources):
    vocabulary = sources["base"].preparation.tokenizer.get_vocab()
    named = {token: number for token, number in vocabulary.items() if number <= 50363}
    named["<|nocaptions|>"] = named.pop("<|nospeech|>")
    tokenizer = SimpleNamespace(get_vocab=lambda: named)
    GgmlWriter().check(changed(sources["base"], preparation={"tokenizer": tokenizer}))


def test_a_tensor_that_whisper_cpp_does_not_know(sources, tmp_path, monkeypatch):
    tensors = sources["base"].tensors()
    tensors["model.decoder.layers.0.self_attn.k_proj.bias"] = tensors["model.decoder.layers.0.self_attn.q_proj.bias"]
    monkeypatch.setattr(ModelToExport, "tensors", lambda self: tensors)
    with pytest.raises(UserError, match=r"do not both have a tensor decoder\.blocks\.0\.attn\.key\.bias"):
        GgmlWriter().write(sources["base"], tmp_path, "f16")


def test_a_value_beyond_float16(sources, tmp_path, monkeypatch):
    tensors = sources["base"].tensors()
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] = 1e6
    monkeypatch.setattr(ModelToExport, "tensors", lambda self: tensors)
    with pytest.raises(UserError, match=r"beyond float16, and whisper\.cpp runs no float32"):
        GgmlWriter().write(sources["base"], tmp_path, "f16")


def test_a_width_that_no_block_fits(sources, tmp_path):
    source = changed(sources["base"], config={"d_model": 48})
    with pytest.raises(UserError, match=r"no multiple of it; take --quantization f16"):
        GgmlWriter().write(source, tmp_path, "q5_0")


@pytest.mark.parametrize(
    ("name", "written_name"),
    [
        ("model.encoder.conv1.weight", "encoder.conv1.weight"),
        ("model.encoder.layer_norm.bias", "encoder.ln_post.bias"),
        ("model.encoder.layers.10.self_attn.out_proj.weight", "encoder.blocks.10.attn.out.weight"),
        ("model.decoder.layers.0.encoder_attn_layer_norm.weight", "decoder.blocks.0.cross_attn_ln.weight"),
        ("model.decoder.layers.0.final_layer_norm.weight", "decoder.blocks.0.mlp_ln.weight"),
        ("model.decoder.layers.0.fc2.bias", "decoder.blocks.0.mlp.2.bias"),
    ],
)
def test_names_of_tensors(name, written_name):
    assert openai_name(name) == written_name


@pytest.mark.parametrize("kind", KINDS)
def test_the_notes_name_the_heads_only_if_they_are_openai_s(sources, kind):
    notes = GgmlWriter().notes(sources[kind], "f16")
    assert "whisper-cli" in notes[0]
    assert not any("--dtw" in note for note in notes)


def test_words_keep_characters_together():
    """Malayalam and Chinese characters are spread over tokens that are no text by themselves."""
    nadi = " നദി".encode()
    tokens = [(nadi[:2], 0, 10), (nadi[2:5], 10, 20), (nadi[5:], 20, 30), (b" a", 30, 40), (b"b.", 40, 50)]
    assert list(join_words(tokens, spaced=True)) == [(" നദി", 0, 30), (" ab.", 30, 50)]
    han = "你好".encode()
    tokens = [(han[:1], 0, 10), (han[1:3], 10, 20), (han[3:], 20, 30)]
    assert list(join_words(tokens, spaced=False)) == [("你", 0, 20), ("好", 20, 30)]
    thai = [
        ("ก".encode(), 0, 10),
        ("ิ".encode(), 10, 20),
        ("「".encode(), 20, 30),
        ("ก".encode(), 30, 40),
        (b".", 40, 50),
    ]
    assert list(join_words(thai, spaced=False)) == [("กิ", 0, 20), ("「ก.", 20, 50)]
    latin = [(b"OUT", 0, 10), (b"SIDE", 10, 20), (b" O", 20, 30), ("好".encode(), 30, 40), (b"4", 40, 50)]
    words = [("OUTSIDE", 0, 20), (" O", 20, 30), ("好", 30, 40), ("4", 40, 50)]
    assert list(join_words(latin, spaced=False)) == words
    # Bytes that are no character at all do not swallow the words behind them.
    broken = [(b" \xff", 0, 10), (b" a", 10, 20), (b" \xe0", 20, 30)]
    assert list(join_words(broken, spaced=True)) == [(" \ufffd", 0, 10), (" a", 10, 20), (" \ufffd", 20, 30)]


def test_a_character_that_is_spread_over_two_segments():
    parts = ["ഒരു ന".encode()[:-1], "ന".encode()[-1:] + "ദി".encode()]
    runtime = WhisperCpp.__new__(WhisperCpp)
    runtime._context = None
    runtime._binding = SimpleNamespace(
        whisper_full_n_segments=lambda context: 2,
        whisper_full_get_segment_text=lambda context, number: parts[number],
        whisper_full_get_segment_t0=lambda context, number: 100 * number,
        whisper_full_get_segment_t1=lambda context, number: 100 * number + 100,
    )
    segments = list(runtime._segments(1.5, "ml", word_times=False))
    assert [segment.text for segment in segments] == ["ഒരു ", "നദി"]
    assert segments[1].end_s == 1.5


def test_the_version_is_that_of_the_package():
    """whisper.cpp has a version of its own, which its package does not tell."""
    assert EXPORT_FORMATS["ggml"].runtime_version().startswith("pywhispercpp ")
    assert EXPORT_FORMATS["ctranslate2"].runtime_version()[0].isdigit()


@pytest.mark.slow
def test_published_heads_are_named_for_whisper_cli(tmp_path):
    source = ModelToExport(save_checkpoint("large-v3", tmp_path), "narrow")
    # The shape decides which heads are the published ones.
    source.config.d_model = 1280
    assert any("--dtw large.v3," in note for note in GgmlWriter().notes(source, "f16"))


@pytest.mark.slow
def test_whisper_base_says_what_transformers_says(shared, tmp_path):
    from whisper_peft.data.audio import load_audio
    from whisper_peft.evaluation.longform import transcribe_wave
    from whisper_peft.model.build import load_model

    folder = shared / "models" / "whisper-base"
    model, preparation, _ = load_model(folder)
    story = next((shared / "data" / "longform").glob("en_*.mp3"))
    stretches = [(7.2, 15.2), (21.1, 30.8)]
    waves = [load_audio(story, start_s=start, end_s=end, sample_rate_hz=16000) for start, end in stretches]
    expected = [transcribe_wave(model, preparation, wave, language="en", task="transcribe")["text"] for wave in waves]
    for quantization in ("f16", "q8_0"):
        target = tmp_path / quantization
        target.mkdir()
        runtime = WhisperCpp(write_export(ModelToExport(folder, "base"), target, quantization))
        texts = [runtime.transcribe(wave, Request("en", beams=1)).text for wave in waves]
        assert [letters_of(text) for text in texts] == [letters_of(text) for text in expected]


def letters_of(text: str) -> str:
    """Return the letters of a text alone: punctuation depends on the way of decoding."""
    return "".join(character for character in text.casefold() if character.isalpha())
