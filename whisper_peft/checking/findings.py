"""What can be wrong with a data set, why it matters and what to do about it; and the list of what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.checking.report import ReportedClip, ReportedFinding
from whisper_peft.data.rows import Row

MOST_LISTED = 200  # clips that a report lists of one kind; the count is of all
MOST_CHARACTERS = 300  # of a text in a report
MOST_READ = 20_000  # characters of a text that are looked at: no text of a clip has as many
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class FindingKind:
    """A kind of finding."""

    severity: str
    why: str
    remedy: str


@dataclass(frozen=True)
class SourceRows:
    """One source that is looked at."""

    name: str  # as the user wrote it
    rows: Sequence[Row]
    split: str  # sources of one split may share speakers and sentences, splits may not


# In the order in which a report lists what is equally severe.
# fmt: off
KINDS: dict[str, FindingKind] = {
    "shifted-texts": FindingKind(
        "error", "texts stand beside the wrong sound, moved by a few rows: all of them teach wrong words",
        "find the row that is missing or twice where the stretch begins; --fix pairs them anew where it is sure"),
    "other-order": FindingKind(
        "error", "files and texts were paired in two orders, one by letters (rec_10 before rec_2): most are wrong",
        "pair them by name, not by place in a list; --fix does it"),
    "times-elsewhere": FindingKind(
        "error", "start and end do not seem to be times in these files, and sound cut there would not be what is said",
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
        "error", "the same sound is in two splits: figures on one are of what was learnt from the other",
        "take it out of one of them"),
    "silence": FindingKind(
        "error", "there is text but no sound: the model learns to make up words",
        "leave the clip out, or drop the text and say no_speech"),
    "wrong-rate": FindingKind(
        "error", "pace and pitch are both far from everybody's: the header states a wrong sampling rate",
        "write the right rate into the header, as sox -r does; never resample"),
    "unlikely-text": FindingKind(
        "warning", "the model finds this text far less likely for its sound than others: it may be of another clip",
        "listen, and correct the text or leave the row out"),
    "too-much-text": FindingKind(
        "warning", "more text than can be said in the time: the audio is cut, or the text of another clip",
        "listen, and correct the row or leave it out"),
    "too-little-text": FindingKind(
        "warning", "less text than the time holds: words are missing, or there is long silence, or another's text",
        "listen, and correct the row or leave it out"),
    "times-cut": FindingKind(
        "warning", "start and end leave out sound that no other row uses, while the text may be that of the whole file",
        "listen; take each file whole with --times ignore (data.times: ignore)"),
    "perhaps-over-token-limit": FindingKind(
        "warning", "the text may have more tokens than the model takes; without a model its tokens are only estimated",
        "name the model (--model), which counts them"),
    "shared-text": FindingKind(
        "warning", "a sentence is in two splits: the figures on one flatter what was learnt from the other",
        "take it out of one of them"),
    "shared-speaker": FindingKind(
        "warning", "a speaker is in two splits: the figures are of voices that were heard in training",
        "give each speaker to one split, or know that the figures are of known voices"),
    "duplicate-audio": FindingKind(
        "warning", "the same sound is there twice, and is learnt twice as often",
        "keep one of them"),
    "duplicate-row": FindingKind(
        "warning", "the same row is there twice, and is learnt twice as often",
        "keep one of them"),
    "integer-scale": FindingKind(
        "warning", "float samples on the scale of integers, which many tools read as noise; they are divided by it",
        "nothing has to be done for this tool; for others, divide the samples or write the file as integers"),
    "opposite-channels": FindingKind(
        "warning", "the channels cancel each other when they are mixed to one; they are turned over where they do",
        "nothing has to be done for this tool; for others, turn one channel over or keep one only"),
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
        "warning", "the same letters are spelt in two ways (NFC and NFD), which look alike and are other tokens",
        "leave data.text.normal_form at NFC, as it is by default; --fix writes NFC"),
    "digits": FindingKind(
        "warning", "numbers in digits where other texts have words: one is read in two ways",
        "write numbers as they are spoken"),
    "language-as-said": FindingKind(
        "note", "the rows name a language that Whisper does not know, and are taken for the one that --language says",
        "fine if that is what you mean"),
    "mixed-script": FindingKind(
        "note", "letters of two scripts within a word: look-alikes, typed or recognised wrongly",
        "correct the letters"),
    "spaced-words": FindingKind(
        "note", "spaces between the words of a script that has none: the model learns to write them",
        "take them out if readers do not want them; the normalised CER does not count them"),
    "duplicate-text": FindingKind(
        "note", "the same sentence several times; fine from several speakers, else it is learnt by heart",
        "see that few sentences do not make up the set"),
    "casing": FindingKind(
        "note", "most texts have one policy of capital letters, these another",
        "take one policy: data.text.lowercase makes all small"),
    "punctuation": FindingKind(
        "note", "most texts end with a mark of punctuation, or most do not; these are the others",
        "take one policy: data.text.remove_punctuation takes all marks out"),
    "narrow-band": FindingKind(
        "note", "nothing above 4 kHz, as on the telephone, whatever the header states, while other clips have it",
        "fine if the speech to be recognised is like that, too"),
}
# fmt: on


def printable(text: str) -> str:
    """The text, with marks for what cannot be written as UTF-8 (file names may be any bytes) or would move a cursor."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in text)


class Findings:
    """What was found, kind by kind; rows are (number of the part, number of the row)."""

    def __init__(self, parts: Sequence[SourceRows]):
        self.parts = parts
        self.found: defaultdict[str, dict[tuple[int, int], tuple[float, str, str | None]]] = defaultdict(dict)

    def add(
        self, kind: str, part: int, row: int, detail: str, *, weight: float = 0.0, suggestion: str | None = None
    ) -> None:
        """Note a row; once for each kind.

        Args:
            kind: one of KINDS.
            part: its number.
            row: its number in the part.
            detail: what is the matter with it, in a few words.
            weight: the heaviest are listed first.
            suggestion: a better text.
        """
        if kind not in KINDS:
            raise KeyError(kind)
        self.found[kind].setdefault((part, row), (weight, detail, suggestion))

    def rows(self, *kinds: str) -> set[tuple[int, int]]:
        """All rows with one of these kinds."""
        return {row for kind in kinds for row in self.found.get(kind, ())}

    def report(self, seconds_of: Sequence[Sequence[float | None]]) -> list[ReportedFinding]:
        """List the findings, worst first; see docs/check.md.

        Args:
            seconds_of: part -> row -> seconds, None where they are not known.
        """
        listed = []
        for kind, about in KINDS.items():
            if rows := self.found.get(kind):
                worst = sorted(rows.items(), key=lambda item: -item[1][0])[:MOST_LISTED]
                clips = [self._clip(place, *noted, seconds_of) for place, noted in worst]
                listed.append(ReportedFinding(kind, about.severity, len(rows), about.why, about.remedy, clips))
        return sorted(listed, key=lambda finding: SEVERITIES.index(finding.severity))

    def count(self, severity: str) -> int:
        """How many clips have a finding so severe."""
        return len(self.rows(*(kind for kind, about in KINDS.items() if about.severity == severity)))

    def _clip(
        self,
        place: tuple[int, int],
        weight: float,
        detail: str,
        suggestion: str | None,
        seconds_of: Sequence[Sequence[float | None]],
    ) -> ReportedClip:
        part, number = place
        row = self.parts[part].rows[number]
        is_piece = bool(row.start_s) or row.end_s is not None
        return ReportedClip(
            name=printable(row.name),
            source=self.parts[part].name,
            row=number,
            place=printable(row.place),
            detail=printable(detail),
            text=row.text[:MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8"),
            duration_s=seconds_of[part][number],
            start_s=row.start_s if is_piece else None,
            end_s=row.end_s,
            suggestion=None if suggestion is None else printable(suggestion[:MOST_CHARACTERS]),
        )
