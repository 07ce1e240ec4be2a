"""launch/no_ssh.md: its commands, given on each node by itself, train as one machine does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.faults.jobs import job, losses_of
from tests.launch.together import run_together
from tests.ranks import free_port
from tests.small_run import SETTINGS, small_dataset

PAGE = REPOSITORY / "launch/no_ssh.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def commands(launcher: str) -> list[str]:
    """What the page shows for each node, in order."""
    return [block.strip() for block in blocks("bash") if block.startswith(f"{launcher} ")]


@pytest.mark.parametrize(
    "launcher, number", [("torchrun", "node-rank"), ("deepspeed", "node_rank")]
)
def test_the_commands_of_the_nodes_differ_in_their_number(launcher: str, number: str) -> None:
    first, second = commands(launcher)
    assert f"--{number} 0 " in first
    assert second == first.replace(f"--{number} 0 ", f"--{number} 1 ")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[tuple[Any, ...]]:
    """The losses of the same training as four ranks of one machine."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    with job(run_dir, data, ranks=4) as started:
        assert started.wait() == [0] * 4, started.text()
    return losses_of(run_dir)


def run_nodes(launcher: str, folder: Path, data: Path, **more: str) -> list[tuple[int, str]]:
    """Exit code and output of the page's commands, with small numbers, on both nodes.

    Args:
        launcher: whose commands.
        folder: for the hostfile and the run.
        data: what is trained on.
        more: further words to replace.
    """
    hostfile = folder / "hostfile"
    hostfile.write_text(blocks("text")[0].replace("slots=8", "slots=2"))
    words = " ".join(f"--set {word}" for word in (*SETTINGS, f"data.path={data}"))
    replaced = more | {
        "--nproc-per-node 8": "--nproc-per-node 2",
        "--hostfile hostfile": f"--hostfile {hostfile}",
        "node-0": "127.0.0.1",
        "29500": str(free_port()),
        "recipes/gpt2_124m.yaml": f"recipes/quickstart.yaml --template ds_configs/zero1.json "
        f"--run-dir {folder}/run {words}",
        "--expect-ranks 16": "--expect-ranks 4",
    }
    scripts = commands(launcher)
    for old, new in replaced.items():
        scripts = [script.replace(old, new) for script in scripts]
    return run_together([f"exec {script}" for script in scripts])


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_nodes_train_as_one_machine_does(
    launcher: str, tmp_path: Path, data: Path, on_one_machine: list[tuple[Any, ...]]
) -> None:
    for code, text in run_nodes(launcher, tmp_path, data):
        assert code == 0, text
    assert losses_of(tmp_path / "run") == on_one_machine
    assert len(on_one_machine) == 8 + 2


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_preflight_in_place_of_training(launcher: str, tmp_path: Path, data: Path) -> None:
    assert "`launch/preflight.py --recipe R` in place of `launch/train.py`" in PAGE.read_text()
    replaced = {"launch/train.py": "launch/preflight.py"}
    (code, first), (other_code, second) = run_nodes(launcher, tmp_path, data, **replaced)
    assert (code, other_code) == (0, 0), first + second
    assert re.search(r"^rendezvous +ok .* ranks: 4, nodes: 2$", first, re.M), first
    for name in ("run directory", "all-reduce inside a node", "all-reduce between nodes"):
        assert re.search(rf"^{name} +ok ", first, re.M), first
    assert "verdict" not in second  # one table, on rank 0's node
