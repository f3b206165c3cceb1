"""How a recording is decoded, and the pieces that decoding returns: tokens with times, which become a transcript."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import full_limit


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding.

    Attributes:
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".
        beams: Number of beams; 1 is greedy.
        prompt_ids: Tokens that stand before every window, see the function `prompt_ids`.
    """

    language: str | None
    task: str = "transcribe"
    beams: int = 1
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The tokens that are spoken between two times of a recording.

    Attributes:
        start_s: Start in the recording, in seconds.
        end_s: End in the recording, in seconds.
        ids: The tokens.
        ended: The model ended the window of this piece itself. Otherwise, the limit on tokens did.
    """

    start_s: float
    end_s: float
    ids: list[int]
    ended: bool


def prompt_ids(preparation: Preparation, prompt: str | None) -> tuple[tuple[int, ...], int]:
    """Turn names and jargon into the tokens that stand before every window.

    Args:
        preparation: The preparation of the checkpoint.
        prompt: The words; None or blank for none.

    Returns:
        The tokens, with ``<|startofprev|>`` in front, or none without words. Also the number of tokens that were cut at
        the start, because the model reads only `preparation.max_prompt_tokens` (223).

    Raises:
        UserError: The words hold half of a character.
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
    """Return how many tokens the model can generate after its prompt and prefix."""
    return full_limit(preparation) - len(decoding.prompt_ids)


def assemble(preparation: Preparation, pieces: Iterable[Piece], length_s: float) -> dict:
    """Turn the pieces of a recording into text with times.

    Args:
        preparation: The preparation of the checkpoint.
        pieces: The pieces, in the order in which they were decoded.
        length_s: Length of the recording, in seconds. Behind it is only the silence that fills the last window.

    Returns:
        The transcript, see `finish_transcript`.
    """
    timed_texts = []
    reached_limit = False
    for piece in pieces:
        text = preparation.words.decode(piece.ids)
        timed_texts.append((piece.start_s, piece.end_s, text))
        if text.strip() and piece.start_s < length_s and not piece.ended:
            reached_limit = True
    return finish_transcript(timed_texts, length_s, reached_limit=reached_limit)


def finish_transcript(timed_texts: Iterable[tuple[float, float, str]], length_s: float, *, reached_limit: bool) -> dict:
    """Put texts with times into order, and join them.

    Args:
        timed_texts: Start and end in seconds, and the text as the model wrote it, with the spaces at its ends.
        length_s: Length of the recording, in seconds. Behind it is only the silence that fills the last window.
        reached_limit: The limit on tokens ended one of the texts.

    Returns:
        ``text``, ``reached_limit`` and ``segments``. A segment begins where the one before it ends, or later.

    Example:
        >>> finish_transcript([(0.0, 2.0, " Good"), (1.5, 9.0, " morning.")], 3.0, reached_limit=False)["segments"]
        [{'start': 0.0, 'end': 1.5, 'text': 'Good'}, {'start': 1.5, 'end': 3.0, 'text': 'morning.'}]
    """
    segments: list[dict] = []
    written = ""
    earliest_s = 0.0
    for start_s, end_s, text in timed_texts:
        if not text.strip() or start_s >= length_s:
            continue
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
