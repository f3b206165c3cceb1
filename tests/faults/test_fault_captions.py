"""Captions as video sites, downloaders and transcription programs write them, and hostile caption files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import tracemalloc
from pathlib import Path

import pytest
import soundfile
from conftest import make_wave
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft.data.rows import Row, Segment
from whisper_peft.data.sources import load_source
from whisper_peft.data.subtitles import cut_recording, read_segments
from whisper_peft.errors import UserError

YOUTUBE_VTT = """WEBVTT
Kind: captions
Language: en

00:00:00.160 --> 00:00:02.629 align:start position:0%
 
so<00:00:00.400><c> today</c><00:00:00.640><c> we're</c><00:00:00.880><c> going</c>

00:00:02.629 --> 00:00:02.639 align:start position:0%
so today we're going
 

00:00:02.639 --> 00:00:04.789 align:start position:0%
so today we're going
to<00:00:02.879><c> talk</c>

00:00:04.789 --> 00:00:04.799 align:start position:0%
to talk
 

00:00:04.799 --> 00:00:05.789 align:start position:0%
to talk
no

00:00:05.789 --> 00:00:05.799 align:start position:0%
no
 

00:00:05.799 --> 00:00:06.789 align:start position:0%
no
no

00:00:06.789 --> 00:00:06.799 align:start position:0%
no
 

00:00:06.799 --> 00:00:09.789 align:start position:0%
no
<00:00:07.100><c>about</c><00:00:07.500><c> cats &amp;amp; dogs</c>
"""
SPOKEN = ["so today we're going", "to talk", "no", "no", "about cats & dogs"]


def one_line(error: pytest.ExceptionInfo) -> str:
    """Return the message of a refusal, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


def refusal(read, *arguments, **options) -> str:
    with pytest.raises(UserError) as refused:
        read(*arguments, **options)
    return one_line(refused)


def captions(folder: Path, name: str, page: str) -> Path:
    path = folder / name
    path.write_text(page, encoding="utf-8")
    return path


def sound(path: Path, seconds: float = 12.0) -> Path:
    soundfile.write(path, make_wave(seconds), 16000)
    return path


def clock(seconds: float) -> str:
    return f"00:{int(seconds // 60):02}:{seconds % 60:06.3f}".replace(".", ",")


def srt(*cues: tuple[float, float, str]) -> str:
    return "\n".join(f"{n}\n{clock(a)} --> {clock(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues, start=1))


def cues_of(page: str) -> list[tuple[float, float, str]]:
    """Return the cues of YOUTUBE_VTT as a downloader converts them: without markup, with their times."""
    cues = []
    for block in page.split("Language: en\n\n")[1].split("\n\n"):
        times, _, text = block.partition("\n")
        begin, end = (float(stamp[6:]) for stamp in times.split(" align")[0].split(" --> "))
        for tag in ("<c>", "</c>"):
            text = text.replace(tag, "")
        while "<" in text:
            text = text[: text.index("<")] + text[text.index(">") + 1 :]
        cues.append((begin, end, text.rstrip("\n")))
    return cues


# rolling captions -----------------------------------------------------------------------------------------------------


def test_row_08_each_line_of_a_rolling_vtt_comes_once_with_the_times_of_its_words(tmp_path):
    segments = read_segments(captions(tmp_path, "talk.vtt", YOUTUBE_VTT))
    assert [segment.text for segment in segments] == SPOKEN
    assert [line.start_s for line in segments] == pytest.approx([0.16, 2.639, 4.799, 5.799, 7.1])
    assert [line.end_s for line in segments] == pytest.approx([2.639, 4.799, 5.799, 6.799, 9.789])


def test_row_08_a_blank_line_inside_a_vtt_cue_does_not_end_the_cue(tmp_path):
    """A video site writes a space into blank lines inside a cue, and editors strip it."""
    page = YOUTUBE_VTT.replace("\n \n", "\n\n")
    assert [segment.text for segment in read_segments(captions(tmp_path, "talk.vtt", page))] == SPOKEN
    page = page.replace("\n", "\r\n")
    path = tmp_path / "talk2.vtt"
    path.write_bytes(b"\xef\xbb\xbf" + page.encode())
    assert [segment.text for segment in read_segments(path)] == SPOKEN


@pytest.mark.parametrize("joined", ["\n", " "])
def test_row_08_each_line_of_a_rolling_srt_from_a_downloader_comes_once(tmp_path, joined):
    cues = [(a, b, joined.join(text.split("\n"))) for a, b, text in cues_of(YOUTUBE_VTT)]
    segments = read_segments(captions(tmp_path, "talk.srt", srt(*cues)))
    assert [segment.text for segment in segments] == SPOKEN


@pytest.mark.parametrize("n_lines", [2, 3])
def test_row_08_each_line_of_broadcast_roll_up_captions_comes_once(tmp_path, n_lines):
    lines = ["GOOD EVENING", "HERE IS THE NEWS", "IT RAINED", "ALL DAY", "IN THE NORTH", "OF THE COUNTRY"]
    shown = [lines[max(0, n + 1 - n_lines) : n + 1] for n in range(len(lines))]
    cues = [(2.0 * n, 2.0 * n + 2, "\n".join(text)) for n, text in enumerate(shown)]
    segments = read_segments(captions(tmp_path, "news.srt", srt(*cues)))
    assert [(segment.text, segment.start_s, segment.end_s) for segment in segments] == [
        (line, 2.0 * n, 2.0 * n + 2) for n, line in enumerate(lines)
    ]


def test_row_08_each_word_of_captions_that_grow_word_by_word_comes_once(tmp_path):
    words = ["live", "captions", "grow", "word", "by", "word", "on", "the", "screen"]
    cues = [(0.5 * n, 0.5 * n + 0.5, " ".join(words[: n + 1])) for n in range(len(words))]
    segments = read_segments(captions(tmp_path, "live.srt", srt(*cues)))
    assert " ".join(segment.text for segment in segments).split() == words


def test_row_08_words_that_two_successive_cues_share_come_once(tmp_path):
    words = [f"word{n}" for n in range(24)]
    cues = [(2.0 * n, 2.0 * n + 2, " ".join(words[4 * n : 4 * n + 8])) for n in range(5)]
    segments = read_segments(captions(tmp_path, "a.srt", srt(*cues)))
    assert " ".join(segment.text for segment in segments).split() == words


@pytest.mark.parametrize(
    "texts",
    [
        ["Stop!", "Stop!", "I said stop!", "Right now."],
        ["Row, row, row your boat", "Row, row, row your boat", "gently down the stream", "merrily"],
        ["No.", "No.\nNever.", "Why not?", "Because.", "Because\nI say so.", "Oh."],
        ["la la la", "la la la", "la la la", "la la la"],
    ],
)
def test_row_08_words_that_a_speaker_repeats_stay(tmp_path, texts):
    cues = [(1.5 * n, 1.5 * n + 1.4, text) for n, text in enumerate(texts)]
    segments = read_segments(captions(tmp_path, "talk.srt", srt(*cues)))
    assert [segment.text for segment in segments] == [" ".join(text.split()) for text in texts]


def test_row_08_cues_that_all_overlap_are_shortened_and_a_single_overlap_stays(tmp_path):
    """Video sites show two lines at once: each line stays until the next but one comes."""
    cues = [(2.0 * n, 2.0 * n + 4, f"line {n}") for n in range(5)]
    segments = read_segments(captions(tmp_path, "a.srt", srt(*cues)))
    assert [(segment.start_s, segment.end_s) for segment in segments] == [
        (2.0 * n, 2.0 * n + (4 if n == 4 else 2)) for n in range(5)
    ]
    apart = srt((0, 5, "A long sentence"), (4, 6, "interrupted"), (7, 8, "once"))
    assert read_segments(captions(tmp_path, "b.srt", apart))[0].end_s == 5


# markup ---------------------------------------------------------------------------------------------------------------

MARKED_VTT = """WEBVTT - a title

STYLE
::cue(.loud) { color: red }

REGION
id:fred

NOTE a note
of two lines

intro
00:01.000 --> 00:02.000 line:0 align:start
<v.loud Mary Ann>Hi &lt;you&gt; &amp; <b>me</b>&nbsp;<ruby>漢<rt>kan</rt></ruby> <lang en>x</lang> <00:01.500>y 3 < 4 <3

NOTE between

00:03.000 --> 00:04.000
NOTE this is said
by <i.x>me</i>

2
00:05.000 --> 00:06.000
{\\an8}&rlm;It&#39;s <c.yellow.bg_blue>late</c>

WEBVTT
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

3
00:05.000 --> 00:06.000
{\\an8}&rlm;It&#39;s <c.yellow.bg_blue>late</c>
"""


def test_row_08_vtt_markup_never_becomes_text(tmp_path):
    segments = read_segments(captions(tmp_path, "a.vtt", MARKED_VTT))
    assert [segment.text for segment in segments] == [
        "Hi <you> & me 漢 x y 3 < 4 <3",
        "NOTE this is said by me",
        "It's late",
    ]
    named = captions(tmp_path, "wrong_suffix.srt", MARKED_VTT)
    assert read_segments(named) == segments


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("<i>one</i> <B>two</B>", "one two"),
        ('<font color="#ffff00">one</font>', "one"),
        ("{\\an8}one {\\i1}two{\\i0}", "one two"),
        ("{y:i}one", "one"),
        ("one<br/>two\\Nthree", "one two three"),
        ("AT&amp;T &quot;now&quot; don&amp;#39;t", 'AT&T "now" don\'t'),
        ("one<00:00:01.469><c> two</c>", "one two"),
        ("<laughs> if a < b and c > d, I <3 you", "<laughs> if a < b and c > d, I <3 you"),
        ("♪ la la ♪ [Music] (applause)", "♪ la la ♪ [Music] (applause)"),
        ("2024", "2024"),
        ("A --> B", "A --> B"),
        ("{not markup} {}", "{not markup} {}"),
        ("क्ष\u200dत्र", "क्ष\u200dत्र"),
    ],
)
def test_row_08_srt_markup_is_removed_and_text_that_looks_like_markup_stays(tmp_path, written, text):
    # With the numbers of the cues, and without them.
    for page in (srt((1, 2, written)), srt((1, 2, written)).partition("\n")[2]):
        assert [segment.text for segment in read_segments(captions(tmp_path, "a.srt", page))] == [text]


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("00:00:01,000 --> 00:00:02,000\n1999\n\n00:00:03,000 --> 00:00:04,000\n2000\n", ["1999", "2000"]),
        ("1\n\n00:00:01,000 --> 00:00:02,000\n\none\n\n2\n\n00:00:03,000 --> 00:00:04,000\n\ntwo\n", ["one", "two"]),
        ("1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:03,000 --> 00:00:04,000\ntwo\n", ["one", "two"]),
        ("7\n00:00:01.5-->00:00:2.0 X1:10\none\n\nand more\n\n8\n0:03 --> 0:04\ntwo\n", ["one and more", "two"]),
    ],
)
def test_row_08_the_numbers_of_cues_do_not_become_text(tmp_path, page, texts):
    assert [segment.text for segment in read_segments(captions(tmp_path, "a.srt", page))] == texts


@pytest.mark.parametrize(
    "content",
    [
        {"transcription": [{"timestamps": {}, "offsets": {"from": 500, "to": 2000}, "text": " one"}]},
        {"text": "one", "chunks": [{"timestamp": [0.5, 2.0], "text": " one"}]},
        {"language": "en", "segments": [{"id": 0, "seek": 0, "start": 0.5, "end": 2.0, "text": " one", "tokens": [1]}]},
    ],
)
def test_the_json_of_each_whisper_program_is_read(tmp_path, content):
    assert read_segments(captions(tmp_path, "a.json", json.dumps(content))) == [Segment(" one", 0.5, 2.0)]


# names ----------------------------------------------------------------------------------------------------------------

PLAIN = srt((0.5, 2, "एक दो"), (2.1, 4, "तीन"))


@pytest.mark.parametrize(
    ("recording", "name", "language"),
    [
        ("talk.mp4", "talk.en.srt", "en"),
        ("talk.mp4", "talk.hi-IN.srt", "hi"),
        ("talk.webm", "talk.en-orig.srt", "en"),
        ("talk.mp4", "talk.mp4.srt", None),
        ("talk.wav", "talk.wav.srt", None),
        ("TALK.WAV", "TALK.SRT", None),
        ("talk [dQw4-9W_gX].mp4", "talk [dQw4-9W_gX].zh-Hans.srt", "zh"),
        ("a.b.c.mp3", "a.b.c.hindi.srt", "hi"),
        ("talk.wav", "talk.en.sdh.srt", "en"),
        ("talk.wav", "talk.en.hi.srt", "en"),
        ("talk.wav", "talk.hi.srt", "hi"),
        ("talk.f140.m4a", "talk.ml.srt", "ml"),
        ("talk.wav", "talk.bho.srt", None),
        ("talk.wav", "talk.wav.te.srt", "te"),
        ("talk.wav", "talk.pt_BR.srt", "pt"),
        ("cafe\u0301.wav", "café.en.srt", "en"),
        ("talk.wav", "talk.sdh.srt", None),
    ],
)
def test_row_08_captions_are_found_under_the_names_that_downloaders_give(tmp_path, recording, name, language):
    sound(tmp_path / "x.wav").rename(tmp_path / recording)
    path = captions(tmp_path, name, PLAIN)
    # Downloaders also write such a file about the video. It holds no captions.
    captions(tmp_path, "talk.info.json", "{}")
    for source in (tmp_path / recording, path, tmp_path):
        rows = load_source(str(source))
        assert [(row.text, row.language) for row in rows] == [("एक दो तीन", language)]
        assert rows[0].audio == str(tmp_path / recording)


@pytest.mark.parametrize("name", ["talk.wav.vtt", "talk.en.VTT", "talk.wav.json", "talk.ml.json"])
def test_captions_with_any_suffix_are_found(tmp_path, name):
    sound(tmp_path / "talk.wav")
    page = (
        "WEBVTT\n\n00:01.000 --> 00:02.000\nएक\n" if "vtt" in name.lower() else '[{"start": 1, "end": 2, "text": "एक"}]'
    )
    captions(tmp_path, name, page)
    assert [row.text for row in load_source(str(tmp_path / "talk.wav"))] == ["एक"]


def test_captions_in_several_languages_are_refused_until_the_user_names_one(tmp_path, caplog):
    sound(tmp_path / "my talk.wav")
    captions(tmp_path, "my talk.en.srt", PLAIN)
    captions(tmp_path, "my talk.en-orig.vtt", YOUTUBE_VTT)
    hindi = captions(tmp_path, "my talk.hi.srt", PLAIN)
    message = refusal(load_source, str(tmp_path / "my talk.wav"))
    assert "several languages" in message
    assert f"'{hindi}'" in message and "my talk.en.srt'" in message and "orig" not in message
    assert f"{tmp_path}:en or {tmp_path}:hi" in refusal(load_source, str(tmp_path))
    assert [row.language for row in load_source(f"{tmp_path}:hi")] == ["hi"]
    assert load_source(str(hindi)) == load_source(f"{tmp_path}:hindi")
    assert "says which language is spoken: hi (1 recording)" in caplog.text
    # Captions without a language in their name belong to the recording itself, so they are taken.
    captions(tmp_path, "my talk.srt", PLAIN)
    assert [row.language for row in load_source(str(tmp_path / "my talk.wav"))] == [None]


def test_one_of_two_sound_files_with_the_same_captions_is_taken(tmp_path, caplog):
    for name in ("talk.wav", "talk.flac", "alone.wav"):
        sound(tmp_path / name)
    captions(tmp_path, "talk.srt", PLAIN)
    assert [row.audio for row in load_source(str(tmp_path))] == [str(tmp_path / "talk.wav")]
    assert "1 recording: alone.wav" in caplog.text


# hostile caption files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("00:00:03,000 --> 00:00:01,000\nx", ":5: cue 2: .* ends before it starts"),
        ("99999:00:00,000 --> 99999:00:01,000\nx", "cue 2: .* beyond any recording"),
        ("99999999:00:00,000 --> 99999999:00:01,000\nx", "cue 2: .* has no proper times"),
        ("NaN --> NaN\nx", "cue 2: .* has no proper times"),
        ("-00:00:01,000 --> 00:00:01,000\nx", "cue 2: .* has no proper times"),
        ("00:00:01,000 --> \nx", "cue 2: .* has no proper times"),
        ("00:00:01,000 -> 00:00:02,000\nx", "cue 2: .* has no arrow"),
        ("2\nsoon --> later\nx", ":6: cue 2: .* has no proper times"),
        ("a\0b", ":5: NUL bytes"),
        ("1" * 1_000_000 + " --> x", "cue 2: .* has no proper times"),
    ],
)
@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_a_hostile_cue_is_refused_with_its_file_and_the_reason(tmp_path, name, page, said):
    path = captions(
        tmp_path, name, f"WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nok\n\n{page}\n"[8 if "srt" in name else 0 :]
    )
    message = refusal(read_segments, path)
    assert str(path) in message and len(message) < 400
    assert re.search(said.replace(":5:", r":\d:").replace(":6:", r":\d:"), message)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ('[{"start": NaN, "end": 1, "text": "a"}]', "segment 1: nan is no time"),
        ('[{"start": 0, "end": Infinity, "text": "a"}]', "segment 1: inf is no time"),
        ('[{"start": 0, "end": 1e308, "text": "a"}]', "segment 1: 1e.308 is no time"),
        (f'[{{"start": 0, "end": {"9" * 400}, "text": "a"}}]', "segment 1: 9+... is no time|segment 1: 9"),
        (f'[{{"start": 0, "end": {"9" * 5000}, "text": "a"}}]', "not JSON"),
        ('[{"start": 2, "end": 1, "text": "a"}]', "segment 1: it ends at 1 s, before it starts at 2 s"),
        ('[{"start": -1, "end": 1, "text": "a"}]', "segment 1: it starts at -1 s"),
        ('[{"start": true, "end": 1, "text": "a"}]', "segment 1: True is no time"),
        ('[{"start": 0, "end": 1, "text": "\\ud800"}]', "segment 1: half of a surrogate pair"),
        ('[{"start": 0, "end": 1, "text": 5}]', "segment 1: no text"),
        ('{"segments": 5}', "no list of segments"),
        ('{"segments": {"a": 1}}', "no list of segments"),
        ("5", "no list"),
        ("[" * 100_000, "nested"),
        ('{"segments": [' * 200 + "]}" * 200, "nested"),
        ("nul", "not JSON"),
        ('{"transcription": [{"offsets": {"from": "x", "to": 1}, "text": "a"}]}', "segment 1: 'x' is no time"),
        ('{"chunks": [{"timestamp": [0.0, null], "text": "a"}]}', "segment 1: None is no time"),
    ],
)
def test_a_hostile_json_segment_is_refused_with_its_file_and_the_reason(tmp_path, page, said):
    path = captions(tmp_path, "a.json", page)
    with pytest.raises(UserError, match=said) as refused:
        read_segments(path)
    assert str(path) in one_line(refused) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.encode("utf-16"), "not UTF-8"),
        (PLAIN.encode("cp1252", "replace") + b"\xe9", "not UTF-8"),
        (bytes(range(256)), "not UTF-8"),
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"no cues", "no segments"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"", "no segments"),
    ],
)
@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_a_file_that_holds_no_captions_is_refused_in_one_line(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(read_segments, path)
    assert str(path) in message and said in message


def test_row_34_a_fifo_in_place_of_captions_is_refused_before_it_is_opened(tmp_path):
    sound(tmp_path / "talk.wav")
    os.mkfifo(tmp_path / "talk.srt")
    for source in (tmp_path / "talk.wav", tmp_path):
        assert "a pipe (fifo)" in refusal(load_source, str(source))


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10**6,
        "<rt>" * 250_000,
        "<" * 10**6,
        "&amp;" * 200_000,
        "{\\" * 500_000,
        "<c " * 300_000,
        "a " * 500_000,
        "<00:00:00.100>" * 70_000,
        "-->" * 300_000,
    ],
    ids=lambda text: repr(text[:9]),
)
def test_a_line_of_a_megabyte_is_read_or_refused_within_seconds(tmp_path, text):
    path = captions(tmp_path, "a.vtt", f"WEBVTT\n\n00:00.000 --> 00:01.000\nok\n\n00:02.000 --> 00:03.000\nb {text}\n")
    began = time.process_time()
    with contextlib.suppress(UserError):
        read_segments(path)
    # Work that grows with the square of the length would take minutes.
    assert time.process_time() - began < 10


def test_a_huge_caption_file_is_refused(tmp_path):
    path = tmp_path / "a.srt"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    assert "larger than 16 MB" in refusal(read_segments, path)


CUE_PIECES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "\n",
            "\n\n",
            " --> ",
            "00:00:01,000 --> 00:00:02,000\n",
            "00:01.000 --> 00:03.500 align:start\n",
            "1\n",
            "WEBVTT\n",
            "STYLE\n",
            "<c>",
            "</c>",
            "<00:00:01.469>",
            "<v Bob>",
            "<rt>",
            "&amp;",
            "&#39;",
            "&#x110000;",
            "a b",
            "a b\nc d",
            "-00:00:01",
            "99999:59:59.999",
            "\r",
            "\0",
            "\u2028",
            "\ufeff",
            "٣٣:٣٣:٣٣,٣٣٣",
            "<i",
            ">",
            "{\\an8}",
            "NOTE",
        ]
    ),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(CUE_PIECES, max_size=40), st.sampled_from([".srt", ".vtt"]))
def test_any_caption_text_gives_segments_or_a_message_of_one_line(tmp_path_factory, pieces, suffix):
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_text("".join(pieces), encoding="utf-8", newline="")
    check_segments(path)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just(10**400)),
    lambda child: st.one_of(st.lists(child, max_size=4), st.dictionaries(st.text(max_size=5), child, max_size=4)),
    max_leaves=10,
)
TIMES = st.one_of(st.floats(-1, 100), st.floats(), st.integers(0, 50), JSON_VALUES)
SEGMENT_LISTS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"start": TIMES, "end": TIMES, "text": st.one_of(st.text(max_size=20), JSON_VALUES)}),
        st.fixed_dictionaries(
            {
                "offsets": st.one_of(JSON_VALUES, st.fixed_dictionaries({"from": TIMES, "to": TIMES})),
                "text": st.text(max_size=5),
            }
        ),
        st.fixed_dictionaries(
            {"timestamp": st.one_of(JSON_VALUES, st.lists(TIMES, max_size=3)), "text": st.text(max_size=5)}
        ),
        JSON_VALUES,
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=150)
@given(st.one_of(SEGMENT_LISTS, JSON_VALUES), st.sampled_from([None, "segments", "transcription", "chunks"]))
def test_any_list_of_segments_gives_segments_or_a_message_of_one_line(tmp_path_factory, content, key):
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps(content if key is None else {key: content}), encoding="utf-8")
    check_segments(path)


def check_segments(path: Path) -> None:
    """Check that a file gives ordered segments or one line that names it, within seconds and in little memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        segments = read_segments(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert segments
        assert all(0 <= segment.start_s <= segment.end_s for segment in segments)
        assert [segment.start_s for segment in segments] == sorted(segment.start_s for segment in segments)
        rows = cut_recording(Row("a.wav", ""), segments)
        said = " ".join(segment.text.strip() for segment in segments).split()
        assert " ".join(row.text for row in rows).split() == said
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200e6
    # In CPU seconds. The trace of memory slows reading down: without it, reading takes under one second.
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["大家", "大家好", "大家好吗", "大家好吗我们"], ["大家", "好", "吗", "我们"]),
        (["สวัสดี", "สวัสดีครับ", "สวัสดีครับยินดี"], ["สวัสดี", "ครับ", "ยินดี"]),
        (["大家好", "大家好\n欢迎来到", "欢迎来到\n新视频"], ["大家好", "欢迎来到", "新视频"]),
        (["好", "好的", "我们走吧", "去哪里"], ["好", "好的", "我们走吧", "去哪里"]),
    ],
    ids=["growing", "growing Thai", "rolling", "not rolling"],
)
def test_row_08_each_character_of_rolling_captions_without_spaces_comes_once(texts, expected, tmp_path):
    page = "".join(f"00:00:0{n},000 --> 00:00:0{n + 1},000\n{text}\n\n" for n, text in enumerate(texts))
    (tmp_path / "talk.srt").write_text(page, encoding="utf-8")
    assert [segment.text for segment in read_segments(tmp_path / "talk.srt")] == expected


def test_row_08_each_line_of_a_rolling_vtt_without_spaces_and_with_word_times_comes_once(tmp_path):
    page = "WEBVTT\n\n00:00.000 --> 00:02.000\n\n大家<00:00:00.500><c>好</c><00:00:01.000><c>吗</c>\n\n"
    page += "00:02.000 --> 00:02.010\n大家好吗\n\n00:02.010 --> 00:04.000\n大家好吗\n欢迎<00:00:02.500><c>来</c>\n\n"
    (tmp_path / "talk.vtt").write_text(page, encoding="utf-8")
    assert [segment.text for segment in read_segments(tmp_path / "talk.vtt")] == ["大家好吗", "欢迎来"]


@pytest.mark.parametrize("end", ["2\n00:00:02,0", "2\n00:00:02,000", "2\n00:00:02,000 --", "00:00:02,000 -->"])
def test_a_caption_file_that_breaks_off_in_its_times_is_refused(end, tmp_path):
    path = tmp_path / "talk.srt"
    path.write_text(f"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n{end}", encoding="utf-8")
    with pytest.raises(UserError, match=r"talk\.srt.*cue 2"):
        read_segments(path)
    path.write_text("1\n00:00:01,000 --> 00:00:02,000\nat\n\n12:30", encoding="utf-8")
    assert [segment.text for segment in read_segments(path)] == ["at 12:30"]
