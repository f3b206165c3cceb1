"""The pieces of a self-contained HTML page: text, histogram, bars, player, and the frame around them.

A page is one file: nothing is loaded from elsewhere, no script runs, and its policy forbids both. What comes from data
(file names, transcripts) goes through `escaped`, and is text whatever it holds.
"""

from __future__ import annotations

import base64
import html
import io
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

# Inline styles, and sound and pictures that the page holds itself; all else is forbidden, scripts too.
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
)
MOST_SHOWN_CHARACTERS = 500  # characters of one transcript or name that are shown
LONGEST_SOUND_S = 30.0
_MOST_BINS = 24
_FAR = 3.0  # what lies beyond so many times the 99th percentile shares one bar, or the rest would have no shape
# Of the format characters, those with a part in spelling (the joiners) or a shape of their own (signs over numbers).
_SEEN = frozenset("\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _FLOOR = 360, 150, 36, 348, 14, 128  # of a histogram


def escaped(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> str:
    """Text as HTML: never markup; what cannot be seen is named; a long text is cut, and says so.

    For an element of its own, with `dir="auto"`; within a line take `isolated`.
    """
    # The names are isolated: their letters must not decide the direction of what is around them.
    parts = [
        f'<bdi class="unseen">{name}</bdi>' if (name := _unseen(character)) else html.escape(character)
        for character in text[:longest]
    ]
    if len(text) > longest:
        parts.append(f'<bdi class="unseen">… of {len(text):,} characters</bdi>')
    return "".join(parts)


def isolated(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> str:
    """Text as `escaped` gives it, within a line: its direction of writing is its own, and ends with it."""
    return f"<bdi>{escaped(text, longest)}</bdi>"


def path(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> str:
    """A path or another name as `isolated` gives it; a line breaks behind its slashes, where it must."""
    parts = [escaped(part) for part in text[:longest].split("/")]
    return f"<bdi>{'/<wbr>'.join(parts)}{'…' if len(text) > longest else ''}</bdi>"


def plain(text: str, longest: int = MOST_SHOWN_CHARACTERS) -> str:
    """Text for where no element can be, attributes and titles: what cannot be seen is named, a long text is cut."""
    return html.escape("".join(_unseen(character) or character for character in text[:longest]))


def _unseen(character: str) -> str | None:
    """What stands for a character that cannot be seen; None for one that can."""
    category, code = unicodedata.category(character), ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8, as Python holds it
        return f"\\x{code - 0xDC00:02x}"
    if category in ("Cc", "Cs", "Co", "Zl", "Zp") or (category == "Cf" and character not in _SEEN):
        return f"U+{code:04X}"
    return None


def player(wave: np.ndarray, label: str, *, of_s: float | None = None, sample_rate_hz: int = 16_000) -> str:
    """A player that has its sound with it, some 6 kB for a second of speech; of a long one the first 30 s.

    Args:
        wave: float32 (n_samples,), mono.
        label: what is heard, for those who do not see the page.
        of_s: seconds of the recording, if the wave is only the beginning of it.
        sample_rate_hz: of the wave.
    """
    kept = wave[: int(LONGEST_SOUND_S * sample_rate_hz)]
    kind, sound = _compressed(np.clip(np.nan_to_num(kept), -1.0, 1.0), sample_rate_hz)  # beyond, LAME may crash
    source = f"data:{kind};base64,{base64.b64encode(sound).decode('ascii')}"
    whole_s = max(of_s or 0.0, len(wave) / sample_rate_hz)
    cut = whole_s > LONGEST_SOUND_S and f'<span class="quiet">the first {LONGEST_SOUND_S:g} of {whole_s:,.1f} s</span>'
    return f'<audio controls preload="metadata" aria-label="{plain(label)}" src="{source}"></audio>{cut or ""}'


def _compressed(wave: np.ndarray, sample_rate_hz: int) -> tuple[str, bytes]:
    """MP3: every browser plays it, and libsndfile makes it ten times as fast as Opus. WAV if that was built without."""
    import soundfile

    file = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(file, wave, sample_rate_hz, format="MP3")
        return "audio/mpeg", file.getvalue()
    soundfile.write(file, wave, sample_rate_hz, format="WAV", subtype="PCM_16")
    return "audio/wav", file.getvalue()


def bins(values: Iterable[float | None]) -> tuple[list[float], list[int], int]:
    """Values counted in bins of one round width; what is not finite is not counted.

    Returns:
        The edges, one more than there are bins; the counts; and how many lie beyond the last edge, far from the rest.
    """
    ordered = np.sort(_finite(values))
    if not len(ordered):
        return [0.0, 1.0], [0], 0
    usual = ordered[int(0.99 * (len(ordered) - 1))]
    beyond = int((ordered > _FAR * usual).sum()) if usual > 0 else 0
    near = ordered[: len(ordered) - beyond]
    low, high = float(near[0]), float(near[-1])
    if 0 <= low <= high / 2:
        low = 0.0
    width = _round_step(max(high - low, 1e-9 * abs(high)) / _MOST_BINS) if high > low else 1.0
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = [number * width for number in range(first, last + 1)]
    places = np.clip(np.searchsorted(edges, near, side="right") - 1, 0, len(edges) - 2)
    return edges, np.bincount(places, minlength=len(edges) - 1).tolist(), beyond


def _finite(values: Iterable[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)


def _round_step(least: float, *, whole: bool = False) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below; of 1, 2 and 5, if it is to be whole."""
    power = 10.0 ** math.floor(math.log10(max(1.0, least) if whole else least))
    steps = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    return next(step * power for step in steps if step * power >= least * (1 - 1e-9))


def histogram(values: Sequence[float | None], *, title: str, unit: str, limit: float | None = None) -> str:
    """A figure: how many values lie where; their median and range in words.

    Args:
        values: what is counted; how many are None or not finite is said.
        title: what is counted.
        unit: of the values.
        limit: a value to be marked by a line, if it is within the picture.
    """
    known = _finite(values)
    words = "nothing known"
    if len(known):
        words = f"median {_short(np.median(known))}, {_short(known.min())} to {_short(known.max())} {unit}"
        words += f"; {len(values) - len(known):,} not known" if len(known) < len(values) else ""
    picture = _bars_svg(*bins(known), unit, limit, f"{title}: {words}") if len(known) else ""
    return f"<figure><figcaption><b>{escaped(title)}</b>{escaped(words)}</figcaption>{picture}</figure>"


def _bars_svg(edges: list[float], counts: list[int], beyond: int, unit: str, limit: float | None, label: str) -> str:
    """The picture of `bins`, with ticks on both axes; each bar says what it stands for when it is pointed at."""
    heights = [*counts, 0, beyond] if beyond else counts  # with a gap before what lies beyond
    step, highest = (_RIGHT - _LEFT) / len(heights), max(heights)
    per_unit = step / (edges[1] - edges[0])
    parts = []
    for count in _ticks(0, highest, 4, whole=True):
        y = _FLOOR - (_FLOOR - _TOP) * count / highest
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{count:,.0f}</text>')
    for number, count in enumerate(heights):
        far = number >= len(counts)
        where = f"over {_short(edges[-1])}" if far else f"{_short(edges[number])} to {_short(edges[number + 1])}"
        tall = max(2.0, (_FLOOR - _TOP) * count / highest) if count else 0.0  # one among thousands is still seen
        place = f'x="{_LEFT + number * step + 0.5:.1f}" y="{_FLOOR - tall:.1f}"'
        size = f'width="{max(1.0, step - 1):.1f}" height="{tall:.1f}"'
        title = f"<title>{where} {plain(unit)}: {count:,}</title>"
        parts.append(f'<rect class="{"far" if far else "bar"}" {place} {size}>{title}</rect>' if count else "")
    for value in _ticks(edges[0], edges[-1], 5):
        x = _LEFT + (value - edges[0]) * per_unit
        parts.append(f'<text x="{x:.1f}" y="{_FLOOR + 15}" text-anchor="middle">{_short(value)}</text>')
    if beyond:
        parts.append(f'<text x="{_RIGHT}" y="{_FLOOR + 15}" text-anchor="end">more</text>')
    if limit is not None and edges[0] <= limit <= edges[-1]:
        where = f"M{_LEFT + (limit - edges[0]) * per_unit:.1f} {_TOP}V{_FLOOR}"
        parts.append(f'<path class="limit" d="{where}"><title>{_short(limit)} {plain(unit)}</title></path>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_FLOOR}H{_RIGHT}"/>')
    return f'<svg role="img" aria-label="{plain(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values from low to high, about so many at most."""
    step = _round_step((high - low) / most, whole=whole)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """A number as a person reads it: 0.25, 3.9, 1,500."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A table with a bar in each row: label, share of the widest possible bar (0 to 1), the value in words."""
    lines = []
    for label, share, value in rows:
        bar = f'<rect class="bar" rx="2" width="{100 * min(1.0, max(0.0, share)):.2f}%" height="10"/>'
        picture = f'<td class="wide"><svg height="10" aria-hidden="true">{bar}</svg></td>'
        lines.append(
            f'<tr><th scope="row">{isolated(label)}</th>{picture}<td class="number">{escaped(value)}</td></tr>'
        )
    return f'<table class="bars">{"".join(lines)}</table>'


def frame(title: str, body: str) -> str:
    """The whole page around a body of HTML made of these pieces."""
    style = Path(__file__).with_name("pages.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{plain(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
