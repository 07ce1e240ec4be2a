"""What forward keeps, against the tensors that autograd saves on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.plan.cost.activations import backward_bytes, kept_bytes, logits_bytes
from tests.small_run import small_plan

B, T, C = 4, 128, 128


def plan_of(folder: Path, dtype: str, *overrides: str) -> RunPlan:
    sizes = (
        "model.n_layer=3",
        "model.n_head=4",
        f"model.n_embd={C}",
        f"model.n_positions={T}",
        f"data.seq_length={T}",
        "batch.global_batch_tokens=2048",
        "schedule.total_tokens=20480",
        "schedule.warmup_tokens=2048",
        "schedule.decay_tokens=20480",
        "evaluation.tokens=1280",
        f"precision.dtype={dtype}",
    )
    return small_plan(folder, folder, *sizes, *overrides, template="zero1")


def model_of(plan: RunPlan) -> GPT2LMHeadModel:
    dtype = torch.float32 if plan.recipe.precision.dtype == "fp32" else torch.bfloat16
    config = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
    return GPT2LMHeadModel(config, seed=1).to(dtype).train()


def saved_bytes(plan: RunPlan) -> int:
    """Of all storages that backward needs, but for the model's own."""
    model = model_of(plan)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, 257, (B, T))
    documents = torch.zeros_like(tokens) if plan.recipe.data.document_mask else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, shift_labels=tokens, return_logits=False, document_ids=documents)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("setting", ["model.loss_chunk_size=0", "model.loss_chunk_size=64"])
def test_autograd_saves_as_much(
    dtype: str, checkpointing: bool, setting: str, tmp_path: Path
) -> None:
    enabled = f"activation_checkpointing.enabled={str(checkpointing).lower()}"
    plan = plan_of(tmp_path, dtype, setting, enabled)
    # Of the three that the loss's widest moment has, forward leaves one copy of all logits; with
    # a chunk it leaves none.
    chunked = plan.recipe.model.loss_chunk_size
    logits = 0 if chunked else logits_bytes(plan, B) // 3
    kept = kept_bytes(plan, B, checkpointing=checkpointing)
    assert kept + logits == pytest.approx(saved_bytes(plan), rel=0.1)
    assert kept == pytest.approx(saved_bytes(plan) - logits, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_document_mask_is_kept_too(checkpointing: bool, tmp_path: Path) -> None:
    enabled = f"activation_checkpointing.enabled={str(checkpointing).lower()}"
    one = plan_of(tmp_path, "bf16", enabled)
    masked = plan_of(tmp_path, "bf16", enabled, "data.document_mask=true")
    more = kept_bytes(masked, B, checkpointing=checkpointing) - kept_bytes(
        one, B, checkpointing=checkpointing
    )
    assert more == pytest.approx(saved_bytes(masked) - saved_bytes(one), rel=0.1)


def test_the_widest_moment(tmp_path: Path) -> None:
    chunk = "model.loss_chunk_size=8"
    plan = plan_of(tmp_path, "bf16", chunk)
    assert logits_bytes(plan, B) == 8 * 320 * 12
    assert logits_bytes(plan_of(tmp_path, "bf16"), B) == B * T * 320 * 12
    # Small logits: the block's backward is wider. Ten tensors of (B, T, C) in 16 bits.
    assert backward_bytes(plan, B, checkpointing=False) == 10 * B * T * C * 2
    # And with checkpointing the block's own: 16 more, its statistics and softmax sums in fp32.
    own = 16 * B * T * C * 2 + 4 * (4 + 4) * B * T
    assert backward_bytes(plan, B, checkpointing=True) == 10 * B * T * C * 2 + own


def test_dropout_keeps_a_byte(tmp_path: Path) -> None:
    dropped = plan_of(tmp_path, "bf16", "model.resid_pdrop=0.1", "model.embd_pdrop=0.1")
    more = kept_bytes(dropped, B, checkpointing=False) - kept_bytes(
        plan_of(tmp_path, "bf16"), B, checkpointing=False
    )
    assert more == B * T * C * (2 * 3 + 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("vocabulary", [320, 50304])
def test_the_allocators_peak(vocabulary: int, checkpointing: bool, tmp_path: Path) -> None:
    enabled = f"activation_checkpointing.enabled={str(checkpointing).lower()}"
    rows_of_logits = f"model.pad_vocab_to_multiple_of={vocabulary}"
    large = ("model.n_embd=1024", "model.n_head=16", "model.n_layer=12", enabled, rows_of_logits)
    plan = plan_of(tmp_path, "bf16", *large)
    model, rows = model_of(plan).cuda(), 16 * B
    tokens = torch.randint(0, 257, (rows, T), device="cuda")
    model(tokens, shift_labels=tokens, return_logits=False).loss.backward()  # cuBLAS's workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(tokens, shift_labels=tokens, return_logits=False).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    planned = kept_bytes(plan, rows, checkpointing=checkpointing)
    backward = backward_bytes(plan, rows, checkpointing=checkpointing)
    planned += max(backward, logits_bytes(plan, rows))
    assert planned == pytest.approx(peak, rel=0.1)
