"""Vocabularies and alignment heads from the files of openai-whisper, in the layout of transformers."""

from __future__ import annotations

import base64
import functools
import gzip
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Kind:
    """The facts in which openai's checkpoints differ: languages, mel bins, and the layers and heads of the decoder."""

    multilingual: bool
    n_languages: int
    n_mels: int
    decoder_layers: int
    decoder_heads: int


KINDS = {
    "base.en": Kind(False, 99, 80, 6, 8),
    "base": Kind(True, 99, 80, 6, 8),
    "large-v3": Kind(True, 100, 128, 32, 20),
}


def openai_tokenizer(kind: str, language: str | None = None, task: str | None = None):
    """Return the tokenizer of openai-whisper itself."""
    from whisper.tokenizer import get_tokenizer

    facts = KINDS[kind]
    return get_tokenizer(facts.multilingual, num_languages=facts.n_languages, language=language, task=task)


def alignment_heads(kind: str) -> list[list[int]]:
    """Return the [layer, head] pairs that openai-whisper ships as a gzipped mask in base85."""
    import whisper

    facts = KINDS[kind]
    mask = np.frombuffer(gzip.decompress(base64.b85decode(whisper._ALIGNMENT_HEADS[kind])), dtype=bool)
    return np.argwhere(mask.reshape(facts.decoder_layers, facts.decoder_heads)).tolist()


def byte_symbols() -> dict[int, str]:
    """Return the printable character that GPT-2 writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(printable)))
    return symbols


@functools.lru_cache
def vocabulary_and_merges(multilingual: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the ranks of tiktoken as the vocabulary and the merges of a byte-level BPE."""
    from whisper.tokenizer import get_encoding

    ranks: dict[bytes, int] = get_encoding("multilingual" if multilingual else "gpt2")._mergeable_ranks
    symbols = byte_symbols()
    written = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = _last_merge(ranks, token, rank)
            merges.append((written[left], written[right]))
    return {written[token]: rank for token, rank in ranks.items()}, merges


def _last_merge(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes]:
    """Return the two pieces of a token that are left after all merges of a lower rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
        best = min(range(len(pair_ranks)), key=pair_ranks.__getitem__)
        assert pair_ranks[best] < rank, f"{token!r} is no merge of two tokens"
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def save_processor_files(kind: str, folder: Path) -> Path:
    """Write the tokenizer and the feature extractor of a checkpoint kind, for transformers 4 and 5."""
    from transformers import WhisperFeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    facts, openai = KINDS[kind], openai_tokenizer(kind)
    vocabulary, merges = vocabulary_and_merges(facts.multilingual)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    specials = sorted(openai.special_tokens.items(), key=lambda item: item[1])
    assert [number for _, number in specials] == list(range(len(vocabulary), len(vocabulary) + len(specials)))
    added = [
        {"id": number, "content": token, **plain, "special": number <= openai.no_timestamps}
        for token, number in specials
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {**vocabulary, "<|endoftext|>": openai.eot}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    config = {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "model_max_length": 448,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
        "errors": "replace",
        "additional_special_tokens": [token for token, number in specials if number <= openai.no_timestamps],
        "added_tokens_decoder": {
            str(added_token["id"]): {key: value for key, value in added_token.items() if key != "id"}
            for added_token in added
        },
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("vocab.json", vocabulary)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    WhisperFeatureExtractor(feature_size=facts.n_mels).save_pretrained(str(folder))
    return folder


def whisper_config(kind: str, **changes):
    """Return the config of a checkpoint kind, as narrow as its heads allow and with one encoder layer."""
    from transformers import WhisperConfig

    facts, openai = KINDS[kind], openai_tokenizer(kind)
    return WhisperConfig(
        **{
            "vocab_size": openai.encoding.n_vocab,
            "num_mel_bins": facts.n_mels,
            "d_model": 2 * facts.decoder_heads,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 8,
            "decoder_layers": facts.decoder_layers,
            "decoder_attention_heads": facts.decoder_heads,
            "decoder_ffn_dim": 8,
            "bos_token_id": openai.eot,
            "eos_token_id": openai.eot,
            "pad_token_id": openai.eot,
            "decoder_start_token_id": openai.sot,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
            **changes,
        }
    )


def save_checkpoint(kind: str, folder: Path, **changes) -> Path:
    """Write a narrow checkpoint with random weights, and the processor and generation config of its kind.

    Fields of the config can be changed.
    """
    import torch
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    save_processor_files(kind, folder)
    facts, openai = KINDS[kind], openai_tokenizer(kind)
    fields = {
        "alignment_heads": alignment_heads(kind),
        "is_multilingual": facts.multilingual,
        "max_length": 448,
        "no_timestamps_token_id": openai.no_timestamps,
        "decoder_start_token_id": openai.sot,
        "bos_token_id": openai.eot,
        "eos_token_id": openai.eot,
        "pad_token_id": openai.eot,
        "prev_sot_token_id": openai.sot_prev,
        "return_timestamps": False,
    }
    if facts.multilingual:
        codes = zip(openai.all_language_codes, openai.all_language_tokens, strict=True)
        fields["lang_to_id"] = {f"<|{code}|>": number for code, number in codes}
        fields["task_to_id"] = {"transcribe": openai.transcribe, "translate": openai.translate}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(whisper_config(kind, **changes))
    model.generation_config = GenerationConfig(**fields)
    model.save_pretrained(str(folder))
    return folder
