"""The generation config: held against the model it comes with, and what an old one leaves out filled in."""

from __future__ import annotations

import base64
import gzip
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
from whisper_peft.model.vocabulary import has_language_tokens, language_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperConfig

# Sizes of openai's vocabularies: English-only, up to large-v2, and from large-v3 on.
ENGLISH_VOCABULARY = 51864
MULTILINGUAL_VOCABULARIES = (51865, 51866)

# Which heads of the decoder follow the sound, for word times: by width of the model and size of its vocabulary.
# From openai/whisper (MIT licence), whisper/__init__.py: booleans (layer, head), zipped, in base 85. The width 1280
# with 51,865 tokens is not here: large and large-v2 have it, and their heads differ.
_ALIGNMENT_HEADS = {
    (384, 4, 51864): b"ABzY8J1N>@0{>%R00Bk>$p{7v037`oCl~+#00",
    (384, 4, 51865): b"ABzY8bu8Lr0{>%RKn9Fp%m@SkK7Kt=7ytkO",
    (512, 6, 51864): b"ABzY8;40c<0{>%RzzG;p*o+Vo09|#PsxSZm00",
    (512, 6, 51865): b"ABzY8KQ!870{>%RzyTQH3`Q^yNP!>##QT-<FaQ7m",
    (768, 12, 51864): b"ABzY8>?_)10{>%RpeA61k&I|OI3I$65C{;;pbCHh0B{qLQ;+}v00",
    (768, 12, 51865): b"ABzY8DmU6=0{>%Rpa?J`kvJ6qF(V^F86#Xh7JUGMK}P<N0000",
    (1024, 24, 51864): b"ABzY8usPae0{>%R7<zz_OvQ{)4kMa0BMw6u5rT}kRKX;$NfYBv00*Hl@qhsU00",
    (1024, 24, 51865): b"ABzY8B0Jh+0{>%R7}kK1fFL7w6%<-Pf*t^=N)Qr&0RR9",
    (1280, 32, 51866): b"ABzY8gWO1E0{>%R7(9S+Kn!D~%ngiGaR?*L!iJG9p-nab0JQ=-{D1-g00",
    (1280, 4, 51866): b"ABzY8j^C+e0{>%RARaKHP%t(lGR*)0g!tONPyhe`",
}

_COUNT = optional(whole(0, 1_000_000))
_ID = optional(TOKEN)
_TIMES = optional(either(number(-1e6, 1e6), list_of(number(-1e6, 1e6), 100)))
_PAIR = list_of(whole(0, 100_000), 2)
_WORD = optional(short_text(100))
# Not among them: the thresholds of the fallback to other temperatures, which transformers' generation from encoded
# sound does not survive. They are left out with a remark.
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
    "length_penalty": _TIMES,
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
    "temperature": _TIMES,
    "top_k": _COUNT,
    "top_p": _TIMES,
    "transformers_version": _WORD,
    "use_cache": optional(FLAG),
}
# What files of 2022 and 2023 have, and what means nothing here; of all else that is left out, a remark is made.
_LEFT_OUT_SILENTLY = (
    "_from_model_config", "forced_decoder_ids", "_commit_hash", "output_attentions", "output_hidden_states",
    "output_scores", "return_dict_in_generate", "num_return_sequences", "num_beam_groups", "diversity_penalty",
    "auto_map", "custom_generate", "assistant_confidence_threshold", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "remove_invalid_values", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "token_healing", "target_lookbehind",
    "assistant_lookbehind", "is_assistant", "renormalize_logits", "guidance_scale", "low_memory", "name_or_path",
)  # fmt: skip
# Fields that transformers needs to name a language or to cut at times; of an older file it says "outdated".
_NEEDED = ("decoder_start_token_id", "eos_token_id", "is_multilingual", "no_timestamps_token_id")
_NEEDED_MULTILINGUAL = ("lang_to_id", "task_to_id")
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
    """Make a whole generation config from a file that may be old, of another checkpoint, or not there.

    Args:
        page: The content of the file.
        config: The config of the model that it is for.
        vocabulary: Token to id; empty where the checkpoint has no tokenizer, and then nothing is filled in.
        place: The file, for messages.
        missing: Whether there is no such file.
        legacy: What a config.json of 2022 says of generation.

    Returns:
        The generation config; None where there is neither a file nor a tokenizer.

    Raises:
        UnusableFileError: A field holds what it cannot, or names a token or a layer that the model does not have.
    """
    from transformers import GenerationConfig

    if missing and not vocabulary:
        return None
    remarks: list[str] = []
    fields = _known_fields(place, page, remarks)
    _refuse_unknown_tokens(place, fields, config)
    _drop_alignment_heads(fields, config, remarks)
    if vocabulary:
        _replace_stale(fields, config, vocabulary, remarks)
        _fill_in(fields, config, vocabulary, {} if not missing else legacy, remarks, missing=missing)
    _check_words(place, fields, remarks)
    limit = config.max_target_positions
    if (fields.get("max_length") or 0) > limit:
        remarks.append(f"max_length was {fields['max_length']:,}, and the model takes {limit} tokens")
        fields["max_length"] = limit
    if remarks:
        warnings.warn(f"{printable(place)}: {'; '.join(remarks)}.", Notice, stacklevel=3)
    try:
        return GenerationConfig(**fields, _from_model_config=False)
    except (ValueError, TypeError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise UnusableFileError(place, f"transformers refuses it ({reason}); {_REMEDY}") from None


def _known_fields(place: str | Path, page: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """Return the fields that we know, each of the right kind; null is as good as nothing, and so is an empty map."""
    fields = {name: value for name, value in page.items() if name in GENERATION_FIELDS and value is not None}
    check_fields(place, fields, GENERATION_FIELDS)
    if "repetition_penalty" in fields:  # transformers refuses a whole number
        fields["repetition_penalty"] = float(fields["repetition_penalty"])
    for name in _NEEDED_MULTILINGUAL:
        if fields.get(name) == {}:
            del fields[name]
    fields.pop("transformers_version", None)
    ignored = [
        name
        for name, value in page.items()
        if name not in GENERATION_FIELDS and name not in _LEFT_OUT_SILENTLY and value not in (None, False, [], {})
    ]
    if ignored:
        shown = ", ".join(printable(name)[:40] for name in ignored[:5])
        remarks.append(f"ignored: {shown}{' and more' if len(ignored) > 5 else ''}")
    return fields


def _refuse_unknown_tokens(place: str | Path, fields: Mapping[str, Any], config: WhisperConfig) -> None:
    """Refuse ids that are beyond the vocabulary: transformers would fail at the first clip."""
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
    """Leave out alignment heads of another model; only word times need them."""
    heads = fields.get("alignment_heads")
    if heads is None:
        return
    if not all(
        len(pair) == 2 and pair[0] < config.decoder_layers and pair[1] < config.decoder_attention_heads
        for pair in heads
    ):
        del fields["alignment_heads"]
        remarks.append(
            f"alignment_heads left out, for they name heads beyond the {config.decoder_layers} layers with "
            f"{config.decoder_attention_heads} heads of this model"
        )


def _replace_stale(
    fields: dict[str, Any], config: WhisperConfig, vocabulary: Mapping[str, int], remarks: list[str]
) -> None:
    """Put the tokenizer's ids in place of those that another checkpoint's file names."""
    known = _known_ids(vocabulary)
    stale = [name for name, value in known.items() if fields.get(name, value) != value]
    eos = fields.get("eos_token_id")
    if isinstance(eos, list) and known["eos_token_id"] in eos:
        stale.remove("eos_token_id")
    for name, tokens in (
        ("lang_to_id", vocabulary),
        ("task_to_id", {word: vocabulary.get(f"<|{word}|>") for word in ("transcribe", "translate")}),
    ):
        if any(tokens.get(token) != number for token, number in fields.get(name, {}).items()):
            stale.append(name)
    if not stale:
        return
    for name in stale:
        del fields[name]
    if "decoder_start_token_id" in stale:  # then it is another checkpoint's, the rest of it, too
        for name in ("is_multilingual", "suppress_tokens", "begin_suppress_tokens", "bos_token_id", "pad_token_id"):
            fields.pop(name, None)
    remarks.append(f"{', '.join(stale)} did not agree with the tokenizer, and the tokenizer's ids are taken")


def _known_ids(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the ids that the tokenizer fixes."""
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
    """Fill in what follows from the vocabulary and the tokenizer, and note what was."""
    multilingual = fields.get("is_multilingual")
    if multilingual is None:
        multilingual = _is_multilingual(config, vocabulary)
    needed = {**_known_ids(vocabulary), "is_multilingual": multilingual}
    if multilingual:
        languages = language_tokens(vocabulary)
        needed["lang_to_id"] = languages
        needed["task_to_id"] = {
            word: vocabulary[f"<|{word}|>"] for word in ("translate", "transcribe") if f"<|{word}|>" in vocabulary
        }
    wanted = _NEEDED + (_NEEDED_MULTILINGUAL if multilingual else ())
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
    if missing or absent:
        usual["max_initial_timestamp_index"] = 50
        if "prev_sot_token_id" in needed:
            usual["prev_sot_token_id"] = needed["prev_sot_token_id"]
        usual["suppress_tokens"] = legacy.get("suppress_tokens", _suppressed(config, vocabulary, multilingual))
        space = [vocabulary["Ġ"]] if "Ġ" in vocabulary else []
        usual["begin_suppress_tokens"] = legacy.get("begin_suppress_tokens", [*space, end])
        heads = _alignment_heads(config)
        if heads:
            usual["alignment_heads"] = heads
    for name, value in usual.items():
        fields.setdefault(name, value)


def _is_multilingual(config: WhisperConfig, vocabulary: Mapping[str, int]) -> bool:
    """Tell whether a checkpoint that does not say so has language tokens in its prompt.

    openai's own sizes are known: the English-only vocabulary has language tokens, too, and never uses them.
    """
    if config.vocab_size == ENGLISH_VOCABULARY:
        return False
    return config.vocab_size in MULTILINGUAL_VOCABULARIES or has_language_tokens(vocabulary)


def _suppressed(config: WhisperConfig, vocabulary: Mapping[str, int], multilingual: bool) -> list[int]:
    """Return what is never written down: what stands for no speech in openai's vocabularies, and special tokens."""
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI

    ids: set[int] = set()
    end = vocabulary["<|endoftext|>"]
    if config.vocab_size == ENGLISH_VOCABULARY or config.vocab_size in MULTILINGUAL_VOCABULARIES:
        symbols = NON_SPEECH_TOKENS_MULTI if multilingual else NON_SPEECH_TOKENS
        ids.update(token for token in symbols if token < end)
    for token in ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "nocaptions"):
        if f"<|{token}|>" in vocabulary:
            ids.add(vocabulary[f"<|{token}|>"])
    return sorted(ids)


def _alignment_heads(config: WhisperConfig) -> list[list[int]] | None:
    """Return the published heads for a shape; None where they are not known."""
    import numpy as np

    packed = _ALIGNMENT_HEADS.get((config.d_model, config.decoder_layers, config.vocab_size))
    if packed is None:
        return None
    flat = np.frombuffer(gzip.decompress(base64.b85decode(packed)), dtype=bool)
    if flat.size != config.decoder_layers * config.decoder_attention_heads:
        return None
    grid = flat.reshape(config.decoder_layers, config.decoder_attention_heads)  # (layer, head)
    return [[int(layer), int(head)] for layer, head in zip(*grid.nonzero(), strict=True)]


def _check_words(place: str | Path, fields: dict[str, Any], remarks: list[str]) -> None:
    """Refuse a language that the model has no token for; an English-only checkpoint has none at all."""
    language = fields.get("language")
    if not fields.get("is_multilingual", True):
        dropped = [name for name in ("language", "task") if fields.pop(name, None) not in (None, "en", "transcribe")]
        if dropped:
            remarks.append(f"{' and '.join(dropped)} left out, for this is an English-only checkpoint")
        return
    if language is None or "lang_to_id" not in fields:
        return
    by_name = {english: code for code, english in LANGUAGES.items()}
    for name in language if isinstance(language, list) else [language]:
        word = name.strip("<|>").lower()
        code = by_name.get(word) or LANGUAGE_ALIASES.get(word) or word
        if f"<|{code}|>" not in fields["lang_to_id"]:
            refuse_field(place, "language", name, f"the model has no token for it; {_REMEDY}")
