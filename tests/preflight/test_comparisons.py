"""What differs between ranks is named with its hosts."""

from __future__ import annotations

from dataclasses import replace

from gpt2_ds.plan.states import Memory
from gpt2_ds.preflight.comparisons import (
    cores,
    devices,
    gpus_alike,
    memory,
    one_per_node,
    project_alike,
    shared_memory,
    versions_alike,
    who,
)
from gpt2_ds.preflight.verdicts import Verdict, failed, ok, warning
from tests.preflight.facts import GIB, rank_facts, two_hosts

SMALL = Memory(device_bytes=GIB, host_bytes=0)


def test_the_first_rank_of_each_node() -> None:
    assert [fact.rank for fact in one_per_node(two_hosts())] == [0, 2]
    twins = [replace(fact, host="node") for fact in two_hosts()]
    assert [fact.rank for fact in one_per_node(twins)] == [0, 2]  # two machines of one name
    assert who(twins) == "node (ranks 0, 1), node (ranks 2, 3)"


def test_equal_versions() -> None:
    found = versions_alike(two_hosts())
    assert found == [ok("Python", "3.11.7"), ok("torch", "2.13.0"), ok("numpy", "2.4.6")]


def test_another_version() -> None:
    versions = {"Python": "3.12.0", "torch": "2.12.0", "numpy": "2.4.6"}
    python, torch, numpy = versions_alike(two_hosts(versions=versions))
    others = "host-0 (ranks 0, 1), host-2 (rank 2)"
    assert python == failed(
        "Python",
        f"host-2 (rank 3) has 3.12.0; {others} has 3.11.7",
        "Give all machines the same Python.",
    )
    assert torch == failed(
        "torch",
        f"host-2 (rank 3) has 2.12.0; {others} has 2.13.0",
        "Install one version of torch on all machines: pip install -r requirements.txt.",
    )
    assert numpy.verdict is Verdict.OK


def test_another_nccl() -> None:
    facts = [replace(fact, versions={"NCCL": "2.28.9"}) for fact in two_hosts()]
    (nccl,) = versions_alike([*facts[:3], replace(facts[3], versions={"NCCL": "2.21.5"})])
    assert nccl == failed(
        "NCCL",
        "host-2 (rank 3) has 2.21.5; host-0 (ranks 0, 1), host-2 (rank 2) has 2.28.9",
        "Install torch anew where it differs; see what LD_LIBRARY_PATH and LD_PRELOAD name.",
    )


def test_another_gpu_or_driver_is_a_warning() -> None:
    assert gpus_alike(two_hosts()) == []  # CPUs
    model = "NVIDIA H100 80GB HBM3"
    facts = [
        replace(fact, devices=2, device_model=model, driver="550.54.15") for fact in two_hosts()
    ]
    assert gpus_alike(facts) == [
        ok("GPU model", "NVIDIA H100 80GB HBM3"),
        ok("GPU driver", "550.54.15"),
    ]
    facts[3] = replace(facts[3], device_model="NVIDIA A100-SXM4-80GB", driver="")
    others = "host-0 (ranks 0, 1), host-2 (rank 2)"
    assert gpus_alike(facts) == [
        warning(
            "GPU model",
            f"host-2 (rank 3) has NVIDIA A100-SXM4-80GB; {others} has NVIDIA H100 80GB HBM3",
            "Train without the slower ones: all wait for them in each step.",
        ),
        warning(
            "GPU driver",
            f"host-2 (rank 3) has none that it shows; {others} has 550.54.15",
            "Bring them to one release before you look for a slow or failing machine elsewhere.",
        ),
    ]


def test_of_two_halves_the_one_without_rank_0_is_the_other() -> None:
    facts = two_hosts(versions={"torch": "1"})
    facts = [replace(fact, versions={"torch": "1" if fact.node else "2"}) for fact in facts]
    (torch,) = versions_alike(facts)
    assert torch.found == "host-2 (ranks 2, 3) has 1; host-0 (ranks 0, 1) has 2"


def test_another_state_of_the_project() -> None:
    assert [check.verdict for check in project_alike(two_hosts())] == [Verdict.OK] * 3
    names = {
        "commit": "a" * 40 + "+changes",
        "sources": "9" * 64,
        "recipe": "b" * 64,
        "data": "1" * 64,
    }
    code, recipe, data = project_alike(two_hosts(**names))
    others = "host-0 (ranks 0, 1), host-2 (rank 2)"
    assert code == failed(
        "code",
        f"host-2 (rank 3) has commit aaaaaaaaaaaa with changes, code 99999999; {others} has commit "
        "cccccccccccc, code dddddddd",
        "Bring all machines to one state: git pull, or one shared disk.",
    )
    assert recipe == failed(
        "recipe",
        f"host-2 (rank 3) has bbbbbbbbbbbb; {others} has eeeeeeeeeeee",
        "Give all machines the same files of recipes/ and ds_configs/.",
    )
    assert data == failed(
        "dataset",
        f"host-2 (rank 3) has 111111111111; {others} has ffffffffffff",
        "Copy one dataset to every machine, or put it on a disk that all share.",
    )


def test_other_code_under_one_commit() -> None:
    code, *_ = project_alike(two_hosts(sources="9" * 64))
    assert code.verdict is Verdict.FAILED
    assert "host-2 (rank 3) has commit cccccccccccc, code 99999999; " in code.found


def test_where_git_does_not_answer_the_files_decide() -> None:
    code, *_ = project_alike(two_hosts(commit="unknown"))
    assert code.verdict is Verdict.OK
    assert code.found == "commit cccccccccccc, code dddddddd"


def test_a_dataset_that_one_rank_lacks_or_all() -> None:
    assert "host-2 (rank 3) has none; " in project_alike(two_hosts(data=""))[-1].found
    nobody = [replace(fact, data="") for fact in two_hosts()]
    assert [check.name for check in project_alike(nobody)] == ["code", "recipe"]


def test_devices() -> None:
    assert devices(two_hosts()) == ok("devices", "CPUs")
    full = [replace(fact, devices=2) for fact in two_hosts()]
    assert devices(full) == ok("devices", "one for each of 4 ranks")
    idle = [replace(fact, machine_devices=8 if fact.node else 2) for fact in full]
    assert devices(idle) == warning(
        "devices",
        "devices without a rank on host-2: 6",
        "Raise their slots in the hostfile, if they are yours.",
    )


def test_more_ranks_than_cores() -> None:
    assert cores(two_hosts()).verdict is Verdict.OK
    crowded = [replace(fact, cores=1) if fact.node else fact for fact in two_hosts()]
    assert cores(crowded) == warning(
        "cores",
        "host-2: 2 ranks, 1 core",
        "Start at most as many ranks on a CPU as it has cores.",
    )
    assert cores([replace(fact, devices=2) for fact in crowded]).verdict is Verdict.OK


def test_host_memory_holds_what_all_its_ranks_need() -> None:
    (enough,) = memory(two_hosts(), SMALL)
    assert enough == ok("host memory", "host-0: 2.0 GiB of model states, 32.0 GiB free of 64.0 GiB")
    (tight,) = memory(two_hosts(), Memory(device_bytes=17 * GIB, host_bytes=0))
    assert tight.verdict is Verdict.WARNING  # 34 of 32 free, 64 in all
    assert tight.fix == "See what else uses it, and end that."
    (never,) = memory(two_hosts(), Memory(device_bytes=32 * GIB, host_bytes=GIB))
    text = "66.0 GiB of model states, 32.0 GiB free of 64.0 GiB"
    assert never == failed(
        "host memory",
        f"host-0: {text}, host-2: {text}",
        "Take a template of a higher ZeRO stage, more ranks, or a smaller model.",
    )


def test_device_memory_is_each_devices_own() -> None:
    on_gpus = {"devices": 2, "device_memory_bytes": 80 * GIB, "free_device_memory_bytes": 79 * GIB}
    facts = [replace(fact, **on_gpus) for fact in two_hosts()]
    facts[3] = replace(facts[3], free_device_memory_bytes=10 * GIB)
    host, device = memory(facts, Memory(device_bytes=20 * GIB, host_bytes=4 * GIB))
    assert host == ok("host memory", "host-0: 8.0 GiB of model states, 32.0 GiB free of 64.0 GiB")
    assert device.verdict is Verdict.WARNING
    assert device.found == ("host-2 device 1: 20.0 GiB of model states, 10.0 GiB free of 80.0 GiB")
    _, device = memory(facts, Memory(device_bytes=81 * GIB, host_bytes=0))
    assert device.verdict is Verdict.FAILED
    assert "host-0 device 0: 81.0 GiB" in device.found


def test_shared_memory_is_for_gpus() -> None:
    small = [rank_facts(rank, 0, 2, shm_bytes=64 << 20) for rank in range(2)]
    assert shared_memory(small) == ok("/dev/shm", "64.0 MiB or more")
    on_gpus = [replace(fact, devices=2) for fact in small]
    check = shared_memory(on_gpus)
    assert check.verdict is Verdict.FAILED
    assert check.found == "host-0: 64.0 MiB; ranks with GPUs need 1.0 GiB"
    assert "--shm-size=1g" in check.fix
    assert shared_memory([replace(on_gpus[0], node_ranks=1)]).verdict is Verdict.OK
