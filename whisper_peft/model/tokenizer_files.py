"""The files of a checkpoint's tokenizer, each read and checked before transformers sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisper_peft.data.languages import LANGUAGE_ALIASES, LANGUAGES
from whisper_peft.files import UnusableFileError, read_json_file, read_text
from whisper_peft.model.fields import (
    FLAG,
    MAX_TOKEN_ID,
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
)

# Takes the name of a file, and returns the file if the checkpoint has it.
Find = Callable[[str], "Path | None"]
# The whole tokenizer, as the library written in Rust saves it.
TOKENIZER = "tokenizer.json"
# Its settings.
TOKENIZER_CONFIG = "tokenizer_config.json"
# The older form: the tokens with their ids, and the pairs that are merged.
VOCAB = "vocab.json"
MERGES = "merges.txt"
# Tokens beside the vocabulary, in the older form.
ADDED_TOKENS = "added_tokens.json"
# The tokens that begin, end, pad and so on.
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
# British spellings and their American form, which Whisper's English normalizer uses.
NORMALIZER = "normalizer.json"
# An id with so many digits or more belongs to no vocabulary.
_MAX_ID_DIGITS = 8
_TOKEN_TEXT = short_text(1000)


def _is_added_token(value: object) -> bool:
    """Tell whether a value is a token with its content and its flags."""
    if not isinstance(value, dict) or not _TOKEN_TEXT.accepts(value.get("content")):
        return False
    flags = [value.get(name, False) for name in ("lstrip", "rstrip", "normalized", "single_word", "special")]
    return all(isinstance(flag, bool) for flag in flags)


ADDED_TOKEN = FieldKind("a token with its content and its flags", _is_added_token)
_NAMED_TOKEN = optional(either(_TOKEN_TEXT, ADDED_TOKEN))
_TOKENS = list_of(either(_TOKEN_TEXT, ADDED_TOKEN))
_SPECIAL_TOKENS = {
    "bos_token": _NAMED_TOKEN,
    "eos_token": _NAMED_TOKEN,
    "unk_token": _NAMED_TOKEN,
    "pad_token": _NAMED_TOKEN,
    "additional_special_tokens": optional(_TOKENS),
    "extra_special_tokens": optional(either(_TOKENS, map_of(either(_TOKEN_TEXT, ADDED_TOKEN)))),
}
TOKENIZER_FIELDS: dict[str, FieldKind] = {
    **_SPECIAL_TOKENS,
    "added_tokens_decoder": map_of(ADDED_TOKEN),
    "add_prefix_space": FLAG,
    "add_bos_token": FLAG,
    "add_eos_token": FLAG,
    "clean_up_tokenization_spaces": optional(FLAG),
    "split_special_tokens": FLAG,
    "errors": one_of(("replace", "strict", "ignore")),
    "language": optional(short_text(100)),
    "task": optional(one_of(("transcribe", "translate"))),
    "predict_timestamps": FLAG,
    # transformers writes 1e30 for no limit.
    "model_max_length": optional(number(1, 1e31)),
    "padding_side": one_of(("right", "left")),
    "truncation_side": one_of(("right", "left")),
    "processor_class": optional(short_text(100)),
    "tokenizer_class": optional(short_text(100)),
    "return_attention_mask": optional(FLAG),
}


def _is_ids(value: object) -> bool:
    """Tell whether a value is an object of tokens with their ids.

    There are 50,000 of them, so all types are looked at together, and not value by value.
    """
    if not isinstance(value, dict) or set(map(type, value.values())) - {int}:
        return False
    return not value or (min(value.values()) >= 0 and max(value.values()) <= MAX_TOKEN_ID)


def _is_merges(value: object) -> bool:
    """Tell whether a value is a list of merges, each a text or a pair of texts."""
    if not isinstance(value, list) or set(map(type, value)) - {str, list}:
        return False
    pairs = [pair for pair in value if isinstance(pair, list)]
    if set(map(len, pairs)) - {2}:
        return False
    return not {type(half) for pair in pairs for half in pair} - {str}


IDS = FieldKind(f"an object of tokens with ids up to {MAX_TOKEN_ID:,}", _is_ids)
_MODEL_FIELDS: dict[str, FieldKind] = {
    "type": one_of(("BPE",)),
    "vocab": IDS,
    "merges": FieldKind("a list of pairs", _is_merges),
}


def read_tokenizer_files(find: Find) -> tuple[dict[str, Any], bool]:
    """Read and check all files of a tokenizer.

    Returns:
        The content of each JSON file that is there, by its name; and whether there is a merges.txt.
    """
    pages: dict[str, Any] = {}
    readers = {
        TOKENIZER_CONFIG: _read_tokenizer_settings,
        TOKENIZER: _read_whole_tokenizer,
        VOCAB: _read_ids,
        ADDED_TOKENS: _read_ids,
        SPECIAL_TOKENS_MAP: _read_special_tokens,
        NORMALIZER: _read_spellings,
    }
    for name, read in readers.items():
        path = find(name)
        if path is not None:
            pages[name] = read(path)
    path = find(MERGES)
    if path is not None:
        read_text(path)
    return pages, path is not None


def _read_tokenizer_settings(path: Path) -> dict[str, Any]:
    """Read the settings that we know from tokenizer_config.json.

    Raises:
        UnusableFileError: A field holds a value that it cannot have.
    """
    page = read_json_file(path)
    settings = {name: value for name, value in page.items() if name in TOKENIZER_FIELDS}
    check_fields(path, settings, TOKENIZER_FIELDS)
    _drop_empty_unknown(settings)
    decoder = settings.get("added_tokens_decoder", {})
    for id_text in decoder:
        if not (id_text.isascii() and id_text.isdecimal() and len(id_text) < _MAX_ID_DIGITS):
            refuse_field(path, "added_tokens_decoder", id_text, "expected ids of tokens")
    language = settings.get("language")
    if language and language.lower() not in {*LANGUAGES, *LANGUAGES.values(), *LANGUAGE_ALIASES}:
        refuse_field(path, "language", language, "not one that Whisper knows; expected null, or as hindi")
    # transformers 5 writes a list under this name, and transformers 4 expects an object. Both read the older name.
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):
        del settings["extra_special_tokens"]
        settings.setdefault("additional_special_tokens", extra)
    return settings


def _read_special_tokens(path: Path) -> dict[str, Any]:
    """Read the tokens that we know from special_tokens_map.json."""
    page = read_json_file(path)
    tokens = {name: value for name, value in page.items() if name in _SPECIAL_TOKENS}
    check_fields(path, tokens, _SPECIAL_TOKENS)
    _drop_empty_unknown(tokens)
    return tokens


def _drop_empty_unknown(tokens: dict[str, Any]) -> None:
    """Leave out an unknown token without a text: transformers 5 looks for it for ever.

    Whisper's vocabulary is made of bytes, so no text needs such a token.
    """
    unknown = tokens.get("unk_token")
    content = unknown.get("content") if isinstance(unknown, dict) else unknown
    if content == "":
        del tokens["unk_token"]


def _read_ids(path: Path) -> dict[str, int]:
    """Read tokens with their ids."""
    page = read_json_file(path)
    check_fields(path, {"its content": page}, {"its content": IDS})
    return page


def _read_spellings(path: Path) -> dict[str, str]:
    """Read spellings with their normal form."""
    page = read_json_file(path)
    check_fields(path, {"its content": page}, {"its content": map_of(short_text())})
    return page


def _read_whole_tokenizer(path: Path) -> dict[str, Any]:
    """Read tokenizer.json.

    Raises:
        UnusableFileError: A part is missing, or is none that a tokenizer of Whisper has.
    """
    page = read_json_file(path)
    model = page.get("model")
    if not isinstance(model, dict):
        refuse_field(path, "model", model, "expected an object; a tokenizer of Whisper has its vocabulary there")
    for name in ("vocab", "merges"):
        if name not in model:
            raise UnusableFileError(path, f"model.{name} is missing")
    checked = {f"model.{name}": value for name, value in model.items()}
    check_fields(path, checked, {f"model.{name}": kind for name, kind in _MODEL_FIELDS.items()})
    check_fields(path, {"added_tokens": page.get("added_tokens")}, {"added_tokens": list_of(ADDED_TOKEN)})
    for token in page["added_tokens"]:
        check_fields(path, {"added_tokens.id": token.get("id")}, {"added_tokens.id": TOKEN})
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if _has_pattern(page.get(part)):
            raise UnusableFileError(
                path, f"{part} has a regular expression in it, which no tokenizer of Whisper has; take the base's"
            )
    return page


def _has_pattern(part: object) -> bool:
    """Tell whether a part of a tokenizer holds a regular expression, which could take for ever on some text."""
    if isinstance(part, dict):
        return "Regex" in part or any(map(_has_pattern, part.values()))
    return isinstance(part, list) and any(map(_has_pattern, part))
