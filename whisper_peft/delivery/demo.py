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
from typing import Any

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
# Largest file that the page takes: half an hour of film, or of uncompressed sound.
LARGEST_FILE = "500mb"
# Number of recordings that may wait. They are heard one at a time.
MOST_WAITING = 16
# Number of clips to try.
N_EXAMPLES = 2
# How many of a run's test clips are searched for these.
MOST_SEARCHED = 100
# Age at which Gradio deletes an upload, and how often it looks for such, in seconds.
UPLOAD_AGE_S = 3600
CLEANING_EVERY_S = 600
# Nothing on the page may come from elsewhere, whatever Gradio's own HTML asks for.
CONTENT_POLICY = (
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
    """Serve a page on 127.0.0.1 where the model transcribes what it is told, until Ctrl-C.

    Args:
        model: Any MODEL: Hub id, model, adapter or run folder.
        compare: Any MODEL, which is shown beside it; or "base" for the one that it was trained from, where that is
            known; or "none".
        language: Name or code of the language that is chosen when the page opens; "auto" takes the one that the model
            hears; None takes the one that the model was trained for.
        port: Port of the page; 0 takes one that is free.
        share: Also ask Gradio for a link that anyone can open.
        base: The adapter's base, if it has moved.
        quantize: The base in "8bit", "4bit" or "none"; "as-trained" takes it as the adapter knew it.
        wait: Whether to wait until Ctrl-C or SIGTERM; else the page is served in the background.
        ready: Called when the page is there, with a dict of `url`, `share_url`, `model`, `compare` and `language`.
        say: Called with each line about what happens.

    Returns:
        Gradio's Blocks, with `.local_url` and `.close()`. It is closed already, unless `wait` is False.

    Raises:
        UserError: There is no such model, its language is not known, the port is in use, or Gradio is not installed.
    """
    gradio = _import_gradio()
    port = free_port(port)
    voices, located = load_voices(model, compare, base=base, quantize=quantize, say=say)
    code = resolve_language(voices[0].model, voices[0].preparation, language)
    for voice in voices:
        # Refuses a language that a model does not know before the page is there.
        voice.spoken(code)
    headings = ("", "")
    if len(voices) == 2 and compare == OWN_BASE:
        headings = ("After", "Before")
    task = getattr(whisper_of(voices[0].model).generation_config, "task", None) or "transcribe"
    listener = Listener(voices, headings, task)
    page = _build_page(gradio, listener, code, find_examples(located, code, share=share))
    if share:
        say("Warning: --share: anyone who has the link can send recordings to this machine, through Gradio's servers.")
    _launch(gradio, page, port, share)
    if share and page.share_url is None:
        page.close(verbose=False)
        raise UserError("--share: Gradio could give no link; check the network, or leave --share away.")
    facts = {
        "url": page.local_url,
        "share_url": page.share_url,
        "model": str(model),
        "compare": voices[1].name if len(voices) > 1 else None,
        "language": code,
    }
    ready(facts)
    if wait:
        say("Ctrl-C ends it.")
        try:
            with _sigterm_as_ctrl_c():
                wait_for_end()
        finally:
            listener.ended.set()
            page.close(verbose=False)
    return page


def _launch(gradio, page, port: int, share: bool) -> None:
    """Start serving a page in the background."""
    # Gradio prints the link, and stdout is for the result.
    with contextlib.redirect_stdout(sys.stderr), _without_proxy():
        page.queue(max_size=MOST_WAITING).launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            ssr_mode=False,
            max_file_size=LARGEST_FILE,
            css_paths=demo_page.CSS,
            theme=_make_theme(gradio),
            app_kwargs=_policy_for_every_answer(),
        )


@contextlib.contextmanager
def _without_proxy() -> Iterator[None]:
    """Keep proxies of the environment away from this machine. Gradio asks its own page whether it is there."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    try:
        for name, value in before.items():
            os.environ[name] = ",".join(filter(None, (value, HOST, "localhost")))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_for_end() -> None:
    """Return at Ctrl-C, or at SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the page as Ctrl-C does, so that its uploads are deleted."""
    # Python sets signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_gradio():
    try:
        import gradio
    except ImportError:
        raise UserError('demo: Gradio is not installed; pip install "whisper-peft[demo]".') from None
    return gradio


def free_port(port: int) -> int:
    """Return the port, if nothing listens there; for 0 any free one.

    Raises:
        UserError: It is in use, or may not be used.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--port {port}: {reason}; name another, as --port 7861, or 0 for any free one.") from None
        return trial.getsockname()[1]


def _make_theme(gradio):
    """Return Gradio's own look, in the fonts of the reader's machine: its defaults come from the web."""
    return gradio.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


class _PolicyMiddleware:
    """ASGI middleware that gives every answer the content security policy."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _policy_for_every_answer() -> dict[str, Any]:
    """Return the arguments that put the policy into Gradio's app."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(_PolicyMiddleware)]}


def find_examples(located: Located, language: str | None, *, share: bool) -> list[tuple[str, str]]:
    """Find a clip or two to try, each with its text.

    Args:
        located: Where the model is. The test clips of its run come first.
        language: Whisper's code. For Hindi there are clips that ship with the package.
        share: Whether others see the page. Then the run's own clips are not shown.

    Returns:
        Pairs of a sound file and its text. They may be none.
    """
    examples: list[tuple[str, str]] = []
    if located.run and not share:
        for record in runs.read_jsonl(located.run / runs.TRANSCRIPTS)[:MOST_SEARCHED]:
            # A piece of a recording is no file that could be handed over.
            is_piece = "start_s" in record
            if not is_piece and Path(record["audio"]).is_file():
                examples.append((record["audio"], record["reference"]))
    if not examples and language == "hi":
        shipped = load_source(str(PACKAGE / "quickstart" / "speech" / "test"))
        examples = [(row.audio, row.text) for row in shipped if isinstance(row.audio, str)]
    return examples[:N_EXAMPLES]


def _build_page(gradio, listener: Listener, language: str | None, examples: list[tuple[str, str]]):
    """Build the page with its events. One model hears one recording at a time.

    Args:
        gradio: The module.
        listener: What hears the recordings.
        language: Whisper's code that is chosen when the page opens; None for an English-only checkpoint.
        examples: Clips to try, each with its text.
    """
    names = [voice.name for voice in listener.voices]
    bar = gradio.Progress()

    def hear(path: str | None, code: str | None, reference: str = "", progress=bar):
        """Yield (result, path, reference), as each of the models is done."""
        if not path:
            yield demo_page.empty(), None, ""
            return
        for shown in listener.hear(path, code, reference, progress):
            yield shown, path, reference

    def hear_example(audio: str, reference: str, code: str | None, progress=bar):
        yield from hear(audio, code, reference, progress)

    with gradio.Blocks(
        analytics_enabled=False,
        title=f"{names[0]}: whisper-peft",
        delete_cache=(CLEANING_EVERY_S, UPLOAD_AGE_S),
    ) as page:
        gradio.HTML(demo_page.header(*names), elem_id="top")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=2, min_width=300):
                microphone, file = _add_inputs(gradio)
                spoken = gradio.Dropdown(
                    _language_choices(listener),
                    value=language,
                    label="Language",
                    visible=language is not None,
                    elem_id="language",
                )
                with gradio.Row():
                    buttons = [
                        gradio.Button(f"Example {number}", size="sm", min_width=100, elem_id=f"example-{number}")
                        for number in range(1, len(examples) + 1)
                    ]
            with gradio.Column(scale=3, min_width=320):
                result = gradio.HTML(demo_page.empty(), elem_id="result", min_height=140)
        # What was heard last. It is heard again when another language is chosen.
        last = gradio.State(None)
        last_reference = gradio.State("")
        settings = {
            "outputs": [result, last, last_reference],
            "concurrency_id": "hear",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "scroll_to_output": True,
        }
        microphone.stop_recording(hear, [microphone, spoken], **settings)
        file.upload(hear, [file, spoken], **settings)
        spoken.input(hear, [last, spoken, last_reference], **settings)
        for button, (audio, reference) in zip(buttons, examples, strict=True):
            button.click(partial(hear_example, audio, reference), [spoken], **settings)
    return page


def _add_inputs(gradio) -> tuple[Any, Any]:
    """Put the microphone and the place for a file into the column that is open; return both."""
    microphone = gradio.Audio(
        sources=["microphone"],
        type="filepath",
        label="Speak",
        elem_id="microphone",
        buttons=[],
        editable=False,
    )
    file = gradio.File(
        label="Or a recording: any format, up to 30 minutes",
        type="filepath",
        elem_id="file",
        height=180,
    )
    return microphone, file


def _language_choices(listener: Listener) -> list[tuple[str, str]]:
    """Return the languages that all models know, each as its name and its code, for the page's menu."""
    known = set.intersection(*(voice.languages for voice in listener.voices)) or set(LANGUAGES)
    choices = sorted((name.title(), code) for code, name in LANGUAGES.items() if code in known)
    if all(voice.preparation.multilingual for voice in listener.voices):
        choices.insert(0, ("As the model hears it", AUTO_LANGUAGE))
    return choices
