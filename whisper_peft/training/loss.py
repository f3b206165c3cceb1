"""The loss: the token mean over an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.data.features import IGNORED
from whisper_peft.model.head import LOSS_ROWS

if TYPE_CHECKING:
    from torch import Tensor


def token_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy of all targets; divided by the target tokens of the whole step it is the token mean.

    The model's own loss is a mean over a micro-batch. A mean of such means would give the tokens of short micro-batches
    too much weight.

    The sum is computed in float32, a few rows at a time, and its gradient along with it. All logits in float32, their
    logarithms and their gradient would be the largest tensors of a step on short windows.

    Args:
        logits: (..., vocab), any float type. The trainer gives (n_targets, vocab).
        labels: int64 (...), -100 where no loss is taken.

    Returns:
        float32 scalar, in nats.
    """
    import torch

    class SummedCrossEntropy(torch.autograd.Function):
        """Cross-entropy whose forward also computes the gradient, in the type of the logits; backward scales it."""

        @staticmethod
        def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
            needs_gradient = ctx.needs_input_grad[0]
            gradient = torch.empty_like(logits) if needs_gradient else None
            total = torch.zeros((), dtype=torch.float32, device=logits.device)
            for start in range(0, len(logits), LOSS_ROWS):
                # (LOSS_ROWS, vocab), and (LOSS_ROWS, 1) for what belongs to a row.
                rows = logits[start : start + LOSS_ROWS]
                targets = labels[start : start + LOSS_ROWS, None]
                has_loss = targets != IGNORED
                targets = targets.where(has_loss, 0)
                # The softmax serves twice: for the loss, and as the larger part of the gradient.
                probabilities = rows.softmax(dim=1, dtype=torch.float32)
                # The largest logit minus the logarithm of its probability is the logarithm of the softmax's sum.
                log_sum = rows.amax(dim=1, keepdim=True).float() - probabilities.amax(dim=1, keepdim=True).log()
                total += ((log_sum - rows.gather(1, targets)) * has_loss).sum()
                if gradient is not None:
                    # The gradient of a row is its softmax, minus 1 at the target.
                    probabilities.scatter_add_(1, targets, torch.full_like(log_sum, -1.0))
                    gradient[start : start + LOSS_ROWS] = probabilities.mul_(has_loss)
            ctx.gradient = gradient
            return total

        @staticmethod
        def backward(ctx, scale: Tensor) -> tuple[Tensor, None]:
            # The gradient is scaled in place and given away: there is no second backward.
            gradient = ctx.gradient
            ctx.gradient = None
            return gradient.mul_(scale), None

    return SummedCrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
