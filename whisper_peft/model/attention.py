"""Attention by plain matrix products, for short windows on a CPU in bf16.

There, torch's fused kernel takes twice the time of a product, a softmax and another product; its backward takes three
times, and one query at a time, as in generation, takes seven times. The fused kernel exists so that the scores need not
be stored, and on a short window there are few of them. Everywhere else this is transformers' own `sdpa`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The name under which transformers knows this attention.
NAME = "whisper_peft"
# Up to so many keys, a window of about 10 s, a CPU in bf16 attends by plain products. Above, the scores take more
# memory than the fused kernel's time is worth.
PLAIN_ATTENTION_KEYS = 512


def register_attention() -> None:
    """Make this attention known to transformers, with the same masks as for `sdpa`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attend, with the arguments and the result that transformers asks of an attention function.

    Args:
        module: The attention layer.
        query: Queries (batch, heads, n_queries, head_width).
        key: Keys (batch, heads, n_keys, head_width).
        value: Values (batch, heads, n_keys, head_width).
        attention_mask: True where a query may look, or numbers that are added to the scores; broadcast to (batch,
            heads, n_queries, n_keys). None is no mask.
        scaling: Factor of the scores.
        dropout: Share of the attention weights that is set to zero in training.
        **kwargs: What else transformers hands to its own functions.

    Returns:
        The attended values (batch, n_queries, heads, head_width), and None in place of the weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # In generation there is one query at a time, and its scores are few, whatever the number of keys.
    has_few_scores = key.shape[2] <= PLAIN_ATTENTION_KEYS or query.shape[2] == 1
    if not (has_few_scores and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scaled_query = query if scaling == 1.0 else query * scaling
    # (batch, heads, n_queries, n_keys)
    scores = scaled_query @ key.transpose(2, 3)
    n_queries, n_keys = scores.shape[2:]
    if attention_mask is None and module.is_causal and n_queries > 1:
        attention_mask = torch.ones((n_queries, n_keys), dtype=torch.bool).tril(n_keys - n_queries)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.nn.functional.dropout(scores.softmax(dim=-1, dtype=scores.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None
