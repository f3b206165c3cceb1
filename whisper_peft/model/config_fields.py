"""The fields of a config.json: which there are, and whether they fit each other and the weights beside the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.model.fields import (
    FLAG,
    OBJECT,
    TOKEN,
    FieldKind,
    check_fields,
    either,
    list_of,
    number,
    optional,
    refuse_field,
    short_text,
    whole,
)
from whisper_peft.model.weights import weight_shapes

if TYPE_CHECKING:
    from transformers import WhisperConfig

_DROPOUT = number(0.0, 1.0)
# The fields of a config.json that we know. The largest published Whisper has a width of 1,280 and 32 + 32 layers: these
# limits leave room for larger ones, and none for what no machine can hold.
CONFIG_FIELDS: dict[str, FieldKind] = {
    "vocab_size": whole(8, 1_000_000),
    "num_mel_bins": whole(1, 1024),
    "d_model": whole(2, 16_384),
    "encoder_layers": whole(1, 256),
    "decoder_layers": whole(1, 256),
    "encoder_attention_heads": whole(1, 1024),
    "decoder_attention_heads": whole(1, 1024),
    "encoder_ffn_dim": whole(1, 131_072),
    "decoder_ffn_dim": whole(1, 131_072),
    "max_source_positions": whole(2, 100_000),
    "max_target_positions": whole(8, 100_000),
    "activation_function": short_text(100),
    "dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "activation_dropout": _DROPOUT,
    "encoder_layerdrop": _DROPOUT,
    "decoder_layerdrop": _DROPOUT,
    "init_std": number(0.0, 1000.0),
    "scale_embedding": FLAG,
    "use_cache": FLAG,
    "is_encoder_decoder": FLAG,
    "tie_word_embeddings": FLAG,
    "use_weighted_layer_sum": FLAG,
    "classifier_proj_size": whole(1, 131_072),
    "median_filter_width": whole(1, 1001),
    "apply_spec_augment": FLAG,
    "mask_time_prob": number(0.0, 1.0),
    "mask_time_length": whole(1, 100_000),
    "mask_time_min_masks": whole(0, 100_000),
    "mask_feature_prob": number(0.0, 1.0),
    "mask_feature_length": whole(1, 100_000),
    "mask_feature_min_masks": whole(0, 100_000),
    "bos_token_id": optional(TOKEN),
    "eos_token_id": optional(either(TOKEN, list_of(TOKEN, 1000))),
    "pad_token_id": optional(either(TOKEN, whole(-1, -1))),
    "decoder_start_token_id": optional(TOKEN),
    "suppress_tokens": optional(list_of(either(TOKEN, whole(-1, -1)))),
    "begin_suppress_tokens": optional(list_of(TOKEN)),
    "architectures": optional(list_of(short_text(200), 100)),
    "dtype": optional(short_text(100)),
    "torch_dtype": optional(short_text(100)),
    "transformers_version": optional(short_text(100)),
    "quantization_config": optional(OBJECT),
}
# Other names under which transformers takes some of the fields. Where both are there, the field's own name counts.
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
# Types that weights can have, without "torch." before them.
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
# The end of a tensor's name, one of its dimensions, and the field that states its size. An embedding, a convolution or
# a norm is never stored in 4 or 8 bits.
_STATED_SIZES = (
    ("decoder.embed_tokens.weight", 1, "d_model"),
    ("decoder.embed_tokens.weight", 0, "vocab_size"),
    ("encoder.conv1.weight", 0, "d_model"),
    ("encoder.conv1.weight", 1, "num_mel_bins"),
    ("encoder.embed_positions.weight", 0, "max_source_positions"),
    ("decoder.embed_positions.weight", 0, "max_target_positions"),
    ("encoder.layers.0.fc1.bias", 0, "encoder_ffn_dim"),
    ("decoder.layers.0.fc1.bias", 0, "decoder_ffn_dim"),
)
# Fields that hold a token id or a list of them.
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "begin_suppress_tokens")
# transformers' default token ids belong to the English-only Whisper, and are beyond a vocabulary of this size.
_LARGEST_VOCABULARY_WITHOUT_DEFAULTS = 50257


def read_config_fields(path: Path, page: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json that mean something to Whisper, each of the right kind.

    Raises:
        UnusableFileError: A field holds a value that it cannot have.
    """
    fields = {name: value for name, value in page.items() if name in CONFIG_FIELDS}
    for alias, name in ALIASES.items():
        if alias in page:
            check_fields(path, page, {alias: CONFIG_FIELDS[name]})
            fields.setdefault(name, page[alias])
    check_fields(path, fields, CONFIG_FIELDS)
    # This holds for every Whisper. If the weights were not tied, an output layer that is not stored would be filled
    # with random numbers.
    fields["tie_word_embeddings"] = True
    fields["is_encoder_decoder"] = True
    # transformers 5 refuses a whole number.
    if "init_std" in fields:
        fields["init_std"] = float(fields["init_std"])
    _shorten_types(path, fields)
    for name in ("decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens", "torch_dtype", "dtype"):
        if name in fields and fields[name] is None:
            del fields[name]
    if fields.get("pad_token_id") == -1:
        fields["pad_token_id"] = None
    if fields.get("vocab_size", math.inf) <= _LARGEST_VOCABULARY_WITHOUT_DEFAULTS:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "begin_suppress_tokens"):
            fields.setdefault(name, None)
    return fields


def _shorten_types(path: Path, fields: dict[str, Any]) -> None:
    """Write the type of the weights without "torch." before it.

    Raises:
        UnusableFileError: It is no type of weights.
    """
    for name in ("dtype", "torch_dtype"):
        value = fields.get(name)
        if value is None:
            continue
        short = value.removeprefix("torch.")
        if short not in FLOAT_TYPES:
            refuse_field(path, name, value, f"expected one of {', '.join(FLOAT_TYPES)}")
        fields[name] = short


def check_shape(path: Path, config: WhisperConfig) -> None:
    """Refuse a config whose fields do not fit each other.

    Raises:
        UnusableFileError: No model can be built from it.
    """
    from transformers.activations import ACT2FN

    check_fields(path, vars(config), {name: CONFIG_FIELDS[name] for name in CONFIG_FIELDS if "dtype" not in name})
    if config.activation_function not in ACT2FN:
        refuse_field(path, "activation_function", config.activation_function, "no function that transformers knows")
    for name in ("encoder_attention_heads", "decoder_attention_heads"):
        heads = getattr(config, name)
        if config.d_model % heads:
            refuse_field(path, "d_model", config.d_model, f"it cannot be divided among {heads} heads ({name})")
    if config.d_model % 2:
        refuse_field(path, "d_model", config.d_model, "expected an even number")
    for name in TOKEN_FIELDS:
        value = getattr(config, name, None)
        ids = value if isinstance(value, (list, tuple)) else [value]
        too_large = [token for token in ids if token is not None and token >= config.vocab_size]
        if too_large:
            refuse_field(path, name, value, f"the vocabulary has {config.vocab_size:,} tokens (vocab_size)")


def check_against_weights(path: Path, config: WhisperConfig) -> None:
    """Refuse a config that describes another model than the weights beside it.

    Only the headers of the safetensors are read, so a wrong size is refused before anything of that size is allocated.

    Raises:
        UnusableFileError: A width, a number of layers, or the size of a vocabulary differs.
    """
    shapes = weight_shapes(sorted(path.parent.glob("model*.safetensors")))
    for ending, dimension, field in _STATED_SIZES:
        sizes = [shape[dimension] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > dimension]
        # DeepSpeed leaves empty tensors. About them, loading says more.
        if sizes and sizes[0] not in (0, getattr(config, field)):
            refuse_field(path, field, getattr(config, field), f"the weights beside it have {sizes[0]:,}")
    for half in ("encoder", "decoder"):
        numbers = [_layer_of(name, half) for name in shapes]
        n_layers = max(numbers, default=-1) + 1
        field = f"{half}_layers"
        if n_layers and n_layers < getattr(config, field):
            refuse_field(path, field, getattr(config, field), f"the weights beside it have {n_layers}")


def _layer_of(name: str, half: str) -> int:
    """Return the number of the layer that a tensor belongs to; -1 if it is in no layer of this half."""
    match = re.search(rf"\b{half}\.layers\.([0-9]{{1,5}})\.", name)
    return int(match[1]) if match else -1
