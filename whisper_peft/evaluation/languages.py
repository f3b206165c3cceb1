"""Decide the language of recordings: the one that the user names, that the model was trained for, or that it hears."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.features import Preparation
from whisper_peft.data.rows import Row
from whisper_peft.data.text import AUTO_LANGUAGE, language_code
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import encode
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import to_device

if TYPE_CHECKING:
    import numpy as np


def resolve_language(model, preparation: Preparation, language: str | None) -> str | None:
    """Decide the language to transcribe in: the one that is named, or else the one in the model's generation config.

    Args:
        model: Whisper, or an adapter on one.
        preparation: The preparation of its checkpoint.
        language: A name, a code, "auto" or None.

    Returns:
        Whisper's code; "auto" if the model must listen for the language; None for an English-only checkpoint.

    Raises:
        UserError: Neither the user nor the model names a language, or an English-only checkpoint is asked for another.
    """
    if language is not None and language.strip().lower() == AUTO_LANGUAGE:
        return AUTO_LANGUAGE if preparation.multilingual else None
    if not preparation.multilingual:
        if language is not None:
            preparation.check_languages([(language_code(language), "--language")])
        return None
    if language is None:
        language = getattr(whisper_of(model).generation_config, "language", None)
    if not isinstance(language, str):
        raise UserError(
            "--language: the model does not say which language it was trained for; name it, or let the model listen "
            "for it with --language auto."
        )
    return language_code(language.strip("<|>"))


def detect_language(model, preparation: Preparation, wave: np.ndarray) -> str:
    """Let a model tell the language of a recording from its first window.

    Args:
        model: A multilingual Whisper, or an adapter on one.
        preparation: The preparation of its checkpoint.
        wave: The recording: float32 (n_samples,), mono, at `preparation.sample_rate_hz`.

    Returns:
        Whisper's code of the language whose token is the most probable one.
    """
    import torch

    whisper = whisper_of(model)
    features = preparation.encode_stretch(wave[: preparation.window_samples], preparation.window_frames)
    with torch.no_grad():
        encoded = encode(whisper, torch.from_numpy(features)[None])
        token = whisper.detect_language(encoder_outputs=encoded).item()
    codes = {number: name.strip("<|>") for name, number in whisper.generation_config.lang_to_id.items()}
    return codes[token]


def listen_for_languages(model, preparation: Preparation, rows: Sequence[Row]) -> list[Row]:
    """Give each row that names no language the one that the model hears.

    Args:
        model: A multilingual Whisper in eval mode, or an adapter on one.
        preparation: The preparation of its checkpoint.
        rows: The clips.

    Returns:
        The rows, each with a language.
    """
    model = to_device(model)
    named = []
    for row in rows:
        if row.language is not None:
            named.append(row)
            continue
        try:
            wave = load_audio(row.sound(), start_s=row.start_s, end_s=row.end_s)
            code = detect_language(model, preparation, wave)
        except AudioError:
            # Any language will do: a clip that cannot be read is left out.
            code = "en"
        named.append(dataclasses.replace(row, language=code))
    return named
