"""The commands of launch/hostfile.md, typed one after another on the first of two hosts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt2_ds.hosts.hostfile import read_hostfile
from tests.conftest import REPOSITORY
from tests.launch.two_hosts import NODE_ENVIRONMENT, PACKAGES, TwoHosts, two_hosts
from tests.small_run import SETTINGS, metrics_of, small_dataset

PAGE = (REPOSITORY / "launch/hostfile.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
# What is of this machine, not of the page: no GPU, and two cores for four ranks.
EXPORTED = {name: NODE_ENVIRONMENT[name] for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS")}
INSTALLED = re.findall(r"apt-get install -y ([\w-]+)", PAGE)


def small(command: str, data: Path) -> str:
    """The command with a model that trains in seconds; `train.py` and `preflight.py --recipe`."""
    if "--recipe" not in command:
        return command
    return f"{command} {' '.join(f'--set {each}' for each in (*SETTINGS, f'data.path={data}'))}"


def test_the_page_shows_each_step_and_the_packages_it_needs() -> None:
    told = "\n".join(COMMANDS)
    for word in ("preflight.py --hostfile", "preflight.py --recipe", "openmpi", "--dry-run"):
        assert word in told
    assert "PDSH_SSH_ARGS_APPEND" in told
    assert set(INSTALLED) <= set(PACKAGES.values())
    assert set(INSTALLED) == {"pdsh", "openmpi-bin"}


def test_the_example_is_a_hostfile_of_the_pages_machines() -> None:
    assert read_hostfile(REPOSITORY / "launch/hostfile.example") == {"node1": 2, "node2": 2}


@pytest.mark.heavy
def test_the_commands_of_the_page_work_as_they_are_typed(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    with two_hosts(tmp_path / "hosts") as hosts:
        (hosts.work / "hostfile").unlink()
        (hosts.work / ".gpt2_ds_env").unlink()
        exports = "\n".join(f"export {name}={value}" for name, value in EXPORTED.items())
        for command in COMMANDS:
            if command.startswith("export "):
                exports = f"{exports}\n{command}"
                continue
            shown = hosts.first.run(f"{exports}\n{small(command, data)}", 300)
            assert shown.returncode == 0, f"{command}\n{shown.stdout}\n{shown.stderr}"
            check(command, shown.stdout, hosts)


def check(command: str, stdout: str, hosts: TwoHosts) -> None:
    """What the page says of a command."""
    if "--dry-run" in command:
        assert "node2" in stdout
        assert not (hosts.work / "runs").exists()
    elif "preflight.py --hostfile" in command:
        for name in ("node1", "node2"):
            row = rf"^host {name} +ok +{name} port 22 lets this user in$"
            assert re.search(row, stdout, re.M), stdout
    elif "preflight.py --recipe" in command:
        row = r"^node1: rendezvous +ok +at 10\.77\.0\.1 port 29500; ranks: 4, nodes: 2$"
        assert re.search(row, stdout, re.M), stdout
        for name in ("code", "run directory", "clocks", "all-reduce between nodes"):
            assert re.search(rf"^node1: {name} +ok ", stdout, re.M), stdout
        assert not (hosts.work / "runs").exists()
    elif "train.py" in command:
        complete = "is complete" in stdout
        assert complete or "stopped after step 4, as asked" in stdout
        folder = hosts.work / "runs" / ("other" if "runs/other" in command else "quickstart")
        assert len(metrics_of(folder, "step", "loss")) == (8 if complete else 4)
        assert len(list((folder / "logs").glob("rank_*.log"))) == 4
