"""The page of check shows all findings, the worst first, stays bounded in size, and opens in a browser."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import make_wave
from test_pages import HOSTILE, assert_self_contained, sound_of

from whisper_peft import UserError
from whisper_peft.checking import page as check_page
from whisper_peft.checking.page import write_check_page
from whisper_peft.checking.report import CheckReport, Coverage, ReportedClip, ReportedFinding, ReportedSource

ARABIC = "مرحبا بالعالم، كيف حالك؟"


def clip(row: int, *, source: str = "speech/train", name: str = "", text: str = "पानी लाओ", **more) -> ReportedClip:
    name = name or f"clip_{row}.wav"
    known = {"place": "", "detail": f"detail {row}", "duration_s": 1.5, **more}
    return ReportedClip(name=name, source=source, row=row, text=text, **known)


def finding(
    kind: str, severity: str, clips: list[ReportedClip], count: int | None = None, words: str | None = None
) -> ReportedFinding:
    count = len(clips) if count is None else count
    why = words or f"why {kind} matters"
    remedy = words or f"how {kind} is mended; tell"
    return ReportedFinding(kind=kind, severity=severity, count=count, why=why, remedy=remedy, clips=clips)


def source(name: str = "speech/train", **changes) -> ReportedSource:
    facts = {
        "name": name,
        "split": "train",
        "clips": 683,
        "hours": 0.69,
        "speakers": 49,
        "durations_s": [1.0, 2.0, 3.0, 3.5],
        "tokens_per_second": [10.0, 12.0, None, 14.0],
        "characters": {"प": 3, "ा": 2, " ": 9, "\u200d": 1, "\0": 1},
        "scripts": {"Devanagari": 0.99, "Latin": 0.01},
        "languages": {"hi": 680, "not named": 3},
        "correlation_at_shift": {"0": 0.9},
    }
    return ReportedSource(**{**facts, **changes})


def report(
    findings: list[ReportedFinding], sources: list[ReportedSource] | None = None, model: str | None = None
) -> CheckReport:
    return CheckReport(
        sources=sources or [source()],
        findings=findings,
        errors=1,
        warnings=22,
        notes=0,
        checked=Coverage(headers=683, audio=680, model=model, tokens="counted"),
        seconds=4.2,
    )


def nothing(clip: ReportedClip) -> None:
    return None


def short(clip: ReportedClip) -> np.ndarray:
    return make_wave(0.2, seed=clip.row)


def written(tmp_path, content: CheckReport, audio=nothing) -> str:
    path = tmp_path / "page.html"
    write_check_page(content, path, audio)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def test_a_page_shows_summary_findings_and_data_in_this_order(tmp_path):
    findings = [
        finding("unreadable", "error", [clip(3), clip(4, duration_s=None)]),
        finding("text-too-long", "warning", [clip(7, suggestion="shorter")], count=1234),
        finding("clipping", "note", [clip(9, text=ARABIC, name="تسجيل.wav")]),
    ]
    page = assert_self_contained(written(tmp_path, report(findings), short))
    text = re.sub(r"\s+", " ", page.text)
    parts = [
        "speech/train",
        "683 clips",
        "0.69 hours",
        "1 clip with errors",
        "22 clips with warnings",
        "683 headers read",
        "680 clips decoded",
    ]
    # The table of contents comes first.
    parts += ["no model asked", "Unreadable", "Text too long", "1,234", "Clipping"]
    # After it, each finding is shown in full.
    for entry in findings:
        parts += [entry.severity, f"Why {entry.kind} matters.", f"How {entry.kind} is mended; tell."]
        for about in entry.clips:
            parts += [about.name, f"row {about.row}", about.detail, about.text]
    parts += ["The data", "683 clips · 0.69 hours · 49 speakers", "Clip length", "Tokens per second", "1 not known"]
    parts += ["Scripts", "Devanagari", "99.0%", "Languages", "Hindi (hi)", "680 clips", "not named", "Characters"]
    at = 0
    for part in parts:
        assert part in text[at:], part
        at = text.index(part, at)
    assert "→ shorter" in text and "1,233 more clips not on this page" in text
    assert len(page.named("audio")) == 4
    links = [entry["href"] for entry in page.named("a")]
    assert links == ["#finding-0", "#finding-1", "#finding-2"]
    assert {link[1:] for link in links} < {attributes.get("id") for _, attributes in page.elements}


def test_files_are_named_relative_to_their_common_folder(tmp_path):
    names = ("/data/cv/hi/clips/1.mp3", "/data/cv/hi/more/clips/1.mp3")
    clips = [clip(row, name=name, place=f"train.tsv:{row}", start_s=2.5) for row, name in enumerate(names)]
    page = assert_self_contained(written(tmp_path, report([finding("silence", "error", clips)]), short))
    assert "Files are in /data/cv/hi/" in page.text and page.text.count("/data/cv/hi") == 1
    assert "more/clips/1.mp3 train.tsv:1 from 2.50 s 1.50 s" in page.text
    assert [player["aria-label"] for player in page.named("audio")] == ["clips/1.mp3", "more/clips/1.mp3"]
    both = [source("/data/cv/hi:train"), source("/data/cv/hi:dev")]
    clips = [clip(row, name=name, source="/data/cv/hi:dev") for row, name in enumerate(names)]
    (tmp_path / "page.html").unlink()
    page = assert_self_contained(written(tmp_path, report([finding("silence", "error", clips)], both)))
    assert "hi:train, hi:dev" in page.text and "more/clips/1.mp3 hi:dev row 1" in page.text
    assert "whisper-peft check /data/cv/" in page.text and "Files are in /data/cv/hi/" in page.text
    assert page.text.count("/data/cv/") == 2
    common = check_page._common_folder
    assert [common(list(of)) for of in (("/a/1", "/b/2"), ("a/1", "/a/2"), (), ("/a/b/1", "/a/bc/1"))] == [
        "",
        "",
        "",
        "/a/",
    ]


def test_names_texts_and_details_cannot_inject_html(tmp_path):
    def page_with(words: tuple[str, ...]) -> str:
        clips = [
            clip(row, name=word, text=word, source=word, detail=word, suggestion=word) for row, word in enumerate(words)
        ]
        findings = [finding("unreadable", "error", clips, words=words[0])]
        sources = [
            source(word, scripts={word: 1.0}, languages={word: 1}, characters={"<": 1, '"': 2, "&": 1})
            for word in words
        ]
        (tmp_path / "page.html").unlink(missing_ok=True)
        return written(tmp_path, report(findings, sources, model=words[0]), short)

    hostile = assert_self_contained(page_with(HOSTILE))
    assert (
        hostile.shape()
        == assert_self_contained(page_with(tuple(re.sub("[^/]", "a", word) for word in HOSTILE))).shape()
    )
    for word in HOSTILE:
        assert hostile.text.count(word) >= 7
    # A page is written even if a text holds characters that UTF-8 cannot encode.
    page_with(("\udce9\ud800\0\u202e",))


def test_the_worst_clips_of_each_finding_get_a_player_and_no_clip_gets_two(tmp_path):
    findings = [
        finding("unreadable", "error", [clip(row) for row in range(60)]),
        finding("silence", "warning", [clip(row) for row in range(100, 160)]),
        finding("clipping", "note", [clip(100), clip(7), *(clip(row) for row in range(200, 260))]),
    ]
    asked = []

    def audio(entry: ReportedClip) -> np.ndarray | None:
        asked.append((entry.source, entry.row))
        return None if entry.row < 60 else short(entry)

    page = assert_self_contained(written(tmp_path, report(findings), audio))
    heard = [entry["aria-label"] for entry in page.named("audio")]
    assert len(heard) == len(set(heard)) == check_page.MOST_PLAYERS
    assert {"clip_100.wav", "clip_119.wav", "clip_200.wav", "clip_217.wav"} < set(heard)
    assert len(asked) == len(set(asked))
    links = [entry["href"] for entry in page.named("a") if entry["href"].startswith("#sound")]
    # The second finding of clip 100 links to the player at its first.
    assert len(links) == 1
    assert links[0][1:] in {attributes.get("id") for _, attributes in page.elements}


def test_clips_that_are_not_on_the_page_are_counted(tmp_path):
    findings = [finding("silence", "warning", [clip(row) for row in range(1234)], count=1234)]
    page = assert_self_contained(written(tmp_path, report(findings)))
    listed = len([1 for tag, attributes in page.elements if attributes.get("class") == "clip"])
    assert listed == check_page.MOST_CLIPS_ON_PAGE
    assert f"{1234 - listed:,} more clips not on this page" in page.text
    # All clips but the first five are folded away.
    assert len(page.named("details")) == 1


@pytest.mark.slow
def test_a_page_is_bounded_in_size_whatever_the_report_holds(tmp_path):
    unseen = "\u202e" * 5_000_000
    clips = [clip(row, name=unseen, text=unseen, detail=unseen, suggestion=unseen) for row in range(60)]
    findings = [finding(f"kind_{number}", "warning", clips) for number in range(40)]
    characters = {chr(0x4E00 + number): number for number in range(20_000)}
    sources = [source(unseen, characters=characters, durations_s=[1.0] * 5_000) for _ in range(100)]
    page = written(tmp_path, report(findings, sources))
    assert len(page.encode("utf-8")) < 10_000_000 - check_page.MOST_SOUND_BYTES
    parsed = assert_self_contained(page)
    assert "80 more sources are not on this page" in parsed.text
    assert "The 60 most frequent of 20,000 characters" in parsed.text
    assert all(f"Why kind_{number} matters." in parsed.text for number in range(40))


def test_players_end_at_the_size_limit_of_all_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(check_page, "MOST_SOUND_BYTES", 40_000)
    findings = [finding("silence", "warning", [clip(row) for row in range(50)])]
    page = written(tmp_path, report(findings), short)
    players = re.findall(r"<audio.*?</audio>", page)
    assert 2 <= len(players) < 40
    assert sum(map(len, players)) <= 40_000


def test_the_page_of_a_clean_data_set_says_so(tmp_path):
    empty = source(
        clips=0, hours=0.0, speakers=None, durations_s=[], tokens_per_second=[], characters={}, scripts={}, languages={}
    )
    for number, sources in enumerate(([source()], [empty], [empty, empty])):
        folder = tmp_path / str(number)
        folder.mkdir()
        page = assert_self_contained(written(folder, report([], sources)))
        assert "Nothing found." in page.text and not page.named("audio")


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    findings = [finding("silence", "warning", [clip(1)])]
    path = tmp_path / "page.html"

    def breaks(reported_clip: ReportedClip) -> np.ndarray:
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_check_page(report(findings), path, breaks)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already; name another page"):
        # No clip is decoded for a page that is refused.
        write_check_page(report(findings), path, breaks)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_opens_in_a_browser(chromium, tmp_path, width):
    long_name = "clips/" + "a_folder_with_a_long_name" * 8 + "/clip.wav"
    findings = [
        finding(
            "silence", "warning", [clip(1, text=HOSTILE[0]), clip(2, name=long_name, text="x" * 400, place="y" * 110)]
        ),
        finding("clipping", "note", [clip(3, text=ARABIC)]),
    ]
    waves = {1: make_wave(1.37), 2: make_wave(3.0), 3: make_wave(2.2)}
    write_check_page(
        report(findings, [source(), source("b" * 90)]),
        tmp_path / "page.html",
        lambda reported_clip: waves[reported_clip.row],
    )

    context = chromium.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(request.url))
    page.on("dialog", lambda dialog: trouble.append(dialog.message))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("[...document.querySelectorAll('audio')].every(one => one.readyState > 0 || one.error)")
    sounds = page.evaluate("[...document.querySelectorAll('audio')].map(one => one.duration)")
    np.testing.assert_allclose(sounds, [1.37, 3.0, 2.2], atol=0.03)
    # The page needs no sideways scrolling.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    directions = page.evaluate("[...document.querySelectorAll('p.text')].map(one => getComputedStyle(one).direction)")
    assert directions == ["ltr", "ltr", "rtl"]
    assert page.evaluate("document.querySelectorAll('figure svg rect').length") > 4
    page.locator("a", has_text="Clipping").click()
    assert page.evaluate("location.hash") == "#finding-1"
    assert not trouble
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    context.close()


def test_a_player_holds_the_sound_of_its_clip(tmp_path):
    wave = make_wave(1.0)
    findings = [finding("silence", "warning", [clip(1)])]
    page = written(tmp_path, report(findings), lambda reported_clip: wave)
    heard, rate_hz, _ = sound_of(re.search(r"<audio.*?</audio>", page)[0])
    assert rate_hz == 16_000 and np.corrcoef(heard, wave)[0, 1] > 0.98


def test_only_the_played_part_of_a_long_recording_is_decoded(tmp_path, monkeypatch):
    import soundfile

    from whisper_peft import check
    from whisper_peft.checking import check as room

    soundfile.write(tmp_path / "long.wav", make_wave(40.0), 16_000)
    (tmp_path / "clips.jsonl").write_text('{"audio": "long.wav", "text": "a story", "language": "en"}\n')
    decoded = []

    def load_audio(*arguments, **options):
        decoded.append(load(*arguments, **options))
        return decoded[-1]

    load = room.load_audio
    monkeypatch.setattr(room, "load_audio", load_audio)
    report = check(tmp_path / "clips.jsonl", html=tmp_path / "page.html")
    assert report.findings[0].kind == "over-window"
    assert [len(wave) for wave in decoded] == [30 * 16_000]
    page = assert_self_contained((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "the first 30 of 40.0 s" in page.text and "Over window" in page.text
