"""What a rank waits for the others is not compute time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt2_ds.parallel.compute_time import ComputeTime
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def _compute_seconds() -> list[float]:
    """Rank 1 comes 0.6 s late to each collective: two that wait at once, two in which it waits."""
    from gpt2_ds.hosts.launcher import rank

    own, found = ComputeTime(CPU, 3), []
    for block in (own.alone, own.together):
        with block():
            time.sleep(0.6 * rank())
            dist.all_reduce(torch.ones(1))
            time.sleep(0.6 * rank())
            handle = dist.all_reduce(torch.ones(1), async_op=True)
            assert handle is not None
            handle.wait()
        found.append(own.take())
    dist.barrier()
    return [*found, own.take()]


def test_on_a_cpu_waiting_is_taken_off(tmp_path: Path) -> None:
    zero, one = run_ranks(_compute_seconds, 2, tmp_path)
    assert zero == [pytest.approx(0.0, abs=0.2)] * 2 + [0.0]
    assert one == [pytest.approx(1.2, abs=0.2)] * 2 + [0.0]


class _Event:
    """A device's clock that stands at the number of events recorded so far, in milliseconds."""

    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.done = False

    def record(self) -> None:
        _Event.recorded += 1
        self.at = _Event.recorded

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, end: _Event) -> float:
        assert end.done  # torch raises otherwise
        return 1000.0 * (end.at - self.at)


@pytest.mark.parametrize("stage, seconds", [(0, 2.0), (2, 2.0), (3, 0.0)])
def test_on_a_gpu_only_blocks_without_waiting_count(
    stage: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    own = ComputeTime(torch.device("cuda", 0), stage)
    for _ in range(2):
        with own.alone():
            pass
        with own.together():
            time.sleep(0.01)
    assert own.take() == seconds
    assert own.take() == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_by_a_real_gpu_s_clock() -> None:
    own = ComputeTime(torch.device("cuda", 0), 1)
    matrix = torch.ones(2048, 2048, device="cuda")
    with own.alone():
        time.sleep(0.05)  # the device starves
        for _ in range(10):
            matrix = matrix @ matrix
    torch.cuda.synchronize()
    assert 0.05 < own.take() < 5.0


def _cost() -> float:
    """Seconds that a step with 100 collectives spends on counting: two micro-steps, an update."""
    own, plain, rounds = ComputeTime(CPU, 3), [], 200
    work = dist.all_reduce(torch.ones(1), async_op=True)
    assert work is not None
    work.wait()
    counted = type(work).wait.__closure__[0].cell_contents  # type: ignore[attr-defined]
    best = {}
    for name, wait in (("counted", type(work).wait), ("plain", counted)):
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(100):
                wait(work)
            seconds.append(time.perf_counter() - began)
        best[name] = min(seconds)
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(5):
            with own.alone():
                pass
        own.take()
        plain.append(time.perf_counter() - began)
    return best["counted"] - best["plain"] + min(plain)


@pytest.mark.benchmark
def test_counting_costs_little(tmp_path: Path) -> None:
    (seconds,) = run_ranks(_cost, 1, tmp_path)
    print(f"\ncompute time of a step with 100 collectives: {1e6 * seconds:.0f} us")
    assert seconds < 1e-3
