"""The files beside the weights that loaders ask for. What else lies in a folder was not made to be seen by others."""

from __future__ import annotations

from whisper_peft.model.adapter_configs import ADAPTER_CONFIG
from whisper_peft.model.configs import GENERATION_CONFIG
from whisper_peft.model.extractor import PREPROCESSOR, PROCESSOR
from whisper_peft.model.identity import BASE_FACTS, WEIGHTS_INDEX

LOADED_FILES = frozenset(
    {
        "config.json",
        GENERATION_CONFIG,
        ADAPTER_CONFIG,
        BASE_FACTS,
        PREPROCESSOR,
        PROCESSOR,
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "normalizer.json",
        "added_tokens.json",
        "special_tokens_map.json",
        WEIGHTS_INDEX,
    }
)
