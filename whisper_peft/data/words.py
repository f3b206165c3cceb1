"""How the words of a transcript become tokens, and tokens become words, by Whisper's own convention.

A transcript is plain characters. Text in it that looks like a special token ("<|endoftext|>", "<|2.00|>") is text like
all other text. The script of a segment decides if it begins with a space: see `begins_with_space`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whisper_peft.data.text import begins_with_space

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import WhisperTokenizer

# Most tokens for each byte of UTF-8: of text in ASCII, and of other text. Malayalam has the most of all languages.
_TOKENS_PER_BYTE_ASCII = 0.3
_TOKENS_PER_BYTE = 0.72


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text, on the high side, where no vocabulary is at hand.

    Example:
        >>> estimate_tokens("good morning"), estimate_tokens("നമസ്കാരം")
        (4, 17)
    """
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if text.isascii():
        return round(n_bytes * _TOKENS_PER_BYTE_ASCII)
    return round(n_bytes * _TOKENS_PER_BYTE)


class Words:
    """A tokenizer that only knows text.

    Args:
        tokenizer: The checkpoint's tokenizer.
        markers: The ids of tokens that are no text, from `<|endoftext|>` to the last time.
    """

    def __init__(self, tokenizer: WhisperTokenizer, *, markers: range):
        self._plain = _without_added_tokens(tokenizer)
        self._markers = markers
        # Tokens that somebody has added to the vocabulary are decoded if a model generates them, but a text is never
        # encoded to them.
        self._added: dict[int, str] = {}
        for number, token in tokenizer.added_tokens_decoder.items():
            self._added[number] = "" if token.special else token.content
        self._lone_space = self.encode(" ")

    def encode(self, text: str) -> list[int]:
        """Encode a text as it stands.

        Raises:
            ValueError: The text contains half a character (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"half a character in the text ({error.object[error.start]!r})") from None
        return self._plain.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """Count the tokens of a text as it stands; half a character counts like a question mark."""
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return len(self._plain.encode(readable, add_special_tokens=False).ids)

    def of_segment(self, text: str, language: str | None) -> list[int]:
        """Encode a segment as Whisper writes it: without outer spaces, then with one before it if its script has them.

        Args:
            text: The text of the segment.
            language: Whisper's code for the language of the text; None for an English-only checkpoint.
        """
        text = text.strip()
        if text and begins_with_space(text, language):
            text = f" {text}"
        return self.encode(text)

    def without_lone_space(self, tokens: list[int]) -> list[int]:
        """Return tokens without the space before the text, if that space is a token of its own."""
        n_space = len(self._lone_space)
        if tokens[:n_space] == self._lone_space:
            return tokens[n_space:]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode generated tokens to text, with the spaces at its ends.

        The `decode` of transformers removes all text that looks like a time, even if a person wrote it.
        """
        text = ""
        # These are decoded together, because a character may be spread over several tokens.
        waiting: list[int] = []
        for token in map(int, tokens):
            if token < 0 or token in self._markers:
                continue
            if token in self._added:
                text += self._plain.decode(waiting) + self._added[token]
                waiting = []
            else:
                waiting.append(token)
        return text + self._plain.decode(waiting)


def _without_added_tokens(tokenizer: WhisperTokenizer) -> Tokenizer:
    """Build the same tokenizer without its added tokens.

    `split_special_tokens` is not enough: transformers would still find times in a text, and every token that a
    checkpoint has added.
    """
    from tokenizers import Tokenizer

    whole = tokenizer.backend_tokenizer
    plain = Tokenizer(whole.model)
    plain.pre_tokenizer = whole.pre_tokenizer
    plain.decoder = whole.decoder
    if whole.normalizer is not None:
        plain.normalizer = whole.normalizer
    return plain
