"""The demo's page in a real Chromium: files, microphone, examples, messages, hostile names; and its command."""

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
    """A clip as a browser's recorder saves it: Opus in webm."""
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
    """A demo in a process of its own, which says so on stderr when it asks for another host."""

    def __init__(self, *arguments: object, uploads: Path):
        command = [sys.executable, "-c", WATCHED, "demo", *map(str, arguments), "--port", "0", "--json"]
        self.uploads = uploads
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(uploads), "HF_HUB_OFFLINE": "0"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in a background job it is ignored
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.facts = json.loads(line)

    def page(self, chromium, size: str = "desktop"):
        """The page, loaded; what it asks of other hosts, and what its scripts complain of, is noted on it."""
        width, height = SIZES[size]
        page = chromium.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.elsewhere, page.broken = [], []
        page.on("request", lambda one: page.elsewhere.append(one.url) if "//127.0.0.1:" not in one.url else None)
        # What the page's policy refuses is not asked for: Gradio 6.0 wants a script from elsewhere.
        page.on("requestfailed", lambda one: page.elsewhere.remove(one.url) if one.failure == "csp" else None)
        page.on("pageerror", lambda error: page.broken.append(str(error)))
        page.goto(self.facts["url"])
        page.wait_for_selector("#file input[type=file]", state="attached")
        return page


def heard(page, having: str) -> str:
    """The text of the result, when all models are done and it has some words in it."""
    page.wait_for_function(
        "having => { const shown = document.querySelector('#result').innerText;"
        " return shown.includes(having) && !shown.includes('listening') }",
        arg=having,
        timeout=300_000,  # a busy machine
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
    """The run, with something hostile in what its first clip is said to say."""
    folder = shutil.copytree(lora_run, tmp_path_factory.mktemp("demo") / "run")
    scored = runs.read_jsonl(folder / "transcripts.jsonl")
    runs.rewrite_jsonl(folder / "transcripts.jsonl", [{**scored[0], "reference": HOSTILE}, *scored[1:]])
    return folder


# What needs no browser


def shown_texts(before: str, after: str, **options) -> list[str]:
    """The two transcripts as the page shows them."""
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


def test_a_sign_stays_with_its_letter():
    texts = "กินน้ำ", "กีนน้ำ"
    assert shown_texts(*texts, spaces=False) == ["<del>กิ</del>นน้ำ", "<ins>กี</ins>นน้ำ"]
    assert counts(*texts, spaces=False) == (4, 3)


def test_text_runs_in_its_own_direction(chromium):
    long, short = "ذهب الولد الى المدرسة صباح", "ذهب الى المدرسة"
    found = [{"text": said, "reached_limit": False} for said in (long, short)]
    page = chromium.new_page()
    page.set_content(demo_page.result("a.wav", 2.0, "ar", [("Before", "b", found[0]), ("After", "a", found[1])]))
    for said in page.query_selector_all(".said"):
        assert said.evaluate("one => getComputedStyle(one).direction") == "rtl"
    left = [one.bounding_box()["x"] for one in page.query_selector_all(".said del")]
    assert left == sorted(left, reverse=True) and len(left) == 2  # the first word is the rightmost
    page.close()


def test_a_piece_of_a_recording_is_no_example(tmp_path, clip):
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


def test_a_proxy_is_not_asked_for_the_page(tiny_model, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    page = demo(tiny_model, language="hi", compare="none", port=0, wait=False)
    page.close(verbose=False)
    assert "NO_PROXY" not in os.environ


def test_transcripts_and_names_are_text():
    found = {"text": HOSTILE, "reached_limit": True, "segments": [{"start": 0.0, "end": 61.0, "text": HOSTILE}]}
    other = {**found, "text": f"{HOSTILE} <script>alert(2)</script>"}
    cards = [("Before", HOSTILE, found), ("After", HOSTILE, other)]
    for shown in (
        demo_page.result(HOSTILE, 3.0, "hi", cards, HOSTILE),
        demo_page.notice(HOSTILE),
        demo_page.header(HOSTILE, HOSTILE),
        demo_page.result(HOSTILE, 3.0, None, cards[:1]),
    ):
        tags = set(re.findall(r"<(/?[a-z0-9]*)", shown))
        assert not tags & {"img", "script", "/script", ""}
        assert shown.count("<bdi>") == shown.count("</bdi>")  # what the name turns round ends with it


def test_a_port_in_use_and_gradio_missing(run, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"^--port \d+: .*in use; name another, as --port 7861, or 0 for any"):
            demo(run, port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r'^demo: Gradio is not installed; pip install "whisper-peft\[demo\]"\.$'):
        demo(run)


def test_what_it_is_compared_with(lora_run, full_run, tiny_model, tmp_path):
    """An adapter with itself switched off, a full run with its base; a merged model with what it says it came from."""

    def of(model, compare="base") -> tuple[list, list[str]]:
        lines: list[str] = []
        found, _ = voices.load_voices(model, compare, base=None, quantize="as-trained", say=lines.append)
        return found, lines

    wave = make_wave(1.0)
    base = of(tiny_model, "none")[0][0].hear(wave, language="hi")
    (tuned, before), lines = of(lora_run)
    assert before.model is tuned.model and before.hear(wave, language="hi") == base and not lines
    assert tuned.hear(wave, language="hi") != base
    (_, before), _ = of(full_run)
    assert before.name == "model" and before.hear(wave, language="hi") == base
    assert len(of(lora_run, "none")[0]) == 1
    assert of(lora_run, tiny_model)[0][1].hear(wave, language="hi") == base
    merge(lora_run, tmp_path / "merged")  # its base was a folder, of which it keeps the last name only
    alone, lines = of(tmp_path / "merged")
    assert len(alone) == 1 and "is not known; --compare MODEL" in lines[0]
    provenance = runs.read_json(tmp_path / "merged" / "whisper_peft.json")
    runs.write_json(tmp_path / "merged" / "whisper_peft.json", {**provenance, "base": {"hub_id": "nobody/nothing"}})
    alone, lines = of(tmp_path / "merged")
    assert len(alone) == 1 and lines[0].startswith("No comparison: nobody/nothing: ")
    with pytest.raises(UserError, match="nobody/nothing"):
        of(lora_run, "nobody/nothing")


def test_shared_only_when_asked_and_with_a_warning(run, monkeypatch):
    from gradio import networking

    tunnels = []

    def tunnel(**where):
        tunnels.append(where)
        raise OSError("no network")

    monkeypatch.setattr(networking, "setup_tunnel", tunnel)
    monkeypatch.setenv("GRADIO_SHARE", "true")  # somebody's environment does not share it either
    lines: list[str] = []
    page = demo(run, port=0, wait=False, say=lines.append)
    assert page.share_url is None and not tunnels and not lines and page.local_url.startswith("http://127.0.0.1:")
    assert not page.analytics_enabled
    assert {(one.concurrency_id, one.concurrency_limit) for one in page.fns.values()} == {("hear", 1)}  # one at a time
    page.close()
    with pytest.raises(UserError, match="--share: Gradio could give no link"):
        demo(run, port=0, share=True, wait=False, say=lines.append)
    assert len(tunnels) == 1 and "anyone who has the link" in lines[0]
    shown = [audio for audio, _ in demo_module.find_examples(load_model(run)[2], "hi", share=True)]
    assert shown and all("quickstart" in audio for audio in shown)  # the run's own clips are not for everybody


# In Chromium; the page is served by the command, as a user would


@pytest.fixture(scope="module")
def served(run, chromium, tmp_path_factory):
    one = Served(run, uploads=tmp_path_factory.mktemp("uploads"))
    yield one
    if one.process.poll() is None:
        one.process.kill()
    one.process.communicate()


def test_a_file_with_a_hostile_name(served, run, tiny_model, clip, chromium):
    page = served.page(chromium)
    said = upload(page, clip, ".webm")
    texts = [transcribe(model, [clip], language="hi")[0]["text"] for model in (tiny_model, run)]
    assert cards(page) == [text or "(nothing)" for text in texts] and texts[0] != texts[1]
    assert "· 1.2 s · Hindi" in said and "Before" in said and "words differ" in said
    assert page.query_selector_all("#result del, #result ins")
    assert not page.query_selector("#result img") and not page.query_selector("#file img[src=x]")
    assert page.elsewhere == [] and page.broken == []
    fonts = page.evaluate("[...document.fonts].filter(one => one.status == 'loaded').map(one => one.family)")
    assert fonts == []  # the machine's own
    page.close()


def test_the_microphone(served, chromium):
    page = served.page(chromium)
    page.click("#microphone .record-button")
    page.wait_for_selector("#microphone .stop-button", state="visible")
    page.wait_for_timeout(1200)
    page.click("#microphone .stop-button")
    assert re.search(r"audio\.wav · \d\.\d s · Hindi", heard(page, "audio.wav"))
    assert len(cards(page)) == 2
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_examples_and_languages(size, served, chromium, tmp_path):
    """And the page's shape: nothing beyond its edge; cards beside each other where there is room."""
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
        assert "What was said:" in heard(page, "Thai")  # the same recording again
    page.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("silent.wav", "silent. Is the microphone muted"),
        ("broken.m4a", "cannot be read as audio"),
        ("long.wav", "31 minutes long, and up to 30 are heard here"),
        # A random model is never sure, so it makes each window six times.
        pytest.param("beyond_a_window.wav", "With times", marks=pytest.mark.slow),
    ],
)
def test_what_is_said_of_a_recording(name, message, served, chromium, tmp_path):
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


def test_ctrl_c_ends_it(served):
    """The last test of the page: recordings do not stay behind, nothing is printed, the port is free."""
    assert [path for path in served.uploads.rglob("*.wav")]
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0 and out == "" and "Traceback" not in err
    assert err.splitlines() == ["Ctrl-C ends it."]
    assert not [path for path in served.uploads.rglob("*") if path.is_file() and path.stat().st_size]
    demo_module.free_port(int(re.search(r":(\d+)/", served.facts["url"])[1]))


@pytest.mark.slow
def test_the_real_base_beside_its_tuned_self(shared, chromium, tmp_path):
    """A few steps on Malayalam, and a clip that a browser recorded: other texts, both on the page."""
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
