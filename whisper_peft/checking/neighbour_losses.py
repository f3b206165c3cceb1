"""What a model thinks of a clip's own text beside its neighbours': teacher-forced losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import LeftOut, Pick, SpeechDataset
from whisper_peft.data.features import IGNORED
from whisper_peft.data.rows import Segment
from whisper_peft.evaluation.generation import encode, teacher_forced_losses, use_window
from whisper_peft.model.build import whisper_of
from whisper_peft.model.devices import to_device

REACH = 3  # rows on either side
_CLIPS = 4  # encoded at a time; each is decoded with 7 texts


def neighbour_losses(model, dataset: SpeechDataset, *, progress: Callable[[int], object] = lambda clips: None):
    """The loss a token of each row's text, and of those of the rows around it, given the row's sound.

    The encoder hears each clip once, in a condensed window: losses are only held against each other.

    Args:
        model: Whisper, or an adapter on one, in eval mode.
        dataset: of the rows, in their order.
        progress: told after each batch how many clips it had.

    Returns:
        float32 (n_rows, 7): column 3 is the row's own; NaN where there is no such row, or it cannot be used.
    """
    model = to_device(model)
    with use_window(model, "condensed") as slack_s:
        return _listen(model, dataset, slack_s, progress)


def _listen(model, dataset: SpeechDataset, slack_s: float, progress: Callable[[int], object]) -> np.ndarray:
    import torch

    whisper, collate = whisper_of(model), SpeechCollator(dataset.preparation)
    found = np.full((len(dataset), 2 * REACH + 1), np.nan, dtype=np.float32)
    order = sorted(range(len(dataset)), key=dataset.duration_s)
    for first in range(0, len(order), _CLIPS):
        picked = order[first : first + _CLIPS]
        examples = [dataset[Pick(row, slack_s=slack_s)] for row in picked]
        batch = collate([one for one in examples if not isinstance(one, LeftOut)])
        pairs = [
            (place, row, other)
            for place, row in enumerate(batch["rows"])
            for other in range(max(0, row - REACH), min(len(dataset), row + REACH + 1))
        ]
        tokens = [_tokens(dataset, row, other) for _, row, other in pairs]
        usable = [number for number, one in enumerate(tokens) if one is not None]
        if usable:
            with torch.no_grad():
                losses = _losses(
                    whisper, batch["input_features"], [pairs[n][0] for n in usable], [tokens[n] for n in usable]
                )
            for number, loss in zip(usable, losses, strict=True):
                _, row, other = pairs[number]
                found[row, other - row + REACH] = loss
        progress(len(picked))
    return found


def _tokens(dataset: SpeechDataset, row: int, other: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The tokens of another row's text, in the language of this one."""
    try:
        return dataset.preparation.encode_text(
            [Segment(dataset.text(other))], language=dataset.language_of(row), task=dataset.task
        )
    except ValueError:
        return None


def _losses(whisper, features, places: Sequence[int], tokens: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean losses a token, one for each pair of a clip's place in `features` (batch, n_mels, frames) and tokens."""
    import torch

    encoded = encode(whisper, features)
    encoded.last_hidden_state = encoded.last_hidden_state[list(places)]
    longest = max(len(inputs) for inputs, _ in tokens)
    inputs = torch.full((len(tokens), longest), int(tokens[0][1][-1]))
    labels = torch.full((len(tokens), longest), IGNORED)
    for number, (ids, targets) in enumerate(tokens):
        inputs[number, : len(ids)] = torch.from_numpy(ids)
        labels[number, : len(targets)] = torch.from_numpy(targets)
    sums, counts = teacher_forced_losses(whisper, encoded, inputs, labels)
    return (sums / counts).float().cpu().numpy()
