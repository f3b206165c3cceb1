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
        logits: (batch, longest, vocab), any float type; computed in float32.
        labels: int64 (batch, longest), -100 where no loss is taken.

    Returns:
        float32 scalar, in nats.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
