"""The model to export: a stand-alone Whisper in a folder of its own, with everything that a converter asks for."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.data.languages import LANGUAGES
from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_config, load_generation_config, load_preparation
from whisper_peft.model.loading import load_base

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

# Sizes of the vocabulary in OpenAI's checkpoints. whisper.cpp, openai-whisper and mlx-whisper have its special tokens
# built in, and read from its size which ones they are: English only, 99 languages, 100 languages. The English-only
# vocabulary has the tokens of 99 languages, too, but its models do not use them.
OPENAI_VOCABULARIES = {51864: 99, 51865: 99, 51866: 100}
_ENGLISH_ONLY_VOCABULARY = 51864
# Digests of the tokens of text in the English-only and in the multilingual vocabularies.
OPENAI_WORDS = frozenset(
    {
        "7cff19521369c7f5f5ed77ed7b730e7491800afb47d01d341e12b3ca740d8543",
        "7a1796f07fce01ae84cc2f83b9a72da17dc652ddc339cb113edcc4c60094f418",
    }
)
# Some checkpoints have the older name of a token.
_OLDER_NAMES = {"<|nocaptions|>": "<|nospeech|>"}
# Time tokens, from 0.00 to 30.00 s.
_N_TIMES = 1501
# These runtimes have this activation built in, and a feed-forward layer of so many times the width.
_ACTIVATION = "gelu"
_FEED_FORWARD_FACTOR = 4
# The settings of the feature extractor that they have built in: the window in seconds, the rate, and the samples of a
# spectrum and of a step.
OPENAI_WINDOW_S = 30.0
# The largest number of tokens of a window that they have built in.
OPENAI_TOKENS = 448
_SOUND = {"sample_rate_hz": 16_000, "n_fft": 400, "hop_samples": 160}


@dataclass(frozen=True)
class ModelToExport:
    """A stand-alone Whisper.

    Attributes:
        folder: Its folder, in the layout of transformers.
        name: MODEL, as the user named it, for messages.
    """

    folder: Path
    name: str

    @functools.cached_property
    def config(self) -> WhisperConfig:
        """Its config."""
        return load_config(str(self.folder))

    @functools.cached_property
    def generation_config(self) -> GenerationConfig:
        """Its generation config."""
        config = load_generation_config(str(self.folder), base=str(self.folder))
        assert config is not None, "the folder was written with one"
        return config

    @functools.cached_property
    def preparation(self) -> Preparation:
        """Its tokenizer and feature extractor."""
        return load_preparation(str(self.folder))

    @property
    def alignment_heads(self) -> list[list[int]] | None:
        """The (layer, head) pairs that show when a word is spoken; None if the model names none."""
        return getattr(self.generation_config, "alignment_heads", None)

    @property
    def language(self) -> str | None:
        """Whisper's code of the language that it was trained for; None if it names none."""
        language = getattr(self.generation_config, "language", None)
        if not isinstance(language, str) or not self.preparation.multilingual:
            return None
        return language_code(language.strip("<|>"))

    def load(self) -> WhisperForConditionalGeneration:
        """Load the weights in float32."""
        return load_base(str(self.folder))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Load the weights in float32, by transformers' names. The output layer is that of the token embedding."""
        state = self.load().state_dict()
        return {name: tensor for name, tensor in state.items() if name != "proj_out.weight"}

    def text_tokens(self) -> list[bytes]:
        """Return the bytes of every token of text, in the order of their ids.

        Raises:
            UserError: The tokens are not those of a byte-level vocabulary.
        """
        byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
        names = {number: name for name, number in self.preparation.tokenizer.get_vocab().items()}
        try:
            return [bytes(byte_of[symbol] for symbol in names[number]) for number in range(self.preparation.eot)]
        except KeyError:
            raise UserError(f"{self.name}: its tokens of text are not those of a byte-level vocabulary.") from None

    def check_openai_layout(self, format: str, runtime: str, *, own_words: bool = False) -> None:
        """Refuse a model that a runtime with built-in tokens and windows would misread.

        Args:
            format: Name of the format, for the message.
            runtime: Name of the runtime, for the message.
            own_words: The exported model holds its own tokens of text, so they may differ from OpenAI's.

        Raises:
            UserError: The vocabulary, its order, the window or a layer is not that of OpenAI's checkpoints.
        """
        remedy = f"{runtime} would misread it, so --format {format} is not for it; take --format ctranslate2 or onnx"
        n_tokens = self.config.vocab_size
        if n_tokens not in OPENAI_VOCABULARIES:
            raise UserError(
                f"{self.name}: its vocabulary has {n_tokens} tokens, and {runtime} knows only those of OpenAI's models "
                f"({', '.join(map(str, OPENAI_VOCABULARIES))}); {remedy}."
            )
        if self.preparation.multilingual == (n_tokens == _ENGLISH_ONLY_VOCABULARY):
            kind = "multilingual" if self.preparation.multilingual else "English-only"
            raise UserError(f"{self.name}: a vocabulary of {n_tokens} tokens in a model that is {kind}; {remedy}.")
        misplaced = self._find_misplaced_token()
        if misplaced is not None:
            raise UserError(f"{self.name}: {misplaced} in its vocabulary, unlike in OpenAI's models; {remedy}.")
        if not own_words and _digest(self.text_tokens()) not in OPENAI_WORDS:
            raise UserError(f"{self.name}: its tokens of text are not those of OpenAI's models; {remedy}.")
        self.check_limits(runtime)
        for name, value in _SOUND.items():
            if getattr(self.preparation, name) != value:
                raise UserError(f"{self.name}: {name} of its feature extractor is not {value}; {remedy}.")
        self._check_openai_layers(remedy)

    def check_limits(self, runtime: str) -> None:
        """Refuse a model for a runtime that has the window and the number of tokens of OpenAI's models built in.

        Args:
            runtime: Name of the runtime, for the message.

        Raises:
            UserError: The model has others.
        """
        window_s = self.preparation.window_s
        if window_s != OPENAI_WINDOW_S:
            raise UserError(
                f"{self.name}: its window has {window_s:g} s, and {runtime} always takes {OPENAI_WINDOW_S:g} s; take "
                "--format onnx."
            )
        n_tokens = self.preparation.max_label_tokens
        if n_tokens != OPENAI_TOKENS:
            raise UserError(
                f"{self.name}: it takes {n_tokens} tokens, and {runtime} always takes {OPENAI_TOKENS}; take --format "
                "onnx."
            )

    def _find_misplaced_token(self) -> str | None:
        """Return in words the first token that is not where OpenAI's vocabularies have it; None if all are.

        A special token that the tokenizer does not know at all does no harm: many checkpoints do not name the times.
        """
        expected = _special_tokens(OPENAI_VOCABULARIES[self.config.vocab_size])
        first = self.config.vocab_size - len(expected)
        tokenizer = self.preparation.tokenizer
        known = tokenizer.get_vocab()
        names = {number: _OLDER_NAMES.get(name, name) for name, number in known.items()}
        for number, name in enumerate(expected, start=first):
            if names.get(number, name) != name:
                return f"token {number} is {names[number]} and not {name}"
        special = set(expected)
        for number in range(first):
            if number not in names:
                return f"token {number} has no name"
            if names[number] in special:
                return f"{names[number]} is token {number}"
        return None

    def _check_openai_layers(self, remedy: str) -> None:
        """Refuse layers that OpenAI's models do not have."""
        config = self.config
        if config.activation_function != _ACTIVATION:
            raise UserError(f"{self.name}: its activation is {config.activation_function}; {remedy}.")
        if config.scale_embedding:
            raise UserError(f"{self.name}: it scales its token embedding (scale_embedding); {remedy}.")
        for side in ("encoder", "decoder"):
            n_inner = getattr(config, f"{side}_ffn_dim")
            if n_inner != _FEED_FORWARD_FACTOR * config.d_model:
                raise UserError(
                    f"{self.name}: {side}_ffn_dim is {n_inner} and not {_FEED_FORWARD_FACTOR} times the width "
                    f"{config.d_model}; {remedy}."
                )


def _digest(tokens: list[bytes]) -> str:
    """Return a digest of the tokens of text and their order."""
    content = b"".join(len(token).to_bytes(4, "little") + token for token in tokens)
    return hashlib.sha256(content).hexdigest()


def _byte_symbols() -> dict[int, str]:
    """Return the printable character that byte-level vocabularies write for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(printable)))
    return symbols


def _special_tokens(n_languages: int) -> list[str]:
    """Return the special tokens of OpenAI's vocabularies in their order. They stand behind all tokens of text."""
    languages = list(LANGUAGES)[:n_languages]
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{0.02 * number:.2f}|>" for number in range(_N_TIMES)),
    ]
