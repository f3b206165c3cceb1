"""Charts of a page: histograms as SVG, and tables of bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from whisper_peft.pages.templates import render
from whisper_peft.pages.text import escape_attribute, escape_text

_MOST_BINS = 24
# Values over this many times the 99th percentile share one bar. Otherwise the rest would have no shape.
_FAR_FROM_REST = 3.0

# Size of a histogram, in the units of its viewBox.
_WIDTH = 360
_HEIGHT = 150
# The edges of its plot, inside that: numbers stand to the left of it and below it.
_PLOT_LEFT = 36
_PLOT_RIGHT = 348
_PLOT_TOP = 14
_PLOT_BOTTOM = 128
_PLOT_HEIGHT = _PLOT_BOTTOM - _PLOT_TOP
# A bar has at least this height, so that one clip among thousands is still seen.
_LOWEST_BAR = 2.0


def count_in_bins(values: Iterable[float | None]) -> tuple[list[float], list[int], int]:
    """Count values in bins of one round width. Values that are None or not finite are not counted.

    Returns:
        The edges, one more than there are bins; the counts; and how many values lie beyond the last edge.

    Example:
        >>> count_in_bins([0.0, 1.0, 1.0, 2.0])[1][::10]
        [1, 2, 1]
    """
    ordered = np.sort(_keep_finite(values))
    if not len(ordered):
        return [0.0, 1.0], [0], 0
    usual = ordered[int(0.99 * (len(ordered) - 1))]
    n_beyond = 0
    if usual > 0:
        n_beyond = int((ordered > _FAR_FROM_REST * usual).sum())
    near = ordered[: len(ordered) - n_beyond]
    low = float(near[0])
    high = float(near[-1])
    # The axis starts at 0 where that costs less than half of its length.
    if 0 <= low <= high / 2:
        low = 0.0
    width = 1.0
    if high > low:
        width = _round_step(max(high - low, 1e-9 * abs(high)) / _MOST_BINS)
    first = math.floor(low / width)
    last = math.floor(high / width) + 1
    edges = [number * width for number in range(first, last + 1)]
    bins = np.clip(np.searchsorted(edges, near, side="right") - 1, 0, len(edges) - 2)
    return edges, np.bincount(bins, minlength=len(edges) - 1).tolist(), n_beyond


def _keep_finite(values: Iterable[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)


def _round_step(least: float, *, whole: bool = False) -> float:
    """Return the smallest round number that is at least `least`.

    Round numbers are 1, 2, 2.5 and 5 times a power of ten; with `whole` only those that are whole.
    """
    steps: tuple[float, ...] = (1, 2, 2.5, 5, 10)
    if whole:
        steps = (1, 2, 5, 10)
        power = 10.0 ** math.floor(math.log10(max(1.0, least)))
    else:
        power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in steps if step * power >= least * (1 - 1e-9))


def draw_histogram(values: Sequence[float | None], *, title: str, unit: str, limit: float | None = None) -> Markup:
    """Draw how many values lie where, and give their median and range in words.

    Args:
        values: The values. How many of them are None or not finite is said in words.
        title: What the values are.
        unit: Unit of the values.
        limit: A value that a line marks, if it lies within the picture.
    """
    known = _keep_finite(values)
    words = "nothing known"
    picture = Markup("")
    if len(known):
        low, middle, high = (_short_number(value) for value in (known.min(), np.median(known), known.max()))
        words = f"median {middle}, {low} to {high} {unit}"
        if len(known) < len(values):
            words += f"; {len(values) - len(known):,} not known"
        picture = _draw_bins(*count_in_bins(known), unit, limit, f"{title}: {words}")
    figure = Markup("<figure><figcaption><b>{}</b>{}</figcaption>{}</figure>")
    return figure.format(escape_text(title), escape_text(words), picture)


def _draw_bins(
    edges: list[float], counts: list[int], n_beyond: int, unit: str, limit: float | None, label: str
) -> Markup:
    """Draw what `count_in_bins` returns, with ticks on both axes."""
    heights = list(counts)
    if n_beyond:
        # An empty place separates the bar of the far values from the others.
        heights += [0, n_beyond]
    bar_width = (_PLOT_RIGHT - _PLOT_LEFT) / len(heights)
    x_per_unit = bar_width / (edges[1] - edges[0])
    parts = _draw_count_axis(max(heights))
    parts += _draw_bars_of_bins(edges, heights, bar_width, unit)
    for value in _ticks(edges[0], edges[-1], 5):
        x = _PLOT_LEFT + (value - edges[0]) * x_per_unit
        parts.append(f'<text x="{x:.1f}" y="{_PLOT_BOTTOM + 15}" text-anchor="middle">{_short_number(value)}</text>')
    if n_beyond:
        parts.append(f'<text x="{_PLOT_RIGHT}" y="{_PLOT_BOTTOM + 15}" text-anchor="end">more</text>')
    if limit is not None and edges[0] <= limit <= edges[-1]:
        x = _PLOT_LEFT + (limit - edges[0]) * x_per_unit
        line = f'<path class="limit" d="M{x:.1f} {_PLOT_TOP}V{_PLOT_BOTTOM}">'
        parts.append(f"{line}<title>{_short_number(limit)} {escape_attribute(unit)}</title></path>")
    parts.append(f'<path class="axis" d="M{_PLOT_LEFT} {_PLOT_BOTTOM}H{_PLOT_RIGHT}"/>')
    head = f'<svg role="img" aria-label="{escape_attribute(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _draw_count_axis(highest: int) -> list[str]:
    """Draw a line and a number for some round counts."""
    parts = []
    for count in _ticks(0, highest, 4, whole=True):
        y = _PLOT_BOTTOM - _PLOT_HEIGHT * count / highest
        parts.append(f'<path class="grid" d="M{_PLOT_LEFT} {y:.1f}H{_PLOT_RIGHT}"/>')
        parts.append(f'<text x="{_PLOT_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{count:,.0f}</text>')
    return parts


def _draw_bars_of_bins(edges: list[float], heights: list[int], bar_width: float, unit: str) -> list[str]:
    """Draw the bars. Each says what it stands for when the mouse is on it."""
    parts = []
    for number, count in enumerate(heights):
        if not count:
            continue
        kind = "bar"
        if number < len(edges) - 1:
            values = f"{_short_number(edges[number])} to {_short_number(edges[number + 1])}"
        else:
            kind = "far"
            values = f"over {_short_number(edges[-1])}"
        height = max(_LOWEST_BAR, _PLOT_HEIGHT * count / max(heights))
        place = f'x="{_PLOT_LEFT + number * bar_width + 0.5:.1f}" y="{_PLOT_BOTTOM - height:.1f}"'
        size = f'width="{max(1.0, bar_width - 1):.1f}" height="{height:.1f}"'
        title = f"<title>{values} {escape_attribute(unit)}: {count:,}</title>"
        parts.append(f'<rect class="{kind}" {place} {size}>{title}</rect>')
    return parts


def _ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return round values from low to high, about `most` of them."""
    step = _round_step((high - low) / most, whole=whole)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _short_number(value: float) -> str:
    """Write a number as a person reads it: 0.25, 3.9, 1,500."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def draw_bars(rows: Iterable[tuple[str, float, str]]) -> Markup:
    """Draw a table with a bar in each row.

    Args:
        rows: For each row the label, the share of the widest possible bar (0 to 1), and the value in words.
    """
    drawn = []
    for label, share, value in rows:
        percent = 100 * min(1.0, max(0.0, share))
        drawn.append((label, f"{percent:.2f}", value))
    return render("pages/bars.html.jinja", rows=drawn)
