"""The report of an export: what the runtime said beside what transformers said, and whether that is close enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whisper_peft.evaluation.metrics import paired_interval, score
from whisper_peft.evaluation.recording_scores import count_loops
from whisper_peft.evaluation.whole_recordings import LEAST_FOR_INTERVAL

# An output with less than this share of the characters of its reference has ended early.
ENDED_EARLY = 0.6
# Largest CER, in percent points over that of transformers, of an export that is not quantised. It fails above this if
# the interval of the difference lies above zero, too.
CER_LIMIT = 0.01
# The same for a quantised export.
QUANTIZED_CER_LIMIT = 0.05
# With fewer outputs than an interval needs, a CER fails only above this limit.
FEW_CER_LIMIT = 0.1
# Faults of single outputs: the key in the report, and the words for one output and for several.
FAULTS = {
    "empty": ("is empty", "are empty"),
    "looping": ("loops", "loop"),
    "ended_early": ("ends early", "end early"),
}


@dataclass(frozen=True)
class SideScores:
    """The figures of one side, transformers or the runtime.

    Attributes:
        wer: Word error rate, as a fraction.
        cer: Character error rate, as a fraction.
        empty: Number of outputs without text.
        looping: Number of outputs that repeat themselves where the reference does not.
        ended_early: Number of outputs with less than 60 % of the characters of their reference.
        seconds: Time that decoding took, in seconds.
        real_time_factor: `seconds` divided by the length of the sound.
    """

    wer: float
    cer: float
    empty: int
    looping: int
    ended_early: int
    seconds: float
    real_time_factor: float


@dataclass(frozen=True)
class SoundComparison:
    """One kind of sound in both: single clips, or recordings that are joined from them.

    Attributes:
        sound: "clips" or "recordings".
        number: How many there are.
        sound_seconds: Their length together, in seconds.
        transformers: The figures of transformers.
        runtime: The figures of the runtime.
        cer_difference: CER of the runtime minus CER of transformers, 95 % interval over the outputs.
        differing: Number of outputs that differ, spaces and case aside.
        new_faults: The outputs that are empty, looping or ended early in the runtime and are not in transformers: for
            each its number, the fault, and the three texts.
        texts: For each output that differs its number and the three texts.
    """

    sound: str
    number: int
    sound_seconds: float
    transformers: SideScores
    runtime: SideScores
    cer_difference: tuple[float, float]
    differing: int
    new_faults: list[dict[str, Any]]
    texts: list[dict[str, Any]]

    @property
    def cer_gap(self) -> float:
        """CER of the runtime minus CER of transformers, as a fraction."""
        return self.runtime.cer - self.transformers.cer

    def is_worse_by(self, limit: float) -> bool:
        """Tell whether the runtime's CER is worse by more than a limit, with the whole interval above zero.

        For fewer than `LEAST_FOR_INTERVAL` outputs, the limit is `FEW_CER_LIMIT`, without an interval.
        """
        if self.number < LEAST_FOR_INTERVAL:
            return self.cer_gap > FEW_CER_LIMIT
        return self.cer_gap > limit and self.cer_difference[0] > 0


@dataclass(frozen=True)
class ExportReport:
    """The result of `export`, and what export_report.json holds.

    Attributes:
        model: The model, run or adapter that was exported.
        format: Name of the format.
        quantization: The type of the weights.
        runtime: Name of the runtime.
        runtime_version: Its version; None if it is not installed.
        size: Size of the exported weights in bytes.
        proved: Whether the runtime was compared with transformers.
        checked_on: Where the clips came from, in words; None without a proof.
        language: Whisper's code of the language of the clips; None if they have several, or without a proof.
        encoder_gap: Largest difference of an encoder output between the runtime and transformers in float32, divided by
            the largest absolute output; None where the runtime does not give it.
        comparisons: The clips, and the recordings that are joined from them.
        notes: What the user should know when running the export, one sentence each.
    """

    model: str
    format: str
    quantization: str
    runtime: str
    runtime_version: str | None
    size: int
    proved: bool
    checked_on: str | None
    language: str | None
    encoder_gap: float | None
    comparisons: tuple[SoundComparison, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON content."""
        return dataclasses.asdict(self)


def compare(
    sound: str,
    references: Sequence[str],
    transformers_texts: Sequence[str],
    runtime_texts: Sequence[str],
    *,
    sound_seconds: float,
    transformers_seconds: float,
    runtime_seconds: float,
) -> SoundComparison:
    """Compare the outputs of a runtime with those of transformers.

    Args:
        sound: "clips" or "recordings".
        references: What was spoken.
        transformers_texts: What transformers wrote.
        runtime_texts: What the runtime wrote.
        sound_seconds: Length of all sound together, in seconds.
        transformers_seconds: Time that transformers took, in seconds.
        runtime_seconds: Time that the runtime took, in seconds.
    """
    faults_before = [_faults_of(*pair) for pair in zip(references, transformers_texts, strict=True)]
    faults_after = [_faults_of(*pair) for pair in zip(references, runtime_texts, strict=True)]
    new_faults = []
    differing = []
    for number, reference in enumerate(references):
        texts = {
            "number": number,
            "reference": reference,
            "transformers": transformers_texts[number],
            "runtime": runtime_texts[number],
        }
        if _plain(transformers_texts[number]) != _plain(runtime_texts[number]):
            differing.append(texts)
        for fault in sorted(faults_after[number] - faults_before[number]):
            new_faults.append({**texts, "fault": fault})
    return SoundComparison(
        sound=sound,
        number=len(references),
        sound_seconds=round(sound_seconds, 2),
        transformers=_score_side(references, transformers_texts, faults_before, transformers_seconds, sound_seconds),
        runtime=_score_side(references, runtime_texts, faults_after, runtime_seconds, sound_seconds),
        cer_difference=paired_interval(references, transformers_texts, runtime_texts, metric="cer"),
        differing=len(differing),
        new_faults=new_faults,
        texts=differing,
    )


def find_failure(report: ExportReport, *, quantized: bool) -> str | None:
    """Say in words why an export is not good enough; None if it is.

    An export fails if its CER is too far above that of transformers. One that is not quantised fails also if an output
    is empty, loops or ends early where that of transformers does not.

    Args:
        report: What was measured.
        quantized: Whether the weights are quantised.
    """
    limit = QUANTIZED_CER_LIMIT if quantized else CER_LIMIT
    for comparison in report.comparisons:
        if comparison.new_faults and not quantized:
            fault = comparison.new_faults[0]["fault"]
            n_same = sum(new["fault"] == fault for new in comparison.new_faults)
            words = FAULTS[fault][n_same > 1]
            return (
                f"{n_same} of {comparison.number} {comparison.sound} {words} in {report.runtime} and not in "
                "transformers"
            )
        if comparison.is_worse_by(limit):
            allowed = limit if comparison.number >= LEAST_FOR_INTERVAL else FEW_CER_LIMIT
            return (
                f"the CER of {comparison.sound} is {comparison.runtime.cer:.1%} in {report.runtime} and "
                f"{comparison.transformers.cer:.1%} in transformers (at most {100 * allowed:g} points more are allowed)"
            )
    return None


def _faults_of(reference: str, text: str) -> set[str]:
    """Return the faults of an output, as keys of the report."""
    if not reference.strip():
        return set()
    if not text.strip():
        return {"empty"}
    faults = set()
    if count_loops(text) > count_loops(reference):
        faults.add("looping")
    if len(_plain(text)) < ENDED_EARLY * len(_plain(reference)):
        faults.add("ended_early")
    return faults


def _plain(text: str) -> str:
    """Return a text without the differences that nobody hears: case and spaces."""
    return "".join(text.split()).casefold()


def _score_side(
    references: Sequence[str], texts: Sequence[str], faults: Sequence[set[str]], seconds: float, sound_seconds: float
) -> SideScores:
    rates: dict[str, Any] = score(references, texts)
    counts = {fault: sum(fault in of_output for of_output in faults) for fault in FAULTS}
    return SideScores(
        wer=rates["wer"],
        cer=rates["cer"],
        **counts,
        seconds=round(seconds, 2),
        real_time_factor=round(seconds / sound_seconds, 4),
    )
