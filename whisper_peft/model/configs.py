"""The config, the processor and the generation config of a checkpoint, from its JSON files; no weights are read.

Every file is read and checked against a table of fields before transformers sees it, and transformers is given only
what the tables know. So no code of a checkpoint is run, and no field can ask for an attention kernel from the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.files import UnusableFileError, read_json_file, short_repr
from whisper_peft.model.config_fields import check_against_weights, check_shape, read_config_fields
from whisper_peft.model.extractor import load_feature_extractor
from whisper_peft.model.from_pretrained import load_or_explain
from whisper_peft.model.generation_config import complete_generation_config
from whisper_peft.model.vocabulary import load_tokenizer, read_vocabulary, refuse_vocabulary

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


def find_file(source: str | Path, name: str, *, revision: str | None = None) -> Path | None:
    """Find a file of a checkpoint in its folder, or on the Hub, from where it is downloaded.

    Args:
        source: A local folder or a Hub id.
        name: The file's name.
        revision: The commit on the Hub; None is the newest.

    Returns:
        The file; None if the checkpoint has none of this name.

    Raises:
        UserError: The Hub has no such checkpoint, or does not answer.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path if os.path.lexists(path) else None
    from transformers.utils import cached_file

    path = load_or_explain(
        cached_file,
        str(source),
        "the model's config" if name == CONFIG else name,
        filename=name,
        revision=revision or "main",
        # Files other than config.json may be missing.
        _raise_exceptions_for_missing_entries=name == CONFIG,
    )
    return None if path is None else Path(path)


def load_config(source: str, *, revision: str | None = None) -> WhisperConfig:
    """Load the config of a base.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest.

    Returns:
        A config from which a Whisper can be built. If the weights lie beside it, it belongs to them.

    Raises:
        UserError: There is no config, it is not a Whisper's, or no model can be built from it. The message names the
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
    fields = read_config_fields(path, page)
    try:
        config = WhisperConfig(**fields)
    except Exception as error:
        # A later transformers may check more than we do, and raise an exception of its own.
        raise UnusableFileError(path, f"transformers refuses it ({' '.join(str(error).split())[:200]})") from None
    config.name_or_path = str(source)
    check_shape(path, config)
    check_against_weights(path, config)
    return config


def load_processor(source: str, *, revision: str | None = None) -> WhisperProcessor:
    """Load the processor, that is the feature extractor and the tokenizer, of a model.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest.

    Raises:
        UserError: There is no tokenizer, or one of its files cannot be used. The message names the file and the field.
    """
    from transformers import WhisperProcessor

    find = partial(find_file, source, revision=revision)
    tokenizer = load_tokenizer(find, source)
    extractor = load_feature_extractor(find)
    if extractor is None:
        config = load_config(source, revision=revision)
        extractor = load_feature_extractor(
            find, n_mels=config.num_mel_bins, window_frames=2 * config.max_source_positions, source=source
        )
    return WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def load_preparation(source: str, *, revision: str | None = None) -> Preparation:
    """Load the processor and the limits of a checkpoint, as the data path needs them; no weights are read.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest.

    Raises:
        UserError: See `load_config` and `load_processor`; or the tokenizer is another checkpoint's.
    """
    config = load_config(source, revision=revision)
    processor = load_processor(source, revision=revision)
    vocabulary = processor.tokenizer.get_vocab()
    refuse_vocabulary(source, vocabulary, config)
    generation = _load_generation_config(source, revision, config, vocabulary)
    assert generation is not None, "there is a vocabulary, from which it is made if need be"
    return Preparation(processor, config, multilingual=bool(generation.is_multilingual))


def load_generation_config(
    source: str | Path, *, revision: str | None = None, base: str | None = None
) -> GenerationConfig | None:
    """Load the generation config of a checkpoint with all of Whisper's fields.

    What an old file leaves out is filled in from the vocabulary and the tokenizer, and a `Notice` says so.

    Args:
        source: A local folder or a Hub id.
        revision: The commit on the Hub; None is the newest. With `base` it is the base's commit.
        base: The base of an adapter, if `source` is the adapter's folder. The file is checked against the base's
            vocabulary and shape.

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
    vocabulary = read_vocabulary(partial(find_file, model, revision=revision))
    return _load_generation_config(source, revision, config, vocabulary, base=base)


def _load_generation_config(
    source: str | Path,
    revision: str | None,
    config: WhisperConfig,
    vocabulary: Mapping[str, int],
    *,
    base: str | None = None,
) -> GenerationConfig | None:
    """Load a generation config for a config and a vocabulary that were loaded before."""
    # With `base`, the source is an adapter's folder on this machine, and the commit is not its own.
    path = find_file(source, GENERATION_CONFIG, revision=None if base is not None else revision)
    if path is not None:
        return complete_generation_config(
            read_json_file(path), config, vocabulary, place=path, missing=False, legacy={}
        )
    config_path = find_file(source, CONFIG, revision=revision)
    assert config_path is not None, "the config was loaded from there"
    page = read_json_file(config_path)
    # A config.json of 2022 says itself what is suppressed.
    legacy = {name: page[name] for name in ("suppress_tokens", "begin_suppress_tokens") if page.get(name) is not None}
    return complete_generation_config(
        {}, config, vocabulary, place=Path(source) / GENERATION_CONFIG, missing=True, legacy=legacy
    )


def repair_generation_config(model: WhisperForConditionalGeneration) -> None:
    """Change a generation config so that Whisper's fields outlive saving and loading.

    transformers 5 builds a config anew that is marked as derived from the model, and loses `lang_to_id` and the like.
    It also fails to save one with `forced_decoder_ids` in it.

    Args:
        model: The model whose generation config is changed.
    """
    config = model.generation_config
    config._from_model_config = False
    if getattr(config, "forced_decoder_ids", None) is not None:
        config.forced_decoder_ids = None
    if getattr(model.config, "forced_decoder_ids", None) is not None:
        model.config.forced_decoder_ids = None
