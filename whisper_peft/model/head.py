"""The output projection where it is needed only: it is as wide as the vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def logits_at(whisper, wanted: Tensor) -> Iterator[None]:
    """Inside, a Whisper's forward gives logits (n_wanted, vocab) instead of (batch, longest, vocab).

    The choice is made within the model's forward, by a hook on its last layer, so that data parallel sees one call.

    Args:
        whisper: a WhisperForConditionalGeneration.
        wanted: bool (batch, longest), which positions' logits are wanted; their order is kept.
    """
    hook = whisper.proj_out.register_forward_pre_hook(lambda module, inputs: (inputs[0][wanted],))
    try:
        yield
    finally:
        hook.remove()
