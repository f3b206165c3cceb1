"""What `check` found, as one HTML file to look at and to listen to."""

from __future__ import annotations

import html
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.checking.report import CheckReport, ReportedClip, ReportedFinding, ReportedSource
from whisper_peft.data.subtitles import WINDOW_S
from whisper_peft.data.text import LANGUAGES
from whisper_peft.pages import pieces as pages

if TYPE_CHECKING:
    import numpy as np

    Audio = Callable[[ReportedClip], np.ndarray | None]

MOST_PLAYERS = 40
MOST_CLIPS = 50  # listed of a finding
MOST_SOURCES = 20  # with charts of their own
MOST_SOUND_BYTES = 6_000_000  # of all players
MOST_LIST_BYTES = 2_000_000  # of all lists of clips
_NAME = 120  # characters of a source's name that are shown; of a file's, twice as many
_OPEN_CLIPS = {"error": 5, "warning": 5, "note": 2}  # of a finding; the others are behind a fold
_FREQUENT, _RARE = 60, 30  # characters shown of a source
_MARKS = {"error": "✕ error", "warning": "▲ warning", "note": "● note"}


def write_check_page(report: CheckReport, path: str | Path, audio: Audio) -> None:
    """Writes what `check` found as a self-contained page, whole or not at all.

    The page stays under 10 MB: every finding is there with its first clips, 50 at most, and says how many more there
    are; the worst 40 clips at most have a player.

    Args:
        report: as `check` gives it, with the worst findings first.
        path: a new file.
        audio: a clip of a finding -> float32 (n_samples,) at 16 kHz, its first 30 s at least, or None if it cannot be
            read.

    Raises:
        UserError: something is at `path` already, or it cannot be made.
    """
    with runs.new_file(path, "name another page") as part:
        part.write_text(_page(report, audio), encoding="utf-8")


def _page(report: CheckReport, audio: Audio) -> str:
    sources, findings = report.sources, report.findings
    clips, room = _Clips(report, audio), MOST_LIST_BYTES // max(1, len(findings))
    body = [_head(report, clips), _contents(findings)]
    body += [_finding(number, one, clips, room) for number, one in enumerate(findings)]
    tokens = "Tokens per second" + (", estimated" if report.checked.tokens == "estimated" else "")
    body += ["<h2>The data</h2>", _sizes(sources[:MOST_SOURCES], clips)]
    body += [_source(one, clips, tokens) for one in sources[:MOST_SOURCES]]
    if len(sources) > MOST_SOURCES:
        body.append(f'<p class="quiet">{len(sources) - MOST_SOURCES} more sources are not on this page.</p>')
    return pages.frame(f"check: {', '.join(clips.source(one.name)[:_NAME] for one in sources[:5])}", "\n".join(body))


def _head(report: CheckReport, clips: _Clips) -> str:
    sources, checked = report.sources, report.checked
    names = ", ".join(pages.path(clips.source(one.name), _NAME) for one in sources[:5])
    names += f" and {len(sources) - 5} more" if len(sources) > 5 else ""
    figures = [
        _counted(sum(one.clips for one in sources), "clip"),
        f"{sum(one.hours for one in sources):,.2f} hours",
        *(
            f'<b class="{kind}">{_counted(count, "clip")} with {kind}s</b>' if count else f"no {kind}s"
            for kind, count in (("error", report.errors), ("warning", report.warnings))
        ),
    ]
    summary = " · ".join(f'<span class="number">{one}</span>' for one in figures)
    looked = [_counted(checked.headers, "header") + " read", _counted(checked.audio, "clip") + " decoded"]
    looked.append(f"texts weighed by {pages.isolated(checked.model)}" if checked.model else "no model asked")
    where = f" Files are in {pages.path(clips.folder)}" if clips.folder != clips.sources_folder else ""
    return (
        f'<p class="quiet">whisper-peft check {pages.path(clips.sources_folder)}</p>'
        f'<h1>{names}</h1><p class="summary">{summary}</p>'
        f'<p class="quiet">{", ".join(looked)}; {report.seconds:,.0f} s.{where}</p>'
    )


def _contents(findings: Sequence[ReportedFinding]) -> str:
    if not findings:
        return '<p class="summary">Nothing found.</p>'
    lines = [
        f'<li><a href="#finding-{number}">{_mark(one)}<span class="kind">{_title(one)}</span>'
        f'<span class="number">{one.count:,}</span></a></li>'
        for number, one in enumerate(findings)
    ]
    return f'<ul class="contents">{"".join(lines)}</ul>'


def _finding(number: int, finding: ReportedFinding, clips: _Clips, room: int) -> str:
    """A finding and its first clips, of so many bytes at most, but one at least."""
    listed: list[str] = []
    for clip in finding.clips[:MOST_CLIPS]:
        about = clips.about(clip)
        room -= len(about.encode("utf-8"))
        if listed and room < 0:
            break
        listed.append(f'<li class="clip">{about}{clips.player(clip)}</li>')
    parts = [
        f'<section class="finding" id="finding-{number}"><h2>{_title(finding)}</h2>'
        f'<p class="quiet">{_mark(finding)} · {_counted(finding.count, "clip")}</p>'
        f"<p>{pages.isolated(_sentence(finding.why))}</p>"
        f'<p><span class="quiet">Remedy:</span> {pages.isolated(_sentence(finding.remedy))}</p>'
    ]
    n_open = _OPEN_CLIPS[finding.severity]
    if listed:
        parts.append(f'<ul class="clips">{"".join(listed[:n_open])}</ul>')
    if folded := listed[n_open:]:
        parts.append(
            f'<details><summary>{len(folded)} more</summary><ul class="clips">{"".join(folded)}</ul></details>'
        )
    if listed and len(listed) < finding.count:
        parts.append(f'<p class="quiet">{_counted(finding.count - len(listed), "more clip")} not on this page.</p>')
    return "".join([*parts, "</section>"])


class _Clips:
    """The clips as the page shows them: named below the folder of them all; the worst of each finding with a player."""

    def __init__(self, report: CheckReport, audio: Audio):
        findings = report.findings
        self.folder = _common_folder([clip.name for one in findings for clip in one.clips])
        names = [one.name for one in report.sources]
        self.with_source = len(names) > 1
        self.sources_folder = _common_folder(names) if self.with_source else ""
        self.players = dict(self._players(findings, audio))  # by (source, row)
        self.written: dict[tuple, str] = {}  # and its place on the page

    def name(self, clip: ReportedClip) -> str:
        """The file's name, without what all have in common."""
        return clip.name.removeprefix(self.folder)

    def source(self, name: str) -> str:
        """A source's name, without what all have in common."""
        return name.removeprefix(self.sources_folder)

    def about(self, clip: ReportedClip) -> str:
        """What is known of a clip, as HTML."""
        facts = [pages.path(self.source(clip.source), _NAME)] if self.with_source else []
        facts.append(pages.path(clip.place or f"row {clip.row}", _NAME))
        if clip.start_s:
            facts.append(f"from {clip.start_s:,.2f} s")
        if clip.duration_s is not None:
            facts.append(f"{clip.duration_s:,.2f} s")
        about = f'<span class="name">{pages.path(self.name(clip), 2 * _NAME)}</span> '
        about += " ".join(f'<span class="fact">{one}</span>' for one in facts)
        for key, mark in (("detail", ""), ("text", ""), ("suggestion", "→ ")):
            if words := getattr(clip, key):
                about += f'<p class="{key}" dir="auto">{mark}{pages.escaped(words)}</p>'
        return f'<div class="about">{about}</div>'

    def player(self, clip: ReportedClip) -> str:
        """The player of a clip or, if it has been on the page already, the way there."""
        key = (clip.source, clip.row)
        if key not in self.players:
            return ""
        if key in self.written:
            return f'<div class="sound"><a class="quiet" href="#{self.written[key]}">player above</a></div>'
        self.written[key] = f"sound-{len(self.written)}"
        return f'<div class="sound" id="{self.written[key]}">{self.players[key]}</div>'

    def _players(self, findings: Sequence[ReportedFinding], audio: Audio) -> Iterator[tuple[tuple, str]]:
        """Of each finding the first clip, then of each the second, while there is room."""
        n_players, n_bytes, tried = 0, 0, set()
        for depth in range(MOST_CLIPS):
            for clip in (one.clips[depth] for one in findings if depth < len(one.clips)):
                key = (clip.source, clip.row)
                if key in tried:
                    continue
                tried.add(key)
                wave = audio(clip)
                if wave is None or not len(wave):
                    continue
                player = pages.player(wave, self.name(clip), of_s=clip.duration_s)
                n_players, n_bytes = n_players + 1, n_bytes + len(player)
                if n_bytes > MOST_SOUND_BYTES:
                    return
                yield key, player
                if n_players == MOST_PLAYERS:
                    return


def _common_folder(names: Sequence[str]) -> str:
    """The folder that all files are in, with its last slash; empty where there is none below the root."""
    if not names or not all(name.startswith("/") for name in names):
        return ""
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return "" if folder == "/" else f"{folder}/"


def _sizes(sources: Sequence[ReportedSource], clips: _Clips) -> str:
    """How much there is of each source, beside each other."""
    if len(sources) < 2:
        return ""
    most = max(one.hours for one in sources) or 1.0
    return pages.bars(
        (
            clips.source(one.name)[:_NAME],
            one.hours / most,
            f"{one.hours:,.2f} h, {_counted(one.clips, 'clip')}",
        )
        for one in sources
    )


def _source(source: ReportedSource, clips: _Clips, tokens: str) -> str:
    facts = [_counted(source.clips, "clip"), f"{source.hours:,.2f} hours"]
    if source.speakers is not None:
        facts.append(_counted(source.speakers, "speaker"))
    durations = pages.histogram(source.durations_s, title="Clip length", unit="s", limit=WINDOW_S)
    density = pages.histogram(source.tokens_per_second, title=tokens, unit="tokens/s")
    scripts = [(name, share, f"{share:.1%}") for name, share in _by_count(source.scripts)]
    n_clips = sum(source.languages.values()) or 1
    languages = [
        (_language(code), count / n_clips, _counted(count, "clip")) for code, count in _by_count(source.languages)
    ]
    return (
        f'<section class="source"><h3>{pages.path(clips.source(source.name), _NAME)}</h3>'
        f'<p class="quiet">{" · ".join(facts)}</p><div class="charts">{durations}{density}'
        f"<div><h4>Scripts</h4>{pages.bars(scripts)}</div><div><h4>Languages</h4>{pages.bars(languages)}</div></div>"
        f"{_characters(source.characters)}</section>"
    )


def _language(code: str) -> str:
    return f"{LANGUAGES[code].title()} ({code})" if code in LANGUAGES else code


def _by_count(counts: dict) -> list[tuple]:
    return sorted(counts.items(), key=lambda one: -one[1])


def _characters(counts: dict[str, int]) -> str:
    """All characters or, of many, the most frequent and the rarest, which are often slips."""
    ordered = _by_count(counts)
    if len(ordered) <= _FREQUENT + _RARE:
        return f"<h4>Characters</h4>{_chips(ordered)}"
    return (
        f"<h4>The {_FREQUENT} most frequent of {len(ordered):,} characters</h4>{_chips(ordered[:_FREQUENT])}"
        f"<h4>The {_RARE} rarest</h4>{_chips(ordered[-_RARE:])}"
    )


def _chips(counts: Sequence[tuple[str, int]]) -> str:
    chips = []
    for character, count in counts:
        name = f"U+{ord(character):04X} {unicodedata.name(character, '')}"
        chips.append(f'<li title="{html.escape(name)}">{_drawn(character)}<small>{count:,}</small></li>')
    return f'<ul class="characters">{"".join(chips)}</ul>'


def _drawn(character: str) -> str:
    """A character by itself: a mark on a circle, a space or a joiner by its number."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return pages.isolated("◌" + character)
    if category == "Zs" or character in "\u200c\u200d":
        return f'<bdi class="unseen">{"space" if character == " " else f"U+{ord(character):04X}"}</bdi>'
    return pages.isolated(character)


def _mark(finding: ReportedFinding) -> str:
    return f'<span class="mark {finding.severity}">{_MARKS[finding.severity]}</span>'


def _title(finding: ReportedFinding) -> str:
    return html.escape(finding.kind.replace("-", " ").capitalize())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
