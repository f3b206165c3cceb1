"""The model to export: a stand-alone Whisper in a folder of its own, with everything that a converter asks for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.data.features import Preparation
from whisper_peft.data.text import language_code
from whisper_peft.errors import UserError
from whisper_peft.model.configs import load_config, load_generation_config, load_preparation
from whisper_peft.model.loading import load_base

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

# Sizes of the vocabulary in OpenAI's checkpoints. whisper.cpp, openai-whisper and mlx-whisper have its tokens built in,
# and read from its size which ones they are: English only, 99 languages, 100 languages.
OPENAI_VOCABULARIES = {51864: 0, 51865: 99, 51866: 100}
# The window in seconds that these runtimes have built in.
OPENAI_WINDOW_S = 30.0
# The largest number of tokens of a window that they have built in.
OPENAI_TOKENS = 448


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

    def check_openai_layout(self, format: str, runtime: str) -> None:
        """Refuse a model that a runtime with built-in tokens and windows would misread.

        Args:
            format: Name of the format, for the message.
            runtime: Name of the runtime, for the message.

        Raises:
            UserError: The vocabulary, its order, or the window is not that of OpenAI's checkpoints.
        """
        n_tokens = self.config.vocab_size
        remedy = f"{runtime} would misread it; take --format ctranslate2 or onnx"
        if n_tokens not in OPENAI_VOCABULARIES:
            raise UserError(
                f"{self.name}: its vocabulary has {n_tokens} tokens, and {runtime} knows only those of OpenAI's models "
                f"({', '.join(map(str, OPENAI_VOCABULARIES))}); {remedy}."
            )
        if self.preparation.multilingual != bool(OPENAI_VOCABULARIES[n_tokens]):
            kind = "multilingual" if self.preparation.multilingual else "English-only"
            raise UserError(f"{self.name}: a vocabulary of {n_tokens} tokens in a model that is {kind}; {remedy}.")
        # The special tokens lie behind the words. One of them at its place shows that no token was put in between.
        expected = n_tokens - 1501 - 1
        if self.preparation.token_id("<|notimestamps|>") != expected:
            raise UserError(f"{self.name}: its tokens have another order than those of OpenAI's models; {remedy}.")
        self.check_limits(runtime)

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
