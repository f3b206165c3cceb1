"""Subtitles and other files have readable lines in every script, times in order, and text that stays text."""

from __future__ import annotations

import functools
import http.server
import json
import random
import string
import threading
from itertools import pairwise

import pysubs2
import pytest
import regex
import soundfile
from conftest import make_wave
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_peft import UserError
from whisper_peft.evaluation.subtitle_cues import LINE_COLUMNS, MAX_SHOWN_S, MIN_SHOWN_S, columns_of, make_cues
from whisper_peft.evaluation.transcript_files import output_names, parse_formats, render_transcript

ENGLISH = (
    "In a village not far from the sea there lived a woman, and her name was Muthai. She pressed the seeds into the "
)
MALAYALAM = "ഒരു ഗ്രാമത്തിൽ കടലിനടുത്ത് ഒരു സ്ത്രീ താമസിച്ചിരുന്നു. അവളുടെ പേര് മുത്തായി എന്നായിരുന്നു; അവൾ വിത്തുകൾ മണ്ണിൽ അമർത്തി. "
URDU = "سمندر کے قریب ایک گاؤں میں ایک عورت رہتی تھی۔ اس کا نام متھائی تھا، اور وہ ہر صبح کھیت میں بیج بوتی تھی۔ "
JAPANESE = (
    "海の近くの村に一人の女性が住んでいました。"
    "名前はムタイといい、毎朝早く起きて畑に行き、歌いながら種を蒔いていました。"
)
THAI = "ในหมู่บ้านใกล้ทะเลมีผู้หญิงคนหนึ่งอาศัยอยู่ เธอชื่อมูไท ทุกเช้าเธอตื่นแต่เช้าไปที่ทุ่งนาและหว่านเมล็ดพืช"
TEXTS = {"english": ENGLISH, "malayalam": MALAYALAM, "urdu": URDU, "japanese": JAPANESE, "thai": THAI}


def squeezed(text: str) -> str:
    return "".join(text.split())


def check_cues(cues, text: str) -> None:
    """Check what must hold for all subtitles."""
    assert squeezed("".join(line for cue in cues for line in cue.lines)) == squeezed(text)
    assert all(cue.end_s <= following.start_s + 1e-9 for cue, following in pairwise(cues))
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        assert MIN_SHOWN_S - 0.002 <= cue.end_s - cue.start_s <= MAX_SHOWN_S + 0.002
        for line in cue.lines:
            assert line == line.strip() and line
            assert columns_of(line) <= LINE_COLUMNS or len(regex.findall(r"\X", line)) == 1


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(
    ("seconds", "length"), [(2.0, 400), (6.0, 84), (12.0, 400), (29.0, 90), (29.0, 400), (120.0, 400)]
)
def test_lines_of_every_script_break_at_good_places(language, seconds, length):
    text = (TEXTS[language] * 2)[:length].strip()
    cues = make_cues([{"start": 3.0, "end": 3.0 + seconds, "text": text}])
    check_cues(cues, text)
    # These scripts are broken at spaces only.
    if language in ("english", "malayalam", "urdu"):
        assert " ".join(line for cue in cues for line in cue.lines).split() == text.split(), cues
    clusters = [cluster for cluster in regex.findall(r"\X", text) if not cluster.isspace()]
    written = [
        cluster for cue in cues for line in cue.lines for cluster in regex.findall(r"\X", line) if not cluster.isspace()
    ]
    assert written == clusters
    if length > 100 and language == "japanese":
        assert any(line[-1] in "。、" for cue in cues for line in cue.lines)
    for cue in cues:
        for line in cue.lines:
            assert line[0] not in "。、，．！？」）ーっゃゅょ,.;:!?۔،ะาำ"
            assert line[-1] not in "「（เแโใไ"


def test_a_wide_character_takes_two_columns():
    assert columns_of("字幕") == 4 and columns_of("ab") == 2 and columns_of("മലയാളം") == 4
    assert columns_of("ｈｉ") == 4 and columns_of("e\u0301") == 1
    cues = make_cues([{"start": 0.0, "end": 5.0, "text": "あ" * 60}])
    assert max(len(line) for cue in cues for line in cue.lines) == 21


def test_a_short_text_stays_on_one_line_and_two_lines_are_of_like_length():
    (cue,) = make_cues([{"start": 1.0, "end": 2.5, "text": "  Good\tmorning. "}])
    assert (cue.start_s, cue.end_s, cue.lines) == (1.0, 2.5, ("Good morning.",))
    (cue,) = make_cues([{"start": 0.0, "end": 4.0, "text": "one two three four five six seven eight nine ten eleven"}])
    assert abs(len(cue.lines[0]) - len(cue.lines[1])) < 10
    assert make_cues([]) == [] and make_cues([{"start": 0, "end": 1, "text": " "}]) == []


def test_word_times_decide_when_a_long_segment_is_cut():
    """All words are spoken in the last fifth; a cue appears when its words are spoken, not at its share of the time."""
    words = ENGLISH.split()
    timed = [{"word": f" {word}", "start": 24.0 + 0.3 * at, "end": 24.3 + 0.3 * at} for at, word in enumerate(words)]
    segment = {"start": 0.0, "end": 30.0, "text": ENGLISH.strip()}
    guessed = make_cues([segment])
    known = make_cues([{**segment, "words": timed}])
    check_cues(known, ENGLISH)
    assert guessed[0].start_s == 0.0 and known[0].start_s == 24.0
    starts = {word["start"]: word["word"].strip() for word in timed}
    assert all(
        starts[min(starts, key=lambda at, cue=cue: abs(at - cue.start_s))] == cue.lines[0].split()[0] for cue in known
    )
    # Words of another text are ignored.
    other = make_cues([{**segment, "words": timed[:-1]}])
    assert [cue.lines for cue in other] == [cue.lines for cue in guessed]


def test_segments_at_the_same_time_are_shown_one_after_the_other():
    crowd = [{"start": 2.0, "end": 2.0, "text": f"word{number}"} for number in range(50)]
    check_cues(make_cues(crowd), "".join(segment["text"] for segment in crowd))
    backwards = [{"start": 9.0, "end": 4.0, "text": "first"}, {"start": 3.0, "end": 5.0, "text": "second"}]
    check_cues(make_cues(backwards), "firstsecond")


MARKS = ["\u0301", "\u200d", "👩"]
LETTERS = st.text(st.sampled_from([*string.ascii_letters, *" .,?!-", *"കിാ്ൻ字。「」ーกเำع۔", *MARKS]), max_size=200)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30), LETTERS), max_size=12))
@settings(deadline=None, max_examples=150)
def test_any_segments_give_subtitles_in_order(drawn):
    segments = []
    at = 0.0
    for gap, length, text in drawn:
        segments.append({"start": at + gap, "end": at + gap + length, "text": text})
        at += gap
    cues = make_cues(segments)
    written = squeezed("".join(line for cue in cues for line in cue.lines))
    assert written == squeezed("".join(segment["text"] for segment in segments))
    assert all(len(cue.lines) <= 2 and cue.end_s > cue.start_s for cue in cues)
    assert all(cue.end_s <= following.start_s + 1e-9 for cue, following in pairwise(cues))


def test_a_long_text_without_a_break_is_cut_quickly():
    import time

    began = time.monotonic()
    make_cues([{"start": 0.0, "end": 30.0, "text": "字" * 20_000}])
    assert time.monotonic() - began < 20


NASTY = [
    "a < b && c > d",
    "<i>not in italics</i>",
    "<script>alert(1)</script>",
    "{\\an8}up {\\b1}bold{\\b0} {y:i}x",
    "&lt;b&gt; &amp;",
    r"C:\new\Home\hat",
    "-->",
    "00:00:01.000 --> 00:00:02.000",
    "<00:00:01.000>word<c.red>x</c>",
    "WEBVTT",
    "NOTE x",
    "1",
    "{}",
    "a\x1b[2Jb\x00c",
    "\\",
    "x\u2028y",
    "<v Anna>hello",
    "\u202eabc",
]


def visible(text: str) -> str:
    """Return a text without the characters that no player shows."""
    return squeezed(regex.sub(r"[\p{Cc}\u2028\u2029]", "", text))


@pytest.mark.parametrize("text", NASTY)
def test_no_text_becomes_markup(text):
    transcript = {"text": text, "language": "en", "segments": [{"start": 0.0, "end": 3.0, "text": text}]}
    vtt = render_transcript(transcript, "vtt")
    head, body = vtt.split("\n\n", 1)
    assert head == "WEBVTT" and body.count("-->") == 1
    cue = body.split("\n", 2)[2].strip()
    assert "<" not in cue and ">" not in cue
    shown = cue.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert visible(shown) == visible(text)
    srt = render_transcript(transcript, "srt")
    lines = srt.split("\n", 2)
    assert lines[0] == "1" and lines[1] == "00:00:00,000 --> 00:00:03,000" and srt.count("-->") == 1
    assert not regex.search(r"<[A-Za-z/!?]|\{\\|\{[A-Za-z]:", lines[2])
    same = str.maketrans("＜＞｛", "<>{")
    assert visible(lines[2].translate(same)) == visible(text)
    assert "\\" not in text or "\\" in lines[2]
    # The reader of pysubs2 takes any line with two times for the head of a cue.
    if not text.startswith("00:"):
        assert len(pysubs2.SSAFile.from_string(vtt, format_="vtt")) == 1
    assert json.loads(render_transcript(transcript, "json"))["text"] == text
    assert len(render_transcript(transcript, "tsv").splitlines()) == 2 or "\u2028" in text


def test_table_and_json_have_the_columns_and_keys_of_openai_whisper():
    words = [{"word": " Hi", "start": 0.5, "end": 0.8}, {"word": " there", "start": 0.8, "end": 1.25}]
    segments = [
        {"start": 0.5, "end": 1.25, "text": "Hi\tthere", "words": words},
        {"start": 61.0, "end": 62.004, "text": "End"},
    ]
    transcript = {"text": "Hi there End", "language": "en", "segments": segments}
    assert render_transcript(transcript, "tsv") == "start\tend\ttext\n500\t1250\tHi there\n61000\t62004\tEnd\n"
    page = json.loads(render_transcript(transcript, "json"))
    assert list(page) == ["text", "segments", "language"] and page["language"] == "en"
    keys = ["id", "start", "end", "text"]
    assert [list(segment) for segment in page["segments"]] == [[*keys, "words"], keys]
    assert page["segments"][1]["id"] == 1 and page["segments"][0]["words"] == words
    assert render_transcript(transcript, "txt") == "Hi there End\n"


def test_the_table_equals_the_one_that_openai_whisper_writes(tmp_path):
    whisper_utils = pytest.importorskip("whisper.utils")
    segments = [{"start": 0.5, "end": 1.254, "text": " Hi there "}, {"start": 61.0, "end": 62.0, "text": "പാട്ട്"}]
    whisper_utils.get_writer("tsv", str(tmp_path))({"segments": segments}, "a.wav", {})
    table = (tmp_path / "a.tsv").read_text(encoding="utf-8")
    assert render_transcript({"segments": segments, "text": ""}, "tsv") == table


def test_formats_are_given_one_by_one_in_a_list_or_as_all():
    assert parse_formats(["srt", "txt,json"]) == ("txt", "srt", "json")
    assert parse_formats(["ALL"]) == ("txt", "srt", "vtt", "tsv", "json")
    for wrong in (["docx"], ["srt,"], []):
        with pytest.raises(UserError, match=r"--format.*expected txt, srt, vtt, tsv, json or all"):
            parse_formats(wrong)


def test_two_recordings_never_get_the_same_output_name():
    assert output_names([("/x/talk.wav", "talk.wav"), ("/x/end.mp3", "end.mp3")]) == ["talk", "end"]
    assert output_names([("/x/talk.wav", "talk.wav"), ("/x/talk.mp3", "talk.mp3")]) == ["talk.wav", "talk.mp3"]
    assert output_names([("/a/b/talk.wav", "talk.wav"), ("/a/c/talk.mp3", "talk.mp3")]) == ["b/talk", "c/talk"]
    assert output_names([("/a/b/t.wav", "t.wav"), ("/c/b/t.wav", "t.wav")]) == ["a/b/t", "c/b/t"]
    assert output_names([("/a/b/t.wav", "b/t.wav"), ("/a/c/t.wav", "c/t.wav")]) == ["b/t", "c/t"]
    assert output_names([("/a/talk.2024", "talk.2024"), ("/a/talk.2025", "talk.2025")]) == ["talk.2024", "talk.2025"]
    names = output_names([("/x/talk.wav", "talk.wav")] * 2)
    # Both entries are the same recording.
    assert names == ["talk", "talk"]


@given(
    st.lists(
        st.tuples(
            *[st.sampled_from(["a", "b", "A"])] * 3, st.sampled_from([".wav", ".mp3", ".wav.flac", ""]), st.booleans()
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_output_names_differ_and_do_not_depend_on_the_order(drawn):
    recordings = []
    for first, second, stem, suffix, is_in_folder in drawn:
        path = f"/{first}/{second}/{stem}{suffix}"
        recordings.append((path, f"{second}/{stem}{suffix}" if is_in_folder else f"{stem}{suffix}"))
    recordings = list(dict(recordings).items())
    names = output_names(recordings)
    assert len({name.casefold() for name in names}) == len(names)
    shuffled = list(range(len(recordings)))
    random.Random(0).shuffle(shuffled)
    assert output_names([recordings[at] for at in shuffled]) == [names[at] for at in shuffled]


PAGE = """<!doctype html><meta charset="utf-8"><title>subtitles</title>
<video id="video" controls width="640" height="360" src="sound.wav" style="background: #333">
<track default kind="subtitles" srclang="xx" src="{name}.vtt"></video>"""


def served(folder):
    """Serve a folder on this machine, because Chromium loads no <track> from a file."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_chromium_shows_the_text_and_times_of_every_cue(chromium, tmp_path):
    """Chromium shows each script from WebVTT, and from .srt with a WebVTT head, with text and times and no markup."""
    soundfile.write(tmp_path / "sound.wav", make_wave(12.0), 16000)
    expected = {}
    for name, text in {**TEXTS, "nasty": " ".join(phrase for phrase in NASTY if phrase.isprintable())}.items():
        segments = [{"start": 0.4, "end": 6.0, "text": text[:90]}, {"start": 6.5, "end": 11.0, "text": text[90:180]}]
        transcript = {"text": text, "segments": segments}
        (tmp_path / f"{name}.vtt").write_text(render_transcript(transcript, "vtt"), encoding="utf-8")
        (tmp_path / f"{name}.html").write_text(PAGE.format(name=name), encoding="utf-8")
        srt = regex.sub(r"(\d\d),(\d\d\d)", r"\1.\2", render_transcript(transcript, "srt"))
        (tmp_path / f"{name}-srt.vtt").write_text("WEBVTT\n\n" + srt, encoding="utf-8")
        (tmp_path / f"{name}-srt.html").write_text(PAGE.format(name=f"{name}-srt"), encoding="utf-8")
        cues = make_cues(segments)
        expected[name] = cues
        # In a WebVTT file, & and < are not plain text.
        if name != "nasty":
            expected[f"{name}-srt"] = cues
    server = served(tmp_path)
    page = chromium.new_page()
    try:
        for name, cues in expected.items():
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}.html")
            page.wait_for_function("document.querySelector('track').readyState === 2")
            shown_cues = page.evaluate(
                "[...document.querySelector('track').track.cues].map(cue => [cue.startTime, cue.endTime, "
                "cue.getCueAsHTML().textContent, [...cue.getCueAsHTML().querySelectorAll('*')].length])"
            )
            assert [(start, end, text) for start, end, text, _ in shown_cues] == [
                (cue.start_s, cue.end_s, "\n".join(cue.lines)) for cue in cues
            ]
            assert all(n_elements == 0 for *_, n_elements in shown_cues)
    finally:
        page.close()
        server.shutdown()
