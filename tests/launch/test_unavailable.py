"""CI does not stay green by skipping what it could run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.launch import two_hosts, two_slurm_nodes
from tests.launch.unavailable import REQUIRED


def test_what_is_missing_skips_a_test_and_fails_it_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_hosts, "why_not", lambda: "not installed: apt-get install -y pdsh")
    monkeypatch.setattr(two_slurm_nodes.os, "geteuid", lambda: 1000)
    for start in (lambda: two_hosts.two_hosts(tmp_path), two_slurm_nodes.two_slurm_nodes):
        monkeypatch.delenv(REQUIRED, raising=False)
        with pytest.raises(pytest.skip.Exception), start():
            pass
        monkeypatch.setenv(REQUIRED, "required")
        with pytest.raises(pytest.fail.Exception, match=r"cannot run: (not installed|two Slurm)"):
            with start():
                pass


@pytest.mark.parametrize("able", [True, False])
def test_ci_requires_what_is_there(tmp_path: Path, able: bool) -> None:
    """The part of .ci/run behind the packages, with commands that say yes or no."""
    text = (REPOSITORY / ".ci/run").read_text()
    begin, end = text.index("able=yes"), text.index("# The block under")
    for name, code in (("id", 0), ("unshare", 0 if able else 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 0\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    script = f'lacking=()\n{text[begin:end]}\necho "found=${{{REQUIRED}:-}}"'
    shown = subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[-1] == f"found={'required' if able else ''}"
    assert len(shown) == (1 if able else 2)
