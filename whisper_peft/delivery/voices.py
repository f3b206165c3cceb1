"""The models that a demo lets speak: the one that is shown, and what it was before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.features import Preparation
from whisper_peft.delivery.provenance import known_provenance
from whisper_peft.errors import UserError
from whisper_peft.evaluation.longform import transcribe_wave
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.devices import to_device
from whisper_peft.model.locating import HUB_PREFIX, Located

OWN_BASE, NO_COMPARISON = "base", "none"


@dataclass(frozen=True)
class Voice:
    """A model as one card of the page knows it."""

    name: str
    model: object
    preparation: Preparation
    without_adapter: bool = False  # the base under the other voice's adapter: no weights of its own

    def hear(self, wave, **options) -> dict:
        """See `transcribe_wave`."""
        silenced = self.model.disable_adapter() if self.without_adapter else contextlib.nullcontext()
        with silenced:
            return transcribe_wave(self.model, self.preparation, wave, **options)

    @property
    def languages(self) -> set[str]:
        """Codes of the languages that the checkpoint has tokens for."""
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
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name.removeprefix(HUB_PREFIX)
