"""The output head: hidden states to logits, or straight to the loss without holding all logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2_ds.model.config import GPT2Config

IGNORE_INDEX = -100
"""A target of this value takes no part in the loss, as in torch and transformers."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the targets' negative log-likelihoods, in nats, computed in fp32.

    Args:
        logits: (N, V), any floating dtype.
        targets: (N,) int64; `IGNORE_INDEX` adds 0.
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def mean_over_targets(loss_sum: Tensor, targets: Tensor) -> Tensor:
    """The only place where a loss is divided: by the number of targets that count.

    With none that counts the loss is 0 and so are its gradients: a NaN would destroy the weights.
    """
    return loss_sum / (targets != IGNORE_INDEX).sum().clamp(min=1)


class LMHead(nn.Linear):
    """The last matrix, without bias. Both of its uses are calls of this one module.

    So ZeRO-3 gathers the matrix around every use of it, the recomputed ones in backward included.

    Padding the vocabulary adds rows that stand for no token. A constant bias of -inf makes their
    probability, and with it every gradient through them, exactly 0; the addition is part of the
    matrix product, so it costs nothing.

    Args:
        config: sizes; `loss_chunk_size` is read here.
        tied_weight: (V, C) the token embedding's matrix, or None for one of its own.
    """

    vocab_bias: Tensor | None

    def __init__(self, config: GPT2Config, tied_weight: Tensor | None = None) -> None:
        # Not nn.Linear's: it would allocate and fill a second (V, C) matrix to throw it away.
        nn.Module.__init__(self)
        self.in_features, self.out_features = config.n_embd, config.padded_vocab_size
        self.vocab_size, self.loss_chunk_size = config.vocab_size, config.loss_chunk_size
        if tied_weight is None:
            tied_weight = nn.Parameter(torch.empty(self.out_features, self.in_features))
        self.weight = tied_weight  # (V, C)
        self.register_parameter("bias", None)
        vocab_bias = None
        if self.out_features > self.vocab_size:
            vocab_bias = self.weight.detach().new_zeros(self.out_features)  # (V,)
            vocab_bias[self.vocab_size :] = float("-inf")
        # A buffer follows .to(); not persistent, for it holds nothing that was learned.
        self.register_buffer("vocab_bias", vocab_bias, persistent=False)

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or with `targets` the mean loss.

        Args:
            hidden: (B, T, C), any leading dimensions.
            targets: (B, T) int64, aligned with `hidden`; `IGNORE_INDEX` does not count.

        Returns:
            (B, T, vocab_size) logits, a view without the padding; or the loss, an fp32 scalar in
            nats per target. The loss never holds more than `loss_chunk_size` rows of logits.
        """
        if targets is None:
            logits = self._logits(hidden)  # (B, T, V)
            return logits[..., : self.vocab_size]
        hidden, targets = hidden.reshape(-1, self.in_features), targets.reshape(-1)  # (B*T, C)
        rows = self.loss_chunk_size
        if rows == 0 or rows >= hidden.size(0):
            return mean_over_targets(self._loss_of_rows(hidden, targets), targets)
        blocks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        block_losses = [
            checkpoint(self._loss_of_rows, h, t, use_reentrant=False, preserve_rng_state=False)
            for h, t in blocks
        ]
        return mean_over_targets(torch.stack(block_losses).sum(), targets)

    def _logits(self, hidden: Tensor) -> Tensor:
        # DeepSpeed 0.19.8 casts and moves the parameters, and leaves buffers as they are.
        bias = None if self.vocab_bias is None else self.vocab_bias.to(hidden)
        return F.linear(hidden, self.weight, bias)

    def _loss_of_rows(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self._logits(hidden)  # (rows, V)
        return summed_cross_entropy(logits, targets)
