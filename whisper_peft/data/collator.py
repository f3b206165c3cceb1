"""SpeechCollator: pad the examples of a step and stack them, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from whisper_peft.data.dataset import Example, LeftOut
from whisper_peft.data.features import IGNORED, Preparation

if TYPE_CHECKING:
    from torch import Tensor


class Batch(TypedDict):
    """The clips of one optimizer step; slices of its tensors are micro-batches."""

    # float32 (batch, n_mels, window_frames): the step's window, an even number of frames and at most the model's.
    input_features: Tensor
    # int64 (batch, longest), padded with end-of-text.
    decoder_input_ids: Tensor
    # int64 (batch, longest), -100 where no loss is taken.
    labels: Tensor
    # Numbers of the rows.
    rows: list[int]
    # Seconds of speech in the batch, without padding.
    seconds: float
    # Usable clips. They are more than `rows` where some are stitched into one window.
    n_clips: int
    # Clips that were not augmented, because their augmented form could not be used.
    kept: int
    # Clips of the step that could not be used.
    left_out: list[LeftOut]


@dataclass
class SpeechCollator:
    """Make one padded batch of the examples of an optimizer step; clips that could not be used are only passed on.

    The window is the longest clip and the slack that the step asks for, or the model's whole window.

    A log-mel is padded with its clip's own floor, because silence has no fixed value. The decoder's input is padded
    with end-of-text, but its label there is -100: the model learns end-of-text once, at the end of each text.

    Args:
        preparation: What the trained checkpoint asks of its input.

    Example:
        Two clips of 30 and 51 frames, with 0.1 s (10 frames) of slack: the window has 61 frames, and one more to be
        even. The longer clip comes first. `9` stands for end-of-text.

        >>> from types import SimpleNamespace
        >>> preparation = SimpleNamespace(n_mels=2, window_frames=3000, frames_per_s=100.0, eot=9)
        >>> short = Example(0, np.zeros((2, 30)), -0.5, np.array([1, 5]), np.array([5, 9]), seconds=0.3, slack_s=0.1)
        >>> long = Example(1, np.zeros((2, 51)), -0.7, np.array([1, 6, 7]), np.array([6, 7, 9]), 0.5, slack_s=0.1)
        >>> batch = SpeechCollator(preparation)([short, long])
        >>> batch["input_features"].shape, batch["rows"]
        (torch.Size([2, 2, 62]), [1, 0])
        >>> batch["decoder_input_ids"].tolist()
        [[1, 6, 7], [1, 5, 9]]
        >>> batch["labels"].tolist()
        [[6, 7, 9], [5, 9, -100]]
    """

    preparation: Preparation

    def __call__(self, examples: Sequence[Example | LeftOut]) -> Batch:
        """Pad and stack the usable examples."""
        # Importing torch takes seconds. Commands that collate nothing must not wait for it.
        import torch

        usable = [example for example in examples if isinstance(example, Example)]
        left_out = [clip for example in examples for clip in _left_out_of(example)]
        # The longest clips come first: the first micro-batch is the largest, so a lack of memory shows at once.
        usable.sort(key=lambda example: -example.seconds)
        longest = max((len(example.labels) for example in usable), default=1)
        window_frames = self._window_frames(usable)
        features = np.empty((len(usable), self.preparation.n_mels, window_frames), dtype=np.float32)
        inputs = np.full((len(usable), longest), self.preparation.eot, dtype=np.int64)
        labels = np.full((len(usable), longest), IGNORED, dtype=np.int64)
        for place, example in enumerate(usable):
            n_frames = example.input_features.shape[1]
            n_tokens = len(example.labels)
            features[place, :, :n_frames] = example.input_features
            features[place, :, n_frames:] = example.floor
            inputs[place, :n_tokens] = example.decoder_input_ids
            labels[place, :n_tokens] = example.labels
        return Batch(
            input_features=torch.from_numpy(features),
            decoder_input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            rows=[example.row for example in usable],
            seconds=sum(example.seconds for example in usable),
            n_clips=sum(example.n_clips for example in usable),
            kept=sum(example.kept for example in usable),
            left_out=left_out,
        )

    def _window_frames(self, usable: Sequence[Example]) -> int:
        """Return the window of a step in frames: its longest clip plus the slack. `batching` tells who sets it."""
        whole = self.preparation.window_frames
        slack_s = max((example.slack_s for example in usable), default=0.0)
        if math.isinf(slack_s):
            return whole
        longest = max((example.input_features.shape[1] for example in usable), default=0)
        frames = longest + math.ceil(slack_s * self.preparation.frames_per_s)
        # The encoder makes one position of two frames, so the number is even.
        return min(whole, max(2, frames + frames % 2))


def _left_out_of(example: Example | LeftOut) -> tuple[LeftOut, ...]:
    """List the clips of an example, or of a window without one, that could not be used."""
    if isinstance(example, LeftOut):
        return (example, *example.others)
    return example.left_out
