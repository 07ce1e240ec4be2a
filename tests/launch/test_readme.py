"""README's commands, run in order in a copy of the repository, without compiler or network."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
from pathlib import Path
from statistics import median

import pytest

from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.config.sources import source_faults
from gpt2_ds.config.yaml_document import parse_yaml
from gpt2_ds.data.preparation.arguments import parse
from gpt2_ds.preflight import arguments as preflight_arguments
from gpt2_ds.train.start import arguments as train_arguments
from tests.conftest import REPOSITORY
from tests.launch.commands import bare_environment, copy_of_repository, run_command
from tests.ranks import free_port
from tests.small_run import metrics_of

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]
SET_UP = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
TRAIN = f"{SET_UP} && deepspeed launch/train.py --recipe recipes/quickstart.yaml"
PYTEST = "python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder"
TEST = f"{SET_UP} -r requirements-dev.txt && {PYTEST}"


def test_the_first_two_commands_are_to_train_and_to_test() -> None:
    assert COMMANDS[0] == TRAIN
    assert TEST in COMMANDS


def test_ci_runs_the_test_command_of_the_readme() -> None:
    text = (REPOSITORY / ".ci/run").read_text()
    program = re.search(r"command=\$\(awk '(.*?)' README.md\)", text)
    assert program
    found = subprocess.run(
        ["awk", program.group(1), "README.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == TEST


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_quickstart_is_shared_by_any_usual_number_of_devices(ranks: int) -> None:
    plan = resolve_run(
        REPOSITORY / "recipes/quickstart.yaml",
        world_size=ranks,
        template_file=REPOSITORY / "ds_configs/zero0.json",
    )
    assert plan.derived.world_size == ranks


def test_every_file_that_the_readme_names_is_there() -> None:
    names = re.findall(r"`((?:launch|recipes|ds_configs|gpt2_ds)/[\w./]+\.\w+)`", README)
    assert len(names) > 10
    missing = [name for name in names if not (REPOSITORY / name).exists()]
    assert missing == []
    for folder, ending in (("recipes", "yaml"), ("ds_configs", "json")):
        for path in (REPOSITORY / folder).glob(f"*.{ending}"):
            assert f"`{folder}/{path.name}`" in README, f"README does not name {path.name}"


def test_the_commands_that_need_a_network_are_understood() -> None:
    """Those over several machines are run by test_two_hosts_page.py, with its names."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    scripts = []
    for words in (line.split() for block in blocks for line in block.splitlines()):
        script = next(i for i, word in enumerate(words) if word.startswith("launch/"))
        assert words[:script] in (["python"], ["deepspeed", "--hostfile", "hostfile"])
        scripts.append(words[script])
        own = words[script + 1 :]
        if words[script] == "launch/prepare_data.py":
            assert parse(None, own).inputs[0].startswith("hf:")
        elif words[script] == "launch/preflight.py":
            assert preflight_arguments.parse(own)
        else:
            args = train_arguments.parse(own)
            assert resolve_run(args.recipe, world_size=args.expect_ranks)
    assert {"launch/prepare_data.py", "launch/preflight.py", "launch/train.py"} == set(scripts)


def test_the_sources_of_the_readme_are_understood(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    sources = parse_yaml(block, "README.md")[0]["data"]["sources"]
    text = ", ".join(
        f"{name}: {{path: '{each['path']}', weight: {each['weight']}}}"
        for name, each in sources.items()
    )
    loaded = load_recipe(
        REPOSITORY / "recipes/quickstart.yaml",
        ["data.path=null", "data.prepare=null", f"data.sources={{{text}}}"],
    )
    assert source_faults(loaded) == []


def tensorboard_answers(folder: Path, environment: dict[str, str]) -> bool:
    port = free_port()
    server = subprocess.Popen(
        ["tensorboard", "--logdir", "runs", "--port", str(port)],
        cwd=folder,
        env=environment,
        executable=f"{environment['PATH']}/tensorboard",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                address = f"http://127.0.0.1:{port}/data/runs"
                with urllib.request.urlopen(address, timeout=5) as answer:
                    if b"quickstart" in answer.read():
                        return True
            except OSError:
                continue
        return False
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.mark.heavy(minutes=8)
def test_the_commands_do_what_the_readme_says(tmp_path: Path) -> None:
    folder = copy_of_repository(tmp_path / "clone")
    environment = bare_environment(tmp_path / "environment")
    shared_memory = set(Path("/dev/shm").iterdir())
    ran = []
    for command in COMMANDS:
        if command == TEST:
            continue  # this run
        if command.startswith("tensorboard"):
            assert tensorboard_answers(folder, environment), command
            continue
        shown = run_command(command.removeprefix(f"{SET_UP} && "), folder, environment)
        assert shown.returncode == 0, f"{command}\n{shown.stdout[-3000:]}\n{shown.stderr[-3000:]}"
        assert "Traceback" not in shown.stderr, command
        ran.append(shown)
    assert len(ran) >= 5
    trained, sampled = ran[0].stdout, ran[1].stdout
    losses = [float(x) for x in re.findall(r"validation after step \d+: loss ([\d.]+)", trained)]
    assert losses[-1] < 2.2, losses  # 5.5 at the start
    assert len(losses) >= 3
    for words in (
        r"step +\d+/\d+  loss [\d.]+  lr \S+  [\d,]+ tokens/s  \d:\d\d:\d\d left",
        r"sample after step \d+:\n  \| def ",
        r"Trained for 0:\d\d:\d\d",
        r"tensorboard --logdir runs",
        r'python launch/generate.py --run runs/quickstart --prompt "def "',
    ):
        assert re.search(words, trained), words
    print(re.search(r"Trained for .*", trained))
    waits = metrics_of(folder / "runs/quickstart", "data_wait_seconds", "step_seconds")
    assert median(wait / step for wait, step in waits) < 0.01
    assert sampled.startswith("def ")
    assert len(sampled) > 40
    # No op was compiled, and nothing is left in shared memory.
    assert not list((tmp_path / "environment/extensions").glob("**/*.so"))
    left = set(Path("/dev/shm").iterdir()) - shared_memory
    assert [each for each in left if "sem.mp-" not in each.name] == []  # those are other tests'
