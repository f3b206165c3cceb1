"""A transcript as a file: plain text, subtitles (srt, vtt), a table (tsv), or JSON in openai-whisper's shape."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.errors import UserError
from whisper_peft.evaluation.subtitle_cues import make_cues
from whisper_peft.files import printable, printable_json

FORMATS = ("txt", "srt", "vtt", "tsv", "json")
WITH_TIMES = ("srt", "vtt", "tsv", "json")  # all but plain text
ALL = "all"
REMEDY = "name another --output, or delete it to make it again"

# What players of .srt take for markup, although the format knows none: <i>, </font>, {\an8}, {y:i}.
_SRT_TAG = re.compile(r"<(?=[A-Za-z/!?])")
# pysubs2 reads \N, \n and \h in a text as a line break or a space.
_BACKSLASH = "\ue000"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def parse_formats(named: Iterable[str]) -> tuple[str, ...]:
    """Read names of formats, each also a list with commas, in the order of `FORMATS`.

    Raises:
        UserError: There is no format of a name, or none is named.

    Example:
        >>> parse_formats(["vtt,txt"])
        ('txt', 'vtt')
    """
    words = [word.strip().lower() for text in named for word in text.split(",")]
    for word in words:
        if word not in (*FORMATS, ALL):
            raise UserError(f"--format {word or repr(word)}: expected {', '.join(FORMATS)} or {ALL}.")
    if not words:
        raise UserError(f"--format: names no format; expected {', '.join(FORMATS)} or {ALL}.")
    return tuple(name for name in FORMATS if name in words or ALL in words)


def render(transcript: dict, format: str) -> str:
    """Write a transcript in one of the formats.

    Args:
        transcript: `text`, `language`, and for all formats but txt `segments`, as `transcribe` gives them.
        format: One of `FORMATS`.

    Returns:
        The whole content of the file. It ends in a line break.
    """
    if format == "txt":
        return printable(transcript["text"], keep_line_breaks=True) + "\n"
    if format == "tsv":
        return _table(transcript["segments"])
    if format == "json":
        return _json(transcript)
    return _subtitles(transcript["segments"], format)


def _table(segments: Sequence[dict]) -> str:
    """A table as openai-whisper writes it: milliseconds, and text without tabs."""
    lines = ["start\tend\ttext"]
    for segment in segments:
        text = printable(" ".join(segment["text"].split()))
        lines.append(f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t{text}")
    return "\n".join(lines) + "\n"


def _json(transcript: dict) -> str:
    segments = []
    for number, segment in enumerate(transcript["segments"]):
        record = {"id": number, "start": segment["start"], "end": segment["end"], "text": segment["text"]}
        if "words" in segment:
            record["words"] = segment["words"]
        segments.append(record)
    content = {"text": transcript["text"], "segments": segments, "language": transcript.get("language")}
    return printable_json(json.dumps(content, ensure_ascii=False, indent=2)) + "\n"


def _subtitles(segments: Sequence[dict], format: str) -> str:
    import pysubs2

    page = pysubs2.SSAFile()
    for cue in make_cues(segments):
        text = r"\N".join(_plain(line, format) for line in cue.lines)
        page.append(pysubs2.SSAEvent(start=round(1000 * cue.start_s), end=round(1000 * cue.end_s), text=text))
    # Its tags in braces are not ours: what stands in braces was said.
    written = page.to_string(format, keep_ssa_tags=True, apply_styles=False)
    return written.replace(_BACKSLASH, "\\")


def _plain(line: str, format: str) -> str:
    """A line of which a player shows every character, and obeys none."""
    line = _CONTROL.sub("", line).replace("\\", _BACKSLASH)
    if format == "vtt":
        return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # .srt has no escapes: the same signs in full width, which no player takes for markup.
    line = _SRT_TAG.sub("\uff1c", line)
    line = re.sub(r"\{(?=" + _BACKSLASH + r"|[A-Za-z]:)", "\uff5b", line)
    return line.replace("-->", "--\uff1e")


def output_names(recordings: Sequence[tuple[str, str]]) -> list[str]:
    """Name the output of each recording after it, so that no two have the same.

    Args:
        recordings: Path of each recording, and its place below the folder that the user named (its file name where the
            user named the file itself).

    Returns:
        For each, the place of its outputs below the output folder, without the format's suffix. Recordings of one
        folder that differ only in their suffix keep it. Recordings of the same place below different folders get the
        names of as many folders above it as tell them apart.

    Example:
        >>> output_names([("a/talk.wav", "talk.wav"), ("b/talk.wav", "talk.wav"), ("b/end.mp3", "end.mp3")])
        ['a/talk', 'b/talk', 'end']
    """
    places = [_without_suffix(place) for _, place in recordings]
    folded = [place.casefold() for place in places]  # some file systems take A and a for one name
    paths = [Path(path).absolute() for path, _ in recordings]
    names = []
    for path, place, wanted in zip(paths, places, folded, strict=True):
        others = [other for other, name in zip(paths, folded, strict=True) if name == wanted and other != path]
        names.append(_apart(path, place, others))
    return _numbered(names, paths)


def _without_suffix(place: str) -> str:
    """A file's place without the suffix of its format; "talk.2024" has none."""
    stem, suffix = os.path.splitext(place)
    is_format = suffix[1:].isalnum() and len(suffix) <= 5 and any(letter.isalpha() for letter in suffix)
    return stem if is_format else place


def _apart(path: Path, place: str, others: list[Path]) -> str:
    """A place that tells a recording from others of the same one."""
    if not others:
        return place
    has_twin = any(other.parent == path.parent for other in others)
    n_parts = len(Path(place).parts)
    while n_parts < len(path.parts) - 1 and any(
        _tail(other, n_parts) == _tail(path, n_parts) and other.parent != path.parent for other in others
    ):
        n_parts += 1
    last = path.name if has_twin else os.path.basename(place)
    return str(Path(*path.parts[-n_parts:-1], last))


def _tail(path: Path, n_parts: int) -> tuple[str, ...]:
    parts = (*path.parts[-n_parts:-1], _without_suffix(path.name))
    return tuple(part.casefold() for part in parts)


def _numbered(names: list[str], paths: list[Path]) -> list[str]:
    """The names, with a number behind those that are taken already by a recording whose path comes before."""
    owners: dict[str, Path] = {}
    given: dict[Path, str] = {}
    for path, name in sorted(zip(paths, names, strict=True)):
        number = 1
        free = name
        while owners.get(free.casefold(), path) != path:
            number += 1
            free = f"{name}-{number}"
        owners[free.casefold()] = path
        given[path] = free
    return [given[path] for path in paths]


def output_paths(folder: Path, name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Find where a recording's outputs go, by format."""
    return {format: folder / f"{name}.{format}" for format in formats}


def write_transcript(transcript: dict, paths: dict[str, Path]) -> None:
    """Write a transcript in the formats that are not there yet; each file appears whole or not at all.

    Raises:
        UserError: A file cannot be made.
    """
    for format, path in paths.items():
        if path.exists():
            continue
        content = render(transcript, format)
        with runs.new_file(path, REMEDY) as part:
            part.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
