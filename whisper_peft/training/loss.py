"""Token mean over an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.data.features import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def token_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy; divided by the target tokens of the whole step it is the token mean.

    The model's own loss is a mean over a micro-batch, and a mean of such means weights short micro-batches too much.

    Args:
        logits: (..., vocab), any float type; computed in float32. The trainer gives (n_targets, vocab).
        labels: int64 (...), -100 where no loss is taken.

    Returns:
        float32 scalar, in nats.
    """
    from torch.nn.functional import cross_entropy

    flat = logits.float().reshape(-1, logits.shape[-1])
    return cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED, reduction="sum")
