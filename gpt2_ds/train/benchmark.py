"""How fast a recipe steps here, and what the engine costs over plain torch."""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt2_ds.checkpoint.checkpoint import Checkpoints, Progress, RunFacts
from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.optimizers import OPTIMIZERS, optimizer_named
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.evaluation.loss import window_loss
from gpt2_ds.health.health import Health
from gpt2_ds.health.stop_request import StopRequest
from gpt2_ds.health.watchdog import Watchdog
from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.agreement import gathered
from gpt2_ds.parallel.engine import parameter_groups
from gpt2_ds.parallel.process_group import device_title, local_device, peak_memory_bytes
from gpt2_ds.plan.flops import flops_per_token, model_flops_utilization
from gpt2_ds.plan.printing import size
from gpt2_ds.record.ledger import Ledger
from gpt2_ds.record.metrics import Metrics
from gpt2_ds.record.terminal import say
from gpt2_ds.train.loop import take_step
from gpt2_ds.train.ready_run import StepContext
from gpt2_ds.train.run import engine_config, new_engine
from gpt2_ds.train.start.first_checks import check_device
from gpt2_ds.train.start.job_record import start_up_words

PLAIN_TORCH = "plain torch"
TimedStep = Callable[[int], None]
"""Takes one optimizer step, given its number from 0 on."""


@dataclass(frozen=True)
class Timing:
    """One contestant's result.

    Args:
        name: a template's file, or "plain torch".
        step_seconds: of every timed step, on the slowest rank.
    """

    name: str
    step_seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.step_seconds)


class RandomTokens:
    """The same random micro-batches in every step; speed does not depend on what they say."""

    def __init__(self, micro_batches: list[Tensor]) -> None:
        self.micro_batch_size = len(micro_batches[0])
        self._endless = itertools.cycle(micro_batches)

    def __next__(self) -> Tensor:
        """(micro_batch_size, T + 1) int64."""
        return next(self._endless)


def engine_step(
    plan: RunPlan, micro_batches: list[Tensor], watched: tuple[StopRequest, Watchdog]
) -> TimedStep:
    """One optimizer step as the training loop takes it: `take_step`, with all that it watches.

    Args:
        plan: the run; its full batch is measured, not the smaller ones of a ramp.
        micro_batches: of one step.
        watched: signals and ranks, as in a run.
    """
    engine = new_engine(plan, without_monitors(engine_config(plan)))
    nothing_saved = RunFacts(
        data_fingerprint="",
        tokenizer_dir=plan.run_dir,
        skipped_samples=[],
        probe=np.zeros((1, 2), dtype=np.int64),
        probe_loss=lambda: 0.0,
    )
    run = StepContext(
        plan=plan,
        engine=engine,
        loader=RandomTokens(micro_batches),
        metrics=Metrics(plan, engine),
        checkpoints=Checkpoints(plan, engine, nothing_saved),
        health=Health(
            plan, engine, Ledger(plan.run_dir, silent=True), *watched, gathered(platform.node())
        ),
        device=local_device(),
        document_eot=None,
    )
    first_step = plan.derived.batches.levels[-1].first_step

    def step(number: int) -> None:
        done = first_step - 1 + number
        take_step(run, Progress(done, plan.derived.batches.samples_after(done)))

    return step


def plain_torch_step(plan: RunPlan, micro_batches: list[Tensor]) -> TimedStep:
    """The same step of the same model without DeepSpeed: what one would write by hand.

    16-bit recipes run under autocast with fp32 weights. One process only.
    """
    recipe, optimizer_keys = plan.recipe, plan.recipe.optimizer
    device = local_device()
    with device:
        model = GPT2LMHeadModel(
            GPT2Config(**model_fields(recipe, plan.derived.vocab_size)), seed=recipe.seed
        )
    torch_class = optimizer_named(optimizer_keys.name).torch_class
    assert torch_class is not None, "benchmark() refuses it"
    optimizer = getattr(torch.optim, torch_class)(
        parameter_groups(model),
        lr=optimizer_keys.lr,
        betas=(optimizer_keys.betas[0], optimizer_keys.betas[1]),
        eps=optimizer_keys.eps,
        weight_decay=optimizer_keys.weight_decay,
        fused=True,
    )
    forward: Any = torch.compile(model) if recipe.model.compile else model
    half = recipe.precision.dtype != "fp32"

    def step(number: int) -> None:
        for tokens in micro_batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                loss = window_loss(forward, tokens)
            torch.autograd.backward(loss / len(micro_batches))
        if optimizer_keys.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_keys.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    return step


def random_micro_batches(plan: RunPlan) -> list[Tensor]:
    """One step's tokens for this rank."""
    recipe, device = plan.recipe, local_device()
    shape = (recipe.batch.micro_batch_size, recipe.data.seq_length + 1)
    return [
        torch.randint(0, plan.derived.vocab_size, shape, device=device)
        for _ in range(plan.derived.gradient_accumulation_steps)
    ]


def _synchronized_seconds() -> float:
    if local_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(contestants: dict[str, TimedStep], *, steps: int, warmup_steps: int) -> list[Timing]:
    """Time the contestants in turn, one step each, so that a change of the machine affects all.

    Args:
        contestants: name to step.
        steps: timed steps of each.
        warmup_steps: steps of each before the clock runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(warmup_steps + steps):
        for name, step in contestants.items():
            start = _synchronized_seconds()
            step(i)
            elapsed = _synchronized_seconds() - start
            if i == 0 and name == next(iter(contestants)):
                say(start_up_words())
            if i >= warmup_steps:
                seconds[name].append(elapsed)
    slowest = torch.tensor(list(seconds.values()), dtype=torch.float64, device=local_device())
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return [Timing(name, row) for name, row in zip(seconds, slowest.tolist(), strict=True)]


def report(plan: RunPlan, timings: list[Timing]) -> Iterator[str]:
    """The lines of the result: median step, speed, MFU, and the ratio to plain torch."""
    recipe, derived = plan.recipe, plan.derived
    flops = flops_per_token(
        derived.n_parameters, recipe.model.n_layer, recipe.model.n_embd, recipe.data.seq_length
    )
    plain = next((timing.median for timing in timings if timing.name == PLAIN_TORCH), None)
    yield (
        f"{plan.loaded.name}: {derived.n_parameters:,} parameters, {recipe.precision.dtype}, "
        f"{recipe.batch.global_batch_tokens:,} tokens a step, micro-batch "
        f"{recipe.batch.micro_batch_size} x {recipe.data.seq_length}, "
        f"{counted(world_size(), 'rank')}, {device_title()}, torch {torch.__version__}"
    )
    yield f"{'':32} {'ms a step':>10} {'tokens/s':>12} {'MFU':>6} {'over plain torch':>17}"
    for timing in timings:
        speed = recipe.batch.global_batch_tokens / timing.median
        mfu = model_flops_utilization(speed, flops, device_title(), world_size())
        yield (
            f"{timing.name:32} {timing.median * 1000:10.1f} {speed:12,.0f} "
            f"{'' if mfu is None else f'{mfu:.3f}':>6} "
            f"{'' if plain is None else f'{timing.median / plain:.3f}':>17}"
        )
    yield f"peak memory of rank 0, all of these together: {size(peak_memory_bytes())}"


def benchmark(
    plans: list[RunPlan], *, steps: int, warmup_steps: int, plain_torch: bool
) -> list[Timing]:
    """Measure one recipe under several templates, and print the result on rank 0.

    Args:
        plans: the same recipe, one plan a template.
        steps: timed steps of each.
        warmup_steps: steps before the clock runs.
        plain_torch: measure the plain twin too; one process only.

    Raises:
        UserError: this device cannot train in the recipe's number format, or with a template; the
            plain twin is wanted of a recipe whose optimizer torch does not have.
    """
    name = plans[0].recipe.optimizer.name
    if plain_torch and optimizer_named(name).torch_class is None:
        known = ", ".join(row.title for row in OPTIMIZERS.values() if row.torch_class)
        raise user_error("--plain-torch", f"has {known}, and the recipe {name}", "Leave it out.")
    for plan in plans:
        check_device(plan)
    micro_batches = random_micro_batches(plans[0])
    contestants: dict[str, TimedStep] = {}
    if plain_torch:
        contestants[PLAIN_TORCH] = plain_torch_step(plans[0], micro_batches)
    timeout = plans[0].recipe.health.timeout_seconds
    with (
        TemporaryDirectory() as stacks,  # of ranks that hang; each rank has a folder of its own
        StopRequest() as stop,
        Watchdog(Path(stacks), timeout) as watchdog,
    ):
        for plan in plans:
            contestants[plan.template_file] = engine_step(plan, micro_batches, (stop, watchdog))
        timings = measure(contestants, steps=steps, warmup_steps=warmup_steps)
    for line in report(plans[0], timings):
        say(line)
    return timings
