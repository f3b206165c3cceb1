"""A Whisper in the layout of openai-whisper: its sizes, and the names of its tensors. ggml and MLX share them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.errors import UserError
from whisper_peft.model.weights import HEAD_WEIGHT

if TYPE_CHECKING:
    import torch
    from transformers import WhisperConfig

_EMBEDDING = "model.decoder.embed_tokens.weight"
# Modules and tensors outside of the layers.
_OUTSIDE = {
    "model.encoder.conv1": "encoder.conv1",
    "model.encoder.conv2": "encoder.conv2",
    "model.encoder.embed_positions.weight": "encoder.positional_embedding",
    "model.encoder.layer_norm": "encoder.ln_post",
    "model.decoder.embed_tokens": "decoder.token_embedding",
    "model.decoder.embed_positions.weight": "decoder.positional_embedding",
    "model.decoder.layer_norm": "decoder.ln",
}
# Modules within a layer.
_INSIDE = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.k_proj": "cross_attn.key",
    "encoder_attn.v_proj": "cross_attn.value",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.(.+)")


def openai_sizes(config: WhisperConfig) -> dict[str, int]:
    """Return the sizes of a model under the names of openai-whisper's `ModelDimensions`."""
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }


def openai_name(name: str) -> str | None:
    """Return openai-whisper's name of a tensor; None if it has no place there.

    Args:
        name: Its name in transformers.

    Example:
        >>> openai_name("model.decoder.layers.3.encoder_attn.k_proj.weight")
        'decoder.blocks.3.cross_attn.key.weight'
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    layer = _LAYER.fullmatch(module)
    if layer is None or layer[3] not in _INSIDE:
        return None
    return f"{layer[1]}.blocks.{layer[2]}.{_INSIDE[layer[3]]}.{kind}"


def openai_tensors(source: ModelToExport, dtype: str) -> dict[str, torch.Tensor]:
    """Load the weights of a model under openai-whisper's names.

    Args:
        source: The model.
        dtype: Their type: "float16", "bfloat16" or "float32".

    Raises:
        UserError: A tensor has no place in openai-whisper, the output layer is not the token embedding, or a weight is
            too large for the type.
    """
    import torch

    state = source.load().state_dict()
    head = state.pop(HEAD_WEIGHT, None)
    if head is not None and not torch.equal(head, state[_EMBEDDING]):
        raise UserError(
            f"{source.name}: its output layer differs from its token embedding, and openai-whisper has one matrix for "
            "both; take --format ctranslate2 or onnx."
        )
    tensors = {}
    for name, tensor in state.items():
        new_name = openai_name(name)
        if new_name is None:
            raise UserError(f"{source.name}: its tensor {name} has no place in openai-whisper; take --format onnx.")
        tensors[new_name] = tensor.to(getattr(torch, dtype)).contiguous()
        if not torch.isfinite(tensors[new_name]).all():
            raise UserError(f"{source.name}: {name} is too large for {dtype}; take --quantization float32.")
    return tensors
