"""Whether this machine's DeepSpeed computes what plain PyTorch computes (`--numerics`).

A small model is trained for a few steps at every ZeRO stage, in fp32 and bf16, with and without
gradient accumulation, and by PyTorch alone; loss, gradient norm and weights must be the same to
rounding. Offloaded states are updated by PyTorch's AdamW: DeepSpeed's own compiled one takes
minutes to build. fp16 is not tried, nor bf16 where the device has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.derive import derive, model_fields
from gpt2_ds.config.errors import RunError
from gpt2_ds.config.recipe import Dtype
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.config.run_plan import RunPlan, default_run_dir
from gpt2_ds.config.template import for_a_small_model
from gpt2_ds.config.template_file import load_template
from gpt2_ds.evaluation.loss import window_loss
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.parallel.engine import (
    build_engine,
    full_weights,
    gradient_norm,
    parameter_groups,
    reduced_gradient_norm,
    set_learning_rate,
)
from gpt2_ds.parallel.process_group import join, leave_after, local_device, supports
from gpt2_ds.preflight.verdicts import Check, exit_code, failed, ok, table

_REPOSITORY = Path(__file__).resolve().parents[2]
_STEPS, _SEQUENCES, _TOKENS, _VOCABULARY = 6, 4, 64, 257  # sequences of each rank, a step
_LEARNING_RATE, _CLIP = 1e-3, 0.5
_EPS = 1e-3  # Adam then makes no whole step of a gradient that is mostly rounding
_MINUTES = 3.0
_NOT_TRIED = "zero0 in bf16 is not tried: no run starts with it, as `launch/plan.py lint` says."
_FIX = "Train nothing with it: install the versions of requirements.txt, or use another template."

BOUNDS = {"fp32": (1e-5, 1e-4, 1e-4), "bf16": (5e-4, 1e-2, 0.05)}
"""How far loss, gradient norm and weights may be from PyTorch's: see `Course.apart`.

DeepSpeed 0.19.8 on 1, 2 and 4 CPU ranks is at most 1.3e-7, 1.2e-7, 6.2e-7 away in fp32, and 3.4e-5,
5.9e-4, 5.4e-3 in bf16. The faults that tests/preflight/test_numerics.py puts back are away by
9.8e-4, 0.020, 0.38 or more.
"""


@dataclass(frozen=True)
class Case:
    """One way to train.

    Args:
        template: of ds_configs/, without its ending.
        dtype: precision.dtype.
        accumulation: micro-steps of one optimizer step.
    """

    template: str
    dtype: Dtype
    accumulation: int

    def __str__(self) -> str:
        return f"{self.template}, {self.dtype}, accumulation {self.accumulation}"


@dataclass(frozen=True)
class Course:
    """What some steps gave; a number for each.

    Args:
        losses: nats per token, over all ranks.
        norms: of the gradient before clipping.
        moved: how far each weight is from its first value; (n_parameters,).
    """

    losses: list[float]
    norms: list[float]
    moved: list[Tensor]

    def apart(self, other: Course) -> tuple[float, float, float]:
        """The largest difference of each kind, as a share of the other's number.

        The last is the length of the difference between both moves, as a share of the other's.
        """
        moves = [
            float((mine - theirs).norm() / theirs.norm())
            for mine, theirs in zip(self.moved, other.moved, strict=True)
        ]
        return (
            _largest(_shares(self.losses, other.losses)),
            _largest(_shares(self.norms, other.norms)),
            _largest(moves),
        )


def _shares(mine: list[float], theirs: list[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)]


def _largest(shares: list[float]) -> float:
    """The largest; nan and inf must not pass for a small difference."""
    return max(shares) if all(share < float("inf") for share in shares) else float("inf")


CASES = tuple(
    Case(template, dtype, accumulation)
    for template in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    for dtype in ("fp32", "bf16")
    for accumulation in (1, 4)
    if (template, dtype) != ("zero0", "bf16")  # the linter refuses it
)


def check_and_leave() -> NoReturn:
    """Join the other ranks, try every case, print the table, end this process with the code."""
    leave_after(_check)


def _check() -> int:
    join(_MINUTES)
    checks: list[Check] = []
    for case in CASES:
        if not supports(case.dtype):
            continue
        plan = plan_of(case)
        try:
            checks.append(verdict(case, through_deepspeed(plan)))
        except Exception as error:
            # The others may be in the middle of it: with nothing after it, none waits for this one.
            if rank() == 0 and checks:
                print(table(checks), flush=True)
            what = f"{type(error).__name__}: {error}".rstrip(".")
            raise RunError(f"{case}: stopped on rank {rank()} by {what}. {_FIX}") from error
    by_rank_0(lambda: print(f"{table(checks)}\n\n{_NOT_TRIED}", flush=True))
    return exit_code(checks)


def verdict(case: Case, course: Course) -> Check:
    """Hold what DeepSpeed gave in one way against PyTorch's course. Collective."""
    of_ranks = gathered(course.apart(plain_torch(case.dtype)))  # whose weights may have parted
    found = tuple(map(max, zip(*of_ranks, strict=True)))
    words = "loss {:.1e}, gradient norm {:.1e}, weights {:.1e} from plain PyTorch's".format(*found)
    bounds = BOUNDS[case.dtype]
    if all(share <= bound for share, bound in zip(found, bounds, strict=True)):
        return ok(str(case), words)
    allowed = "allowed are {:.0e}, {:.0e}, {:.0e}".format(*bounds)
    return failed(str(case), f"{words}; {allowed}", _FIX)


def plan_of(case: Case) -> RunPlan:
    """A run of two small blocks that trains in this way on all ranks.

    The linter is not asked: that this measure finds what it refuses is tested.
    """
    tokens, template_file = _SEQUENCES * world_size() * _TOKENS, f"ds_configs/{case.template}.json"
    loaded = load_recipe(
        _REPOSITORY / "recipes/quickstart.yaml",
        [
            *(f"model.{key}={value}" for key, value in (("n_layer", 2), ("n_embd", 64))),
            *(f"{key}={_TOKENS}" for key in ("model.n_positions", "data.seq_length")),
            f"batch.global_batch_tokens={tokens}",
            f"batch.micro_batch_size={_SEQUENCES // case.accumulation}",
            f"schedule.total_tokens={_STEPS * tokens}",
            f"schedule.decay_tokens={_STEPS * tokens}",
            "schedule.warmup_tokens=0",
            f"evaluation.tokens={_TOKENS}",
            f"optimizer.lr={_LEARNING_RATE}",
            f"schedule.min_lr={_LEARNING_RATE}",
            f"optimizer.eps={_EPS}",
            f"optimizer.gradient_clipping={_CLIP}",  # bites in every step
            f"precision.dtype={case.dtype}",
        ],
    )
    return RunPlan(
        loaded=loaded,
        template=for_a_small_model(load_template(_REPOSITORY / template_file)),
        template_file=template_file,
        derived=derive(loaded, world_size()),
        run_dir=default_run_dir(loaded),
        last_step=_STEPS,
    )


def _batches() -> Iterator[Tensor]:
    """For each step (sequences of all ranks, tokens + 1): a noisy text with a period."""
    generator, count = torch.Generator().manual_seed(3), _SEQUENCES * world_size()
    for _ in range(_STEPS):
        start = torch.randint(0, _VOCABULARY, (count, 1), generator=generator)
        noise = torch.randint(0, 4, (count, _TOKENS + 1), generator=generator)
        yield (start + 3 * torch.arange(_TOKENS + 1) + noise) % _VOCABULARY


def through_deepspeed(plan: RunPlan, config: dict[str, Any] | None = None) -> Course:
    """Train on all ranks through the engine. Collective.

    Args:
        plan: from `plan_of`.
        config: for `deepspeed.initialize`; the plan's when None.
    """
    config = config or plan.deepspeed(cpu_adam=False)
    fields = model_fields(plan.recipe, _VOCABULARY)
    engine = build_engine(GPT2Config(**fields), without_monitors(config), seed=plan.recipe.seed)
    accumulation = plan.derived.gradient_accumulation_steps
    first, course = _flat(full_weights(engine)), Course([], [], [])
    for tokens in _batches():
        set_learning_rate(engine, _LEARNING_RATE)
        mine, norm = tokens[rank() :: world_size()].to(engine.device), None
        total = torch.zeros((), device=engine.device)
        for micro_batch in torch.split(mine, plan.recipe.batch.micro_batch_size):
            loss = window_loss(engine, micro_batch)
            engine.backward(loss)
            total += loss.detach().float() / accumulation
            norm = reduced_gradient_norm(engine)
            engine.step()
        torch.distributed.all_reduce(total)
        course.losses.append(float(total) / world_size())
        norm = gradient_norm(engine) if norm is None else norm
        course.norms.append(float("nan") if norm is None else norm)
        course.moved.append(_flat(full_weights(engine)) - first)
    engine.destroy()
    return course


def _flat(weights: Iterable[Tensor]) -> Tensor:
    return torch.cat([weight.detach().flatten().double().cpu() for weight in weights])


@cache
def plain_torch(dtype: str) -> Course:
    """The same training by PyTorch alone, all of it on this rank.

    Weights and moments are fp32; below fp32 each step computes with a copy of the weights in
    `dtype`, and its gradients add up in fp32, sequence by sequence.
    """
    plan, device = plan_of(Case("zero0", "fp32", 1)), local_device()
    config = GPT2Config(**model_fields(plan.recipe, _VOCABULARY))
    model = GPT2LMHeadModel(config, seed=plan.recipe.seed).to(device)
    copy = GPT2LMHeadModel(config, seed=plan.recipe.seed).to(device, _TORCH_DTYPES[dtype])
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameter_groups(model),
        lr=_LEARNING_RATE,
        betas=(0.9, 0.95),
        eps=plan.recipe.optimizer.eps,
        weight_decay=0.1,
    )
    first, course = _flat(weights), Course([], [], [])
    for tokens in _batches():
        with torch.no_grad():
            for low, high in zip(copy.parameters(), weights, strict=True):
                low.copy_(high)
        losses = [_add_gradient(copy, weights, text.to(device), len(tokens)) for text in tokens]
        course.losses.append(sum(losses) / len(tokens))
        course.norms.append(float(torch.nn.utils.clip_grad_norm_(weights, _CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        course.moved.append(_flat(weights) - first)
    return course


_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _add_gradient(
    copy: GPT2LMHeadModel, weights: Sequence[torch.nn.Parameter], tokens: Tensor, count: int
) -> float:
    """Add one of `count` sequences' gradient to the fp32 weights'; its loss."""
    logits = copy(tokens[None, :-1]).logits[0]  # (T, V)
    loss = functional.cross_entropy(logits.float(), tokens[1:])
    torch.autograd.backward(loss)
    for low, high in zip(copy.parameters(), weights, strict=True):
        assert low.grad is not None
        added = low.grad.float() / count
        high.grad = added if high.grad is None else high.grad + added
        low.grad = None
    return loss.item()
