"""Small engines of every stage, trained for a few steps; what they hold, read by DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.model import GPT2Config
from tests.small_run import small_plan

T, STEPS, SEED = 32, 3, 3
KEYS = ("weight", "exp_avg", "exp_avg_sq")
CPU = {"device": "cpu", "pin_memory": True}


@dataclass(frozen=True)
class Case:
    """One way to train: what DeepSpeed is told."""

    stage: int
    dtype: str = "fp32"
    sums: str = "fp32"
    zero: dict[str, Any] = field(default_factory=dict)


CASES = {
    "zero0": Case(0),
    "zero1": Case(1),
    "zero2_round_robin": Case(2, zero={"round_robin_gradients": True}),
    "zero2_offload": Case(2, zero={"offload_optimizer": CPU}),
    # Matrices are partitioned, vectors stay whole on every rank.
    "zero3": Case(3, zero={"stage3_param_persistence_threshold": 200}),
    "zero3_offload": Case(
        3,
        zero={
            "sub_group_size": 2000,
            "offload_optimizer": CPU,
            "offload_param": CPU,
            "stage3_param_persistence_threshold": 0,
        },
    ),
    "zero1_bf16": Case(1, "bf16"),
    "zero1_bf16_same": Case(1, "bf16", "same"),
    "zero2_bf16": Case(2, "bf16"),
    "zero3_bf16": Case(3, "bf16", zero={"stage3_param_persistence_threshold": 200}),
}
SOURCES = {
    1: tuple(CASES),
    2: tuple(CASES),
    3: ("zero1_bf16", "zero2_round_robin", "zero3", "zero3_offload"),
}


def plan_of(name: str, ranks: int) -> RunPlan:
    case = CASES[name]
    return small_plan(
        "data",
        Path("runs"),
        "model.n_embd=25",  # no vector's size is a multiple of two, and few are of three
        "model.n_head=1",
        "batch.global_batch_tokens=192",  # 6 sequences
        "batch.micro_batch_size=1",
        "schedule.total_tokens=1920",
        "schedule.decay_tokens=1920",
        f"precision.dtype={case.dtype}",
        f"precision.grad_accum_dtype={case.sums}",
        template=f"zero{case.stage}",
        world_size=ranks,
    )


def model_config() -> GPT2Config:
    plan = plan_of("zero0", 1)
    return GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))


def build(name: str, *, cpu_adam: bool = False, **more: Any) -> Any:
    """A fresh engine of this rank; `more` is for DeepSpeed."""
    from gpt2_ds.parallel.engine import build_engine

    config = plan_of(name, world_size()).deepspeed(cpu_adam=cpu_adam)
    config |= {"tensorboard": {"enabled": False}, **more}
    config["zero_optimization"] |= CASES[name].zero
    return build_engine(model_config(), config, seed=SEED)


def train(engine: Any, first_step: int) -> list[float]:
    """The next steps; the mean loss of each over all ranks. All ranks share the same sequences."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import set_learning_rate

    losses = []
    for step in range(first_step, first_step + STEPS):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 257, (6, T + 1), generator=generator)
        set_learning_rate(engine, 1e-2 / (step + 1))
        mine = tokens[rank() :: world_size()]
        total = torch.zeros((), dtype=torch.float64)
        for sequence in mine.split(1):
            loss = window_loss(engine, sequence)
            engine.backward(loss)
            engine.step()
            total += loss.detach().double() / 6
        dist.all_reduce(total)
        losses.append(float(total))
    return losses


def rows_of(engine: Any) -> dict[int, dict[str, Tensor]]:
    """Stages 1 and 2 by the offsets that the optimizer itself steps by.

    In 0.19.8 safe_get_full_* mistake them with round_robin_gradients, and see no moments of the
    second group at all.
    """
    optimizer, found = engine.optimizer, {}
    for group, row in enumerate(optimizer.single_partition_of_fp32_groups):
        whole = {}
        for key in KEYS:  # in one order on all ranks
            part = (row if key == "weight" else optimizer.state[row][key]).detach()
            parts = [torch.empty_like(part) for _ in range(world_size())]
            dist.all_gather(parts, part)
            whole[key] = torch.cat(parts)
        places = (
            optimizer.round_robin_bit16_groups[group],
            optimizer.round_robin_bit16_offsets[group],
        )
        for p, start in zip(*places, strict=True):
            found[id(p)] = {
                key: values[start : start + p.numel()].view(p.shape)
                for key, values in whole.items()
            }
    return found


def held(engine: Any) -> dict[str, dict[str, Tensor]]:
    """What DeepSpeed says the engine holds, by name and key; "copy" is what forward reads."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    rows = rows_of(engine) if hasattr(engine.optimizer, "round_robin_bit16_groups") else {}
    if hasattr(engine.optimizer, "bf16_groups"):  # else it sees no moments before its first update
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    found: dict[str, dict[str, Tensor]] = {}
    for name, p in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0:
            values = {"weight": p} | {key: engine.optimizer.state[p][key] for key in KEYS[1:]}
        elif rows:
            values = rows[id(p)]
        else:
            values = {"weight": safe_get_full_fp32_param(p)}
            values |= {key: safe_get_full_optimizer_state(p, key) for key in KEYS[1:]}
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            values["copy"] = p
            found[name] = {key: tensor.detach().clone() for key, tensor in values.items()}
    return found


def steps_of_adam(engine: Any) -> set[float]:
    return {float(state["step"]) for state in engine.basic_optimizer.state.values()}


def write_all(folder: Path) -> dict[str, Any]:
    """Train, save and resume, in each case; what was held, and the losses that came after."""
    ranks = world_size()
    known = {}
    for name in SOURCES[ranks]:
        engine = build(name)
        train(engine, 0)
        engine.save_checkpoint(str(folder), tag=f"{name}_{ranks}", save_latest=False)
        before = held(engine)
        assert steps_of_adam(engine) == {STEPS}
        known[f"{name}_{ranks}"] = {"held": before, "losses": train(engine, STEPS)}
        engine.destroy()
    return known
