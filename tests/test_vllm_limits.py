"""vLLM serves many adapters on one Whisper. These are its limits, and the adapters that we write are held against them.

vLLM is not installed here, and nothing of it runs. The limits were read in the wheels of 0.18.0 and 0.33.0; the file of
each limit stands beside it. docs/many-adapters.md tells the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from safetensors import safe_open

from whisper_peft import load_recipe, runs
from whisper_peft.model.build import whisper_of
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import Located
from whisper_peft.model.lora import HALF_WORDS, LAYER_WORDS, add_adapter
from whisper_peft.recipe import Lora
from whisper_peft.recipe_files import shipped_recipes
from whisper_peft.training.artefacts import save_artefact

# vllm/config/lora.py, `MaxLoRARanks`: the values that --max-lora-rank takes.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vllm/config/lora.py, `LoRAConfig.max_lora_rank`: its default.
DEFAULT_MAX_LORA_RANK = 16
# vllm/lora/peft_helper.py, `_validate_features` and `validate_legal`: fields and the values that pass. A field that is
# missing passes. "score" and "classifier", which 0.33.0 lets pass in modules_to_save, are no modules of Whisper.
PASSING: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "use_dora": (False,),
    "lora_bias": (False,),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, {}),
    "use_qalora": (False,),
    # `_init_is_supported`; 0.18.0 does not look at it.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga"),
}
# vllm/lora/worker_manager.py, `_load_adapter`, with `packed_modules_mapping` of vllm/model_executor/models/whisper.py.
MODULES = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
# vllm/lora/utils.py, `parse_fine_tuned_lora_name`.
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# vllm/model_executor/models/whisper.py, `hf_to_vllm_mapper`: the only renaming of modules that LoRA layers use.
RENAMED = {".fc1": ".mlp.fc1", ".fc2": ".mlp.fc2"}
# vllm/model_executor/models/whisper.py: layers that compute on the positions of the encoder, not on decoder tokens. The
# map from rows to adapters is made of decoder tokens: vllm/v1/worker/gpu_model_runner.py, `_prepare_inputs`, and
# vllm/lora/ops/triton_ops/lora_kernel_metadata.py, `prepare_tensors`.
ON_ENCODER_POSITIONS = re.compile(r"model\.encoder\..*|.*\.encoder_attn\.[kv]_proj")
PAGE = ROOT / "docs" / "many-adapters.md"


def tensor_names(adapter: Path) -> list[str]:
    """List the tensors of an adapter."""
    with safe_open(adapter / "adapter_model.safetensors", framework="np") as file:
        return sorted(file.keys())


def refusals(adapter: Path, max_lora_rank: int) -> list[str]:
    """Return the fields of adapter_config.json and the tensors for which vLLM refuses an adapter."""
    config = runs.read_json(adapter / "adapter_config.json")
    refused = [name for name, values in PASSING.items() if name in config and config[name] not in values]
    if max([config["r"], *(config.get("rank_pattern") or {}).values()]) > max_lora_rank:
        refused.append("r")
    for name in tensor_names(adapter):
        match = TENSOR_NAME.fullmatch(name)
        if match is None or match["module"].rpartition(".")[2] not in MODULES:
            refused.append(name)
    return refused


def adapted_modules(adapter: Path) -> list[str]:
    """Return vLLM's names of the modules that an adapter changes, each once for A and once for B."""
    modules = []
    for name in tensor_names(adapter):
        module = TENSOR_NAME.fullmatch(name)["module"]
        for old, new in RENAMED.items():
            module = re.sub(rf"{re.escape(old)}$", new, module)
        modules.append(module)
    return modules


def modules_in_vllm(layers: int) -> set[str]:
    """Return the names under which vLLM looks for LoRA weights in a Whisper with so many layers in each half."""
    names = set()
    for half, layer in itertools.product(("encoder", "decoder"), range(layers)):
        place = f"model.{half}.layers.{layer}"
        names |= {f"{place}.mlp.fc1", f"{place}.mlp.fc2"}
        for attention in ("self_attn", "encoder_attn")[: 1 if half == "encoder" else 2]:
            names |= {f"{place}.{attention}.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    return names


@pytest.fixture(scope="module")
def make_adapter(tiny_model, tmp_path_factory):
    """A function that writes an adapter with the given options of `add_adapter`, as a run writes it."""

    def make(**options) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        model = add_adapter(load_base(str(tiny_model)), **options)
        assert whisper_of(model) is not model
        save_artefact(folder, model, Located(str(tiny_model), str(tiny_model)), {})
        return folder

    return make


ACCEPTED = [
    {},
    {"rank": 512},
    {"rank": 4, "alpha": 3, "dropout": 0.0},
    {"rank": 4, "rslora": True},
    {"rank": 4, "targets": "attention"},
    {"rank": 4, "targets": "mlp+decoder"},
    {"rank": 4, "targets": "attention+mlp+encoder"},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=str)
def test_vllm_accepts_our_adapters(options, make_adapter):
    adapter = make_adapter(**options)
    assert refusals(adapter, max(MAX_LORA_RANKS)) == []
    counts = Counter(adapted_modules(adapter))
    assert set(counts.values()) == {2}
    assert counts.keys() <= modules_in_vllm(layers=1)
    if not options:
        assert counts.keys() == modules_in_vllm(layers=1)


def test_our_default_rank_needs_an_option(make_adapter):
    adapter = make_adapter()
    assert refusals(adapter, DEFAULT_MAX_LORA_RANK) == ["r"]
    assert Lora().rank in MAX_LORA_RANKS and refusals(adapter, Lora().rank) == []
    assert f"--max-lora-rank {Lora().rank}" in PAGE.read_text(encoding="utf-8")
    for recipe in shipped_recipes():
        assert load_recipe(recipe).lora.rank <= Lora().rank


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rank": 513}, "r"),
        ({"rank": 4, "dora": True}, "use_dora"),
        ({"rank": 4, "modules_to_save": ["decoder.layer_norm"]}, "modules_to_save"),
        ({"rank": 4, "modules_to_save": ["conv1"]}, "modules_to_save"),
    ],
    ids=str,
)
def test_vllm_refuses_these_settings(options, field, make_adapter):
    refused = refusals(make_adapter(**options), max(MAX_LORA_RANKS))
    assert refused[0] == field
    # What these settings add to the weights has names that vLLM does not read, either.
    assert len(refused) > 1 or field == "r"


def test_only_the_mlp_of_the_decoder_computes_on_decoder_tokens_alone(make_adapter):
    """vLLM maps adapters to decoder tokens; see the page for what this means for the other layers."""
    alone = []
    for layers, halves in itertools.product(_choices(LAYER_WORDS), _choices(HALF_WORDS)):
        targets = "+".join([*layers, *halves])
        modules = adapted_modules(make_adapter(rank=2, targets=targets))
        if not any(ON_ENCODER_POSITIONS.fullmatch(module) for module in modules):
            alone.append(targets)
    assert alone == ["mlp+decoder"]


def _choices(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(word,) for word in words] + [words]


def test_the_page_has_a_row_for_each_setting_of_an_adapter():
    rows = re.findall(r"^\| `lora\.(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [field.name for field in dataclasses.fields(Lora)]
