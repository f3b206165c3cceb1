"""The figures that `evaluate` returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one model on one source.

    Each attribute has the name of its key in report.json. Rates are fractions (0.25 is 25 %) of all words (`wer`) or of
    all characters (`cer`) of the references. The mark-preserving normaliser prepares both texts for the rates that are
    called `…_normalized`; the other rates compare the texts as they are written.

    Attributes:
        model: MODEL, as the caller named it.
        source: SRC, as the caller named it.
        language: Whisper's code of the language that all clips share; None if they have several, or if the checkpoint
            is English-only.
        clips: Number of clips that were scored.
        normalizer: Name and version of the normaliser.
        token_loss: Mean teacher-forced loss over all reference tokens, in nats; None without tokens.
        reached_limit: Number of transcripts that the limit on tokens ended.
        left_out: Number of clips that could not be used.
        wer_interval: 95 % bootstrap interval of `wer` over clips.
        cer_interval: 95 % bootstrap interval of `cer` over clips.
        max_new_tokens: Largest number of tokens that the model could generate for a clip; None if its runtime decides.
        beams: Number of beams; 1 is greedy. None if its runtime decides.
        window: Kind of window that the clips were heard in.
        precision: Precision that the model ran in; for an exported model, the type of its weights.
        seconds: Time that transcribing and scoring took, in seconds.
        recordings: Scores of whole recordings, as `recording_figures` returns them; None if none was scored as a whole.
        runtime: Name and version of the program that ran an exported model; None for transformers.
    """

    model: str
    source: str
    language: str | None
    clips: int
    normalizer: str
    wer: float
    wer_substitutions: int
    wer_deletions: int
    wer_insertions: int
    wer_hits: int
    wer_reference_length: int
    cer: float
    cer_substitutions: int
    cer_deletions: int
    cer_insertions: int
    cer_hits: int
    cer_reference_length: int
    wer_normalized: float
    wer_normalized_substitutions: int
    wer_normalized_deletions: int
    wer_normalized_insertions: int
    wer_normalized_hits: int
    wer_normalized_reference_length: int
    cer_normalized: float
    cer_normalized_substitutions: int
    cer_normalized_deletions: int
    cer_normalized_insertions: int
    cer_normalized_hits: int
    cer_normalized_reference_length: int
    token_loss: float | None
    reached_limit: int
    left_out: int
    wer_interval: tuple[float, float]
    cer_interval: tuple[float, float]
    max_new_tokens: int | None
    beams: int | None
    window: str
    precision: str
    seconds: float
    recordings: dict[str, Any] | None = None
    runtime: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of report.json: the attributes by name; `recordings` and `runtime` only if not None."""
        content = dataclasses.asdict(self)
        for name in ("recordings", "runtime"):
            if content[name] is None:
                del content[name]
        return content
