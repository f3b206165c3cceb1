"""Attention on short windows on a CPU in bf16: by plain matrix products.

There, torch's fused kernel takes twice the time of a product, a softmax and another product, and its backward three
times (for one query, as in generation, seven); and its reason, not to hold the scores, does not count: they are few.
Everywhere else this is transformers' own `sdpa`. Imported only when a model is loaded.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from whisper_peft.model.devices import PLAIN_ATTENTION_KEYS

NAME = "whisper_peft"


def attention(
    module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, *,
    scaling: float | None = None, dropout: float = 0.0, **kwargs,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Queries, keys and values (batch, heads, length, width) -> (batch, length, heads, width)."""
    short = key.shape[2] <= PLAIN_ATTENTION_KEYS or query.shape[2] == 1  # one query at a time: generation
    plain = short and query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scores = (query if scaling == 1.0 else query * scaling) @ key.transpose(2, 3)
    n_queries, n_keys = scores.shape[2:]
    if attention_mask is None and module.is_causal and n_queries > 1:
        attention_mask = torch.ones((n_queries, n_keys), dtype=torch.bool).tril(n_keys - n_queries)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.nn.functional.dropout(scores.softmax(dim=-1, dtype=scores.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
