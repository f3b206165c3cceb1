"""SpecAugment as transformers has it: stretches of a training step's log-mels, along time or frequency, are masked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def masked(whisper, masks: Mapping[str, float] | None, window_frames: int) -> Iterator[None]:
    """Within it a Whisper in training mode masks its input, or does not; its config is afterwards as it was.

    The config is saved with the model, whose next user should not find masks switched on.

    Args:
        whisper: a WhisperForConditionalGeneration.
        masks: WhisperConfig's `mask_time_prob` and so on; None: nothing is masked, whatever the config says.
        window_frames: of the input. transformers refuses masks longer than it: such a window has none along time.
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
