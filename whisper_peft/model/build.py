"""From a name to a model that is trained or run: the base, and an adapter on it. The only fork on mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.model.configs import GENERATION_CONFIG, load_generation_config, load_preparation
from whisper_peft.model.devices import best_precision, dtype_of
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import Located, locate, with_base
from whisper_peft.model.lora import add_adapter, load_adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

# Values of --quantize, for a model that is run and not trained.
QUANTIZE_WORDS = ("as-trained", "none", "8bit", "4bit")


def whisper_of(model: WhisperForConditionalGeneration | PeftModel) -> WhisperForConditionalGeneration:
    """Return the Whisper model without the peft wrapper.

    The adapter stays active, because peft replaces layers inside the model.
    """
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def condense_silence(model: WhisperForConditionalGeneration | PeftModel, window: str) -> None:
    """Choose what stands behind a window that is shorter than 30 s: see `windows.condense`.

    Args:
        model: A Whisper as `load_base` gives it, or an adapter on one.
        window: "condensed" for positions that represent the silence; "tight" or "full" for nothing.
    """
    from whisper_peft.model.windows import condense

    condense(whisper_of(model), window == "condensed")


def check_mode(located: Located, mode: str, quantize: str | None = None) -> None:
    """Refuse a model that cannot be trained in full; no file is read.

    Args:
        located: The model.
        mode: full or lora.
        quantize: "8bit" or "4bit" if the base is to be quantised.

    Raises:
        UserError: An adapter, or a quantised base, is to be trained in full.
    """
    if mode == "full" and located.adapter:
        raise UserError(
            f"{located.name}: an adapter; full fine-tuning needs stand-alone weights: "
            f"whisper-peft merge {located.name} OUT, then train --model OUT."
        )
    if mode == "full" and quantize:
        raise UserError(
            f"train.quantize: {quantize} weights cannot be trained, only an adapter on them; take --mode lora, or "
            "leave --quantize away."
        )


def build_model(
    located: Located,
    mode: str,
    *,
    lora: dict[str, Any] | None = None,
    freeze: str | None = None,
    quantize: str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> WhisperForConditionalGeneration | PeftModel:
    """Build the model that is trained. This is the one place where full fine-tuning and LoRA part.

    Args:
        located: The model, see `locate`. If it is an adapter, LoRA mode trains that one further.
        mode: full or lora.
        lora: Arguments of `add_adapter` for a fresh adapter.
        freeze: "encoder" if the encoder is not trained, or None.
        quantize: "8bit" or "4bit" for the base of an adapter, or None.
        autocast_dtype: The type that autocast computes in; None if there is no autocast. The frozen weights of an
            adapter's base are stored in it. That saves casting them in every forward, and half of their memory.

    Raises:
        UserError: See `check_mode`; or the settings leave nothing to train.
    """
    check_mode(located, mode, quantize)
    if mode == "full":
        return _build_full_model(located, freeze=freeze)
    is_reduced = autocast_dtype is not None
    base = load_base(
        located.base,
        # The frozen weights are cast below, so float32 copies would only be made to be thrown away.
        dtype="auto" if is_reduced else None,
        revision=located.commit,
        quantize=quantize,
        compute_dtype=autocast_dtype,
    )
    if located.adapter:
        model = load_adapter(base, located.adapter, trainable=True)
    else:
        model = add_adapter(base, **(lora or {}))
    if freeze == "encoder":
        model.get_base_model().get_encoder().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("train.freeze: leaves nothing to train with these lora.targets.")
    if autocast_dtype is not None:
        cast_frozen_weights(model, autocast_dtype)
    return model


def _build_full_model(located: Located, *, freeze: str | None) -> WhisperForConditionalGeneration:
    """Build a model all of whose weights are trained, in float32."""
    model = load_base(located.base, revision=located.commit)
    # These are sinusoids, which Whisper does not train. transformers 5 loads them as trainable.
    model.get_encoder().embed_positions.requires_grad_(False)
    if freeze == "encoder":
        model.get_encoder().requires_grad_(False)
    return model


def cast_frozen_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast linear and convolution layers that are not trained to a type, and all other weights to float32.

    The order of the modules matters: the output head shares its weight with the token embedding and comes last, so its
    type wins.

    Args:
        model: The model, which is changed.
        dtype: The type that autocast computes in.
    """
    import torch
    from torch.nn import Conv1d, Linear

    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        is_trained = any(parameter.requires_grad for parameter in parameters)
        is_cast = type(module) in (Conv1d, Linear) and not is_trained
        new_dtype = dtype if is_cast else torch.float32
        for parameter in parameters:
            # The integers of a quantised layer stay.
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(new_dtype)


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    base: str | None = None,
    quantize: str = "as-trained",
) -> tuple[WhisperForConditionalGeneration | PeftModel, Preparation, Located]:
    """Load any MODEL, ready to transcribe.

    Args:
        name: A Hub id, or a model, adapter or run folder.
        dtype: Type of the weights; "auto" keeps the checkpoint's own, None is float32.
        base: Where the adapter's base is now, if it has moved.
        quantize: "8bit" or "4bit" to quantise the base, or "none"; "as-trained" does what was done in the training of
            the adapter.

    Returns:
        The model in eval mode, what prepares its inputs, and where it was found.

    Raises:
        UserError: See `locate` and `load_base`; or the base is not the one that the adapter was trained on.
    """
    if quantize not in QUANTIZE_WORDS:
        raise UserError(f"--quantize {quantize}: expected one of {', '.join(QUANTIZE_WORDS)}.")
    located = locate(name)
    if quantize == "as-trained":
        quantize = located.quantize or "none"
    quantization: dict[str, Any] = {}
    if quantize != "none":
        quantization = {"quantize": quantize, "compute_dtype": dtype_of(best_precision())}
    if located.adapter is None:
        model = load_base(located.base, dtype=dtype, **quantization)
    else:
        located = with_base(located, base)
        whisper = load_base(located.base, dtype=dtype, revision=located.commit, **quantization)
        model = _load_adapter_to_run(whisper, located)
    preparation = load_preparation(located.base, revision=located.commit)
    return model.eval(), preparation, located


def _load_adapter_to_run(whisper: WhisperForConditionalGeneration, located: Located) -> PeftModel:
    """Put a saved adapter on its base, with the adapter's own generation config.

    That config knows the language that the adapter was trained for.
    """
    assert located.adapter is not None, "only an adapter gets here"
    model = load_adapter(whisper, located.adapter)
    if (located.adapter / GENERATION_CONFIG).is_file():
        model.get_base_model().generation_config = load_generation_config(
            located.adapter, revision=located.commit, base=located.base
        )
    return model
