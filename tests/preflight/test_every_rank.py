"""A network that does not work costs one row of the table, not the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.test_process_group import end_all_started, start_two
from tests.small_run import small_dataset

pytestmark = pytest.mark.heavy

# argv: a folder, what the network does, and on which rank.
_BROKEN = """
import sys, time
from pathlib import Path
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.preflight import every_rank
from tests.small_run import small_plan

def network(facts, device):
    if sys.argv[2] == "fails":
        raise RuntimeError("NCCL error: no socket interface found\\nmore")
    time.sleep(600)

every_rank._SPEED_SECONDS = 8.0
if rank() == int(sys.argv[3]):
    every_rank.network = network
folder = Path(sys.argv[1])
every_rank.check_and_leave(small_plan(folder / "data", folder / "run", world_size=2))
"""


@pytest.fixture(autouse=True)
def nothing_started_is_left() -> Iterator[None]:
    yield
    end_all_started()


@pytest.mark.parametrize(
    "deed, odd, says",
    [
        ("fails", 0, "NCCL error: no socket interface found"),
        ("fails", 1, "did not end within 9 s"),  # rank 0 waits for the other
        ("hangs", 1, "did not end within 9 s"),
    ],
)
def test_a_network_that_does_not_work(tmp_path: Path, deed: str, odd: int, says: str) -> None:
    small_dataset(tmp_path)
    zero, one = start_two(_BROKEN, str(tmp_path), deed, str(odd))
    out, error = zero.communicate(timeout=120)
    assert zero.returncode == 1, error
    for name in ("rendezvous", "code", "run directory", "matmul"):
        assert re.search(rf"^{name} +(ok|warning) ", out, re.M), out
    assert re.search(rf"^all-reduce +failed +rank 0: {says}$", out, re.M), out
    assert (
        "failed: all-reduce: Name the network device that joins the machines by NCCL_SOCKET_IFNAME "
        "and GLOO_SOCKET_IFNAME, and let the machines reach each other at all ports; "
        "NCCL_DEBUG=INFO tells more.\n"
    ) in out
    other, error = one.communicate(timeout=60)
    assert one.returncode == 1, error
    assert other == ""
    assert not (tmp_path / "run").exists()
