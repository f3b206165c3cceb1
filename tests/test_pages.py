"""Pieces of a page: text stays text, pictures show the data, and nothing is loaded from the network."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import make_wave
from jinja2 import UndefinedError
from markupsafe import Markup

from whisper_peft.pages.charts import count_in_bins, draw_bars, draw_histogram
from whisper_peft.pages.player import make_player
from whisper_peft.pages.templates import TEMPLATES_ROOT, _environment, render
from whisper_peft.pages.text import (
    MOST_SHOWN_CHARACTERS,
    escape_text,
    isolate_text,
    show_path,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "</style></title></svg><iframe src=https://example.org>",
    "<!-- &lt;b&gt; &amp; ]]> <!DOCTYPE html>",
    "javascript:alert(1) {% raw %} ${7*7}",
)
VOID = frozenset({"meta", "link", "br", "img", "input", "hr", "wbr"})


class Parsed(HTMLParser):
    """The elements and texts of a page, which must be well nested."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = "".join(self.texts)

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> within {self._open}"
        self._open.pop()

    def handle_data(self, text):
        self.texts.append(text)

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def shape(self) -> list[tuple]:
        """Return the elements and the names of their attributes, without values."""
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


def assert_self_contained(page: str) -> Parsed:
    """Check that a page begins with its policy, has no script, and refers only to itself and to data that it holds."""
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.elements[:4]] == ["html", "head", "meta", "meta"]
    policy = parsed.elements[3][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; ") and "http" not in policy["content"]
    assert not {"script", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in parsed.elements}
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "poster", "action", "data", "style"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert style and "url(" not in style and "@import" not in style and "//" not in style
    return parsed


def frame(title: str, body: str) -> str:
    """Return a page: the base template with its title and its body filled in."""
    template = (
        '{% extends "pages/base.html.jinja" %}'
        "{% block title %}{{ title | escape_attribute }}{% endblock %}{% block main %}{{ body }}{% endblock %}"
    )
    return _environment().from_string(template).render(title=title, body=Markup(body))


def body_of(text: str) -> str:
    """Return every piece of a page, with this text wherever a text can be."""
    return "\n".join(
        (
            f'<p dir="auto">{escape_text(text)}</p>',
            isolate_text(text),
            show_path(text),
            draw_bars([(text, 0.5, text)]),
            draw_histogram([1.0, 2.0, 50.0], title=text, unit=text),
            make_player(make_wave(0.1), text),
        )
    )


POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
)


def test_every_page_has_the_policy_and_the_whole_style():
    page = frame("title", "")
    assert assert_self_contained(page).elements[3][1]["content"] == POLICY
    css = (TEMPLATES_ROOT / "pages" / "pages.css").read_text(encoding="utf-8")
    assert css in page.partition("<style>")[2].partition("</style>")[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_template_escapes_the_text_that_it_is_given(text):
    page = _environment().from_string('<p title="{{ text }}">{{ text }}</p>').render(text=text)
    [(tag, attributes)] = Parsed(page).elements
    assert (tag, attributes, Parsed(page).text) == ("p", {"title": text}, text)
    # A piece is Markup, so another template may include it without escaping it again.
    assert isinstance(render("pages/bars.html.jinja", rows=[(text, "1", text)]), Markup)


def test_a_misspelt_name_in_a_template_is_an_error():
    with pytest.raises(UndefinedError):
        render("pages/bars.html.jinja", row=[])


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_never_markup(text):
    hostile = assert_self_contained(frame(text, body_of(text)))
    # The slashes stay because a path may break at them.
    harmless = re.sub("[^/]", "a", text)
    assert hostile.shape() == Parsed(frame(harmless, body_of(harmless))).shape()
    # The text is also in the title of the page, and stands everywhere as it was typed.
    assert hostile.text.count(text) >= 7
    assert hostile.named("audio")[0]["aria-label"] == text


def test_characters_that_cannot_be_seen_are_named():
    text = "a\0b\u202ec\u200bd\ufeffe\ud800f\udce9g\ue000h\x85i\nj"
    page = frame(text, body_of(text))
    # Encoding would fail on half a character, as a broken file name gives it.
    page.encode("utf-8")
    assert not re.search("[\0\u202e\u200b\ufeff\ud800-\udfff\ue000\x85]", page.partition("<body>")[2])
    shown = Parsed(escape_text(text)).text
    assert shown == r"aU+0000bU+202EcU+200BdU+FEFFeU+D800f\xe9gU+E000hU+0085iU+000Aj"
    # Joiners and marks belong to the spelling.
    spelling = "ന്‍ क्‌ष می‌خواهم 👩‍🔧 \u0661 é"
    assert escape_text(spelling) == spelling


def test_the_name_of_an_invisible_character_does_not_decide_the_text_direction():
    # dir="auto" takes the direction of the first letter outside of <bdi>. The U of U+FEFF is inside of one.
    assert re.sub("<bdi.*?</bdi>", "", escape_text("\ufeffمرحبا")) == "مرحبا"


def test_a_long_text_is_cut_and_a_note_says_so():
    shown = escape_text("<" * 2_000_000)
    assert len(shown) < 3000 and "of 2,000,000 characters" in shown
    assert escape_text("x" * MOST_SHOWN_CHARACTERS) == "x" * MOST_SHOWN_CHARACTERS


DATA = {
    "lengths": np.random.default_rng(0).gamma(4, 1, 5000),
    "one far": [*np.random.default_rng(1).uniform(1, 9, 300), 36000.0],
    "few": [3.0, 3.5, 4.0, 400.0],
    "one": [3.9],
    "same": [2.5] * 7,
    "on the edges": [0.0, 1.0, 2.0, 3.0, 24.0],
    "zeros": [0.0, 0.0],
    "negative": [-3.0, -2.0, 5.0],
    "narrow and high": [1e6 + number for number in range(9)],
    "tiny": [1e-7, 2e-7, 9e-7],
    "not known": [None, math.nan, math.inf, 1.0, 2.0],
}


@pytest.mark.parametrize("name", DATA)
def test_a_histogram_counts_the_data(name):
    values = DATA[name]
    known = np.array([value for value in values if value is not None and math.isfinite(value)])
    edges, counts, beyond = count_in_bins(values)
    assert len(counts) == len(edges) - 1 <= 26
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-6)
    assert sum(counts) + beyond == len(known)
    assert beyond == (known >= edges[-1]).sum()
    expected = [((low <= known) & (known < high)).sum() for low, high in itertools.pairwise(edges)]
    assert counts == expected

    figure = draw_histogram(values, title="Length", unit="s")
    drawn = re.findall(r"<title>(.*?) s: ([\d,]+)</title>", figure)
    assert [int(count.replace(",", "")) for _, count in drawn] == [count for count in [*counts, beyond] if count]
    assert ("over" in drawn[-1][0]) == bool(beyond)
    heights = [float(height) for height in re.findall(r'<rect .*?height="([\d.]+)"', figure)]
    shown = [count for count in [*counts, beyond] if count]
    assert heights[shown.index(max(shown))] == max(heights)
    assert ("3 not known" in figure) == (name == "not known")
    parsed = Parsed(figure)
    assert parsed.named("svg")[0]["aria-label"].startswith("Length: median")
    for rectangle in parsed.named("rect"):
        x, width, y = (float(rectangle[key]) for key in ("x", "width", "y"))
        assert x >= 0 and x + width <= 360 and y >= 0


def test_a_far_value_does_not_flatten_the_rest():
    edges, counts, beyond = count_in_bins(DATA["one far"])
    assert beyond == 1 and edges[-1] < 20
    assert sum(count > 0 for count in counts) > 10


def test_the_axis_of_counts_has_whole_evenly_spaced_numbers():
    for highest in (1, 2, 3, 9, 11, 99, 1234):
        figure = draw_histogram([1.0] * highest + [2.0, 9.0], title="Length", unit="s")
        marks = [int(mark.replace(",", "")) for mark in re.findall(r'text-anchor="end">([\d,]+)<', figure)]
        assert marks[0] == 0 and 2 <= len(marks) <= 6
        # The marks are evenly spaced, so none of them is rounded.
        assert len(set(np.diff(marks))) == 1, marks


def test_a_histogram_without_known_values_says_so():
    for values in ([], [None, math.nan]):
        figure = draw_histogram(values, title="Length", unit="s")
        assert "nothing known" in figure and "<svg" not in figure
        Parsed(figure)


def test_a_histogram_marks_the_limit_only_if_the_values_reach_it():
    within, without = ([1.0, 20.0, 40.0], [1.0, 2.0])
    assert 'class="limit"' in draw_histogram(within, title="Length", unit="s", limit=30.0)
    assert 'class="limit"' not in draw_histogram(without, title="Length", unit="s", limit=30.0)


def sound_of(player: str) -> tuple[np.ndarray, int, str]:
    """Return the samples, the sampling rate and the type of the sound in a player."""
    import soundfile

    kind, data = re.fullmatch(r"data:(audio/\w+);base64,(.*)", Parsed(player).named("audio")[0]["src"]).groups()
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data, validate=True)), dtype="float32")
    return wave, rate_hz, kind


@pytest.mark.parametrize("kind", ["audio/mpeg", "audio/wav"])
def test_a_player_holds_its_sound_inside_the_page(kind, monkeypatch):
    import soundfile

    # libsndfile can be built without MP3.
    if kind == "audio/wav":
        monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "OGG": ""})
    wave = make_wave(2.3)
    heard, rate_hz, mime_type = sound_of(make_player(wave, "clip.wav"))
    assert (mime_type, rate_hz, heard.shape) == (kind, 16_000, wave.shape)
    assert np.corrcoef(heard, wave)[0, 1] > 0.98
    assert abs(np.std(heard) / np.std(wave) - 1) < 0.05


def test_a_player_takes_about_12000_characters_a_second():
    player = make_player(make_wave(2.0), "clip.wav")
    # WAV would have 43,000 characters a second.
    assert len(player) < 2.0 * 12_000 + 1000


def test_a_player_cuts_a_long_recording_and_says_so():
    wave = np.zeros(16_000 * 195, np.float32)
    player = make_player(wave, "story.mp3")
    assert "the first 30 of 195.0 s" in player
    assert len(sound_of(player)[0]) == 30 * 16_000
    assert "the first 30 of 36,000.0 s" in make_player(wave[: 30 * 16_000], "book.mp3", of_s=36_000.0)
    assert "the first" not in make_player(wave[: 30 * 16_000], "clip.mp3", of_s=30.0)


def test_a_player_accepts_samples_that_are_not_finite_and_very_short_clips():
    heard, _, _ = sound_of(make_player(np.array([math.nan, math.inf, -math.inf, 7.0] * 400, np.float32), "a"))
    assert np.isfinite(heard).all() and np.abs(heard).max() < 2
    for samples in (1, 17, 1151, 1153):
        assert len(sound_of(make_player(make_wave(1.0)[:samples], "a"))[0]) == samples


def test_bars_stay_within_their_cells():
    rows = [("much", 7.0, "700 %"), ("less", -1.0, "-1"), ("half", 0.5, "50 %")]
    widths = [rect["width"] for rect in Parsed(draw_bars(rows)).named("rect")]
    assert widths == ["100.00%", "0.00%", "50.00%"]
    assert html.unescape(re.sub("<.*?>", " ", draw_bars(rows))).split() == [
        "much",
        "700",
        "%",
        "less",
        "-1",
        "half",
        "50",
        "%",
    ]
