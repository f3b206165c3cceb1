"""The generation config: checked against its model, and completed where an old file leaves fields out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.text import LANGUAGE_ALIASES, LANGUAGES
from whisper_peft.errors import Notice
from whisper_peft.files import UnusableFileError, printable
from whisper_peft.model.fields import (
    FLAG,
    TOKEN,
    FieldKind,
    check_fields,
    either,
    list_of,
    map_of,
    number,
    one_of,
    optional,
    refuse_field,
    short_text,
    whole,
)
from whisper_peft.model.generation_defaults import is_multilingual, make_decoding_fields
from whisper_peft.model.vocabulary import language_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig


_COUNT = optional(whole(0, 1_000_000))
_ID = optional(TOKEN)
_NUMBER_OR_NUMBERS = optional(either(number(-1e6, 1e6), list_of(number(-1e6, 1e6), 100)))
_PAIR = list_of(whole(0, 100_000), 2)
# The fields that we know. The thresholds of the fallback to other temperatures are not among them, because with them
# transformers fails to generate from encoded sound. They are left out, and a notice says so.
GENERATION_FIELDS: dict[str, FieldKind] = {
    "alignment_heads": optional(list_of(_PAIR, 10_000)),
    "begin_suppress_tokens": optional(list_of(TOKEN)),
    "bos_token_id": _ID,
    "condition_on_prev_tokens": optional(FLAG),
    "decoder_start_token_id": _ID,
    "do_sample": optional(FLAG),
    "early_stopping": optional(FLAG),
    "eos_token_id": optional(either(TOKEN, list_of(TOKEN, 1000))),
    "is_multilingual": optional(FLAG),
    "lang_to_id": optional(map_of(TOKEN)),
    "language": optional(either(short_text(100), list_of(short_text(100), 1000))),
    "length_penalty": _NUMBER_OR_NUMBERS,
    "max_initial_timestamp_index": _COUNT,
    "max_length": _COUNT,
    "max_new_tokens": _COUNT,
    "median_filter_width": optional(whole(1, 1001)),
    "min_length": _COUNT,
    "no_repeat_ngram_size": _COUNT,
    "no_timestamps_token_id": _ID,
    "num_beams": optional(whole(1, 1000)),
    "pad_token_id": _ID,
    "prev_sot_token_id": _ID,
    "prompt_condition_type": optional(one_of(("first-segment", "all-segments"))),
    "repetition_penalty": optional(number(1e-6, 1e6)),
    "return_timestamps": optional(FLAG),
    "suppress_tokens": optional(list_of(either(TOKEN, whole(-1, -1)))),
    "task": optional(one_of(("transcribe", "translate"))),
    "task_to_id": optional(map_of(TOKEN)),
    "temperature": _NUMBER_OR_NUMBERS,
    "top_k": _COUNT,
    "top_p": _NUMBER_OR_NUMBERS,
    "transformers_version": optional(short_text(100)),
    "use_cache": optional(FLAG),
}
# Fields that files of 2022 and 2023 have, or that mean nothing here. A notice names every other field that is left out.
_LEFT_OUT_SILENTLY = (
    "_from_model_config",
    "forced_decoder_ids",
    "_commit_hash",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "num_return_sequences",
    "num_beam_groups",
    "diversity_penalty",
    "auto_map",
    "custom_generate",
    "assistant_confidence_threshold",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "remove_invalid_values",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "token_healing",
    "target_lookbehind",
    "assistant_lookbehind",
    "is_assistant",
    "renormalize_logits",
    "guidance_scale",
    "low_memory",
    "name_or_path",
)
# Fields that transformers needs to name a language or to cut at times. It calls a file without them outdated.
_NEEDED = ("decoder_start_token_id", "eos_token_id", "is_multilingual", "no_timestamps_token_id")
_NEEDED_MULTILINGUAL = ("lang_to_id", "task_to_id")
# In the order in which a file lists them.
_TASKS = ("translate", "transcribe")
# Ignored fields that a notice names.
_MOST_LISTED_FIELDS = 5
# The end of a message.
_REMEDY = "delete the file and it is made anew from the tokenizer, or copy it from the base model"


def complete_generation_config(
    page: Mapping[str, Any],
    config: WhisperConfig,
    vocabulary: Mapping[str, int],
    *,
    place: str | Path,
    missing: bool,
    legacy: Mapping[str, Any],
) -> GenerationConfig | None:
    """Make a whole generation config from a file that may be old, come from another checkpoint, or be missing.

    A `Notice` says what was left out, replaced or filled in.

    Args:
        page: The content of the file.
        config: The config of its model.
        vocabulary: The id of each token. It is empty if the checkpoint has no tokenizer; then nothing is filled in.
        place: The file, for messages.
        missing: Whether there is no such file.
        legacy: The fields about generation in a config.json of 2022.

    Returns:
        The generation config; None if there is neither a file nor a tokenizer.

    Raises:
        UnusableFileError: A field holds a value that it cannot have, or names a token that the model does not have.
    """
    from transformers import GenerationConfig

    if missing and not vocabulary:
        return None
    remarks: list[str] = []
    fields = _read_generation_fields(place, page, remarks)
    _refuse_unknown_tokens(place, fields, config)
    _drop_alignment_heads(fields, config, remarks)
    if vocabulary:
        _drop_stale(fields, vocabulary, remarks)
        _fill_in(fields, config, vocabulary, legacy, remarks, missing=missing)
    _check_language(place, fields, remarks)
    limit = config.max_target_positions
    if (fields.get("max_length") or 0) > limit:
        remarks.append(f"max_length was {fields['max_length']:,}, but the model takes {limit} tokens")
        fields["max_length"] = limit
    if remarks:
        warnings.warn(f"{printable(place)}: {'; '.join(remarks)}.", Notice, stacklevel=3)
    try:
        return GenerationConfig(**fields, _from_model_config=False)
    except (ValueError, TypeError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UnusableFileError(place, f"transformers refuses it ({reason}); {_REMEDY}") from None


def _read_generation_fields(place: str | Path, page: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """Return the fields that we know, each of the right kind.

    A field that is null counts as missing, and so does an empty table of languages or tasks.

    Args:
        place: The file, for messages.
        page: Its content.
        remarks: A list to which the names of unknown fields are added.
    """
    fields = {name: value for name, value in page.items() if name in GENERATION_FIELDS and value is not None}
    check_fields(place, fields, GENERATION_FIELDS)
    # transformers refuses a whole number.
    if "repetition_penalty" in fields:
        fields["repetition_penalty"] = float(fields["repetition_penalty"])
    for name in _NEEDED_MULTILINGUAL:
        if fields.get(name) == {}:
            del fields[name]
    fields.pop("transformers_version", None)
    ignored = []
    for name, value in page.items():
        is_known = name in GENERATION_FIELDS or name in _LEFT_OUT_SILENTLY
        says_nothing = value in (None, False, [], {})
        if not is_known and not says_nothing:
            ignored.append(name)
    if ignored:
        listed = ", ".join(printable(name)[:40] for name in ignored[:_MOST_LISTED_FIELDS])
        more = " and more" if len(ignored) > _MOST_LISTED_FIELDS else ""
        remarks.append(f"ignored: {listed}{more}")
    return fields


def _refuse_unknown_tokens(place: str | Path, fields: Mapping[str, Any], config: WhisperConfig) -> None:
    """Refuse ids that are beyond the vocabulary, because transformers would fail at the first clip."""
    for name, value in fields.items():
        if isinstance(value, dict):
            ids = list(value.values())
        elif name.endswith(("_token_id", "suppress_tokens")):
            ids = value if isinstance(value, list) else [value]
        else:
            continue
        if any(token >= config.vocab_size for token in ids):
            refuse_field(place, name, max(ids), f"the model has {config.vocab_size:,} tokens; {_REMEDY}")


def _drop_alignment_heads(fields: dict[str, Any], config: WhisperConfig, remarks: list[str]) -> None:
    """Leave out alignment heads that belong to another model; only word times need them."""
    for pair in fields.get("alignment_heads") or ():
        is_head = len(pair) == 2 and pair[0] < config.decoder_layers and pair[1] < config.decoder_attention_heads
        if not is_head:
            del fields["alignment_heads"]
            remarks.append(
                f"alignment_heads left out, because they name heads beyond the {config.decoder_layers} layers with "
                f"{config.decoder_attention_heads} heads of this model"
            )
            return


def _drop_stale(fields: dict[str, Any], vocabulary: Mapping[str, int], remarks: list[str]) -> None:
    """Leave out ids that do not agree with the tokenizer; they are filled in later."""
    stale = _find_stale(fields, vocabulary)
    if not stale:
        return
    for name in stale:
        del fields[name]
    # If the start of a transcript differs, the file belongs to another checkpoint, and so does the rest of it.
    if "decoder_start_token_id" in stale:
        for name in ("is_multilingual", "suppress_tokens", "begin_suppress_tokens", "bos_token_id", "pad_token_id"):
            fields.pop(name, None)
    remarks.append(f"{', '.join(stale)} did not agree with the tokenizer, and the tokenizer's ids are taken")


def _find_stale(fields: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[str]:
    """Return the names of the fields whose ids do not agree with the tokenizer."""
    known = _read_known_ids(vocabulary)
    stale = [name for name, token_id in known.items() if fields.get(name, token_id) != token_id]
    # A model may have several tokens that end a text.
    eos = fields.get("eos_token_id")
    if isinstance(eos, list) and known["eos_token_id"] in eos:
        stale.remove("eos_token_id")
    task_ids = {task: vocabulary.get(f"<|{task}|>") for task in _TASKS}
    if any(vocabulary.get(token) != token_id for token, token_id in fields.get("lang_to_id", {}).items()):
        stale.append("lang_to_id")
    if any(task_ids.get(task) != token_id for task, token_id in fields.get("task_to_id", {}).items()):
        stale.append("task_to_id")
    return stale


def _read_known_ids(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the fields whose ids follow from the tokenizer."""
    named = {
        "decoder_start_token_id": "<|startoftranscript|>",
        "eos_token_id": "<|endoftext|>",
        "no_timestamps_token_id": "<|notimestamps|>",
        "prev_sot_token_id": "<|startofprev|>",
    }
    return {name: vocabulary[token] for name, token in named.items() if token in vocabulary}


def _fill_in(
    fields: dict[str, Any],
    config: WhisperConfig,
    vocabulary: Mapping[str, int],
    legacy: Mapping[str, Any],
    remarks: list[str],
    *,
    missing: bool,
) -> None:
    """Fill in the fields that follow from the vocabulary and the tokenizer, and note which were missing.

    Args:
        fields: The fields of the file, to which others are added.
        config: The config of the model.
        vocabulary: The id of each token.
        legacy: The fields about generation in a config.json of 2022.
        remarks: A list to which a remark on what was filled in is added.
        missing: Whether there is no file.
    """
    multilingual = fields.get("is_multilingual")
    if multilingual is None:
        multilingual = is_multilingual(config, vocabulary)
    needed = _make_needed_fields(vocabulary, multilingual)
    wanted: tuple[str, ...] = _NEEDED
    if multilingual:
        wanted += _NEEDED_MULTILINGUAL
    absent = [name for name in wanted if name not in fields]
    fields.update({name: needed[name] for name in absent if name in needed})
    if missing:
        remarks.append("no such file; its fields are filled in from the vocabulary and the tokenizer")
    elif absent:
        remarks.append(f"an old or partial one; filled in from the tokenizer: {', '.join(absent)}")
    end = needed["eos_token_id"]
    usual = {
        "bos_token_id": end,
        "pad_token_id": end,
        "max_length": config.max_target_positions,
        "return_timestamps": False,
    }
    # A complete file may leave out the rest on purpose.
    if missing or absent:
        if "prev_sot_token_id" in needed:
            usual["prev_sot_token_id"] = needed["prev_sot_token_id"]
        usual.update(make_decoding_fields(config, vocabulary, multilingual))
        if missing:
            usual.update(legacy)
    for name, value in usual.items():
        fields.setdefault(name, value)


def _make_needed_fields(vocabulary: Mapping[str, int], multilingual: bool) -> dict[str, Any]:
    """Make the fields that transformers needs to name a language or to cut at times."""
    needed: dict[str, Any] = {**_read_known_ids(vocabulary), "is_multilingual": multilingual}
    if multilingual:
        needed["lang_to_id"] = language_tokens(vocabulary)
        needed["task_to_id"] = {task: vocabulary[f"<|{task}|>"] for task in _TASKS if f"<|{task}|>" in vocabulary}
    return needed


def _check_language(place: str | Path, fields: dict[str, Any], remarks: list[str]) -> None:
    """Refuse a language that the model has no token for, and leave it out for an English-only checkpoint."""
    if not fields.get("is_multilingual", True):
        # Such a model writes down English and has no tokens to say so.
        dropped = [name for name in ("language", "task") if fields.get(name) not in (None, "en", "transcribe")]
        fields.pop("language", None)
        fields.pop("task", None)
        if dropped:
            remarks.append(f"{' and '.join(dropped)} left out, because this is an English-only checkpoint")
        return
    language = fields.get("language")
    if language is None or "lang_to_id" not in fields:
        return
    code_of = {english: code for code, english in LANGUAGES.items()}
    names = language if isinstance(language, list) else [language]
    for name in names:
        word = name.strip("<|>").lower()
        code = code_of.get(word) or LANGUAGE_ALIASES.get(word) or word
        if f"<|{code}|>" not in fields["lang_to_id"]:
            refuse_field(place, "language", name, f"the model has no token for it; {_REMEDY}")
