"""What the demo's page shows: HTML in which transcripts and names are text, never markup."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from whisper_peft.data.text import LANGUAGES

CSS = Path(__file__).with_suffix(".css")
MARKS = ("del", "ins")  # what only the first text has, what only the second has


def text(content: str) -> str:
    """Any string as HTML within a line: never markup, and its direction of writing ends with it.

    In an element of its own, with `dir="auto"`, it is only escaped: what is isolated does not give that its direction.
    """
    return f"<bdi>{html.escape(content)}</bdi>"


def header(name: str, other: str | None = None) -> str:
    """The top of the page."""
    beside = f", beside {text(other)}" if other else ""
    return (
        f'<div class="wp"><h1>{text(name)}</h1><p class="quiet">Whisper, fine-tuned with whisper-peft{beside}</p></div>'
    )


def empty() -> str:
    """Where the result will be."""
    return '<div class="wp"><div class="wp-empty">What is said appears here.</div></div>'


def notice(message: str) -> str:
    """A recording that cannot be used, and why."""
    return f'<div class="wp" role="alert"><p class="wp-notice">{text(message)}</p></div>'


def result(
    name: str, seconds: float, language: str | None, cards: Sequence[tuple[str, str, dict | None]], reference: str = "",
    *, spaces: bool = True,
) -> str:  # fmt: skip
    """The transcripts of one recording.

    Args:
        name: of the recording.
        seconds: its length.
        language: Whisper's code, or None.
        cards: heading, model's name, and what `transcribe_wave` found, or None: not yet; of two, the newer one second.
        reference: what was really said, if it is known.
        spaces: whether the texts have them between words.
    """
    facts = [text(name), clock(seconds)] + ([LANGUAGES[language].title()] if language else [])
    parts = [f'<div class="wp" aria-live="polite"><p class="quiet">{" · ".join(facts)}</p><div class="wp-pair">']
    found = [one for _, _, one in cards]
    marked = [html.escape(one["text"]) if one else "" for one in found]
    legend = ""
    if len(cards) == 2 and all(found):
        before, after, n_words, n_same = compared(*(one["text"] for one in found), spaces=spaces)
        marked = [before, after]
        unit = "words" if spaces else "characters"
        same = "The same." if n_same == n_words else f"{n_words - n_same} of {n_words} {unit} differ:"
        if n_same < n_words:
            only = [text(f"only {heading.lower() or model}") for heading, model, _ in cards]
            same += f" <del>{only[0]}</del> <ins>{only[1]}</ins>"
        legend = f'<p class="quiet">{same}</p>'
    for (heading, model, one), words in zip(cards, marked, strict=True):
        long = " long" if one and len(one["text"]) > 400 else ""
        said = words if one is None or one["text"] else '<span class="quiet">(nothing)</span>'
        waiting = "" if one else '<span class="quiet">listening …</span>'
        parts.append(
            f'<section class="wp-card"><h2>{heading} {text(model)}</h2>'
            f'<p class="said{long}" dir="auto">{said}{waiting}</p></section>'
        )
    parts.append(f"</div>{legend}")
    if reference:
        parts.append(f'<p class="quiet">What was said: {text(reference)}</p>')
    if any(one and one["reached_limit"] for one in found):
        parts.append('<p class="quiet">A transcript reached the limit of tokens: it may be a loop.</p>')
    if found[-1] and found[-1].get("segments"):
        parts.append(_times(found[-1]["segments"]))
    return "".join(parts) + "</div>"


def _times(segments: Sequence[dict]) -> str:
    rows = "".join(
        f'<tr><td class="time">{_minutes(one["start"])}–{_minutes(one["end"])}</td>'
        f'<td dir="auto">{html.escape(one["text"])}</td></tr>'
        for one in segments
    )
    return f"<details><summary>With times</summary><table>{rows}</table></details>"


def compared(before: str, after: str, *, spaces: bool = True) -> tuple[str, str, int, int]:
    """Two texts as HTML with what only one of them has marked, word by word or character by character.

    Returns:
        Both texts; how many words the alignment has, and how many of them are equal.
    """
    import jiwer

    pieces = [one.split() if spaces else _characters(one) for one in (before, after)]
    gap = " " if spaces else ""
    if not all(pieces):  # jiwer 3 refuses empty references
        n_words = max(map(len, pieces))
        return *(_marked(words, tag, gap) for words, tag in zip(pieces, MARKS, strict=True)), n_words, 0
    # One word each to jiwer, which splits at spaces only: a text's own white space is of many kinds.
    numbers: dict[str, str] = {}
    lines = [" ".join(numbers.setdefault(word, str(len(numbers))) for word in words) for words in pieces]
    shown: tuple[list[str], list[str]] = ([], [])
    n_words = n_same = 0
    for chunk in jiwer.process_words(*lines).alignments[0]:
        spans = (pieces[0][chunk.ref_start_idx : chunk.ref_end_idx], pieces[1][chunk.hyp_start_idx : chunk.hyp_end_idx])
        n_words += max(map(len, spans))
        n_same += len(spans[0]) if chunk.type == "equal" else 0
        for side, words, tag in zip(shown, spans, MARKS, strict=True):
            if words:
                side.append(html.escape(gap.join(words)) if chunk.type == "equal" else _marked(words, tag, gap))
    return gap.join(shown[0]), gap.join(shown[1]), n_words, n_same


def _characters(content: str) -> list[str]:
    """Letters with the signs that stand over, under or around them."""
    found: list[str] = []
    for character in content:
        if found and unicodedata.category(character)[0] == "M":
            found[-1] += character
        else:
            found.append(character)
    return found


def _marked(words: Sequence[str], tag: str, gap: str) -> str:
    return f"<{tag}>{html.escape(gap.join(words))}</{tag}>" if words else ""


def clock(seconds: float) -> str:
    """3.2 s, or 12:05 from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else _minutes(seconds)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
