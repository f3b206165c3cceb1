"""Rows that contradict themselves, and languages that Whisper does not know."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from whisper_peft.checking.findings import MOST_READ, Findings
from whisper_peft.data.segments import find_fault
from whisper_peft.data.text import has_spaces
from whisper_peft.files import short_repr


def look_at_rows(
    findings: Findings, source: int, seconds: Sequence[float | None], *, language: str | None, borrowed: bool
) -> None:
    """Find rows that contradict themselves, and languages that Whisper does not know.

    Args:
        findings: Takes what is found.
        source: Number of the source.
        seconds: Seconds of each row; None where they are not known.
        language: Code for rows that name none.
        borrowed: Whether all rows get a borrowed language token, whatever they say.
    """
    rows = findings.sources[source].rows
    for number, row in enumerate(rows):
        fault = row.fault
        # The length of a row with an end was known when it was read, and its segments were held against it then.
        if not fault and row.end_s is None:
            fault = find_fault(row.segments, seconds[number])
        if fault:
            findings.add("bad-segments", source, number, fault)
        if row.prompt and not row.segments and _holds_text(row.prompt, row.text, row.language or language):
            findings.add("text-in-prompt", source, number, f"prompt: {short_repr(row.prompt)}")
    if not borrowed:
        _look_at_languages(findings, source, language)


def _look_at_languages(findings: Findings, source: int, language: str | None) -> None:
    rows = findings.sources[source].rows
    counts = Counter(row.unknown_language for row in rows if row.unknown_language)
    # With --language, rows that all name unknown languages are taken for that one.
    kind = "unknown-language"
    if language is not None and not any(row.language for row in rows):
        kind = "language-as-said"
    for number, row in enumerate(rows):
        if row.unknown_language:
            count = counts[row.unknown_language]
            plural = "" if count == 1 else "s"
            detail = f"{short_repr(row.unknown_language)}, as {count:,} row{plural} of this source"
            findings.add(kind, source, number, detail, weight=count)


def _holds_text(prompt: str, text: str, language: str | None) -> bool:
    """Tell whether a text stands in its prompt, word by word. Punctuation and capitals do not count.

    Example:
        >>> _holds_text("He said: it is late.", "It is late", "en"), _holds_text("The time", "me", "en")
        (True, False)
    """
    words = _keep_words(text)
    prompt_words = _keep_words(prompt)
    if not words:
        return False
    if language is not None and not has_spaces(language):
        return words.replace(" ", "") in prompt_words.replace(" ", "")
    return f" {words} " in f" {prompt_words} "


def _keep_words(text: str) -> str:
    letters = unicodedata.normalize("NFKC", text[:MOST_READ]).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", _without_marks(letters)).split())


def _without_marks(text: str) -> str:
    """Return the text without vowel signs and joiners, which are no word characters for regular expressions."""
    return "".join(character for character in text if unicodedata.category(character) not in ("Mn", "Mc", "Cf"))
