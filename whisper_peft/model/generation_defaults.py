"""The fields that openai's generation configs have, for a checkpoint whose own file lacks them."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whisper_peft.model.vocabulary import has_language_tokens

if TYPE_CHECKING:
    from transformers import WhisperConfig

# Number of tokens in openai's English-only vocabulary.
ENGLISH_VOCABULARY = 51864
# The same of its multilingual vocabularies: up to large-v2, and from large-v3 on.
MULTILINGUAL_VOCABULARIES = (51865, 51866)
# The heads of the decoder that follow the sound, which word times need: by width of the model, number of decoder layers
# and size of the vocabulary. From openai/whisper (MIT licence), whisper/__init__.py: booleans (layer, head), zipped, in
# base 85. The width 1,280 with 51,865 tokens is not here: large and large-v2 have it, and their heads differ.
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
# How the vocabulary writes a token that is a space alone.
_SPACE = "Ġ"


def make_decoding_fields(config: WhisperConfig, vocabulary: Mapping[str, int], multilingual: bool) -> dict[str, Any]:
    """Make the fields that openai's files have for decoding: what is suppressed, and which heads follow the sound."""
    begin_suppressed = [vocabulary["<|endoftext|>"]]
    if _SPACE in vocabulary:
        begin_suppressed.insert(0, vocabulary[_SPACE])
    decoding: dict[str, Any] = {
        "max_initial_timestamp_index": 50,
        "suppress_tokens": _suppressed_tokens(config, vocabulary, multilingual),
        "begin_suppress_tokens": begin_suppressed,
    }
    heads = published_alignment_heads(config)
    if heads:
        decoding["alignment_heads"] = heads
    return decoding


def is_multilingual(config: WhisperConfig, vocabulary: Mapping[str, int]) -> bool:
    """Tell whether a checkpoint that does not say so has language tokens in its prompt.

    openai's own sizes are known: the English-only vocabulary has language tokens, too, and never uses them.
    """
    if config.vocab_size == ENGLISH_VOCABULARY:
        return False
    return config.vocab_size in MULTILINGUAL_VOCABULARIES or has_language_tokens(vocabulary)


def _suppressed_tokens(config: WhisperConfig, vocabulary: Mapping[str, int], multilingual: bool) -> list[int]:
    """Return the tokens that are never written: special ones, and in openai's vocabularies those for no speech."""
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


def published_alignment_heads(config: WhisperConfig) -> list[list[int]] | None:
    """Return the published heads, as pairs of layer and head, for a model of this shape; None if they are not known."""
    import numpy as np

    packed = _ALIGNMENT_HEADS.get((config.d_model, config.decoder_layers, config.vocab_size))
    if packed is None:
        return None
    flat = np.frombuffer(gzip.decompress(base64.b85decode(packed)), dtype=bool)
    if flat.size != config.decoder_layers * config.decoder_attention_heads:
        return None
    # (layers, heads)
    grid = flat.reshape(config.decoder_layers, config.decoder_attention_heads)
    return [[int(layer), int(head)] for layer, head in zip(*grid.nonzero(), strict=True)]
