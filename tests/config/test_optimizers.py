"""The table of optimizers: complete, and asked by all who must know."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest

from gpt2_ds.config import optimizers
from gpt2_ds.config.errors import EXIT_WRONG_INPUT
from gpt2_ds.config.optimizers import OPTIMIZERS, Optimizer, name_of_type, optimizer_named
from gpt2_ds.config.recipe import OptimizerSection, Recipe
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.plan.states import checkpoint_bytes, model_states
from tests.config.small_recipe import only_fault, small_file
from tests.conftest import REPOSITORY

NAME = OptimizerSection.model_fields["name"]
REFUSED = (
    "optimizer.name: lion is not described in gpt2_ds/config/optimizers.py. Add a row for it "
    "there, or use one that has one: adamw, muon."
)


@pytest.fixture
def lion() -> Iterator[None]:
    """The recipe's schema takes a name that the table does not have."""

    def take(annotation: Any) -> None:
        NAME.annotation = annotation
        OptimizerSection.model_rebuild(force=True)
        Recipe.model_rebuild(force=True)

    own = NAME.annotation
    take(Literal["adamw", "muon", "lion"])
    yield
    take(own)


def plan_with(folder: Path, *overrides: str) -> RunPlan:
    return resolve_run(small_file(folder), world_size=1, overrides=overrides)


def with_lion(plan: RunPlan) -> RunPlan:
    """A plan past all checks of its start."""
    optimizer = plan.recipe.optimizer.model_copy(update={"name": "lion"})
    recipe = plan.recipe.model_copy(update={"optimizer": optimizer})
    return replace(plan, loaded=replace(plan.loaded, recipe=recipe))


def test_every_name_of_the_schema_has_a_row() -> None:
    assert set(OPTIMIZERS) == set(get_args(NAME.annotation))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_deepspeeds_types_are_told_apart(name: str) -> None:
    assert name_of_type(OPTIMIZERS[name].deepspeed_type) == name
    assert name_of_type("Lion") == "Lion"


def test_what_is_elastic_keeps_what_can_be_loaded() -> None:
    from gpt2_ds.parallel.states.parameter_layouts import MOMENTS

    for row in OPTIMIZERS.values():
        loadable = [(state.name, state.of, state.as_gradients) for state in row.states] == [
            (name, "all", False) for name in MOMENTS
        ]
        assert loadable or not row.elastic, row.title


def test_torch_has_each_twin() -> None:
    import torch

    twins = {name: row.torch_class for name, row in OPTIMIZERS.items() if row.torch_class}
    assert twins == {"adamw": "AdamW"}
    assert all(hasattr(torch.optim, twin) for twin in twins.values())


def test_the_widest_parameter_counts() -> None:
    assert optimizer_named("adamw").tensors_per_parameter == 4
    assert optimizer_named("muon").tensors_per_parameter == 4  # those that AdamW updates
    one = replace(optimizer_named("muon"), states=(optimizers.State("momentum_buffer"),))
    assert one.tensors_per_parameter == 3


def test_a_start_with_an_optimizer_that_nobody_described(lion: None, tmp_path: Path) -> None:
    for template in ("zero0", "zero3_nvme"):
        call = lambda: plan_with(  # noqa: E731
            tmp_path,
            "optimizer.name=lion",
            f"template={REPOSITORY}/ds_configs/{template}.json",  # noqa: B023
        )
        assert only_fault(call) == REFUSED


def test_the_linter_says_so_too(
    lion: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.plan.test_lint import run

    words = ("--recipe", str(small_file(tmp_path)), "--set", "optimizer.name=lion")
    assert run(*words) == EXIT_WRONG_INPUT
    assert capsys.readouterr().out == f"error: {REFUSED}\n"


def _restore(plan: RunPlan) -> object:
    from gpt2_ds.checkpoint import restore
    from gpt2_ds.files.heartbeat import UNHEARD

    manifest: Any = SimpleNamespace(world_size=1, zero_stage=0, layout="")
    engine: Any = SimpleNamespace(load_checkpoint=lambda *args, **kwargs: ("x", None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "layout_of", lambda plan, engine: "")
        restore._load(plan, engine, Path("step_1"), manifest, UNHEARD)
    return None


def _benchmark(plan: RunPlan) -> object:
    from gpt2_ds.train.benchmark import benchmark

    return benchmark([plan], steps=1, warmup_steps=0, plain_torch=True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda plan: plan.deepspeed(cpu_adam=False),
        model_states,
        checkpoint_bytes,
        _restore,
        _benchmark,
    ],
    ids=["deepspeed", "memory", "checkpoint's size", "restore", "benchmark"],
)
def test_nobody_takes_it_for_adamw(ask: Callable[[RunPlan], object], tmp_path: Path) -> None:
    plan = plan_with(tmp_path)
    if ask not in (_restore, _benchmark):
        ask(plan)  # the same with adamw
    assert only_fault(lambda: ask(with_lion(plan))) == REFUSED


def test_a_row_is_all_that_a_run_on_paper_needs(
    lion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Optimizer(
        title="Lion",
        deepspeed_type="Lion",
        params=lambda optimizer, cpu_adam: {"lr": optimizer.lr, "betas": optimizer.betas},
        states=(optimizers.State("exp_avg"),),
        elastic=False,
        torch_class=None,
    )
    monkeypatch.setitem(OPTIMIZERS, "lion", row)
    adamw, plan = plan_with(tmp_path), plan_with(tmp_path, "optimizer.name=lion")
    config = plan.deepspeed(cpu_adam=False)
    assert config["optimizer"] == {"type": "Lion", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}}
    n = plan.derived.n_parameters
    assert checkpoint_bytes(adamw) - checkpoint_bytes(plan) == 4 * n  # one moment, not two
    less = model_states(adamw).optimizer.device_bytes - model_states(plan).optimizer.device_bytes
    assert less == 4 * n


def test_nobody_else_asks_for_a_name() -> None:
    """A guard on a name is a branch into which the next optimizer falls unseen."""
    schema, rule = "config/recipe.py", "config/lint/muon.py"
    found = {
        f"{path.relative_to(REPOSITORY / 'gpt2_ds')}:{node.lineno}"
        for path in (REPOSITORY / "gpt2_ds").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        and {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        & {*OPTIMIZERS, "AdamW"}
    }
    assert {line for line in found if line.rpartition(":")[0] not in (schema, rule)} == set()
