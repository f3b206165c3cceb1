"""The report of `check`: sources, findings and counts, as objects and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReportedSource:
    """One source in figures.

    Attributes:
        name: The source as the user wrote it; for a recipe, its split and its source.
        split: Sources of one split may share speakers and sentences; two splits may not.
        clips: Number of rows.
        hours: Sum of the lengths that are known.
        speakers: Number of speakers; None if the rows name none.
        durations_s: Seconds of each clip whose length is known.
        tokens_per_second: For each clip whose length and text are known.
        characters: Count of each character that is no space, the most frequent first.
        scripts: Share of the letters in each of the eight most frequent scripts.
        languages: Number of clips for each language code.
        correlation_at_shift: Rank correlation of clip length and text length, for texts moved by "-3" to "3" rows.
    """

    name: str
    split: str
    clips: int
    hours: float
    speakers: int | None
    durations_s: list[float]
    tokens_per_second: list[float]
    characters: dict[str, int]
    scripts: dict[str, float]
    languages: dict[str, int]
    correlation_at_shift: dict[str, float]

    def as_dict(self) -> dict:
        """Return the source as JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class ReportedClip:
    """One clip of a finding.

    Attributes:
        name: Path of the file, or the name that the source gives it.
        source: Name of the source.
        row: Number of the row in its source, from 0.
        place: Where the row stands, for example "train.tsv:12".
        detail: What is wrong with this clip, in a few words.
        text: The transcript, at most its first 300 characters.
        duration_s: Seconds of the clip; None if they are not known.
        start_s: Where the clip starts in its file, in seconds; None if it is the whole file.
        end_s: Where the clip ends in its file, in seconds; None if it is the end of the file.
        suggestion: A better text; None if there is none.
    """

    name: str
    source: str
    row: int
    place: str
    detail: str
    text: str
    duration_s: float | None
    start_s: float | None = None
    end_s: float | None = None
    suggestion: str | None = None

    def as_dict(self) -> dict:
        """Return the clip as JSON has it: times only for a piece of a file, `suggestion` only if there is one."""
        entries = dict(vars(self))
        if self.start_s is None:
            del entries["start_s"]
            del entries["end_s"]
        if self.suggestion is None:
            del entries["suggestion"]
        return entries


@dataclass(frozen=True)
class ReportedFinding:
    """One kind of fault, with the clips that have it.

    Attributes:
        kind: Name of the kind, as in docs/check.md.
        severity: "error", "warning" or "note".
        count: Number of clips that have it.
        why: Why it matters.
        remedy: What to do about it.
        clips: At most 200 of the clips, the worst first.
    """

    kind: str
    severity: str
    count: int
    why: str
    remedy: str
    clips: list[ReportedClip]

    def as_dict(self) -> dict:
        """Return the finding as JSON has it."""
        return {**vars(self), "clips": [clip.as_dict() for clip in self.clips]}


@dataclass(frozen=True)
class Coverage:
    """How much was looked at.

    Attributes:
        headers: Number of files or pieces whose header was read.
        audio: Number of clips that were decoded.
        model: The model whose losses were computed; None if none was named.
        tokens: "counted" with a model's vocabulary, or "estimated".
    """

    headers: int
    audio: int
    model: str | None
    tokens: str

    def as_dict(self) -> dict:
        """Return the figures as JSON has them."""
        return dict(vars(self))


@dataclass(frozen=True)
class FixResult:
    """The result of `--fix`.

    Attributes:
        manifests: Paths of the cleaned manifests, one for each source.
        changes: Path of the list of rows that were changed or left out.
        kept: Number of rows in the manifests.
        changed: Number of those whose text was changed.
        left_out: Number of rows that are in no manifest.
    """

    manifests: list[str]
    changes: str
    kept: int
    changed: int
    left_out: int

    def as_dict(self) -> dict:
        """Return the result as JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`. Each attribute has the name of its key in JSON.

    Attributes:
        sources: The sources in figures: hours, speakers, lengths, characters, scripts, languages.
        findings: Kinds of faults with their clips, the worst first.
        errors: Number of clips with an error.
        warnings: Number of clips with a warning.
        notes: Number of clips with a note.
        checked: How much was looked at.
        seconds: How long the check took.
        remarks: What was passed over while the sources were read, one line each.
        fixed: What `fix` wrote; None if it was not asked for.
    """

    sources: list[ReportedSource]
    findings: list[ReportedFinding]
    errors: int
    warnings: int
    notes: int
    checked: Coverage
    seconds: float
    remarks: list[str] = field(default_factory=list)
    fixed: FixResult | None = None

    def as_dict(self) -> dict:
        """Return the report as `--json` prints it. The key `fixed` is missing if nothing was fixed."""
        entries: dict = {
            **vars(self),
            "sources": [source.as_dict() for source in self.sources],
            "findings": [finding.as_dict() for finding in self.findings],
            "checked": self.checked.as_dict(),
        }
        if self.fixed is None:
            del entries["fixed"]
        else:
            entries["fixed"] = self.fixed.as_dict()
        return entries
