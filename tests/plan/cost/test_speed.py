"""The time of a step, against what others have published and against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from gpt2_ds.plan.cost.gpus import parse_gpus
from gpt2_ds.plan.cost.run_time import run_seconds, sharing_of, work_of
from gpt2_ds.plan.cost.speed import (
    DEEPSPEED_TOOK,
    DEEPSPEED_TOOK_FAR,
    MEASURED_GPUS,
    MEASURED_KINDS,
    Sharing,
    StepTime,
    Work,
    compute_seconds,
    step_time,
)
from gpt2_ds.plan.flops import flops_per_token
from tests.conftest import REPOSITORY
from tests.plan.cost.published_points import CHENYAOFO, FOUNDRY, MEGATRON, POINTS, Point
from tests.plan.test_states import plan

GPT2 = Work(124_475_904, 12, 768, 1024, 50304)
NODE, NODES = parse_gpus("8xA100-80"), parse_gpus("64xA100-80")


def predicted(point: Point) -> float:
    """Tokens a second of one GPU."""
    time = step_time(
        point.work,
        point.sharing,
        point.cluster,
        micro_batch_size=point.micro_batch_size,
        micro_steps=point.micro_steps,
    )
    return point.micro_batch_size * point.micro_steps * point.work.seq_length / time.total


def error(point: Point) -> float:
    """Of the predicted step time: above 0 where it is too long."""
    return point.tokens_per_second / predicted(point) - 1


def test_published_points() -> None:
    """See the table with `pytest -s`."""
    print("\n| | published | predicted | error |", *map(row, POINTS), sep="\n")
    free = [point for point in POINTS if not point.chosen_from]
    for name, some in {
        "all": free,
        "FSDP, llm-foundry's": [point for point in free if point.address == FOUNDRY],
        "DeepSpeed": [point for point in POINTS if point.address in (CHENYAOFO, MEGATRON)],
        "A100": [point for point in free if "A100" in point.cluster.name],
    }.items():
        print(f"median of {len(some)}, {name}: {median(abs(error(point)) for point in some):.1%}")
    assert len(free) >= 30
    assert len({point.address for point in free}) >= 4
    assert median(abs(error(point)) for point in free) < 0.12
    assert max(abs(error(point)) for point in free if point.address == FOUNDRY) < 0.25
    near = [point for point in free if point.cluster.count <= MEASURED_GPUS]
    assert max(abs(error(point)) for point in near) < 0.5
    assert {point.cluster.name for point in POINTS} == {*MEASURED_KINDS}


@pytest.mark.parametrize(
    "address, count, said", [(CHENYAOFO, 9, DEEPSPEED_TOOK), (MEGATRON, 6, DEEPSPEED_TOOK_FAR)]
)
def test_how_much_longer_deepspeed_took(
    address: str, count: int, said: tuple[float, float]
) -> None:
    """What `fit` says below its estimate."""
    took = [
        predicted(point) / point.tokens_per_second for point in POINTS if point.address == address
    ]
    assert len(took) == count
    assert (round(min(took), 1), round(max(took), 1)) == said
    near = [point.cluster.count <= MEASURED_GPUS for point in POINTS if point.address == address]
    assert near == [address == CHENYAOFO] * count


def test_benchmarks_list_every_point() -> None:
    text = (REPOSITORY / "BENCHMARKS.md").read_text()
    for point in POINTS:
        assert row(point) in text.splitlines(), row(point)


def row(point: Point) -> str:
    """Of BENCHMARKS.md."""
    numbers = f"{point.tokens_per_second:,.0f} | {predicted(point):,.0f}"
    used = " (used)" if point.chosen_from else ""
    return f"| {point.name}{used} | {numbers} | {100 * error(point):+.0f} % |"


def test_published_points_are_typed_right() -> None:
    """llm-foundry's table gives the MFU beside each row: 42.57 % for its first."""
    point, work = POINTS[0], POINTS[0].work
    flops = flops_per_token(work.n_parameters, work.n_layer, work.n_embd, work.seq_length)
    # Its count of attention is the same: 12 L C T.
    assert point.tokens_per_second * flops / 989e12 == pytest.approx(0.4257, rel=0.005)


def test_what_runs_again_takes_longer() -> None:
    again = compute_seconds(replace(GPT2, checkpointing=True), NODE, 16)
    # A third more, but for the head, which is not recomputed.
    assert 1.2 < again / compute_seconds(GPT2, NODE, 16) < 4 / 3


def test_narrow_models_are_less_efficient() -> None:
    reached = []
    for layers, width, n in ((12, 768, 124e6), (24, 2048, 1.3e9), (32, 4096, 6.7e9)):
        work = Work(int(n), layers, width, 2048, 50304)
        flops = flops_per_token(int(n), layers, width, 2048)
        reached.append(8 * 2048 * flops / compute_seconds(work, NODE, 8) / 312e12)
    assert reached == sorted(reached)
    assert reached[0] < 0.55 < reached[2] < 0.7


def test_little_work_costs_its_launches() -> None:
    tiny = Work(1_000_000, 10, 64, 64, 300)
    assert compute_seconds(tiny, NODE, 1) == pytest.approx(10 * 0.3e-3, rel=0.01)


def test_fp32_is_slow() -> None:
    assert compute_seconds(replace(GPT2, number_bytes=4), NODE, 8) > 5 * compute_seconds(
        GPT2, NODE, 8
    )


def waiting(sharing: Sharing, micro_steps: int = 4, nodes: bool = True) -> float:
    """Seconds of communication that nothing hides, of a model whose compute takes no time."""
    return step_time(
        replace(GPT2, n_layer=0, vocab_rows=0),
        sharing,
        NODES if nodes else NODE,
        micro_batch_size=0,
        micro_steps=micro_steps,
    ).communication


def test_what_each_stage_sends() -> None:
    n, eight_machines, one_machine = 124_475_904, 7 / 8 / (200e9 * 0.75), 7 / 8 / (300e9 * 0.75)
    reduced, weights = 4 * n * eight_machines, 2 * n * eight_machines
    assert waiting(Sharing(0)) == pytest.approx(2 * reduced)
    assert waiting(Sharing(1)) == pytest.approx(2 * reduced + weights)
    assert waiting(Sharing(2)) == pytest.approx(4 * reduced + weights)
    assert waiting(Sharing(3)) == pytest.approx(4 * (reduced + 2 * weights))
    inside = 2 * n * one_machine
    assert waiting(Sharing(3, hpz=8)) == pytest.approx(4 * (reduced + weights + inside))
    quantized = Sharing(3, hpz=8, quantized_weights=True, quantized_gradients=True)
    assert waiting(quantized) == pytest.approx(4 * (reduced / 4 + weights / 2 + inside))
    assert waiting(Sharing(3), nodes=False) == pytest.approx(4 * (4 + 4) * n * one_machine)
    alone = step_time(GPT2, Sharing(3), NODE.of(1), micro_batch_size=1, micro_steps=1)
    assert alone.communication == 0


def test_most_of_what_overlaps_is_hidden() -> None:
    def communication(overlap: bool) -> float:
        sharing = Sharing(3, overlap=overlap)
        return step_time(GPT2, sharing, NODES, micro_batch_size=64, micro_steps=1).communication

    assert communication(True) == pytest.approx(0.15 * communication(False))


def test_the_update() -> None:
    def update(sharing: Sharing, gpus: str = "8xA100-80") -> float:
        cluster = parse_gpus(gpus)
        return step_time(GPT2, sharing, cluster, micro_batch_size=1, micro_steps=1).update

    whole = 124_475_904 * 32 / 2039e9
    assert update(Sharing(0)) == pytest.approx(whole)
    assert update(Sharing(1)) == pytest.approx(whole / 8)
    on_host = 124_475_904 / 0.5e9 + 2 * 124_475_904 / 8 / 26e9
    assert update(Sharing(2, optimizer_on="cpu")) == pytest.approx(on_host)
    assert update(Sharing(2, optimizer_on="cpu"), "64xA100-80") == pytest.approx(on_host / 8)
    on_disk = on_host + 28 * 124_475_904 / 6e9
    assert update(Sharing(3, optimizer_on="nvme")) == pytest.approx(on_disk)


def test_what_offload_moves() -> None:
    share = 124_475_904 / 64
    base = waiting(Sharing(3))
    with_weights = waiting(Sharing(3, parameters_on="cpu"))
    assert with_weights - base == pytest.approx(4 * 2 * 2 * share / 26e9)
    with_gradients = waiting(Sharing(3, optimizer_on="cpu"))
    assert with_gradients - base == pytest.approx(4 * 4 * share / 26e9)
    on_disk = waiting(Sharing(3, parameters_on="nvme"))
    assert on_disk - base == pytest.approx(4 * 2 * 2 * 8 * share / 6e9)


def test_a_plan_says_what_it_does() -> None:
    one = plan("zero3_offload", 8, "activation_checkpointing.enabled=true")
    assert work_of(one) == replace(GPT2, checkpointing=True)
    offload = Sharing(3, optimizer_on="cpu", parameters_on="cpu")
    assert sharing_of(one) == offload
    hpz = sharing_of(plan("zero3_hpz_quantized", 16))
    assert (hpz.hpz, hpz.quantized_weights, hpz.quantized_gradients) == (8, True, True)


def test_a_run_is_all_its_steps() -> None:
    one = plan("zero1", 8)
    step, seconds = run_seconds(one, NODE, 16, checkpointing=False)
    assert seconds == pytest.approx(one.derived.steps * step.total)
    assert step.total == StepTime(step.compute, step.communication, step.update).total


def test_the_steps_of_a_ramp_are_counted_apart() -> None:
    ramp = (
        "batch.ramp={start_tokens: 196608, increment_tokens: 327680, length_tokens: 1048576000}",
        "schedule.total_tokens=9999876096",
    )
    one = plan("zero1", 8, *ramp)
    first, full = one.derived.batches.levels
    full_step, seconds = run_seconds(one, NODE, 16, checkpointing=False)
    work, sharing = work_of(one), sharing_of(one)
    small = step_time(work, sharing, NODE, micro_batch_size=8, micro_steps=3)
    # 24 sequences a rank: the recipe's 16 and 24 have 8 in common.
    assert (first.global_batch_size, first.micro_batch_size) == (192, 8)
    small_steps = full.first_step - 1
    rest = one.derived.steps - small_steps
    assert seconds == pytest.approx(small_steps * small.total + rest * full_step.total)
