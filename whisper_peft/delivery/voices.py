"""The models behind a demo's page: the one that is shown, and what it was before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft import runs
from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.features import Preparation
from whisper_peft.data.text import AUTO_LANGUAGE, has_spaces
from whisper_peft.delivery import demo_page
from whisper_peft.delivery.provenance import known_provenance
from whisper_peft.errors import UserError
from whisper_peft.evaluation.languages import detect_language
from whisper_peft.evaluation.longform import transcribe_wave
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.devices import to_device
from whisper_peft.model.locating import Located
from whisper_peft.recipe_files import HUB_PREFIX, expand_home

if TYPE_CHECKING:
    import numpy as np

# What `--compare` can say instead of a MODEL.
OWN_BASE = "base"
NO_COMPARISON = "none"
# Longest recording that the page takes, in seconds.
LONGEST_S = 30 * 60.0
# Below this peak there is nothing to hear in a recording: -60 dB of full scale.
SILENT = 1e-3


@dataclass(frozen=True)
class Voice:
    """A model that transcribes for one card of the page.

    Attributes:
        name: Name on the card.
        model: A Whisper, or an adapter on one, in eval mode.
        preparation: Tokens and features of the checkpoint.
        without_adapter: Whether this is the base under the other voice's adapter, which has no weights of its own.
    """

    name: str
    model: Any
    preparation: Preparation
    without_adapter: bool = False

    def spoken(self, language: str | None) -> str | None:
        """Return the language as this model takes it; beside an English-only model it is English.

        Args:
            language: Whisper's code, "auto", or None.

        Raises:
            UserError: The model has no token for it, or is English-only and this is another language.
        """
        if self.preparation.multilingual:
            language = language or "en"
        if language != AUTO_LANGUAGE:
            self.preparation.check_languages([(language, self.name)])
        return language if self.preparation.multilingual else None

    def hear(
        self,
        wave: np.ndarray,
        *,
        language: str | None,
        task: str = "transcribe",
        progress: Callable[[float], object] = lambda share: None,
    ) -> dict[str, Any]:
        """Transcribe a recording.

        Args:
            wave: float32 (n_samples,), mono.
            language: Whisper's code, "auto", or None.
            task: "transcribe" or "translate".
            progress: Called with the share of the recording that is done, from 0 to 1.

        Returns:
            What `transcribe_wave` returns, and `language`.
        """
        spoken = self.spoken(language)
        with contextlib.ExitStack() as stack:
            if self.without_adapter:
                stack.enter_context(self.model.disable_adapter())
            if spoken == AUTO_LANGUAGE:
                spoken = detect_language(self.model, self.preparation, wave)
            transcript = transcribe_wave(
                self.model, self.preparation, wave, language=spoken, task=task, progress=progress
            )
        return {**transcript, "language": spoken}

    @property
    def languages(self) -> set[str]:
        """Codes of the languages that the checkpoint has tokens for."""
        if not self.preparation.multilingual:
            return {"en"}
        known = getattr(whisper_of(self.model).generation_config, "lang_to_id", None) or {}
        return {token.strip("<|>") for token in known}


def load_voices(
    model: str | Path, compare: str | Path, *, base: str | None, quantize: str, say: Callable[[str], None]
) -> tuple[list[Voice], Located]:
    """Load the model, and what it is compared with, if anything.

    Args:
        model: Any MODEL.
        compare: Any MODEL; or "base" for what `model` was trained from, where that is known; or "none".
        base: The adapter's base, if it has moved.
        quantize: The base in "8bit", "4bit" or "none"; "as-trained" takes it as the adapter knew it.
        say: Called with the reason if there is no comparison although one could be expected.

    Returns:
        One voice or two, the model first, and where the model is.

    Raises:
        UserError: A model cannot be loaded; see `load_model`.
    """
    loaded, preparation, located = load_model(model, base=base, quantize=quantize)
    tuned = Voice(_display_name(str(model)), to_device(loaded), preparation)
    if compare == NO_COMPARISON:
        return [tuned], located
    if compare != OWN_BASE:
        return [tuned, _load_voice(str(compare), quantize)], located
    if located.adapter:
        before = Voice(_display_name(base or located.base), loaded, preparation, without_adapter=True)
        return [tuned, before], located
    source = _trained_from(located)
    if source is None:
        say(f"{model}: what it was trained from is not known; --compare MODEL shows another model beside it.")
        return [tuned], located
    try:
        return [tuned, _load_voice(source, quantize)], located
    except UserError as error:
        say(f"No comparison: {error} (--compare MODEL names another model, --compare none does without.)")
        return [tuned], located


def _load_voice(name: str, quantize: str) -> Voice:
    loaded, preparation, _ = load_model(name, quantize=quantize)
    return Voice(_display_name(name), to_device(loaded), preparation)


def _trained_from(located: Located) -> str | None:
    """Return the base of a fully trained or merged model: its folder, or its Hub id."""
    folder = Path(located.base)
    known: dict[str, Any] = {}
    if located.run:
        # Here the base still has its path, which `provenance` cuts.
        known = runs.read_json(located.run / runs.FACTS)["base"]
    elif folder.is_dir():
        known = known_provenance(folder, None).get("base", {})
    path = known.get("path")
    if path and Path(path).is_absolute():
        return path
    if known.get("hub_id"):
        return f"{HUB_PREFIX}{known['hub_id']}"
    return None


def _display_name(name: str) -> str:
    """Return the last name of a folder, or the whole of a Hub id."""
    path = expand_home(name)
    return path.resolve().name if path.exists() else name.removeprefix(HUB_PREFIX)


@dataclass
class Listener:
    """Lets each voice hear a recording, and returns what the page shows of it.

    Attributes:
        voices: The models, the one to be shown first.
        headings: Headings of their cards.
        task: "transcribe" or "translate".
        ended: When it is set, a long recording is not heard to its end.
    """

    voices: Sequence[Voice]
    headings: Sequence[str]
    task: str
    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, path: str, language: str | None, reference: str, progress: Callable[..., object]) -> Iterator[str]:
        """Yield the page's result after each voice, or the reason why there is none.

        Args:
            path: A recording in any format.
            language: Whisper's code; None for English-only checkpoints.
            reference: What is said in it, if that is known.
            progress: Called with the share of the recording that a voice has done, and with `desc`, its name.
        """
        name = Path(path).name
        names = [voice.name for voice in self.voices]
        headings = self.headings[: len(self.voices)]
        transcripts: list[dict[str, Any] | None] = [None] * len(self.voices)
        try:
            wave = _load_usable(path, name)
            for number, (voice, heading) in enumerate(zip(self.voices, headings, strict=True)):
                told = self._progress_of(heading or voice.name, progress)
                transcripts[number] = voice.hear(wave, language=language, task=self.task, progress=told)
                # The voice before training stands first on the page, and is heard last.
                cards = list(zip(headings, names, transcripts, strict=True))[::-1]
                seconds = len(wave) / voice.preparation.sample_rate_hz
                shown_language = language
                if language == AUTO_LANGUAGE and transcripts[0]:
                    shown_language = transcripts[0]["language"]
                spaces = self.task == "translate" or has_spaces(shown_language or "en")
                yield demo_page.result(name, seconds, shown_language, cards, reference, spaces=spaces)
        except UserError as error:
            yield demo_page.notice(str(error))

    def _progress_of(self, name: str, progress: Callable[..., object]) -> Callable[[float], None]:
        """Return what a voice reports its progress to. It stops the voice when the page is closed."""

        def told(share: float) -> None:
            if self.ended.is_set():
                raise UserError("The page was closed.")
            progress(share, desc=name)

        return told


def _load_usable(path: str, name: str) -> np.ndarray:
    """Load a recording in which there is something to hear.

    Args:
        path: The recording.
        name: Its name, for messages.

    Returns:
        float32 (n_samples,), mono.

    Raises:
        UserError: It is too long, silent, or no sound.
    """
    try:
        seconds = duration_s(path)
        if seconds > LONGEST_S:
            raise UserError(
                f"{name}: {seconds / 60:.0f} minutes long, and up to {LONGEST_S / 60:.0f} are heard here. Cut it; "
                "whisper-peft transcribe takes any length."
            )
        # No more than the header says, whatever else the file holds.
        wave = load_audio(path, end_s=seconds)
    except AudioError as error:
        raise UserError(f"{name}: {error}. Try another recording.") from None
    if abs(wave).max() < SILENT:
        raise UserError(f"{name}: silent. Is the microphone muted, or another one chosen?")
    return wave
