"""What listens behind a demo's page: the model that is shown, and what it was before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from whisper_peft.model.locating import HUB_PREFIX, Located
from whisper_peft.recipe_files import expanded

OWN_BASE, NO_COMPARISON = "base", "none"
LONGEST_S = 30 * 60.0
SILENT = 1e-3  # peak of a recording in which nothing is to be heard, -60 dB of full scale


@dataclass(frozen=True)
class Voice:
    """A model as one card of the page knows it."""

    name: str
    model: object
    preparation: Preparation
    without_adapter: bool = False  # the base under the other voice's adapter: no weights of its own

    def spoken(self, language: str | None) -> str | None:
        """Return the language as this model takes it; beside an English-only model it is English.

        Raises:
            UserError: The model has no token for it, or is English-only and this is another one.
        """
        if language == AUTO_LANGUAGE:
            return AUTO_LANGUAGE if self.preparation.multilingual else None
        if self.preparation.multilingual:
            language = language or "en"
        self.preparation.check_languages([(language, self.name)])
        return language if self.preparation.multilingual else None

    def hear(self, wave, *, language: str | None, **options) -> dict:
        """See `transcribe_wave`."""
        spoken = self.spoken(language)
        silenced = self.model.disable_adapter() if self.without_adapter else contextlib.nullcontext()
        with silenced:
            if spoken == AUTO_LANGUAGE:
                spoken = detect_language(self.model, self.preparation, wave)
            heard = transcribe_wave(self.model, self.preparation, wave, language=spoken, **options)
        return {**heard, "language": spoken}

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
    """The model, and behind it what it is compared with, if anything.

    Args:
        model: any MODEL.
        compare: any MODEL; "base": what `model` was trained from, where that is known; "none".
        base: the adapter's base, if it has moved.
        quantize: see `load_model`.
        say: told why there is no comparison, where one could be expected.

    Raises:
        UserError: see `load_model`.
    """
    loaded, preparation, located = load_model(model, base=base, quantize=quantize)
    tuned = Voice(_shown(str(model)), to_device(loaded), preparation)
    if compare == NO_COMPARISON:
        return [tuned], located
    if compare != OWN_BASE:
        return [tuned, _load(str(compare), quantize)], located
    if located.adapter:
        return [tuned, Voice(_shown(base or located.base), loaded, preparation, without_adapter=True)], located
    source = _trained_from(located)
    if source is None:
        say(f"{model}: what it was trained from is not known; --compare MODEL shows another one beside it.")
        return [tuned], located
    try:
        return [tuned, _load(source, quantize)], located
    except UserError as error:
        say(f"No comparison: {error} (--compare MODEL names another one, --compare none does without.)")
        return [tuned], located


def _load(name: str, quantize: str) -> Voice:
    loaded, preparation, _ = load_model(name, quantize=quantize)
    return Voice(_shown(name), to_device(loaded), preparation)


def _trained_from(located: Located) -> str | None:
    """The base of a fully trained or merged model: its folder, or its Hub id."""
    if located.run:
        known = runs.read_json(located.run / runs.FACTS)["base"]  # with its path, which `provenance` cuts
    else:
        folder = Path(located.base)
        known = known_provenance(folder, None).get("base", {}) if folder.is_dir() else {}
    path = known.get("path")
    if path and Path(path).is_absolute():
        return path
    return f"{HUB_PREFIX}{known['hub_id']}" if known.get("hub_id") else None


def _shown(name: str) -> str:
    """A folder by its last name, a Hub id whole."""
    path = expanded(name)
    return path.resolve().name if path.exists() else name.removeprefix(HUB_PREFIX)


@dataclass
class Listener:
    """Hears a recording with each of the voices, and says what came of it as HTML."""

    voices: Sequence[Voice]
    headings: Sequence[str]  # of their cards
    task: str
    ended: threading.Event = field(default_factory=threading.Event)  # set: a long recording is not heard to its end

    def hear(self, path: str, language: str | None, reference: str, progress: Callable[..., object]) -> Iterator[str]:
        """Yields the page's result after each voice, the first one first; or why there is none.

        Args:
            path: of the recording, in any format.
            language: Whisper's code; None for English-only checkpoints.
            reference: what is said in it, if that is known.
            progress: told the share of the recording that a voice has done, and its `desc`.
        """
        name = Path(path).name
        found: list[dict | None] = [None] * len(self.voices)
        try:
            wave = _usable(path, name)
            for number, (voice, heading) in enumerate(zip(self.voices, self.headings, strict=False)):

                def told(share: float, desc: str = heading or voice.name) -> None:
                    if self.ended.is_set():
                        raise UserError("The page was closed.")
                    progress(share, desc=desc)

                found[number] = voice.hear(wave, language=language, task=self.task, progress=told)
                names = [voice.name for voice in self.voices]
                cards = list(zip(self.headings, names, found, strict=False))[::-1]
                seconds = len(wave) / voice.preparation.sample_rate_hz
                shown = found[0]["language"] if language == AUTO_LANGUAGE else language
                spaces = self.task == "translate" or has_spaces(shown or "en")
                yield demo_page.result(name, seconds, shown, cards, reference, spaces=spaces)
        except UserError as error:
            yield demo_page.notice(str(error))


def _usable(path: str, name: str):
    """The wave of a recording that there is something to hear in.

    Raises:
        UserError: what the one who sent it can mend.
    """
    try:
        seconds = duration_s(path)
        if seconds > LONGEST_S:
            raise UserError(
                f"{name}: {seconds / 60:.0f} minutes long, and up to {LONGEST_S / 60:.0f} are heard here. Cut it; "
                "whisper-peft transcribe takes any length."
            )
        wave = load_audio(path, end_s=seconds)  # whatever else it holds
    except AudioError as error:
        raise UserError(f"{name}: {error}. Try another recording.") from None
    if abs(wave).max() < SILENT:
        raise UserError(f"{name}: silent. Is the microphone muted, or another one chosen?")
    return wave
