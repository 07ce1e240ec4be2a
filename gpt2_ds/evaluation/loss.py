"""The loss of windows of tokens: one definition for training and validation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from gpt2_ds.model import IGNORE_INDEX


def window_loss(
    model: Any, tokens: Tensor, *, document_eot: int | None = None, n_valid: int | None = None
) -> Tensor:
    """Mean loss of predicting every next token of some windows.

    Args:
        model: a `GPT2LMHeadModel`, or a DeepSpeed engine around one.
        tokens: (B, T + 1) int64 on the model's device.
        document_eot: set: attention stays inside a document; each begins with this token.
        n_valid: only the first so many windows count; None: all.

    Returns:
        fp32 scalar, nats per token. Without meaning when n_valid is 0.
    """
    # A copy: with B = 1 the slice is contiguous already, and masking it would write into tokens.
    input_ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()  # (B, T)
    if n_valid is not None and n_valid < len(tokens):
        targets[n_valid:] = IGNORE_INDEX
    document_ids = None if document_eot is None else (input_ids == document_eot).cumsum(1)  # (B, T)
    loss: Tensor = model(
        input_ids, shift_labels=targets, document_ids=document_ids, return_logits=False
    ).loss
    return loss


@torch.no_grad()
def validation_loss(
    model: Any,
    batches: Iterable[tuple[Tensor, int]],
    device: torch.device,
    *,
    document_eot: int | None = None,
) -> float:
    """Mean loss over all windows of all ranks, the same on every rank.

    Every rank must pass the same number of batches: under ZeRO-3 each forward is collective.

    Args:
        model: as in `window_loss`; left in the mode it was in.
        batches: (tokens (B, T + 1), windows that count) of this rank.
        device: of the model.
        document_eot: as in `window_loss`.

    Returns:
        Nats per token.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # sum of windows' losses, number of windows
    for tokens, n_valid in batches:
        loss = window_loss(model, tokens.to(device), document_eot=document_eot, n_valid=n_valid)
        if n_valid:
            total += torch.tensor([float(loss) * n_valid, n_valid], dtype=torch.float64)
    model.train(was_training)
    if torch.distributed.is_initialized():
        total = total.to(device)
        torch.distributed.all_reduce(total)
    return float(total[0] / total[1])
