"""Find rows that contradict themselves, and languages that Whisper does not know."""

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
    findings: Findings, part: int, seconds: Sequence[float | None], *, language: str | None, borrowed: bool
) -> None:
    """Find rows that contradict themselves, and languages that Whisper does not know.

    Args:
        findings: Takes what is found.
        part: Its number.
        seconds: Of each row; None where they are not known.
        language: Code for rows that name none.
        borrowed: Whether all rows get a borrowed language token, whatever they say.
    """
    rows = findings.parts[part].rows
    unknown = Counter(row.unknown_language for row in rows if row.unknown_language)
    is_clear = language is not None and not any(row.language for row in rows)
    for number, row in enumerate(rows):
        fault = row.fault
        if not fault and row.end_s is None:  # else its length was known when it was read
            fault = find_fault(row.segments, seconds[number])
        if fault:
            findings.add("bad-segments", part, number, fault)
        if row.unknown_language and not borrowed:
            kind = "language-as-said" if is_clear else "unknown-language"
            count = unknown[row.unknown_language]
            detail = f"{short_repr(row.unknown_language)}, as {count:,} row{'' if count == 1 else 's'} of this source"
            findings.add(kind, part, number, detail, weight=count)
        if row.prompt and not row.segments and _holds(row.prompt, row.text, row.language or language):
            findings.add("text-in-prompt", part, number, f"prompt: {short_repr(row.prompt)}")


def _holds(prompt: str, text: str, language: str | None) -> bool:
    """Whether a text stands in its prompt, word by word; marks of punctuation and capitals do not count."""
    words, before = _words(text), _words(prompt)
    if not words:
        return False
    if language is not None and not has_spaces(language):
        return words.replace(" ", "") in before.replace(" ", "")
    return f" {words} " in f" {before} "


def _words(text: str) -> str:
    letters = unicodedata.normalize("NFKC", text[:MOST_READ]).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", _without_marks(letters)).split())


def _without_marks(text: str) -> str:
    """The text without vowel signs and joiners, which are no word characters for regular expressions."""
    return "".join(sign for sign in text if unicodedata.category(sign) not in ("Mn", "Mc", "Cf"))
