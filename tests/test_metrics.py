"""Error rates equal a hand-made edit distance, intervals cover the truth, and the `evaluate` metric works offline."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from whisper_peft.errors import UserError
from whisper_peft.evaluation.metrics import (
    ERROR_MEASURES,
    ErrorRate,
    bootstrap_interval,
    character_errors,
    paired_interval,
    paired_loss_interval,
    score,
    speech_error_rate,
    word_errors,
)


def edit_distance(reference: Sequence[str], prediction: Sequence[str]) -> int:
    """Compute the edit distance with the textbook table, row by row."""
    row = list(range(len(prediction) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, predicted in enumerate(prediction, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != predicted))
    return row[-1]


def random_sentences(seed: int, clips: int) -> list[str]:
    rng = random.Random(seed)
    words = ["घर", "में", "हिन्दी", "a", "b", "ab", "ba", "น้ำ", "é", "😀"]
    return [" ".join(rng.choices(words, k=rng.randrange(0, 9))) for _ in range(clips)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("errors_of", "split"), [(word_errors, str.split), (character_errors, list)])
def test_counts_equal_a_hand_made_edit_distance(
    errors_of: Callable[[Sequence[str], Sequence[str]], ErrorRate], split: Callable[[str], list[str]], seed: int
) -> None:
    references, predictions = random_sentences(seed, 60), random_sentences(seed + 100, 60)
    assert "" in references and "" in predictions
    pairs = [(split(r), split(p)) for r, p in zip(references, predictions, strict=True)]
    distance = sum(edit_distance(r, p) for r, p in pairs)
    length = sum(len(r) for r, _ in pairs)

    errors = errors_of(references, predictions)

    assert errors.substitutions + errors.deletions + errors.insertions == distance
    assert errors.reference_length == length == errors.hits + errors.substitutions + errors.deletions
    assert errors.hits + errors.substitutions + errors.insertions == sum(len(p) for _, p in pairs)
    assert errors.rate == pytest.approx(distance / length)
    # The sum above could hide two mistakes that cancel, so the clips are also compared one by one.
    for reference, prediction in zip(references[:20], predictions[:20], strict=True):
        clip_errors = errors_of([reference], [prediction])
        assert clip_errors.substitutions + clip_errors.deletions + clip_errors.insertions == edit_distance(
            split(reference), split(prediction)
        )


def test_errors_of_a_worked_example_are_counted_by_kind() -> None:
    errors = word_errors(["मैं घर जा रहा हूँ", ""], ["मैं घर जाता हूँ", "you you"])
    assert errors == ErrorRate(rate=4 / 5, substitutions=1, deletions=1, insertions=2, hits=3, reference_length=5)
    assert errors.as_dict()["rate"] == 0.8
    json.dumps(errors.as_dict())


def test_empty_predictions_are_all_deletions() -> None:
    errors = word_errors(["one two", "three"], ["", "  "])
    assert (errors.rate, errors.deletions, errors.hits, errors.insertions) == (1.0, 3, 0, 0)


def test_empty_references_count_insertions_and_stay_finite() -> None:
    assert word_errors([""], ["thank you"]) == ErrorRate(2.0, 0, 0, 2, 0, 0)
    assert word_errors(["", " "], ["", ""]).rate == 0.0
    assert character_errors(["", "ab"], ["abc", "ab"]) == ErrorRate(1.5, 0, 0, 3, 2, 2)


def test_unicode_forms_and_white_space_are_no_errors() -> None:
    assert word_errors(["café au\tlait"], ["  cafe\u0301 au  lait\n"]).rate == 0.0
    # One space counts as one character.
    assert character_errors(["a b"], [" a  b "]) == ErrorRate(0.0, 0, 0, 0, 3, 3)


def test_score_returns_raw_and_normalised_rates_in_a_flat_dictionary() -> None:
    figures = score(["नमस्ते, दुनिया।", "Yes"], ["नमस्ते दुनिया", "yes"])
    assert figures["clips"] == 2
    assert figures["normalizer"] == "whisper-peft mark-preserving v1"
    assert (figures["wer"], figures["wer_substitutions"], figures["wer_reference_length"]) == (1.0, 3, 3)
    assert figures["wer_normalized"] == figures["cer_normalized"] == 0.0
    assert figures["wer_normalized_hits"] == 3
    assert figures["cer"] == pytest.approx(3 / 18)
    counts = ("substitutions", "deletions", "insertions", "hits", "reference_length")
    assert set(figures) == {
        "clips",
        "normalizer",
        *ERROR_MEASURES,
        *(f"{measure}_{count}" for measure in ERROR_MEASURES for count in counts),
    }
    json.dumps(figures)


def test_a_lost_vowel_sign_is_an_error_after_normalising() -> None:
    # Whisper's own normalizer would make these texts equal.
    assert score(["हिन्दी"], ["हनद"])["wer_normalized"] == 1.0


def test_an_interval_encloses_the_rate_narrows_with_more_clips_and_is_reproducible() -> None:
    references = random_sentences(1, 400)
    predictions = [text if i % 3 else "" for i, text in enumerate(references)]
    rate = word_errors(references, predictions).rate
    lower, upper = bootstrap_interval(references, predictions, metric="wer")
    assert lower < rate < upper
    assert (lower, upper) == bootstrap_interval(references, predictions, metric="wer")
    assert (lower, upper) != bootstrap_interval(references, predictions, metric="wer", seed=1)
    few_lower, few_upper = bootstrap_interval(references[:24], predictions[:24], metric="wer")
    assert few_upper - few_lower > 2 * (upper - lower)
    narrow_lower, narrow_upper = bootstrap_interval(references, predictions, metric="wer", confidence=0.5)
    assert lower < narrow_lower < narrow_upper < upper


def test_an_interval_covers_the_true_rate_about_as_often_as_it_claims() -> None:
    rng = random.Random(0)
    covered = 0
    for trial in range(200):
        predictions = ["a" if rng.random() < 0.7 else "b" for _ in range(100)]
        lower, upper = bootstrap_interval(["a"] * 100, predictions, metric="wer", samples=200, seed=trial)
        covered += lower <= 0.3 <= upper
    assert 0.89 <= covered / 200 <= 0.99


def test_a_paired_interval_shows_a_difference_that_two_intervals_cannot() -> None:
    references = ["a b c d"] * 200
    rng = random.Random(0)
    predictions_a = ["" if rng.random() < 0.5 else "a b c d" for _ in references]
    # Model b makes one more error than model a in each clip that a got right.
    predictions_b = [text and "a b c x" for text in predictions_a]
    lower, upper = paired_interval(references, predictions_a, predictions_b, metric="wer")
    # Model b is worse.
    assert 0 < lower < upper < 0.25
    a = bootstrap_interval(references, predictions_a, metric="wer")
    b = bootstrap_interval(references, predictions_b, metric="wer")
    assert upper - lower < (a[1] - a[0]) / 2 and b[0] - a[1] < lower
    assert paired_interval(references, predictions_a, predictions_a, metric="cer") == (0.0, 0.0)


def test_intervals_of_normalised_rates_ignore_case_and_punctuation() -> None:
    assert bootstrap_interval(["A.", "B!"], ["a", "b"], metric="wer_normalized") == (0.0, 0.0)
    assert bootstrap_interval(["A.", "B!"], ["a", "b"], metric="wer") == (1.0, 1.0)
    assert bootstrap_interval(["", ""], ["x", "x"], metric="cer") == (2.0, 2.0)


@pytest.mark.parametrize(
    ("references", "predictions", "finding"),
    [([], [], "no clips"), (["a"], ["a", "b"], "1 references but 2 predictions"), ("a", "b", "one string")],
)
def test_unusable_references_and_predictions_are_refused_with_a_reason(
    references: Sequence[str], predictions: Sequence[str], finding: str
) -> None:
    for errors_of in (word_errors, character_errors, score):
        with pytest.raises(UserError, match=finding):
            errors_of(references, predictions)
    with pytest.raises(UserError, match="no measure is called 'mer'"):
        bootstrap_interval(["a"], ["a"], metric="mer")  # type: ignore[arg-type] - unknown on purpose


def test_scores_of_thousands_of_clips_take_seconds() -> None:
    references, predictions = random_sentences(1, 3000), random_sentences(2, 3000)
    start_s = time.perf_counter()
    score(references, predictions)
    bootstrap_interval(references, predictions, metric="wer")
    # This takes about 1 s on an idle machine.
    assert time.perf_counter() - start_s < 15


def test_the_evaluate_metric_gives_the_same_figures_as_score() -> None:
    import evaluate

    references, predictions = random_sentences(1, 50), random_sentences(2, 50)
    metric = speech_error_rate()
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == "speech_error_rate"
    expected = score(references, predictions)
    assert metric.compute(references=references, predictions=predictions) == expected
    metric.add_batch(references=references[:30], predictions=predictions[:30])
    for reference, prediction in zip(references[30:], predictions[30:], strict=True):
        metric.add(reference=reference, prediction=prediction)
    assert metric.compute() == expected


def test_the_evaluate_metric_needs_no_network_and_no_writable_cache(tmp_path: Path) -> None:
    program = """
import socket, json
def forbidden(*arguments, **options):
    raise AssertionError("the metric opened a connection")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = forbidden
from whisper_peft.evaluation.metrics import speech_error_rate
print(json.dumps(speech_error_rate().compute(references=["हिन्दी में", ""], predictions=["हिन्दी", "x"])))
"""
    blocked = tmp_path / "file"
    blocked.write_text("a file, so that no folder can be made below it, not even by root")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **kept,
            "HOME": str(blocked / "home"),
            "HF_HOME": str(blocked / "hf"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == score(["हिन्दी में", ""], ["हिन्दी", "x"])


def test_importing_the_metrics_imports_no_large_library() -> None:
    program = (
        "import sys, whisper_peft.evaluation.metrics; "
        "print([name for name in ('jiwer', 'evaluate', 'datasets', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_paired_interval_of_losses_weights_each_clip_by_its_tokens():
    """A constant gap gives an interval of no width, noise gives a wider one, and each clip counts by its tokens."""
    rng = np.random.default_rng(0)
    tokens, sums = rng.integers(5, 60, 140), rng.uniform(10, 90, 140)
    low, high = paired_loss_interval(sums, sums + 0.25 * tokens, tokens)
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)
    noisy = sums + rng.normal(0, 5, 140)
    low, high = paired_loss_interval(sums, noisy, tokens)
    assert low < (noisy.sum() - sums.sum()) / tokens.sum() < high and 0.01 < high - low < 0.2
    assert paired_loss_interval(sums, noisy, tokens) == (low, high)
    with pytest.raises(UserError, match="give one of each for each clip"):
        paired_loss_interval(sums[:3], noisy[:3], tokens)
