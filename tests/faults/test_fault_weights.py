"""Weights under odd names, weights that do not fit, and models of other programs load right or end in one line."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, make_tiny_model, tiny_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from whisper_peft import (
    Notice,
    UserError,
    build_model,
    evaluate,
    load_base,
    load_model,
    locate,
    merge,
    prepare,
    publish,
    train,
)
from whisper_peft.model.identity import BASE_FACTS, base_identity
from whisper_peft.model.lora import load_adapter
from whisper_peft.training.artefacts import count_weights, load_weights

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
HEAD = "proj_out.weight"
FIXED = "model.encoder.embed_positions.weight"


@pytest.fixture(scope="module")
def adapter(lora_run, tmp_path_factory) -> Path:
    """A trained adapter of ours, without its run and without base.json."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    shutil.copytree(lora_run / "adapter", folder)
    (folder / BASE_FACTS).unlink()
    return folder


def changed(source: Path, target: Path, change) -> Path:
    """Copy a model or an adapter, and change its tensors."""
    shutil.copytree(source, target)
    name = ADAPTER_WEIGHTS if (source / ADAPTER_WEIGHTS).exists() else WEIGHTS
    save_file(change(load_file(source / name)), target / name, metadata={"format": "pt"})
    return target


def renamed(write):
    """Return a change that gives each tensor another name."""
    return lambda state: {write(name): tensor for name, tensor in state.items()}


def with_page(source: Path, target: Path, page: str, **values: object) -> Path:
    """Copy a folder, and change values in one of its JSON files."""
    shutil.copytree(source, target)
    content = json.loads((source / page).read_text(encoding="utf-8")) if (source / page).exists() else {}
    (target / page).write_text(json.dumps({**content, **values}), encoding="utf-8")
    return target


def same_weights(first, second) -> bool:
    state = second.state_dict()
    return all(tensor.equal(state[name]) for name, tensor in first.state_dict().items())


# Names

PREFIXES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "a compiled part": lambda name: name.replace("decoder.", "decoder._orig_mod."),
    "data parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "model. twice": lambda name: f"model.{name}",
    "peft's": lambda name: f"base_model.model.{name}",
    "FSDP": lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_row_02_a_base_with_a_known_prefix_is_loaded_with_a_notice(kind, tiny_model, tmp_path):
    folder = changed(tiny_model, tmp_path / "model", renamed(PREFIXES[kind]))
    with pytest.warns(Notice, match=r"took '.*' out of the names.*all 50 tensors fit"):
        model = load_base(str(folder))
    assert same_weights(load_base(str(tiny_model)), model)
    assert model.name_or_path == str(folder)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / WEIGHTS).keys() == load_file(tiny_model / WEIGHTS).keys()


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_row_02_a_base_with_a_known_prefix_is_loaded_in_8_and_4_bits(quantize, tiny_model, tmp_path):
    folder = changed(tiny_model, tmp_path / "model", renamed(PREFIXES["compiled"]))
    with pytest.warns(Notice):
        model = load_base(str(folder), quantize=quantize)
    plain = load_base(str(tiny_model), quantize=quantize)
    assert model.model.decoder.layers[0].fc1.weight.equal(plain.model.decoder.layers[0].fc1.weight)


@pytest.mark.parametrize("kind", PREFIXES)
def test_row_01_an_adapter_with_a_known_prefix_is_loaded_with_a_notice(kind, adapter, tmp_path):
    folder = changed(adapter, tmp_path / "adapter", renamed(PREFIXES[kind]))
    plain = load_model(adapter)[0]
    with pytest.warns(Notice, match=r"all \d+ tensors fit"):
        model = load_model(folder)[0]
    assert same_weights(plain, model)
    with pytest.warns(Notice):
        trained_on = build_model(locate(folder), "lora")
    assert same_weights(plain, trained_on)


def test_row_01_an_adapter_with_a_known_prefix_merges_like_the_original(adapter, tiny_model, speech, tmp_path):
    folder = changed(adapter, tmp_path / "adapter", renamed(PREFIXES["compiled"]))
    check = str(speech / "eval")
    with pytest.warns(Notice):
        report = merge(folder, tmp_path / "one", check=check)
    merge(adapter, tmp_path / "two", check=check)
    prefixed, original, base = (load_file(path / WEIGHTS) for path in (tmp_path / "one", tmp_path / "two", tiny_model))
    assert report.changed_tensors > 0
    assert all(prefixed[name].equal(original[name]) for name in original)
    assert not all(prefixed[name].equal(base[name]) for name in base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(lambda name: f"speech.{name.replace('layers', 'blocks')}"), r" of 49 tensors fit: .* missing"),
        (renamed(lambda name: name.replace("model.encoder", "encoder.blocks")), "openai-whisper or MLX"),
        (lambda state: {}, r"0 of 49 tensors fit: 49 missing"),
        (lambda state: dict(list(state.items())[:-5]), r"44 of 49 tensors fit: 5 missing.*not copied"),
        (lambda state: {**state, "model.decoder.adapter.weight": torch.zeros(2)}, r"49 of 49.*1 left over.*adapter"),
        (lambda state: {**state, "model.decoder.layers.0.fc1.weight": torch.zeros(3, 16)}, r"another shape.*3 × 16"),
        (lambda state: {**state, "_orig_mod.model.decoder.layer_norm.bias": torch.ones(16)}, "1 left over"),
        (
            lambda state: {**state, "model.decoder.layers.0.fc1.weight": torch.zeros(32, 16, dtype=torch.int8)},
            "is of type I8",
        ),
        (lambda state: {**state, "proj_out.weight": torch.zeros(497, 16)}, "they are one weight"),
        (lambda state: {**state, "model.encoder.layers.0.fc1.weight.absmax": torch.zeros(1)}, "4-bit weights"),
        (lambda state: {name: torch.zeros(0) for name in state}, r"0 of 49.*are empty.*DeepSpeed.*gather"),
        (renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer.")), "an adapter in it, not merged"),
        (lambda state: {name: torch.zeros_like(tensor) for name, tensor in state.items()}, r"hold only zeros.*again"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_their_number(change, message, tiny_model, tmp_path):
    if "one weight" in message:
        shape = load_file(tiny_model / WEIGHTS)["model.decoder.embed_tokens.weight"].shape
        folder = changed(tiny_model, tmp_path / "model", lambda state: {**state, "proj_out.weight": torch.zeros(shape)})
    else:
        folder = changed(tiny_model, tmp_path / "model", change)
    with pytest.raises(UserError, match=message) as raised:
        load_base(str(folder))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 900


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"].clone()},
        lambda state: {name: tensor for name, tensor in state.items() if name != FIXED},
        renamed(lambda name: name.removeprefix("model.")),
    ],
    ids=["the tied head is stored", "sinusoids are not stored", "a bare WhisperModel"],
)
def test_weights_with_harmless_differences_load_without_a_notice(change, tiny_model, tmp_path):
    folder = changed(tiny_model, tmp_path / "model", change)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        model = load_base(str(folder))
    assert same_weights(load_base(str(tiny_model)), model)


def test_the_output_layer_is_tied_whatever_the_config_says(tiny_model, tmp_path):
    folder = with_page(tiny_model, tmp_path / "model", "config.json", tie_word_embeddings=False)
    assert HEAD not in load_file(folder / WEIGHTS)
    model = load_base(str(folder))
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    assert same_weights(load_base(str(tiny_model)), model)


def test_shards_in_half_precision_load_and_a_missing_shard_is_refused(tiny_model, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        model = load_base(str(tiny_model)).to(dtype)
        shutil.copytree(tiny_model, folder)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        assert load_base(str(folder), dtype="auto").dtype == dtype
    first = sorted(folder.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=rf"{first}: no such file"):
        load_base(str(folder))
    for page in ({"weight_map": {"a": "../../secret.safetensors"}}, {"weight_map": 3}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(page))
        with pytest.raises(UserError, match="weight_map must name"):
            load_base(str(folder))


def test_shards_of_two_different_saves_are_refused(tiny_model, tmp_path):
    state = load_file(tiny_model / WEIGHTS)
    names = list(state)
    index = {"weight_map": {name: f"{'a' if name in names[:20] else 'b'}.safetensors" for name in names}}
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    save_file({name: state[name] for name in names[:20]}, folder / "model-a-of-2.safetensors")
    save_file({name: state[name] + 1 for name in names[19:]}, folder / "model-b-of-2.safetensors")
    with pytest.raises(UserError, match=r"parts of the weights .*without model\.safetensors\.index\.json"):
        load_base(str(folder))
    for part in "ab":
        (folder / f"model-{part}-of-2.safetensors").rename(folder / f"{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"b\.safetensors: {names[19]} is in a\.safetensors, too"):
        load_base(str(folder))


def test_a_tensor_of_zeros_gives_a_notice(tiny_model, tmp_path):
    name = "model.encoder.layers.0.fc1.weight"
    folder = changed(tiny_model, tmp_path / "model", lambda state: {**state, name: torch.zeros_like(state[name])})
    with pytest.warns(Notice, match=rf"1 tensors hold only zeros \({name}\)"):
        load_base(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_an_adapter_of_whole_numbers_or_8_bit_floats_is_refused(dtype, adapter, tmp_path):
    folder = changed(
        adapter, tmp_path / "adapter", lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}
    )
    with pytest.raises(UserError, match=r"is of type .*weights are F32, F16 or BF16"):
        load_model(folder)


def test_an_adapter_saved_under_another_name_is_loaded_with_a_notice(adapter, tmp_path):
    def named(name):
        return name.replace(".weight", ".hindi.weight")

    with pytest.warns(Notice, match=r"took 'hindi\.' out of the names"):
        model = load_model(changed(adapter, tmp_path / "adapter", renamed(named)))[0]
    assert same_weights(load_model(adapter)[0], model)


@pytest.mark.parametrize("zero", ["lora_A", "lora_B", "lora_alpha"])
def test_an_adapter_that_changes_nothing_gives_a_notice_and_cannot_be_merged(zero, adapter, tmp_path):
    folder = changed(
        adapter,
        tmp_path / "adapter",
        lambda state: {name: tensor * (zero not in name) for name, tensor in state.items()},
    )
    if zero == "lora_alpha":
        page = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps({**page, "lora_alpha": 0}), encoding="utf-8")
    with pytest.warns(Notice, match="the adapter changes nothing"):
        load_model(folder)
    with pytest.warns(Notice), pytest.raises(UserError, match="nothing to merge"):
        merge(folder, tmp_path / "merged")
    with pytest.warns(Notice, match="the adapter changes nothing"):
        publish(folder, "me/it", base="openai/whisper-tiny", dry_run=True)
    # Before its first step every adapter has a lora_B of zeros, so such an adapter can be trained.
    if zero != "lora_B":
        with pytest.raises(UserError, match=r"cannot be trained further.*start a new adapter"):
            build_model(locate(folder), "lora")


def test_publish_refuses_weights_of_zeros_and_names_that_peft_does_not_know(adapter, tiny_model, tmp_path):
    folder = changed(
        tiny_model, tmp_path / "zeros", lambda state: {name: torch.zeros_like(state[name]) for name in state}
    )
    with pytest.raises(UserError, match="hold only zeros"):
        publish(folder, "me/it", dry_run=True)
    with warnings.catch_warnings():
        # A trained adapter must not give the notice that it changes nothing.
        warnings.simplefilter("error", Notice)
        publish(adapter, "me/it", base="openai/whisper-tiny", dry_run=True)
    folder = changed(adapter, tmp_path / "named", renamed(lambda name: name.replace(".weight", ".hindi.weight")))
    with pytest.warns(Notice), pytest.raises(UserError, match="not named as peft names them"):
        publish(folder, "me/it", base="openai/whisper-tiny", dry_run=True)


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_row_03_a_base_with_weights_that_are_not_finite_is_refused(value, quantize, tiny_model, tmp_path):
    def poison(state):
        state["model.decoder.layers.0.fc1.weight"][0, 0] = value
        return state

    folder = changed(tiny_model, tmp_path / "model", poison)
    with pytest.raises(UserError, match=r"not finite numbers .* 1 tensors \(model\.decoder\.layers\.0\.fc1\.weight\)"):
        load_base(str(folder), quantize=quantize)


def test_row_03_an_adapter_with_weights_that_are_not_finite_is_refused(adapter, tmp_path):
    name = sorted(load_file(adapter / ADAPTER_WEIGHTS))[3]

    def poison(state):
        state[name][0, 0] = float("nan")
        return state

    folder = changed(adapter, tmp_path / "adapter", poison)
    for use in (
        lambda: load_model(folder),
        lambda: build_model(locate(folder), "lora"),
        lambda: merge(folder, tmp_path / "merged"),
        lambda: publish(folder, "me/adapter", base="me/base", dry_run=True),
    ):
        with pytest.raises(UserError, match="not finite numbers"):
            use()


def test_large_but_finite_weights_load(tiny_model, tmp_path):
    def enlarge(state):
        # The sum of these values is too large for float32.
        state["model.decoder.layer_norm.weight"][:] = 3e38
        return state

    assert load_base(str(changed(tiny_model, tmp_path / "model", enlarge))) is not None


# Merging


def test_merge_refuses_an_adapter_that_leaves_the_merged_weights_unchanged(adapter, speech, tmp_path):
    folder = changed(
        adapter,
        tmp_path / "adapter",
        lambda state: {name: tensor * ("lora_B" not in name) for name, tensor in state.items()},
    )
    with pytest.warns(Notice, match="changes nothing"), pytest.raises(UserError, match="nothing to merge"):
        merge(folder, tmp_path / "merged")
    small = changed(
        adapter,
        tmp_path / "small",
        lambda state: {
            name: torch.full_like(tensor, 1e-12) if "lora_B" in name else tensor for name, tensor in state.items()
        },
    )
    with pytest.raises(UserError, match=r"smaller than bfloat16 can hold.*--dtype float32"):
        merge(small, tmp_path / "merged", dtype="bfloat16", check=str(speech / "eval"))
    assert not (tmp_path / "merged").exists()


# Checkpoints of a run


def test_a_checkpoint_with_damaged_weights_is_refused_with_its_name(tiny_model, lora_run, full_run, tmp_path):
    for run, mode in ((lora_run, "lora"), (full_run, "full")):
        model = build_model(locate(tiny_model), mode, lora={"rank": 4, "alpha": 8})
        checkpoint = sorted((run / "checkpoints").iterdir())[-1]
        load_weights(model, checkpoint)
        for number, change in enumerate(
            (
                renamed(PREFIXES["compiled"]),
                lambda state: dict(list(state.items())[:-1]),
                lambda state: {name: tensor * float("nan") for name, tensor in state.items()},
            )
        ):
            damaged = changed(checkpoint, tmp_path / f"{mode}{number}", change)
            with warnings.catch_warnings(), pytest.raises(UserError, match=str(damaged)):
                warnings.simplefilter("ignore", Notice)
                count_weights(model, damaged)


# Models of other programs


def pickled(path: Path) -> None:
    torch.save({"dims": {"n_audio_state": 16}, "model_state_dict": {"a": torch.zeros(1)}}, path)


FOREIGN_FILES = {
    "ggml-base.bin": (lambda path: path.write_bytes(b"lmgg" + bytes(60)), "ggml"),
    "whisper.gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(60)), "GGUF"),
    "base.pt": (pickled, "openai-whisper"),
    "other.pt": (lambda path: torch.save({"a": torch.zeros(1)}, path), "pickled"),
    "old.bin": (lambda path: path.write_bytes(b"\x80\x02}q\x00." + bytes(20)), "pickled"),
    "model.onnx": (lambda path: path.write_bytes(b"\x08\x07" + bytes(20)), "ONNX"),
    "weights.npz": (lambda path: np.savez(path, a=np.zeros(2)), "MLX"),
    "page.bin": (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "HTML"),
    "pointer.bin": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"),
        "git lfs pull",
    ),
    "model.bin": (
        lambda path: path.write_bytes(struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + bytes(9)),
        "CTranslate2",
    ),
    "empty.bin": (lambda path: path.touch(), "empty"),
    "cut.zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(30)), "cut off"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_row_23_a_file_of_another_program_as_model_is_named(name, tmp_path):
    make, word = FOREIGN_FILES[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=word):
        locate(tmp_path / name)


@pytest.mark.parametrize("name", sorted(set(FOREIGN_FILES) - {"cut.zip"}))
def test_row_23_a_file_of_another_program_in_place_of_the_weights_is_named(name, tiny_model, tmp_path):
    make, word = FOREIGN_FILES[name]
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    make(tmp_path / "model" / name)
    with pytest.raises(UserError, match=word):
        load_base(str(tmp_path / "model"))


@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER_WEIGHTS])
@pytest.mark.parametrize("kind", sorted(FOREIGN_FILES))
def test_row_22_another_kind_of_file_under_the_name_of_the_weights_is_named(kind, name, tiny_model, adapter, tmp_path):
    make, word = FOREIGN_FILES[kind]
    folder = tmp_path / "model"
    shutil.copytree(tiny_model if name == WEIGHTS else adapter, folder)
    with (tmp_path / kind).open("wb"):
        make(tmp_path / kind)
    shutil.move(tmp_path / kind, folder / name)
    with pytest.raises(UserError, match=word if kind != "model.onnx" else "cut off, damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"config.json": {"alignment_heads": [[1, 1]], "lang_ids": [1], "suppress_ids": []}}, "CTranslate2"),
        ({"config.json": {"model_type": "whisper", "n_mels": 80, "n_audio_state": 384, "n_audio_layer": 4}}, "MLX"),
        ({"tokenizer.json": {}}, "only a tokenizer"),
        ({"other.json": {}}, "holds no model"),
    ],
)
def test_row_23_a_folder_of_another_program_is_named(pages, message, tmp_path):
    for name, content in pages.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        locate(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8-bit weights.*--quantize 8bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit weights.*--quantize 4bit"),
        ({"load_in_8bit": True}, "8-bit weights.*--quantize 8bit"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq"),
        ({"quant_method": "awq"}, "quantised by awq"),
        ({"quant_method": ["evil"]}, "which no quantised Whisper has"),
        ({"quant_method": "evil\x1b[2J"}, "which no quantised Whisper has"),
        ("evil", "which no quantised Whisper has"),
        ([], "which no quantised Whisper has"),
        ({}, "which no quantised Whisper has"),
    ],
)
def test_row_20_a_quantised_checkpoint_is_refused_with_its_kind(setting, message, tiny_model, adapter, tmp_path):
    folder = with_page(tiny_model, tmp_path / "model", "config.json", quantization_config=setting)
    on_it = with_page(adapter, tmp_path / "adapter", "adapter_config.json", base_model_name_or_path=str(folder))
    for use in (lambda: locate(folder), lambda: load_base(str(folder)), lambda: load_model(on_it)):
        with pytest.raises(UserError, match=message) as raised:
            use()
        assert "\x1b" not in str(raised.value)


def test_truncated_and_damaged_weights_are_refused_in_one_line(tiny_model, adapter, tmp_path):
    for source, name in ((tiny_model, WEIGHTS), (adapter, ADAPTER_WEIGHTS)):
        whole = (source / name).read_bytes()
        for number, content in enumerate((whole[:4], whole[:1000], whole[:-1], b"\xff" * 64, bytes(1000))):
            folder = tmp_path / f"{name}{number}"
            shutil.copytree(source, folder)
            (folder / name).write_bytes(content)
            with pytest.raises(UserError, match=rf"{folder / name}: cut off, damaged") as raised:
                load_model(folder)
            assert len(str(raised.value)) < 500


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 6000),
    content=st.binary(min_size=1, max_size=40),
    keep=st.integers(0, 10**6),
)
def test_any_damage_to_an_adapter_is_harmless_or_refused_in_one_line(place, content, keep, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "adapter"
    shutil.copytree(adapter, folder)
    whole = (adapter / ADAPTER_WEIGHTS).read_bytes()
    damaged = (whole[:place] + content + whole[place + len(content) :])[: keep or None]
    (folder / ADAPTER_WEIGHTS).write_bytes(damaged)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_adapter(load_base(locate(adapter).base), folder)
    except UserError as error:
        assert "\n" not in str(error)


# Adapters of others


@pytest.fixture
def stranger(tiny_model, tmp_path) -> Path:
    """An adapter as peft alone saves it, with the settings of the usual tutorial."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_base(str(tiny_model)),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_2_SEQ_LM", modules_to_save=["layer_norm"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "stranger")
    return tmp_path / "stranger"


def test_row_19_an_adapter_with_a_task_type_is_trained_further_and_saved_without_the_type(
    stranger, tiny_model, speech, tmp_path
):
    before = load_file(stranger / ADAPTER_WEIGHTS)
    recipe = tiny_recipe(stranger, speech, **{"train.steps": 1, "evaluate.compare_clips": 0})
    result = train(recipe, output=tmp_path / "run")
    config = json.loads((result.model / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] is None
    assert config["auto_mapping"]["base_model_class"] == "WhisperForConditionalGeneration"
    assert load_file(result.model / ADAPTER_WEIGHTS).keys() == before.keys()
    assert evaluate(result.run, speech / "eval").clips == 4


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LoRA"),
        ({"peft_type": ["LORA"]}, "only LoRA"),
        ({"peft_type": None}, "only LoRA"),
        ({"r": 8}, r"r is 8; the adapter's weights have rank 2"),
        ({"target_modules": ["query", "value"]}, "another kind of model"),
        ({"target_modules": ["q_proj"]}, "left over"),
        ({"base_model_name_or_path": ["x"]}, "expected a text"),
        ({"base_model_name_or_path": ""}, "names no base model"),
    ],
)
def test_row_24_an_adapter_of_another_kind_is_refused_in_one_line(page, message, stranger, tmp_path):
    folder = with_page(stranger, tmp_path / "other", "adapter_config.json", **page)
    with pytest.raises(UserError, match=message) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 900


def test_row_24_an_adapter_on_a_base_of_another_size_is_refused_in_one_line(stranger, tmp_path):
    wide = make_tiny_model(tmp_path / "wide", d_model=32)
    deep = make_tiny_model(tmp_path / "deep", decoder_layers=2)
    for base in (wide, deep):
        with pytest.raises(UserError, match=r" of \d+ tensors fit: .*") as raised:
            load_model(stranger, base=str(base))
        assert str(stranger) in str(raised.value) and "\n" not in str(raised.value)


MOVED = ["./whisper-merged", "C:\\Users\\me\\models\\x", "whisper-merged", "/gone/model", "~/none", "a/b/c"]


@pytest.mark.parametrize("place", [*MOVED, "models/whisper-hindi"])
def test_row_25_a_missing_base_is_reported_with_the_adapter_and_the_option(
    place, adapter, tiny_model, speech, tmp_path
):
    folder = with_page(adapter, tmp_path / "adapter", "adapter_config.json", base_model_name_or_path=place)
    recipe = tiny_recipe(folder, speech, **{"train.steps": 1, "evaluate.compare_clips": 0})
    for use in (lambda: load_model(folder), lambda: merge(folder, tmp_path / "m"), lambda: prepare(recipe)):
        with pytest.raises(UserError, match=r"the adapter's base.*--base MODEL") as raised:
            use()
        assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    assert load_model(folder, base=str(tiny_model))[0] is not None


def test_row_25_train_takes_a_moved_base_from_its_option_base(adapter, tiny_model, speech, tmp_path):
    folder = with_page(adapter, tmp_path / "adapter", "adapter_config.json", base_model_name_or_path="/gone/model")
    recipe = tiny_recipe(folder, speech, **{"train.steps": 1, "evaluate.compare_clips": 0})
    result = train(recipe, output=tmp_path / "run", base=tiny_model)
    config = json.loads((result.model / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)
    with pytest.raises(UserError, match="only an adapter has a base"):
        train(tiny_recipe(tiny_model, speech), output=tmp_path / "other", base=tiny_model)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_run_resumes_with_its_moved_base_and_with_no_other_base(mode, tiny_model, speech, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    changes = {"train.steps": 2, "evaluate.compare_clips": 0, "evaluate.every_steps": 1, "train.mode": mode}
    run = train(tiny_recipe(base, speech, **changes), output=tmp_path / "run").run
    base.rename(tmp_path / "moved")
    more = {"train.steps": 3}
    with pytest.raises(UserError, match="--model MODEL"):
        train(resume=run, changes=more)
    with pytest.raises(UserError, match=r"weights of .* have changed.*--base MODEL"):
        train(resume=run, changes=more, base=QUICKSTART / "model")
    result = train(resume=run, changes=more, base=tmp_path / "moved")
    assert result.facts["steps"] == 3
    assert load_model(run)[0] is not None


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("quantize", "evil"),
        ("quantize", 8),
        ("quantize", ["8bit"]),
        ("sha256", "x"),
        ("sha256", 5),
        ("sha256", []),
        ("commit", {}),
        ("commit", "../main"),
        ("hub_id", "a/b/c"),
        ("hub_id", 1),
        ("path", 3),
        ("path", ""),
    ],
)
def test_row_17_an_impossible_value_in_base_json_is_refused(fact, value, adapter, tiny_model, tmp_path):
    facts = {**base_identity(str(tiny_model)), "quantize": None, fact: value}
    folder = with_page(adapter, tmp_path / "adapter", BASE_FACTS, **facts)
    for use in (lambda: load_model(folder), lambda: build_model(locate(folder), "lora")):
        with pytest.raises(UserError, match=rf"base\.json: {fact} is "):
            use()


def test_publish_refuses_missing_tensors_and_renamed_adapters(tiny_model, adapter, tmp_path):
    part = changed(tiny_model, tmp_path / "part", lambda state: dict(list(state.items())[:-3]))
    with pytest.raises(UserError, match="3 missing"):
        publish(part, "me/model", dry_run=True)
    renamed_adapter = changed(adapter, tmp_path / "adapter", renamed(PREFIXES["compiled"]))
    with pytest.warns(Notice), pytest.raises(UserError, match="not named as peft names them"):
        publish(renamed_adapter, "me/adapter", base="me/base", dry_run=True)
    publish(adapter, "me/adapter", base="me/base", dry_run=True)


# What the user sees


def test_the_command_line_shows_a_notice_in_one_line(adapter, speech, tmp_path, run_cli):
    folder = changed(adapter, tmp_path / "adapter", renamed(PREFIXES["compiled"]))
    done = run_cli("evaluate", folder, speech / "eval", "--max-clips", 1)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith("Note: ") and "_orig_mod." in said[0]


def test_only_the_listed_messages_of_libraries_are_hidden(capsys):
    from whisper_peft.cli.quiet import LOG_MESSAGES, hide_library_messages

    hide_library_messages()
    name = LOG_MESSAGES[0][0]
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    try:
        logging.getLogger(name).warning("Failed to load CPU gemm_4bit_forward from somewhere")
        logging.getLogger(name).warning("something else")
    finally:
        logging.getLogger(name).removeHandler(handler)
    assert heard == ["something else"]
    with pytest.warns(UserWarning, match="something else"):
        warnings.warn("something else", UserWarning, stacklevel=1)


def test_no_pickle_is_opened(tmp_path, tiny_model):
    """A zip whose pickle would write a file is named, and nothing is written."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).unlink()
    with zipfile.ZipFile(tmp_path / "model" / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="pickled weights"):
        load_base(str(tmp_path / "model"))
    assert not (tmp_path / "owned").exists()
