"""The tokenizer of a checkpoint, made from files that were checked first.

transformers is given a temporary folder with what was read and checked: only the settings that we know, and no path to
a file elsewhere, no template and no class that a checkpoint names.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.features import NEEDED_TOKENS
from whisper_peft.errors import UserError
from whisper_peft.files import printable, short_repr
from whisper_peft.model.tokenizer_files import (
    ADDED_TOKENS,
    MERGES,
    NORMALIZER,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCAB,
    Find,
    read_tokenizer_files,
)

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperTokenizer


_TASK_TOKENS = ("<|translate|>", "<|transcribe|>")
_LANGUAGE_TOKEN = re.compile(r"<\|[a-z]{2,3}\|>")


def load_tokenizer(find: Find, source: str) -> WhisperTokenizer:
    """Load a tokenizer.

    Args:
        find: Finds the files of the checkpoint.
        source: The name of the checkpoint, for messages.

    Raises:
        UserError: There is no tokenizer, it is not Whisper's, or one of its files cannot be used.
    """
    pages, has_merges = read_tokenizer_files(find)
    _refuse_missing_files(source, pages, has_merges=has_merges)
    _refuse_foreign_vocabulary(source, _collect_vocabulary(pages))
    with tempfile.TemporaryDirectory(prefix="whisper-peft-") as temporary:
        folder = Path(temporary)
        for name in (TOKENIZER, VOCAB, ADDED_TOKENS, NORMALIZER, MERGES):
            path = find(name)
            if path is not None:
                shutil.copyfile(path, folder / name)
        for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
            if name in pages:
                (folder / name).write_text(json.dumps(pages[name]), encoding="utf-8")
        try:
            tokenizer = _tokenizer_class().from_pretrained(temporary, trust_remote_code=False)
        # The Rust library raises plain Exceptions and, from a panic, even a BaseException.
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = printable(" ".join(str(error).split()))[:200]
            raise UserError(
                f"{source}: no tokenizer can be made of its files ({reason}); copy {TOKENIZER} and {TOKENIZER_CONFIG} "
                "from the base model."
            ) from None
    tokenizer.name_or_path = source
    return tokenizer


def _refuse_missing_files(source: str, pages: Mapping[str, Any], *, has_merges: bool) -> None:
    """Refuse a checkpoint without a tokenizer, or with only half of the older form."""
    has_vocabulary = VOCAB in pages
    if TOKENIZER in pages or (has_vocabulary and has_merges):
        return
    half = ", only half of one" if has_vocabulary or has_merges else ""
    raise UserError(
        f"{source}: no tokenizer in it{half} ({TOKENIZER}, or {VOCAB} and {MERGES}); copy these files from the base "
        "model."
    )


def _tokenizer_class() -> type[WhisperTokenizer]:
    """Return the class of the tokenizer written in Rust, which has another name in transformers 4."""
    import transformers

    major_version = int(transformers.__version__.partition(".")[0])
    if major_version >= 5:
        return transformers.WhisperTokenizer
    return transformers.WhisperTokenizerFast


def read_vocabulary(find: Find) -> dict[str, int]:
    """Read the id of each token, without building a tokenizer.

    Args:
        find: Finds the files of the checkpoint.

    Returns:
        The id of each token. It is empty if there is no tokenizer.
    """
    pages, _ = read_tokenizer_files(find)
    return _collect_vocabulary(pages)


def _collect_vocabulary(pages: Mapping[str, Any]) -> dict[str, int]:
    """Put the tokens of all files together. As in transformers, tokenizer.json has the last word."""
    if TOKENIZER not in pages and VOCAB not in pages:
        return {}
    vocabulary = {**pages.get(VOCAB, {}), **pages.get(ADDED_TOKENS, {})}
    settings = pages.get(TOKENIZER_CONFIG, {})
    for id_text, token in settings.get("added_tokens_decoder", {}).items():
        vocabulary[token["content"]] = int(id_text)
    if TOKENIZER in pages:
        vocabulary.update(pages[TOKENIZER]["model"]["vocab"])
        vocabulary.update({token["content"]: token["id"] for token in pages[TOKENIZER]["added_tokens"]})
    return vocabulary


def _refuse_foreign_vocabulary(source: str, vocabulary: Mapping[str, int]) -> None:
    """Refuse a vocabulary without one of the special tokens that every Whisper has."""
    missing = [token for token in NEEDED_TOKENS if token not in vocabulary]
    if missing:
        raise UserError(
            f"{source}: its tokenizer has no token {missing[0]}, so it is not a Whisper's; copy the tokenizer's files "
            "from the base model."
        )


def refuse_vocabulary(source: str, vocabulary: Mapping[str, int], config: WhisperConfig) -> None:
    """Refuse a tokenizer that belongs to another checkpoint than the config.

    Args:
        source: The name of the checkpoint, for the message.
        vocabulary: The id of each token.
        config: The config of the checkpoint.

    Raises:
        UserError: It has more tokens than the model, or begins and ends a transcript with other ids.
    """
    remedy = "take the tokenizer's files and config.json from the same checkpoint"
    last_token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[last_token] >= config.vocab_size:
        raise UserError(
            f"{source}: its tokenizer has the token {short_repr(last_token)} with id {vocabulary[last_token]:,}, its "
            f"config.json a vocab_size of {config.vocab_size:,}; {remedy}."
        )
    start = vocabulary["<|startoftranscript|>"]
    if config.decoder_start_token_id != start:
        raise UserError(
            f"{source}: its tokenizer begins a transcript with id {start:,}, its config.json says "
            f"decoder_start_token_id {config.decoder_start_token_id}; {remedy}."
        )


def has_language_tokens(vocabulary: Mapping[str, int]) -> bool:
    """Tell whether a vocabulary has tokens for several languages; that of an English-only model may have them, too.

    Args:
        vocabulary: The id of each token.
    """
    return len(language_tokens(vocabulary)) > 1


def language_tokens(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens that name a language, as `<|hi|>`, each with its id, in the order of their ids.

    In Whisper's vocabulary they stand between `<|startoftranscript|>` and the tokens for the tasks.

    Args:
        vocabulary: The id of each token.

    Example:
        >>> language_tokens({"<|startoftranscript|>": 10, "<|hi|>": 12, "<|en|>": 11, "<|transcribe|>": 13, "a": 0})
        {'<|en|>': 11, '<|hi|>': 12}
    """
    start = vocabulary.get("<|startoftranscript|>", -1)
    end = min((vocabulary[token] for token in _TASK_TOKENS if token in vocabulary), default=-1)
    languages = {
        token: token_id
        for token, token_id in vocabulary.items()
        if start < token_id < end and _LANGUAGE_TOKEN.fullmatch(token)
    }
    return dict(sorted(languages.items(), key=lambda language: language[1]))
