"""The content of the demo's page. Transcripts and names are text, never markup.

The HTML stands in demo_page.html.jinja; this module finds what is put into it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_peft.data.text import LANGUAGES
from whisper_peft.pages.templates import render

PAGE_TEMPLATE = "delivery/demo_page.html.jinja"
CSS = Path(__file__).with_suffix(".css")
# A transcript with more characters than this is shown in smaller letters, in a box that scrolls.
LONG_TEXT = 400


@dataclass(frozen=True)
class Span:
    """A part of a transcript.

    Attributes:
        text: The words.
        shared: Whether the other transcript has them, too.
    """

    text: str
    shared: bool


@dataclass(frozen=True)
class Comparison:
    """Two transcripts, with the parts that only one of them has.

    Attributes:
        before: The first transcript.
        after: The second one.
        n_pieces: Number of words or characters in their alignment.
        n_shared: How many of these are in both.
    """

    before: list[Span]
    after: list[Span]
    n_pieces: int
    n_shared: int


@dataclass(frozen=True)
class _Card:
    """The transcript of one model, as the template shows it."""

    heading: str
    model: str
    transcript: dict[str, Any] | None
    spans: list[Span]

    @property
    def is_long(self) -> bool:
        return self.transcript is not None and len(self.transcript["text"]) > LONG_TEXT

    @property
    def short_name(self) -> str:
        return self.heading.lower() or self.model


def header(name: str, other: str | None = None) -> str:
    """Return the top of the page.

    Args:
        name: Name of the model.
        other: Name of the model that it is compared with, if any.
    """
    return render(PAGE_TEMPLATE, part="header", model=name, other=other)


def empty() -> str:
    """Return the place where the result will be."""
    return render(PAGE_TEMPLATE, part="empty")


def notice(message: str) -> str:
    """Return the reason why a recording cannot be used."""
    return render(PAGE_TEMPLATE, part="notice", message=message)


def result(
    name: str,
    seconds: float,
    language: str | None,
    cards: Sequence[tuple[str, str, dict[str, Any] | None]],
    reference: str = "",
    *,
    spaces: bool = True,
) -> str:
    """Return the transcripts of one recording.

    Args:
        name: Name of the recording.
        seconds: Length of the recording in seconds.
        language: Whisper's code, or None.
        cards: For each model its heading, its name, and what `transcribe_wave` returned, or None as long as it is not
            ready. Of two models the newer one is the second.
        reference: What was really said, if it is known.
        spaces: Whether the texts have spaces between words.
    """
    facts = [clock(seconds)]
    if language:
        facts.append(LANGUAGES[language].title())
    transcripts = [transcript for _, _, transcript in cards]
    ready = [transcript for transcript in transcripts if transcript]
    comparison = None
    spans_of_cards: list[list[Span]] = [[] for _ in cards]
    for spans, transcript in zip(spans_of_cards, transcripts, strict=True):
        if transcript:
            spans.append(Span(transcript["text"], True))
    if len(cards) == 2 and len(ready) == 2:
        comparison = compare_texts(ready[0]["text"], ready[1]["text"], spaces=spaces)
        spans_of_cards = [comparison.before, comparison.after]
    shown_cards = []
    for (heading, model, transcript), spans in zip(cards, spans_of_cards, strict=True):
        shown_cards.append(_Card(heading, model, transcript, spans))
    newest = transcripts[-1] or {}
    return render(
        PAGE_TEMPLATE,
        part="result",
        recording=name,
        facts=facts,
        cards=shown_cards,
        comparison=comparison,
        spaces=spaces,
        reference=reference,
        reached_limit=any(transcript["reached_limit"] for transcript in ready),
        segments=[
            {
                "start": _minutes_and_seconds(segment["start"]),
                "end": _minutes_and_seconds(segment["end"]),
                "text": segment["text"],
            }
            for segment in newest.get("segments") or ()
        ],
    )


def compare_texts(before: str, after: str, *, spaces: bool = True) -> Comparison:
    """Align two texts, and tell what only one of them has, word by word or character by character.

    Args:
        before: The first text.
        after: The second text.
        spaces: Whether the texts have spaces between words. Without them characters are compared.

    Example:
        >>> comparison = compare_texts("go home now", "go now")
        >>> comparison.before
        [Span(text='go', shared=True), Span(text='home', shared=False), Span(text='now', shared=True)]
        >>> comparison.n_shared, comparison.n_pieces
        (2, 3)
    """
    import jiwer

    split = str.split if spaces else split_into_letters
    gap = " " if spaces else ""
    before_pieces = split(before)
    after_pieces = split(after)
    if not before_pieces or not after_pieces:
        # jiwer 3 refuses empty references.
        n_pieces = max(len(before_pieces), len(after_pieces))
        return Comparison(_unshared(before_pieces, gap), _unshared(after_pieces, gap), n_pieces, 0)
    # jiwer splits at spaces only, and a text's own white space is of many kinds: each piece becomes a number for it.
    number_of: dict[str, str] = {}
    lines = [
        " ".join(number_of.setdefault(piece, str(len(number_of))) for piece in pieces)
        for pieces in (before_pieces, after_pieces)
    ]
    before_spans: list[Span] = []
    after_spans: list[Span] = []
    n_pieces = 0
    n_shared = 0
    for chunk in jiwer.process_words(*lines).alignments[0]:
        is_shared = chunk.type == "equal"
        before_part = before_pieces[chunk.ref_start_idx : chunk.ref_end_idx]
        after_part = after_pieces[chunk.hyp_start_idx : chunk.hyp_end_idx]
        n_pieces += max(len(before_part), len(after_part))
        if is_shared:
            n_shared += len(before_part)
        for spans, part in ((before_spans, before_part), (after_spans, after_part)):
            if part:
                spans.append(Span(gap.join(part), is_shared))
    return Comparison(before_spans, after_spans, n_pieces, n_shared)


def _unshared(pieces: list[str], gap: str) -> list[Span]:
    return [Span(gap.join(pieces), False)] if pieces else []


def split_into_letters(text: str) -> list[str]:
    """Split a text into letters, each with the signs that stand over, under or around it.

    Example:
        >>> [len(letter) for letter in split_into_letters("กินน้ำ")]
        [2, 1, 2, 1]
    """
    letters: list[str] = []
    for character in text:
        is_sign = unicodedata.category(character).startswith("M")
        if letters and is_sign:
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def clock(seconds: float) -> str:
    """Return a length of time as a person writes it.

    Example:
        >>> clock(3.21), clock(725.0)
        ('3.2 s', '12:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return _minutes_and_seconds(seconds)


def _minutes_and_seconds(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
