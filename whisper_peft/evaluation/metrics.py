"""Word and character error rates with counts and intervals, and the same as an offline `evaluate` metric.

Rates are fractions: 0.25 is 25 %. They come from counts that are summed over all clips, so a long clip weighs more than
a short one. A rate passes 1.0 if a model inserts more than it gets right.

A character is a code point of the NFC text, not a grapheme. The single space between two words counts as one character.
In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Myanmar, Tibetan), a "word" is whatever stands between
two spaces, so the word error rate means little there. Read the normalised character error rate instead: it does not
count spaces beside letters of such a script.
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
ERROR_MEASURES: tuple[Measure, ...] = ("wer", "cer", "wer_normalized", "cer_normalized")
# Column of each of jiwer's words in the arrays of counts.
COUNT_COLUMNS = {"substitute": 0, "delete": 1, "insert": 2, "equal": 3}


@dataclass(frozen=True)
class ErrorRate:
    """An error rate and its counts, in words or in characters.

    The rate is (substitutions + deletions + insertions) / reference_length. If all references are empty, as those of
    clips without speech, the divisor is 1: the rate is then the number of inserted words or characters, and never
    infinite.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    reference_length: int

    def as_dict(self) -> dict[str, float | int]:
        """Return the fields by name, ready for JSON."""
        return asdict(self)


def word_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorRate:
    """Count word errors of texts as they are written (NFC, white space collapsed), over all clips together.

    Raises:
        UserError: There is nothing to score, or not one prediction for each reference.
    """
    return _error_rate(_count_errors(references, predictions, "wer"))


def character_errors(references: Sequence[str], predictions: Sequence[str]) -> ErrorRate:
    """Count character errors of texts as they are written (NFC, white space collapsed), over all clips together.

    Raises:
        UserError: There is nothing to score, or not one prediction for each reference.
    """
    return _error_rate(_count_errors(references, predictions, "cer"))


def score(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float | int | str]:
    """Score predictions both as they are written and after the mark-preserving normaliser.

    The normalised character error rate does not count the spaces of a script that has none between words. It does count
    spaces between words of another script, such as English words within Chinese.

    Args:
        references: The right text of each clip.
        predictions: The text that a model made of each clip.

    Returns:
        A flat dict: `clips`; `normalizer`, its name and version; and the rates `wer`, `cer`, `wer_normalized` and
        `cer_normalized`. The counts of each rate follow under its name with `_substitutions`, `_deletions`,
        `_insertions`, `_hits` and `_reference_length`.

    Raises:
        UserError: There is nothing to score, or not one prediction for each reference.

    Example:
        >>> figures = score(["Good morning, Asha."], ["good evening asha"])
        >>> round(figures["wer"], 2), round(figures["wer_normalized"], 2), figures["wer_normalized_substitutions"]
        (1.0, 0.33, 1)
    """
    figures: dict[str, float | int | str] = {"clips": len(references), "normalizer": MARK_PRESERVING}
    for measure in ERROR_MEASURES:
        counts = _error_rate(_count_errors(references, predictions, measure)).as_dict()
        figures[measure] = counts.pop("rate")
        for name, count in counts.items():
            figures[f"{measure}_{name}"] = count
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
    """Compute the confidence interval of an error rate by a percentile bootstrap over clips.

    The interval shows how far the rate may move with another draw of such clips. It treats clips of one speaker as
    independent, so the true interval is wider if there are few speakers.

    Args:
        references: The right text of each clip.
        predictions: The text that a model made of each clip.
        metric: The rate, for example "wer".
        samples: Number of times that the clips are drawn anew.
        seed: Seed of the draws.
        confidence: Share of the resampled rates that lie within the interval.

    Returns:
        Lower and upper end.

    Raises:
        UserError: There is nothing to score, or not one prediction for each reference.

    Example:
        >>> bootstrap_interval(["a b", "c d", "e f"], ["a b", "c x", "e f"], metric="wer", seed=0)
        (0.0, 0.5)
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
    """Compute the confidence interval of the rate of model b minus the rate of model a, on the same resampled clips.

    If both ends are below zero, b is better. If zero lies inside, these clips cannot tell which is better. Both models
    heard the same clips, so this interval is much narrower than two separate ones suggest.

    Args:
        references: The right text of each clip.
        predictions_a: The text that model a made of each clip.
        predictions_b: The text that model b made of each clip.
        metric: The rate, for example "wer".
        samples: Number of times that the clips are drawn anew.
        seed: Seed of the draws.
        confidence: Share of the resampled differences that lie within the interval.

    Returns:
        Lower and upper end.

    Raises:
        UserError: There is nothing to score, or not one prediction of each model for each reference.
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
    """Compute the confidence interval of the token loss of model b minus that of model a, on the same resampled clips.

    Args:
        loss_sums_a: For each clip, its token losses under model a, summed.
        loss_sums_b: For each clip, its token losses under model b, summed.
        tokens: Number of tokens of each clip.
        samples: Number of times that the clips are drawn anew.
        seed: Seed of the draws.
        confidence: Share of the resampled differences that lie within the interval.

    Returns:
        Lower and upper end, in nats.

    Raises:
        UserError: There is nothing to compare, or not one value of each kind for each clip.
    """
    if not len(tokens) or len(loss_sums_a) != len(tokens) or len(loss_sums_b) != len(tokens):
        raise UserError(
            f"comparing losses: {len(loss_sums_a)} and {len(loss_sums_b)} loss sums, and {len(tokens)} numbers of "
            "tokens; give one of each for each clip."
        )
    sums = np.array([loss_sums_a, loss_sums_b], dtype=np.float64)  # (2, clips)
    lengths = np.array(tokens)  # (clips,)
    drawn = np.random.default_rng(seed).integers(0, len(lengths), (samples, len(lengths)))
    means = sums[:, drawn].sum(axis=2) / lengths[drawn].sum(axis=1)  # (2, samples)
    return _central_interval(means[1] - means[0], confidence)


def speech_error_rate() -> evaluate.Metric:
    """Build an `evaluate.Metric` that computes `score`. It fetches no script and needs no network.

    Its `compute(references=[...], predictions=[...])` returns the dict of `score`. So does `compute()` after `add` or
    `add_batch`.

    Example:
        >>> speech_error_rate().compute(references=["one two"], predictions=["one"])["wer"]
        0.5
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

    # With keep_in_memory, `evaluate` makes its cache folder but writes nothing into it. A temporary one leaves nothing
    # behind, and works where the home folder is read-only.
    with TemporaryDirectory() as folder:
        return SpeechErrorRate(keep_in_memory=True, cache_dir=folder)


def _count_errors(references: Sequence[str], predictions: Sequence[str], measure: Measure) -> np.ndarray:
    """Count the errors of each clip.

    Returns:
        int64 (clips, 4): substitutions, deletions, insertions and hits, see `COUNT_COLUMNS`.
    """
    import jiwer

    _check_texts(references, predictions)
    if measure not in ERROR_MEASURES:
        raise UserError(f"scoring: no measure is called '{measure}'; choose one of {', '.join(ERROR_MEASURES)}.")
    references, predictions = _prepare_texts(references, predictions, measure)
    by_words = measure.startswith("wer")
    counts = np.zeros((len(references), 4), dtype=np.int64)
    spoken = []
    for clip, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        if reference:
            spoken.append(clip)
        else:
            # jiwer 3 refuses empty references. All that a model recognises there is inserted.
            units = prediction.split() if by_words else prediction
            counts[clip, COUNT_COLUMNS["insert"]] = len(units)
    if not spoken:
        return counts
    align = jiwer.process_words if by_words else jiwer.process_characters
    alignments = align([references[clip] for clip in spoken], [predictions[clip] for clip in spoken]).alignments
    for clip, chunks in zip(spoken, alignments, strict=True):
        for chunk in chunks:
            # An insertion has no width in the reference, and a deletion has none in the prediction.
            width = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            counts[clip, COUNT_COLUMNS[chunk.type]] += width
    return counts


def _check_texts(references: Sequence[str], predictions: Sequence[str]) -> None:
    """Refuse anything but two lists of texts of the same length, at least one each."""
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


def _prepare_texts(
    references: Sequence[str], predictions: Sequence[str], measure: Measure
) -> tuple[list[str], list[str]]:
    """Return both texts of each clip in the form that a measure compares."""
    prepare = normalize if measure.endswith("_normalized") else as_written
    prepared_references = []
    prepared_predictions = []
    for reference, prediction in zip(references, predictions, strict=True):
        reference = prepare(reference)
        prediction = prepare(prediction)
        # Spaces are a typist's habit in such a script. The reference decides which script it is.
        if measure == "cer_normalized" and is_spaceless(reference or prediction):
            reference = without_word_spaces(reference)
            prediction = without_word_spaces(prediction)
        prepared_references.append(reference)
        prepared_predictions.append(prediction)
    return prepared_references, prepared_predictions


def _error_rate(counts: np.ndarray) -> ErrorRate:
    """Sum counts (clips, 4) over all clips."""
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
    """Compute the error rate of each model on the same random draws of clips.

    Args:
        counts: For each model, int64 (clips, 4).
        samples: Number of draws.
        seed: Seed of the draws.

    Returns:
        float64 (models, samples).
    """
    errors = np.stack([clips[:, :3].sum(axis=1) for clips in counts])  # (models, clips)
    # All models have the same references, so the counts of the first one give their lengths.
    lengths = counts[0][:, [0, 1, 3]].sum(axis=1)  # (clips,)
    rng = np.random.default_rng(seed)
    rates = np.empty((len(counts), samples))
    for sample in range(samples):
        drawn = rng.integers(0, len(lengths), len(lengths))
        rates[:, sample] = errors[:, drawn].sum(axis=1) / max(int(lengths[drawn].sum()), 1)
    return rates


def _central_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the two values between which the share `confidence` of all values lies."""
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(values, [tail, 1 - tail])
    return float(lower), float(upper)
