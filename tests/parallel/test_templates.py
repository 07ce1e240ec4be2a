"""Every shipped template that can run on a CPU trains as plain torch does.

`test_zero_against_torch.py` has zero0 to zero3 and zero3_offload; here are the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.parallel import test_zero_against_torch as against_torch
from tests.ranks import run_ranks

Case = tuple[str, str, int]
HERE = {"zero2_offload", "zero3_nvme", "zero3_hpz"}
NEED_GPUS = {"zero3_hpz_quantized"}


def changed(folder: Path, name: str, before: str, after: str) -> str:
    """The path, without its ending, of a shipped template with one value changed."""
    text = (REPOSITORY / f"ds_configs/{name}.json").read_text()
    assert before in text
    path = folder / f"{name}.json"
    path.write_text(text.replace(before, after))
    return str(path.with_suffix(""))


def train(world_size: int, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Each case on this rank, and how many ranks share the second copy of its weights."""
    from deepspeed.utils import groups

    results = []
    for case in cases:
        result = against_torch.train_case(case, world_size)
        group = groups._get_zero_param_intra_parallel_group()
        shared = torch.distributed.get_world_size(group) if group is not None else 1
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # DeepSpeed makes it once a process
        results.append(result | {"shared": shared})
    return results


def as_plain_torch(
    results: Sequence[dict[str, Any]], cases: Sequence[Case], reference: tuple[list[float], ...]
) -> None:
    losses, norms = reference
    for case, result in zip(cases, results, strict=True):
        bounds = [1e-5 if case[1] == "fp32" else 0.005 * loss for loss in losses]
        for seen, loss, bound in zip(result["losses"], losses, bounds, strict=True):
            assert abs(seen - loss) <= bound, case
        tolerance = 1e-4 if case[1] == "fp32" else 0.05
        assert result["norms"] == pytest.approx(norms, rel=tolerance), case


@pytest.fixture(scope="module")
def reference() -> tuple[list[float], list[float]]:
    return against_torch.plain_torch()


def test_no_template_is_forgotten() -> None:
    shipped = {path.stem for path in (REPOSITORY / "ds_configs").glob("*.json")}
    assert shipped == set(against_torch.TEMPLATES) | HERE | NEED_GPUS


@pytest.mark.heavy
def test_stage_2_with_an_offloaded_optimizer(
    reference: tuple[list[float], list[float]], tmp_path: Path
) -> None:
    cases = [("zero2_offload", "fp32", 1), ("zero2_offload", "bf16", 4)]
    as_plain_torch(run_ranks(train, 2, tmp_path, 2, cases)[0], cases, reference)


@pytest.mark.heavy
def test_hierarchical_partition(reference: tuple[list[float], list[float]], tmp_path: Path) -> None:
    template = changed(tmp_path, "zero3_hpz", '_size": 8', '_size": 2')
    cases = [(template, "fp32", 1), (template, "bf16", 2)]
    results = run_ranks(train, 4, tmp_path, 4, cases)[0]
    assert [result["shared"] for result in results] == [2, 2]
    as_plain_torch(results, cases, reference)


def train_on_disk(case: Case) -> tuple[dict[str, Any], tuple[list[float], list[float]]]:
    """A wider model, as nothing below 1 MiB goes to the disk; and plain torch with the same."""
    against_torch.SETTINGS.append("model.n_embd=256")
    return against_torch.train_case(case, 2), against_torch.plain_torch()


@pytest.mark.heavy(minutes=4)
@pytest.mark.usefixtures("async_io")
def test_offload_to_a_disk(tmp_path: Path) -> None:
    disk = tmp_path / "nvme"
    disk.mkdir()
    case = (changed(tmp_path, "zero3_nvme", "/local_nvme", str(disk)), "fp32", 2)
    result, wider = run_ranks(train_on_disk, 2, tmp_path, case)[0]
    as_plain_torch([result], [case], wider)
    written = [path.stat().st_size for path in disk.rglob("*.swp")]
    assert sum(written) > 2**20


def what_deepspeed_says(template: str) -> str:
    try:
        against_torch.train_case((template, "fp32", 1), 1)
    except ValueError as error:
        return str(error)
    return "nothing"


@pytest.mark.heavy
def test_quantized_weights_do_not_run_on_a_cpu(tmp_path: Path) -> None:
    """The reason why `check_needs` refuses them; once this fails, they may."""
    (said,) = run_ranks(what_deepspeed_says, 1, tmp_path, "zero3_hpz_quantized")
    assert "not been implemented on CPU" in said
