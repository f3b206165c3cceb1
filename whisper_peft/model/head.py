"""The output projection where it is needed only: it is as wide as the vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from whisper_peft.model.memory import EVALUATED_ROWS

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def logits_at(whisper, wanted: Tensor, then: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, a Whisper's forward has logits (n_wanted, vocab), and gives what `then` makes of them as its `logits`.

    Both within the model's forward, by hooks on its last layer: data parallel sees one call, and under autocast the
    logits stay in reduced precision, where a forward's output is copied to float32.

    Args:
        whisper: a WhisperForConditionalGeneration.
        wanted: bool (batch, longest), which positions' logits are wanted; their order is kept.
        then: a function of the logits, for example a loss.
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
def states_at(whisper, wanted: Tensor) -> Iterator[list[Tensor]]:
    """Inside, a Whisper's forward makes no logits; the list gets the states (n_wanted, d_model) before the head.

    Args:
        whisper: a WhisperForConditionalGeneration.
        wanted: bool (batch, longest), which positions' states are wanted; their order is kept.
    """
    kept: list[Tensor] = []

    def keep(module, inputs: tuple) -> tuple:
        kept.append(inputs[0][wanted])
        return (inputs[0][:0],)

    hook = whisper.proj_out.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()


def token_losses(whisper, states: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each target, a few rows of logits at a time: for evaluation, without gradient.

    Args:
        whisper: whose head is used.
        states: (n_targets, d_model), see `states_at`.
        targets: int64 (n_targets,).

    Returns:
        float32 (n_targets,), in nats.
    """
    import torch

    pairs = zip(states.split(EVALUATED_ROWS), targets.split(EVALUATED_ROWS), strict=True)
    return torch.cat([
        torch.nn.functional.cross_entropy(whisper.proj_out(rows).float(), of, reduction="none") for rows, of in pairs
    ])  # fmt: skip
