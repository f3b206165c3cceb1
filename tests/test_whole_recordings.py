"""evaluate decodes whole recordings with segment times as `transcribe` does, and scores them."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import soundfile
from conftest import make_tiny_model, make_wave
from test_readme import run_line

from whisper_peft import SpeechDataset, evaluate, load_model, load_source, runs, transcribe
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.sources import load_uncut
from whisper_peft.evaluation import stretches, transcriber
from whisper_peft.evaluation.recording_scores import score_recording, uncovered_spans
from whisper_peft.evaluation.whole_recordings import score_recordings, transcriber_of_model

# More than 2 s of silence lies between the segments, so each is a clip that fits into the tiny model's window of 3 s.
SEGMENTS = (("घर पानी", 1.0, 3.0), ("लाल नीला", 35.0, 37.0), ("आज कल", 62.0, 64.0))


def make_recording(path: Path, segments=SEGMENTS, *, seconds: float = 66.0, seed: int = 0) -> Path:
    """Write a recording, and a file with its segments beside it."""
    soundfile.write(path, make_wave(seconds, seed), 16000)
    listed = [{"text": text, "start": start_s, "end": end_s} for text, start_s, end_s in segments]
    path.with_suffix(".json").write_text(json.dumps(listed), encoding="utf-8")
    return path


def answer(monkeypatch, *transcripts: list[tuple[str, float, float]], joint: str = " ") -> list[tuple[int, object]]:
    """Let the model give these segments for the recordings; return the lengths and settings that it was given."""
    given = []

    def heard(model, preparation, waves, decoding, *, at_once, progress):
        for number, wave in waves:
            given.append((len(wave), decoding))
            segments = [{"text": text, "start": start_s, "end": end_s} for text, start_s, end_s in transcripts[number]]
            progress(number, 0.5)
            text = joint.join(segment["text"] for segment in segments)
            yield number, {"text": text, "segments": segments, "reached_limit": False}

    monkeypatch.setattr(transcriber, "transcribe_waves", heard)
    return given


@pytest.fixture
def once(monkeypatch):
    """Switch the fallback off, because a random model is never sure and would repeat each window many times."""
    monkeypatch.setitem(stretches.FALLBACK, "temperature", (0.0,))


def test_whole_recordings_are_decoded_as_transcribe_does(lora_run, once, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    short = (("घर पानी", 0.5, 2.0), ("लाल", 4.5, 6.0))
    paths = [make_recording(folder / f"{name}.wav", short, seconds=7.0, seed=seed) for seed, name in enumerate("ab")]
    told = []
    report = evaluate(
        lora_run, folder, output=tmp_path / "report", recordings_progress=lambda *seconds: told.append(seconds)
    )
    lines = runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")
    assert [line.get("recording", False) for line in lines] == [False] * 4 + [True] * 2
    expected = transcribe(lora_run, paths, times=True)
    reference = [Segment(*segment) for segment in short]
    for line, transcript, scores in zip(lines[4:], expected, report.recordings["each"], strict=True):
        assert line["audio"] == transcript["audio"] == scores["audio"]
        assert (line["prediction"], line["segments"]) == (transcript["text"], transcript["segments"])
        assert line["reference"] == "घर पानी लाल" and line["language"] == "hi"
        output = [
            Segment(output_segment["text"], output_segment["start"], output_segment["end"])
            for output_segment in transcript["segments"]
        ]
        score = score_recording(reference, output, output_text=transcript["text"])
        assert (
            (line["wer"], line["cer_normalized"])
            == (score.wer, score.cer_normalized)
            == (
                scores["wer"],
                scores["cer_normalized"],
            )
        )
        assert line["uncovered_s"] == scores["uncovered_s"] == pytest.approx(score.uncovered_s, abs=1e-3)
        uncovered_s = sum(end_s - start_s for start_s, end_s in line["uncovered"])
        assert uncovered_s == pytest.approx(score.uncovered_s, abs=1e-2)
    assert sum(seconds for seconds, _ in told) == pytest.approx(14.0) and {total for _, total in told} == {14.0}
    assert report.clips == 4 and report.recordings["recordings"] == 2
    assert runs.read_json(tmp_path / "report" / "report.json")["recordings"] == report.recordings


def test_the_output_shows_uncovered_speech_loops_and_empty_windows(lora_run, monkeypatch, tmp_path, capsys):
    path = make_recording(tmp_path / "talk.wav")
    answer(monkeypatch, [("घर पानी", 1.5, 3.0), ("और फिर " * 8, 61.6, 63.0)])
    out = tmp_path / "report"
    printed = run_line(shlex.join(["whisper-peft", "evaluate", str(lora_run), str(path), "--output", str(out)]), capsys)
    figures = runs.read_json(out / "report.json")["recordings"]
    assert figures["speech_s"] == 6.0
    assert figures["uncovered_s"] == pytest.approx(0.5 + 2.0 + 1.0)
    assert figures["start_error_s"] == pytest.approx((0.5 + 0.4) / 2)
    assert (figures["loops"], figures["empty_windows"], figures["failed"]) == (1, 1, [])
    assert figures["wer_hits"] == 2 and figures["wer_reference_length"] == 6
    (line,) = [line for line in runs.read_jsonl(out / "transcripts.jsonl") if line.get("recording")]
    assert line["uncovered"] == [[1.0, 1.5], [35.0, 37.0], [63.0, 64.0]]
    assert "1 whole recording, decoded with times as transcribe does" in printed
    assert "3.5 of 6.0 s of speech without output (58.3%), segments start 0.45 s off (median)" in printed
    assert "(median), 1 loop, 1 empty window\n" in printed


def test_the_option_cut_scores_only_clips(lora_run, monkeypatch, tmp_path, capsys):
    path = make_recording(tmp_path / "talk.wav")
    given = answer(monkeypatch, [("घर पानी", 1.0, 3.0)])
    line = ["whisper-peft", "evaluate", str(lora_run), str(path), "--json", "--quiet"]
    both = json.loads(run_line(shlex.join(line), capsys))
    assert len(given) == 1
    report = ["--cut", "--output", str(tmp_path / "report")]
    clips = json.loads(run_line(shlex.join([*line, *report]), capsys))
    # No whole recording was decoded.
    assert len(given) == 1
    del both["recordings"]
    assert {**clips, "seconds": 0} == {**both, "seconds": 0} and clips["clips"] == 3
    assert not [
        transcript
        for transcript in runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")
        if "recording" in transcript
    ]


def test_a_recording_that_cannot_be_decoded_is_named_and_the_others_are_scored(lora_run, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "talks"
    folder.mkdir()
    make_recording(folder / "a.wav")
    content = (folder / "a.wav").read_bytes()
    make_recording(folder / "b.wav", seed=1)
    (folder / "a.wav").write_bytes(content[: len(content) * 9 // 10])
    answer(monkeypatch, [], list(SEGMENTS))
    out = tmp_path / "report"
    line = shlex.join(["whisper-peft", "evaluate", str(lora_run), str(folder), "--output", str(out)])
    printed = run_line(line, capsys)
    figures = runs.read_json(out / "report.json")["recordings"]
    assert (figures["recordings"], figures["wer"], figures["uncovered_s"]) == (1, 0.0, 0.0)
    (failed,) = figures["failed"]
    assert failed["audio"] == str(folder / "a.wav") and "truncated" in failed["error"]
    assert "not scored as a whole: " in printed and "a.wav: " in printed
    named = [entry for entry in runs.read_jsonl(out / "left_out.jsonl") if entry.get("recording")]
    assert [(entry["audio"], entry["reason"]) for entry in named] == [(failed["audio"], failed["error"])]


def test_segments_are_joined_as_the_language_joins_words(monkeypatch, tmp_path, lora_run):
    chinese = (("楼市成交", 1.0, 3.0), ("持续上涨", 35.0, 37.0))
    path = make_recording(tmp_path / "talk.wav", chinese, seconds=40.0)
    answer(monkeypatch, list(chinese), joint="")
    figures = evaluate(lora_run, path, language="zh").recordings
    (scores,) = figures["each"]
    assert (figures["cer"], figures["wer"], scores["cer"], scores["wer"]) == (0.0, 0.0, 0.0, 0.0)


def test_one_manifest_can_hold_recordings_and_clips(lora_run, monkeypatch, tmp_path):
    soundfile.write(tmp_path / "talk.wav", make_wave(50.0), 16000)
    soundfile.write(tmp_path / "clip.wav", make_wave(1.5), 16000)
    long = [
        {"text": "घर पानी", "start": 0.0, "end": 2.0},
        {"text": " ", "start": 20.0, "end": 21.0},
        {"text": "लाल", "start": 36.0, "end": 38.0},
    ]
    inside = [{"text": "आज", "start": 0.1, "end": 0.6}, {"text": "कल", "start": 0.7, "end": 1.2}]
    lines = [
        {"audio": "clip.wav", "segments": inside},
        {"audio": "talk.wav", "segments": long, "start_s": 5.0, "end_s": 45.0},
    ]
    page = tmp_path / "m.jsonl"
    page.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    given = answer(monkeypatch, [("घर पानी", 0.0, 2.0), ("लाल", 36.5, 38.0)])
    report = evaluate(lora_run, page, output=tmp_path / "report")
    assert report.clips == 3 and report.recordings["recordings"] == 1
    assert [n_samples for n_samples, _ in given] == [40 * 16000]
    assert report.recordings["speech_s"] == 4.0 and report.recordings["uncovered_s"] == 0.5
    line = runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")[-1]
    assert (line["start_s"], line["end_s"], line["reference"]) == (5.0, 45.0, "घर पानी लाल")
    first, second = load_uncut(str(page))
    assert (first.is_recording, second.is_recording) == (False, True)
    assert not any(row.is_recording for row in load_source(str(page)))


def test_a_recording_is_not_scored_as_a_whole_if_some_of_its_clips_are_left_out(lora_run, monkeypatch, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        make_recording(folder / f"{name}.wav", seed=seed)
    given = answer(monkeypatch, [("घर", 1.0, 2.0)])
    said: list[str] = []
    report = evaluate(lora_run, folder, max_clips=4, say=said.append)
    assert report.recordings["recordings"] == len(given) == 1
    assert [line for line in said if "--max-clips" in line] == [
        "1 of 2 recordings are not scored as a whole, because --max-clips leaves out some of their clips."
    ]
    assert "recordings" not in evaluate(lora_run, folder, max_clips=2).as_dict()


def test_an_interval_needs_at_least_five_recordings(lora_run, monkeypatch, tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    segments = (("घर पानी लाल", 0.5, 2.0),)
    for number in range(5):
        make_recording(folder / f"{number}.wav", segments, seconds=2.5, seed=number)
    texts = ["घर पानी लाल", "घर पानी", "घर", "घर पानी लाल आज", ""]
    answer(monkeypatch, *[[(text, 0.5, 2.0)] for text in texts])
    figures = evaluate(lora_run, folder).recordings
    low, high = figures["wer_interval"]
    assert low < figures["wer"] < high
    assert [round(scores["wer"], 2) for scores in figures["each"]] == [0.0, 0.33, 0.67, 0.33, 1.0]
    (folder / "4.wav").unlink()
    (folder / "4.json").unlink()
    figures = evaluate(lora_run, folder).recordings
    assert (figures["wer_interval"], figures["cer_interval"]) == (None, None)


def test_a_recording_is_decoded_in_its_own_language_or_the_one_that_is_set_or_heard(
    tiny_model, lora_run, monkeypatch, tmp_path
):
    path = make_recording(tmp_path / "talk.wav", (("घर पानी", 0.5, 2.0),), seconds=4.0)
    given = answer(monkeypatch, [("घर", 0.5, 2.0)])
    evaluate(tiny_model, path, language="marathi")
    evaluate(lora_run, path)
    path.with_suffix(".json").rename(tmp_path / "talk.ta.json")
    evaluate(lora_run, path)
    (tmp_path / "talk.ta.json").rename(path.with_suffix(".json"))
    assert [decoding.language for _, decoding in given] == ["mr", "hi", "ta"]
    (expected,) = transcribe(tiny_model, [path], language="auto", times=True)
    evaluate(tiny_model, path, language="auto", output=tmp_path / "report")
    line = runs.read_jsonl(tmp_path / "report" / "transcripts.jsonl")[-1]
    assert line["recording"] and line["language"] == expected["language"] == given[-1][1].language

    def hear_tamil(model, preparation, rows):
        return [dataclasses.replace(row, language="ta") for row in rows]

    # The model listens to the recording itself, not to its clips.
    monkeypatch.setattr(transcriber, "listen_for_languages", hear_tamil)
    evaluate(tiny_model, path, language="auto")
    assert given[-1][1].language == "ta"


def test_a_recording_uses_the_cleaning_and_the_borrowed_language_of_the_clips(tiny_model, monkeypatch, tmp_path):
    path = make_recording(tmp_path / "talk.wav", (("Ab, CD!", 0.5, 2.0), ("...", 2.5, 3.0)), seconds=4.0)
    model, preparation, _ = load_model(tiny_model)
    dataset = SpeechDataset(
        load_source(str(path)), preparation, language_token="hi", clean=lambda text: text.lower().strip(".,! ")
    )
    given = answer(monkeypatch, [("ab, cd", 0.5, 2.0)])
    (row,) = load_uncut(str(path))
    silent = Row(str(path), "", "hi", segments=(Segment("!", 0.0, 1.0),), is_recording=True)
    recordings = [row, silent]
    result = score_recordings(
        dataset, recordings, lambda progress: transcriber_of_model(model, dataset, recordings, progress)
    )
    (scored,) = result.scored
    assert (scored.score.wer, scored.score.speech_s, scored.reference_text) == (0.0, 1.5, "ab, cd")
    assert [(recording.audio, reason) for recording, reason in result.failed] == [
        (str(path), "no text in its segments")
    ]
    assert len(given) == 1


def test_an_english_only_checkpoint_is_scored_on_whole_recordings(once, tmp_path):
    """The checkpoint has no language tokens, so no language is named and none is detected."""
    path = make_recording(tmp_path / "talk.wav", (("one two", 0.5, 2.0),), seconds=4.0)
    model = make_tiny_model(tmp_path / "tiny.en")
    page = json.loads((model / "generation_config.json").read_text())
    for key in ("lang_to_id", "task_to_id", "language", "task"):
        page.pop(key, None)
    (model / "generation_config.json").write_text(json.dumps({**page, "is_multilingual": False}))
    plain = evaluate(model, path).recordings
    assert plain["recordings"] == 1 and plain["start_error_s"] is not None
    listened = evaluate(model, path, language="auto").recordings
    assert {**plain, "seconds": 0} == {**listened, "seconds": 0}


def test_uncovered_spans_are_the_speech_that_no_segment_covers():
    reference = [Segment("a", 0.0, 4.0), Segment("b", 3.0, 6.0), Segment(" ", 7.0, 9.0), Segment("c", 10.0, 12.0)]
    output = [Segment("a", 1.0, 2.0), Segment("b", 1.5, 3.0), Segment("", 3.0, 6.0), Segment("c", 5.0, 11.0)]
    assert uncovered_spans(reference, output) == [(0.0, 1.0), (3.0, 5.0), (11.0, 12.0)]
    assert uncovered_spans(reference, []) == [(0.0, 6.0), (10.0, 12.0)]
