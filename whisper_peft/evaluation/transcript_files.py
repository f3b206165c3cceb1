"""Write transcripts into files: plain text, subtitles (srt, vtt), tables (tsv), and JSON in openai-whisper's shape."""

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
# Formats that state times: all but plain text.
WITH_TIMES = ("srt", "vtt", "tsv", "json")
ALL = "all"
# Ends the message about a file that cannot be written.
REMEDY = "name another --output, or delete it to make it again"

# Players of .srt take <i>, </font>, {\an8} and {y:i} for markup, although the format knows none.
SRT_MARKUP = re.compile(r"<(?=[A-Za-z/!?])")
# pysubs2 reads \N, \n and \h in a text as a line break or a space, so this character stands for a backslash until the
# file is written.
_BACKSLASH = "\ue000"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def parse_formats(named: Iterable[str]) -> tuple[str, ...]:
    """Read names of formats.

    Args:
        named: Names; each may also be a list with commas, or "all".

    Returns:
        The formats, in the order of `FORMATS`.

    Raises:
        UserError: A name is unknown, or there is none.

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


def render_transcript(transcript: dict, format: str) -> str:
    """Write a transcript in one of the formats.

    Args:
        transcript: A transcript as `transcribe` returns it: `text`, `language`, and `segments` for all formats but txt.
        format: One of `FORMATS`.

    Returns:
        The whole content of the file. It ends in a line break.

    Example:
        >>> segments = [{"start": 0.5, "end": 2.0, "text": "Good morning."}]
        >>> print(render_transcript({"segments": segments}, "srt").rstrip())
        1
        00:00:00,500 --> 00:00:02,000
        Good morning.
    """
    if format == "txt":
        return printable(transcript["text"], keep_line_breaks=True) + "\n"
    if format == "tsv":
        return _table(transcript["segments"])
    if format == "json":
        return _json(transcript)
    return _subtitles(transcript["segments"], format)


def _table(segments: Sequence[dict]) -> str:
    """Write a table as openai-whisper does: times in milliseconds, and text without tabs."""
    lines = ["start\tend\ttext"]
    for segment in segments:
        text = printable(" ".join(segment["text"].split()))
        lines.append(f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}\t{text}")
    return "\n".join(lines) + "\n"


def _json(transcript: dict) -> str:
    """Write JSON as openai-whisper does."""
    segments = []
    for number, segment in enumerate(transcript["segments"]):
        record = {"id": number, "start": segment["start"], "end": segment["end"], "text": segment["text"]}
        if "words" in segment:
            record["words"] = segment["words"]
        segments.append(record)
    content = {"text": transcript["text"], "segments": segments, "language": transcript.get("language")}
    return printable_json(json.dumps(content, ensure_ascii=False, indent=2)) + "\n"


def _subtitles(segments: Sequence[dict], format: str) -> str:
    """Write subtitles as srt or vtt."""
    import pysubs2

    page = pysubs2.SSAFile()
    for cue in make_cues(segments):
        text = r"\N".join(_escape_markup(line, format) for line in cue.lines)
        page.append(pysubs2.SSAEvent(start=round(1000 * cue.start_s), end=round(1000 * cue.end_s), text=text))
    # pysubs2 would drop text in braces as its own tags. Here it was spoken, and stays.
    written = page.to_string(format, keep_ssa_tags=True, apply_styles=False)
    return written.replace(_BACKSLASH, "\\")


def _escape_markup(line: str, format: str) -> str:
    """Write a line so that a player shows every character, and takes none for markup."""
    line = _CONTROL.sub("", line).replace("\\", _BACKSLASH)
    if format == "vtt":
        return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # The format srt has no escapes. Write the same signs in full width, which no player takes for markup.
    line = SRT_MARKUP.sub("\uff1c", line)
    line = re.sub(r"\{(?=" + _BACKSLASH + r"|[A-Za-z]:)", "\uff5b", line)
    return line.replace("-->", "--\uff1e")


def output_names(recordings: Sequence[tuple[str, str]]) -> list[str]:
    """Name the outputs of each recording after it, so that no two recordings share a name.

    Args:
        recordings: For each recording, its path, and its place below the folder that the user named. The place is the
            file name if the user named the file itself.

    Returns:
        For each recording, the place of its outputs below the output folder, without the suffix of a format. Recordings
        of one folder that differ only in their suffix keep it. Recordings with the same place below different folders
        get as many folder names in front as are needed to tell them apart.

    Example:
        >>> output_names([("a/talk.wav", "talk.wav"), ("b/talk.wav", "talk.wav"), ("b/end.mp3", "end.mp3")])
        ['a/talk', 'b/talk', 'end']
    """
    places = [_without_suffix(place) for _, place in recordings]
    # Some file systems take A and a for the same name.
    folded = [place.casefold() for place in places]
    paths = [Path(path).absolute() for path, _ in recordings]
    names = []
    for path, place, wanted in zip(paths, places, folded, strict=True):
        namesakes = []
        for other, name in zip(paths, folded, strict=True):
            if name == wanted and other != path:
                namesakes.append(other)
        names.append(_tell_apart(path, place, namesakes))
    return _number_namesakes(names, paths)


def _without_suffix(place: str) -> str:
    """Return a file's place without the suffix of its format. The suffix of "talk.2024" is no format."""
    stem, suffix = os.path.splitext(place)
    is_format = suffix[1:].isalnum() and len(suffix) <= 5 and any(letter.isalpha() for letter in suffix)
    return stem if is_format else place


def _tell_apart(path: Path, place: str, namesakes: list[Path]) -> str:
    """Return a place that tells a recording from others with the same place."""
    if not namesakes:
        return place
    has_twin = any(other.parent == path.parent for other in namesakes)
    elsewhere = [other for other in namesakes if other.parent != path.parent]
    n_parts = len(Path(place).parts)
    while n_parts < len(path.parts) - 1 and any(_tail(other, n_parts) == _tail(path, n_parts) for other in elsewhere):
        n_parts += 1
    last = path.name if has_twin else os.path.basename(place)
    return str(Path(*path.parts[-n_parts:-1], last))


def _tail(path: Path, n_parts: int) -> tuple[str, ...]:
    """Return the last parts of a path, without suffix, as file systems that ignore case compare them."""
    parts = (*path.parts[-n_parts:-1], _without_suffix(path.name))
    return tuple(part.casefold() for part in parts)


def _number_namesakes(names: list[str], paths: list[Path]) -> list[str]:
    """Put a number behind each name that another recording, whose path sorts before, has taken already."""
    owners: dict[str, Path] = {}
    chosen: dict[Path, str] = {}
    for path, name in sorted(zip(paths, names, strict=True)):
        number = 1
        free = name
        while owners.get(free.casefold(), path) != path:
            number += 1
            free = f"{name}-{number}"
        owners[free.casefold()] = path
        chosen[path] = free
    return [chosen[path] for path in paths]


def output_paths(folder: Path, name: str, formats: Sequence[str]) -> dict[str, Path]:
    """Return the path of each output of a recording, by format."""
    return {format: folder / f"{name}.{format}" for format in formats}


def write_transcript(transcript: dict, paths: dict[str, Path]) -> None:
    """Write the files of a transcript that do not exist yet. Each file appears whole or not at all.

    Args:
        transcript: A transcript as `transcribe` returns it.
        paths: The path of each file, by format.

    Raises:
        UserError: A file cannot be made.
    """
    for format, path in paths.items():
        if path.exists():
            continue
        content = render_transcript(transcript, format)
        with runs.new_file(path, REMEDY) as part:
            part.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
