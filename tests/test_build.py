"""MODEL leads to a base and an adapter, unusable models are refused, and saved models load without whisper_peft."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICKSTART
from openai_vocabulary import KINDS, alignment_heads, openai_tokenizer, save_checkpoint

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.model.build import build_model, load_model, whisper_of
from whisper_peft.model.configs import load_preparation, load_processor, repair_generation_config
from whisper_peft.model.identity import BASE_FACTS, base_identity, weights_sha256
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import locate, with_base
from whisper_peft.model.lora import add_adapter, load_adapter, make_target_pattern


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def shake(model, seed: int = 1) -> None:
    """Give every trainable tensor random values, as training would."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1, generator=generator)


def logits(model):
    import torch

    features = torch.linspace(-1, 1, 80 * 300).reshape(1, 80, 300).to(model.dtype)
    tokens = torch.tensor([[387, 405, 488, 492, 70, 71]])
    with torch.no_grad():
        return model.eval()(input_features=features, decoder_input_ids=tokens, use_cache=False).logits.float()


def save_adapter(base: Path, folder: Path, **options) -> Path:
    """Save an adapter with random weights in the way that a run saves its adapter."""
    model = add_adapter(load_base(str(base)), **{"rank": 4, **options})
    shake(model)
    model.save_pretrained(str(folder))
    runs.write_json(folder / BASE_FACTS, base_identity(str(base)))
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "adapter")


def make_run(run: Path) -> Path:
    run.mkdir()
    runs.update_facts(run)
    (run / runs.RECIPE).touch()
    return run


# MODEL


def test_a_model_folder_is_its_own_base(tiny_model, monkeypatch):
    located = locate(tiny_model)
    assert (located.base, located.adapter, located.run, located.from_hub) == (str(tiny_model), None, None, False)
    monkeypatch.chdir(tiny_model.parent)
    assert locate(tiny_model.name).base == str(tiny_model)


def test_an_adapter_folder_leads_to_its_base(adapter, tiny_model):
    located = locate(str(adapter))
    assert (located.base, located.adapter, located.run, located.from_hub) == (str(tiny_model), adapter, None, False)


def test_a_finished_run_leads_to_its_model_or_adapter(adapter, tiny_model, tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=rf"not finished yet.*train --resume {run}"):
        locate(run)
    shutil.copytree(tiny_model, run / runs.MODEL)
    assert (locate(run).base, locate(run).adapter, locate(run).run) == (str(run / runs.MODEL), None, run)
    shutil.rmtree(run / runs.MODEL)
    shutil.copytree(adapter, run / runs.ADAPTER)
    assert (locate(run).base, locate(run).adapter, locate(run).run) == (str(tiny_model), run / runs.ADAPTER, run)


def test_a_hub_id_leads_to_the_hub():
    for name in ("openai/whisper-small", "hf:openai/whisper-small"):
        located = locate(name)
        assert (located.name, located.base, located.from_hub) == (name, "openai/whisper-small", True)
        assert located.adapter is located.run is None


def test_an_existing_folder_comes_before_the_hub_unless_hf_is_written(tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name").base == str(tmp_path / "owner" / "name")
    assert not locate("owner/name").from_hub
    # transformers would load the folder instead of the Hub repository.
    with pytest.raises(UserError, match="a local owner/name is in the way"):
        locate("hf:owner/name")
    monkeypatch.chdir(tmp_path / "owner")
    assert (locate("hf:owner/name").base, locate("hf:owner/name").from_hub) == ("owner/name", True)


def test_a_path_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        locate(tmp_path / "folder")
    with pytest.raises(UserError, match="a file; MODEL is a folder"):
        locate(tmp_path / "file")
    for name in ("whisper-small", "./owner/name", "../name", f"{tmp_path}/none", "~/none-here", "a/b/c", ""):
        with pytest.raises(UserError, match=r"no such folder, and not a Hub id|holds no model"):
            locate(name)


@pytest.mark.parametrize(
    "content", ['{"peft_type": "LORA"}', '{"peft_type": "LORA", "base_model_name_or_path": null}', "{"]
)
def test_an_adapter_without_a_base_is_refused(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json: (names no base model|not JSON)"):
        locate(tmp_path)


# The base


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tf_model.h5"])
def test_weights_stored_only_as_pickle_are_refused(tiny_model, tmp_path, name):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / name)
    with pytest.raises(UserError, match=rf"only {name}.*safetensors.*save_pretrained"):
        load_base(str(tmp_path / "model"))


def test_damaged_weights_missing_weights_and_other_model_types_are_refused(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: cut off, damaged or no safetensors file"):
        load_base(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_base(str(copy))
    (copy / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="a bert model; this tool trains Whisper only"):
        load_base(str(copy))
    (copy / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        load_base(str(copy))


def test_the_error_for_an_unreachable_hub_id_says_what_to_check():
    with pytest.raises(UserError, match="owner/none: the model's config is neither a local folder nor reachable"):
        load_base("owner/none")


def test_a_base_loads_in_float32_unless_another_dtype_is_named(tiny_model):
    import torch

    assert load_base(str(tiny_model)).dtype == torch.float32
    # The weights are stored in float16, and training needs float32.
    assert load_base(str(QUICKSTART / "model")).dtype == torch.float32
    assert load_base(str(QUICKSTART / "model"), dtype="auto").dtype == torch.float16
    assert load_model(tiny_model, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_processor_saved_by_transformers_5_loads(tiny_model, tmp_path):
    """transformers 5 writes the special tokens as a list, which transformers 4 cannot read by itself."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("additional_special_tokens", None)
    config["extra_special_tokens"] = ["<|endoftext|>", "<|startoftranscript|>", "<|hi|>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer, expected = load_processor(str(folder)).tokenizer, load_processor(str(tiny_model)).tokenizer
    for text in ("घर पानी abc", "<|hi|>"):
        assert tokenizer(text, add_special_tokens=False).input_ids == expected(text, add_special_tokens=False).input_ids
    assert tokenizer.decode([387, 405, 70, 386], skip_special_tokens=True) == expected.decode([70])


# The generation config


def fields_of(model) -> dict:
    config = model.generation_config.to_dict()
    return {key: value for key, value in config.items() if key not in ("transformers_version", "_from_model_config")}


@pytest.mark.parametrize("kind", ["base.en", "large-v3"])
def test_the_generation_config_survives_save_and_load(tmp_path, kind):
    folder = save_checkpoint(kind, tmp_path / "one")
    once = load_base(str(folder))
    openai = openai_tokenizer(kind)
    once.save_pretrained(str(tmp_path / "two"))
    twice = load_base(str(tmp_path / "two"))
    for model in (once, twice):
        config = model.generation_config
        assert config.alignment_heads == alignment_heads(kind)
        assert config.no_timestamps_token_id == openai.no_timestamps
        assert config.is_multilingual == KINDS[kind].multilingual
        if config.is_multilingual:
            assert len(config.lang_to_id) == KINDS[kind].n_languages
            for code, token in zip(openai.all_language_codes, openai.all_language_tokens, strict=True):
                assert config.lang_to_id[f"<|{code}|>"] == token
            assert config.task_to_id == {"transcribe": openai.transcribe, "translate": openai.translate}
    assert fields_of(twice) == fields_of(once)
    preparation = load_preparation(str(folder))
    assert (preparation.multilingual, preparation.n_mels) == (KINDS[kind].multilingual, KINDS[kind].n_mels)


def test_a_stale_generation_config_is_repaired(tiny_model, tmp_path):
    folder = tmp_path / "stale"
    shutil.copytree(tiny_model, folder)
    for name in ("generation_config.json", "config.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        config["forced_decoder_ids"] = [[1, 405], [2, 488]]
        if name == "generation_config.json":
            config["_from_model_config"] = True
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    model = load_base(str(folder))
    model.save_pretrained(str(tmp_path / "saved"))
    reloaded = load_base(str(tmp_path / "saved"))
    for repaired_model in (model, reloaded):
        assert getattr(repaired_model.generation_config, "forced_decoder_ids", None) is None
        assert getattr(repaired_model.config, "forced_decoder_ids", None) is None
        assert repaired_model.generation_config.lang_to_id["<|hi|>"] == 405
        assert len(repaired_model.generation_config.lang_to_id) == 99
        assert repaired_model.generation_config.alignment_heads == [[0, 0]]
        assert repaired_model.generation_config.is_multilingual is True


def test_repairing_twice_changes_nothing(tiny_model):
    model = load_base(str(tiny_model))
    before = fields_of(model)
    repair_generation_config(model)
    assert fields_of(model) == before


# LoRA


LAYERS = {
    "attention": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "mlp": {"fc1", "fc2"},
}


@pytest.mark.parametrize(
    ("targets", "halves", "layers"),
    [
        ("attention", ("encoder", "decoder"), ("attention",)),
        ("mlp", ("encoder", "decoder"), ("mlp",)),
        ("attention+mlp", ("encoder", "decoder"), ("attention", "mlp")),
        (" mlp + attention ", ("encoder", "decoder"), ("attention", "mlp")),
        ("encoder", ("encoder",), ("attention", "mlp")),
        ("decoder", ("decoder",), ("attention", "mlp")),
        ("decoder+attention", ("decoder",), ("attention",)),
        ("encoder+mlp", ("encoder",), ("mlp",)),
        ("encoder+decoder", ("encoder", "decoder"), ("attention", "mlp")),
    ],
)
def test_target_words_select_the_linear_layers_they_name(tiny_model, targets, halves, layers):
    import torch

    model = load_base(str(tiny_model))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    last = set().union(*(LAYERS[layer] for layer in layers))
    wanted = {name for name in linear if set(halves) & {*name.split(".")[1:2]} and name.split(".")[-1] in last}
    # The names are read before add_adapter adds modules of its own.
    names = {name for name, _ in model.named_modules()}
    assert {name for name in names if re.fullmatch(make_target_pattern(targets), name)} == wanted
    assert wanted
    learning = trainable(add_adapter(model, rank=2, targets=targets))
    adapted = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in learning}
    assert adapted == wanted
    if targets == "attention+mlp":
        # The output layer is tied to the embedding and gets no adapter.
        assert linear - wanted == {"proj_out"}


@pytest.mark.parametrize("targets", ["all", "", "attention+", "attention,mlp", "q_proj"])
def test_unknown_target_words_are_refused(targets):
    with pytest.raises(UserError, match=r"^lora\.targets: unknown word '.*attention, mlp, encoder, decoder"):
        make_target_pattern(targets)


def test_the_options_of_an_adapter_reach_its_config(tiny_model):
    def config(**options):
        return add_adapter(load_base(str(tiny_model)), **options).peft_config["default"]

    plain = config()
    assert (plain.r, plain.lora_alpha, plain.lora_dropout, plain.use_rslora, plain.use_dora) == (
        32,
        64,
        0.05,
        False,
        False,
    )
    other = config(rank=8, alpha=4, dropout=0.5, rslora=True, dora=True)
    assert (other.r, other.lora_alpha, other.lora_dropout, other.use_rslora, other.use_dora) == (8, 4, 0.5, True, True)
    saved = add_adapter(load_base(str(tiny_model)), modules_to_save=["layer_norm"])
    assert any("modules_to_save" in name for name in trainable(saved))
    with pytest.raises(UserError, match=r"^lora: "):
        config(rank=0)


def test_a_new_adapter_leaves_the_logits_as_they_were(tiny_model):
    import torch

    base = logits(load_base(str(tiny_model)))
    model = add_adapter(load_base(str(tiny_model)), rank=4)
    assert all("lora_" in name for name in trainable(model))
    torch.testing.assert_close(logits(model), base, rtol=0, atol=1e-6)
    shake(model)
    assert (logits(model) - base).abs().max() > 1e-2


def test_the_config_of_an_adapter_mentions_no_class_of_ours(adapter, tiny_model):
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    # With SEQ_2_SEQ_LM, peft would pass input_ids to Whisper, which takes none, also for whoever loads the adapter.
    assert config["task_type"] is None
    assert config["auto_mapping"]["base_model_class"] == "WhisperForConditionalGeneration"
    assert config["auto_mapping"]["parent_library"].startswith("transformers.")
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert "whisper_peft" not in json.dumps(config)
    assert (adapter / "adapter_model.safetensors").is_file()
    assert not list(adapter.glob("*.bin"))


ELSEWHERE = """
import sys, json, torch
sys.modules["whisper_peft"] = None  # importing it raises ImportError
try:
    import whisper_peft
    raise SystemExit("our package can be imported")
except ImportError:
    pass
from peft import AutoPeftModel, PeftModel
from transformers import WhisperForConditionalGeneration
base, adapter = sys.argv[1:]
features = torch.linspace(-1, 1, 80 * 300).reshape(1, 80, 300)
tokens = torch.tensor([[387, 405, 488, 492, 70, 71]])
found = {}
for name, load in (
    ("PeftModel", lambda: PeftModel.from_pretrained(WhisperForConditionalGeneration.from_pretrained(base), adapter)),
    ("AutoPeftModel", lambda: AutoPeftModel.from_pretrained(adapter)),
):
    model = load().eval()
    with torch.no_grad():
        out = model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
        model.generate(input_features=features, language="hi", task="transcribe", max_new_tokens=3)
    found[name] = out[0, -1].tolist()
print(json.dumps(found))
"""


def test_an_adapter_loads_in_plain_peft(adapter, tiny_model, tmp_path):
    import torch

    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tiny_model), str(adapter)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    expected = logits(load_model(adapter)[0])[0, -1]
    for name, values in json.loads(done.stdout.splitlines()[-1]).items():
        torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_pickled_adapter_is_refused(adapter, tiny_model, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="safetensors only"):
        load_adapter(load_base(str(tiny_model)), tmp_path / "adapter")


# Which base an adapter belongs to


@pytest.fixture
def pair(tiny_model, adapter, tmp_path) -> tuple[Path, Path]:
    """A copy of the base, and of the adapter that names it."""
    base, copy = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_model, base)
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    runs.write_json(copy / "adapter_config.json", {**config, "base_model_name_or_path": str(base)})
    runs.write_json(copy / BASE_FACTS, base_identity(str(base)))
    return base, copy


def retrain(base: Path) -> None:
    """Replace the weights of a base by others."""
    model = load_base(str(base))
    model.model.decoder.layers[0].fc1.weight.data[0, 0] += 1e-3
    model.save_pretrained(str(base))


def test_the_identity_of_a_base_depends_on_its_weights_alone(pair, tiny_model):
    base, _ = pair
    assert base_identity(str(base)) == {"path": str(base), "sha256": weights_sha256(base)}
    assert weights_sha256(base) == weights_sha256(tiny_model)
    before = weights_sha256(base)
    (base / "config.json").touch()
    assert weights_sha256(base) == before
    retrain(base)
    assert weights_sha256(base) != before


def test_a_base_with_other_weights_is_refused(pair, tiny_model):
    base, adapter = pair
    expected = logits(load_model(adapter)[0])
    retrain(base)
    with pytest.raises(UserError, match=r"not the weights this adapter was trained on.*--base MODEL"):
        load_model(adapter)
    with pytest.raises(UserError, match="--base MODEL"):
        with_base(locate(adapter), str(base))
    # The same weights in another folder are accepted.
    model, _, _ = load_model(adapter, base=str(tiny_model))
    assert (logits(model) == expected).all()
    with pytest.raises(UserError, match="not the weights"):
        load_model(adapter, base=str(QUICKSTART / "model"))


def test_a_moved_base_is_reported_and_can_be_named(pair):
    base, adapter = pair
    base.rename(base.parent / "moved")
    with pytest.raises(UserError, match=rf"{base}: the adapter's base has moved.*--base MODEL"):
        load_model(adapter)
    assert load_model(adapter, base=str(base.parent / "moved"))[0] is not None
    with pytest.raises(UserError, match="no such folder"):
        load_model(adapter, base=str(base.parent / "nowhere"))


def test_an_adapter_without_base_facts_loads_on_the_base_that_it_names(pair):
    base, adapter = pair
    (adapter / BASE_FACTS).unlink()
    retrain(base)
    assert load_model(adapter)[0] is not None


def test_an_adapter_brings_its_own_generation_config(pair):
    base, adapter = pair
    config = load_base(str(base)).generation_config
    config.language, config.task = "<|hi|>", "transcribe"
    config.save_pretrained(str(adapter))
    model, preparation, located = load_model(adapter)
    generation_config = model.get_base_model().generation_config
    assert (generation_config.language, generation_config.task, len(generation_config.lang_to_id)) == (
        "<|hi|>",
        "transcribe",
        99,
    )
    assert (preparation.multilingual, located.adapter) == (True, adapter)
    assert not model.training


# Mode: full or lora


def test_full_mode_trains_all_weights_but_the_encoder_positions(tiny_model):
    model = build_model(locate(tiny_model), "full")
    frozen = {name for name, _ in model.named_parameters()} - trainable(model)
    assert frozen == {"model.encoder.embed_positions.weight"}
    assert "model.decoder.embed_positions.weight" in trainable(model)


def test_a_frozen_encoder_is_not_trained(tiny_model):
    full = build_model(locate(tiny_model), "full", freeze="encoder")
    assert trainable(full)
    assert not any(".encoder." in name for name in trainable(full))
    lora = build_model(locate(tiny_model), "lora", lora={"rank": 2}, freeze="encoder")
    assert trainable(lora)
    assert all(".decoder." in name and "lora_" in name for name in trainable(lora))
    with pytest.raises(UserError, match="leaves nothing to train"):
        build_model(locate(tiny_model), "lora", lora={"rank": 2, "targets": "encoder"}, freeze="encoder")


def test_lora_mode_trains_the_adapter_alone(tiny_model):
    model = build_model(locate(tiny_model), "lora", lora={"rank": 2})
    assert trainable(model)
    assert all("lora_" in name for name in trainable(model))
    assert all(parameter.dtype.is_floating_point for parameter in model.parameters())


def test_an_adapter_that_is_trained_further_keeps_its_weights_and_rank(adapter):
    # The adapter keeps its own rank of 4.
    model = build_model(locate(adapter), "lora", lora={"rank": 64})
    assert (logits(model) == logits(load_model(adapter)[0])).all()
    assert trainable(model)
    assert all("lora_" in name for name in trainable(model))
    assert model.peft_config["default"].r == 4
    assert not trainable(load_adapter(load_base(locate(adapter).base), adapter))


def test_full_fine_tuning_of_an_adapter_is_refused(adapter):
    with pytest.raises(UserError, match=rf"whisper-peft merge {adapter} OUT, then train --model OUT"):
        build_model(locate(adapter), "full")


@pytest.fixture
def hub(tiny_model, tmp_path, monkeypatch):
    """The Hub cache after two downloads of owner/name: commits a… and b…, of which b… is the newest."""
    repository = tmp_path / "hub" / "models--owner--name"
    first, second = "a" * 40, "b" * 40
    for commit in (first, second):
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
    retrain(repository / "snapshots" / second)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(second, encoding="utf-8")
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return repository


def test_an_adapter_loads_the_commit_of_its_hub_base_that_it_was_trained_on(hub, adapter, tmp_path):
    from whisper_peft import merge

    first, second = hub / "snapshots" / ("a" * 40), hub / "snapshots" / ("b" * 40)
    identity = base_identity("owner/name", revision="a" * 40)
    assert identity == {"hub_id": "owner/name", "commit": "a" * 40, "sha256": weights_sha256(first)}
    assert base_identity("owner/name")["commit"] == "b" * 40
    assert base_identity("owner/name")["sha256"] == weights_sha256(second) != identity["sha256"]
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    runs.write_json(copy / "adapter_config.json", {**config, "base_model_name_or_path": "owner/name"})
    runs.write_json(copy / BASE_FACTS, identity)
    assert (logits(load_model(copy)[0]) == logits(load_model(copy, base=str(first))[0])).all()
    for other in (str(second), "hf:owner/other"):
        with pytest.raises(UserError):
            load_model(copy, base=other)
    report = merge(copy, tmp_path / "merged", dtype="float32", language="hi")
    assert report.passed and (tmp_path / "merged" / "config.json").exists()


def test_a_misspelt_run_is_reported_and_not_searched_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "hindi").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/hindy: no such folder; runs holds hindi.*write hf:runs/hindy"):
        locate("runs/hindy")
    assert locate("hf:runs/hindy").from_hub and locate("elsewhere/hindy").from_hub


@pytest.mark.parametrize("checkpoint", ["float32", "float16"])
@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_the_frozen_base_is_kept_in_the_dtype_that_its_layers_compute_in(tiny_model, tmp_path, checkpoint, quantize):
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    exact = WhisperForConditionalGeneration.from_pretrained(tiny_model).to(getattr(torch, checkpoint))
    exact.save_pretrained(tmp_path / "base")
    WhisperProcessor.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    lora = {"rank": 2, "modules_to_save": ["layer_norm"]}
    model = build_model(locate(tmp_path / "base"), "lora", lora=lora, quantize=quantize, autocast_dtype=torch.bfloat16)
    whisper, weights = whisper_of(model), dict(exact.float().named_parameters())
    for name, parameter in whisper.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
        elif any(word in name for word in ("conv", "embed_tokens")):
            assert parameter.dtype == torch.bfloat16, name
        elif "norm" in name or "embed_positions" in name:
            assert parameter.dtype == torch.float32, name
        known = weights.get(name.replace(".base_layer", "").replace(".original_module", ""))
        if known is not None and parameter.is_floating_point():
            # Each weight is rounded once, from its exact value.
            assert torch.equal(parameter.float(), known.to(parameter.dtype).float()), name
    assert whisper.proj_out.weight is whisper.model.decoder.embed_tokens.weight
