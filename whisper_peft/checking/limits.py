"""The limits of a model: seconds and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whisper_peft.data.features import Preparation, TooLongError
from whisper_peft.data.rows import Segment
from whisper_peft.data.text import clean_text
from whisper_peft.data.words import estimate_tokens

# Characters of a text. 448 tokens of English are about 2,000, so no clip has more than this.
MOST_CLIP_CHARACTERS = 5_000
# Whisper takes 448 tokens, and 4 of them are the prefix.
_MOST_ESTIMATED_TOKENS = 444
# Each language is one token, which is not counted. So any language does where none is known.
_ANY_LANGUAGE = "en"


@dataclass(frozen=True)
class Limits:
    """The limits of a model, and how the tokens of a text are counted.

    Attributes:
        window_s: Seconds of the longest clip.
        preparation: Counts tokens as the model does; None to estimate them, on the high side.
        clean: Cleans a text before its tokens are counted.
    """

    window_s: float = 30.0
    preparation: Preparation | None = None
    clean: Callable[[str], str] = clean_text

    def n_tokens(self, text: str, language: str | None, task: str) -> int:
        """Count the tokens of a text.

        Args:
            text: A clean text.
            language: Whisper's code; None if it is not known.
            task: "transcribe" or "translate".

        Raises:
            TooLongError: There are more tokens than the model takes.
        """
        if len(text) > MOST_CLIP_CHARACTERS:
            raise TooLongError(f"{len(text):,} characters of text; no clip of {self.window_s:g} s has as many")
        if self.preparation is None:
            count = estimate_tokens(text)
            if count > _MOST_ESTIMATED_TOKENS:
                raise TooLongError(f"about {count} text tokens")
            return count
        language = language or _ANY_LANGUAGE
        prefix = self.preparation.prefix(language, task)
        _, labels = self.preparation.encode_text([Segment(text)], language=language, task=task)
        return len(labels) - len(prefix)

    def is_sure(self, text: str) -> bool:
        """Tell whether a text that is refused has too many tokens for sure, and not only by an estimate."""
        return self.preparation is not None or len(text) > MOST_CLIP_CHARACTERS


# What every published Whisper takes, with tokens estimated.
WHISPER_LIMITS = Limits()
