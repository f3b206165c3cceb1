"""Word and character error rates with their counts, their intervals, and the same as an offline `evaluate` metric.

Rates are fractions (0.25 is 25 %), of counts summed over all clips, so long clips weigh more than short ones. They pass
1.0 where a model inserts more than it gets right. A character is a code point of the NFC text, not a grapheme, and the
single space between two words counts as one. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Myanmar,
Tibetan) a "word" is whatever stands between two spaces, so the word error rate means little: read the normalised
character error rate, in which the spaces beside letters of such a script do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from whisper_peft.data.text import is_spaceless, without_word_spaces
from whisper_peft.errors import UserError
from whisper_peft.evaluation.normalizers import MARK_PRESERVING, as_written, normalize
from whisper_peft.files import short_repr

if TYPE_CHECKING:
    import evaluate

Measure = Literal["wer", "cer", "wer_normalized", "cer_normalized"]
MEASURES: tuple[Measure, ...] = ("wer", "cer", "wer_normalized", "cer_normalized")
_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2, "equal": 3}  # jiwer's words, in the order of the counts


@dataclass(frozen=True)
class ErrorRate:
    """An error rate and the counts it is made of, in words or in characters.

    `rate` is (substitutions + deletions + insertions) / reference_length. Where all references are empty (clips without
    speech) the divisor is 1, so the rate is the number of inserted words or characters, never infinite.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    reference_length: int

    def as_dict(self) -> dict[str, float | int]:
        """Returns the fields by name, ready for JSON."""
        return asdict(self)


def word_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorRate:
    """Counts word errors of the texts as written (NFC, white space collapsed), over all clips together.

    Raises:
        UserError: If there is nothing to score, or not one prediction for each reference.
    """
    return _error_rate(_count_errors(references, predictions, "wer"))


def character_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorRate:
    """Counts character errors of the texts as written (NFC, white space collapsed), over all clips together.

    Raises:
        UserError: If there is nothing to score, or not one prediction for each reference.
    """
    return _error_rate(_count_errors(references, predictions, "cer"))


def score(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float | int | str]:
    """Scores predictions as written and after the mark-preserving normaliser, side by side.

    In the normalised CER of a text in a script without spaces between words, spaces do not count; those between words
    of another script, as of English words within Chinese, do.

    Returns:
        A flat dict: `clips`, `normalizer` (its name and version), and for each of `wer`, `cer`, `wer_normalized` and
        `cer_normalized` the rate under that name and, under `wer_substitutions` and so on, `_deletions`, `_insertions`,
        `_hits` and `_reference_length`.

    Raises:
        UserError: If there is nothing to score, or not one prediction for each reference.
    """
    figures: dict[str, float | int | str] = {"clips": len(references), "normalizer": MARK_PRESERVING}
    for measure in MEASURES:
        for name, value in _error_rate(_count_errors(references, predictions, measure)).as_dict().items():
            figures[measure if name == "rate" else f"{measure}_{name}"] = value
    return figures


def bootstrap_interval(
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    metric: Measure,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Returns the lower and upper end of the error rate's confidence interval, by a percentile bootstrap over clips.

    It says how far the rate may move with another draw of such clips. Clips of one speaker are treated as independent,
    so with few speakers the true interval is wider.

    Raises:
        UserError: If there is nothing to score, or not one prediction for each reference.
    """
    rates = _resampled_rates([_count_errors(references, predictions, metric)], samples, seed)
    return _central_interval(rates[0], confidence)


def paired_interval(
    references: Sequence[str],
    predictions_a: Sequence[str],
    predictions_b: Sequence[str],
    *,
    metric: Measure,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Returns the confidence interval of the rate of b minus the rate of a, on the same resampled clips.

    Below zero at both ends, b is better; with zero inside, these clips cannot tell. Since both models heard the same
    clips, this is much narrower than comparing two separate intervals.

    Raises:
        UserError: If there is nothing to score, or not one prediction of each model for each reference.
    """
    counts = [_count_errors(references, predictions, metric) for predictions in (predictions_a, predictions_b)]
    rates_a, rates_b = _resampled_rates(counts, samples, seed)
    return _central_interval(rates_b - rates_a, confidence)


def paired_loss_interval(
    loss_sums_a: Sequence[float],
    loss_sums_b: Sequence[float],
    tokens: Sequence[int],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Returns the confidence interval of the token loss of b minus that of a, in nats, on the same resampled clips.

    Args:
        loss_sums_a: each clip's token losses under model a, summed.
        loss_sums_b: under model b.
        tokens: each clip's number of tokens.
        samples: of the bootstrap.
        seed: of the draw.
        confidence: of the interval.

    Raises:
        UserError: If there is nothing to compare, or not one value of each kind for each clip.
    """
    sums, lengths = np.array([loss_sums_a, loss_sums_b], dtype=np.float64), np.array(tokens)
    if not len(lengths) or sums.shape != (2, len(lengths)):
        raise UserError(f"comparing losses: {sums.shape[1:]} sums for {len(lengths)} clips; give one of each a clip.")
    drawn = np.random.default_rng(seed).integers(0, len(lengths), (samples, len(lengths)))
    means = sums[:, drawn].sum(axis=2) / lengths[drawn].sum(axis=1)  # (2, samples)
    return _central_interval(means[1] - means[0], confidence)


def speech_error_rate() -> evaluate.Metric:
    """Returns `score` as a real `evaluate.Metric`, built here: no script is fetched, no network is needed.

    `speech_error_rate().compute(references=[...], predictions=[...])` gives the dict of `score`; so do `add` and
    `add_batch` followed by `compute()`.
    """
    from tempfile import TemporaryDirectory

    import datasets
    import evaluate

    class SpeechErrorRate(evaluate.Metric):
        """Word and character error rates, raw and normalised."""

        def _info(self) -> evaluate.MetricInfo:
            text = datasets.Value("string")
            return evaluate.MetricInfo(
                description="Word and character error rates with counts, raw and normalised, computed with jiwer.",
                citation="",
                inputs_description="references and predictions: lists of str. Returns a dict of rates and counts.",
                features=datasets.Features({"predictions": text, "references": text}),
            )

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
            return score(references, predictions)

    # In memory, the cache folder is made but never written to: so a read-only home does no harm, and nothing stays.
    with TemporaryDirectory() as folder:
        return SpeechErrorRate(keep_in_memory=True, cache_dir=folder)


def _count_errors(references: Sequence[str], predictions: Sequence[str], measure: Measure) -> np.ndarray:
    """Returns int64 (clips, 4): substitutions, deletions, insertions and hits of each clip."""
    import jiwer

    if isinstance(references, str) or isinstance(predictions, str):
        raise UserError("scoring: got one string where a list is needed; put each clip's text into a list.")
    if len(references) != len(predictions):
        raise UserError(
            f"scoring: {len(references)} references but {len(predictions)} predictions; give one for each clip."
        )
    for name, texts in (("reference", references), ("prediction", predictions)):
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(
                    f"scoring: {name} {number} is {short_repr(text)}, not a text; give an empty text for silence."
                )
    if len(references) == 0:
        raise UserError("scoring: there are no clips to score; check the split's name and left_out.jsonl.")
    if measure not in MEASURES:
        raise UserError(f"scoring: no measure is called '{measure}'; choose one of {', '.join(MEASURES)}.")

    prepare = normalize if measure.endswith("_normalized") else as_written
    references = [prepare(text) for text in references]
    predictions = [prepare(text) for text in predictions]
    if measure == "cer_normalized":
        pairs = [_without_habits(*pair) for pair in zip(references, predictions, strict=True)]
        references = [reference for reference, _ in pairs]
        predictions = [prediction for _, prediction in pairs]
    counts = np.zeros((len(references), 4), dtype=np.int64)
    by_words = measure.startswith("wer")
    spoken = []
    for clip, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference:
            spoken.append(clip)
        else:  # jiwer 3 refuses empty references; all that was recognised there is inserted
            counts[clip, _COLUMNS["insert"]] = len(prediction.split()) if by_words else len(prediction)
    if spoken:
        align = jiwer.process_words if by_words else jiwer.process_characters
        alignments = align([references[clip] for clip in spoken], [predictions[clip] for clip in spoken]).alignments
        for clip, chunks in zip(spoken, alignments, strict=True):
            for chunk in chunks:
                # An insertion has no width in the reference, a deletion none in the prediction.
                width = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                counts[clip, _COLUMNS[chunk.type]] += width
    return counts


def _without_habits(reference: str, prediction: str) -> tuple[str, str]:
    """Both texts without the spaces that do not count, as the script of the reference decides."""
    if not is_spaceless(reference or prediction):
        return reference, prediction
    return without_word_spaces(reference), without_word_spaces(prediction)


def _error_rate(counts: np.ndarray) -> ErrorRate:
    substitutions, deletions, insertions, hits = (int(total) for total in counts.sum(axis=0))
    reference_length = substitutions + deletions + hits
    errors = substitutions + deletions + insertions
    return ErrorRate(
        rate=errors / max(reference_length, 1),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        hits=hits,
        reference_length=reference_length,
    )


def _resampled_rates(counts: Sequence[np.ndarray], samples: int, seed: int) -> np.ndarray:
    """Returns float64 (models, samples): each model's error rate on the same random draws of clips."""
    errors = np.stack([clips[:, :3].sum(axis=1) for clips in counts])  # (models, clips)
    lengths = counts[0][:, [0, 1, 3]].sum(axis=1)  # (clips,), the same references for all models
    rng = np.random.default_rng(seed)
    rates = np.empty((len(counts), samples))
    for sample in range(samples):
        drawn = rng.integers(0, len(lengths), len(lengths))
        rates[:, sample] = errors[:, drawn].sum(axis=1) / max(int(lengths[drawn].sum()), 1)
    return rates


def _central_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(values, [tail, 1 - tail])
    return float(lower), float(upper)
