"""SpeechCollator: pad and stack, nothing else."""

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
    """One optimizer step, or a micro-batch of it."""

    input_features: Tensor  # float32 (batch, n_mels, window_frames): the step's window, even and at most the model's
    decoder_input_ids: Tensor  # int64 (batch, longest)
    labels: Tensor  # int64 (batch, longest), -100 where no loss is taken
    rows: list[int]
    seconds: float  # of speech in the batch
    n_clips: int  # usable ones; more than `rows` where some are stitched into one window
    kept: int  # clips that stayed as they were, because augmentation would have made them too long
    left_out: list[LeftOut]


@dataclass
class SpeechCollator:
    """Examples of one optimizer step -> a padded batch; clips that could not be used are only passed on.

    The window is the longest clip and the silence that the step asks for behind it, or the model's whole window.

    Log-mels are padded with each clip's own floor, tokens by length: end-of-text is a real label once and padding
    never is, although both have the same id.
    """

    preparation: Preparation

    def __call__(self, examples: Sequence[Example | LeftOut]) -> Batch:
        """Pads and stacks."""
        import torch

        usable = [example for example in examples if isinstance(example, Example)]
        left_out = [clip for example in examples for clip in _left_out_of(example)]
        usable.sort(key=lambda example: -example.seconds)  # the first micro-batch is the largest
        longest = max((len(example.labels) for example in usable), default=1)
        n_mels, frames = self.preparation.n_mels, self._window_frames(usable)
        features = np.empty((len(usable), n_mels, frames), dtype=np.float32)
        inputs = np.full((len(usable), longest), self.preparation.eot, dtype=np.int64)
        labels = np.full((len(usable), longest), IGNORED, dtype=np.int64)
        for i, example in enumerate(usable):
            n_frames, n_tokens = example.input_features.shape[1], len(example.labels)
            features[i, :, :n_frames] = example.input_features
            features[i, :, n_frames:] = example.floor
            inputs[i, :n_tokens] = example.decoder_input_ids
            labels[i, :n_tokens] = example.labels
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
        whole = self.preparation.window_frames
        slack_s = max((example.slack_s for example in usable), default=0.0)
        if math.isinf(slack_s):
            return whole
        longest = max((example.input_features.shape[1] for example in usable), default=0)
        frames = longest + math.ceil(slack_s * self.preparation.frames_per_s)
        return min(whole, max(2, frames + frames % 2))


def _left_out_of(example: Example | LeftOut) -> tuple[LeftOut, ...]:
    if isinstance(example, LeftOut):
        return (example, *example.others)
    return example.left_out
