"""A long recording with segment times is cut into clips, and each clip is decoded from its place in the recording."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from conftest import make_tiny_model, make_wave
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import SpeechDataset, load_preparation
from whisper_peft.data.audio import load_audio
from whisper_peft.data.dataset import Pick
from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.sources import load_source
from whisper_peft.data.subtitles import cut_recording, read_segments
from whisper_peft.errors import UserError

SRT = """1
00:00:00,500 --> 00:00:02,000
<i>एक</i> दो

2
00:00:02,100 --> 00:00:04,000
तीन

3
00:00:09,000 --> 00:00:10,250
चार
पाँच
"""
VTT = """WEBVTT

00:00.500 --> 00:02.000
<v Anna>एक दो

00:02.100 --> 00:04.000
तीन

00:09.000 --> 00:10.250
चार
पाँच
"""
SEGMENTS = [
    {"start": 0.5, "end": 2.0, "text": " एक दो"},
    {"start": 2.1, "end": 4.0, "text": " तीन"},
    {"start": 9.0, "end": 10.25, "text": "चार पाँच"},
]


@pytest.fixture(scope="module")
def preparation_of_10_s(tmp_path_factory):
    """A preparation with the vocabulary of the tiny model and a window of 10 s."""
    return load_preparation(str(make_tiny_model(tmp_path_factory.mktemp("wide") / "model", max_source_positions=500)))


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "talk.wav"
    soundfile.write(path, make_wave(12.0), 16000)
    return path


@pytest.mark.parametrize(
    ("suffix", "page"),
    [
        (".srt", SRT),
        (".vtt", VTT),
        (".json", json.dumps(SEGMENTS)),
        (".json", json.dumps({"text": "all", "segments": SEGMENTS})),
    ],
)
def test_all_kinds_of_segments_give_the_same_clips(recording, suffix, page):
    recording.with_suffix(suffix).write_text(page, encoding="utf-8")
    rows = load_source(str(recording))
    assert [(row.start_s, row.end_s, row.text, row.prompt) for row in rows] == [
        (0.5, 4.0, "एक दो तीन", ""),
        (9.0, 10.25, "चार पाँच", ""),
    ]
    assert [(segment.start_s, round(segment.end_s, 6)) for segment in rows[0].segments] == [(0.0, 1.5), (1.6, 3.5)]
    assert rows == load_source(str(recording.with_suffix(suffix))) == load_source(str(recording.parent))
    assert len(load_audio(rows[1].sound(), start_s=9.0, end_s=10.25)) == 20_000


def test_a_clip_is_filled_up_to_the_window_the_token_limit_or_a_gap():
    segments = [Segment("word " * 4, 2.0 * i, 2.0 * i + 1.9) for i in range(40)]
    one_each = cut_recording(Row("a.wav", ""), segments, n_tokens=lambda text: len(text.split()))
    assert all(row.end_s - row.start_s <= 30 for row in one_each) and len(one_each) == 3
    assert [row.prompt for row in one_each] == ["", one_each[0].text, one_each[1].text]
    assert " ".join(row.text for row in one_each).split() == ["word"] * 160
    tight = cut_recording(Row("a.wav", ""), segments, n_tokens=lambda text: 100)
    assert all(len(row.segments) == 4 for row in tight)
    apart = cut_recording(Row("a.wav", ""), [Segment("a", 0, 1), Segment("b", 3.5, 4)], n_tokens=len)
    assert [row.text for row in apart] == ["a", "b"] and apart[1].prompt == ""
    overlapping = cut_recording(
        Row("a.wav", ""), [Segment("a", 0, 29), Segment("b", 1, 2), Segment("c", 29.5, 31)], n_tokens=len
    )
    assert [(row.text, row.end_s) for row in overlapping] == [("a b", 29), ("c", 31)]


def test_segments_in_a_manifest_become_clips(tmp_path, recording):
    inside = [{"start": 0.0, "end": 1.0, "text": "एक"}, {"start": 1.2, "end": 2.0, "text": "दो"}]
    long = [{"start": 20.0 * i, "end": 20.0 * i + 19, "text": str(i)} for i in range(3)]
    lines = [
        {"audio": "talk.wav", "segments": inside, "start_s": 3.0, "end_s": 6.0, "prompt": "before"},
        {"audio": "talk.wav", "segments": long, "start_s": 5.0},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, *others = load_source(str(path), prompt_column="prompt")
    assert (first.text, first.prompt, first.start_s, first.segments[1].start_s) == ("एक दो", "before", 3.0, 1.2)
    assert [(row.start_s, row.text) for row in others] == [(5.0, "0"), (25.0, "1"), (45.0, "2")]


@pytest.mark.parametrize(
    ("name", "page", "said"),
    [
        ("talk.json", '{"a": 1}', "no list of segments"),
        ("talk.json", "[1]", "segment 1: no text"),
        ("talk.json", '[{"text": "a", "start": "x", "end": 2}]', "'x' is no time"),
        ("talk.json", "[", "not JSON"),
        ("talk.json", '[{"text": " ", "start": 1, "end": 2}]', "no segments with text"),
        ("talk.srt", "", "no segments with text"),
        ("other.srt", SRT, "no recording of this name"),
    ],
)
def test_unreadable_segments_are_refused_with_a_reason(recording, name, page, said):
    path = recording.parent / name
    path.write_text(page, encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        load_source(str(path))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_subtitles_that_are_not_utf_8_are_refused(recording):
    path = recording.with_suffix(".srt")
    path.write_bytes(SRT.encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_segments(path)


def test_the_error_for_a_recording_without_segments_says_what_is_missing(recording):
    with pytest.raises(UserError, match=r"no segment times beside it; put them into talk\.srt"):
        load_source(str(recording))


def test_a_real_recording_is_cut_into_clips_with_their_own_sound(shared):
    folder = shared / "data" / "longform"
    rows = load_source(str(folder / "ml_vasanavikruthi.ogg"))
    segments = json.loads((folder / "ml_vasanavikruthi.json").read_text())
    assert " ".join(row.text for row in rows).split() == " ".join(segment["text"] for segment in segments).split()
    assert max(row.end_s - row.start_s for row in rows) <= 30 and rows[0].start_s == segments[0]["start"]
    wave = load_audio(str(folder / "ml_vasanavikruthi.ogg"))
    row = rows[len(rows) // 2]
    piece = load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s)
    whole = wave[round(row.start_s * 16000) :][: len(piece)]
    assert np.corrcoef(piece, whole)[0, 1] > 0.999
    with pytest.raises(UserError, match="no segment times"):
        load_source(str(next(folder.glob("en_*.mp3"))))


segment_lists = st.lists(
    st.tuples(st.floats(0, 6), st.floats(0.2, 40), st.integers(1, 150)), min_size=1, max_size=40
).map(
    lambda parts: [
        Segment("w " * n_words, start_s, start_s + length_s)
        for start_s, (_, length_s, n_words) in zip(
            np.cumsum([gap_s + length_s * 0.8 for gap_s, length_s, _ in parts]).tolist(), parts, strict=True
        )
    ]
)


@settings(deadline=None, max_examples=300)
@given(segment_lists)
def test_every_segment_is_in_one_clip_and_no_window_has_speech_without_its_text(segments):
    rows = cut_recording(Row("a.wav", ""), segments, n_tokens=lambda text: len(text.split()))
    texts = [(row.start_s + segment.start_s, segment.text.strip()) for row in rows for segment in row.segments]
    # Each segment comes once and in order.
    assert [text for _, text in texts] == [segment.text.strip() for segment in segments]
    for row in rows:
        known = {round(row.start_s + segment.start_s, 6) for segment in row.segments}
        for end_s in (row.end_s, row.window_end_s):
            if end_s is None:
                continue
            whole = [
                round(segment.start_s, 6)
                for segment in segments
                if row.start_s <= segment.start_s and segment.end_s <= end_s
            ]
            missing = set(whole) - known
            # Speech that overlaps the clip cannot be removed from it.
            assert not missing or end_s == row.end_s
        if row.window_end_s is not None:
            assert row.end_s <= row.start_s + row.next_start_s < row.window_end_s <= row.start_s + 30 + 1e-6


def test_the_window_reaches_into_the_next_segment_only_where_times_are_learnt(preparation_of_10_s, tmp_path):
    soundfile.write(tmp_path / "talk.wav", make_wave(30.0), 16000)
    segments = [Segment("घर", 1.0, 4.0), Segment("पानी", 4.5, 8.0), Segment("लाल", 9.0, 14.0)]
    rows = cut_recording(Row(str(tmp_path / "talk.wav"), "", "hi"), segments, n_tokens=len, window_s=10.0)
    assert [(row.text, row.end_s, row.window_end_s, row.next_start_s) for row in rows] == [
        ("घर पानी", 8.0, 11.0, 8.0),
        ("लाल", 14.0, None, None),
    ]
    plain = SpeechDataset(rows, preparation_of_10_s, language="hi")[0]
    assert plain.seconds == pytest.approx(7.0)
    timed = SpeechDataset(rows, preparation_of_10_s, language="hi", timestamps=1.0)[0]
    assert timed.seconds == pytest.approx(10.0)
    first = preparation_of_10_s.first_timestamp
    times = [round((token - first) * 0.02, 2) for token in timed.labels.tolist() if token >= first]
    assert times == [0.0, 3.0, 3.5, 7.0, 8.0]
    assert timed.labels[-1] == preparation_of_10_s.eot
    half = SpeechDataset(rows, preparation_of_10_s, language="hi", timestamps=0.5)
    # The seed draws clips with times and clips without them.
    assert {round(half[Pick(0, epoch)].seconds) for epoch in range(20)} == {7, 10}


def test_the_window_ends_before_a_long_silence_and_before_the_end_of_the_next_segment(tmp_path):
    silence = cut_recording(Row("a.wav", ""), [Segment("a", 0, 20), Segment("b", 23, 50)], n_tokens=len)
    assert silence[0].window_end_s is None
    many_tokens = cut_recording(Row("a.wav", ""), [Segment("a", 0, 5), Segment("b", 6, 10)], n_tokens=lambda text: 300)
    # The next segment fits into the window but exceeds the token limit, so the window ends in its middle.
    assert many_tokens[0].window_end_s == 8.0
