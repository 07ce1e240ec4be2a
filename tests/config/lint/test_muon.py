"""What the linter says of Muon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.lint.test_rules import CPU, NVME, said

MUON = [
    "optimizer.name=muon",
    "optimizer.muon_lr=0.02",
    "optimizer.muon_momentum=0.95",
    "optimizer.gradient_clipping=0",
]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nothing_is_said_where_it_is_right(tmp_path: Path, stage: int, dtype: str) -> None:
    if stage or dtype == "fp32":
        assert said(tmp_path, {"stage": stage}, *MUON, f"precision.dtype={dtype}") == []
    if stage >= 2:
        assert said(tmp_path, {"stage": stage, "offload_optimizer": CPU}, *MUON) == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping(tmp_path: Path, stage: int) -> None:
    assert said(tmp_path, {"stage": stage}, *MUON, "optimizer.gradient_clipping=0.5") == [
        "error: --set: optimizer.gradient_clipping: is 0.5 with Muon: DeepSpeed clips the update "
        "that Muon made of the gradient, which is as large for any gradient (seen in 0.19.8: loss "
        "5.141 instead of 4.872 after 20 steps; DeepSpeed #8439). Set it to 0, which switches "
        "clipping off."
    ]
    assert said(tmp_path, {"stage": stage}, "optimizer.gradient_clipping=0.5") == []


def test_fp16(tmp_path: Path) -> None:
    assert said(tmp_path, {"stage": 1}, *MUON, "precision.dtype=fp16") == [
        "error: --set: precision.dtype: is fp16, in which Muon was not compared with plain torch "
        "(fp32 and bf16 were, in 0.19.8). Set it to bf16."
    ]
    assert said(tmp_path, {"stage": 1}, "precision.dtype=fp16") == []


def test_a_disk(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": NVME}
    assert said(tmp_path, zero, *MUON)[0] == (
        "error: t.json: zero_optimization.offload_optimizer.device: is nvme, with which Muon was "
        "not compared with plain torch (cpu was, in 0.19.8). Set it to cpu."
    )
    assert not any("Muon" in line for line in said(tmp_path, zero))


@pytest.mark.parametrize("key", ["zero_quantized_weights", "zero_quantized_gradients"])
def test_quantized_traffic(tmp_path: Path, key: str) -> None:
    zero: dict[str, Any] = {"stage": 3, key: True}
    assert said(tmp_path, zero, *MUON)[0] == (
        f"error: t.json: zero_optimization.{key}: is true, with which Muon cannot be trained (read "
        "in 0.19.8: a ValueError). Use --template ds_configs/zero3.json."
    )
    assert not any("Muon" in line for line in said(tmp_path, zero))
