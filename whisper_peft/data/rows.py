"""A clip as its source names it, the fingerprint of many rows, and the rows that are held out for evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from whisper_peft.errors import UserError

# More clips would make each evaluation slow and its figure hardly more exact.
_MAX_HELD_OUT = 500


class Packed(Protocol):
    """A sound file inside another file, such as a Parquet file. It is read when it is needed, never before."""

    @property
    def name(self) -> str:
        """Return the outer file and the place in it. It never changes: messages and fingerprints contain it."""

    def read(self) -> str | bytes:
        """Return the contents of the sound file, or its path where the outer file only names it."""


@dataclass(frozen=True)
class Segment:
    """A part of a clip or a recording, with its text and its times in seconds."""

    text: str
    start_s: float = 0.0
    # Infinity stands for the end of the clip: then the text is that of the whole clip, and its times are not known.
    end_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Row:
    """One clip as its source names it."""

    # An absolute path, the contents of the file, or the place where it is packed.
    audio: str | bytes | Packed
    text: str
    # Whisper's code.
    language: str | None = None
    # Where the clip begins and ends in its file. None: it ends with the file.
    start_s: float = 0.0
    end_s: float | None = None
    no_speech: bool = False
    speaker: str | None = None
    # Where the row was read, for messages: "metadata.csv:12".
    place: str = ""
    # The text in parts, if their times are known. The times count from start_s.
    segments: tuple[Segment, ...] = ()
    # What was said before. The model reads it and never learns it.
    prompt: str = ""
    # The next two are set for a clip that was cut from a recording and whose window reaches into the next segment. If
    # such a clip is learnt with its times, the model hears it up to window_end_s, which is a time in the file, and
    # learns when the next segment begins: next_start_s counts from start_s.
    window_end_s: float | None = None
    next_start_s: float | None = None
    # The language as the row names it, if Whisper does not know it.
    unknown_language: str | None = None
    # The length that the table states for the clip. It is only compared with the length of the file.
    stated_s: float | None = None
    # Why the row cannot be used, if that was seen when it was read.
    fault: str = ""
    # True for a whole recording with its segments, of any length. It is cut before it is learnt.
    is_recording: bool = False

    @property
    def name(self) -> str:
        """Return the name of the sound file, for messages and lists."""
        if isinstance(self.audio, str):
            return self.audio
        return getattr(self.audio, "name", "bytes")

    def sound(self) -> str | bytes:
        """Return what `load_audio` takes: a path, or the contents of the file."""
        if isinstance(self.audio, (str, bytes)):
            return self.audio
        return self.audio.read()


def fill_in_language(row: Row, code: str | None) -> Row:
    """Return the row in the language of its source, unless the row names a language itself.

    Args:
        row: A row of the source.
        code: Whisper's code for the language of the source. None: the row stays as it is.
    """
    if row.language or row.unknown_language or code is None:
        return row
    return dataclasses.replace(row, language=code)


def fingerprint(rows: Iterable[Row], *, with_places: bool = False) -> str:
    """Compute the SHA-256 over (file, start_s, end_s, text) of the rows of a source, in their order.

    No file is touched. A file counts by its path below the folder that all files share. So a source that has moved
    as a whole keeps its fingerprint, and two files with the same name in two folders count as two files.

    Args:
        rows: The rows as they were read.
        with_places: If True, whole paths count. Runs of earlier versions did so.
    """
    listed = list(rows)
    shared = "" if with_places else _shared_folder(listed)
    digest = hashlib.sha256()
    for row in listed:
        audio = row.name
        if isinstance(row.audio, bytes):
            audio = hashlib.sha256(row.audio).hexdigest()
        elif shared and _has_absolute_path(row):
            audio = os.path.relpath(_path_of(row), shared)
        fields = f"{audio}\0{row.start_s!r}\0{row.end_s!r}\0{len(row.text)}\0{row.text}\n"
        digest.update(fields.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_fingerprint(rows: Sequence[Row], counts: Sequence[int]) -> str:
    """Compute the fingerprint of a split whose rows come from several sources, each of which may have moved.

    Args:
        rows: The rows of all sources, one source after the other.
        counts: The number of rows of each source.
    """
    fingerprints = []
    first = 0
    for count in counts:
        fingerprints.append(fingerprint(rows[first : first + count]))
        first += count
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def _has_absolute_path(row: Row) -> bool:
    return not isinstance(row.audio, bytes) and os.path.isabs(row.name)


def _path_of(row: Row) -> str:
    """Return the path of a row's sound. A sound that is packed in a file counts as a file below that one."""
    if isinstance(row.audio, str):
        return row.name
    outer, mark, number = row.name.rpartition("#")
    if not mark:
        return row.name
    return f"{outer}/#{number}"


def _shared_folder(rows: Sequence[Row]) -> str:
    """Return the folder that all files of the rows share; an empty text if there is none."""
    folders = {os.path.dirname(_path_of(row)) for row in rows if _has_absolute_path(row)}
    return os.path.commonpath(folders) if folders else ""


def hold_out(rows: list[Row], *, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold a seeded tenth of the rows out of training, at most 500.

    If every row names its speaker and there are at least two speakers, whole speakers are held out. Their clips whose
    text is also a training text are on neither side, unless too few clips would remain because everybody reads the
    same text. Otherwise single clips are held out, and the same text is never on both sides.

    Args:
        rows: The training rows.
        seed: The seed of the random choice.

    Returns:
        (train, held out), each in the order of `rows`.

    Raises:
        UserError: The rows cannot be divided, because there is only one, or all have the same text.

    Example:
        >>> texts = ["yes", "no", "yes", "perhaps"]
        >>> rows = [Row(f"{number}.wav", text) for number, text in enumerate(texts)]
        >>> train, held_out = hold_out(rows, seed=1)
        >>> [row.text for row in train], [row.text for row in held_out]
        (['yes', 'yes', 'perhaps'], ['no'])
    """
    by_speaker = all(row.speaker for row in rows) and len({row.speaker for row in rows}) > 1
    groups = _group(rows, by_speaker)
    if len(groups) < 2:
        raise UserError(
            f"data.train: {len(rows)} clip(s) with one text cannot be divided into training and evaluation clips; name "
            "the evaluation data with --eval SRC."
        )
    wanted = min(_MAX_HELD_OUT, max(1, round(len(rows) / 10)))
    generator = random.Random(seed)
    generator.shuffle(groups)
    chosen = _choose_groups(groups, wanted)
    training = set(range(len(rows))).difference(chosen)
    if by_speaker:
        training_texts = {_comparable_text(rows[index]) for index in training} - {""}
        unheard = [index for index in chosen if _comparable_text(rows[index]) not in training_texts]
        if 2 * len(unheard) >= wanted:
            chosen = unheard
    held_out = sorted(generator.sample(chosen, min(_MAX_HELD_OUT, len(chosen))))
    return [rows[index] for index in sorted(training)], [rows[index] for index in held_out]


def _group(rows: Sequence[Row], by_speaker: bool) -> list[list[int]]:
    """Group the indices of rows that must be on the same side: those of one speaker, or of one text."""
    groups: defaultdict[str | int | None, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if by_speaker:
            groups[row.speaker].append(index)
        else:
            # Two rows without a text do not have the same text, so each is a group of its own.
            groups[_comparable_text(row) or index].append(index)
    return list(groups.values())


def _choose_groups(groups: Sequence[list[int]], wanted: int) -> list[int]:
    """Choose groups in their order while all of their rows fit into the wanted number."""
    chosen: list[int] = []
    left: list[list[int]] = []
    for group in groups:
        if len(chosen) + len(group) <= wanted:
            chosen += group
        else:
            left.append(group)
    if 2 * len(chosen) < wanted and len(left) > 1:
        # This takes more than a tenth, but no part of a group may stay in training anyway.
        smallest = min(left, key=len)
        chosen += smallest
    return chosen


def _comparable_text(row: Row) -> str:
    """Return the text in single spaces and without case, so that equal texts compare equal."""
    return " ".join(row.text.split()).casefold()
