"""What is wrong with a data set: from headers and texts, and from the decoded sound."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from whisper_peft.checking.contradictions import look_at_rows
from whisper_peft.checking.duplicates import look_at_copies, look_at_twins
from whisper_peft.checking.findings import MOST_READ, Findings, SourceRows
from whisper_peft.checking.model_evidence import by_text, gains_of, unlikely_texts
from whisper_peft.checking.report import CheckReport, Coverage, FixResult, ReportedSource
from whisper_peft.checking.shifted_texts import Mispairing, correlate_lengths, find_mispairings, find_name_orders
from whisper_peft.checking.sound import look_at_sounds, misstated_rate
from whisper_peft.checking.sound_measures import Measures, measure_clip
from whisper_peft.checking.speech_rate import text_sizes, unusual_paces
from whisper_peft.checking.texts import look_at_texts, scripts_of
from whisper_peft.data.audio import AudioError, duration_s
from whisper_peft.data.doubtful_times import ELSEWHERE, Doubt, describe_times, doubt_times
from whisper_peft.data.features import Preparation, TooLongError
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.text import clean_text
from whisper_peft.files import short_repr
from whisper_peft.progress import bar

UNUSABLE = (
    "times-elsewhere",
    "bad-segments",
    "missing",
    "unreadable",
    "truncated",
    "over-window",
    "over-token-limit",
    "empty-text",
)
TOKENS_PER_BYTE = {True: 0.3, False: 0.72}  # is it ASCII; at most, as Malayalam has them
LONGEST_TEXT = 5_000  # characters; 448 tokens of English are some 2,000
SUSPECT, OUTLIER = 3.0, 6.0  # robust deviations of log seconds from what the text should take
T, R = TypeVar("T"), TypeVar("R")

Losses = Callable[[Sequence[Row]], np.ndarray]
"""Rows -> float (n_rows, 7): the teacher-forced loss a token of the texts of the rows from 3 before to 3 after, given a
row's sound; NaN where there is none. The data's rooms know no model."""


@dataclass(frozen=True)
class Limits:
    """What the model takes, and how its tokens are counted."""

    window_s: float = 30.0
    preparation: Preparation | None = None  # None: tokens are estimated, on the high side
    clean: Callable[[str], str] = clean_text

    def n_tokens(self, text: str, language: str | None, task: str) -> int:
        """Tokens of a text.

        Raises:
            TooLongError: More than the model takes.
        """
        if len(text) > LONGEST_TEXT:
            raise TooLongError(f"{len(text):,} characters of text; no clip of {self.window_s:g} s has as many")
        if self.preparation is None:
            count = estimated_tokens(text)
            if count > 444:
                raise TooLongError(f"about {count} text tokens")
            return count
        language = language or "en"  # as good as any: each is one token, and not counted
        prefix = self.preparation.prefix(language, task)
        _, labels = self.preparation.encode_text([Segment(text)], language=language, task=task)
        return len(labels) - len(prefix)


def estimated_tokens(text: str) -> int:
    """How many tokens a text has at most, nearly, where no vocabulary is at hand."""
    return round(len(text.encode("utf-8", "surrogatepass")) * TOKENS_PER_BYTE[text.isascii()])


@dataclass
class CheckedData:
    """What a check came to."""

    parts: Sequence[SourceRows]
    findings: Findings
    seconds: list[list[float | None]]  # part -> row, by the header
    tokens: list[list[int | None]]  # part -> row
    files_s: list[list[float | None]] = field(default_factory=list)  # part -> row; of the whole file, by its header
    mispairings: list[list[Mispairing]] = field(default_factory=list)  # part ->
    correlations: list[dict[int, float]] = field(default_factory=list)
    languages: list[Counter] = field(default_factory=list)
    listened: int = 0
    took_s: float = 0.0

    def report(
        self,
        *,
        model: str | None = None,
        tokens: str = "estimated",
        remarks: Sequence[str] = (),
        fixed: FixResult | None = None,
    ) -> CheckReport:
        """Put together what was found.

        Args:
            model: The model whose losses were computed.
            tokens: How tokens were found: "counted" or "estimated".
            remarks: What was passed over while the sources were read.
            fixed: What was written as cleaned manifests.
        """
        return CheckReport(
            sources=[self._source(number) for number in range(len(self.parts))],
            findings=self.findings.report(self.seconds),
            errors=self.findings.count("error"),
            warnings=self.findings.count("warning"),
            notes=self.findings.count("note"),
            checked=Coverage(sum(map(len, self.seconds)), self.listened, model, tokens),
            seconds=round(self.took_s, 2),
            remarks=list(remarks),
            fixed=fixed,
        )

    def _source(self, number: int) -> ReportedSource:
        part, seconds, tokens = self.parts[number], self.seconds[number], self.tokens[number]
        known = [one for one in seconds if one is not None]
        speakers = {row.speaker for row in part.rows if row.speaker is not None}
        characters = Counter(c for row in part.rows for c in row.text[:MOST_READ] if not c.isspace())
        scripts = sum((scripts_of(row.text[:MOST_READ]) for row in part.rows), Counter())
        letters = max(1, sum(scripts.values()))
        rates = [n / s for n, s in zip(tokens, seconds, strict=True) if n and s]
        return ReportedSource(
            name=part.name,
            split=part.split,
            clips=len(part.rows),
            hours=sum(known) / 3600,
            speakers=len(speakers) or None,
            durations_s=[round(one, 3) for one in known],
            tokens_per_second=[round(rate, 3) for rate in rates],
            characters=dict(characters.most_common()),
            scripts={script.title(): round(n / letters, 4) for script, n in scripts.most_common(8)},
            languages=dict(self.languages[number].most_common()),
            correlation_at_shift={str(shift): round(value, 3) for shift, value in self.correlations[number].items()},
        )


def check_sources(
    parts: Sequence[SourceRows],
    *,
    limits: Limits = Limits(),
    language: str | None = None,
    task: str = "transcribe",
    borrowed: bool = False,
    times: str | None = None,
    audio: bool = True,
    losses: Losses | None = None,
    progress: bool = False,
) -> CheckedData:
    """Look at headers and texts and, if asked, at the decoded sound and at a model's losses; nothing is changed.

    Args:
        parts: the sources.
        limits: of the model.
        language: code for rows that name none.
        task: transcribe or translate.
        borrowed: whether all rows get a borrowed language token.
        times: "use": the columns with start and end are right, whatever the files say.
        audio: whether to decode the clips.
        losses: a model's, see `Losses`.
        progress: show bars on stderr.
    """
    began = time.monotonic()
    findings = Findings(parts)
    checked = CheckedData(parts, findings, [], [])
    for number, part in enumerate(parts):
        headers = list(map_in_threads(_header(), part.rows, f"headers of {part.name}", progress))
        checked.files_s.append([header.file_s for header in headers])
        doubts = [] if times == "use" else doubt_times(part.rows, checked.files_s[number])
        doubted = _note_doubts(findings, number, doubts, checked.files_s[number])
        checked.seconds.append(
            [
                None if row in doubted else _note_header(findings, number, row, header.found, limits)
                for row, header in enumerate(headers)
            ]
        )
        checked.tokens.append(
            [_note_text(findings, number, row, limits, language, task) for row in range(len(part.rows))]
        )
        look_at_texts(findings, number, language=language, task=task)
        look_at_rows(findings, number, checked.seconds[number], language=language, borrowed=borrowed)
        checked.languages.append(Counter(_language_of(row, language) for row in part.rows))
    look_at_twins(findings)
    measures: list[dict[int, Measures]] = [{} for _ in parts]
    if audio:
        for number in range(len(parts)):
            measures[number] = _listen(findings, number, checked.seconds[number], limits, progress)
            checked.listened += len(measures[number])
        look_at_sounds(findings, measures)
        look_at_copies(findings, measures)
    for number in range(len(parts)):
        _look_at_pairing(checked, number, measures[number], losses)
    checked.took_s = time.monotonic() - began
    return checked


def map_in_threads(function: Callable[[T], R], items: Sequence[T], label: str, progress: bool) -> Iterator[R]:
    """`function` of each, in order, by threads (decoders leave the interpreter); only a few are waiting at any time."""
    workers = min(8, (os.cpu_count() or 1) + 1)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool, bar(label, len(items), progress) as update:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
                update(1)
        while waiting:
            yield waiting.popleft().result()
            update(1)


def _language_of(row: Row, language: str | None) -> str:
    if row.unknown_language:
        return f"{short_repr(row.unknown_language)} (unknown)"
    return row.language or language or "not named"


def _note_doubts(
    findings: Findings, part: int, doubts: Sequence[Doubt], files_s: Sequence[float | None]
) -> frozenset[int]:
    """Note the questions about times; the rows of which nothing more can be said come back."""
    doubted: set[int] = set()
    for doubt in doubts:
        for number in doubt.rows:
            row = findings.parts[part].rows[number]
            detail = describe_times(row, files_s[number])
            if number == doubt.rows[0]:  # asked once, and listed first
                findings.add(doubt.kind, part, number, f"{doubt.question} ({detail})", weight=1.0)
            else:
                findings.add(doubt.kind, part, number, detail)
        if doubt.kind == ELSEWHERE:
            doubted |= set(doubt.rows)
    return frozenset(doubted)


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a row's file says."""

    found: float | str  # seconds of the row, or why there are none
    file_s: float | None = None  # seconds of the file, where they are known


def _header() -> Callable[[Row], Header]:
    """Row -> what its header says; a recording of many rows is read once."""
    known: dict[str, float | str] = {}

    def read(row: Row) -> Header:
        many = row.end_s is not None and isinstance(row.audio, str)
        if not many or row.audio not in known:
            try:
                found: float | str = duration_s(row.sound())
            except AudioError as error:
                found = str(error)
            if many:
                known[row.audio] = found
        else:
            found = known[row.audio]
        return Header(found) if isinstance(found, str) else Header(_piece_of(row, found), found)

    return read


def _piece_of(row: Row, file_s: float) -> float | str:
    """Seconds of a row within its file, or why there are none."""
    if row.start_s < 0:
        return f"starts at {row.start_s:g} s, before the recording"
    if row.start_s >= file_s:
        return f"starts at {row.start_s:g} s, but the recording has only {file_s:.2f} s"
    if row.end_s is not None and row.end_s <= row.start_s:
        return f"ends at {row.end_s:g} s, before it starts"
    return (file_s if row.end_s is None else row.end_s) - row.start_s


def _note_header(findings: Findings, part: int, row: int, found: float | str, limits: Limits) -> float | None:
    if isinstance(found, str):
        findings.add(_kind_of(found), part, row, found)
        return None
    if found > limits.window_s:
        findings.add("over-window", part, row, f"{found:.1f} s; the model takes {limits.window_s:g} s", weight=found)
    return found


def _kind_of(reason: str) -> str:
    if "no such file" in reason:
        return "missing"
    short = ("truncated", "breaks off", "but the recording has only")
    return "truncated" if any(word in reason for word in short) else "unreadable"


def _note_text(
    findings: Findings, part: int, number: int, limits: Limits, language: str | None, task: str
) -> int | None:
    row = findings.parts[part].rows[number]
    text = limits.clean(row.text)
    if not text:
        if not row.no_speech:
            findings.add("empty-text", part, number, "no text")
        return None
    try:
        return limits.n_tokens(text, row.language or language, task)
    except TooLongError as error:
        is_sure = limits.preparation is not None or len(text) > LONGEST_TEXT
        kind = "over-token-limit" if is_sure else "perhaps-over-token-limit"
        findings.add(kind, part, number, str(error), weight=len(text))
        return estimated_tokens(text)


def _listen(
    findings: Findings, part: int, seconds: list[float | None], limits: Limits, progress: bool
) -> dict[int, Measures]:
    rows = findings.parts[part].rows

    def look(number: int) -> Measures | str:
        row = rows[number]
        too_long = seconds[number] > limits.window_s
        try:
            return measure_clip(row, end_s=row.start_s + limits.window_s if too_long else row.end_s)
        except AudioError as error:
            return str(error)

    readable = [number for number, one in enumerate(seconds) if one is not None]
    found = {}
    looked = map_in_threads(look, readable, f"sound of {findings.parts[part].name}", progress)
    for number, one in zip(readable, looked, strict=True):
        if isinstance(one, str):
            findings.add(_kind_of(one), part, number, one)
        else:
            found[number] = one
    return found


def _look_at_pairing(checked: CheckedData, part: int, measures: dict[int, Measures], losses: Losses | None) -> None:
    """Texts beside the wrong sound, first in stretches, then alone."""
    findings, rows = checked.findings, checked.parts[part].rows
    seconds, tokens = checked.seconds[part], checked.tokens[part]
    usable = [number for number in range(len(rows)) if seconds[number] and tokens[number]]
    heard = np.array([measures[n].speech_s if n in measures else seconds[n] for n in usable])
    sizes = text_sizes([rows[n].text[:MOST_READ] for n in usable], [tokens[n] for n in usable])
    speakers = [rows[n].speaker for n in usable]
    place = {row: number for number, row in enumerate(usable)}
    orders = [
        {place[sound]: place[text] for sound, text in order.items() if sound in place and text in place}
        for order in find_name_orders(
            [row.name for row in rows]
        )  # of all files: one that is missing has its number, too
    ]
    checked.correlations.append(correlate_lengths(heard, sizes))
    table = losses([rows[n] for n in usable]) if losses else None
    found = find_mispairings(
        heard, sizes, speakers, list(filter(None, orders)), None if table is None else gains_of(table)
    )
    mispairings = [_renumbered(one, usable) for one in found]
    checked.mispairings.append(mispairings)
    moved = set()
    for one in mispairings:
        kind = "other-order" if one.is_order else "shifted-texts"
        for number in one.rows:
            right = one.text_of.get(number)
            what = f"moved by {one.shift:+d}" if one.shift else "other order of the names"
            findings.add(kind, part, number, what, suggestion=None if right is None else rows[right].text)
        for number in one.doubtful.difference(one.rows):
            findings.add(kind, part, number, f"perhaps {what}: at the edge of the stretch", weight=-1.0)
        moved |= one.doubtful.union(one.rows)
    ratios, deviations = unusual_paces(heard, sizes, speakers)
    usual_spectrum = np.median([one.spectrum for one in measures.values()], axis=0) if measures else None
    explained = findings.rows(*UNUSABLE, "wrong-script", "silence")
    for row, ratio, deviation in zip(usable, ratios, deviations, strict=True):
        if row in moved or (part, row) in explained or deviation < SUSPECT:
            continue
        factor = misstated_rate(measures[row], usual_spectrum, ratio) if row in measures else None
        if factor:
            detail = f"speech and spectrum are about {factor:.1f} times as fast and high as others'"
            findings.add("wrong-rate", part, row, detail, weight=abs(np.log(factor)))
        elif deviation > OUTLIER:
            much = f"{ratio:.1f} times the usual pace" if ratio > 1 else f"{1 / ratio:.1f} times as long as usual"
            detail = f"{tokens[row]} tokens in {seconds[row]:.1f} s: {much}"
            findings.add("too-much-text" if ratio > 1 else "too-little-text", part, row, detail, weight=deviation)
    if table is not None:
        alone = np.where([row in moved for row in usable], np.nan, table[:, table.shape[1] // 2])
        for number, why in unlikely_texts(alone, by_text(table)):
            findings.add("unlikely-text", part, usable[number], why, weight=float(alone[number]))


def _renumbered(one: Mispairing, usable: Sequence[int]) -> Mispairing:
    """The same by the rows of the part; over a row that cannot be used it is not known whose text is whose."""
    text_of = {usable[sound]: usable[text] for sound, text in one.text_of.items()}
    if one.shift:
        text_of = {sound: text for sound, text in text_of.items() if sound - text == one.shift}
    doubtful = frozenset(usable[row] for row in one.doubtful)
    return Mispairing(tuple(usable[row] for row in one.rows), text_of, one.shift, one.evidence, one.chance, doubtful)
