"""Each rule of the linter finds what it is for, and nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.lint.findings import Finding
from gpt2_ds.config.lint.rules import RULES, lint
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.config.template_file import load_template
from tests.config.small_recipe import load_small
from tests.conftest import REPOSITORY


def findings(
    folder: Path, zero: dict[str, Any], *overrides: str, world_size: int = 1
) -> list[Finding]:
    path = folder / "t.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    loaded = load_small(folder, *overrides)
    found = lint(loaded, load_template(path), "t.json", world_size)
    for finding in found:
        assert finding.fix.endswith((".", "?"))
        assert finding.source
        assert "\n" not in str(finding)
        assert str(finding) == f"{finding.severity}: {finding.fault}"
    return found


def said(*args: Any, **others: Any) -> list[str]:
    return [str(finding) for finding in findings(*args, **others)]


NVME = {"device": "nvme", "nvme_path": "/x"}
CPU = {"device": "cpu"}
RESUMED = (
    "warning: t.json: zero_optimization.offload_optimizer.device: is nvme: this run cannot resume "
    "from its own checkpoints, as DeepSpeed loads neither step counters nor parts below 1 MiB of "
    "them (seen in 0.19.8: loss 4.671 instead of 4.607 two steps later). After a stop, resume with "
    "ds_configs/zero3_offload.json, or set it to cpu now; offload_param may stay on nvme."
)
HPZ = "error: t.json: zero_optimization.zero_hpz_partition_size: "


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits_at_stage_0(tmp_path: Path, dtype: str) -> None:
    assert said(tmp_path, {"stage": 0}, f"precision.dtype={dtype}") == [
        f"error: t.json: zero_optimization.stage: is 0 with precision.dtype {dtype}: DeepSpeed "
        "takes a false Adam step at the start (seen in 0.19.8; DeepSpeed #7839, #8393). Use "
        "--template ds_configs/zero1.json, which costs nothing more."
    ]
    assert said(tmp_path, {"stage": 1}, f"precision.dtype={dtype}") == []
    assert said(tmp_path, {"stage": 0}) == []


def test_a_part_of_the_optimizer_on_the_host(tmp_path: Path) -> None:
    part = {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    assert said(tmp_path, part) == [
        "error: t.json: zero_optimization.offload_optimizer.ratio: is 0.5: DeepSpeed leaves the "
        "part on the device out of its checkpoints (read in 0.19.8). Set it to 1.0, or leave it "
        "out."
    ]
    assert said(tmp_path, {"stage": 3, "offload_optimizer": CPU}) == []


def test_a_disk_below_stage_3(tmp_path: Path) -> None:
    assert said(tmp_path, {"stage": 2, "offload_optimizer": NVME}) == [
        "error: t.json: zero_optimization.offload_optimizer.device: is nvme at stage 2: DeepSpeed "
        "swaps to a disk at stage 3 only (read in 0.19.8). Set stage to 3, or device to cpu."
    ]
    assert said(tmp_path, {"stage": 3, "offload_optimizer": NVME}) == [RESUMED]
    assert said(tmp_path, {"stage": 2, "offload_optimizer": CPU}) == []


def test_too_few_buffers_for_adam(tmp_path: Path) -> None:
    few = {"stage": 3, "offload_optimizer": {**NVME, "buffer_count": 3}}
    assert said(tmp_path, few) == [
        "error: t.json: zero_optimization.offload_optimizer.buffer_count: is 3, and AdamW keeps 4 "
        "tensors a parameter (DeepSpeed's documentation of buffer_count). Set it to 4 or more.",
        RESUMED,
    ]
    on_host = {"stage": 3, "offload_optimizer": {**CPU, "buffer_count": 3}}
    assert said(tmp_path, on_host) == []


def test_a_buffer_smaller_than_the_largest_parameter(tmp_path: Path) -> None:
    """320 rows of 64 in the embedding, against 256 x 64 in the MLP; on three ranks a third."""
    small = {"stage": 3, "offload_param": {**NVME, "buffer_size": 20_479}}
    assert said(tmp_path, small) == [
        "error: t.json: zero_optimization.offload_param.buffer_size: is 20479 elements, and a "
        "rank's part of the largest parameter has 20480 (DeepSpeed #3506). Set it to at least "
        "20480."
    ]
    small["offload_param"]["buffer_size"] = 6_826
    assert "has 6827 (" in said(tmp_path, small, world_size=3)[0]
    small["offload_param"]["buffer_size"] = 6_827
    assert said(tmp_path, small, world_size=3) == []
    wide = ["model.pad_vocab_to_multiple_of=1", "model.n_embd=128"]  # 257 rows; 512 in the MLP
    assert "has 65536 (" in said(tmp_path, small, *wide)[0]
    assert said(tmp_path, small, "tokenizer.name=nowhere") == []  # it is said elsewhere


def test_groups_that_do_not_divide_the_ranks(tmp_path: Path) -> None:
    zero = {"stage": 3, "zero_hpz_partition_size": 8}
    assert said(tmp_path, zero, world_size=12) == [
        f"{HPZ}8 does not divide the 12 ranks (seen in 0.19.8: an AssertionError). Set it to the "
        "GPUs of a node, the same number on all nodes."
    ]
    assert said(tmp_path, zero, world_size=16) == []
    assert said(tmp_path, zero | {"zero_hpz_partition_size": 1}, world_size=12) == []


@pytest.mark.parametrize("world_size, ranks", [(1, "1 rank"), (4, "4 ranks"), (8, "8 ranks")])
def test_one_group_is_of_no_use(tmp_path: Path, world_size: int, ranks: str) -> None:
    zero = {"stage": 3, "zero_hpz_partition_size": 8}
    assert said(tmp_path, zero, world_size=world_size) == [
        f"warning: t.json: zero_optimization.zero_hpz_partition_size: is 8 on {ranks}: one group, "
        "so the second copy of the weights saves no traffic between groups "
        "(https://arxiv.org/abs/2306.10209, section 3.2; DeepSpeedExamples #717). Use --template "
        "ds_configs/zero3.json on one node."
    ]


def test_groups_with_offload(tmp_path: Path) -> None:
    zero: dict[str, Any] = {"stage": 3, "zero_hpz_partition_size": 8, "offload_param": CPU}
    how = "Use --template ds_configs/zero3_offload.json, or zero3_hpz.json without offload."
    expected = (
        f"{HPZ}is 8 with offload_param, which keeps the second copy in host memory too; on 32 GPUs "
        f"the loss then stayed where it was (DeepSpeed #6926, open). {how}"
    )
    assert said(tmp_path, zero, world_size=16) == [expected]
    assert said(tmp_path, zero | {"offload_optimizer": CPU}, world_size=16) == [expected]
    del zero["offload_param"]
    assert said(tmp_path, zero | {"offload_optimizer": CPU}, world_size=16) == [
        "warning: t.json: zero_optimization.zero_hpz_partition_size: is 8 with offload_optimizer: "
        "the second copy takes up device memory that offload frees (DeepSpeed #4851; equal to "
        f"ZeRO-3 on 4 CPU ranks in 0.19.8). {how}"
    ]


def test_quantized_traffic_changes_the_losses(tmp_path: Path) -> None:
    zero = {"stage": 3, "zero_quantized_weights": True, "zero_quantized_gradients": True}
    assert said(tmp_path, zero, world_size=16) == [
        f"warning: t.json: zero_optimization.zero_quantized_{what}: is true: what is sent is "
        f"rounded to {bits} bits, so the losses are no longer those of other templates "
        "(https://arxiv.org/abs/2306.10209; DeepSpeed #4886). Compare a stretch of the curve with "
        "ds_configs/zero3.json first."
        for what, bits in (("weights", 8), ("gradients", 4))
    ]


def test_quantized_weights_on_an_odd_number_of_ranks(tmp_path: Path) -> None:
    zero = {"stage": 3, "zero_quantized_weights": True}
    assert said(tmp_path, zero, world_size=24)[1:] == [
        "warning: t.json: zero_optimization.zero_quantized_weights: is true on 24 ranks: parts of "
        "parameters whose size is not a multiple of 8 are refused by DeepSpeed (DeepSpeed #4386). "
        "Use a power of two of ranks if the start fails."
    ]


def test_quantized_gradients_need_reduce_scatter(tmp_path: Path) -> None:
    zero = {"stage": 3, "zero_quantized_gradients": True, "reduce_scatter": False}
    assert said(tmp_path, zero)[0] == (
        "error: t.json: zero_optimization.zero_quantized_gradients: is true with reduce_scatter "
        "false, which DeepSpeed asserts (read in 0.19.8). Set reduce_scatter to true."
    )


@pytest.mark.parametrize(
    "stage, key, value, read_at",
    [
        (2, "zero_hpz_partition_size", 8, "3"),
        (2, "zero_quantized_weights", True, "3"),
        (1, "sub_group_size", 7, "3"),
        (0, "stage3_prefetch_bucket_size", 7, "3"),
        (3, "round_robin_gradients", True, "1 and 2"),
    ],
)
def test_a_key_of_another_stage(
    tmp_path: Path, stage: int, key: str, value: object, read_at: str
) -> None:
    assert said(tmp_path, {"stage": stage, key: value}, world_size=12) == [
        f"warning: t.json: zero_optimization.{key}: is read at stage {read_at}, and stage is "
        f"{stage} (read in 0.19.8). Remove it."
    ]


def test_a_default_that_another_stage_reads_is_nothing_to_say(tmp_path: Path) -> None:
    zero = {"stage": 2, "zero_hpz_partition_size": 1, "sub_group_size": 1_000_000_000}
    assert said(tmp_path, zero) == []


def test_sums_in_16_bits(tmp_path: Path) -> None:
    half = ["precision.dtype=bf16", "precision.grad_accum_dtype=same"]
    assert said(tmp_path, {"stage": 1}, *half, world_size=2) == [
        "warning: --set: precision.grad_accum_dtype: is same: 4 micro-steps add up in bf16, and "
        "small gradients are lost (DeepSpeed #1800). Set it to fp32 if 4 bytes a parameter fit."
    ]
    assert said(tmp_path, {"stage": 1}, *half, world_size=8) == []


def test_errors_come_first(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        {"stage": 3, "zero_hpz_partition_size": 8, "offload_param": CPU, "reduce_scatter": False}
        | {"zero_quantized_weights": True, "zero_quantized_gradients": True},
        world_size=8,
    )
    kinds = [finding.severity for finding in found]
    assert kinds == ["error"] * 2 + ["warning"] * 3


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ds_configs").glob("*.json")), ids=str)
def test_the_shipped_templates_have_no_error(path: Path) -> None:
    loaded = load_recipe(REPOSITORY / "recipes/gpt2_124m.yaml")
    found = lint(loaded, load_template(path), path.name, 16)
    errors = [finding for finding in found if finding.severity == "error"]
    assert len(errors) == (path.stem == "zero0")
    assert (len(found) > len(errors)) == (path.stem in {"zero3_hpz_quantized", "zero3_nvme"})


def test_every_rule_is_in_the_list() -> None:
    from gpt2_ds.config.lint import rules as module

    rules = {
        value for name, value in vars(module).items() if "Iterator[Finding]" in _returns(value)
    }
    assert rules == set(RULES)


def _returns(value: object) -> str:
    return str(getattr(value, "__annotations__", {}).get("return", ""))
