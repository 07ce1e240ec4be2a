"""The checks on two real ranks, of which one is made to differ; all in one start of the two."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.preflight.verdicts import Check, Verdict, ok
from tests.preflight.facts import rank_facts
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_dataset, small_plan

pytestmark = pytest.mark.heavy


def scenarios(data: Path, folder: Path) -> dict[str, Any]:
    """What each check finds; rank 1 is the odd one."""
    import torch

    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.parallel.agreement import gathered
    from gpt2_ds.preflight import every_rank, fast
    from gpt2_ds.preflight import run_folder as run_folder_module
    from gpt2_ds.preflight.clocks import clocks
    from gpt2_ds.preflight.left_locks import extension_locks
    from gpt2_ds.preflight.rank_facts import RankFacts
    from gpt2_ds.preflight.run_folder import left_as_found, run_folder
    from gpt2_ds.preflight.speed import matmul, matmul_flops, network

    run_folder_module._SEEN_WITHIN_SECONDS = 0.3
    odd, cpu = rank() == 1, torch.device("cpu")
    apart = [rank_facts(0, 0, 1), rank_facts(1, 1, 1)]
    together = [rank_facts(0, 0, 2), rank_facts(1, 0, 2)]

    def clock(skew: float) -> Callable[[], float]:
        return lambda: time.time() + (skew if odd else 0.0)

    def sluggish(device: torch.device) -> float:
        speed = matmul_flops(device)
        return speed / 50 if odd else speed

    found: dict[str, Any] = {
        "clocks": clocks(apart, clock(0)),
        "clock behind": clocks(apart, clock(-20)),
        "clock ahead": clocks(apart, clock(4000)),
        "slow matmul": matmul(apart, cpu, sluggish),
        "network": network(together, cpu),
        "network between": network(apart, cpu),
    }
    (folder / "ours").mkdir(exist_ok=True)
    with left_as_found(folder / "new/run"):
        found["shared folder"] = run_folder(folder / "new/run")
    found["own folder"] = run_folder(folder / f"of_rank_{rank()}")
    blocked = folder / ("ours" if not odd else "a_file")
    found["a file"] = run_folder(blocked)
    found["rank 0 cannot"] = run_folder(folder / "a_file/run")
    if odd:
        Path.touch, kept = refuse_to_touch, Path.touch  # type: ignore[method-assign]
    found["read-only on rank 1"] = run_folder(folder / "ours")
    if odd:
        Path.touch = kept  # type: ignore[method-assign]
        Path.stat, kept = refuse_to_touch, Path.stat  # type: ignore[method-assign, assignment]
    with left_as_found(folder / "ours"):
        found["no entry for rank 1"] = run_folder(folder / "ours")
    if odd:
        Path.stat = kept  # type: ignore[method-assign]
    gathered(None)  # rank 0 deletes last
    found["left"] = [p.name for p in folder.rglob(".preflight*")]
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions" if odd else folder / "none")
    found["lock"] = extension_locks()
    with (folder / "extensions/py311_cpu/cpu_adam/lock").open():  # as a builder does
        found["lock of a builder"] = extension_locks()

    plan = small_plan(data, folder / "runs/small", world_size=2)
    fingerprint = small_corpus(data).fingerprint
    began = time.perf_counter()
    fast.fast_checks(plan, fingerprint)
    found["fast seconds"] = time.perf_counter() - began
    gathered(None)
    found["fast run directory"] = sorted(p.name for p in plan.run_dir.iterdir())
    checks, found["together"] = every_rank.check_ranks(plan, cpu, fingerprint, ())
    found["all"] = [(check.name, check.verdict) for check in checks]
    found["refused"] = refused(lambda: fast.fast_checks(plan, "other" if odd else fingerprint))
    other = replace(plan, run_dir=folder / f"of_rank_{rank()}_too")
    here = RankFacts.here

    def of_another(*args: Any) -> RankFacts:
        facts = here(*args)
        return replace(facts, versions=facts.versions | {"numpy": "1.0"}) if odd else facts

    RankFacts.here = of_another  # type: ignore[method-assign, assignment]
    found["all mistakes"] = refused(lambda: fast.fast_checks(other, fingerprint))
    found["replay"] = refused(lambda: fast.fast_checks(other, fingerprint, writes=False))
    return found


def refuse_to_touch(*args: object, **named: object) -> None:
    raise PermissionError(13, "Permission denied")


def refused(call: Callable[[], None]) -> list[str]:
    from gpt2_ds.config.errors import UserError

    try:
        call()
    except UserError as error:
        return [str(fault) for fault in error.faults]
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    (made / "a_file").touch()
    lock = made / "extensions/py311_cpu/cpu_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    data = small_dataset(folder)
    first, second = run_ranks(scenarios, 2, folder, data, folder)
    for name in first.keys() - {"fast seconds", "own folder", "a file", "all mistakes"}:
        assert first[name] == second[name], name  # all ranks know, so that all end alike
    return dict(first)


def test_clocks(found: dict[str, Any]) -> None:
    assert found["clocks"] == ok("clocks", "at most 1 s apart")
    behind, ahead = found["clock behind"], found["clock ahead"]
    assert behind.verdict is Verdict.WARNING
    assert re.fullmatch(r"host-1 is (19\.\d|20\.0) s behind rank 0's host", behind.found)
    fix = "Set the clocks of all machines by one server: chrony, ntpd or systemd-timesyncd."
    assert behind.fix == ahead.fix == fix
    assert ahead.verdict is Verdict.FAILED
    assert re.fullmatch(r"host-1 is (3999\.\d|4000\.0) s ahead of rank 0's host", ahead.found)


def test_a_slow_device(found: dict[str, Any]) -> None:
    check = found["slow matmul"]
    assert check.verdict is Verdict.WARNING  # a CPU
    assert check.found.startswith("rank 1 on host-1 (device 0) reaches 0.0")
    share = re.search(r"(\d+)% of the median of the others", check.found)
    assert share is not None
    assert int(share[1]) < 80


def test_the_network(found: dict[str, Any]) -> None:
    (inside,) = found["network"]
    assert (inside.name, inside.verdict) == ("all-reduce inside a node", Verdict.OK)
    assert re.fullmatch(r"[\d.e-]+ GB/s, \d+ microseconds", inside.found)
    (between,) = found["network between"]  # one rank a node has nobody inside
    assert between.name == "all-reduce between nodes"
    assert between.found.endswith(" microseconds on 2 nodes")


FIX = "Put it on a disk that all nodes share: --run-dir."


def run_directory(check: Check) -> tuple[Verdict, str, str]:
    _, _, found = check.found.partition(": ")
    return check.verdict, re.sub(r" on [^ ]+", " on HOST", found), check.fix


def test_the_run_directory(found: dict[str, Any], folder: Path) -> None:
    where = f"{folder}/new/run"
    good = ok("run directory", f"{where}: all ranks see it and can write")
    assert found["shared folder"] == good
    assert not (folder / "new").exists()
    assert found["left"] == []
    says = "rank 1 on HOST does not see what rank 0 writes there"
    assert run_directory(found["own folder"]) == (Verdict.FAILED, says, FIX)
    assert run_directory(found["a file"]) == (Verdict.FAILED, says, FIX)
    fix = "Name a folder that you may write to with --run-dir."
    says = "rank 0 cannot write there (Not a directory)"
    assert run_directory(found["rank 0 cannot"]) == (Verdict.FAILED, says, fix)
    says = "rank 1 on HOST cannot write there (Permission denied)"
    assert run_directory(found["read-only on rank 1"]) == (Verdict.FAILED, says, FIX)
    says = "rank 1 on HOST cannot look (Permission denied)"
    assert run_directory(found["no entry for rank 1"]) == (Verdict.FAILED, says, FIX)


def test_a_lock_that_a_dead_build_left(found: dict[str, Any], folder: Path) -> None:
    lock, check = folder / "extensions/py311_cpu/cpu_adam/lock", found["lock"]
    assert check.verdict is Verdict.FAILED
    assert check.found.startswith(f"left by builds that died: {lock} on ")
    assert check.fix == f"If nothing compiles there, delete them: rm {lock}."
    assert lock.exists()  # preflight deletes nothing
    assert found["lock of a builder"].verdict is Verdict.OK


def test_the_fast_checks(found: dict[str, Any]) -> None:
    assert found["fast run directory"] == []
    dataset = "dataset: vm (rank 1) has other; vm (rank 0) has "
    (said,) = found["refused"]
    assert re.match(re.sub("vm", "[^ ]+", re.escape(dataset)), said)
    numpy, run_dir = found["all mistakes"]
    assert re.match(r"numpy: [^ ]+ \(rank 1\) has 1\.0; [^ ]+ \(rank 0\) has \d", numpy)
    assert numpy.endswith("on all machines: pip install -r requirements.txt.")
    assert re.search(r"rank 1 on [^ ]+ does not see what rank 0 writes there\.", run_dir)
    assert found["replay"] == [numpy]


@pytest.mark.benchmark
def test_the_fast_checks_are_fast(found: dict[str, Any]) -> None:
    print(f"the fast half: {found['fast seconds']:.2f} s on two ranks")
    assert found["fast seconds"] < 5


def test_all_checks(found: dict[str, Any]) -> None:
    assert found["together"]
    assert [name for name, _ in found["all"]] == [
        *("rendezvous", "Python", "torch", "deepspeed", "numpy", "code", "recipe", "dataset"),
        *("devices", "host memory", "clocks", "cores", "/dev/shm", "inputs", "run directory"),
        *("free disk", "extension locks", "matmul", "all-reduce inside a node"),
    ]
    failed = [name for name, verdict in found["all"] if verdict is Verdict.FAILED]
    assert failed == ["extension locks"]  # the one that this test left behind
