"""Find what is there twice: rows, sounds, sentences and speakers, inside a split or in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from whisper_peft.checking.findings import MOST_READ, Findings, Place
from whisper_peft.checking.sound_measures import SILENT_DB, Measures
from whisper_peft.data.rows import Row
from whisper_peft.data.text import clean_text

_SAME_FILE = "the same file"
_SAME_SOUND = "the same sound"


def look_for_duplicates(findings: Findings) -> None:
    """Find rows, sentences and speakers that are there twice, inside a split or in two splits."""
    _look_for_same_files(findings)
    _look_for_same_sentences(findings)
    _look_for_shared_speakers(findings)


def _look_for_same_files(findings: Findings) -> None:
    first_places: dict[Any, Place] = {}
    for source, listed in enumerate(findings.sources):
        for number, row in enumerate(listed.rows):
            place = (source, number)
            first = first_places.setdefault(_piece_of(row), place)
            if first != place:
                _note_same_sound(findings, first, place, by=_SAME_FILE)


def _piece_of(row: Row) -> tuple:
    """Return what is the same for two rows that are the same piece of the same file."""
    return (row.audio, row.start_s, row.end_s)


def _look_for_same_sentences(findings: Findings) -> None:
    first_places: dict[str, Place] = {}
    for source, listed in enumerate(findings.sources):
        for number, row in enumerate(listed.rows):
            sentence = spoken_words(row.text)
            place = (source, number)
            first = first_places.setdefault(sentence, place)
            if not sentence or first == place:
                continue
            other = findings.sources[first[0]]
            if other.split != listed.split:
                findings.add("shared-text", *place, f"in {other.split}, too")
                findings.add("shared-text", *first, f"in {listed.split}, too")
            else:
                findings.add("duplicate-text", *place, f"as {other.rows[first[1]].place or first[1]}")


def _look_for_shared_speakers(findings: Findings) -> None:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for listed in findings.sources:
        for row in listed.rows:
            if row.speaker is not None:
                splits[row.speaker].add(listed.split)
    for source, listed in enumerate(findings.sources):
        for number, row in enumerate(listed.rows):
            if row.speaker is not None and len(splits[row.speaker]) > 1:
                detail = f"{row.speaker[:40]}: in {', '.join(sorted(splits[row.speaker]))}"
                findings.add("shared-speaker", source, number, detail)


def spoken_words(text: str) -> str:
    """Return what a text says, without capitals and punctuation, in one normal form.

    Example:
        >>> spoken_words("Hello, world!") == spoken_words("hello world")
        True
    """
    return clean_text(text[:MOST_READ].casefold(), remove_punctuation=True)


def _note_same_sound(findings: Findings, first: Place, second: Place, *, by: str) -> None:
    """Note two rows with the same sound. What that means depends on their splits and texts."""
    first_row = findings.sources[first[0]].rows[first[1]]
    second_row = findings.sources[second[0]].rows[second[1]]
    like_first = f"{by} as {_name_twin(first_row, by)}"
    like_second = f"{by} as {_name_twin(second_row, by)}"
    is_same_text = spoken_words(first_row.text) == spoken_words(second_row.text)
    if not is_same_text:
        findings.add("two-texts", *first, f"{like_second}, which has: {second_row.text[:80]}")
        findings.add("two-texts", *second, f"{like_first}, which has: {first_row.text[:80]}")
    if findings.sources[first[0]].split != findings.sources[second[0]].split:
        findings.add("shared-audio", *first, like_second)
        findings.add("shared-audio", *second, like_first)
    elif is_same_text:
        kind = "duplicate-row" if by == _SAME_FILE else "duplicate-audio"
        findings.add(kind, *second, like_first)


def _name_twin(row: Row, by: str) -> str:
    """Name a row so that it can be told from one with the same sound: rows of one file by their place."""
    if by == _SAME_FILE and row.place:
        return row.place
    return row.name


def look_for_copies(findings: Findings, measures: Sequence[dict[int, Measures]]) -> None:
    """Find sounds that are there twice in different files, by their samples. Silent sounds are all alike, and left out.

    Args:
        findings: Takes what is found.
        measures: For each source, what was measured by the number of the row.
    """
    first_places: dict[bytes, Place] = {}
    for source, measured in enumerate(measures):
        for number, measure in measured.items():
            place = (source, number)
            first = first_places.setdefault(measure.digest, place)
            first_row = findings.sources[first[0]].rows[first[1]]
            row = findings.sources[source].rows[number]
            is_same_file = _piece_of(first_row) == _piece_of(row)
            if first != place and measure.loud_db >= SILENT_DB and not is_same_file:
                _note_same_sound(findings, first, place, by=_SAME_SOUND)
