"""The steps that all ways to transcribe share: set the window, encode once, take token losses, generate tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from whisper_peft.data.batching import SLACK_S, clips_at_once
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.errors import UserError
from whisper_peft.model.build import condense_silence, whisper_of
from whisper_peft.model.devices import best_device
from whisper_peft.model.head import states_at, token_losses

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.modeling_outputs import BaseModelOutput

# How much is transcribed at a time if the user names no batch size: seconds of windows, and clips. Larger batches gain
# nothing on a CPU, because more of them is padding.
AT_ONCE = {"cuda": (240.0, 64), "cpu": (120.0, 16)}


def device_kind() -> str:
    """Return "cuda" or "cpu", the key of this machine's device in tables such as `AT_ONCE`."""
    return "cuda" if best_device().type == "cuda" else "cpu"


def auto_batch_size(window_s: float) -> int:
    """Return how many windows of a length are transcribed at a time on this machine, unless the user names a number.

    Args:
        window_s: Length of the longest window, in seconds.
    """
    budget_s, most_clips = AT_ONCE[device_kind()]
    return min(most_clips, clips_at_once(window_s, budget_s))


def full_limit(preparation: Preparation) -> int:
    """Return how many tokens the model can generate after its prefix."""
    # Start of transcript, language, task and "no times". An English-only checkpoint has no language and no task.
    prefix_tokens = 4 if preparation.multilingual else 2
    return preparation.max_label_tokens - prefix_tokens


@contextlib.contextmanager
def use_window(model, kind: str) -> Iterator[float]:
    """Let a model hear windows of a kind inside the context, and restore its own kind afterwards.

    Args:
        model: A Whisper as `load_base` returns it, or an adapter on one.
        kind: "full", "condensed" or "tight".

    Yields:
        Silence in seconds that belongs behind the longest clip of each batch; infinite for the model's whole window.

    Raises:
        UserError: There is no such kind of window.
    """
    if kind not in SLACK_S:
        raise UserError(f"--window {kind}: expected one of {', '.join(SLACK_S)}.")
    encoder = whisper_of(model).get_encoder()
    was_condensed = encoder.silence_positions > 0
    condense_silence(model, kind)
    try:
        yield SLACK_S[kind]
    finally:
        condense_silence(model, "condensed" if was_condensed else "full")


def encode(whisper, features: Tensor) -> BaseModelOutput:
    """Run the encoder, and wrap its states as the model's forward and its `generate` accept them.

    Every caller encodes first: `generate(input_features=…)` would encode once more, and pad short input with zeros,
    which are loud noise in a log-mel.

    Args:
        whisper: A WhisperForConditionalGeneration.
        features: Log-mel, float32 (batch, n_mels, n_frames), on any device.

    Returns:
        The output, whose last_hidden_state is (batch, n_positions, d_model).
    """
    from transformers.modeling_outputs import BaseModelOutput

    encoder = whisper.get_encoder()
    dtype = next(encoder.parameters()).dtype
    states = encoder(features.to(whisper.device, dtype)).last_hidden_state
    return BaseModelOutput(last_hidden_state=states)


def teacher_forced_losses(
    whisper, encoded: BaseModelOutput, decoder_input_ids: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute how badly a model predicts given texts.

    Args:
        whisper: A WhisperForConditionalGeneration.
        encoded: The sound of each text, as `encode` returns it.
        decoder_input_ids: int64 (batch, n_tokens), on any device.
        labels: int64 (batch, n_tokens), on any device: the next token at each place, -100 where no loss is taken.

    Returns:
        The token losses of each text, summed, float32 (batch,) in nats; and its number of tokens, int64 (batch,).
    """
    import torch

    labels = labels.to(whisper.device)
    is_target = labels != IGNORED
    with states_at(whisper, is_target) as states:
        whisper(encoder_outputs=encoded, decoder_input_ids=decoder_input_ids.to(whisper.device), use_cache=False)
    losses = torch.zeros(labels.shape, device=whisper.device)
    losses[is_target] = token_losses(whisper, states.pop(), labels[is_target])
    return losses.sum(1), is_target.sum(1)


class Loops:
    """A stopping criterion for `generate`: it ends a transcript whose last tokens repeat themselves.

    The repeated part has at most `longest_period` tokens. It must stand there at least four times, and fill at least
    `least_tokens` tokens, which no transcript of speech does.

    Args:
        n_clips: Number of clips in the batch.
        eot: Id of the end-of-text token.

    Attributes:
        ended: bool (n_clips,): the transcripts that were ended as loops.
    """

    longest_period = 32
    least_tokens = 24
    # Tokens between two looks. A look costs little, but not nothing.
    every = 4

    def __init__(self, n_clips: int, *, eot: int):
        import torch

        self.eot = eot
        self.ended = torch.zeros(n_clips, dtype=torch.bool)

    def __call__(self, input_ids, scores, **kwargs) -> Tensor:
        """Return bool (batch,): which of the sequences int64 (batch, n_tokens) are ended."""
        if input_ids.shape[1] % self.every == 0:
            # A transcript that has ended is padded with its end token, which is no loop.
            is_complete = input_ids[:, -1] == self.eot
            self.ended = self.ended.to(input_ids.device) | (self._repeats(input_ids) & ~is_complete)
        return self.ended.to(input_ids.device)

    def _repeats(self, input_ids: Tensor) -> Tensor:
        import torch

        n_tokens = input_ids.shape[1]
        repeats = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        for period in range(1, self.longest_period + 1):
            n_equal = max(self.least_tokens, 4 * period) - period
            if n_tokens < n_equal + period:
                break
            tail = input_ids[:, n_tokens - n_equal :]
            one_period_before = input_ids[:, n_tokens - n_equal - period : n_tokens - period]
            repeats |= (tail == one_period_before).all(dim=1)
        return repeats


def generate(
    whisper,
    preparation: Preparation,
    encoded: BaseModelOutput,
    *,
    language: str | None,
    task: str,
    max_new_tokens: int,
    beams: int = 1,
    loops: Loops | None = None,
    prompt_ids: Sequence[int] = (),
    timestamps: bool = False,
) -> list[list[int]]:
    """Generate the tokens of each clip.

    Args:
        whisper: A WhisperForConditionalGeneration in eval mode.
        preparation: The preparation of its checkpoint.
        encoded: The sound, as `encode` returns it.
        language: Whisper's code; None for an English-only checkpoint.
        task: "transcribe" or "translate".
        max_new_tokens: Largest number of tokens after the prefix.
        beams: Number of beams; 1 is greedy.
        loops: The criterion that ends loops; None lets them go on up to the limit.
        prompt_ids: Tokens that stand before every transcript, see `pieces.prompt_ids`.
        timestamps: Generate the times of segments, too.

    Returns:
        The token ids of each clip, without prompt, prefix and end-of-text.
    """
    import torch

    options: dict[str, Any] = {}
    if preparation.multilingual:
        options |= {"language": language, "task": task}
    if prompt_ids:
        options["prompt_ids"] = torch.tensor(prompt_ids, device=whisper.device)
    with errors_only():
        output = whisper.generate(
            encoder_outputs=encoded,
            max_new_tokens=max_new_tokens,
            num_beams=beams,
            use_cache=True,
            return_timestamps=timestamps,
            stopping_criteria=None if loops is None else [loops],
            # Without it, a stray time token makes transformers look for the sound, which it was not given.
            force_unique_generate_call=True,
            **options,
        )
    prefix = [*prompt_ids, *preparation.prefix(language, task, timestamps=timestamps)]
    return [_text_tokens(ids, prefix, preparation.eot) for ids in output.tolist()]


def _text_tokens(ids: list[int], prefix: list[int], eot: int) -> list[int]:
    """Return the tokens between the prefix, which not every version of transformers returns, and end-of-text."""
    if ids[: len(prefix)] == prefix:
        ids = ids[len(prefix) :]
    if eot in ids:
        ids = ids[: ids.index(eot)]
    return ids


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Silence transformers' warnings: at every batch, `generate` warns of limits and processors that it sets itself."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
