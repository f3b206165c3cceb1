"""The report of `check` as one HTML file, to look at and to listen to. Its templates lie beside this module."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from whisper_peft import runs
from whisper_peft.checking.report import CheckReport, ReportedClip, ReportedFinding, ReportedSource
from whisper_peft.data.subtitles import WINDOW_S
from whisper_peft.data.text import LANGUAGES
from whisper_peft.pages.charts import draw_bars, draw_histogram
from whisper_peft.pages.player import make_player
from whisper_peft.pages.templates import render
from whisper_peft.pages.text import isolate_text, show_path

if TYPE_CHECKING:
    import numpy as np

    Audio = Callable[[ReportedClip], np.ndarray | None]

MOST_PLAYERS = 40
# Clips that are listed of one finding.
MOST_CLIPS_ON_PAGE = 50
# Sources that have charts of their own.
MOST_SOURCES = 20
# Sources that the heading names.
MOST_NAMED_SOURCES = 5
# Bytes of all players together, and of all lists of clips together. The page stays under 10 MB.
MOST_SOUND_BYTES = 6_000_000
MOST_LIST_BYTES = 2_000_000
# Characters of a source's name that are shown.
_SHOWN_NAME_CHARACTERS = 120
# Clips of a finding that are seen at once. The others are behind a fold.
_OPEN_CLIPS = {"error": 5, "warning": 5, "note": 2}
# Characters of a source that are shown, if it has too many to show all.
_N_FREQUENT = 60
_N_RARE = 30
_MARKS = {"error": "✕ error", "warning": "▲ warning", "note": "● note"}


@dataclass(frozen=True)
class ShownFigure:
    """One of the figures under the heading.

    Attributes:
        words: The figure in words.
        severity: "error" or "warning" gives it that colour; "" gives it none.
    """

    words: str
    severity: str = ""


@dataclass(frozen=True)
class ShownClip:
    """A clip of a finding as the page shows it.

    Attributes:
        about: Name, facts and texts, as HTML.
        player: The player; None if the clip has none, or has it further up.
        anchor: Id of the player's element, here or further up; "" if the clip has no player.
    """

    about: Markup
    player: Markup | None
    anchor: str


@dataclass(frozen=True)
class ShownFinding:
    """A finding as the page shows it: counts are in words, `not_shown` is "" if all clips are on the page."""

    title: str
    severity: str
    count: str
    n_clips: str
    why: str
    remedy: str
    open_clips: list[ShownClip]
    folded_clips: list[ShownClip]
    not_shown: str


@dataclass(frozen=True)
class ShownCharacter:
    """A character of a source: its number and name, the character as HTML, and how often it occurs."""

    name: str
    drawn: Markup
    count: str


@dataclass(frozen=True)
class ShownSource:
    """A source as the page shows it: facts in words, charts as HTML, characters in groups with a heading each."""

    name: str
    facts: str
    lengths: Markup
    token_rates: Markup
    scripts: Markup
    languages: Markup
    character_groups: list[tuple[str, list[ShownCharacter]]]


def write_check_page(report: CheckReport, path: str | Path, audio: Audio) -> None:
    """Write the report as a self-contained page, whole or not at all.

    The page stays under 10 MB. Every finding is there with its first clips, at most 50, and says how many more there
    are. At most 40 clips, the worst, have a player.

    Args:
        report: The report of `check`, with the worst findings first.
        path: A new file.
        audio: Returns the sound of a clip, float32 (n_samples,) at 16 kHz, at least its first 30 s; None if it cannot
            be read.

    Raises:
        UserError: There is something at `path` already, or the file cannot be made.
    """
    with runs.new_file(path, "name another page") as part:
        part.write_text(_render_report(report, audio), encoding="utf-8")


def _render_report(report: CheckReport, audio: Audio) -> str:
    clips = _Clips(report, audio)
    list_bytes = MOST_LIST_BYTES // max(1, len(report.findings))
    shown_sources = report.sources[:MOST_SOURCES]
    named = [clips.shorten_source(source.name) for source in report.sources[:MOST_NAMED_SOURCES]]
    rates_title = "Tokens per second"
    if report.checked.tokens == "estimated":
        rates_title += ", estimated"
    return render(
        "checking/page.html.jinja",
        title=f"check: {', '.join(name[:_SHOWN_NAME_CHARACTERS] for name in named)}",
        heading=_join_source_names(named, len(report.sources)),
        sources_folder=clips.sources_folder,
        clips_folder=clips.folder,
        figures=_show_figures(report),
        looked_at=_describe_coverage(report),
        marks=_MARKS,
        findings=[_show_finding(finding, clips, list_bytes) for finding in report.findings],
        sizes=_draw_sizes(shown_sources, clips),
        sources=[_show_source(source, clips, rates_title) for source in shown_sources],
        n_more_sources=max(0, len(report.sources) - MOST_SOURCES),
    )


def _join_source_names(named: Sequence[str], n_sources: int) -> Markup:
    names = Markup(", ").join(show_path(name, _SHOWN_NAME_CHARACTERS) for name in named)
    if n_sources > len(named):
        names += f" and {n_sources - len(named)} more"
    return names


def _show_figures(report: CheckReport) -> list[ShownFigure]:
    figures = [
        ShownFigure(_count_things(sum(source.clips for source in report.sources), "clip")),
        ShownFigure(f"{sum(source.hours for source in report.sources):,.2f} hours"),
    ]
    for severity, count in (("error", report.errors), ("warning", report.warnings)):
        if count:
            figures.append(ShownFigure(f"{_count_things(count, 'clip')} with {severity}s", severity))
        else:
            figures.append(ShownFigure(f"no {severity}s"))
    return figures


def _describe_coverage(report: CheckReport) -> Markup:
    """Say how much was looked at, and how long it took."""
    checked = report.checked
    headers = _count_things(checked.headers, "header")
    decoded = _count_things(checked.audio, "clip")
    model = Markup("no model asked")
    if checked.model:
        model = Markup("texts weighed by {}").format(isolate_text(checked.model))
    return Markup("{} read, {} decoded, {}; {:,.0f} s.").format(headers, decoded, model, report.seconds)


def _show_finding(finding: ReportedFinding, clips: _Clips, most_bytes: int) -> ShownFinding:
    """Show a finding and its first clips: as many as fit into `most_bytes`, but at least one."""
    shown: list[ShownClip] = []
    for clip in finding.clips[:MOST_CLIPS_ON_PAGE]:
        about = clips.describe(clip)
        most_bytes -= len(about.encode("utf-8"))
        if shown and most_bytes < 0:
            break
        shown.append(clips.show(clip, about))
    n_open = _OPEN_CLIPS[finding.severity]
    not_shown = ""
    if shown and len(shown) < finding.count:
        not_shown = _count_things(finding.count - len(shown), "more clip")
    return ShownFinding(
        title=finding.kind.replace("-", " ").capitalize(),
        severity=finding.severity,
        count=f"{finding.count:,}",
        n_clips=_count_things(finding.count, "clip"),
        why=_make_sentence(finding.why),
        remedy=_make_sentence(finding.remedy),
        open_clips=shown[:n_open],
        folded_clips=shown[n_open:],
        not_shown=not_shown,
    )


class _Clips:
    """The clips of a report as the page shows them: with names below their common folder, and with players.

    Args:
        report: The report.
        audio: Returns the sound of a clip; see `write_check_page`.
    """

    def __init__(self, report: CheckReport, audio: Audio):
        source_names = [source.name for source in report.sources]
        self._names_source = len(source_names) > 1
        self.folder = _common_folder([clip.name for finding in report.findings for clip in finding.clips])
        self.sources_folder = ""
        if self._names_source:
            self.sources_folder = _common_folder(source_names)
        # By (name of the source, row).
        self._players = dict(self._make_players(report.findings, audio))
        # The anchors of those that are on the page already.
        self._anchors: dict[tuple[str, int], str] = {}

    def shorten_name(self, clip: ReportedClip) -> str:
        """Return the name of a clip's file without the folder that all files are in."""
        return clip.name.removeprefix(self.folder)

    def shorten_source(self, name: str) -> str:
        """Return the name of a source without the folder that all sources are in."""
        return name.removeprefix(self.sources_folder)

    def describe(self, clip: ReportedClip) -> Markup:
        """Return what is known about a clip."""
        facts: list[str] = []
        if self._names_source:
            facts.append(show_path(self.shorten_source(clip.source), _SHOWN_NAME_CHARACTERS))
        facts.append(show_path(clip.place or f"row {clip.row}", _SHOWN_NAME_CHARACTERS))
        if clip.start_s:
            facts.append(f"from {clip.start_s:,.2f} s")
        if clip.duration_s is not None:
            facts.append(f"{clip.duration_s:,.2f} s")
        return render("checking/clip.html.jinja", clip=clip, name=self.shorten_name(clip), facts=facts)

    def show(self, clip: ReportedClip, about: Markup) -> ShownClip:
        """Put a clip on the page: with its player or, if that is on the page already, with the way there."""
        key = (clip.source, clip.row)
        if key not in self._players:
            return ShownClip(about, player=None, anchor="")
        if key in self._anchors:
            return ShownClip(about, player=None, anchor=self._anchors[key])
        self._anchors[key] = f"sound-{len(self._anchors)}"
        return ShownClip(about, self._players[key], self._anchors[key])

    def _make_players(
        self, findings: Sequence[ReportedFinding], audio: Audio
    ) -> Iterator[tuple[tuple[str, int], Markup]]:
        """Make a player for the first clip of each finding, then for the second of each, while there is room."""
        n_players = 0
        n_bytes = 0
        for clip in _worst_clips(findings):
            wave = audio(clip)
            if wave is None or not len(wave):
                continue
            player = make_player(wave, self.shorten_name(clip), of_s=clip.duration_s)
            n_players += 1
            n_bytes += len(player)
            if n_bytes > MOST_SOUND_BYTES:
                return
            yield (clip.source, clip.row), player
            if n_players == MOST_PLAYERS:
                return


def _worst_clips(findings: Sequence[ReportedFinding]) -> Iterator[ReportedClip]:
    """Yield the first clip of each finding, then the second of each, and so on; no clip twice."""
    tried = set()
    for depth in range(MOST_CLIPS_ON_PAGE):
        for finding in findings:
            if depth >= len(finding.clips):
                continue
            clip = finding.clips[depth]
            if (clip.source, clip.row) not in tried:
                tried.add((clip.source, clip.row))
                yield clip


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all files are in, with its last slash; "" if that is the root, or not all are absolute."""
    if not names or not all(name.startswith("/") for name in names):
        return ""
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    if folder == "/":
        return ""
    return f"{folder}/"


def _draw_sizes(sources: Sequence[ReportedSource], clips: _Clips) -> Markup:
    """Draw how much there is of each source; nothing for one source alone."""
    if len(sources) < 2:
        return Markup("")
    most_hours = max(source.hours for source in sources) or 1.0
    rows = []
    for source in sources:
        name = clips.shorten_source(source.name)[:_SHOWN_NAME_CHARACTERS]
        size = f"{source.hours:,.2f} h, {_count_things(source.clips, 'clip')}"
        rows.append((name, source.hours / most_hours, size))
    return draw_bars(rows)


def _show_source(source: ReportedSource, clips: _Clips, rates_title: str) -> ShownSource:
    facts = [_count_things(source.clips, "clip"), f"{source.hours:,.2f} hours"]
    if source.speakers is not None:
        facts.append(_count_things(source.speakers, "speaker"))
    scripts = [(name, share, f"{share:.1%}") for name, share in _sort_by_count(source.scripts)]
    n_clips = sum(source.languages.values()) or 1
    languages = []
    for code, count in _sort_by_count(source.languages):
        languages.append((_name_language(code), count / n_clips, _count_things(count, "clip")))
    return ShownSource(
        name=clips.shorten_source(source.name),
        facts=" · ".join(facts),
        lengths=draw_histogram(source.durations_s, title="Clip length", unit="s", limit=WINDOW_S),
        token_rates=draw_histogram(source.tokens_per_second, title=rates_title, unit="tokens/s"),
        scripts=draw_bars(scripts),
        languages=draw_bars(languages),
        character_groups=_group_characters(source.characters),
    )


def _name_language(code: str) -> str:
    if code in LANGUAGES:
        return f"{LANGUAGES[code].title()} ({code})"
    return code


def _sort_by_count(counts: dict) -> list[tuple]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _group_characters(counts: dict[str, int]) -> list[tuple[str, list[ShownCharacter]]]:
    """Show all characters or, of many, the most frequent and the rarest, which are often slips."""
    characters = [_show_character(character, count) for character, count in _sort_by_count(counts)]
    if len(characters) <= _N_FREQUENT + _N_RARE:
        return [("Characters", characters)]
    return [
        (f"The {_N_FREQUENT} most frequent of {len(characters):,} characters", characters[:_N_FREQUENT]),
        (f"The {_N_RARE} rarest", characters[-_N_RARE:]),
    ]


def _show_character(character: str, count: int) -> ShownCharacter:
    number = f"U+{ord(character):04X}"
    name = f"{number} {unicodedata.name(character, '')}"
    category = unicodedata.category(character)
    if category.startswith("M"):
        # A mark needs a letter to stand on: a dotted circle.
        drawn = isolate_text("◌" + character)
    elif character == " ":
        drawn = Markup('<bdi class="unseen">space</bdi>')
    elif category == "Zs" or character in "\u200c\u200d":
        drawn = Markup('<bdi class="unseen">{}</bdi>').format(number)
    else:
        drawn = isolate_text(character)
    return ShownCharacter(name, drawn, f"{count:,}")


def _make_sentence(clause: str) -> str:
    return clause[:1].upper() + clause[1:].rstrip(".") + "."


def _count_things(number: int, thing: str) -> str:
    plural = "" if number == 1 else "s"
    return f"{number:,} {thing}{plural}"
