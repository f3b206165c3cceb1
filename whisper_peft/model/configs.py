"""From a checkpoint's JSON files to its config, processor and generation config; no weights are read.

Every file is read and held against a table of fields before transformers sees it, and transformers is given only what
the tables know. So no code of a checkpoint is run, and no field can ask for an attention kernel from the Hub.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, read_json_file, short_repr
from whisper_peft.model.extractor import load_feature_extractor
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
from whisper_peft.model.from_pretrained import load_or_explain
from whisper_peft.model.generation_config import complete_generation_config
from whisper_peft.model.vocabulary import load_tokenizer, read_vocabulary, refuse_vocabulary
from whisper_peft.model.weights import weight_shapes

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# The largest published Whisper has a width of 1,280 and 32 + 32 layers. These limits leave room for more, and none for
# what no machine can hold.
_DROPOUT = number(0.0, 1.0)
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
# Other names that transformers takes for these fields. Where both are there, the field's own name counts.
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "begin_suppress_tokens")


def find_file(source: str | Path, name: str, *, revision: str | None = None) -> Path | None:
    """Find a file of a checkpoint in its folder, or on the Hub, from where it is downloaded.

    Args:
        source: A local folder or a Hub id.
        name: The file's name.
        revision: The commit on the Hub; None is the newest.

    Returns:
        The file, or None where the checkpoint has none of this name.

    Raises:
        UserError: The Hub has no such checkpoint, or does not answer.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path if os.path.lexists(path) else None
    from transformers.utils import cached_file

    what = "the model's config" if name == CONFIG else name
    found = load_or_explain(
        cached_file, str(source), what, filename=name, revision=revision or "main",
        _raise_exceptions_for_missing_entries=name == CONFIG,  # the others may be missing
    )  # fmt: skip
    return None if found is None else Path(found)


def load_config(source: str, *, revision: str | None = None) -> WhisperConfig:
    """Load the config of a base.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest.

    Returns:
        A config that describes a Whisper which can be built and, where the weights lie beside it, is theirs.

    Raises:
        UserError: It was not found, is not a Whisper's, or describes a model that cannot be. The message names the
            file and the field.
    """
    from transformers import WhisperConfig

    path = find_file(source, CONFIG, revision=revision)
    if path is None:
        raise UserError(f"{source}: no {CONFIG} in it, so it is not a model in transformers' layout.")
    page = read_json_file(path)
    model_type = page.get("model_type")
    if not isinstance(model_type, str):
        raise UnusableFileError(path, "names no model_type; a Whisper in transformers' layout says 'whisper' there")
    if model_type != "whisper":
        raise UserError(f"{source}: a {short_repr(model_type)[1:-1]} model; this tool trains Whisper only.")
    fields = _known_fields(path, page)
    try:
        config = WhisperConfig(**fields)
    except Exception as error:  # a relation that a later transformers checks, with an exception of its own
        raise UnusableFileError(path, f"transformers refuses it ({' '.join(str(error).split())[:200]})") from None
    config.name_or_path = str(source)
    _check_shape(path, config)
    _check_against_weights(path, config)
    return config


def _known_fields(path: Path, page: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json that mean something to Whisper, each of the right kind."""
    fields = {name: value for name, value in page.items() if name in CONFIG_FIELDS}
    for alias, name in ALIASES.items():
        if alias in page:
            check_fields(path, page, {alias: CONFIG_FIELDS[name]})
            fields.setdefault(name, page[alias])
    check_fields(path, fields, CONFIG_FIELDS)
    # Of every Whisper. Untied, an output layer that is not stored would be made of random numbers.
    fields["tie_word_embeddings"] = True
    fields["is_encoder_decoder"] = True
    if "init_std" in fields:  # transformers 5 refuses a whole number
        fields["init_std"] = float(fields["init_std"])
    for name in ("dtype", "torch_dtype"):
        value = fields.get(name)
        if value is None:
            continue
        short = value.removeprefix("torch.")
        if short not in FLOAT_TYPES:
            refuse_field(path, name, value, f"expected one of {', '.join(FLOAT_TYPES)}")
        fields[name] = short
    for name in ("decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens", "torch_dtype", "dtype"):
        if name in fields and fields[name] is None:
            del fields[name]
    if fields.get("pad_token_id") == -1:
        fields["pad_token_id"] = None
    if fields.get("vocab_size", math.inf) <= 50257:  # transformers' defaults are ids of English-only Whisper
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "begin_suppress_tokens"):
            fields.setdefault(name, None)
    return fields


def _check_shape(path: Path, config: WhisperConfig) -> None:
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
            refuse_field(path, "d_model", config.d_model, f"it cannot be shared out among {heads} heads ({name})")
    if config.d_model % 2:
        refuse_field(path, "d_model", config.d_model, "expected an even number")
    for name in TOKEN_FIELDS:
        value = getattr(config, name, None)
        ids = value if isinstance(value, (list, tuple)) else [value]
        too_large = [token for token in ids if token is not None and token >= config.vocab_size]
        if too_large:
            refuse_field(path, name, value, f"the vocabulary has {config.vocab_size:,} tokens (vocab_size)")


def _check_against_weights(path: Path, config: WhisperConfig) -> None:
    """Refuse a config that describes another model than the weights beside it.

    Only the headers of the safetensors are read, so a made-up size is refused before anything of it is allocated.

    Raises:
        UnusableFileError: A width, a number of layers, or the size of a vocabulary differs.
    """
    shapes = weight_shapes(sorted(path.parent.glob("model*.safetensors")))
    # The end of a tensor's name, which of its dimensions, and the field that states it. Neither an embedding, a
    # convolution nor a norm is ever stored in 4 or 8 bits.
    stated = (
        ("decoder.embed_tokens.weight", 1, "d_model"),
        ("decoder.embed_tokens.weight", 0, "vocab_size"),
        ("encoder.conv1.weight", 0, "d_model"),
        ("encoder.conv1.weight", 1, "num_mel_bins"),
        ("encoder.embed_positions.weight", 0, "max_source_positions"),
        ("decoder.embed_positions.weight", 0, "max_target_positions"),
        ("encoder.layers.0.fc1.bias", 0, "encoder_ffn_dim"),
        ("decoder.layers.0.fc1.bias", 0, "decoder_ffn_dim"),
    )
    for ending, dimension, field in stated:
        found = [shape for name, shape in shapes.items() if name.endswith(ending) and len(shape) > dimension]
        # Of empty tensors, as DeepSpeed leaves them, loading says more.
        if found and found[0][dimension] not in (0, getattr(config, field)):
            refuse_field(path, field, getattr(config, field), f"the weights beside it have {found[0][dimension]:,}")
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


def load_processor(source: str, *, revision: str | None = None) -> WhisperProcessor:
    """Load the processor (feature extractor and tokenizer) that lies beside a model.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest.

    Raises:
        UserError: There is no tokenizer, or one of its files cannot be used. The message names the file and the field.
    """
    from transformers import WhisperProcessor

    find = partial(_find, source, revision)
    tokenizer = load_tokenizer(find, source)
    extractor = load_feature_extractor(find)
    if extractor is None:
        config = load_config(source, revision=revision)
        extractor = load_feature_extractor(
            find, n_mels=config.num_mel_bins, window_frames=2 * config.max_source_positions, source=source
        )
    return WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def load_preparation(source: str, *, revision: str | None = None) -> Preparation:
    """Load the processor and the limits of a checkpoint as the data path needs them; no weights are read.

    Raises:
        UserError: See `load_config` and `load_processor`; or the tokenizer is another checkpoint's.
    """
    config = load_config(source, revision=revision)
    processor = load_processor(source, revision=revision)
    vocabulary = processor.tokenizer.get_vocab()
    refuse_vocabulary(source, vocabulary, config)
    generation = _generation_config(source, revision, config, vocabulary)
    return Preparation(processor, config, multilingual=bool(generation.is_multilingual))


def load_generation_config(
    source: str | Path, *, revision: str | None = None, base: str | None = None
) -> GenerationConfig | None:
    """Load the generation config of a checkpoint with all of Whisper's fields.

    What an old file leaves out is filled in from the vocabulary and the tokenizer, and a `Notice` says so.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest. With `base` it is the base's.
        base: For the folder of an adapter, its base, whose vocabulary and shape the file is held against.

    Returns:
        The generation config. It is None for an adapter without one, and for a checkpoint that has neither a
        tokenizer nor a generation config.

    Raises:
        UserError: The file cannot be used. The message names the field.
    """
    if base is not None and find_file(source, GENERATION_CONFIG) is None:
        return None
    model = str(source) if base is None else base
    config = load_config(model, revision=revision)
    vocabulary = read_vocabulary(partial(_find, model, revision))
    return _generation_config(source, revision, config, vocabulary, base=base)


def _find(source: str, revision: str | None, name: str) -> Path | None:
    return find_file(source, name, revision=revision)


def _generation_config(
    source: str | Path,
    revision: str | None,
    config: WhisperConfig,
    vocabulary: Mapping[str, int],
    *,
    base: str | None = None,
) -> GenerationConfig | None:
    path = find_file(source, GENERATION_CONFIG, revision=revision if base is None else None)
    legacy = {}
    if path is None:  # a config.json of 2022 says what is suppressed
        page = read_json_file(find_file(source, CONFIG, revision=revision))
        names = ("suppress_tokens", "begin_suppress_tokens")
        legacy = {name: page[name] for name in names if page.get(name) is not None}
    return complete_generation_config(
        {} if path is None else read_json_file(path), config, vocabulary,
        place=Path(source) / GENERATION_CONFIG if path is None else path, missing=path is None, legacy=legacy,
    )  # fmt: skip


def repair_generation_config(model: WhisperForConditionalGeneration) -> None:
    """Keep Whisper's generation fields across save and load.

    A config marked as derived from the model is rebuilt on reload and loses `lang_to_id` and the like, and
    `forced_decoder_ids` left in it make saving fail (transformers 5).
    """
    config = model.generation_config
    config._from_model_config = False
    if getattr(config, "forced_decoder_ids", None) is not None:
        config.forced_decoder_ids = None
    if getattr(model.config, "forced_decoder_ids", None) is not None:
        model.config.forced_decoder_ids = None
