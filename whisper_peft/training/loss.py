"""Token mean over an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.data.features import IGNORED
from whisper_peft.model.memory import ROWS

if TYPE_CHECKING:
    from torch import Tensor


def token_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy; divided by the target tokens of the whole step it is the token mean.

    The model's own loss is a mean over a micro-batch, and a mean of such means weights short micro-batches too much.
    Computed in float32 a few rows at a time, the gradient along with it: all logits in float32, their logarithms and
    their gradient would be the largest tensors of a step on short windows.

    Args:
        logits: (..., vocab), any float type. The trainer gives (n_targets, vocab).
        labels: int64 (...), -100 where no loss is taken.

    Returns:
        float32 scalar, in nats.
    """
    import torch

    class SummedCrossEntropy(torch.autograd.Function):
        """Forward makes the gradient, in the logits' type; backward only scales it."""

        @staticmethod
        def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
            wanted = ctx.needs_input_grad[0]
            gradient = torch.empty_like(logits) if wanted else None
            total = torch.zeros((), dtype=torch.float32, device=logits.device)
            for start in range(0, len(logits), ROWS):
                rows = logits[start : start + ROWS]
                targets = labels[start : start + ROWS, None]
                taken = targets != IGNORED
                targets = targets.where(taken, 0)
                likely = rows.softmax(dim=1, dtype=torch.float32)  # serves the total and the gradient
                log_total = rows.amax(dim=1, keepdim=True).float() - likely.amax(dim=1, keepdim=True).log()
                total += ((log_total - rows.gather(1, targets)) * taken).sum()
                if wanted:
                    likely.scatter_add_(1, targets, torch.full_like(log_total, -1.0))
                    gradient[start : start + ROWS] = likely.mul_(taken)
            ctx.gradient = gradient
            return total

        @staticmethod
        def backward(ctx, scale: Tensor) -> tuple[Tensor, None]:
            gradient, ctx.gradient = ctx.gradient, None  # scaled where it lies: there is no second backward
            return gradient.mul_(scale), None

    return SummedCrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
