"""Compute the teacher-forced losses of a clip's own text and of the texts of the rows around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import LeftOut, Pick, SpeechDataset
from whisper_peft.data.features import IGNORED
from whisper_peft.data.rows import Segment
from whisper_peft.evaluation.generation import encode, teacher_forced_losses, use_window
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import to_device

# Rows on either side of a clip whose texts are tried.
REACH = 3
# Clips that are encoded at a time. Each is decoded with 7 texts.
_CLIPS_AT_ONCE = 4


def neighbour_losses(
    model: Any, dataset: SpeechDataset, *, progress: Callable[[int], object] = lambda clips: None
) -> np.ndarray:
    """Compute the token loss of each row's text, and of the texts around it, given the row's sound.

    The encoder hears each clip once, in a condensed window. That is enough, because losses are only compared with each
    other.

    Args:
        model: Whisper, or an adapter on one, in eval mode.
        dataset: The rows, in their order.
        progress: Called after each batch with its number of clips.

    Returns:
        float32 (n_rows, 7): column 3 is the row's own text, column 3 + d that of the row d further down. NaN where
        there is no such row, or where it cannot be used.
    """
    model = to_device(model)
    with use_window(model, "condensed") as slack_s:
        return _listen_to_all(whisper_of(model), dataset, slack_s, progress)


def _listen_to_all(
    whisper: Any, dataset: SpeechDataset, slack_s: float, progress: Callable[[int], object]
) -> np.ndarray:
    """Fill the table of `neighbour_losses`, in windows with `slack_s` seconds of silence behind the longest clip."""
    import torch

    collate = SpeechCollator(dataset.preparation)
    losses = np.full((len(dataset), 2 * REACH + 1), np.nan, dtype=np.float32)
    # Clips of like length are encoded together, so that little of a batch is silence.
    by_length = sorted(range(len(dataset)), key=dataset.duration_s)
    for first in range(0, len(by_length), _CLIPS_AT_ONCE):
        picked = by_length[first : first + _CLIPS_AT_ONCE]
        examples = [dataset[Pick(row, slack_s=slack_s)] for row in picked]
        batch = collate([example for example in examples if not isinstance(example, LeftOut)])
        pairs = _pair_with_neighbours(dataset, batch["rows"])
        if pairs:
            with torch.no_grad():
                pair_losses = _losses_of_pairs(whisper, batch["input_features"], pairs)
            for pair, loss in zip(pairs, pair_losses, strict=True):
                losses[pair.row, pair.other - pair.row + REACH] = loss
        progress(len(picked))
    return losses


@dataclass(frozen=True)
class _Pair:
    """The sound of one row and the text of another.

    Attributes:
        place: Place of the sound in its batch.
        row: Row of the sound.
        other: Row of the text.
        decoder_input_ids: Tokens of the text, int64 (n_tokens,).
        labels: The same one step ahead, int64 (n_tokens,).
    """

    place: int
    row: int
    other: int
    decoder_input_ids: np.ndarray
    labels: np.ndarray


def _pair_with_neighbours(dataset: SpeechDataset, rows: Sequence[int]) -> list[_Pair]:
    """Pair the sounds of a batch with the texts of the rows around them. Texts that cannot be used are left out.

    Args:
        dataset: The rows.
        rows: Row of each sound in the batch.
    """
    pairs = []
    for place, row in enumerate(rows):
        for other in range(max(0, row - REACH), min(len(dataset), row + REACH + 1)):
            # The other text in the language of this row: the prefix must not tell them apart.
            language = dataset.language_of(row)
            try:
                encoded = dataset.preparation.encode_text(
                    [Segment(dataset.text(other))], language=language, task=dataset.task
                )
            except ValueError:
                continue
            pairs.append(_Pair(place, row, other, *encoded))
    return pairs


def _losses_of_pairs(whisper: Any, features: Any, pairs: Sequence[_Pair]) -> np.ndarray:
    """Compute the mean token loss of each pair.

    Args:
        whisper: The Whisper model.
        features: Log-mels of the batch, float32 (batch, n_mels, frames).
        pairs: Pairs of a sound in the batch and a text.

    Returns:
        float32 (n_pairs,), in nats per token.
    """
    import torch

    # A sound is encoded once, and its states are repeated for each of its texts.
    encoded = encode(whisper, features)
    encoded.last_hidden_state = encoded.last_hidden_state[[pair.place for pair in pairs]]
    longest = max(len(pair.labels) for pair in pairs)
    # Padding is end-of-text, the last label of every text.
    end_of_text = int(pairs[0].labels[-1])
    inputs = torch.full((len(pairs), longest), end_of_text)
    labels = torch.full((len(pairs), longest), IGNORED)
    for number, pair in enumerate(pairs):
        inputs[number, : len(pair.decoder_input_ids)] = torch.from_numpy(pair.decoder_input_ids)
        labels[number, : len(pair.labels)] = torch.from_numpy(pair.labels)
    sums, counts = teacher_forced_losses(whisper, encoded, inputs, labels)
    return (sums / counts).float().cpu().numpy()
