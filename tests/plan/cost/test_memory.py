"""The parts of a GPU's memory, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from gpt2_ds.plan.cost.activations import backward_bytes, logits_bytes
from gpt2_ds.plan.cost.gpus import GPUS, parse_gpus
from gpt2_ds.plan.cost.memory import Need, need
from gpt2_ds.plan.printing import GIB
from gpt2_ds.plan.states import model_states
from tests.plan.test_states import plan

N = 124_475_904
WTE = 50304 * 768
NODE = parse_gpus("8xH100-80")


def of(template: str, *overrides: str, ranks: int = 8, checkpointing: bool = False) -> Need:
    cluster = parse_gpus(f"{ranks}xH100-80")
    return need(plan(template, ranks, *overrides), cluster, 4, checkpointing=checkpointing)


@pytest.mark.parametrize("template", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_parts_that_are_always_there(template: str) -> None:
    states, device = model_states(plan(template, 8)), of(template).device
    assert device.parameters == states.parameters.device_bytes
    assert device.gradients == states.gradients.device_bytes
    assert device.optimizer == states.optimizer.device_bytes
    assert device.total == sum(dataclasses.astuple(device))


@pytest.mark.parametrize(
    "template, gathered, buckets",
    [
        # At stage 1 all gradients are reduced after backward: no bucket.
        ("zero1", 0, 0),
        # Two buckets of 50M in 16 bits and one in fp32; more than the embedding in both.
        ("zero2", 0, 50_000_000 * (2 * 2 + 4)),
        # The embedding in 16 bits, in fp32, and once more for its way to the host: less.
        ("zero2_offload", 0, 50_000_000 * (2 * 2 + 4)),
        # All weights (a billion may be live); a bucket in fp32, and the embedding in both.
        ("zero3", 2 * N, 50_000_000 * 4 + WTE * 6),
    ],
)
def test_parts_that_come_and_go(template: str, gathered: int, buckets: int) -> None:
    device = of(template).device
    assert (device.gathered, device.buckets) == (gathered, buckets)


def test_what_stage_3_gathers_has_a_limit() -> None:
    large = ("model.n_embd=4096", "model.n_head=32", "model.n_layer=32")
    assert of("zero3", *large).device.gathered == 2 * 10**9
    assert of("zero3", *large, ranks=1).device.gathered == 0


def test_the_update_may_be_the_widest_moment() -> None:
    small = ("model.loss_chunk_size=1",)
    one = of("zero1", *small, checkpointing=True).device
    # All gradients are flattened in fp32 when the activations are gone.
    assert one.activations + one.logits + one.working == 4 * N
    alone = plan("zero1", 1, *small)  # nothing to all-reduce
    found = of("zero1", *small, ranks=1, checkpointing=True).device
    assert found.logits == logits_bytes(alone, 4)
    assert found.logits + found.working == backward_bytes(alone, 4, checkpointing=True)
    share = of("zero2", *small, ranks=1, checkpointing=True).device
    assert share.activations + share.logits + share.working == 4 * N


def test_logits_may_be_the_widest_moment() -> None:
    whole, chunked = of("zero1").device, of("zero1", "model.loss_chunk_size=64").device
    assert (whole.logits, whole.working) == (4 * 1024 * 50304 * 12, 0)
    assert chunked.logits == 64 * 50304 * 12
    assert chunked.working > 0


def test_a_machine_holds_what_all_its_ranks_offload() -> None:
    states = model_states(plan("zero3_offload", 8)).total
    assert of("zero3_offload").host_bytes == 8 * (states.host_bytes + 4 * GIB)
    assert of("zero3_nvme").disk_bytes == 8 * model_states(plan("zero3_nvme", 8)).total.disk_bytes


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    one, gpu = of("zero1"), GPUS["H100-80"]
    assert one.fits(NODE)
    for name in ("memory_bytes", "node_memory_bytes"):
        size = one.device.total if name == "memory_bytes" else one.host_bytes
        for spare, fits in ((1.05, True), (1.02, False)):
            larger = dataclasses.replace(gpu, **{name: int(size * spare)})
            monkeypatch.setitem(GPUS, "H100-80", larger)
            assert one.fits(NODE) is fits
            assert one.fits_gpu(NODE) is (fits or name == "node_memory_bytes")
        monkeypatch.setitem(GPUS, "H100-80", gpu)
