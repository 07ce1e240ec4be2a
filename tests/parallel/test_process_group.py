"""Joining and leaving: without a launcher, without a compiler, with and without success."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ranks import free_port

_LAUNCHER = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "PYTHONUNBUFFERED",  # would hide what leave() does not flush
}


_started: list[subprocess.Popen[str]] = []


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh Python with nothing of a launcher but what is given; ends with the test."""
    own = {key: value for key, value in os.environ.items() if key not in _LAUNCHER}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=REPOSITORY,
        env=own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def end_all_started() -> None:
    """Also when a test fails: a process or pipe left open would be the next test's warning."""
    while _started:
        process = _started.pop()
        process.kill()
        if process.stdout and not process.stdout.closed:
            process.communicate()


def start_two(code: str, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",  # as the deepspeed launcher sets it
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        start(code, *arguments, RANK=rank, LOCAL_RANK=rank, **(shared | environment))
        for rank in ("0", "1")
    ]


_ALONE = """
import os, sys
os.sched_getaffinity = lambda process: set(range(8))
import torch
from gpt2_ds.parallel.process_group import device_title, join, leave, peak_memory_bytes
device = join(timeout_minutes=1)
total = torch.ones(1)
torch.distributed.all_reduce(total)
print(device, torch.distributed.get_world_size(), torch.get_num_threads(), float(total))
print(device_title(), peak_memory_bytes() > 10**8, end="")  # leave() flushes it
leave(int(sys.argv[1]))
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "code, environment, threads",
    [
        ("0", {}, 8),
        ("7", {"LOCAL_SIZE": "3"}, 2),  # three ranks on this machine share its 8 cores
        ("75", {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_alone(code: str, environment: dict[str, str], threads: int) -> None:
    process = start(_ALONE, code, **environment)
    out, error = process.communicate(timeout=120)
    assert process.returncode == int(code), error
    assert out == f"cpu 1 {threads} 1.0\ncpu True"


_LEAVE = """
import sys, time
from pathlib import Path
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.process_group import join, leave
join(timeout_minutes=1)
folder, first, codes = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
(folder / f"joined{rank()}").touch()
while str(rank()) != first and not (folder / "go").exists():
    time.sleep(0.02)
leave(int(codes[rank()]))
"""


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + 90
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.heavy
def test_a_failing_rank_waits_for_nobody(tmp_path: Path) -> None:
    zero, one = start_two(_LEAVE, str(tmp_path), "1", "4,3")
    wait_for(tmp_path / "joined0", tmp_path / "joined1")
    assert one.wait(timeout=10) == 3
    assert zero.poll() is None
    (tmp_path / "go").touch()
    zero.communicate(timeout=60)
    one.communicate()
    assert zero.returncode == 4


@pytest.mark.heavy
def test_a_rank_that_succeeded_waits_for_the_others(tmp_path: Path) -> None:
    zero, one = start_two(_LEAVE, str(tmp_path), "0", "0,0")
    wait_for(tmp_path / "joined0", tmp_path / "joined1")
    time.sleep(1.0)
    assert zero.poll() is None
    (tmp_path / "go").touch()
    for rank in (zero, one):
        _, error = rank.communicate(timeout=60)
        assert rank.returncode == 0, error


def test_the_op_to_spare_still_has_its_name() -> None:
    """Renamed or gone, `spare_shm_op` would do nothing, in silence."""
    import deepspeed.ops

    from gpt2_ds.parallel.process_group import spare_shm_op

    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    spare_shm_op()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_without_the_op_nothing_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed.ops

    from gpt2_ds.parallel.process_group import spare_shm_op

    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {"another": True})
    spare_shm_op()
    assert deepspeed.ops.__compatible_ops__ == {"another": True}
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", None)
    spare_shm_op()
    assert deepspeed.ops.__compatible_ops__ is None


_STEP = """
import sys
from pathlib import Path
import torch
from gpt2_ds.config.derive import model_fields
from gpt2_ds.evaluation.loss import window_loss
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.engine import build_engine, set_learning_rate
from gpt2_ds.parallel.process_group import join, leave
from tests.small_run import small_plan
join(timeout_minutes=2)
plan = small_plan(Path("data"), Path(sys.argv[1]), template="zero1", world_size=2)
config = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
engine = build_engine(config, plan.deepspeed(cpu_adam=False), seed=1)
tokens = torch.arange(66).view(2, 33)
losses = []
for step in range(2):
    set_learning_rate(engine, 1e-3)
    for micro_step in range(2):
        loss = window_loss(engine, tokens)
        engine.backward(loss)
        engine.step()
    losses.append(float(loss.detach()))
print(losses[1] < losses[0])
leave(0)
"""


@pytest.mark.heavy
def test_a_step_needs_no_compiler_and_leaves_no_shared_memory(tmp_path: Path) -> None:
    nothing, extensions, port = tmp_path / "bin", tmp_path / "extensions", str(free_port())
    nothing.mkdir()
    extensions.mkdir()
    ranks = start_two(
        _STEP,
        str(tmp_path / "run"),
        PATH=str(nothing),
        CXX="/nonexistent",
        TORCH_EXTENSIONS_DIR=str(extensions),
        MASTER_PORT=port,
    )
    said = [rank.communicate(timeout=180) for rank in ranks]
    for rank, (out, error) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, error
        assert out == "True\n"
    assert not (extensions / "deepspeed_shm_comm").exists()
    # DeepSpeed names its buffers after the port and the rank.
    assert [p.name for p in Path("/dev/shm").iterdir() if port in p.name] == []


_COMPILER = """
import sys
import deepspeed.runtime.compiler as compiler
from gpt2_ds.parallel.process_group import spare_compiler
before = compiler.compile
spare_compiler()
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5 as marked
assert compiler.compile is before
print("torch._inductor" in sys.modules, "torch._dynamo" in sys.modules, type(marked).__name__)
"""


def test_the_compiler_is_not_imported_for_an_optimizer_that_is_not_used() -> None:
    process = start(_COMPILER)
    out, error = process.communicate(timeout=90)
    assert out == "False False function\n", error


_LIMITS = """
import resource, sys
from gpt2_ds.parallel.process_group import _raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
_raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    "now, most, then", [("256", "2000", "2000 2000"), ("500", "500", "500 500")]
)
def test_a_rank_may_open_as_many_files_as_it_is_let(now: str, most: str, then: str) -> None:
    out, error = start(_LIMITS, now, most).communicate(timeout=90)
    assert out.strip() == then, error
