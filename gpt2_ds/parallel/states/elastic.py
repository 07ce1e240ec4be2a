"""Resume from a checkpoint at another number of ranks, ZeRO stage or offload, with Adam's state."""

from __future__ import annotations

from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state
from torch import Tensor, nn

from gpt2_ds.config.errors import RunError
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.parallel.engine import whole_shape
from gpt2_ds.parallel.states.parameter_layouts import MOMENTS, Key
from gpt2_ds.parallel.states.parameter_states import ParameterStates

_KEYS: tuple[Key, ...] = ("weight", *MOMENTS)


def load_elastic(
    engine: DeepSpeedEngine, states: ParameterStates, heartbeat: Heartbeat = UNHEARD
) -> None:
    """Put a freshly built engine where the run was that wrote the checkpoint. Collective.

    Weights (the optimizer's fp32 and those in the recipe's format), Adam's moments and step, the
    loss scale and the engine's counters are then those of the checkpoint, bit by bit; learning rate
    and weight decay of the groups stay the engine's own. Each rank reads only what it keeps.

    Args:
        engine: of any stage and number of ranks; `gpt2_ds.parallel.engine.build_engine` made it.
        states: of the checkpoint.
        heartbeat: of the main thread; beats after each parameter.

    Raises:
        RunError: the checkpoint is of another model, or the engine's template offloads in a way
            that cannot be loaded.
    """
    _refuse_offload(engine)
    _refuse_other_model(engine.module, states)
    stage = engine.zero_optimization_stage()
    fill = {0: _fill_replicas, 3: _fill_cut_parameters}.get(stage, _fill_cut_groups)
    with torch.no_grad():
        fill(engine, states, heartbeat)
    if states.loss_scaler is not None and engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(states.loss_scaler)
    for counter, value in states.counters.items():
        setattr(engine, counter, value)


def _fill_replicas(engine: DeepSpeedEngine, states: ParameterStates, heartbeat: Heartbeat) -> None:
    """Stage 0: every rank holds everything."""
    for name, parameter in engine.module.named_parameters():
        kept = _adam_state(engine, parameter, states) | {"weight": parameter}
        for key in _KEYS:
            kept[key].copy_(states.part(name, key, 0, parameter.numel()).view(parameter.shape))
        heartbeat.beat()


def _fill_cut_groups(
    engine: DeepSpeedEngine, states: ParameterStates, heartbeat: Heartbeat
) -> None:
    """Stages 1 and 2: a rank keeps part of the row of each group, which holds some parameters."""
    groups = engine.basic_optimizer.param_groups
    # DeepSpeed's safe_set_full_* mistake the order with round_robin_gradients (seen in 0.19.8).
    for group, shapes in zip(groups, engine._get_zero_param_shapes(), strict=True):
        (row,) = group["params"]
        kept = _adam_state(engine, row, states) | {"weight": row}
        offset = -dist.get_rank() * row.numel()  # of the next parameter in this rank's part
        for name, shape in shapes.items():
            start, stop = max(0, offset), min(offset + shape.numel(), row.numel())
            if start < stop:
                for key in _KEYS:
                    kept[key][start:stop] = states.part(name, key, start - offset, stop - offset)
            offset += shape.numel()
            heartbeat.beat()
    engine.optimizer.update_lp_params()


def _fill_cut_parameters(
    engine: DeepSpeedEngine, states: ParameterStates, heartbeat: Heartbeat
) -> None:
    """Stage 3: a rank keeps an equal part of each parameter; the last parts are padded."""
    optimizer = engine.optimizer
    optimizer.checkpoint_event_prologue()
    for row in optimizer.fp32_partitioned_groups_flat:
        _adam_state(engine, row, states)
    for name, parameter in engine.module.named_parameters():
        length, numel = parameter.partition_numel(), whole_shape(parameter).numel()
        start = min(dist.get_rank() * length, numel)
        stop = min(start + length, numel)
        for key in _KEYS:
            part = torch.zeros(length)
            part[: stop - start] = states.part(name, key, start, stop)
            if key == "weight":
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, key)
        heartbeat.beat()
    for sub_group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)  # as after an update
    optimizer.checkpoint_event_epilogue()


def _adam_state(engine: DeepSpeedEngine, tensor: Tensor, states: ParameterStates) -> dict[str, Any]:
    """What the optimizer keeps for one of its tensors, made as its first update would make it.

    The moments are left for the caller to fill.
    """
    optimizer = engine.basic_optimizer
    step = states.step(states.names()[0])  # all parameters are updated together
    state: dict[str, Any] = optimizer.state[tensor]
    for key in MOMENTS:
        state.setdefault(key, torch.zeros_like(tensor))
    if isinstance(optimizer, torch.optim.AdamW):
        device = tensor.device if optimizer.defaults["fused"] else torch.device("cpu")
        state["step"] = torch.tensor(step, dtype=torch.float32, device=device)
    else:
        state["step"] = int(step)  # DeepSpeedCPUAdam counts in Python
    return state


def _refuse_offload(engine: DeepSpeedEngine) -> None:
    zero = engine.config["zero_optimization"]
    for key in ("offload_optimizer", "offload_param"):
        if (zero.get(key) or {}).get("device") == "nvme":
            raise RunError(
                f"zero_optimization.{key}.device: nvme cannot resume from a checkpoint of another "
                "stage or number of ranks. Use a template that offloads to cpu, or those of the "
                "checkpoint."
            )
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio < 1.0 and zero["stage"] == 3:  # the other stages do not read it
        raise RunError(
            f"zero_optimization.offload_optimizer.ratio: {ratio} cannot resume from a checkpoint "
            "of another stage or number of ranks. Use a template with ratio 1."
        )


def _refuse_other_model(model: nn.Module, states: ParameterStates) -> None:
    here = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
    there = {name: states.shape(name) for name in states.names()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            shapes = [tuple(shape) if (shape := of.get(name)) else "none" for of in (here, there)]
            raise RunError(
                f"{name}: the recipe's model has {shapes[0]} of it, the checkpoint {shapes[1]}. "
                "Use the recipe that the checkpoint was written with."
            )
