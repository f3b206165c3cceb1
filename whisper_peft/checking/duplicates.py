"""What is there twice: rows, sounds, sentences and speakers, within a split or in two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from whisper_peft.checking.findings import MOST_READ, Findings
from whisper_peft.checking.sound_measures import SILENT_DB, Measures
from whisper_peft.data.text import clean_text

SAME_FILE = "the same file"


def look_at_twins(findings: Findings) -> None:
    """Find what is there twice, within a part or in two splits: rows, sentences, speakers."""
    seen: dict[Any, tuple[int, int]] = {}
    sentences: dict[str, tuple[int, int]] = {}
    speakers: dict[str, str] = {}
    crossing = defaultdict(set)
    for part, found in enumerate(findings.parts):
        for number, row in enumerate(found.rows):
            sentence = said(row.text)
            sound = (row.audio, row.start_s, row.end_s)
            first = seen.setdefault(sound, (part, number))
            if first != (part, number):
                _note_twin(findings, first, (part, number), by=SAME_FILE)
            if sentence:
                first = sentences.setdefault(sentence, (part, number))
                other = findings.parts[first[0]]
                if first != (part, number) and other.split != found.split:
                    for place, split in (((part, number), other.split), (first, found.split)):
                        findings.add("shared-text", *place, f"in {split}, too")
                elif first != (part, number):
                    findings.add("duplicate-text", part, number, f"as {other.rows[first[1]].place or first[1]}")
            if row.speaker is not None and speakers.setdefault(row.speaker, found.split) != found.split:
                crossing[row.speaker].add(found.split)
    for part, found in enumerate(findings.parts if crossing else ()):
        for number, row in enumerate(found.rows):
            if (
                others := crossing.get(row.speaker, set()) | {speakers.get(row.speaker)}
                if row.speaker in crossing
                else ()
            ):
                findings.add("shared-speaker", part, number, f"{row.speaker[:40]}: in {', '.join(sorted(others))}")


def said(text: str) -> str:
    """What a text says, whatever its capitals, punctuation and normal form."""
    return clean_text(text[:MOST_READ].casefold(), remove_punctuation=True)


def _note_twin(findings: Findings, first: tuple[int, int], second: tuple[int, int], *, by: str) -> None:
    """Two rows with one sound: what that means depends on their splits and texts."""
    rows = [findings.parts[part].rows[number] for part, number in (first, second)]
    splits = [findings.parts[part].split for part, _ in (first, second)]
    named = [f"{by} as {row.name if by != 'the same file' else row.place or row.name}" for row in reversed(rows)]
    if said(rows[0].text) != said(rows[1].text):
        for place, name, other in zip((first, second), named, reversed(rows), strict=True):
            findings.add("two-texts", *place, f"{name}, which has: {other.text[:80]}")
    if splits[0] != splits[1]:
        for place, name in zip((first, second), named, strict=True):
            findings.add("shared-audio", *place, name)
    elif said(rows[0].text) == said(rows[1].text):
        findings.add("duplicate-row" if by == SAME_FILE else "duplicate-audio", *second, named[1])


def look_at_copies(findings: Findings, measures: Sequence[dict[int, Measures]]) -> None:
    """Find sounds that are there twice in other files, by their samples; not among silent ones, which are all alike.

    Args:
        findings: takes what is found.
        measures: part -> row -> measures.
    """
    seen: dict[bytes, tuple[int, int]] = {}
    for part, known in enumerate(measures):
        for number, one in known.items():
            first = seen.setdefault(one.digest, (part, number))
            rows = [findings.parts[p].rows[n] for p, n in (first, (part, number))]
            same_file = len({(row.audio, row.start_s, row.end_s) for row in rows}) == 1
            if first != (part, number) and one.loud_db >= SILENT_DB and not same_file:
                _note_twin(findings, first, (part, number), by="the same sound")
