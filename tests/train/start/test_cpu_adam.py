"""All ranks take the same optimizer, whatever each of them could build."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path

from tests.ranks import run_ranks
from tests.small_run import small_plan


def _chosen(folder: Path, cases: list[list[Path]]) -> list[tuple[bool, str]]:
    """Of each case, whether a rank with its own PATH takes DeepSpeedCPUAdam; what it said."""
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.train.start.first_checks import use_cpu_adam

    os.environ.pop("CXX", None)
    plan = small_plan("data", folder, template="zero3_offload", world_size=2)
    found = []
    for paths in cases:
        os.environ["PATH"] = str(paths[rank()])
        said = io.StringIO()
        with redirect_stdout(said):
            found.append((use_cpu_adam(plan.template), said.getvalue()))
    return found


def test_one_rank_without_a_compiler_decides_for_all(tmp_path: Path) -> None:
    able, unable = tmp_path / "able", tmp_path / "unable"
    for folder in (able, unable):
        folder.mkdir()
    for name in ("c++", "ninja"):
        (able / name).write_text("#!/bin/sh\n")
        (able / name).chmod(0o755)
    needs = "optimizer: torch's AdamW on the host; DeepSpeedCPUAdam needs a C++ compiler and ninja"
    builds = "optimizer: DeepSpeedCPUAdam; compiling it takes a few minutes the first time"
    cases = [[unable, unable], [able, unable], [able, able]]
    zero, one = run_ranks(_chosen, 2, tmp_path, tmp_path / "run", cases)
    assert zero == [
        (False, f"{needs}\n"),
        (False, f"{needs} on rank 1, too\n"),
        (True, f"{builds}\n"),
    ]
    assert one == [(False, ""), (False, ""), (True, "")]
