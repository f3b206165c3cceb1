"""Load a base and an adapter, with every tensor of their files counted against the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import Notice, UserError
from whisper_peft.files import printable
from whisper_peft.model.adapter_configs import load_peft_config, read_adapter_config
from whisper_peft.model.configs import load_config, load_generation_config, repair_generation_config
from whisper_peft.model.devices import best_device
from whisper_peft.model.foreign import quantization, refuse_foreign_folder
from whisper_peft.model.identity import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_folder,
    load_or_explain,
    weight_files,
    without_bars,
)
from whisper_peft.model.quantizing import quantization_config, settle
from whisper_peft.model.weights import (
    adapter_name,
    fit_adapter,
    fit_base,
    read_header,
    refuse_not_finite,
    refuse_own_head,
    refuse_zeros,
    tensors_of,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

DAMAGED = "copy or download them again, or take an earlier checkpoint of their training"
# What an adapter may bring besides its own tensors: peft saves these with it where they were resized or adapted.
SAVED_WITH_ADAPTERS = ("embed_tokens", "proj_out")
_HALF_OF_A_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])\b")  # in the name of a tensor of an adapter


def load_base(
    source: str,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    compute_dtype: torch.dtype | None = None,
) -> WhisperForConditionalGeneration:
    """Load the full weights, from safetensors only, with an encoder that takes shorter windows, too.

    Args:
        source: Local folder or Hub id.
        dtype: Of the weights; "auto" keeps the checkpoint's own; None is float32.
        revision: Commit on the Hub; None is the newest.
        quantize: "8bit" or "4bit": see `quantizing`. The model is on its device then.
        compute_dtype: Of a 4-bit base; None is float32.

    Raises:
        UserError: The model is not found, is not a Whisper, or is quantised already; its weights come as pickle only,
            do not fit its config, or are not finite numbers.
    """
    import torch

    from whisper_peft.model.windows import window_encoder

    if is_folder(source):
        refuse_foreign_folder(Path(source))
    config = load_config(source, revision=revision)
    setting = getattr(config, "quantization_config", None)
    if setting is not None:  # of a model on the Hub
        raise UserError(f"{source}: {quantization(setting)}.")
    files = weight_files(source, revision=revision)
    names = fit_base(read_header(files), shapes_of(empty_whisper(config)), place=source)
    refuse_own_head(files, names, place=source)

    # transformers is handed the generation config that was checked, so that it does not read the file itself.
    generation = load_generation_config(source, revision=revision)
    options: dict[str, object] = {
        "dtype": torch.float32 if dtype is None else dtype,
        "generation_config": generation,
    }
    if quantize is not None:
        options["quantization_config"] = quantization_config(quantize, compute_dtype)
        options["device_map"] = {"": best_device()}
        # A quantised layer's own numbers are integers: the files tell what they were made from. They are looked at
        # first, because older bitsandbytes end the process over NaN.
        refuse_not_finite(tensors_of(files), place=source, remedy=DAMAGED)
    model = _load_renamed(source, config, files, names, options, revision)
    model.generation_config = generation or model.generation_config
    repair_generation_config(model)
    if quantize is None:
        refuse_not_finite(model.named_parameters(), place=source, remedy=DAMAGED)
        refuse_zeros(model.named_parameters(), place=source, remedy=DAMAGED)
    window_encoder(model)
    if quantize is not None:
        settle(model)
    return model


def _load_renamed(
    source: str,
    config: WhisperConfig,
    files: list[Path],
    names: Mapping[str, str],
    options: dict[str, object],
    revision: str | None,
) -> WhisperForConditionalGeneration:
    """Let transformers load the weights, from their files, or by other names than they have there."""
    from transformers import WhisperForConditionalGeneration

    if all(name == new_name for name, new_name in names.items()):
        return load_or_explain(
            WhisperForConditionalGeneration.from_pretrained,
            source,
            "the weights (safetensors)",
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            revision=revision or "main",
            **options,
        )
    state = {names[name]: tensor for name, tensor in tensors_of(files)}
    with without_bars():
        model = WhisperForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, trust_remote_code=False, **options
        )
    # A saved adapter names its base by these.
    model.name_or_path = source
    model.config.name_or_path = source
    return model


def empty_whisper(config: WhisperConfig) -> WhisperForConditionalGeneration:
    """Build the Whisper that a config describes, without memory for its weights."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        return WhisperForConditionalGeneration(config)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model by their names."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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

    file = _adapter_file(adapter)
    adapted = _adapted(model, adapter, trainable=trainable)
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
            _say_it_changes_nothing(adapter)
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


def _adapter_file(adapter: Path) -> Path:
    file = adapter / ADAPTER_WEIGHTS
    if not file.exists():
        raise UserError(f"{adapter}: no {ADAPTER_WEIGHTS}; adapters are read from safetensors only.")
    return file


def _adapted(model: PreTrainedModel, adapter: Path, *, trainable: bool) -> PeftModel:
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
    return fit_adapter(read_header([_adapter_file(adapter)]), expected, optional, place=str(adapter))


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
    for name, tensor in tensors_of([_adapter_file(adapter)]):
        half = _HALF_OF_A_FACTOR.search(name)
        if half is None:
            return False  # a bias, a magnitude of DoRA, or a module that was trained in full
        if tensor.any():
            halves.setdefault(name[: half.start()], set()).add(half[1])
    return not any(layer == {"A", "B"} for layer in halves.values())


def check_weights(base: str, adapter: Path | None, *, revision: str | None = None) -> None:
    """Count the tensors of a model or an adapter, and look for values that are no numbers; load nothing.

    An adapter whose update is zero is said.

    Args:
        base: Folder or Hub id of the full weights. An adapter's base on the Hub is not fetched: where it is not here,
            the adapter is counted by its own config alone.
        adapter: The adapter's folder; None for a stand-alone model.
        revision: Commit of a base on the Hub.

    Raises:
        UserError: See `load_base` and `load_adapter`.
    """
    if adapter is None:
        refuse_foreign_folder(Path(base))
        files = weight_files(base)
        names = fit_base(read_header(files), shapes_of(empty_whisper(load_config(base))), place=base)
        refuse_own_head(files, names, place=base)
        refuse_not_finite(tensors_of(files), place=base, remedy=DAMAGED)
        refuse_zeros(((names[name], tensor) for name, tensor in tensors_of(files)), place=base, remedy=DAMAGED)
        return
    file = _adapter_file(adapter)
    read_adapter_config(adapter)
    folder = _known_folder(base, revision)
    if folder is not None:
        fit_to_adapter(_adapted(empty_whisper(load_config(folder)), adapter, trainable=False), adapter)
    strangers = [name for name in read_header([file]).shapes if adapter_name(name) != name]
    if strangers:
        raise UserError(
            f"{adapter}: {len(strangers)} tensors are not named as peft names them ({printable(strangers[0])[:100]}); "
            "other programs would load nothing of the adapter. Train one step further with it, or save it again."
        )
    refuse_not_finite(tensors_of([file]), place=str(adapter), remedy=DAMAGED)
    if changes_nothing(adapter):
        _say_it_changes_nothing(adapter)


def _say_it_changes_nothing(adapter: Path) -> None:
    warnings.warn(f"{adapter}: the adapter changes nothing, its update is zero.", Notice, stacklevel=3)


def _known_folder(base: str, revision: str | None) -> str | None:
    """The folder of a base that is on this machine, as a model folder or in the cache of the Hub."""
    if is_folder(base):
        return base
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(base, "config.json", revision=revision or "main")
    except HFValidationError:
        return None
    return str(Path(config).parent) if isinstance(config, str) else None
