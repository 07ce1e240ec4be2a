"""DeepSpeed's own universal loading takes what is written, at other stages and numbers of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.parallel.states.universal import write_universal
from tests.parallel.states.test_elastic import Known, groups_of, outcome
from tests.parallel.states.trained_checkpoints import CASES, STEPS, build
from tests.ranks import run_ranks

# Source to targets; DeepSpeed mistakes the order with round_robin_gradients where it loads.
LOADED = {
    "zero0_2": ("zero1",),
    "zero1_1": ("zero2_offload",),
    "zero2_round_robin_3": ("zero1",),
    "zero3_offload_3": ("zero1",),
    "zero1_bf16_3": ("zero1_bf16_same", "zero2_bf16"),
    "zero3_bf16_1": ("zero1_bf16",),
}


def load_all(folder: Path, known: dict[str, Known]) -> dict[tuple[str, str], dict[str, Any]]:
    results = {}
    for source, targets in LOADED.items():
        for target in targets:
            engine = build(target, checkpoint={"load_universal": True})
            groups = groups_of(engine)
            engine.load_checkpoint(str(folder / source))
            same = [group[:2] for group in groups_of(engine)] == [group[:2] for group in groups]
            found = outcome(engine, known[source], CASES[target].dtype) | {"groups": same}
            results[source, target] = found
            engine.destroy()
    return results


@pytest.mark.heavy
def test_deepspeed_loads_it(trained: tuple[Path, dict[str, Known]], tmp_path: Path) -> None:
    folder, known = trained
    for source in LOADED:
        (tmp_path / source).mkdir()
        write_universal(folder / source, tmp_path / source / "step_3")
        written = {path.name for path in (tmp_path / source).iterdir()}
        assert written == {"step_3", "latest_universal"}  # nothing half written is left
    results = run_ranks(load_all, 2, tmp_path, tmp_path, known)
    for result in results:
        for case, found in result.items():
            assert found["wrong"] == [], case
            assert found["groups"], case
            assert found["steps"] == {STEPS}, case
            assert found["counters"] == (STEPS, 6 * STEPS, 0), case
            rel = 1e-6 if CASES[case[1]].dtype == "fp32" else 5e-4
            assert found["losses"] == pytest.approx(known[case[0]]["losses"], rel=rel), case


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_universal(tmp_path / "step_3", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: there already. Name another folder, or remove this one."
    )
