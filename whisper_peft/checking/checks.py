"""Check sources: headers and texts first, then the decoded sound, then what text belongs to what sound."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from whisper_peft.checking.contradictions import look_at_rows
from whisper_peft.checking.duplicates import look_for_copies, look_for_duplicates
from whisper_peft.checking.findings import MOST_READ, Findings, SourceRows
from whisper_peft.checking.headers import RowLength, kind_of_audio_fault, look_at_length, read_row_lengths
from whisper_peft.checking.limits import WHISPER_LIMITS, Limits
from whisper_peft.checking.pairing import Losses, PairedRows, look_at_pairing
from whisper_peft.checking.report import CheckReport, Coverage, FixResult, ReportedFinding, ReportedSource
from whisper_peft.checking.shifted_texts import Mispairing
from whisper_peft.checking.sound import look_at_sounds
from whisper_peft.checking.sound_measures import Measures, measure_clip
from whisper_peft.checking.texts import count_scripts, look_at_texts
from whisper_peft.checking.threads import map_in_threads
from whisper_peft.data.audio import AudioError
from whisper_peft.data.doubtful_times import ELSEWHERE, Doubt, describe_times, doubt_times
from whisper_peft.data.features import TooLongError
from whisper_peft.data.rows import Row
from whisper_peft.data.words import estimate_tokens
from whisper_peft.files import short_repr

# Scripts of a source that the report names.
_MOST_SCRIPTS = 8


@dataclass
class SourceFacts:
    """The facts about one source. The steps of a check fill it one after the other.

    Attributes:
        files_s: Seconds of each row's whole file, by its header; None where they are not known.
        seconds: Seconds of each row, by the header; None where they are not known.
        tokens: Tokens of each row's text; None where there is no text.
        languages: Number of rows for each language.
        measures: What was measured on the sound, by the number of the row.
        correlations: Correlation of clip length and text length, by the number of rows that texts are moved.
        mispairings: Stretches of rows with the texts of other rows.
    """

    files_s: list[float | None]
    seconds: list[float | None]
    tokens: list[int | None]
    languages: Counter[str]
    measures: dict[int, Measures] = field(default_factory=dict)
    correlations: dict[int, float] = field(default_factory=dict)
    mispairings: list[Mispairing] = field(default_factory=list)


@dataclass(frozen=True)
class CheckedData:
    """Sources after a check.

    Attributes:
        sources: The sources.
        facts: What is known about each of them.
        findings: What is wrong with them.
        took_s: Seconds that the check took.
    """

    sources: Sequence[SourceRows]
    facts: list[SourceFacts]
    findings: Findings
    took_s: float

    def list_findings(self) -> list[ReportedFinding]:
        """List what was found, the worst first."""
        return self.findings.report([facts.seconds for facts in self.facts])

    def report(
        self,
        *,
        model: str | None = None,
        tokens: str = "estimated",
        remarks: Sequence[str] = (),
        fixed: FixResult | None = None,
    ) -> CheckReport:
        """Put the report together.

        Args:
            model: The model whose losses were computed.
            tokens: How tokens were found: "counted" or "estimated".
            remarks: What was passed over while the sources were read.
            fixed: What was written as cleaned manifests.
        """
        n_headers = sum(len(facts.seconds) for facts in self.facts)
        n_decoded = sum(len(facts.measures) for facts in self.facts)
        return CheckReport(
            sources=[_report_source(*pair) for pair in zip(self.sources, self.facts, strict=True)],
            findings=self.list_findings(),
            errors=self.findings.count("error"),
            warnings=self.findings.count("warning"),
            notes=self.findings.count("note"),
            checked=Coverage(n_headers, n_decoded, model, tokens),
            seconds=round(self.took_s, 2),
            remarks=list(remarks),
            fixed=fixed,
        )


def _report_source(source: SourceRows, facts: SourceFacts) -> ReportedSource:
    known_s = [seconds for seconds in facts.seconds if seconds is not None]
    rates = []
    for n_tokens, seconds in zip(facts.tokens, facts.seconds, strict=True):
        if n_tokens and seconds:
            rates.append(round(n_tokens / seconds, 3))
    speakers = {row.speaker for row in source.rows if row.speaker is not None}
    characters: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    for row in source.rows:
        text = row.text[:MOST_READ]
        characters.update(character for character in text if not character.isspace())
        scripts.update(count_scripts(text))
    n_letters = max(1, scripts.total())
    return ReportedSource(
        name=source.name,
        split=source.split,
        clips=len(source.rows),
        hours=sum(known_s) / 3600,
        speakers=len(speakers) or None,
        durations_s=[round(seconds, 3) for seconds in known_s],
        tokens_per_second=rates,
        characters=dict(characters.most_common()),
        scripts={script: round(count / n_letters, 4) for script, count in scripts.most_common(_MOST_SCRIPTS)},
        languages=dict(facts.languages.most_common()),
        correlation_at_shift={str(shift): round(value, 3) for shift, value in facts.correlations.items()},
    )


def check_sources(
    sources: Sequence[SourceRows],
    *,
    limits: Limits = WHISPER_LIMITS,
    language: str | None = None,
    task: str = "transcribe",
    borrowed: bool = False,
    times: str | None = None,
    audio: bool = True,
    losses: Losses | None = None,
    progress: bool = False,
) -> CheckedData:
    """Look at headers and texts and, if asked, at the decoded sound and at a model's losses. Nothing is changed.

    Args:
        sources: The sources.
        limits: What the model takes.
        language: Code for rows that name none.
        task: "transcribe" or "translate".
        borrowed: Whether all rows get a borrowed language token.
        times: "use" if the columns with start and end are right, whatever the files say.
        audio: Whether to decode the clips.
        losses: Returns a model's losses; None if there is no model.
        progress: Whether to show progress bars on stderr.
    """
    began = time.monotonic()
    findings = Findings(sources)
    all_facts: list[SourceFacts] = []
    for number, source in enumerate(sources):
        lengths = read_row_lengths(source, progress)
        facts = SourceFacts(
            files_s=[length.file_s for length in lengths],
            seconds=_look_at_lengths(findings, number, lengths, limits, times),
            tokens=_look_at_tokens(findings, number, limits, language, task),
            languages=Counter(_language_label(row, language) for row in source.rows),
        )
        look_at_texts(findings, number, language=language, task=task)
        look_at_rows(findings, number, facts.seconds, language=language, borrowed=borrowed)
        all_facts.append(facts)
    look_for_duplicates(findings)
    if audio:
        for number, facts in enumerate(all_facts):
            facts.measures = _measure_sounds(findings, number, facts.seconds, limits, progress)
        measures = [facts.measures for facts in all_facts]
        look_at_sounds(findings, measures)
        look_for_copies(findings, measures)
    for number, facts in enumerate(all_facts):
        paired = PairedRows.of_source(sources[number].rows, facts.seconds, facts.tokens, facts.measures)
        facts.correlations = paired.correlate_lengths()
        facts.mispairings = look_at_pairing(findings, number, paired, facts.measures, losses)
    return CheckedData(sources, all_facts, findings, time.monotonic() - began)


def _language_label(row: Row, language: str | None) -> str:
    if row.unknown_language:
        return f"{short_repr(row.unknown_language)} (unknown)"
    return row.language or language or "not named"


def _look_at_lengths(
    findings: Findings, source: int, lengths: Sequence[RowLength], limits: Limits, times: str | None
) -> list[float | None]:
    """Note doubtful times, and rows whose length is not known or too long.

    Returns:
        Seconds of each row; None where they are not known, or where they would be those of another recording.
    """
    files_s = [length.file_s for length in lengths]
    doubts: list[Doubt] = []
    if times != "use":
        doubts = doubt_times(findings.sources[source].rows, files_s)
    elsewhere = _note_doubts(findings, source, doubts, files_s)
    seconds: list[float | None] = []
    for number, length in enumerate(lengths):
        if number in elsewhere:
            seconds.append(None)
        else:
            look_at_length(findings, source, number, length, limits)
            seconds.append(length.seconds)
    return seconds


def _note_doubts(findings: Findings, source: int, doubts: Sequence[Doubt], files_s: Sequence[float | None]) -> set[int]:
    """Note doubtful times; return the rows whose times belong to another recording."""
    elsewhere: set[int] = set()
    for doubt in doubts:
        for number in doubt.rows:
            row = findings.sources[source].rows[number]
            detail = describe_times(row, files_s[number])
            if number == doubt.rows[0]:
                # The question is about all of the rows. It is asked once, and listed first.
                findings.add(doubt.kind, source, number, f"{doubt.question} ({detail})", weight=1.0)
            else:
                findings.add(doubt.kind, source, number, detail)
        if doubt.kind == ELSEWHERE:
            elsewhere.update(doubt.rows)
    return elsewhere


def _look_at_tokens(
    findings: Findings, source: int, limits: Limits, language: str | None, task: str
) -> list[int | None]:
    """Note rows without a text, or with more tokens than the model takes; return the tokens of each row."""
    tokens: list[int | None] = []
    for number, row in enumerate(findings.sources[source].rows):
        text = limits.clean(row.text)
        if not text:
            if not row.no_speech:
                findings.add("empty-text", source, number, "no text")
            tokens.append(None)
            continue
        try:
            tokens.append(limits.n_tokens(text, row.language or language, task))
        except TooLongError as error:
            kind = "over-token-limit" if limits.is_sure(text) else "perhaps-over-token-limit"
            findings.add(kind, source, number, str(error), weight=len(text))
            tokens.append(estimate_tokens(text))
    return tokens


def _measure_sounds(
    findings: Findings, source: int, seconds: Sequence[float | None], limits: Limits, progress: bool
) -> dict[int, Measures]:
    """Decode and measure the clips of a source, as far as the model would hear them; note those that cannot be."""
    rows = findings.sources[source].rows

    def measure_row(number: int) -> Measures | str:
        row = rows[number]
        end_s = row.end_s
        row_s = seconds[number]
        if row_s is not None and row_s > limits.window_s:
            end_s = row.start_s + limits.window_s
        try:
            return measure_clip(row, end_s=end_s)
        except AudioError as error:
            return str(error)

    readable = [number for number, row_s in enumerate(seconds) if row_s is not None]
    results = map_in_threads(measure_row, readable, f"sound of {findings.sources[source].name}", progress)
    measures = {}
    for number, result in zip(readable, results, strict=True):
        if isinstance(result, str):
            findings.add(kind_of_audio_fault(result), source, number, result)
        else:
            measures[number] = result
    return measures
