"""The words of a transcript to tokens and back, by Whisper's own convention.

A transcript is plain characters. What looks like a special token in it ("<|endoftext|>", "<|2.00|>") is text like all
else, and whether a segment begins with a space follows from its script: see `begins_with_space`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whisper_peft.data.text import begins_with_space

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import WhisperTokenizer


class Words:
    """A tokenizer for text alone.

    Args:
        tokenizer: The checkpoint's tokenizer.
        markers: Token ids that are no text: from `<|endoftext|>` to the last timestamp.
    """

    def __init__(self, tokenizer: WhisperTokenizer, *, markers: range):
        self._plain = _without_added_tokens(tokenizer)
        self._markers = markers
        # Tokens that somebody has added to the vocabulary are read when a model says them, but never written.
        self._added = {
            number: "" if token.special else token.content for number, token in tokenizer.added_tokens_decoder.items()
        }
        self._lone_space = self.encode(" ")

    def encode(self, text: str) -> list[int]:
        """Encode a text as it stands.

        Raises:
            ValueError: Half a character (a lone surrogate) is in it.
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
        """Encode a segment as Whisper writes it: trimmed, and with a space before it where its script has spaces.

        Args:
            text: Of the segment.
            language: Whisper's code of the language that is written; None in English-only checkpoints.
        """
        text = text.strip()
        if text and begins_with_space(text, language):
            text = f" {text}"
        return self.encode(text)

    def without_lone_space(self, tokens: list[int]) -> list[int]:
        """Leave out a space that is a token of its own before the text."""
        n_space = len(self._lone_space)
        if tokens[:n_space] == self._lone_space:
            return tokens[n_space:]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode generated tokens to text, spaces at its ends included.

        transformers' own `decode` takes away all that looks like a timestamp, and so words that a speaker wrote.
        """
        text = ""
        run: list[int] = []  # of tokens that are decoded together: a character may lie in several
        for token in map(int, tokens):
            if token < 0 or token in self._markers:
                continue
            if token in self._added:
                text += self._plain.decode(run) + self._added[token]
                run = []
            else:
                run.append(token)
        return text + self._plain.decode(run)


def _without_added_tokens(tokenizer: WhisperTokenizer) -> Tokenizer:
    """Build the same tokenizer without added tokens.

    `split_special_tokens` is not enough: transformers still finds the timestamps in a text, and every token that a
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
