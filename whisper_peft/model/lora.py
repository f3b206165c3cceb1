"""Put a LoRA adapter on a base: a fresh one, or one that was saved."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import printable
from whisper_peft.model.adapter_configs import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_peft_config,
    read_adapter_config,
)
from whisper_peft.model.loading import DAMAGED, shapes_of
from whisper_peft.model.tensor_matching import fit_adapter
from whisper_peft.model.weights import (
    read_header,
    refuse_not_finite,
    tensors_of,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Names of the linear layers in transformers' Whisper that the word "attention" means.
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# And those that the word "mlp" means.
MLP = ("fc1", "fc2")
# The words of `lora.targets` for kinds of layers, and for halves of the model.
LAYER_WORDS = ("attention", "mlp")
HALF_WORDS = ("encoder", "decoder")
TARGET_WORDS = LAYER_WORDS + HALF_WORDS
# Modules that an adapter may bring whole. peft saves them with it where they were resized or adapted.
SAVED_WITH_ADAPTERS = ("embed_tokens", "proj_out")
# The part of a tensor's name that tells which half of a factor it is, A or B.
_HALF_OF_A_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])\b")


def parse_targets(targets: str) -> tuple[set[str], set[str]]:
    """Read `lora.targets`; a kind of word that it does not mention means all of that kind.

    Args:
        targets: Words joined by +: attention and mlp (which layers), encoder and decoder (which half of the model).

    Returns:
        The words for layers, and the words for halves.

    Raises:
        UserError: A word is unknown.

    Example:
        >>> layers, halves = parse_targets("mlp+decoder")
        >>> layers, halves
        ({'mlp'}, {'decoder'})
        >>> layers, halves = parse_targets("attention")
        >>> sorted(halves)
        ['decoder', 'encoder']
    """
    words = {word.strip() for word in targets.split("+")}
    unknown = words - set(TARGET_WORDS)
    if unknown:
        raise UserError(f"lora.targets: unknown word '{min(unknown)}'; join with +: {', '.join(TARGET_WORDS)}.")
    layers = words & set(LAYER_WORDS)
    halves = words & set(HALF_WORDS)
    return layers or set(LAYER_WORDS), halves or set(HALF_WORDS)


def describe_targets(target_modules: str | Sequence[str]) -> str:
    """Return the words of `lora.targets` that cover what a saved adapter adapts.

    The words may cover more than the adapter has, but never less.

    Args:
        target_modules: The field of that name in the adapter's config: names of modules, or a regular expression.

    Example:
        >>> describe_targets(["q_proj", "v_proj"])
        'attention'
        >>> describe_targets(["model.decoder.layers.0.fc1"])
        'mlp+decoder'
        >>> describe_targets("all-linear")
        'attention+mlp'
    """
    names = target_modules if isinstance(target_modules, str) else " ".join(target_modules)
    words = []
    if any(layer in names for layer in ATTENTION):
        words.append("attention")
    if any(layer in names for layer in MLP):
        words.append("mlp")
    # The word boundary keeps the decoder's encoder_attn apart from the encoder.
    halves = set(re.findall(r"\b(encoder|decoder)\b", names))
    if not words:
        words = list(LAYER_WORDS)
    if len(halves) == 1:
        words.extend(halves)
    return "+".join(words)


def make_target_pattern(targets: str) -> str:
    r"""Write the regular expression for peft's `target_modules`.

    Args:
        targets: The words of `lora.targets`, see `parse_targets`.

    Raises:
        UserError: A word is unknown.

    Example:
        >>> print(make_target_pattern("mlp+decoder"))
        .*(decoder)\.layers\..*\.(fc1|fc2)
    """
    layers, halves = parse_targets(targets)
    names: list[str] = []
    if "attention" in layers:
        names += ATTENTION
    if "mlp" in layers:
        names += MLP
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
    """Put a fresh LoRA adapter on a base, and freeze the base's weights.

    Args:
        model: The base.
        rank: Rank of the two factors.
        alpha: The update is multiplied by alpha / rank, or with `rslora` by alpha / sqrt(rank). None is twice the rank.
        dropout: Share of the adapter's input that is set to zero in training.
        targets: The layers that are adapted, see `parse_targets`.
        rslora: Whether the scaling is rank-stabilised (Kalajdzievski 2023).
        dora: Whether the adapter is weight-decomposed (Liu et al. 2024).
        modules_to_save: Further modules, which are trained in full and stored with the adapter.

    Raises:
        UserError: A word of `targets` is unknown, or the model has no module of a name; or peft refuses the settings.
    """
    from peft import LoraConfig, get_peft_model

    # No task_type: SEQ_2_SEQ_LM would pass input_ids, which Whisper does not know, here and to whoever loads it.
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=make_target_pattern(targets),
        use_rslora=rslora,
        use_dora=dora,
        modules_to_save=list(modules_to_save) or None,
    )
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in modules_to_save:
        if name.rpartition(".")[2] not in names:
            raise UserError(
                f"lora.modules_to_save: the model has no module '{name}'; names are for example layer_norm, proj_out."
            )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}") from None


def load_adapter(model: PreTrainedModel, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved LoRA adapter on its base.

    Args:
        model: The base.
        adapter: The adapter's folder.
        trainable: Whether its weights are to be trained further.

    Raises:
        UserError: The folder holds no LoRA adapter, or one that does not fit the base or is damaged.
    """
    from peft import set_peft_model_state_dict

    file = adapter_file(adapter)
    adapted = add_adapter_layers(model, adapter, trainable=trainable)
    names = fit_to_adapter(adapted, adapter)
    state = {names[name]: tensor for name, tensor in tensors_of([file])}
    refuse_not_finite(state.items(), place=str(adapter), remedy=DAMAGED)
    result = set_peft_model_state_dict(adapted, state)
    # All names were checked above. So if this happens, peft reads its own names differently than it writes them.
    if result.unexpected_keys:
        raise AssertionError(f"{adapter}: peft did not take {result.unexpected_keys[:3]}")
    if trainable:
        _refuse_untrainable(adapted, adapter)
    else:
        adapted.requires_grad_(False)
        adapted.eval()
        if changes_nothing(adapter):
            warn_of_no_change(adapter)
    return adapted


def _refuse_untrainable(adapted: PeftModel, adapter: Path) -> None:
    """Refuse to train an adapter further if the factors of a layer get no gradient.

    Raises:
        UserError: The factor A of a layer holds only zeros, its scaling is zero, or its dropout drops all.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        factors_a = [*layer.lora_A.parameters(), *layer.lora_embedding_A.parameters()]
        has_zeros_only = not any(factor.any() for factor in factors_a)
        has_no_scaling = not layer.scaling.get("default", 0.0)
        drops_all = any(getattr(dropout, "p", 0.0) >= 1.0 for dropout in layer.lora_dropout.values())
        if drops_all or has_no_scaling or has_zeros_only:
            raise UserError(
                f"{adapter}: this adapter cannot be trained further: in {printable(name)}, lora_A holds only zeros, "
                "lora_alpha is 0, or lora_dropout is 1; start a new adapter on the base."
            )


def adapter_file(adapter: Path) -> Path:
    """Return the path of the file with an adapter's weights.

    Raises:
        UserError: The folder has no such file.
    """
    file = adapter / ADAPTER_WEIGHTS
    if not file.exists():
        raise UserError(
            f"{adapter}: no {ADAPTER_WEIGHTS} in it; adapters are read from safetensors only. Save the adapter again "
            "with peft's save_pretrained."
        )
    return file


def add_adapter_layers(model: PreTrainedModel, adapter: Path, *, trainable: bool) -> PeftModel:
    """Put the layers that an adapter's config describes on a base; their weights are not loaded yet.

    Args:
        model: The base.
        adapter: The adapter's folder.
        trainable: Whether the layers are to be trained further.

    Raises:
        UserError: The config cannot be used, or does not fit a Whisper.
    """
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
    """Match the tensors of an adapter's file with the layers that are there for them.

    Args:
        adapted: A base with the adapter's layers.
        adapter: The adapter's folder.

    Returns:
        peft's name for each tensor, by its name in the file.

    Raises:
        UserError: A tensor is missing, left over or of another shape, or the file is not a safetensors file.
    """
    from peft import get_peft_model_state_dict

    # The default, "auto", would ask the Hub for the config of the base.
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    optional = {}
    for name, shape in shapes_of(adapted).items():
        if any(f".{module}." in name for module in SAVED_WITH_ADAPTERS):
            optional[name] = shape
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
    # By layer, which of A and B holds more than zeros.
    nonzero: dict[str, set[str]] = {}
    for name, tensor in tensors_of([adapter_file(adapter)]):
        half = _HALF_OF_A_FACTOR.search(name)
        if half is None:
            # It is a bias, a magnitude of DoRA, or a module that was trained in full.
            return False
        if tensor.any():
            layer = name[: half.start()]
            nonzero.setdefault(layer, set()).add(half[1])
    return not any(factors == {"A", "B"} for factors in nonzero.values())


def warn_of_no_change(adapter: Path) -> None:
    """Warn that an adapter changes nothing."""
    warnings.warn(f"{adapter}: the adapter changes nothing, its update is zero.", Notice, stacklevel=3)
