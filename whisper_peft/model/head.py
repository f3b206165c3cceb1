"""The output head, computed only where its result is needed.

The head gives each position one number for each token of the vocabulary: 51,865 numbers, more than all the other layers
give together. So training computes it only at positions with a loss, and evaluation only a few positions at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import WhisperForConditionalGeneration

# Rows of logits that the loss converts to float32 at a time: about what the cache of a CPU holds.
LOSS_ROWS = 32
# Rows of logits that an evaluation computes at a time. No gradient needs them, so each piece can be dropped at once.
EVALUATED_ROWS = 256


@contextlib.contextmanager
def logits_at(
    whisper: WhisperForConditionalGeneration, wanted: Tensor, then: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within the block, let a Whisper's forward compute logits (n_wanted, vocab), and return `then(logits)` for them.

    The result of `then` arrives as the `logits` of the model's output. Hooks on the head do both inside the model's
    forward, for two reasons: data parallel sees one call, and under autocast the logits stay in reduced precision.
    Outside of the forward they would have been copied to float32.

    Args:
        whisper: The model, without peft's wrapper.
        wanted: bool (batch, longest), True at the positions whose logits are wanted. Their order is kept.
        then: A function of the logits, for example a loss.
    """
    head = whisper.proj_out
    hooks = [
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0][wanted],)),
        head.register_forward_hook(lambda module, inputs, logits: then(logits)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def states_at(whisper: WhisperForConditionalGeneration, wanted: Tensor) -> Iterator[list[Tensor]]:
    """Within the block, let a Whisper's forward compute no logits, and collect the states before the head.

    Args:
        whisper: The model, without peft's wrapper.
        wanted: bool (batch, longest), True at the positions whose states are wanted. Their order is kept.

    Yields:
        A list to which each forward appends its states (n_wanted, d_model).
    """
    collected: list[Tensor] = []

    def collect(module, inputs: tuple) -> tuple:
        states = inputs[0]
        collected.append(states[wanted])
        # No row at all is left for the head to multiply.
        return (states[:0],)

    hook = whisper.proj_out.register_forward_pre_hook(collect)
    try:
        yield collected
    finally:
        hook.remove()


def token_losses(whisper: WhisperForConditionalGeneration, states: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of each target, a few rows of logits at a time; for evaluation, without gradient.

    Args:
        whisper: The model whose head is used.
        states: The states before the head (n_targets, d_model), see `states_at`.
        targets: Token ids, int64 (n_targets,).

    Returns:
        The losses in nats, float32 (n_targets,).
    """
    import torch
    from torch.nn.functional import cross_entropy

    losses = []
    for piece, piece_targets in zip(states.split(EVALUATED_ROWS), targets.split(EVALUATED_ROWS), strict=True):
        # Without a name the logits are freed before the next piece makes its own.
        losses.append(cross_entropy(whisper.proj_out(piece).float(), piece_targets, reduction="none"))
    return torch.cat(losses)
