"""What forward keeps for backward, and what the widest moment of both needs: closed forms."""

from __future__ import annotations

from collections.abc import Iterable

from gpt2_ds.config.model_shape import TrainedTensor
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.plan.states import FP32_BYTES, number_bytes

_LOGIT_BYTES = 3 * FP32_BYTES
"""A logit's at the loss's widest moment, in backward: log-softmax, its gradient and the next."""


def kept_bytes(plan: RunPlan, micro_batch_size: int, *, checkpointing: bool) -> int:
    """What one forward pass keeps for backward on one rank, without the loss's logits.

    Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198, section 4.1) count 34 + 5 H T / C
    bytes a token and width. Here attention is fused and keeps no T x T, dropout keeps a byte where
    there is any, and GELU's input and output are both kept, which gives 2 x 16. With checkpointing
    each block keeps its input.
    """
    model = plan.recipe.model
    block = _activation_bytes(plan, micro_batch_size, model.n_embd)  # its input
    if not checkpointing:
        block = _block_bytes(plan, micro_batch_size)
    outside = _kept_bytes(plan, micro_batch_size, plan.shape.outside)
    rows = micro_batch_size * plan.recipe.data.seq_length
    embedded = rows * model.n_embd if model.embd_pdrop else 0
    mask = rows * plan.recipe.data.seq_length if plan.recipe.data.document_mask else 0
    return model.n_layer * block + outside + embedded + (mask if checkpointing else 0)


def _block_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """What the forward pass of one block keeps."""
    model, length = plan.recipe.model, plan.recipe.data.seq_length
    rows = micro_batch_size * length
    a_token = model.n_head + sum(tensor.statistics for tensor in plan.shape.block)  # softmax's, too
    statistics = rows * a_token * FP32_BYTES
    dropped = 2 * rows * model.n_embd if model.resid_pdrop else 0
    # A mask is no longer causal attention's: it becomes T x T numbers, and they are kept.
    mask = rows * length * number_bytes(plan) if plan.recipe.data.document_mask else 0
    kept = _kept_bytes(plan, micro_batch_size, plan.shape.block)
    return kept + statistics + dropped + mask


def _kept_bytes(plan: RunPlan, micro_batch_size: int, tensors: Iterable[TrainedTensor]) -> int:
    """What the operations of some of the model's tensors keep."""
    return _activation_bytes(plan, micro_batch_size, sum(tensor.kept for tensor in tensors))


def logits_bytes(plan: RunPlan, micro_batch_size: int) -> int:
    """The widest moment of the loss: of all logits, or of `model.loss_chunk_size` rows."""
    rows = micro_batch_size * plan.recipe.data.seq_length
    rows = min(rows, plan.recipe.model.loss_chunk_size or rows)
    return rows * plan.derived.padded_vocab_size * _LOGIT_BYTES


def backward_bytes(plan: RunPlan, micro_batch_size: int, *, checkpointing: bool) -> int:
    """What comes and goes in one block's backward; with checkpointing its own activations too.

    Gradients that live at one time: both inner ones of the MLP, the residual stream's and the one
    that is added to it.
    """
    width = 2 * plan.shape.inner_size + 2 * plan.shape.n_embd
    backward = _activation_bytes(plan, micro_batch_size, width)
    return backward + (_block_bytes(plan, micro_batch_size) if checkpointing else 0)


def _activation_bytes(plan: RunPlan, micro_batch_size: int, width: int) -> int:
    """A (B, T, width) tensor in the recipe's format."""
    return micro_batch_size * plan.recipe.data.seq_length * width * number_bytes(plan)
