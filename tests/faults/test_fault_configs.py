"""Configs, tokenizers and languages: a value in the JSON files of a checkpoint is used only if it is possible."""

from __future__ import annotations

import json
import os
import shutil
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
from conftest import QUICKSTART, make_wave
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_peft import evaluate, load_model, load_preparation, load_source, merge, prepare, train, transcribe
from whisper_peft.errors import Notice, UserError
from whisper_peft.model.adapter_configs import is_tame, load_peft_config, read_adapter_config
from whisper_peft.model.configs import load_config, load_generation_config, load_processor
from whisper_peft.model.loading import load_base
from whisper_peft.model.lora import add_adapter, load_adapter, make_target_pattern

HUGE = 2**40
NO_OBJECTS = ["[1]", "5", '"x"', "null", "[" * 5000, '{"a": ' * 200 + "1" + "}" * 200, "{", "9" * 5000, "\x00", ""]
MADE_OF_NOTHING = [[], 5, "text", None, True, -1, 1.5, float("nan"), float("inf"), 10**400, {}, [[]], {"a": {}}]


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, whose files a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(folder: Path, name: str, drop: tuple[str, ...] = (), **fields) -> None:
    path = folder / name
    page = json.loads(path.read_text(encoding="utf-8"))
    page = {key: value for key, value in {**page, **fields}.items() if key not in drop}
    path.write_text(json.dumps(page), encoding="utf-8")


def refusal(load, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


# config.json


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"d_model": HUGE}, "d_model is 1099511627776; expected a whole number"),
        ({"hidden_size": HUGE}, "hidden_size"),
        ({"d_model": 15}, "d_model is 15"),
        ({"d_model": "16"}, "d_model"),
        ({"d_model": 32}, "the weights beside it have 16"),
        ({"encoder_layers": 10**9}, "encoder_layers"),
        ({"encoder_layers": 100}, "the weights beside it have 1"),
        ({"decoder_layers": 9}, "decoder_layers is 9"),
        ({"encoder_attention_heads": 3}, "among 3 heads"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads"),
        ({"vocab_size": HUGE}, "vocab_size"),
        ({"vocab_size": 700}, "the weights beside it have 644"),
        ({"max_source_positions": -1}, "max_source_positions"),
        ({"max_source_positions": 1500}, "have 150"),
        ({"max_target_positions": 10**400}, "max_target_positions"),
        ({"num_mel_bins": 128}, "have 80"),
        ({"encoder_ffn_dim": HUGE}, "encoder_ffn_dim"),
        ({"decoder_ffn_dim": 33}, "decoder_ffn_dim is 33"),
        ({"activation_function": "no_such"}, "no function that transformers knows"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"attention_dropout": 1e308}, "attention_dropout"),
        ({"pad_token_id": 50257}, "has 644 tokens"),
        ({"decoder_start_token_id": 644}, "has 644 tokens"),
        ({"eos_token_id": "386"}, "eos_token_id"),
        ({"bos_token_id": -2}, "bos_token_id"),
        ({"begin_suppress_tokens": 5}, "begin_suppress_tokens"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"torch_dtype": "evil"}, "torch_dtype"),
        ({"dtype": 7}, "dtype is 7"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"architectures": {"a": 1}}, "architectures"),
        ({"model_type": "bert"}, "a bert model"),
        ({"model_type": 5}, "names no model_type"),
    ],
)
def test_row_26_an_impossible_config_is_refused_in_one_line(fields, words, model):
    change(model, "config.json", **fields)
    message = refusal(load_config, str(model))
    assert words in message
    if "bert" not in words:
        assert "config.json" in message


def test_row_26_a_config_of_a_huge_model_is_refused_in_little_time_and_memory(model):
    change(model, "config.json", encoder_layers=200, decoder_layers=200, d_model=16_384, encoder_ffn_dim=131_072)
    tracemalloc.start()
    began = time.monotonic()
    refusal(load_base, str(model))
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert time.monotonic() - began < 20


def test_row_26_fields_that_mean_nothing_to_whisper_are_ignored(model):
    change(
        model,
        "config.json",
        num_labels=10**9,
        pruned_heads={"x": 1},
        to_dict=5,
        problem_type="evil",
        id2label=[1],
        num_hidden_layers=1,
        rope_scaling={"type": 5},
        save_pretrained="x",
        get_text_config=None,
        gradient_checkpointing=1,
    )
    load_base(str(model))
    load_preparation(str(model))


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("config.json", load_config),
        ("generation_config.json", load_generation_config),
        ("tokenizer_config.json", load_processor),
        ("tokenizer.json", load_processor),
        ("vocab.json", load_processor),
        ("preprocessor_config.json", load_processor),
        ("processor_config.json", load_processor),
    ],
)
def test_row_26_a_json_file_that_holds_no_object_is_refused_with_its_name(name, load, model):
    if name == "preprocessor_config.json":
        (model / "processor_config.json").unlink(missing_ok=True)
    for content in NO_OBJECTS:
        (model / name).write_text(content, encoding="utf-8")
        assert name in refusal(load, str(model))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_row_22_a_pointer_or_a_web_page_in_place_of_a_file_is_recognised(name, model):
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    assert "git lfs pull" in refusal(load_preparation, str(model))
    (model / name).write_text("<!DOCTYPE html><html>404</html>")
    assert "HTML page" in refusal(load_preparation, str(model))


def test_row_34_a_pipe_in_place_of_a_config_is_refused(model):
    for name in ("generation_config.json", "tokenizer.json", "config.json"):
        (model / name).unlink()
        os.mkfifo(model / name)
        assert f"{name}: a pipe" in refusal(load_preparation, str(model))


# Code in a checkpoint

CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil: pass\ndef generate(*a, **k): pass\n"


def test_row_39_code_in_a_checkpoint_is_never_run_and_nobody_is_asked(model, tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    (model / "custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py", "modeling_whisper.py"):
        (model / name).write_text(CODE.format(str(mark)))
    classes = ("AutoConfig", "AutoModel", "AutoModelForSpeechSeq2Seq", "AutoTokenizer", "AutoProcessor")
    auto_map = dict.fromkeys((*classes, "AutoFeatureExtractor"), "evil.Evil")
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"):
        if (model / name).is_file():
            change(model, name, auto_map=auto_map, custom_generate="evil.py")
    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")

    def ask(*arguments):
        raise AssertionError("asked whether to run code")

    monkeypatch.setattr("builtins.input", ask)
    loaded, preparation, _ = load_model(model)
    assert type(loaded).__name__ == "WhisperForConditionalGeneration"
    assert "Whisper" in type(preparation.tokenizer).__name__
    assert not mark.exists()


def test_every_call_of_from_pretrained_sets_trust_remote_code():
    import ast

    import whisper_peft

    for name in ("configs", "vocabulary", "generation_config", "adapter_configs"):
        tree = ast.parse((Path(whisper_peft.__file__).parent / "model" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}


def test_row_42_an_attention_kernel_from_the_hub_is_ignored(model):
    change(
        model,
        "config.json",
        attn_implementation="kernels-community/evil",
        _attn_implementation="owner/kernel",
        _attn_implementation_internal="owner/kernel",
        _experts_implementation="owner/kernel",
        use_kernels=True,
    )
    assert load_config(str(model))._attn_implementation is None
    load_base(str(model))


# The tokenizer and the extractor


def without_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",), ("vocab.json",), ("merges.txt",)])
def test_row_21_a_folder_without_a_tokenizer_is_refused_with_a_remedy(kept, model, tiny_model, tmp_path, run_cli):
    without_tokenizer(model)
    for name in kept:
        shutil.copy(QUICKSTART / "model" / name, model / name)
    message = refusal(load_model, model)
    assert "no tokenizer in it" in message and "from the base" in message


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 30: {"content": "a"}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": 5}}}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder"),
        ("tokenizer_config.json", {"bos_token": 5}, "bos_token is 5"),
        ("tokenizer_config.json", {"eos_token": {"content": []}}, "eos_token"),
        ("tokenizer_config.json", {"additional_special_tokens": "x"}, "additional_special_tokens"),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, "extra_special_tokens"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
        ("tokenizer_config.json", {"errors": "evil"}, "errors is 'evil'"),
        ("tokenizer_config.json", {"language": "klingon"}, "language is 'klingon'"),
        ("tokenizer_config.json", {"task": 5}, "task is 5"),
        ("tokenizer.json", {"model": None}, "model is None"),
        ("tokenizer.json", {"model": {}}, "model.vocab"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "model.vocab"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 10**30}, "merges": []}}, "model.vocab"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [], "merges": []}}, "model.type"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [5]}}, "model.merges"),
        ("tokenizer.json", {"added_tokens": 5}, "added_tokens is 5"),
        ("tokenizer.json", {"added_tokens": [{}]}, "added_tokens"),
        ("tokenizer.json", {"added_tokens": [{"content": "a", "id": HUGE}]}, "added_tokens.id"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}}, "regular expression"),
        ("tokenizer.json", {"added_tokens": []}, "tokenizer"),
        ("vocab.json", {"a": "b"}, "vocab.json"),
        ("vocab.json", {"a": HUGE}, "vocab.json"),
        ("special_tokens_map.json", {"bos_token": [5]}, "bos_token"),
        ("added_tokens.json", {"<|x|>": "5"}, "added_tokens"),
    ],
)
def test_row_26_an_impossible_tokenizer_is_refused_in_one_line(name, fields, words, model):
    if not (model / name).is_file():
        (model / name).write_text("{}")
    # Take the special tokens out of the other files, too.
    if fields == {"added_tokens": []}:
        change(model, "tokenizer_config.json", added_tokens_decoder={})
        for other in ("vocab.json", "added_tokens.json"):
            (model / other).unlink(missing_ok=True)
    change(model, name, **fields)
    assert words in refusal(load_processor, str(model))


def test_paths_in_the_settings_of_a_tokenizer_are_never_opened(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    paths = dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file", "normalizer_file"), str(tmp_path / "pipe"))
    change(model, "tokenizer_config.json", **paths, init_inputs=[5], chat_template="{{ 1 / 0 }}", name_or_path=5)
    expected = load_processor(str(QUICKSTART / "model")).tokenizer("घर पानी").input_ids
    assert load_processor(str(model)).tokenizer("घर पानी").input_ids == expected


def test_a_tokenizer_of_another_checkpoint_is_refused(model):
    page = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    token = {**page["added_tokens"][-1], "content": "<|one more|>", "id": 644}
    change(model, "tokenizer.json", added_tokens=[*page["added_tokens"], token])
    assert "vocab_size of 644" in refusal(load_preparation, str(model))


def test_a_config_with_another_start_token_is_refused(model):
    change(model, "config.json", decoder_start_token_id=386)
    assert "decoder_start_token_id 386" in refusal(load_preparation, str(model))


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling_rate": 10**9},
        {"n_fft": 10**9},
        {"feature_size": HUGE},
        {"hop_length": 0},
        {"chunk_length": "x"},
        {"feature_size": 80.5},
        {"padding_value": float("nan")},
        {"sampling_rate": 8000},
        {"n_fft": None},
    ],
)
def test_row_26_an_impossible_feature_extractor_is_refused_in_one_line(fields, model):
    (model / "processor_config.json").unlink(missing_ok=True)
    change(model, "preprocessor_config.json", **fields)
    message = refusal(load_processor, str(model))
    assert "preprocessor_config.json" in message and next(iter(fields)) in message


def test_a_missing_feature_extractor_is_made_from_the_config_with_a_notice(model, tiny_model):
    (model / "processor_config.json").unlink(missing_ok=True)
    (model / "preprocessor_config.json").unlink()
    with pytest.warns(Notice, match="80 mel bins, 3 s"):
        preparation = load_preparation(str(model))
    expected = load_preparation(str(tiny_model))
    assert (preparation.window_samples, preparation.n_mels, preparation.n_fft) == (48_000, 80, expected.n_fft)


# generation_config.json


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lang_to_id": [1]}, "lang_to_id"),
        ({"lang_to_id": {"<|hi|>": "405"}}, "lang_to_id"),
        ({"lang_to_id": {"<|hi|>": 10**9}}, "lang_to_id"),
        ({"task_to_id": 5}, "task_to_id"),
        ({"suppress_tokens": {"a": 1}}, "suppress_tokens"),
        ({"suppress_tokens": [1, "2"]}, "suppress_tokens"),
        ({"suppress_tokens": [700]}, "the model has 644 tokens"),
        ({"begin_suppress_tokens": [-5]}, "begin_suppress"),
        ({"alignment_heads": 5}, "alignment_heads"),
        ({"alignment_heads": [[1, "a"]]}, "alignment_heads"),
        ({"no_timestamps_token_id": "x"}, "no_timestamps_token_id"),
        ({"no_timestamps_token_id": 10**400}, "no_times"),
        ({"eos_token_id": [644]}, "eos_token_id"),
        ({"max_length": -3}, "max_length"),
        ({"num_beams": 10**9}, "num_beams"),
        ({"is_multilingual": "yes"}, "is_multilingual"),
        ({"language": "klingon"}, "language is 'klingon'"),
        ({"language": 5}, "language is 5"),
        ({"task": "sing"}, "task is 'sing'"),
        ({"temperature": "hot"}, "temperature"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_row_26_an_impossible_generation_config_is_refused_in_one_line(fields, words, model):
    change(model, "generation_config.json", **fields)
    message = refusal(load_generation_config, str(model))
    assert words in message and "generation_config.json" in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lang_to_id", {}, "filled in from the tokenizer: lang_to_id"),
        ("task_to_id", {}, "filled in from the tokenizer: task_to_id"),
        ("compression_ratio_threshold", 1.35, "ignored: compression_ratio_threshold"),
        ("logprob_threshold", -1.0, "ignored: logprob_threshold"),
        ("no_speech_threshold", 0.6, "ignored: no_speech_threshold"),
        ("repetition_penalty", 2, None),
    ],
)
def test_row_18_a_model_whose_generation_config_has_an_odd_field_transcribes(name, value, words, model, speech):
    change(model, "generation_config.json", **{name: value})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        transcripts = list(transcribe(str(model), [str(speech / "test" / "0.wav")], language="hi"))
    assert len(transcripts) == 1
    remarks = {str(remark.message) for remark in said if remark.category is Notice}
    assert [words in remark for remark in remarks] == ([] if words is None else [True])


# The fields that transformers 4.27 wrote, with the ids of the tiny model.
OLD = {
    "_from_model_config": True,
    "begin_suppress_tokens": [220, 386],
    "bos_token_id": 386,
    "decoder_start_token_id": 387,
    "eos_token_id": 386,
    "max_length": 64,
    "pad_token_id": 386,
    "suppress_tokens": [],
    "use_cache": False,
    "forced_decoder_ids": [[1, 405], [2, 488], [3, 492]],
    "transformers_version": "4.27.0.dev0",
}


def make_old(model: Path, kind: str) -> None:
    if kind == "none":
        (model / "generation_config.json").unlink()
    else:
        (model / "generation_config.json").write_text(json.dumps(OLD))


@pytest.mark.parametrize("kind", ["none", "2023"])
def test_row_18_an_old_or_missing_generation_config_is_filled_in_with_one_notice(kind, model, tiny_model):
    make_old(model, kind)
    with pytest.warns(Notice, match=r"filled in from the (vocabulary and the )?tokenizer") as said:
        config = load_generation_config(str(model))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = load_generation_config(str(tiny_model))
    for name in (
        "lang_to_id",
        "task_to_id",
        "is_multilingual",
        "no_timestamps_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "max_length",
        "prev_sot_token_id",
    ):
        assert getattr(config, name) == getattr(expected, name), name
    assert config.suppress_tokens == ([] if kind == "2023" else expected.suppress_tokens)
    assert config.begin_suppress_tokens == [220, 386]
    # Nobody has published alignment heads for this shape.
    assert getattr(config, "alignment_heads", None) is None
    assert getattr(config, "forced_decoder_ids", None) is None


def test_row_18_every_command_works_with_an_old_or_missing_generation_config(model, speech, tmp_path, run_cli):
    import soundfile
    from conftest import tiny_recipe

    make_old(model, "none")
    soundfile.write(tmp_path / "long.wav", make_wave(3.2), 16000)
    done = run_cli("transcribe", model, tmp_path / "long.wav", "--language", "hindi")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Note: ") == 1 and "no such file; its fields are filled in" in done.stderr
    make_old(model, "2023")
    result = train(
        tiny_recipe(model, speech, **{"train.steps": 1, "evaluate.compare_clips": 0}), output=tmp_path / "run"
    )
    assert evaluate(result.run, speech / "test", max_clips=1).clips == 1
    merge(result.run, tmp_path / "merged", check=speech / "test")
    for folder in (result.model, tmp_path / "merged"):
        page = json.loads((folder / "generation_config.json").read_text())
        assert (
            page["language"] == "hi" and page["lang_to_id"]["<|hi|>"] == 405 and page["no_timestamps_token_id"] == 492
        )


def test_row_18_the_shapes_of_openai_get_their_published_generation_fields(shared, tmp_path):
    source = shared / "models" / "whisper-base"
    for file in source.iterdir():
        if file.name not in ("generation_config.json", "model.safetensors"):
            shutil.copy(file, tmp_path / file.name)
    with pytest.warns(Notice):
        fields = load_generation_config(str(tmp_path)).to_dict()
    expected = load_generation_config(str(source)).to_dict()
    assert {name: (fields.get(name), value) for name, value in expected.items() if fields.get(name) != value} == {}


def test_a_generation_config_of_an_english_only_checkpoint_is_replaced(model):
    english = {
        "decoder_start_token_id": 386,
        "eos_token_id": 385,
        "no_timestamps_token_id": 491,
        "is_multilingual": False,
        "pad_token_id": 385,
        "bos_token_id": 386,
        "suppress_tokens": [1, 2],
        "max_length": 448,
    }
    (model / "generation_config.json").write_text(json.dumps(english))
    with pytest.warns(Notice, match="decoder_start_token_id, eos_token_id, no_timestamps_token_id did not agree"):
        config = load_generation_config(str(model))
    assert config.is_multilingual and config.decoder_start_token_id == 387 and config.lang_to_id["<|hi|>"] == 405
    assert config.max_length == 64 and 1 not in config.suppress_tokens


def test_language_tokens_that_disagree_with_the_tokenizer_are_replaced(model):
    page = json.loads((model / "generation_config.json").read_text())
    change(model, "generation_config.json", lang_to_id={**page["lang_to_id"], "<|hi|>": 406})
    with pytest.warns(Notice, match="lang_to_id"):
        assert load_generation_config(str(model)).lang_to_id == page["lang_to_id"]


def test_alignment_heads_of_a_larger_model_are_removed_with_a_notice(model):
    change(model, "generation_config.json", alignment_heads=[[0, 1], [5, 7]])
    with pytest.warns(Notice, match="alignment_heads left out"):
        assert getattr(load_generation_config(str(model)), "alignment_heads", None) is None


def test_the_command_line_shows_a_repeated_notice_once(capsys):
    from whisper_peft.cli.printer import Printer
    from whisper_peft.cli.quiet import show_notices

    with warnings.catch_warnings():
        show_notices(Printer(as_json=False, quiet=False).say)
        for _ in range(3):
            warnings.warn("a.json: filled in.", Notice, stacklevel=1)
    assert capsys.readouterr().err == "Note: a.json: filled in.\n"


# adapter_config.json


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    add_adapter(load_base(str(tiny_model)), rank=4).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def base(tiny_model):
    """The base in memory, for tests that refuse an adapter before the base is changed."""
    return load_base(str(tiny_model))


@pytest.fixture
def spoilt(adapter, tmp_path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


@pytest.mark.parametrize("content", ["[1]", "5", "null", "{", "[" * 5000, ""])
def test_row_26_an_adapter_config_that_holds_no_object_is_refused_with_its_name(content, spoilt):
    (spoilt / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refusal(read_adapter_config, spoilt)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": "4"}, "r is '4'"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"r": -1}, "r is -1"),
        ({"r": True}, "r is True"),
        ({"r": 4000}, "weights have rank 4"),
        ({"lora_alpha": [8]}, "lora_alpha"),
        ({"lora_alpha": 1e400}, "lora_alpha"),
        ({"lora_dropout": float("nan")}, "lora_dropout"),
        ({"target_modules": 5}, "target_modules"),
        ({"target_modules": [5]}, "target_modules"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"modules_to_save": "proj_out"}, "modules_to_save"),
        ({"modules_to_save": ["(a+)+$"]}, "modules_to_save"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path"),
        ({"peft_type": "EVIL"}, "peft_type is 'EVIL'"),
        ({"peft_type": None}, "peft_type"),
        ({"bias": "evil"}, "bias"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"layers_to_transform": "all"}, "layers_to_transform"),
        ({"layers_pattern": 5}, "layers_pattern"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication"),
        ({"task_type": [1]}, "task_type"),
    ],
)
def test_row_26_an_impossible_adapter_config_is_refused_in_one_line(fields, words, spoilt):
    change(spoilt, "adapter_config.json", **fields)
    assert words in refusal(read_adapter_config, spoilt)


@pytest.mark.parametrize(
    "pattern", [r"(([a-z._]+)+)+X", r"(.*)*(.*)*(.*)*(.*)*!", r"(a|a)*(m|m|o|d|e|l|.)*(.|.)*#", ".*" * 40 + "#", "("]
)
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_row_38_a_regular_expression_that_never_ends_is_refused_within_seconds(pattern, field, spoilt, base):
    changes = {field: {pattern: 4} if field.endswith("_pattern") and field != "layers_pattern" else pattern}
    if field == "layers_pattern":
        changes |= {"layers_to_transform": [0], "target_modules": ["q_proj"]}
    change(spoilt, "adapter_config.json", **changes)
    began = time.monotonic()
    assert field in refusal(load_peft_config, spoilt, base)
    # Without the limit, matching never ends. The bound leaves room for a busy machine.
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        ["fc1"],
        r".*decoder.*(q_proj|v_proj)$",
        "q_proj",
        make_target_pattern("attention"),
        r"^(model\.)?(encoder|decoder)\.layers\.\d+\.self_attn\.(q|v)_proj$",
        r".*model.*decoder.*layers.*self_attn.*q_proj",
        r"(?:model\.)?decoder\.layers\.(?:\d+)\.(?:self_attn|encoder_attn)\.(?:q_proj|k_proj)",
        "all-linear",
    ],
)
def test_row_38_an_adapter_with_a_usual_pattern_loads_with_the_same_modules(targets, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    # peft compares a string with the whole name of a module.
    if targets == "q_proj":
        targets = r".*q_proj"
    made = get_peft_model(
        load_base(str(tiny_model)), LoraConfig(r=2, target_modules=targets, rank_pattern={"k_proj": 3})
    )
    made.save_pretrained(str(tmp_path))
    loaded = load_adapter(load_base(str(tiny_model)), tmp_path)
    names = [name for name, _ in made.named_parameters() if "lora" in name]
    assert names == [name for name, _ in loaded.named_parameters() if "lora" in name] and names
    shapes = [tuple(value.shape) for name, value in made.named_parameters() if "lora" in name]
    assert shapes == [tuple(value.shape) for name, value in loaded.named_parameters() if "lora" in name]


def test_our_own_target_patterns_are_accepted_unchanged(spoilt, base):
    for targets in ("attention", "mlp", "attention+mlp", "encoder", "decoder+attention"):
        assert is_tame(make_target_pattern(targets))
    before = json.loads((spoilt / "adapter_config.json").read_text())["target_modules"]
    assert load_peft_config(spoilt, base).target_modules == before


# Languages


@pytest.fixture(scope="module")
def english(tiny_model, tmp_path_factory) -> Path:
    """An English-only checkpoint."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("english") / "tiny.en"))
    change(folder, "generation_config.json", drop=("lang_to_id", "task_to_id", "language"), is_multilingual=False)
    return folder


@pytest.fixture(scope="module")
def mixed(speech, tmp_path_factory) -> Path:
    """A manifest with two clips in Hindi, one clip in Thai, and one clip without a language."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = load_source(str(speech / "test"))
    lines = [
        {"audio": row.audio, "text": row.text, **({"language": code} if code else {})}
        for row, code in zip(rows, ("hi", "th", "hi", None), strict=True)
    ]
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder / "mixed.jsonl"


def test_english_only_checkpoints_refuse_another_language_everywhere(english, speech, mixed, tmp_path):
    from conftest import tiny_recipe

    from whisper_peft import check
    from whisper_peft.delivery.demo import demo

    clip = load_source(str(speech / "test"))[0].audio
    flags = (
        lambda: transcribe(english, [clip], language="hindi"),
        lambda: evaluate(english, speech / "test", language="hi"),
        lambda: prepare(tiny_recipe(english, speech)),
        lambda: prepare(tiny_recipe(english, speech, **{"model.language": None, "model.language_token": "hi"})),
        lambda: check(speech / "test", model=english, language="hindi", audio=False),
        lambda: demo(english, language="hindi", compare="none", port=0, wait=False),
    )
    for call in flags:
        assert "English-only checkpoint" in refusal(call)
    rows = (
        lambda: evaluate(english, mixed),
        lambda: check(mixed, model=english, audio=False),
        lambda: prepare(tiny_recipe(english, speech, **{"model.language": None, "data.train": [str(mixed)]})),
    )
    for call in rows:
        message = refusal(call)
        assert "English-only" in message and "'hi' (" in message and "mixed.jsonl:1" in message, message
    assert "only transcribe" in refusal(transcribe, english, [clip], task="translate")
    for language in (None, "english", "auto"):
        assert transcribe(english, [clip], language=language)[0]["audio"] == clip


def test_language_auto_finds_the_language_in_transcribe_and_evaluate(tiny_model, speech, mixed, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "long.wav", make_wave(3.2), 16000)
    clip = load_source(str(speech / "test"))[0].audio
    transcripts = transcribe(tiny_model, [clip, tmp_path / "long.wav"], language="auto")
    known = load_base(str(tiny_model)).generation_config.lang_to_id
    assert all(f"<|{transcript['language']}|>" in known for transcript in transcripts)
    second_transcript = transcribe(tiny_model, [clip], language=transcripts[0]["language"])[0]
    assert second_transcript == transcripts[0]
    assert evaluate(tiny_model, mixed, language="Auto").clips == 4
    assert "--language auto" in refusal(transcribe, tiny_model, [clip])


@pytest.mark.parametrize("unknown", ["", {"content": "", "lstrip": False, "rstrip": False, "normalized": True}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_row_26_an_unknown_token_without_a_text_is_left_out(unknown, name, model):
    if not (model / name).exists():
        (model / name).write_text("{}")
    change(model, name, unk_token=unknown)
    assert "no token <|nobody|>" in refusal(load_preparation(str(model)).token_id, "<|nobody|>")


def test_row_26_config_fields_that_contradict_every_whisper_have_no_effect(model, tiny_model, speech):
    change(model, "config.json", tie_word_embeddings=False, is_encoder_decoder=False, init_std=1)
    clip = str(speech / "test" / "0.wav")
    texts = [transcribe(str(folder), [clip], language="hi")[0]["text"] for folder in (model, tiny_model)]
    assert texts[0] == texts[1]


def test_merge_checks_clips_with_language_auto_and_with_a_named_language(lora_run, speech, tmp_path):
    folder = shutil.copytree(speech / "test", tmp_path / "clips")
    assert merge(lora_run / "adapter", tmp_path / "one", check=str(folder), language="auto").clips == 4
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    spoken = [f"{line},{'language' if number == 0 else 'bho'}" for number, line in enumerate(lines)]
    (folder / "metadata.csv").write_text("\n".join(spoken), encoding="utf-8")
    assert merge(lora_run / "adapter", tmp_path / "two", check=str(folder), language="hindi").clips == 4


@pytest.mark.parametrize("language", ["", " ", "<||>"])
def test_an_empty_language_is_refused(language, tiny_model, lora_run, speech, tmp_path):
    clip = str(speech / "test" / "0.wav")
    for call in (
        lambda: transcribe(tiny_model, [clip], language=language),
        lambda: evaluate(tiny_model, speech / "test", language=language),
        lambda: merge(lora_run / "adapter", tmp_path / "merged", language=language),
    ):
        assert "not one that Whisper knows" in refusal(call)


def test_a_row_keeps_its_own_language_under_language_auto(tiny_model, mixed):
    from whisper_peft.evaluation.scoring import label_rows

    loaded, preparation, located = load_model(tiny_model)
    rows = load_source(str(mixed))
    dataset = label_rows(loaded, located, preparation, rows, language="auto", task=None)
    assert [dataset.language_of(number) for number in range(3)] == ["hi", "th", "hi"]
    assert dataset.language_of(3) is not None


def test_training_and_check_refuse_language_auto_with_the_reason(tiny_model, speech):
    from conftest import tiny_recipe

    from whisper_peft import check

    for call in (
        lambda: prepare(tiny_recipe(tiny_model, speech, **{"model.language": "auto"})),
        lambda: check(speech / "test", language="auto", audio=False),
    ):
        assert "its language token is part of what is learnt" in refusal(call)


# Random values in every field

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([HUGE, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "tokenizer.json")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_config_is_used_or_refused_in_one_line(data, tiny_model, tmp_path):
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(tiny_model, folder)
        (folder / "processor_config.json").unlink(missing_ok=True)
    name = data.draw(st.sampled_from(FILES))
    original = (folder / name).read_text(encoding="utf-8")
    field = data.draw(st.sampled_from(sorted(json.loads(original))))
    try:
        change(folder, name, **{field: data.draw(json_values | st.sampled_from(MADE_OF_NOTHING))})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_preparation(str(folder))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
    finally:
        (folder / name).write_text(original, encoding="utf-8")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_an_adapter_config_is_used_or_refused_in_one_line(data, adapter, base, tmp_path):
    folder = tmp_path / "adapter"
    if not folder.exists():
        shutil.copytree(adapter, folder)
    original = (folder / "adapter_config.json").read_text()
    field = data.draw(st.sampled_from(sorted(json.loads(original))))
    try:
        change(folder, "adapter_config.json", **{field: data.draw(json_values | st.sampled_from(MADE_OF_NOTHING))})
        load_peft_config(folder, base)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
    finally:
        (folder / "adapter_config.json").write_text(original)
