"""A run is resolved as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.plan.show import describe
from tests.config.small_recipe import faults_of, only_fault, small_file


def plan_with(folder: Path, *overrides: str, max_steps: int | None = None) -> RunPlan:
    return resolve_run(
        small_file(folder),
        world_size=2,
        overrides=overrides,
        run_dir=folder / "run",
        max_steps=max_steps,
    )


def test_the_run_directory_is_named_after_the_recipe(tmp_path: Path) -> None:
    assert resolve_run(small_file(tmp_path), world_size=1).run_dir == Path("runs/small")
    named = resolve_run(small_file(tmp_path), world_size=1, run_dir=tmp_path / "x")
    assert named.run_dir == tmp_path / "x"


@pytest.mark.parametrize("max_steps, last", [(None, 10), (3, 3), (10, 10), (99, 10)])
def test_max_steps(tmp_path: Path, max_steps: int | None, last: int) -> None:
    plan = plan_with(tmp_path, max_steps=max_steps)
    assert plan.last_step == last
    assert plan.derived.steps == 10


@pytest.mark.parametrize("max_steps", [0, -1])
def test_max_steps_below_1(tmp_path: Path, max_steps: int) -> None:
    assert only_fault(lambda: plan_with(tmp_path, max_steps=max_steps)) == (
        f"--max-steps {max_steps}: is below 1. Give at least 1."
    )


@pytest.mark.parametrize("world_size", [0, -2])
def test_a_world_size_below_1(tmp_path: Path, world_size: int) -> None:
    call = lambda: resolve_run(small_file(tmp_path), world_size=world_size)  # noqa: E731
    assert only_fault(call) == f"--expect-ranks {world_size}: is below 1. Give at least 1."


def test_the_template_of_the_command_wins(tmp_path: Path) -> None:
    own = plan_with(tmp_path)
    assert (own.template_file, own.template.zero_optimization.stage) == ("ds_configs/zero0.json", 0)
    given = resolve_run(
        small_file(tmp_path), world_size=1, template_file=Path("ds_configs/zero2.json")
    )
    assert given.template.zero_optimization.stage == 2
    assert given.template_file == "ds_configs/zero2.json"
    by_set = plan_with(tmp_path, "template=ds_configs/zero1.json")
    assert by_set.template.zero_optimization.stage == 1


def test_recipe_template_and_flags_are_refused_together(tmp_path: Path) -> None:
    call = lambda: resolve_run(  # noqa: E731
        small_file(tmp_path),
        world_size=3,
        template_file=tmp_path / "no.json",
        overrides=["model.n_head=5"],
        max_steps=0,
    )
    assert [fault.where for fault in faults_of(call)] == [
        str(tmp_path / "no.json"),
        "--set: model.n_head",
        f"{tmp_path / 'small.yaml'}: batch.global_batch_tokens",
        "--max-steps 0",
    ]


def test_16_bits_at_stage_0_are_refused(tmp_path: Path) -> None:
    said = only_fault(lambda: plan_with(tmp_path, "precision.dtype=bf16"))
    assert said.startswith("ds_configs/zero0.json: zero_optimization.stage: is 0 with precision.")


def test_what_the_linter_calls_of_no_use_is_a_warning(tmp_path: Path) -> None:
    template = Path("ds_configs/zero3_hpz.json")
    plan = resolve_run(small_file(tmp_path), world_size=2, template_file=template)
    (warning,) = plan.warnings
    assert str(warning).startswith(
        f"warning: {template}: zero_optimization.zero_hpz_partition_size: is 8 on 2 ranks: "
    )
    assert describe(plan).endswith(f"\n{warning}")
    assert plan_with(tmp_path).warnings == ()
