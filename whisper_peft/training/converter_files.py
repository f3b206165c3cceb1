"""The files of a model folder that converters of other projects ask for, beside those that transformers writes.

whisper.cpp's `convert-h5-to-ggml.py` opens vocab.json and added_tokens.json, and older copies of it want `max_length`
in config.json. candle reads `suppress_tokens` from config.json and refuses null. The converter of mlx-examples opens
model.safetensors and no shards. The slow tokenizer of transformers 4 needs vocab.json and merges.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft import runs
from whisper_peft.model.configs import GENERATION_CONFIG
from whisper_peft.model.tokenizer_files import (
    ADDED_TOKENS,
    MERGES,
    NORMALIZER,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCAB,
)

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

# More than the largest Whisper weighs, so that its weights are one file. transformers 4 cuts at 5 GB by default.
ONE_FILE = "50GB"
# The settings of tokenizer_config.json that special_tokens_map.json repeats.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
# The lists of config.json that Rust programs read, for which null is no list.
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def write_tokenizer_tables(tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Write the tables of a tokenizer as files of their own: tokens, merges, added and special tokens, spellings.

    transformers 4 writes them itself. What is there stays as it is.

    Args:
        tokenizer: The tokenizer.
        folder: Where it was saved, with tokenizer.json and tokenizer_config.json.
    """
    page = runs.read_json(folder / TOKENIZER)
    settings = runs.read_json(folder / TOKENIZER_CONFIG)
    vocabulary = page["model"]["vocab"]
    added = {token["content"]: token["id"] for token in page["added_tokens"]}
    tables: dict[str, Any] = {
        VOCAB: dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        ADDED_TOKENS: {token: number for token, number in added.items() if token not in vocabulary},
        SPECIAL_TOKENS_MAP: {name: settings[name] for name in SPECIAL_TOKENS if name in settings},
    }
    spellings = getattr(tokenizer, "english_spelling_normalizer", None)
    if spellings:
        tables[NORMALIZER] = spellings
    for name, table in tables.items():
        if not (folder / name).exists():
            runs.write_json(folder / name, table)
    if not (folder / MERGES).exists():
        (folder / MERGES).write_text(merges_text(page["model"]["merges"]), encoding="utf-8")


def merges_text(merges: Sequence[str | Sequence[str]]) -> str:
    r"""Write the merges of a byte-level BPE, one a line.

    Args:
        merges: Each merge is its two halves, or one text with a space between them.

    Example:
        >>> merges_text([["t", "h"], "th e"])
        '#version: 0.2\nt h\nth e\n'
    """
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return "\n".join(["#version: 0.2", *lines]) + "\n"


def complete_config(folder: Path) -> None:
    """Add to config.json what converters read there: the longest output, and the tokens that are never output.

    transformers drops `max_length` when it loads config.json beside a generation config, or ignores it.

    Args:
        folder: A model folder, with config.json and generation_config.json.
    """
    path = folder / "config.json"
    config = runs.read_json(path)
    generation_config = runs.read_json(folder / GENERATION_CONFIG)
    # whisper.cpp takes it for the number of positions of the decoder.
    config["max_length"] = config["max_target_positions"]
    for name in TOKEN_LISTS:
        if config.get(name) is None:
            config[name] = generation_config.get(name) or []
    runs.write_json(path, dict(sorted(config.items())))
