"""Put a LoRA adapter on a base: a fresh one, or one that was saved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import printable
from whisper_peft.model.adapter_configs import load_peft_config, read_adapter_config
from whisper_peft.model.identity import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
)
from whisper_peft.model.loading import DAMAGED, shapes_of
from whisper_peft.model.weights import (
    fit_adapter,
    read_header,
    refuse_not_finite,
    tensors_of,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("fc1", "fc2")
TARGET_WORDS = ("attention", "mlp", "encoder", "decoder")


def target_words(targets: str) -> tuple[set[str], set[str]]:
    """What `lora.targets` names: kinds of layers, and halves of the model; without a word of one kind, all of it.

    Raises:
        UserError: an unknown word.
    """
    words = {word.strip() for word in targets.split("+")}
    if unknown := words - set(TARGET_WORDS):
        raise UserError(f"lora.targets: unknown word '{min(unknown)}'; join with +: {', '.join(TARGET_WORDS)}.")
    layers, halves = ({*TARGET_WORDS[:2]} & words, {*TARGET_WORDS[2:]} & words)
    return layers or {*TARGET_WORDS[:2]}, halves or {*TARGET_WORDS[2:]}


def targets_of(target_modules: str | Sequence[str]) -> str:
    """The words of `lora.targets` for what a saved adapter's config names; never less than it has."""
    named = target_modules if isinstance(target_modules, str) else " ".join(target_modules)
    layers = [word for word, names in (("attention", ATTENTION), ("mlp", MLP)) if any(name in named for name in names)]
    halves = sorted(set(re.findall(r"\b(encoder|decoder)\b", named)))  # not decoder layers' encoder_attn
    return "+".join([*(layers or ("attention", "mlp")), *(halves if len(halves) == 1 else ())])


def target_pattern(targets: str) -> str:
    """Plain words to the regular expression of peft's `target_modules`.

    Args:
        targets: words joined by +: attention, mlp (which layers), encoder, decoder (which half); without a word of
            one kind, all of that kind.

    Raises:
        UserError: an unknown word.
    """
    layers, halves = target_words(targets)
    names = (ATTENTION if "attention" in layers else ()) + (MLP if "mlp" in layers else ())
    return rf".*({'|'.join(sorted(halves, reverse=True))})\.layers\..*\.({'|'.join(names)})"


def add_adapter(
    model: PreTrainedModel,
    *,
    rank: int = 32,
    alpha: int | None = None,
    dropout: float = 0.05,
    targets: str = "attention+mlp",
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Sequence[str] = (),
) -> PeftModel:
    """Puts a fresh LoRA adapter on a base; the base's weights are frozen.

    Args:
        model: the base.
        rank: of the two factors.
        alpha: the update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)); None: twice the rank.
        dropout: on the adapter's input.
        targets: see `target_pattern`.
        rslora: rank-stabilised scaling (Kalajdzievski 2023).
        dora: weight-decomposed adapters (Liu et al. 2024).
        modules_to_save: further modules trained in full and stored with the adapter.
    """
    from peft import LoraConfig, get_peft_model

    # No task_type: SEQ_2_SEQ_LM would pass input_ids, which Whisper does not know, here and to whoever loads it.
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout,
        target_modules=target_pattern(targets), use_rslora=rslora, use_dora=dora,
        modules_to_save=list(modules_to_save) or None,
    )  # fmt: skip
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in modules_to_save:
        if name.rpartition(".")[2] not in names:
            raise UserError(
                f"lora.modules_to_save: the model has no module '{name}' (for example layer_norm, proj_out)."
            )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}") from None


# What an adapter may bring besides its own tensors: peft saves these with it where they were resized or adapted.
SAVED_WITH_ADAPTERS = ("embed_tokens", "proj_out")
_HALF_OF_A_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])\b")  # in the name of a tensor of an adapter


def load_adapter(model: PreTrainedModel, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved LoRA adapter on its base.

    Args:
        model: The base.
        adapter: The adapter's folder.
        trainable: Whether its weights are to be trained further.

    Raises:
        UserError: It is no LoRA adapter, does not fit the base, or is damaged.
    """
    from peft import set_peft_model_state_dict

    file = adapter_file(adapter)
    adapted = add_adapter_layers(model, adapter, trainable=trainable)
    names = fit_to_adapter(adapted, adapter)
    state = {names[name]: tensor for name, tensor in tensors_of([file])}
    refuse_not_finite(state.items(), place=str(adapter), remedy=DAMAGED)
    result = set_peft_model_state_dict(adapted, state)
    if result.unexpected_keys:  # they were counted before: peft reads its own names otherwise than it writes them
        raise AssertionError(f"{adapter}: peft did not take {result.unexpected_keys[:3]}")
    if trainable:
        _refuse_unable(adapted, adapter)
    else:
        adapted.requires_grad_(False)
        adapted.eval()
        if changes_nothing(adapter):
            warn_of_no_change(adapter)
    return adapted


def _refuse_unable(adapted: PeftModel, adapter: Path) -> None:
    """Refuse to train an adapter further whose factors get no gradient.

    Raises:
        UserError: The A of a layer holds only zeros, or its scaling is zero, or its dropout drops all.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        first = [parameter for half in (layer.lora_A, layer.lora_embedding_A) for parameter in half.parameters()]
        drops_all = any(getattr(dropout, "p", 0.0) >= 1.0 for dropout in layer.lora_dropout.values())
        if drops_all or not layer.scaling.get("default", 0.0) or not any(parameter.any() for parameter in first):
            raise UserError(
                f"{adapter}: cannot be trained further: in {printable(name)} lora_A holds only zeros, or lora_alpha is "
                "0, or lora_dropout is 1; start a new adapter on the base."
            )


def adapter_file(adapter: Path) -> Path:
    """Return the file with an adapter's weights.

    Raises:
        UserError: The folder has no safetensors file of the name that peft gives.
    """
    file = adapter / ADAPTER_WEIGHTS
    if not file.exists():
        raise UserError(f"{adapter}: no {ADAPTER_WEIGHTS}; adapters are read from safetensors only.")
    return file


def add_adapter_layers(model: PreTrainedModel, adapter: Path, *, trainable: bool) -> PeftModel:
    """Put layers as an adapter's config describes them on a base; their weights are still to come."""
    from peft import PeftModel

    config = load_peft_config(adapter, model)
    config.inference_mode = not trainable
    # SEQ_2_SEQ_LM would pass input_ids, which Whisper does not know, here and to whoever loads what is saved next.
    config.task_type = None
    config.base_model_name_or_path = model.name_or_path
    try:
        return PeftModel(model, config)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{adapter}: its {ADAPTER_CONFIG} does not fit a Whisper; likely the adapter belongs to another kind of "
            f"model ({printable(' '.join(str(error).split()))[:200]})."
        ) from None


def fit_to_adapter(adapted: PeftModel, adapter: Path) -> dict[str, str]:
    """Hold the tensors of an adapter's file against the layers that are there for them.

    Args:
        adapted: A base with an adapter's layers.
        adapter: The folder of the file.

    Returns:
        peft's name for each tensor, by its name in the file.

    Raises:
        UserError: A tensor is missing, left over or of another shape, or the file is none.
    """
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)  # "auto" would ask the Hub
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    optional = {
        name: shape
        for name, shape in shapes_of(adapted).items()
        if any(f".{module}." in name for module in SAVED_WITH_ADAPTERS)
    }
    return fit_adapter(read_header([adapter_file(adapter)]), expected, optional, place=str(adapter))


def changes_nothing(adapter: Path) -> bool:
    """Tell whether the update of an adapter is zero, as before the first step of its training.

    The update of a layer is scaling · B · A: it is zero if any of the three is.

    Args:
        adapter: The adapter's folder.
    """
    page = read_adapter_config(adapter)
    scalings = [page.get("lora_alpha", 1), *(page.get("alpha_pattern") or {}).values()]
    if not any(scalings):
        return True
    halves: dict[str, set[str]] = {}  # of each layer those that hold more than zeros
    for name, tensor in tensors_of([adapter_file(adapter)]):
        half = _HALF_OF_A_FACTOR.search(name)
        if half is None:
            return False  # a bias, a magnitude of DoRA, or a module that was trained in full
        if tensor.any():
            halves.setdefault(name[: half.start()], set()).add(half[1])
    return not any(layer == {"A", "B"} for layer in halves.values())


def warn_of_no_change(adapter: Path) -> None:
    """Warn that an adapter changes nothing."""
    warnings.warn(f"{adapter}: the adapter changes nothing, its update is zero.", Notice, stacklevel=3)
