"""Ranks that do not come are named by their hosts, on every rank that did."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.parallel.test_process_group import start_two
from tests.ranks import free_port

_MEET = """
import sys
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.parallel import roll_call
from gpt2_ds.parallel.process_group import join, leave
roll_call._FIRST_WORD_SECONDS = 0.5
leave(exit_code_of(lambda: print(join(1, meeting_seconds=float(sys.argv[1]))) or 0))
"""


@pytest.mark.heavy
def test_all_that_came_end_and_rank_0_says_who_did_not() -> None:
    """Two of four ranks; without a launcher's word of hosts."""
    both = start_two(_MEET, "6", WORLD_SIZE="4")
    for rank, process in enumerate(both):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        said = "error: ranks 2, 3 did not come within 6 s; 2 of 4 ranks did. See what those"
        assert (said in error) == (rank == 0), error
        waiting = re.search(r"waiting for ranks (1, )?2, 3 since \d+ s, for at most 6 s", error)
        assert (waiting is not None) == (rank == 0)
        assert "Traceback" not in error


@pytest.mark.heavy
def test_the_hosts_of_the_launcher_are_named() -> None:
    """DeepSpeed's own launcher starts the two ranks of node a; those of b and c are not there."""
    info = base64.urlsafe_b64encode(json.dumps({"a": [0, 1], "b": [0, 1], "c": [0]}).encode())
    words = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={info.decode()}",
        *("--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={free_port()}"),
        *("--no_python", "--no_local_rank", sys.executable, "-W", "ignore", "-c", _MEET, "6"),
    ]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert (
        "error: host b (ranks 2, 3) and host c (rank 4) did not come within 6 s; 2 of 5 ranks "
        "did. See whether b lives, and what those ranks print; no firewall"
    ) in done.stderr
