"""The kinds of findings: why each matters and what to do about it. And the list of what a check found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.checking.report import ReportedClip, ReportedFinding
from whisper_peft.data.rows import Row

# Clips of one kind that a report lists. The count is of all.
MOST_LISTED = 200
# Characters of a text that a report shows.
MOST_REPORTED_CHARACTERS = 300
# Characters of a text that are looked at. No text of a clip has as many.
MOST_READ = 20_000
SEVERITIES = ("error", "warning", "note")

Place = tuple[int, int]
"""Number of a source, and number of a row in it; both from 0."""


@dataclass(frozen=True)
class FindingKind:
    """A kind of fault.

    Attributes:
        severity: One of SEVERITIES.
        why: What the fault is and why it matters, without a full stop.
        remedy: What to do about it, without a full stop.
    """

    severity: str
    why: str
    remedy: str


@dataclass(frozen=True)
class SourceRows:
    """One source with its rows.

    Attributes:
        name: The source as the user wrote it.
        rows: Its rows, in their order.
        split: Sources of one split may share speakers and sentences; two splits may not.
    """

    name: str
    rows: Sequence[Row]
    split: str


@dataclass(frozen=True)
class Occurrence:
    """One row that has a fault.

    Attributes:
        detail: What is wrong with it, in a few words.
        weight: Rows with the largest weight are listed first.
        suggestion: A better text; None if there is none.
    """

    detail: str
    weight: float = 0.0
    suggestion: str | None = None


# A report lists what is equally severe in this order.
# fmt: off
KINDS: dict[str, FindingKind] = {
    "shifted-texts": FindingKind(
        "error", "texts stand beside the wrong sound, moved by a few rows: all of them teach wrong words",
        "find the row that is missing or twice where the stretch begins; --fix pairs them anew where it is sure"),
    "other-order": FindingKind(
        "error", "files and texts were sorted in two ways, one by letters (rec_10 before rec_2): most pairs are wrong",
        "pair them by name, not by place in a list; --fix does it"),
    "times-elsewhere": FindingKind(
        "error", "start and end do not seem to be times in these files, so sound cut there would not match the text",
        "take each file whole (--times ignore, data.times: ignore), or correct the columns; --times use keeps to them"),
    "unknown-language": FindingKind(
        "error", "the row names a language that Whisper does not know; such rows are never taken for another language",
        "correct the column, or say --language where all rows are of one, or borrow a related language's token: "
        "--language-token LANG"),
    "text-in-prompt": FindingKind(
        "error", "the text stands in its own prompt: the model would learn to copy what it was told",
        "name no prompt column, or one that holds what was said before the clip"),
    "bad-segments": FindingKind(
        "error", "the times of the row's segments cannot be right, so it is not known when what is said",
        "correct the times, or leave the segments out"),
    "missing": FindingKind(
        "error", "there is no such file, so the clip is never learnt from",
        "correct the path, or leave the row out"),
    "unreadable": FindingKind(
        "error", "the file cannot be decoded, so the clip is never learnt from",
        "fetch or convert the file again, or leave the row out"),
    "truncated": FindingKind(
        "error", "the file holds less sound than it states, while the text is whole",
        "copy the file again, or leave the row out"),
    "over-window": FindingKind(
        "error", "longer than the model's window; cut audio with the whole text would teach to skip speech",
        "cut the clip and its text, or give the times of its segments (docs/data.md)"),
    "over-token-limit": FindingKind(
        "error", "the text has more tokens than the model takes, and is never cut",
        "cut the clip and its text"),
    "empty-text": FindingKind(
        "error", "there is no text, so the clip is not learnt from",
        "write it down, or say no_speech where nobody speaks"),
    "wrong-script": FindingKind(
        "error", "the text is not in the script of its language: another language, a romanisation or a broken encoding",
        "correct the text or the language, or leave the row out"),
    "broken-characters": FindingKind(
        "error", "characters that no text has (U+FFFD, private use): it was read in a wrong encoding",
        "take the text from its origin again, as UTF-8"),
    "two-texts": FindingKind(
        "error", "the same sound has two texts, one of which must be wrong",
        "listen, and keep the right one"),
    "shared-audio": FindingKind(
        "error", "the same sound is in two splits, so scores on one are for what the model learnt from the other",
        "take it out of one of them"),
    "silence": FindingKind(
        "error", "there is text but no sound: the model learns to make up words",
        "leave the clip out, or drop the text and say no_speech"),
    "wrong-rate": FindingKind(
        "error", "pace and pitch are both far from the other clips': the header states a wrong sampling rate",
        "write the right rate into the header, as sox -r does; never resample"),
    "unlikely-text": FindingKind(
        "warning", "the model finds this text far less likely for its sound than others: it may belong to another clip",
        "listen, and correct the text or leave the row out"),
    "too-much-text": FindingKind(
        "warning", "more text than can be said in the time: the audio is cut, or the text belongs to another clip",
        "listen, and correct the row or leave it out"),
    "too-little-text": FindingKind(
        "warning", "less text than the time has room for: words are missing, there is long silence, or another's text",
        "listen, and correct the row or leave it out"),
    "times-cut": FindingKind(
        "warning", "start and end leave out sound that no other row uses, while the text may be that of the whole file",
        "listen; take each file whole with --times ignore (data.times: ignore)"),
    "perhaps-over-token-limit": FindingKind(
        "warning", "the text may have more tokens than the model takes; without a model its tokens are only estimated",
        "name the model (--model), which counts them"),
    "shared-text": FindingKind(
        "warning", "a sentence is in two splits, so scores on one are too good: the model learnt it from the other",
        "take it out of one of them"),
    "shared-speaker": FindingKind(
        "warning", "a speaker is in two splits, so scores are for voices that the model heard in training",
        "give each speaker to one split, or remember that the scores are for known voices"),
    "duplicate-audio": FindingKind(
        "warning", "the same sound is there twice, and is learnt twice as often",
        "keep one of them"),
    "duplicate-row": FindingKind(
        "warning", "the same row is there twice, and is learnt twice as often",
        "keep one of them"),
    "integer-scale": FindingKind(
        "warning", "float samples on the scale of integers, which many tools read as noise; here they are scaled down",
        "nothing has to be done for this tool; for others, divide the samples or write the file as integers"),
    "opposite-channels": FindingKind(
        "warning", "the channels cancel each other when they are mixed to one; here one is inverted where they do",
        "nothing has to be done for this tool; for others, invert one channel or keep only one"),
    "clipping": FindingKind(
        "warning", "the waveform is cut at full scale: it sounds distorted",
        "record at a lower level, or leave the clip out"),
    "low-level": FindingKind(
        "warning", "very quiet speech: noise of the recording is near it",
        "see whether it can be understood; amplify it, or leave it out"),
    "steady-noise": FindingKind(
        "warning", "the level never changes, as it does in speech: hum, noise or a tone",
        "listen, and leave it out where nobody speaks"),
    "markup": FindingKind(
        "warning", "tags, brackets or entities in the text would be learnt as words",
        "take them out; --fix does"),
    "control-characters": FindingKind(
        "warning", "invisible characters in the text would be learnt",
        "take them out; --fix does"),
    "mixed-normal-forms": FindingKind(
        "warning", "the same letters are spelt in two ways (NFC and NFD), which look alike but are different tokens",
        "leave data.text.normal_form at NFC, as it is by default; --fix writes NFC"),
    "digits": FindingKind(
        "warning", "numbers are in digits where other texts have words, so the model learns two ways to write them",
        "write numbers as they are spoken"),
    "language-as-said": FindingKind(
        "note", "the rows name a language that Whisper does not know, and are taken for the one that --language says",
        "fine if that is what you mean"),
    "mixed-script": FindingKind(
        "note", "a word has letters of two scripts: look-alikes that were typed or recognised wrongly",
        "correct the letters"),
    "spaced-words": FindingKind(
        "note", "spaces between the words of a script that has none: the model learns to write them",
        "take them out if readers do not want them; the normalised CER does not count them"),
    "duplicate-text": FindingKind(
        "note", "the same sentence several times; fine from several speakers, else the model learns it by heart",
        "make sure that a few sentences do not make up most of the set"),
    "casing": FindingKind(
        "note", "most texts use capital letters in one way, these in another",
        "choose one way; data.text.lowercase makes all letters small"),
    "punctuation": FindingKind(
        "note", "most texts end with a mark of punctuation, or most do not; these are the others",
        "choose one way; data.text.remove_punctuation removes all marks"),
    "narrow-band": FindingKind(
        "note", "nothing above 4 kHz, as on the telephone, whatever the header states, while other clips have it",
        "fine if the speech to be recognised is like that, too"),
}
# fmt: on


def mark_unprintable(text: str) -> str:
    r"""Replace characters that cannot be written as UTF-8 (file names may be any bytes) or would move a cursor.

    Example:
        >>> mark_unprintable("clip\x1b[2J.wav")
        'clip�[2J.wav'
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    # Joiners are not printable for Python, but they spell.
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in text)


class Findings:
    """The list of faults, kind by kind.

    Args:
        sources: The sources that are looked at. A source is known by its number in this list.

    Attributes:
        occurrences: For each kind, the rows that have it.

    Example:
        >>> findings = Findings([SourceRows("clips", [Row("a.wav", ""), Row("b.wav", "word")], "train")])
        >>> findings.add("empty-text", 0, 0, "no text")
        >>> findings.rows("empty-text"), findings.count("error")
        ({(0, 0)}, 1)
    """

    def __init__(self, sources: Sequence[SourceRows]):
        self.sources = sources
        self.occurrences: defaultdict[str, dict[Place, Occurrence]] = defaultdict(dict)

    def add(
        self, kind: str, source: int, row: int, detail: str, *, weight: float = 0.0, suggestion: str | None = None
    ) -> None:
        """Note that a row has a fault. Only the first note of a kind counts for a row.

        Args:
            kind: One of KINDS.
            source: Number of the source.
            row: Number of the row in its source.
            detail: What is wrong with it, in a few words.
            weight: Rows with the largest weight are listed first.
            suggestion: A better text.
        """
        if kind not in KINDS:
            raise KeyError(kind)
        self.occurrences[kind].setdefault((source, row), Occurrence(detail, weight, suggestion))

    def rows(self, *kinds: str) -> set[Place]:
        """Return all rows that have a fault of one of these kinds."""
        return {place for kind in kinds for place in self.occurrences.get(kind, ())}

    def count(self, severity: str) -> int:
        """Count the rows that have a fault of this severity."""
        return len(self.rows(*(kind for kind, about in KINDS.items() if about.severity == severity)))

    def report(self, seconds: Sequence[Sequence[float | None]]) -> list[ReportedFinding]:
        """List the faults, the worst first; see docs/check.md.

        Args:
            seconds: For each source, the seconds of each row; None where they are not known.
        """
        listed = []
        for kind, about in KINDS.items():
            occurrences = self.occurrences.get(kind)
            if not occurrences:
                continue
            worst = sorted(occurrences.items(), key=lambda item: -item[1].weight)[:MOST_LISTED]
            clips = []
            for (source, row), occurrence in worst:
                clips.append(self._report_clip(source, row, occurrence, seconds[source][row]))
            listed.append(
                ReportedFinding(kind, about.severity, len(occurrences), about.why, about.remedy, clips),
            )
        return sorted(listed, key=lambda finding: SEVERITIES.index(finding.severity))

    def _report_clip(self, source: int, number: int, occurrence: Occurrence, seconds: float | None) -> ReportedClip:
        row = self.sources[source].rows[number]
        start_s = None
        if row.start_s or row.end_s is not None:
            start_s = row.start_s
        suggestion = occurrence.suggestion
        if suggestion is not None:
            suggestion = mark_unprintable(suggestion[:MOST_REPORTED_CHARACTERS])
        return ReportedClip(
            name=mark_unprintable(row.name),
            source=self.sources[source].name,
            row=number,
            place=mark_unprintable(row.place),
            detail=mark_unprintable(occurrence.detail),
            text=row.text[:MOST_REPORTED_CHARACTERS].encode("utf-8", "replace").decode("utf-8"),
            duration_s=seconds,
            start_s=start_s,
            end_s=row.end_s,
            suggestion=suggestion,
        )
