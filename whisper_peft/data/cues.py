"""The cues of .srt and .vtt files: their times and their lines, without the markup of the formats."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whisper_peft.data.text import split_words
from whisper_peft.errors import UserError
from whisper_peft.files import short_repr

# 115 days, in seconds. A later time is a mistake, not a place in a recording.
MOST_S = 10_000_000.0
_ARROW = "-->"
# Hours, minutes, seconds and their fraction.
_CLOCK = re.compile(r"(?:(\d{1,5}):)?(\d{1,3}):(\d{1,2})(?:[.,](\d{1,9}))?")
# Text of these characters alone is a broken time, not something that was said.
_LIKE_A_CLOCK = re.compile(r"[-\d:.,\s]*")
# Two times with something else than an arrow between them, such as "->".
_BROKEN_ARROW = re.compile(r"\s*\d{1,5}:\d\d:\d\d[.,]\d{1,9}\s*[^\w\s]{1,3}\s*\d{1,5}:\d\d:\d\d[.,]\d{1,9}(?:\s.*)?")
# Blocks of a .vtt that hold no speech. Players that save streams write WEBVTT again before each part.
_NO_SPEECH_BLOCK = re.compile(r"(NOTE|WEBVTT)(\s.*)?|(STYLE|REGION)\s*")
_TAG = re.compile(r"(<[^<>]*>)")
# A mark within the text that says when the next word begins.
_WORD_TIME = re.compile(r"<(?:\d{1,5}:)?\d{1,3}:\d{1,2}[.,]\d{1,9}>")
# In .vtt everything in angle brackets that begins with a letter or a slash is markup. In .srt only these names are:
# anything else, such as "<laughs>", was typed by a person.
_VTT_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|</>")
_SRT_MARKUP = re.compile(r"</?(?:b|br|c|font|i|lang|p|rt|ruby|s|span|strong|em|u|v)(?:[\s./][^<>]*)?/?>", re.IGNORECASE)
# Ruby text is the reading that is printed small above a word.
_RUBY_TEXT_BEGINS = re.compile(r"<rt\b", re.IGNORECASE)
_RUBY_TEXT_ENDS = re.compile(r"</rt\b|</ruby\b|<ruby\b", re.IGNORECASE)
_LINE_BREAK_TAG = re.compile(r"<br\b", re.IGNORECASE)
# Most lines have none of these characters, and need no further look.
_MAY_BE_MARKUP = re.compile(r"[<&{\\]")
# Positions and styles of SubStation Alpha and MicroDVD, which players obey in other formats, too: {\an8}, {y:i}.
_BRACES = re.compile(r"\{\\[^{}]*\}|\{[A-Za-z]:[^{}]{0,40}\}")
_ESCAPED_BREAK = re.compile(r"\\[Nh]")
_HTML_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
# Direction marks and zero-width spaces, which caption programs put at the ends of lines to place them.
_PADDING = " \u200b\u200e\u200f\ufeff"


@dataclass(frozen=True)
class Line:
    """A line of a cue, without markup."""

    text: str
    # The number of words (see `split_words`) before the first time mark. None: the line has no marks.
    n_unmarked: int | None = None
    # The time of the first word, if the line begins with a mark.
    start_s: float | None = None


@dataclass(frozen=True)
class CaptionCue:
    """The lines that a caption file shows from one time to another."""

    start_s: float
    end_s: float
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """Return all lines as one."""
        return " ".join(line.text for line in self.lines)


def read_cues(path: Path, page: str) -> list[CaptionCue]:
    """Read the cues of a caption file that have text.

    Args:
        path: The file, for messages and its suffix.
        page: The content of the file. If it begins with WEBVTT, it is read as .vtt whatever the suffix is.

    Returns:
        The cues in the order of the file.

    Raises:
        UserError: A cue has no proper times. The message names its line.

    Example:
        >>> read_cues(Path("talk.srt"), "1\\n00:00:01,000 --> 00:00:02,500\\n<i>Good</i> morning.\\n")
        [CaptionCue(start_s=1.0, end_s=2.5, lines=(Line(text='Good morning.', n_unmarked=None, start_s=None),))]
    """
    lines = page.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_vtt = page.startswith("WEBVTT") or path.suffix.lower() == ".vtt"
    cues = []
    for start_s, end_s, payload in _split_at_times(path, lines, is_vtt):
        plain = [_remove_markup(line, is_vtt) for line in payload]
        with_text = tuple(line for line in plain if line.text)
        if with_text:
            cues.append(CaptionCue(start_s, end_s, with_text))
    return cues


def _split_at_times(path: Path, lines: list[str], is_vtt: bool) -> Iterator[tuple[float, float, list[str]]]:
    """Split a page at its lines of times.

    A blank line does not end a cue, although the standard of .vtt says so: video sites pad their cues with blank
    lines, and people who type captions by hand leave some, too.

    Yields:
        Start and end in seconds, and the lines of the text, which may be blank.
    """
    times: tuple[float, float] | None = None
    # The lines since the last line of times.
    payload: list[str] = []
    n_cues = 0
    # True within a block that holds no speech, such as a note. A blank line ends it.
    is_skipped = False
    # True if an earlier cue had a number.
    is_numbered = False
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise UserError(f"{path}:{number}: NUL bytes in it: not UTF-8, or damaged; save it as UTF-8.")
        next_times = _read_times(line, f"{path}:{number}: cue {n_cues + 1}", _expects_times(payload, n_cues))
        if next_times is None:
            begins_block = payload[-1] == "" if payload else n_cues == 0
            if is_vtt and begins_block and _NO_SPEECH_BLOCK.fullmatch(line):
                is_skipped = True
            elif line == "":
                is_skipped = False
            if not is_skipped:
                payload.append(line)
            continue
        if _drop_name(payload, is_vtt, is_numbered, n_cues):
            is_numbered = True
        if times is not None:
            yield (*times, payload)
        times = next_times
        payload = []
        is_skipped = False
        n_cues += 1
    _refuse_broken_end(path, payload, n_cues)
    if times is not None:
        yield (*times, payload)


def _refuse_broken_end(path: Path, payload: list[str], n_cues: int) -> None:
    """Refuse a file that ends within a line of times: the part of that line would become text.

    Args:
        path: The file, for the message.
        payload: The lines after the last line of times.
        n_cues: The number of cues before the end.

    Raises:
        UserError: After a blank line and perhaps a number, the file ends with a part of a line of times.
    """
    last = payload[-1].strip() if payload else ""
    # "12:30" alone may be what somebody said.
    is_clock = _LIKE_A_CLOCK.fullmatch(last.rstrip(">")) and re.search(r"\d:\d\d[:.,]", last)
    if is_clock and _expects_times(payload[:-1], n_cues):
        raise UserError(
            f"{path}: it breaks off in the times of cue {n_cues + 1}, {_quote(last)}; copy or download it again."
        )


def _expects_times(before: list[str], n_cues: int) -> bool:
    """Tell whether a line of times is expected after these lines: after a blank line, or after its number."""
    if not before:
        return n_cues == 0
    if not before[-1].strip():
        return True
    return before[-1].strip().isdecimal() and (len(before) == 1 or not before[-2].strip())


def _read_times(line: str, place: str, is_expected: bool) -> tuple[float, float] | None:
    """Read a line of times; None if it is a line of text.

    Args:
        line: The line.
        place: Where the line stands, for messages.
        is_expected: If True, a line of times is expected here, so a line with an arrow and without times is refused.
            Otherwise it is text, unless a broken time stands before the arrow.

    Raises:
        UserError: It is a line of times, but they are no times.
    """
    left, arrow, right = line.partition(_ARROW)
    if not arrow:
        if _BROKEN_ARROW.fullmatch(line):
            raise UserError(f"{place}: {_quote(line)} has no arrow (-->) between its times; mend it.")
        return None
    start_s = parse_clock(left)
    # Settings may follow the end time, such as "align:start position:0%".
    stated = right.split(maxsplit=1)[:1]
    end_s = parse_clock(stated[0]) if stated else None
    if start_s is not None and end_s is not None:
        if max(start_s, end_s) > MOST_S:
            raise UserError(f"{place}: {_quote(line)} is beyond any recording (over 115 days); mend its times.")
        if end_s < start_s:
            raise UserError(f"{place}: {_quote(line)} ends before it starts; mend its times.")
        return start_s, end_s
    if is_expected or (left.strip() and _LIKE_A_CLOCK.fullmatch(left)):
        raise UserError(f"{place}: {_quote(line)} has no proper times; expected 00:00:01,000 --> 00:00:02,500.")
    return None


def _quote(line: str) -> str:
    return short_repr(line.strip())


def parse_clock(clock: str) -> float | None:
    """Read a time as hours:minutes:seconds.fraction, in seconds; None if it is no such time.

    Hours and fraction may be missing.

    Example:
        >>> parse_clock("01:02:03,500"), parse_clock("02:03"), parse_clock("soon")
        (3723.5, 123.0, None)
    """
    match = _CLOCK.fullmatch("".join(clock.split()))
    if match is None:
        return None
    hours, minutes, seconds, fraction = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction or 0}")


def _drop_name(payload: list[str], is_vtt: bool, is_numbered: bool, n_cues: int) -> bool:
    """Drop the number or the name of the next cue from the end of the lines before its times.

    Args:
        payload: The lines before the times; changed in place.
        is_vtt: If True, a name may be any text; otherwise only a number is a name.
        is_numbered: If True, an earlier cue had a number.
        n_cues: The number of cues before this one.

    Returns:
        True if there was a number.
    """
    last = len(payload) - 1
    while last >= 0 and not payload[last].strip():
        last -= 1
    if last < 0:
        return False
    name = payload[last].strip()
    is_adjacent = last == len(payload) - 1
    stands_alone = not payload[last - 1].strip() if last else n_cues == 0
    if is_adjacent and stands_alone:
        is_name = is_vtt or name.isdecimal()
    elif is_adjacent:
        is_name = is_numbered and name.isdecimal()
    else:
        # Some programs put a blank line after every line.
        is_name = stands_alone and name == str(n_cues + 1) and (is_numbered or n_cues == 0)
    if is_name:
        del payload[last:]
    return is_name and name.isdecimal()


def _remove_markup(line: str, is_vtt: bool) -> Line:
    """Take all markup out of a line of a cue, and keep what its time marks say."""
    if not _MAY_BE_MARKUP.search(line):
        return Line(" ".join(line.split()).strip(_PADDING))
    markup = _VTT_MARKUP if is_vtt else _SRT_MARKUP
    pieces: list[str] = []
    n_unmarked: int | None = None
    start_s: float | None = None
    is_ruby_text = False
    for piece in _TAG.split(line):
        if _WORD_TIME.fullmatch(piece):
            if n_unmarked is None:
                n_unmarked = len(split_words("".join(pieces)))
                if n_unmarked == 0:
                    start_s = parse_clock(piece[1:-1])
        elif piece.startswith("<") and markup.fullmatch(piece):
            if _RUBY_TEXT_BEGINS.match(piece):
                is_ruby_text = True
            elif _RUBY_TEXT_ENDS.match(piece):
                is_ruby_text = False
            elif _LINE_BREAK_TAG.match(piece):
                pieces.append(" ")
        elif not is_ruby_text:
            # Ruby text is left out, because nobody says the word a second time.
            pieces.append(piece)
    text = _ESCAPED_BREAK.sub(" ", _BRACES.sub("", "".join(pieces)))
    # Video sites escape twice: they write "'" as "&amp;#39;".
    for _ in range(2):
        text = _HTML_ENTITY.sub(_unescape, text)
    return Line(" ".join(text.split()).strip(_PADDING), n_unmarked, start_s)


def _unescape(match: re.Match[str]) -> str:
    return html.unescape(match[0])
