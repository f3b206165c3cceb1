"""demo: a page on this machine where a model listens, to a microphone or a file, with what it was before beside it.

The page is Gradio's. It fetches nothing from elsewhere: no fonts, no statistics, no scripts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.sources import load_source
from whisper_peft.data.text import AUTO_LANGUAGE, LANGUAGES
from whisper_peft.delivery import demo_page
from whisper_peft.delivery.voices import OWN_BASE, Listener, load_voices
from whisper_peft.errors import UserError
from whisper_peft.evaluation.languages import resolve_language
from whisper_peft.model.build import whisper_of
from whisper_peft.model.locating import Located
from whisper_peft.recipe_files import PACKAGE

HOST = "127.0.0.1"
LARGEST = "500mb"  # of a file: half an hour of film, or of uncompressed sound
WAITING = 16  # recordings in the queue; they are heard one at a time
N_EXAMPLES = 2
# Nothing on the page may come from elsewhere, whatever Gradio's own HTML asks for.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)


def demo(
    model: str | Path,
    *,
    compare: str | Path = OWN_BASE,
    language: str | None = None,
    port: int = 7860,
    share: bool = False,
    base: str | None = None,
    quantize: str = "as-trained",
    wait: bool = True,
    ready: Callable[[dict], object] = lambda facts: None,
    say: Callable[[str], None] = lambda line: None,
):
    """Serves a page on 127.0.0.1 where the model transcribes what it is told, until Ctrl-C.

    Args:
        model: any MODEL: Hub id, model, adapter or run folder.
        compare: any MODEL, shown beside it; "base": the one it was trained from, where that is known; "none".
        language: a name or code, chosen when the page opens; "auto": the one that the model hears; None: the one the
            model was trained for.
        port: of the page; 0: one that is free.
        share: also ask Gradio for a link that anyone can open.
        base: the adapter's base, if it has moved.
        quantize: the base in "8bit", "4bit" or "none"; "as-trained": as the adapter knew it.
        wait: until Ctrl-C or SIGTERM; else the page is served in the background.
        ready: told when the page is there: `url`, `share_url`, `model`, `compare`, `language`.
        say: told what happens, one line at a time.

    Returns:
        Gradio's Blocks, closed by then unless it is not waited for: `.local_url`, `.close()`.

    Raises:
        UserError: no such model, no language, the port in use, or Gradio not installed.
    """
    gradio = _gradio()
    port = free_port(port)
    voices, located = load_voices(model, compare, base=base, quantize=quantize, say=say)
    code = resolve_language(voices[0].model, voices[0].preparation, language)
    for voice in voices:
        voice.spoken(code)
    listener = Listener(
        voices, headings=("After", "Before") if len(voices) == 2 and compare == OWN_BASE else ("", ""),
        task=getattr(whisper_of(voices[0].model).generation_config, "task", None) or "transcribe",
    )  # fmt: skip
    page = _page(gradio, listener, code, _examples(located, code, share=share))
    if share:
        say("Warning: --share: anyone who has the link can send recordings to this machine, through Gradio's servers.")
    with contextlib.redirect_stdout(sys.stderr), _reached_directly():  # Gradio prints the link
        page.queue(max_size=WAITING).launch(
            server_name=HOST, server_port=port, share=share, prevent_thread_lock=True, quiet=True, inbrowser=False,
            ssr_mode=False, max_file_size=LARGEST, css_paths=demo_page.CSS, theme=_theme(gradio),
            app_kwargs=_closed_to_the_web(),
        )  # fmt: skip
    if share and page.share_url is None:
        page.close(verbose=False)
        raise UserError("--share: Gradio could give no link; check the network, or leave --share away.")
    names = [voice.name for voice in voices]
    ready({
        "url": page.local_url, "share_url": page.share_url, "model": str(model),
        "compare": names[1] if len(names) > 1 else None, "language": code,
    })  # fmt: skip
    if wait:
        say("Ctrl-C ends it.")
        try:
            with _terminated_like_interrupted():
                wait_for_end()
        finally:
            listener.ended.set()
            page.close(verbose=False)
    return page


@contextlib.contextmanager
def _reached_directly() -> Iterator[None]:
    """Gradio asks its own page whether it is there, which a proxy of the environment's could not tell."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    try:
        for name, value in before.items():
            os.environ[name] = ",".join(filter(None, (value, HOST, "localhost")))
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def wait_for_end() -> None:
    """Returns at Ctrl-C, or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the page as Ctrl-C does, its uploads deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gradio():
    try:
        import gradio
    except ImportError:
        raise UserError('demo: Gradio is not installed; pip install "whisper-peft[demo]".') from None
    return gradio


def free_port(port: int) -> int:
    """The port, if nothing listens there; for 0 any free one.

    Raises:
        UserError: it is in use, or may not be used.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--port {port}: {why}; name another, as --port 7861, or 0 for any free one.") from None
        return trial.getsockname()[1]


def _theme(gradio):
    """Gradio's own look, in the fonts of the reader's machine: its defaults come from the web."""
    return gradio.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip


class _Policy:
    """ASGI middleware that gives every answer the policy."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _closed_to_the_web() -> dict:
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(_Policy)]}


def _examples(located: Located, language: str | None, *, share: bool) -> list[tuple[str, str]]:
    """A clip or two to try, each with its text: the run's own test clips, unless shared; Hindi that ships with us."""
    if located.run and not share:
        scored = runs.read_jsonl(located.run / "transcripts.jsonl")[:100]
        found = [  # whole files: a piece of a recording is not one to hand over
            (one["audio"], one["reference"]) for one in scored if "start_s" not in one and Path(one["audio"]).is_file()
        ]
        if found:
            return found[:N_EXAMPLES]
    if language != "hi":
        return []
    return [(row.audio, row.text) for row in load_source(str(PACKAGE / "quickstart" / "speech" / "test"))[:N_EXAMPLES]]


def _page(gradio, listener: Listener, language: str | None, examples: list[tuple[str, str]]):
    """The page with its events; one model hears one recording at a time."""
    names = [voice.name for voice in listener.voices]
    known = set.intersection(*(voice.languages for voice in listener.voices)) or set(LANGUAGES)
    choices = sorted((name.title(), code) for code, name in LANGUAGES.items() if code in known)
    if all(voice.preparation.multilingual for voice in listener.voices):
        choices.insert(0, ("As the model hears it", AUTO_LANGUAGE))
    bar = gradio.Progress()

    def hear(path: str | None, code: str | None, reference: str = "", progress=bar):
        """Yields (result, path, reference), as each of the models is done."""
        if not path:
            yield demo_page.empty(), None, ""
            return
        for shown in listener.hear(path, code, reference, progress):
            yield shown, path, reference

    def hear_example(audio: str, said: str, code: str | None, progress=bar):
        yield from hear(audio, code, said, progress)

    with gradio.Blocks(analytics_enabled=False, title=f"{names[0]}: whisper-peft", delete_cache=(600, 3600)) as page:
        gradio.HTML(demo_page.header(*names), elem_id="top")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=2, min_width=300):
                microphone = gradio.Audio(sources=["microphone"], type="filepath", label="Speak", elem_id="microphone",
                                          buttons=[], editable=False)  # fmt: skip
                file = gradio.File(label="Or a recording: any format, up to 30 minutes", type="filepath",
                                   elem_id="file", height=180)  # fmt: skip
                spoken = gradio.Dropdown(choices, value=language, label="Language", visible=language is not None,
                                         elem_id="language")  # fmt: skip
                with gradio.Row():
                    buttons = [
                        gradio.Button(f"Example {number}", size="sm", min_width=100, elem_id=f"example-{number}")
                        for number in range(1, len(examples) + 1)
                    ]
            with gradio.Column(scale=3, min_width=320):
                result = gradio.HTML(demo_page.empty(), elem_id="result", min_height=140)
        last, last_reference = gradio.State(None), gradio.State("")
        outputs = [result, last, last_reference]
        settings = {
            "outputs": outputs, "concurrency_id": "hear", "concurrency_limit": 1, "api_visibility": "private",
            "scroll_to_output": True,
        }  # fmt: skip
        microphone.stop_recording(hear, [microphone, spoken], **settings)
        file.upload(hear, [file, spoken], **settings)
        spoken.input(hear, [last, spoken, last_reference], **settings)
        for button, (audio, reference) in zip(buttons, examples, strict=True):
            button.click(partial(hear_example, audio, reference), [spoken], **settings)
    return page
