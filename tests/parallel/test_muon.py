"""DeepSpeed's Muon against plain torch, at every ZeRO stage; and what a skipped step leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests import small_run
from tests.parallel import test_update as updates
from tests.parallel import test_zero_against_torch as against_torch
from tests.ranks import run_ranks

Case = tuple[str, str, int]
STEPS, RATIO, MOMENTUM = 8, 10.0, 0.9  # not DeepSpeed's own momentum
MUON = [
    "optimizer.name=muon",
    "optimizer.muon_lr=1e-2",  # RATIO times optimizer.lr
    f"optimizer.muon_momentum={MOMENTUM}",
    "optimizer.gradient_clipping=0",
]
RATES = against_torch.LEARNING_RATES[:STEPS]


def orthogonalized(matrix: Tensor) -> Tensor:
    """Five steps of Newton-Schulz as https://kellerjordan.github.io/posts/muon gives them."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    for _ in range(5):
        square = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        other = b * square + c * square @ square
        x = a * x + (other @ x if x.shape[0] <= x.shape[1] else x @ other)
    return x * math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))


def muon_by_hand(parameters: list[torch.nn.Parameter]) -> Callable[[float], None]:
    """In fp32: the next update at a learning rate."""
    momenta = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def update(rate: float) -> None:
        for p, momentum in zip(parameters, momenta, strict=True):
            assert p.grad is not None
            momentum.mul_(MOMENTUM).add_(p.grad, alpha=1 - MOMENTUM)
            nesterov = (1 - MOMENTUM) * p.grad + MOMENTUM * momentum
            p.mul_(1 - rate * 0.1).sub_(rate * orthogonalized(nesterov))

    return update


def torchs_muon(parameters: list[torch.nn.Parameter]) -> Callable[[float], None]:
    """It orthogonalizes in bf16."""
    muon = torch.optim.Muon(parameters, weight_decay=0.1, momentum=MOMENTUM)

    def update(rate: float) -> None:
        muon.param_groups[0]["lr"] = rate
        muon.step()

    return update


def plain_torch(make_muon: Callable[..., Callable[[float], None]]) -> list[float]:
    """Losses of a loop that uses nothing of this project but the model."""
    recipe = against_torch.plan_of("zero0", "fp32", 1, 1).recipe
    model = GPT2LMHeadModel(GPT2Config(**model_fields(recipe, 257)), seed=recipe.seed)
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": embeddings, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    muon, losses = make_muon(matrices), []
    for tokens, rate in zip(against_torch.batches(), RATES, strict=False):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        muon(RATIO * rate)
        losses.append(loss.item())
    return losses


def test_what_is_done_by_hand_is_torchs_muon() -> None:
    by_hand, torchs = plain_torch(muon_by_hand), plain_torch(torchs_muon)
    assert by_hand == pytest.approx(torchs, rel=2e-4)
    assert by_hand[-1] < by_hand[0] - 0.15


CASES: dict[int, list[Case]] = {
    1: [("zero1", "fp32", 1), ("zero3", "bf16", 4)],
    2: [
        ("zero0", "fp32", 1),
        ("zero1", "bf16", 4),
        ("zero2", "fp32", 4),
        ("zero3", "fp32", 2),
        ("zero2_offload", "bf16", 2),
        ("zero3_offload", "fp32", 2),
    ],
}


def train_all(ranks: int) -> tuple[list[dict[str, Any]], dict[str, bool], int]:
    """Each case on this rank; whether Muon updates each parameter; how much was compiled."""
    from deepspeed.runtime.zero.muon import original_muon
    from torch._dynamo.utils import counters

    from gpt2_ds.parallel.engine import build_engine

    # Where the device has fp16, as newer CPUs have, its own is that (0.19.8): another rounding.
    original_muon.ns_compute_dtype = lambda method="": torch.float32
    against_torch.STEPS, against_torch.LEARNING_RATES = STEPS, RATES
    against_torch.SETTINGS += MUON
    results = [against_torch.train_case(case, ranks) for case in CASES[ranks]]
    plan = against_torch.plan_of("zero3", "fp32", 1, ranks)
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    engine = build_engine(GPT2Config(**model_fields(plan.recipe, 257)), config, seed=1)
    marks = {name: bool(p.use_muon) for name, p in engine.module.named_parameters()}
    return results, marks, counters["stats"]["unique_graphs"]


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_are_those_of_plain_torch(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against_torch, "STEPS", STEPS)  # as the ranks have it: of the tokens' shape
    losses = plain_torch(muon_by_hand)
    results, marks, compiled = run_ranks(train_all, ranks, tmp_path, ranks)[0]
    for case, result in zip(CASES[ranks], results, strict=True):
        tolerance = 2e-6 if case[1] == "fp32" else 1e-3
        apart = [abs(a - b) for a, b in zip(result["losses"], losses, strict=True)]
        print(ranks, *case, f"losses at most {max(apart):.1e} from plain torch's")
        assert max(apart) <= tolerance, case
        assert result["adam"] == "MuonWithAuxAdam"
    assert compiled == 0  # a CPU would need a C++ compiler
    for name, marked in marks.items():
        block, _, leaf = name.rpartition(".")
        assert marked == (".h." in name and leaf == "weight" and ".ln_" not in block), name


SKIPPED = [("zero2", "fp32"), ("zero3", "bf16"), ("zero2_offload", "fp32")]


def with_skipped_steps(folder: Path) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    small_run.SETTINGS += MUON
    clipped = "optimizer.gradient_clipping=0.5"
    plan = updates.small_plan
    updates.small_plan = lambda *words, **more: plan(*(w for w in words if w != clipped), **more)
    return {
        (*case, fault): updates.one_case(*case, fault, folder, 2)
        for case in SKIPPED
        for fault in (None, "gradient", "told")
    }


@pytest.mark.heavy
def test_a_skipped_step_leaves_no_trace_in_the_momentum(tmp_path: Path) -> None:
    """At stage 3 and with offload DeepSpeed 0.19.8 alone would take it in."""
    for of_rank in run_ranks(with_skipped_steps, 2, tmp_path, tmp_path):
        for (template, dtype, fault), found in of_rank.items():
            never = of_rank[(template, dtype, None)]
            applied = [update.applied for update in found["bad"]]
            assert applied == ([] if fault is None else [False, False])
            assert found["steps"] == never["steps"], (template, dtype, fault)
            for name, value in never["end"].items():
                assert torch.equal(found["end"][name], value), (template, dtype, fault, name)
