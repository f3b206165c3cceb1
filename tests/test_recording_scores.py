"""The scores of whole recordings count errors, speech without output, and loops."""

from __future__ import annotations

import pytest

from whisper_peft import UserError
from whisper_peft.data.rows import Segment
from whisper_peft.evaluation.recording_scores import count_loops, score_recording

REFERENCE = [Segment("one two", 0.0, 4.0), Segment("three four", 5.0, 9.0), Segment("five", 40.0, 44.0)]


def test_a_perfect_output_has_no_errors():
    score = score_recording(REFERENCE, REFERENCE)
    assert (score.wer, score.cer, score.uncovered_s, score.start_error_s) == (0, 0, 0, 0)
    assert (score.speech_s, score.loops, score.empty_windows) == (12.0, 0, 0)


def test_speech_without_output_is_counted_in_seconds_and_in_windows():
    score = score_recording(REFERENCE, [Segment("one two", 0.5, 4.0), Segment("three", 4.6, 7.0)])
    assert score.uncovered_s == pytest.approx(0.5 + 2.0 + 4.0)
    assert score.start_error_s == pytest.approx((0.5 + 0.4) / 2)
    assert score.empty_windows == 1
    assert score.wer == pytest.approx(2 / 5)


def test_an_empty_output_covers_no_speech():
    score = score_recording(REFERENCE, [])
    assert (score.wer, score.uncovered_s, score.start_error_s, score.empty_windows) == (1, 12.0, None, 2)


def test_loops_of_the_output_count_and_loops_of_the_speaker_do_not():
    looping = [Segment("and then " * 8, 0.0, 30.0)]
    assert score_recording(REFERENCE, looping).loops == 1
    assert score_recording(looping, looping).loops == 0
    assert count_loops("ha ha ha ha ha") == 0
    assert count_loops("ഒരു ദിവസം ഒരു ദിവസം ഒരു ദിവസം ഒരു ദിവസം ഒരു ദിവസം") == 1


def test_a_reference_without_text_is_refused():
    with pytest.raises(UserError):
        score_recording([], [Segment("a", 0, 1)])
