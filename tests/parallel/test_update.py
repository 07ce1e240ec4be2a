"""Skipped steps leave no trace, at every ZeRO stage and in each number format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.model import GPT2Config
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import small_plan

TEMPLATES = ("zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
CASES = [
    (template, dtype)
    for template in TEMPLATES
    for dtype in ("fp32", "bf16")
    if not (template == "zero0" and dtype == "bf16")  # refused: see test_deepspeed.py
]
FAULTS = ("loss", "gradient", "told")
ACCUMULATION, GOOD_STEPS = 2, 4
BAD_BEFORE = (0, 2)  # good steps: the first of all, and one with moments behind it


def plan_of(template: str, dtype: str, folder: Path, world_size: int) -> RunPlan:
    file = folder / f"{template}_{rank()}.json"
    if template == "zero2_offload":
        values = json.loads((REPOSITORY / "ds_configs/zero2.json").read_text())
        values["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        file.write_text(json.dumps(values))
    return small_plan(
        folder / "data",
        folder / "run",
        f"precision.dtype={dtype}",
        f"batch.micro_batch_size={8 // world_size // ACCUMULATION}",
        "optimizer.gradient_clipping=0.5",  # bites
        template=file if template == "zero2_offload" else template,
        world_size=world_size,
    )


def tensors_in(value: Any, path: str = "") -> dict[str, Tensor]:
    """Copies of all tensors and numbers of a nested state, by where they are."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {path: torch.tensor(value, dtype=torch.float64)}
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    return {k: v for key, part in items for k, v in tensors_in(part, f"{path}/{key}").items()}


def state_of(engine: Any) -> dict[str, Tensor]:
    """All that an update changes: weights as the forward sees them, their parts, the optimizer."""
    # At stage 3 this rank's part: whole ones come and go with the forward that needs them.
    weights = {
        name: (p.ds_tensor if hasattr(p, "ds_tensor") else p).data
        for name, p in engine.module.named_parameters()
    }
    base = engine.basic_optimizer
    by_number = {
        i: base.state[p]
        for i, p in enumerate(p for group in base.param_groups for p in group["params"])
        if p in base.state
    }
    masters = [p.data for group in base.param_groups for p in group["params"]]
    rates = [group["lr"] for group in base.param_groups]
    return tensors_in([weights, by_number, masters, rates])


def take_step(engine: Any, tokens: Tensor, fault: str | None) -> tuple[float, Any]:
    """One optimizer step of this rank; `fault` strikes on the last rank, in its last micro-step."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.update import apply_update

    struck = rank() == torch.distributed.get_world_size() - 1
    total = 0.0
    micro_batches = tokens.chunk(ACCUMULATION)
    for i, micro_batch in enumerate(micro_batches):
        last = i == ACCUMULATION - 1
        weight = engine.module.transformer.h[1].mlp.c_fc.weight
        hook = None
        if fault == "gradient" and struck and last:

            def spoil(gradient: Tensor) -> Tensor:
                spoiled = gradient.clone()
                spoiled.view(-1)[3] = math.inf
                return spoiled

            hook = weight.register_hook(spoil)
        loss = window_loss(engine, micro_batch)
        if fault == "loss" and struck and last:
            loss = loss * math.nan
        engine.backward(loss)
        total += float(loss.detach())
        if hook is not None:
            hook.remove()
        if not last:
            engine.step()
    update = apply_update(engine, skip=fault in ("loss", "told"))
    return total, update


def one_case(
    template: str, dtype: str, fault: str | None, folder: Path, world_size: int
) -> dict[str, Any]:
    from gpt2_ds.parallel.engine import build_engine, set_learning_rate

    plan = plan_of(template, dtype, folder, world_size)
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
        plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
        seed=1,
    )
    set_learning_rate(engine, 1e-2)
    generator = torch.Generator().manual_seed(5)
    batches = torch.randint(0, 257, (GOOD_STEPS, 8, 33), generator=generator)
    found: dict[str, Any] = {"steps": [], "bad": [], "changed": [], "left": []}
    for step in range(GOOD_STEPS):
        mine = batches[step, rank() :: world_size]
        if fault is not None and step in BAD_BEFORE:
            before = state_of(engine)
            found["bad"].append(take_step(engine, mine.flip(1), fault)[1])
            after = state_of(engine)
            common = before.keys() & after.keys()
            found["changed"].append(
                [name for name in common if not torch.equal(before[name], after[name])]
                + sorted(before.keys() ^ after.keys())
            )
            found["left"] += [
                name
                for name, p in engine.module.named_parameters()
                if p.grad is not None and p.grad.count_nonzero()
            ]
        found["steps"].append(take_step(engine, mine, None))
    found["counted"] = (engine.micro_steps, engine.global_steps)
    found["end"] = state_of(engine)
    found["clean"] = not {"step", "clip_fp32_gradients"} & (
        vars(engine).keys() | vars(engine.optimizer).keys()
    )
    engine.destroy()
    return found


def all_cases(folder: Path, world_size: int) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    return {
        (*case, fault): one_case(*case, fault, folder, world_size)
        for case in CASES
        for fault in (None, *FAULTS)
    }


@pytest.mark.heavy
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.faults), 2])
def test_a_bad_step_leaves_no_trace(world_size: int, tmp_path: Path) -> None:
    for of_rank in run_ranks(all_cases, world_size, tmp_path, tmp_path, world_size):
        for (template, dtype, fault), found in of_rank.items():
            case = (template, dtype, fault)
            never = of_rank[(template, dtype, None)]
            assert found["clean"], case
            assert all(update.applied for _, update in found["steps"]), case
            assert all(math.isfinite(update.gradient_norm) for _, update in found["steps"]), case
            norms = [update.gradient_norm for _, update in never["steps"]]
            assert max(norms) > 0.5 > 0.0 < min(norms)
            if fault is None:
                continue
            assert len(found["bad"]) == 2
            for update in found["bad"]:
                assert not update.applied, case
                assert not update.only_loss_scale, case
                told_at_0 = fault == "told" and template == "zero0"
                assert math.isfinite(update.gradient_norm) == told_at_0, case
            assert found["changed"] == [[], []], case
            assert found["left"] == [], case
            assert found["steps"] == never["steps"], case  # losses and norms, to the last bit
            steps = GOOD_STEPS + len(BAD_BEFORE)
            assert found["counted"] == (steps * ACCUMULATION, steps), case
            assert found["end"].keys() == never["end"].keys()
            for name, value in never["end"].items():
                assert torch.equal(found["end"][name], value), (case, name)


def clipped(folder: Path) -> list[tuple[float, dict[str, Tensor]]]:
    """One step at stage 0 with DeepSpeed's own clipping, then with ours, then with none."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine, set_learning_rate
    from gpt2_ds.parallel.update import apply_update

    found = []
    for ours, limit in ((False, 0.5), (True, 0.5), (True, 0.0)):
        plan = small_plan(
            folder / "data",
            folder / "run",
            f"optimizer.gradient_clipping={limit}",
            "optimizer.eps=1",
        )
        engine = build_engine(
            GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
            plan.deepspeed(cpu_adam=False)
            | {"tensorboard": {"enabled": False}, "gradient_accumulation_steps": 1}
            | {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2},
            seed=1,
        )
        set_learning_rate(engine, 1.0)
        tokens = torch.randint(0, 257, (2, 33), generator=torch.Generator().manual_seed(5))
        engine.backward(window_loss(engine, tokens))
        norm = 0.0
        if ours:
            norm = apply_update(engine, skip=False).gradient_norm
        else:
            engine.step()
        found.append((norm, {n: p.detach().clone() for n, p in engine.module.named_parameters()}))
        engine.destroy()
    return found


@pytest.mark.heavy
def test_stage_0_is_clipped_as_deepspeed_clips_it(tmp_path: Path) -> None:
    (theirs, ours, free) = run_ranks(clipped, 1, tmp_path, tmp_path)[0]
    assert ours[0] == free[0] > 0.5
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-7)
    name = "transformer.wte.weight"
    assert not torch.allclose(ours[1][name], free[1][name], rtol=1e-4, atol=1e-6)


def as_if_fp16(folder: Path) -> list[Any]:
    """What becomes of a good step and two bad ones, by an engine that says it trains in fp16."""
    from gpt2_ds.parallel.engine import build_engine

    plan = plan_of("zero1", "fp32", folder, 1)
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
        plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
        seed=1,
    )
    engine.fp16_enabled = lambda: True  # no CPU can
    tokens = torch.randint(0, 257, (8, 33), generator=torch.Generator().manual_seed(5))
    return [take_step(engine, tokens, fault)[1] for fault in (None, "gradient", "loss")]


@pytest.mark.heavy
def test_an_overflow_in_fp16_is_the_loss_scales_business(tmp_path: Path) -> None:
    good, overflow, bad_loss = run_ranks(as_if_fp16, 1, tmp_path, tmp_path)[0]
    assert (good.applied, good.only_loss_scale) == (True, False)
    assert (overflow.applied, overflow.only_loss_scale) == (False, True)
    assert (bad_loss.applied, bad_loss.only_loss_scale) == (False, False)
