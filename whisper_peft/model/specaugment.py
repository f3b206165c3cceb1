"""SpecAugment, as transformers has it: in training, parts of the log-mels are masked along time or frequency."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration


@contextlib.contextmanager
def set_masks(
    whisper: WhisperForConditionalGeneration, masks: Mapping[str, float] | None, window_frames: int
) -> Iterator[None]:
    """Within the block, switch the masking of a Whisper in training mode on or off; afterwards restore its config.

    The config is saved with the model, and the next user of the model should not find masks switched on.

    Args:
        whisper: The model, without peft's wrapper.
        masks: Values for WhisperConfig's `mask_time_prob`, `mask_time_length` and so on. None switches masking off,
            whatever the config says.
        window_frames: Frames of the input. transformers refuses masks along time that are longer than the input, so
            such a window gets none.
    """
    config = whisper.model.config
    settings: dict[str, object] = {"apply_spec_augment": bool(masks), **(masks or {})}
    if masks and masks["mask_time_length"] > window_frames:
        settings["mask_time_prob"] = 0.0
    before = {key: getattr(config, key) for key in settings}
    try:
        for key, value in settings.items():
            setattr(config, key, value)
        yield
    finally:
        for key, value in before.items():
            setattr(config, key, value)
