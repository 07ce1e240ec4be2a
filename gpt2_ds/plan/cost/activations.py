"""What forward keeps for backward, and what the widest moment of both needs: closed forms."""

from __future__ import annotations

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.states import FP32_BYTES, number_bytes

_BLOCK_WIDTHS = 16
"""Widths that a block keeps a token: both LayerNorms' inputs (2) and outputs (2), q, k and v (3),
what attention gives (1), the MLP's inner ones before and after GELU (4 and 4)."""

_BACKWARD_WIDTHS = 10
"""Widths of gradients that live at one time in a block's backward: both inner ones of the MLP (8),
the residual stream's and the one that is added to it (2)."""

_LOGIT_BYTES = 3 * FP32_BYTES
"""A logit's at the loss's widest moment, in backward: log-softmax, its gradient and the next."""


def kept_bytes(plan: RunPlan, micro_batch_size: int, *, checkpointing: bool) -> int:
    """What one forward pass keeps for backward on one rank, the loss's logits left out.

    Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198, section 4.1) count 34 + 5 H T / C
    bytes a token and width. Here attention is fused and keeps no T x T, dropout keeps a byte where
    there is any, and GELU's input and output are both kept, which gives 2 x 16. With checkpointing
    each block keeps its input.
    """
    block = checkpointed_block_bytes(plan, micro_batch_size)
    if not checkpointing:
        block = block_bytes(plan, micro_batch_size)
    model = plan.recipe.model
    unit = _unit_bytes(plan, micro_batch_size)
    rows = micro_batch_size * plan.recipe.data.seq_length
    embedded = rows * model.n_embd if model.embd_pdrop else 0
    mask = rows * plan.recipe.data.seq_length if plan.recipe.data.document_mask else 0
    # The last LayerNorm's input and output.
    return model.n_layer * block + 2 * unit + embedded + (mask if checkpointing else 0)


def block_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """What the forward pass of one block keeps."""
    model, length = plan.recipe.model, plan.recipe.data.seq_length
    rows = micro_batch_size * length
    statistics = 2 * 2 * rows * FP32_BYTES + rows * model.n_head * FP32_BYTES  # LayerNorms; softmax
    dropped = 2 * rows * model.n_embd if model.resid_pdrop else 0
    # A mask is no longer causal attention's: it becomes T x T numbers, and they are kept.
    mask = rows * length * number_bytes(plan) if plan.recipe.data.document_mask else 0
    return _BLOCK_WIDTHS * _unit_bytes(plan, micro_batch_size) + statistics + dropped + mask


def checkpointed_block_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """What is kept of a block that runs again in backward: its input."""
    return _unit_bytes(plan, micro_batch_size)


def logits_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """The widest moment of the loss: of all logits, or of `model.loss_chunk_size` rows."""
    rows = micro_batch_size * plan.recipe.data.seq_length
    rows = min(rows, plan.recipe.model.loss_chunk_size or rows)
    return rows * plan.derived.padded_vocab_size * _LOGIT_BYTES


def backward_bytes(plan: RunPlan, micro_batch_size: int, *, checkpointing: bool) -> int:
    """What comes and goes in one block's backward; with checkpointing its own activations too."""
    backward = _BACKWARD_WIDTHS * _unit_bytes(plan, micro_batch_size)
    return backward + (block_bytes(plan, micro_batch_size) if checkpointing else 0)


def _unit_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """A (B, T, C) tensor in the recipe's format."""
    recipe = plan.recipe
    return micro_batch_size * recipe.data.seq_length * recipe.model.n_embd * number_bytes(plan)
