"""A batch that grows from step to step, at every ZeRO stage, against a plain torch loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2_ds.config.batches import Batches
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.recipe import BatchSection, RampSection
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.parallel.test_zero_against_torch import batches, plan_of
from tests.ranks import run_ranks

# 2, 2, 4 and 6 sequences, then 8. One rank of two takes 1, 2, 3, 4 of them.
RAMP = BatchSection(
    global_batch_tokens=512,
    micro_batch_size=2,
    ramp=RampSection(start_tokens=128, increment_tokens=128, length_tokens=768),
)
STEPS = 10
CASES = [
    ("zero0", "fp32"),
    ("zero1", "fp32"),
    ("zero2", "fp32"),
    ("zero3", "fp32"),
    ("zero3_offload", "fp32"),
    ("zero1", "bf16"),
    ("zero2", "bf16"),
    ("zero3", "bf16"),
]


def plain_torch(sizes: list[int]) -> list[float]:
    """Losses of a loop that uses nothing of this project but the model."""
    recipe = plan_of("zero0", "fp32", 1, 1).recipe
    model = GPT2LMHeadModel(GPT2Config(**model_fields(recipe, 257)), seed=recipe.seed)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for tokens, size in zip(batches(), sizes, strict=False):
        logits = model(tokens[:size, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:size, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


def through_the_engine(world_size: int) -> list[list[float]]:
    """The losses of each case, on this rank of a joined group."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine, set_batch, set_learning_rate

    shared, found = Batches.share(RAMP, 64, world_size), []
    for template, dtype in CASES:
        plan = plan_of(template, dtype, 1, world_size)
        engine = build_engine(
            GPT2Config(**model_fields(plan.recipe, 257)),
            plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
            seed=plan.recipe.seed,
        )
        losses = []
        for step, tokens in enumerate(batches()[:STEPS], start=1):
            batch = shared.of_step(step)
            set_batch(engine, batch)
            set_learning_rate(engine, 1e-3)
            mine = tokens[rank() : batch.global_batch_size : world_size]
            total = torch.zeros(())
            for micro_step in mine.split(batch.micro_batch_size):
                assert len(micro_step) == batch.micro_batch_size
                loss = window_loss(engine, micro_step)
                engine.backward(loss)
                total += loss.detach() / batch.gradient_accumulation_steps
                engine.step()
            assert engine.global_steps == step
            torch.distributed.all_reduce(total)
            losses.append(float(total) / world_size)
        engine.destroy()
        found.append(losses)
    return found


def test_the_sizes_are_those_meant() -> None:
    shared = Batches.share(RAMP, 64, 2)
    shapes = [
        (level.global_batch_size, level.micro_batch_size, level.gradient_accumulation_steps)
        for level in map(shared.of_step, range(1, STEPS + 1))
    ]
    assert shapes == [(2, 1, 1)] * 2 + [(4, 2, 1), (6, 1, 3)] + [(8, 2, 2)] * 6


@pytest.mark.heavy
@pytest.mark.parametrize("world_size", [1, 2])
def test_losses_are_those_of_plain_torch(world_size: int, tmp_path: Path) -> None:
    shared = Batches.share(RAMP, 64, world_size)
    reference = plain_torch([shared.of_step(s).global_batch_size for s in range(1, STEPS + 1)])
    results = run_ranks(through_the_engine, world_size, tmp_path, world_size)[0]
    for case, losses in zip(CASES, results, strict=True):
        tolerance = 1e-5 if case[1] == "fp32" else 0.005 * reference[0]
        assert losses == pytest.approx(reference, abs=tolerance), case
