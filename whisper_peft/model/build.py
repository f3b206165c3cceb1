"""From a name to a model that is trained or run: the base, and an adapter on it. The only fork on mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_generation_config, load_preparation
from whisper_peft.model.devices import best_precision, dtype_of
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import Located, locate, with_base
from whisper_peft.model.lora import add_adapter, load_adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

QUANTIZE_WORDS = ("as-trained", "none", "8bit", "4bit")


def whisper_of(model) -> WhisperForConditionalGeneration:
    """The Whisper inside: peft's layers sit in its modules, so it speaks with the adapter's voice."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def condense_silence(model, window: str) -> None:
    """Sets what stands behind a window shorter than 30 s: see `windows.condense`.

    Args:
        model: a Whisper as `load_base` gives it, or an adapter on one.
        window: "condensed": positions that speak for the silence; "tight" or "full": nothing.
    """
    from whisper_peft.model.windows import condense

    condense(whisper_of(model), window == "condensed")


def check_mode(located: Located, mode: str, quantize: str | None = None) -> None:
    """Refuses what cannot be trained in full; reads nothing.

    Raises:
        UserError: full fine-tuning of an adapter, or of a quantised base.
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
    lora: dict | None = None,
    freeze: str | None = None,
    quantize: str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> WhisperForConditionalGeneration | PeftModel:
    """The model that is trained; the one place where full and LoRA part.

    Args:
        located: see `locate`; an adapter is gone on with in LoRA mode.
        mode: full or lora.
        lora: arguments of `add_adapter`.
        freeze: "encoder", or None.
        quantize: an adapter's base in "8bit" or "4bit", or None.
        autocast_dtype: what the model will be run in. An adapter's base is then held in it: autocast would make the
            same of it in every forward, and at twice the memory.

    Raises:
        UserError: see `check_mode`.
    """
    check_mode(located, mode, quantize)
    held = mode == "lora" and autocast_dtype is not None  # then float32 copies would only be made to be thrown away
    model = load_base(
        located.base, dtype="auto" if held else None, revision=located.commit, quantize=quantize,
        compute_dtype=autocast_dtype,
    )  # fmt: skip
    if mode == "full":
        # Sinusoids, fixed in Whisper; transformers 5 loads them as trainable.
        model.get_encoder().embed_positions.requires_grad_(False)
        if freeze == "encoder":
            model.get_encoder().requires_grad_(False)
        return model
    model = load_adapter(model, located.adapter, trainable=True) if located.adapter else add_adapter(
        model, **(lora or {})
    )  # fmt: skip
    if freeze == "encoder":
        model.get_base_model().get_encoder().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("train.freeze: leaves nothing to train with these lora.targets.")
    if held:
        hold_frozen(model, autocast_dtype)
    return model


def hold_frozen(model, dtype: torch.dtype) -> None:
    """Casts linear and convolution layers that are not trained to a type, and all else to float32.

    In that order of modules: the output head comes last, and has the token embedding's weight.
    """
    import torch
    from torch.nn import Conv1d, Linear

    for module in model.modules():
        own = list(module.parameters(recurse=False))
        frozen = type(module) in (Conv1d, Linear) and not any(p.requires_grad for p in own)
        for parameter in own:
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype if frozen else torch.float32)


def load_model(
    name: str | Path, *, dtype: torch.dtype | str | None = None, base: str | None = None, quantize: str = "as-trained"
):
    """Any MODEL ready to transcribe: (model in eval mode, preparation, located).

    Args:
        name: Hub id, model, adapter or run folder.
        dtype: of the weights; "auto" keeps the checkpoint's own; None is float32.
        base: the adapter's base, if it has moved.
        quantize: the base in "8bit", "4bit" or "none"; "as-trained": as the adapter knew it.

    Raises:
        UserError: see `locate` and `load_base`; or the base is not the one the adapter was trained on.
    """
    if quantize not in QUANTIZE_WORDS:
        raise UserError(f"--quantize {quantize}: expected one of {', '.join(QUANTIZE_WORDS)}.")
    located = locate(name)
    if quantize == "as-trained":
        quantize = located.quantize or "none"
    bits = {} if quantize == "none" else {"quantize": quantize, "compute_dtype": dtype_of(best_precision())}
    if located.adapter:
        located = with_base(located, base)
        model = load_adapter(load_base(located.base, dtype=dtype, revision=located.commit, **bits), located.adapter)
        if (located.adapter / "generation_config.json").is_file():  # the language it was trained for
            model.get_base_model().generation_config = load_generation_config(
                located.adapter, revision=located.commit, base=located.base
            )
    else:
        model = load_base(located.base, dtype=dtype, **bits)
    preparation = load_preparation(located.base, revision=located.commit)
    return model.eval(), preparation, located
