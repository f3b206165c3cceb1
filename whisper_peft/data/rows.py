"""A clip as its source names it; the fingerprint of many, and their parting into training and evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from whisper_peft.errors import UserError

_MAX_HELD_OUT = 500


class Packed(Protocol):
    """A sound file inside another file, as in a Parquet file; read when it is needed, never before."""

    name: str  # of the file around it and its place there, stable: for messages and fingerprints

    def read(self) -> str | bytes:
        """The contents of the sound file, or the path of one that is only named there."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech within an example: its text, and where it starts and ends in seconds."""

    text: str
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One clip as its source names it."""

    audio: str | bytes | Packed  # absolute path, the contents of the file, or where they are packed
    text: str
    language: str | None = None  # Whisper's code
    start_s: float = 0.0
    end_s: float | None = None
    no_speech: bool = False
    speaker: str | None = None
    place: str = ""  # "metadata.csv:12", where the row was read, for messages
    segments: tuple[Segment, ...] = ()  # the text in parts, with times from start_s on, where they are known
    prompt: str = ""  # what was said before; never learnt
    # The window of a clip that is cut from a recording ends inside the segment behind it. Who learns the clip with its
    # times hears up to here, and learns when that segment begins.
    window_end_s: float | None = None  # in the file
    next_start_s: float | None = None  # from start_s on
    unknown_language: str | None = None  # what the row says, where Whisper knows no such language
    stated_s: float | None = None  # how long the table says that the clip is; only held against the file
    fault: str = ""  # why the row cannot be used, where that was seen as it was read
    is_recording: bool = False  # a whole recording with its segments, of any length; it is cut before it is learnt

    @property
    def name(self) -> str:
        """The sound file, for messages and lists."""
        return self.audio if isinstance(self.audio, str) else getattr(self.audio, "name", "bytes")

    def sound(self) -> str | bytes:
        """What `load_audio` takes: a path, or the contents of the file."""
        return self.audio if isinstance(self.audio, (str, bytes)) else self.audio.read()


def spoken_in(row: Row, code: str | None) -> Row:
    """Give the row, in its source's language where it names none itself."""
    return row if row.language or row.unknown_language or code is None else dataclasses.replace(row, language=code)


def fingerprint(rows: Iterable[Row], *, with_places: bool = False) -> str:
    """Compute the SHA-256 over (file, start_s, end_s, text) of the rows of a source, in their order.

    No file is touched. A file counts by its path below the folder that all of them share, so a source that has moved
    as a whole has the same fingerprint, and two files of one name in two folders are two files.

    Args:
        rows: As they were read.
        with_places: Whether whole paths count, as in the runs of earlier versions.
    """
    listed = list(rows)
    shared = "" if with_places else _shared_folder(listed)
    digest = hashlib.sha256()
    for row in listed:
        audio = hashlib.sha256(row.audio).hexdigest() if isinstance(row.audio, bytes) else row.name
        if shared and _is_placed(row):
            audio = os.path.relpath(_path_of(row), shared)
        fields = f"{audio}\0{row.start_s!r}\0{row.end_s!r}\0{len(row.text)}\0{row.text}\n"
        digest.update(fields.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_fingerprint(rows: Sequence[Row], counts: Sequence[int]) -> str:
    """Compute the fingerprint of a split whose rows are of several sources, each of which may have moved.

    Args:
        rows: Of all sources, one source after the other.
        counts: Number of rows of each source.
    """
    found, first = [], 0
    for count in counts:
        found.append(fingerprint(rows[first : first + count]))
        first += count
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _is_placed(row: Row) -> bool:
    return not isinstance(row.audio, bytes) and os.path.isabs(row.name)


def _path_of(row: Row) -> str:
    """The file of a row; a sound packed in another file is taken for a file below that one."""
    if isinstance(row.audio, str):
        return row.name
    head, mark, number = row.name.rpartition("#")
    return f"{head}/#{number}" if mark else row.name


def _shared_folder(rows: Sequence[Row]) -> str:
    folders = {os.path.dirname(_path_of(row)) for row in rows if _is_placed(row)}
    return os.path.commonpath(folders) if folders else ""


def hold_out(rows: list[Row], *, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold a seeded tenth of the rows out of training, at most 500.

    Where every row names its speaker, and there are two at least, it is whole speakers, who are in no other row; their
    clips with a text of the training rows are on neither side, unless too few would remain because everybody reads the
    same. Otherwise it is clips, and a text is never on both sides.

    Returns:
        (train, held out), each in the order of `rows`.

    Raises:
        UserError: The rows cannot be parted, because there is one only, or all say the same.
    """
    by_speaker = all(row.speaker for row in rows) and len({row.speaker for row in rows}) > 1
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[row.speaker if by_speaker else (_spoken(row) or index)].append(index)
    if len(groups) < 2:
        raise UserError(
            f"data.train: {len(rows)} clip(s) with one text cannot be parted into training and evaluation; name --eval."
        )
    wanted = min(_MAX_HELD_OUT, max(1, round(len(rows) / 10)))
    chance = random.Random(seed)
    order = list(groups.values())
    chance.shuffle(order)
    chosen: list[int] = []
    left = []
    for group in order:
        fits = len(chosen) + len(group) <= wanted
        (chosen.extend if fits else left.append)(group)
    if 2 * len(chosen) < wanted and len(left) > 1:
        chosen += min(left, key=len)  # more than a tenth, but training can keep no part of a speaker anyway
    training = set(range(len(rows))).difference(chosen)
    if by_speaker:
        texts = {_spoken(rows[index]) for index in training} - {""}
        unheard = [index for index in chosen if _spoken(rows[index]) not in texts]
        chosen = unheard if 2 * len(unheard) >= wanted else chosen
    chosen = sorted(chance.sample(chosen, min(_MAX_HELD_OUT, len(chosen))))
    return [rows[index] for index in sorted(training)], [rows[index] for index in chosen]


def _spoken(row: Row) -> str:
    return " ".join(row.text.split()).casefold()
