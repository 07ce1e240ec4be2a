"""Who may attend to whom, where the plain causal rule does not say it all."""

from __future__ import annotations

import torch
from torch import Tensor


def document_starts(document_ids: Tensor) -> Tensor:
    """Where the document of each position begins.

    Args:
        document_ids: (B, T) a run of equal numbers is one document.

    Returns:
        (B, T) int64 index of the run's first position.

    >>> document_starts(torch.tensor([[7, 7, 3, 3, 3, 7]])).tolist()
    [[0, 0, 2, 2, 2, 5]]
    """
    begins = document_ids.diff(dim=1, prepend=document_ids[:, :1]) != 0  # (B, T)
    index = torch.arange(document_ids.size(1), device=document_ids.device)  # (T,)
    return torch.where(begins, index, 0).cummax(dim=1).values  # (B, T)


def attention_allowed(
    attention_mask: Tensor | None, starts: Tensor | None, past_length: int, input_ids: Tensor
) -> Tensor | None:
    """The mask for scaled_dot_product_attention, or None where none is needed.

    Args:
        attention_mask: (B, T_total) 1 = keep, 0 = padding, or None.
        starts: (B, T) from `document_starts`, or None.
        past_length: positions in the cache; T_total = past_length + T.
        input_ids: (B, T) the new tokens, for their shape and device.

    Returns:
        (B or 1, 1, T, T_total) bool, True = may attend. None means plain causal, or one new
        position that sees all before it: both run on the kernel that needs no mask.

    Raises:
        ValueError: `attention_mask` or `starts` does not have the shape above.
    """
    B, T = input_ids.shape
    total = past_length + T
    if attention_mask is not None and attention_mask.shape != (B, total):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, not {(B, total)}: one value "
            "for each position, the cached ones included."
        )
    if starts is not None and starts.shape != (B, T):
        raise ValueError(
            f"document_ids has shape {tuple(starts.shape)}, not {(B, T)}: one value for each token."
        )
    if attention_mask is None and starts is None and (past_length == 0 or T == 1):
        return None
    key = torch.arange(total, device=input_ids.device)  # (T_total,)
    query = key[past_length:, None]  # (T, 1)
    allowed = (key <= query)[None]  # (1, T, T_total)
    if starts is not None:
        allowed = allowed & (key >= starts[:, :, None])  # (B, T, T_total)
    if attention_mask is not None:
        # Everyone may attend to itself: a padded row with nothing to attend to would be NaN.
        allowed = allowed & ((attention_mask != 0)[:, None, :] | (key == query))
    return allowed[:, None]  # (B or 1, 1, T, T_total)
