"""The one place that calls `deepspeed.initialize`."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from gpt2_ds.config.batches import Level
from gpt2_ds.config.model_shape import check_model, is_matrix
from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.muon import keep_momentum, muon_within_blocks, rate_factor
from gpt2_ds.parallel.process_group import local_device


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape before ZeRO-3 partitioned it (its own shape is then empty)."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """What an optimizer gets: matrices, which have its weight decay, and the rest, without any.

    A tied weight is there once.
    """
    parameters = list(model.parameters())
    matrices = [p for p in parameters if is_matrix(whole_shape(p))]
    others = [p for p in parameters if not is_matrix(whole_shape(p))]
    return [
        {"params": matrices, "name": "decay"},
        {"params": others, "name": "no_decay", "weight_decay": 0.0},
    ]


def build_model(config: GPT2Config, deepspeed_config: dict[str, Any], seed: int) -> GPT2LMHeadModel:
    """The model with its first weights: a function of `seed` alone at every ZeRO stage.

    At stage 3 each module is partitioned as soon as it is made, so that no rank ever holds the
    whole model.
    """
    zero3 = deepspeed_config["zero_optimization"]["stage"] == 3
    with (
        local_device(),
        deepspeed.zero.Init(config_dict_or_path=deepspeed_config, enabled=zero3),
    ):
        return GPT2LMHeadModel(config, seed=seed)


def build_engine(
    config: GPT2Config,
    deepspeed_config: dict[str, Any],
    *,
    seed: int,
    compile_model: bool = False,
) -> DeepSpeedEngine:
    """A DeepSpeed engine around a fresh model.

    It has no learning-rate scheduler: `set_learning_rate` comes before each step instead.
    DeepSpeed's own warm-ups run the first two steps at 0 (seen in 0.19.8, upstream #5287), and a
    torch scheduler inside the engine falls behind the tokens when fp16 skips an update.

    Args:
        config: the model.
        deepspeed_config: from `gpt2_ds.config.deepspeed.deepspeed_config`.
        seed: of the weights.
        compile_model: torch.compile it.

    Raises:
        UserError: the model has other tensors than gpt2_ds/config/model_shape.py describes.
    """
    model = build_model(config, deepspeed_config, seed)
    check_model(config.shape, {name: whole_shape(p) for name, p in model.named_parameters()})
    with (
        redirect_stdout(StringIO()),  # its bf16 optimizer prints memory tables on every rank
        muon_within_blocks(deepspeed_config),
    ):
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model),
            config=deepspeed_config,
            dist_init_required=False,
        )
    keep_momentum(engine)
    # The engine's own events say the learning rate against samples, and no loss (0.19.8). The
    # monitor stays usable: this project writes its metrics through it.
    engine.monitor.enabled = False
    if world_size() == 1 and engine.zero_optimization_stage() == 0:
        # It would copy every gradient into a buffer and back, for no other rank.
        engine.enable_backward_allreduce = False
    if compile_model:
        engine.compile()
    return engine


def set_batch(engine: DeepSpeedEngine, batch: Level) -> None:
    """The sizes of the next optimizer step; call it before its first micro-step.

    DeepSpeed's own `set_train_batch_size` (0.19.8) leaves its count of micro-steps as it is, so
    that the next update would come too early or late, and its optimizer's copy of the accumulation
    steps.
    """
    config: Any = engine._config
    config.train_batch_size = batch.global_batch_size
    config.train_micro_batch_size_per_gpu = batch.micro_batch_size
    config.gradient_accumulation_steps = batch.gradient_accumulation_steps
    engine.micro_steps = 0
    if hasattr(engine.optimizer, "gradient_accumulation_steps"):
        engine.optimizer.gradient_accumulation_steps = batch.gradient_accumulation_steps


def set_learning_rate(engine: DeepSpeedEngine, learning_rate: float) -> None:
    """The rate of the next update, for every parameter group; Muon's in proportion to its peak."""
    params = engine.optimizer_params() or {}
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * rate_factor(group, params)


def gradient_norm(engine: DeepSpeedEngine) -> float | None:
    """L2 norm of the last update's gradient before clipping; None where DeepSpeed keeps none.

    ZeRO-0 in fp32 keeps none: see `reduced_gradient_norm`.
    """
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def reduced_gradient_norm(engine: DeepSpeedEngine) -> float | None:
    """At ZeRO-0: L2 norm of the gradients, asked between the last backward and the step."""
    if engine.zero_optimization_stage() != 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def loss_scale(engine: DeepSpeedEngine) -> float | None:
    """The fp16 loss scale; None in other formats."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


def full_weights(engine: DeepSpeedEngine) -> list[torch.Tensor]:
    """The optimizer's weights, whole, in fp32, parameter by parameter; copies. Collective."""
    weights = []
    for parameter in engine.module.parameters():
        held = safe_get_full_fp32_param(parameter)  # None: fp32 at stage 0 has no other weights
        weights.append((parameter if held is None else held).detach().float().clone())
    return weights
