"""What decoding a recording takes, and what it gives: pieces of tokens with times, which become a transcript."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import full_limit


@dataclass(frozen=True)
class Decoding:
    """How recordings are decoded."""

    language: str | None  # Whisper's code; None for an English-only checkpoint
    task: str = "transcribe"
    beams: int = 1  # 1 is greedy
    prompt_ids: tuple[int, ...] = ()  # <|startofprev|> and the words before the recording, see `prompt_ids`


@dataclass(frozen=True)
class Piece:
    """What is said between two times of a recording, in tokens."""

    start_s: float
    end_s: float
    ids: list[int]
    ended: bool  # whether its window came to its own end, not to the limit on tokens


def prompt_ids(preparation: Preparation, prompt: str | None) -> tuple[tuple[int, ...], int]:
    """Turn names and jargon into the tokens that stand before every window.

    Args:
        preparation: Of the checkpoint.
        prompt: The words; None or blank for none.

    Returns:
        The tokens, ``<|startofprev|>`` first (empty without words), and how many tokens were cut at the start because
        the model takes only `preparation.max_prompt_tokens` (223).

    Raises:
        UserError: Half a character is in the words.
    """
    words = (prompt or "").strip()
    if not words:
        return (), 0
    try:
        ids = preparation.words.encode(" " + words)
    except ValueError as error:
        raise UserError(f"--prompt: {error}; write it in UTF-8.") from None
    kept = ids[-preparation.max_prompt_tokens :]
    return (preparation.token_id("<|startofprev|>"), *kept), len(ids) - len(kept)


def tokens_left(preparation: Preparation, decoding: Decoding) -> int:
    """Count the tokens that the model can generate behind its prompt and prefix."""
    return full_limit(preparation) - len(decoding.prompt_ids)


def assemble(preparation: Preparation, pieces: Iterable[Piece], length_s: float) -> dict:
    """Turn pieces in tokens into text with times.

    Args:
        preparation: Of the checkpoint.
        pieces: In the order in which they were made.
        length_s: Length of the recording. Behind it is only the silence that fills the last window.

    Returns:
        See `finish_transcript`.
    """
    timed = []
    reached_limit = False
    for piece in pieces:
        text = preparation.words.decode(piece.ids)
        timed.append((piece.start_s, piece.end_s, text))
        reached_limit |= bool(text.strip()) and piece.start_s < length_s and not piece.ended
    return finish_transcript(timed, length_s, reached_limit=reached_limit)


def finish_transcript(timed: Iterable[tuple[float, float, str]], length_s: float, *, reached_limit: bool) -> dict:
    """Put texts with times into order and join them.

    Args:
        timed: Start and end in seconds, and the text as the model wrote it, spaces at its ends included.
        length_s: Length of the recording. Behind it is only the silence that fills the last window.
        reached_limit: Whether the limit on tokens ended any of them.

    Returns:
        ``text``, ``reached_limit`` and ``segments``, each of which begins where the one before it ends, or later.
    """
    segments = []
    written = ""
    earliest_s = 0.0
    for start_s, end_s, text in timed:
        if text.strip() and start_s < length_s:
            start_s = max(earliest_s, start_s)
            end_s = max(start_s, min(end_s, length_s))
            if segments:
                segments[-1]["end"] = min(segments[-1]["end"], round(start_s, 2))
            segments.append({"start": round(start_s, 2), "end": round(end_s, 2), "text": text.strip()})
            # The model itself writes the space between its segments. Adding one here would hide that it does not.
            written += text
            earliest_s = start_s
    text = re.sub(" {2,}", " ", written).strip()
    return {"text": text, "reached_limit": reached_limit, "segments": segments}
