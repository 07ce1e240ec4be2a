"""The commands of each node, held against those of DeepSpeed itself and of a real shell."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner
from deepspeed.launcher.runner import encode_world_info, parse_args
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.hosts.node_commands import describe_nodes, is_changed_by_a_shell, node_command
from gpt2_ds.train.start.arguments import parse

HOSTS = {"alpha": 2, "beta": 1}
WORDS = ["launch/train.py", "--recipe", "recipes/quickstart.yaml", "--set", "a.b={c: 1, d: 2}"]


def of_deepspeed(words: list[str]) -> list[str]:
    """The words that DeepSpeed gives to pdsh, after its own `-w hosts`."""
    world = {host: list(range(slots)) for host, slots in HOSTS.items()}
    args = parse_args(["--master_addr", "alpha", "--master_port", "29500", *words])
    runner = PDSHRunner(args, encode_world_info(world))
    command, _, _ = runner.get_cmd({}, world)
    return list(command[command.index(sys.executable) - 1 :])


@pytest.mark.parametrize("node", [0, 1])
def test_it_is_what_deepspeed_would_run(node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    remote = " ".join(of_deepspeed(WORDS)).replace("%n", str(node))
    sent = [word for word in shlex.split(remote) if word != "--enable_each_rank_log=None"]
    assert shlex.split(node_command(HOSTS, node, WORDS)) == sent


def test_each_node_with_its_ranks(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=2\nbeta slots=1\n")
    words = [*WORDS, "--dry-run", "--hostfile", str(hostfile)]
    first, one, second, two = describe_nodes(hostfile, words).splitlines()
    assert (first, second) == ("alpha, ranks 0 to 1, runs:", "beta, rank 2, runs:")
    assert (one.strip(), two.strip()) == tuple(node_command(HOSTS, n, WORDS) for n in (0, 1))
    info = next(word for word in shlex.split(one) if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(info.partition("=")[2])) == {
        "alpha": [0, 1],
        "beta": [0],
    }


def test_a_word_that_would_arrive_changed_is_named(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=2\n")
    told = describe_nodes(hostfile, ["launch/train.py", "--set", "run.name=$HOME"])
    assert told.splitlines()[-1] == (
        "warning: the shell of a node would change 'run.name=$HOME': deepspeed quotes a word only "
        "with spaces in it, and only by double quotes. Put it into a recipe file, or the project "
        "into another folder."
    )


def test_a_folder_with_a_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my project").mkdir()
    monkeypatch.chdir(tmp_path / "my project")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=2\n")
    told = describe_nodes(hostfile, ["launch/train.py"]).splitlines()[-1]
    assert told.startswith(f"warning: the shell of a node would change '{tmp_path}/my project': ")


@settings(max_examples=150)
@given(st.text(st.sampled_from("abB1 =.,:/[]{}-+_$`\"'\\;&|<>()*?#~!%n"), min_size=1, max_size=12))
def test_what_is_called_unchanged_arrives_unchanged(word: str) -> None:
    """The remote shell may be bash or a plain sh."""
    if is_changed_by_a_shell(word) or word.startswith("-"):
        return
    sent = of_deepspeed(["x.py", word])[-1].replace("%n", "0")
    for shell in ("bash", "sh"):
        done = subprocess.run(
            [shell, "-c", f"printf %s {sent}"], capture_output=True, text=True, check=True
        )
        assert done.stdout == word


def test_a_hostfile_behind_the_script() -> None:
    with pytest.raises(UserError) as caught:
        parse(["--recipe", "r.yaml", "--hostfile", "hosts"])
    assert str(caught.value) == (
        "--hostfile hosts: is an option of deepspeed, but was given to launch/train.py. Type "
        "deepspeed --hostfile hosts launch/train.py ..."
    )
    assert parse(["--recipe", "r.yaml", "--hostfile", "hosts", "--dry-run"]).hostfile
