"""The page of the demo transcribes files, recordings and examples in a real Chromium, and its command ends cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_wave

from whisper_peft import UserError, load_model, merge, runs, transcribe
from whisper_peft.delivery import demo as demo_module
from whisper_peft.delivery import demo_page, voices
from whisper_peft.delivery.demo import demo
from whisper_peft.model.locating import Located

HOSTILE = "</bdi></p><img src=x onerror=\"document.title='hacked'\"> ${1+1} {{value}} & \u202egnp"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


def make_webm(path: Path, wave: np.ndarray) -> Path:
    """Save a clip as the recorder of a browser does: Opus in webm."""
    import av

    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 3)[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


WATCHED = """
import sys

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost", None):
            print("asked for", host, file=sys.stderr)

sys.addaudithook(note)
from whisper_peft.cli.commands import main
main()
"""


class Served:
    """A demo in a separate process, which reports on stderr when it contacts another host."""

    def __init__(self, *arguments: object, uploads: Path):
        command = [sys.executable, "-c", WATCHED, "demo", *map(str, arguments), "--port", "0", "--json"]
        self.uploads = uploads
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(uploads), "HF_HUB_OFFLINE": "0"},
            # A background job ignores SIGINT, so the default is set again.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.facts = json.loads(line)

    def page(self, chromium, size: str = "desktop"):
        """Load the page; `elsewhere` collects its requests to other hosts, and `broken` the errors of its scripts."""
        width, height = SIZES[size]
        page = chromium.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.elsewhere, page.broken = [], []
        page.on(
            "request", lambda request: page.elsewhere.append(request.url) if "//127.0.0.1:" not in request.url else None
        )
        # Gradio 6.0 names a script on another host, which the page's policy blocks before it is requested.
        page.on(
            "requestfailed", lambda request: page.elsewhere.remove(request.url) if request.failure == "csp" else None
        )
        page.on("pageerror", lambda error: page.broken.append(str(error)))
        page.goto(self.facts["url"])
        page.wait_for_selector("#file input[type=file]", state="attached")
        return page


def heard(page, having: str) -> str:
    """Return the text of the result, once all models are done and the text includes `having`."""
    page.wait_for_function(
        "having => { const shown = document.querySelector('#result').innerText;"
        " return shown.includes(having) && !shown.includes('listening') }",
        arg=having,
        # A busy machine may need minutes.
        timeout=300_000,
    )
    return page.inner_text("#result")


def upload(page, file: Path, having: str) -> str:
    page.set_input_files("#file input[type=file]", file)
    return heard(page, having)


def cards(page) -> list[str]:
    return [card.inner_text() for card in page.query_selector_all("#result .said")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return make_webm(tmp_path_factory.mktemp("clip") / "<img src=x onerror=alert(1)>.webm", make_wave(1.2))


@pytest.fixture(scope="module")
def run(lora_run, tmp_path_factory) -> Path:
    """A run whose first clip has hostile HTML as its reference."""
    folder = shutil.copytree(lora_run, tmp_path_factory.mktemp("demo") / "run")
    scored = runs.read_jsonl(folder / "transcripts.jsonl")
    runs.rewrite_jsonl(folder / "transcripts.jsonl", [{**scored[0], "reference": HOSTILE}, *scored[1:]])
    return folder


# What needs no browser


def shown_texts(before: str, after: str, **options) -> list[str]:
    """Return the two transcripts as the page shows them."""
    heard = [{"text": text, "reached_limit": False} for text in (before, after)]
    cards = [("Before", "b", heard[0]), ("After", "a", heard[1])]
    page = demo_page.result("a.wav", 1.0, None, cards, **options)
    return re.findall(r'<p class="said" dir="auto">(.*?)</p>', page, re.DOTALL)


def counts(before: str, after: str, **options) -> tuple[int, int]:
    comparison = demo_page.compare_texts(before, after, **options)
    return comparison.n_pieces, comparison.n_shared


def test_differences_are_marked_word_by_word():
    texts = "पानी लाओ अब", "पानी  बत्ती जलाओ अब"
    before, after = shown_texts(*texts)
    assert counts(*texts) == (4, 2)
    assert before == "पानी <del>लाओ</del> अब"
    assert after in ("पानी <ins>बत्ती जलाओ</ins> अब", "पानी <ins>बत्ती</ins> <ins>जलाओ</ins> अब")
    nothing = '<span class="quiet">(nothing)</span>'
    assert shown_texts("", "so ist es") == [nothing, "<ins>so ist es</ins>"]
    assert counts("", "so ist es") == (3, 0)
    assert shown_texts("", "") == [nothing, nothing] and counts("", "") == (0, 0)
    texts = "今日は", "今日も"
    before, after = shown_texts(*texts, spaces=False)
    assert counts(*texts, spaces=False) == (3, 2) and before == "今日<del>は</del>" and after == "今日<ins>も</ins>"


def test_a_vowel_sign_is_marked_together_with_its_letter():
    texts = "กินน้ำ", "กีนน้ำ"
    assert shown_texts(*texts, spaces=False) == ["<del>กิ</del>นน้ำ", "<ins>กี</ins>นน้ำ"]
    assert counts(*texts, spaces=False) == (4, 3)


def test_right_to_left_text_is_shown_from_right_to_left(chromium):
    long, short = "ذهب الولد الى المدرسة صباح", "ذهب الى المدرسة"
    transcripts = [{"text": said, "reached_limit": False} for said in (long, short)]
    page = chromium.new_page()
    page.set_content(
        demo_page.result("a.wav", 2.0, "ar", [("Before", "b", transcripts[0]), ("After", "a", transcripts[1])])
    )
    for said in page.query_selector_all(".said"):
        assert said.evaluate("one => getComputedStyle(one).direction") == "rtl"
    left = [deletion.bounding_box()["x"] for deletion in page.query_selector_all(".said del")]
    # The first word is the rightmost.
    assert left == sorted(left, reverse=True) and len(left) == 2
    page.close()


def test_a_piece_of_a_recording_is_not_offered_as_an_example(tmp_path, clip):
    lines = [
        {"audio": str(clip), "reference": "a piece", "start_s": 0.0, "end_s": 0.5},
        {"audio": str(clip), "reference": "all of it"},
    ]
    page = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "transcripts.jsonl").write_text(page, encoding="utf-8")
    located = Located("run", "base", run=tmp_path)
    assert demo_module.find_examples(located, "ta", share=False) == [(str(clip), "all of it")]


def test_a_language_the_model_lacks_is_refused(tiny_model, monkeypatch):
    with pytest.raises(UserError, match="yue"):
        demo(tiny_model, language="cantonese", compare="none", port=0, wait=False)


def test_the_page_is_not_requested_through_a_proxy(tiny_model, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    page = demo(tiny_model, language="hi", compare="none", port=0, wait=False)
    page.close(verbose=False)
    assert "NO_PROXY" not in os.environ


def test_transcripts_and_names_cannot_inject_html():
    transcript = {"text": HOSTILE, "reached_limit": True, "segments": [{"start": 0.0, "end": 61.0, "text": HOSTILE}]}
    other = {**transcript, "text": f"{HOSTILE} <script>alert(2)</script>"}
    cards = [("Before", HOSTILE, transcript), ("After", HOSTILE, other)]
    for shown in (
        demo_page.result(HOSTILE, 3.0, "hi", cards, HOSTILE),
        demo_page.notice(HOSTILE),
        demo_page.header(HOSTILE, HOSTILE),
        demo_page.result(HOSTILE, 3.0, None, cards[:1]),
    ):
        tags = set(re.findall(r"<(/?[a-z0-9]*)", shown))
        assert not tags & {"img", "script", "/script", ""}
        # A name that turns the writing direction must not turn the text behind it.
        assert shown.count("<bdi>") == shown.count("</bdi>")


def test_a_port_in_use_and_a_missing_gradio_are_reported(run, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"^--port \d+: .*in use; name another, as --port 7861, or 0 for any"):
            demo(run, port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'^demo: Gradio is not installed; pip install "whisper-peft\[demo\]"\.$'):
        demo(run)


def test_a_model_is_compared_with_its_base(lora_run, full_run, tiny_model, tmp_path):
    """An adapter is compared with itself switched off, and a full or merged model with the base that it names."""

    def of(model, compare="base") -> tuple[list, list[str]]:
        lines: list[str] = []
        loaded_voices, _ = voices.load_voices(model, compare, base=None, quantize="as-trained", say=lines.append)
        return loaded_voices, lines

    wave = make_wave(1.0)
    base = of(tiny_model, "none")[0][0].hear(wave, language="hi")
    (tuned, before), lines = of(lora_run)
    assert before.model is tuned.model and before.hear(wave, language="hi") == base and not lines
    assert tuned.hear(wave, language="hi") != base
    (_, before), _ = of(full_run)
    assert before.name == "model" and before.hear(wave, language="hi") == base
    assert len(of(lora_run, "none")[0]) == 1
    assert of(lora_run, tiny_model)[0][1].hear(wave, language="hi") == base
    # The merged model keeps only the last part of its base's path, so the base cannot be found.
    merge(lora_run, tmp_path / "merged")
    alone, lines = of(tmp_path / "merged")
    assert len(alone) == 1 and "is not known; --compare MODEL" in lines[0]
    provenance = runs.read_json(tmp_path / "merged" / "whisper_peft.json")
    runs.write_json(tmp_path / "merged" / "whisper_peft.json", {**provenance, "base": {"hub_id": "nobody/nothing"}})
    alone, lines = of(tmp_path / "merged")
    assert len(alone) == 1 and lines[0].startswith("No comparison: nobody/nothing: ")
    with pytest.raises(UserError, match="nobody/nothing"):
        of(lora_run, "nobody/nothing")


def test_the_page_is_shared_only_on_request_and_with_a_warning(run, monkeypatch):
    from gradio import networking

    tunnels = []

    def tunnel(**where):
        tunnels.append(where)
        raise OSError("no network")

    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    # The environment variable of Gradio must not share the page, either.
    monkeypatch.setenv("GRADIO_SHARE", "true")
    lines: list[str] = []
    page = demo(run, port=0, wait=False, say=lines.append)
    assert page.share_url is None and not tunnels and not lines and page.local_url.startswith("http://127.0.0.1:")
    assert not page.analytics_enabled
    # The model transcribes one recording at a time.
    assert {(function.concurrency_id, function.concurrency_limit) for function in page.fns.values()} == {("hear", 1)}
    page.close()
    with pytest.raises(UserError, match="--share: Gradio could give no link"):
        demo(run, port=0, share=True, wait=False, say=lines.append)
    assert len(tunnels) == 1 and "anyone who has the link" in lines[0]
    shown = [audio for audio, _ in demo_module.find_examples(load_model(run)[2], "hi", share=True)]
    # A shared page must not show the clips of the run.
    assert shown and all("quickstart" in audio for audio in shown)


# In Chromium, on a page that the command serves


@pytest.fixture(scope="module")
def served(run, chromium, tmp_path_factory):
    server = Served(run, uploads=tmp_path_factory.mktemp("uploads"))
    yield server
    if server.process.poll() is None:
        server.process.kill()
    server.process.communicate()


def test_a_file_with_a_hostile_name_is_transcribed_and_cannot_inject_html(served, run, tiny_model, clip, chromium):
    page = served.page(chromium)
    said = upload(page, clip, ".webm")
    texts = [transcribe(model, [clip], language="hi")[0]["text"] for model in (tiny_model, run)]
    assert cards(page) == [text or "(nothing)" for text in texts] and texts[0] != texts[1]
    assert "· 1.2 s · Hindi" in said and "Before" in said and "words differ" in said
    assert page.query_selector_all("#result del, #result ins")
    assert not page.query_selector("#result img") and not page.query_selector("#file img[src=x]")
    assert page.elsewhere == [] and page.broken == []
    fonts = page.evaluate("[...document.fonts].filter(one => one.status == 'loaded').map(one => one.family)")
    # The page uses the fonts of the machine.
    assert fonts == []
    page.close()


def test_a_recording_from_the_microphone_is_transcribed(served, chromium):
    page = served.page(chromium)
    page.click("#microphone .record-button")
    page.wait_for_selector("#microphone .stop-button", state="visible")
    page.wait_for_timeout(1200)
    page.click("#microphone .stop-button")
    assert re.search(r"audio\.wav · \d\.\d s · Hindi", heard(page, "audio.wav"))
    assert len(cards(page)) == 2
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_an_example_is_transcribed_and_again_in_another_language(size, served, chromium, tmp_path):
    """The page fits its screen, and the cards stand beside each other where there is room."""
    page = served.page(chromium, size)
    page.click("#example-1")
    said = heard(page, "What was said:")
    assert "onerror" in said and "${1+1} {{value}} &" in said and not page.query_selector("#result img")
    assert page.title() == "run: whisper-peft"
    before, after = (card.bounding_box() for card in page.query_selector_all("#result .wp-card"))
    assert (before["y"] == after["y"]) == (size == "desktop")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    page.screenshot(path=Path(os.environ.get("WHISPER_PEFT_SCREENSHOTS", tmp_path)) / f"{size}.png", full_page=True)
    if size == "desktop":
        page.click("#language input")
        page.fill("#language input", "Thai")
        page.keyboard.press("Enter")
        # The same recording is transcribed again in the new language.
        assert "What was said:" in heard(page, "Thai")
    page.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("silent.wav", "silent. Is the microphone muted"),
        ("broken.m4a", "cannot be read as audio"),
        ("long.wav", "31 minutes long, and up to 30 are heard here"),
        # A random model is never sure, so it decodes each window six times.
        pytest.param("beyond_a_window.wav", "With times", marks=pytest.mark.slow),
    ],
)
def test_unusual_recordings_get_a_message(name, message, served, chromium, tmp_path):
    file = tmp_path / name
    if name == "broken.m4a":
        file.write_bytes(b"no sound at all " * 64)
    else:
        wave = {
            "silent.wav": np.zeros(16000),
            "beyond_a_window.wav": make_wave(3.1),
            "long.wav": np.ones(31 * 60 * 1000),
        }
        soundfile.write(file, wave[name], 1000 if name == "long.wav" else 16000, subtype="PCM_U8")
    page = served.page(chromium, "phone")
    said = upload(page, file, name)
    assert said.startswith(name) and message in said
    assert bool(page.query_selector("#result [role=alert]")) == (message != "With times")
    page.close()


def test_ctrl_c_ends_the_demo_and_removes_the_recordings(served):
    """This test is the last one of the page, because it ends the demo."""
    assert [path for path in served.uploads.rglob("*.wav")]
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0 and out == "" and "Traceback" not in err
    assert err.splitlines() == ["Ctrl-C ends it."]
    assert not [path for path in served.uploads.rglob("*") if path.is_file() and path.stat().st_size]
    demo_module.free_port(int(re.search(r":(\d+)/", served.facts["url"])[1]))


@pytest.mark.slow
def test_a_real_base_and_its_fine_tuned_model_stand_side_by_side(shared, chromium, tmp_path):
    """After a few steps on Malayalam, the page shows two different texts for a clip that a browser recorded."""
    from whisper_peft import Recipe, load_source, override, train

    lines = [
        json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False)
        for row in sorted(
            load_source(str(shared / "data" / "malayalam" / "train"))[:200], key=lambda row: len(row.text)
        )
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:48]), encoding="utf-8")
    (tmp_path / "eval.jsonl").write_text("\n".join(lines[48:50]), encoding="utf-8")
    recipe = override(
        Recipe(),
        {
            "model.name": str(shared / "models" / "whisper-base"),
            "model.language": "malayalam",
            "data.train": [str(tmp_path / "train.jsonl")],
            "data.eval": str(tmp_path / "eval.jsonl"),
            "features.window": "tight",
            "train.steps": 6,
            "train.batch_size": 4,
            "train.workers": 0,
            "train.precision": "fp32",
            "train.warmup_steps": 0,
            "evaluate.compare_clips": 0,
            "evaluate.every_steps": 6,
        },
    )
    run = train(recipe, output=tmp_path / "malayalam").run
    file = sorted((shared / "data" / "webm").glob("*.webm"), key=lambda path: path.stat().st_size)[0]
    served = Served(run, uploads=tmp_path / "uploads")
    try:
        page = served.page(chromium)
        said = upload(page, file, file.name)
        before, after = cards(page)
        assert "Before whisper-base" in said and "After malayalam" in said and "· Malayalam" in said
        assert before != after and after == transcribe(run, [file])[0]["text"]
        page.screenshot(path=Path(os.environ.get("WHISPER_PEFT_SCREENSHOTS", tmp_path)) / "real.png", full_page=True)
        page.close()
    finally:
        served.process.kill()
        served.process.communicate()
