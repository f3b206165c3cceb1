"""Load a base, after every tensor in its files was matched with the model that its config describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import UserError
from whisper_peft.files import is_folder
from whisper_peft.model.configs import load_config, load_generation_config, repair_generation_config
from whisper_peft.model.devices import best_device
from whisper_peft.model.foreign import describe_quantization, refuse_foreign_folder
from whisper_peft.model.from_pretrained import load_or_explain, without_bars
from whisper_peft.model.identity import weight_files
from whisper_peft.model.quantizing import prepare_quantized_layers, quantization_config
from whisper_peft.model.tensor_matching import fit_base
from whisper_peft.model.weights import (
    read_header,
    refuse_not_finite,
    refuse_own_head,
    refuse_zeros,
    tensors_of,
)

if TYPE_CHECKING:
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

# The remedy for weights that are no numbers, as the end of a message.
DAMAGED = "copy or download them again, or take an earlier checkpoint of their training"


def load_base(
    source: str,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    compute_dtype: torch.dtype | None = None,
) -> WhisperForConditionalGeneration:
    """Load the full weights, from safetensors only, with an encoder that also takes shorter windows.

    Args:
        source: A local folder or a Hub id.
        dtype: Type of the weights; "auto" keeps the checkpoint's own, None is float32.
        revision: Commit on the Hub; None is the newest.
        quantize: "8bit" or "4bit" to quantise the base, see `quantizing`. It is then loaded onto its device.
        compute_dtype: Type of the matrix products of a 4-bit base; None is float32.

    Raises:
        UserError: The model is not found, is not a Whisper, or is quantised already; its weights come as pickle only,
            do not fit its config, or are not finite numbers.
    """
    import torch

    from whisper_peft.model.windows import window_encoder

    if is_folder(source):
        refuse_foreign_folder(Path(source))
    config = load_config(source, revision=revision)
    # A folder was checked above. This is for a model on the Hub.
    setting = getattr(config, "quantization_config", None)
    if setting is not None:
        raise UserError(f"{source}: {describe_quantization(setting)}.")
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
        # The numbers of a quantised layer are integers, so the files are looked at, not the model. They come first,
        # because older versions of bitsandbytes end the process when they meet NaN.
        refuse_not_finite(tensors_of(files), place=source, remedy=DAMAGED)
    model = _load_renamed(source, config, files, names, options, revision)
    model.generation_config = generation or model.generation_config
    repair_generation_config(model)
    if quantize is None:
        refuse_not_finite(model.named_parameters(), place=source, remedy=DAMAGED)
        refuse_zeros(model.named_parameters(), place=source, remedy=DAMAGED)
    window_encoder(model)
    if quantize is not None:
        prepare_quantized_layers(model)
    return model


def _load_renamed(
    source: str,
    config: WhisperConfig,
    files: list[Path],
    names: Mapping[str, str],
    options: dict[str, object],
    revision: str | None,
) -> WhisperForConditionalGeneration:
    """Let transformers load the weights; where their names in the files differ from the model's, rename them first."""
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
    """Build the Whisper that a config describes, on torch's meta device: its weights take no memory."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        return WhisperForConditionalGeneration(config)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a model, by its name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
