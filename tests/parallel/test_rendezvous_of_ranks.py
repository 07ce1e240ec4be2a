"""Ranks that cannot join say why; ranks that leave wait for each other, but not for ever."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpt2_ds.parallel.process_group import _why_not_joined, host_group
from tests.parallel.test_process_group import start, start_two, wait_for
from tests.ranks import free_port, run_ranks

_JOIN = """
import sys
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.parallel.process_group import join, leave
leave(exit_code_of(lambda: print(join(float(sys.argv[1]))) or 0))
"""


@pytest.mark.heavy
def test_a_busy_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        rank = start(_JOIN, "1", RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_PORT=str(port))
        _, error = rank.communicate(timeout=90)
    another = port + 1 if port < 65535 else 29500
    assert rank.returncode == 1
    assert error.splitlines()[-1] == (
        f"error: --master_port {port}: is in use by another process on {platform.node()}. Give "
        f"another: deepspeed --master_port {another} ...; or, where srun or mpirun starts the "
        f"ranks, MASTER_PORT={another} in the environment of all."
    )
    assert "Traceback" not in error


@pytest.mark.heavy
def test_ranks_that_never_come_and_a_rank_0_that_is_not_there() -> None:
    port = str(free_port())
    zero = start(_JOIN, "0.05", RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_PORT=port)
    _, error = zero.communicate(timeout=90)
    assert zero.returncode == 1
    assert error.splitlines()[-1] == (
        "error: rank 1 did not come within 3 s; 1 of 2 ranks did. See what those ranks print; no "
        f"firewall may stand between them and rank 0 at 127.0.0.1 port {port}, and that address "
        "must be of the network that joins the machines: deepspeed --master_addr names another."
    )
    one = start(_JOIN, "0.05", RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_PORT=port)
    _, error = one.communicate(timeout=90)
    assert one.returncode == 1
    assert error.splitlines()[-1] == (
        f"error (rank 1): --master_addr 127.0.0.1 --master_port {port}: rank 1 on "
        f"{platform.node()} could not reach rank 0 there for 3 s. See whether rank 0 lives, "
        "whether a firewall is between the machines, and whether 127.0.0.1 is of the network that "
        "joins them: if not, give deepspeed another by --master_addr."
    )


def test_any_other_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MASTER_ADDR", "a"), ("MASTER_PORT", "65535"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    said = _why_not_joined("Gloo connectFullMesh failed\nmore", 1.0)
    assert said == (
        f"--master_addr a --master_port 65535: rank 3 on {platform.node()} could not join the "
        "others: Gloo connectFullMesh failed. Between machines, GLOO_SOCKET_IFNAME and "
        "NCCL_SOCKET_IFNAME name the network device to use."
    )
    assert "deepspeed --master_port 29500 ...;" in _why_not_joined("code: EADDRINUSE", 1.0)


_NO_WAY = """
import sys
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.parallel import process_group
from gpt2_ds.parallel.process_group import join, leave
def host_group():
    raise RuntimeError("Gloo connectFullMesh failed")
process_group.host_group = host_group
leave(exit_code_of(lambda: print(join(1)) or 0))
"""


@pytest.mark.heavy
def test_a_network_that_joins_nobody_is_said_at_the_meeting() -> None:
    """As by NCCL, which connects nothing there: the first to try would be the group of hosts."""
    alone = start(_NO_WAY)
    _, error = alone.communicate(timeout=90)
    assert alone.returncode == 1
    assert "could not join the others: Gloo connectFullMesh failed. Between machines, " in error
    assert "Traceback" not in error


_LEAVE = """
import atexit, os, sys, time
from pathlib import Path
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.process_group import join, leave
join(timeout_minutes=1)
folder, deed, code = Path(sys.argv[1]), sys.argv[2 + rank()], int(sys.argv[4])
(folder / f"joined{rank()}").touch()
atexit.register((folder / f"finished{rank()}").touch)
if deed == "die":
    os._exit(9)
while deed == "wait" and not (folder / "go").exists():
    time.sleep(0.02)
if deed == "no terminal":
    r, w = os.pipe()
    os.close(r)
    os.dup2(w, 1)
    print("into nothing", end="")
leave(code)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("code", ["0", "75"])
def test_leaving_together(tmp_path: Path, code: str) -> None:
    zero, one = start_two(_LEAVE, str(tmp_path), "leave", "wait", code)
    wait_for(tmp_path / "joined0", tmp_path / "joined1")
    time.sleep(1.0)
    assert zero.poll() is None
    (tmp_path / "go").touch()
    for rank in (zero, one):
        _, error = rank.communicate(timeout=60)
        assert rank.returncode == int(code), error
    assert (tmp_path / "finished0").exists()


@pytest.mark.heavy
def test_a_rank_that_does_not_come_holds_nobody_for_long(tmp_path: Path) -> None:
    zero, one = start_two(_LEAVE, str(tmp_path), "leave", "wait", "75")
    wait_for(tmp_path / "joined0", tmp_path / "joined1")
    assert zero.wait(timeout=8) == 75
    (tmp_path / "go").touch()
    for rank in (zero, one):
        rank.communicate(timeout=30)
        assert rank.returncode == 75


@pytest.mark.heavy
def test_a_rank_that_is_gone_and_a_terminal_that_is_gone(tmp_path: Path) -> None:
    zero, one = start_two(_LEAVE, str(tmp_path), "no terminal", "die", "0")
    wait_for(tmp_path / "joined0", tmp_path / "joined1")
    assert zero.wait(timeout=8) == 0
    _, error = zero.communicate()
    assert "Traceback" not in error
    one.communicate(timeout=30)


def _host_sum() -> tuple[bool, float]:
    first, second = host_group(), host_group()
    total = torch.ones(1)
    dist.all_reduce(total, group=first)
    return first is second is dist.group.WORLD, float(total)


@pytest.mark.heavy
def test_the_default_group_serves_where_it_is_gloo(tmp_path: Path) -> None:
    assert run_ranks(_host_sum, 2, tmp_path) == [(True, 2.0)] * 2


_OTHER_BACKEND = """
import torch, torch.distributed as dist
import torch.testing._internal.distributed.fake_pg
from gpt2_ds.parallel.process_group import host_group
dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=1)
group = host_group()
assert group is host_group() and group is not dist.group.WORLD
print(dist.get_backend(group), group.size(), end="")
import os, sys; sys.stdout.flush(); os._exit(0)
"""


@pytest.mark.heavy
def test_another_default_group_gets_a_gloo_twin_once() -> None:
    process = start(_OTHER_BACKEND)
    out, error = process.communicate(timeout=90)
    assert out == "gloo 1", error
