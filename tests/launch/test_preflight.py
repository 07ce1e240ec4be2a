"""The preflight command as it is typed: what it refuses, its table and its exit codes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.launch.commands import run_command
from tests.preflight.ssh_server import ssh_server
from tests.ranks import free_port
from tests.small_run import SETTINGS, small_dataset


def preflight(
    folder: Path, *words: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, with a home and a working directory of its own."""
    environment = {**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("DS_ENV_FILE", None)
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = shlex.join([sys.executable, str(REPOSITORY / "launch/preflight.py"), *words])
    shown = run_command(command, folder, environment, timeout=120)
    assert "Traceback" not in shown.stderr, shown.stderr
    return shown


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A folder with an ssh that writes down what it is called with, and lets everybody in."""
    tools = tmp_path / "witness"
    tools.mkdir()
    (tools / "ssh").write_text(f'#!/bin/sh\necho "$@" >> {tools}/calls\n')
    (tools / "ssh").chmod(0o755)
    return tools


@pytest.mark.parametrize(
    "line, why",
    [
        ("-oProxyCommand=touch${IFS}{marker} slots=2", "which ssh would take for an option"),
        ("good;touch${IFS}{marker} slots=2", "which a shell would run or change"),
        ("$(touch${IFS}{marker}) slots=2", "which a shell would run or change"),
        ("`touch${IFS}{marker}` slots=2", "which a shell would run or change"),
        ("good slots=0", "so no rank would run there"),
        ("first slots=2", "names first again"),
        ("good slots=2\r", "with a Windows line end"),
        (
            "# rack 3\r-oProxyCommand=touch${IFS}{marker} slots=2",
            "which DeepSpeed reads as two lines",
        ),
    ],
)
def test_a_bad_hostfile_runs_nothing(tmp_path: Path, witness: Path, line: str, why: str) -> None:
    marker, hosts = tmp_path / "marker", tmp_path / "hosts"
    hosts.write_bytes(f"first slots=2\n{line.replace('{marker}', str(marker))}\n".encode())
    for words in ((), ("--dry-run",)):
        shown = preflight(tmp_path, "--hostfile", str(hosts), *words, path=witness)
        assert shown.returncode == 2
        assert f"error: {hosts}:2: " in shown.stderr
        assert why in shown.stderr
        assert shown.stdout == ""
    assert not (witness / "calls").exists()
    assert not marker.exists()


def test_the_bare_ssh_would_have_run_it(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    subprocess.run(["ssh", f"-oProxyCommand=touch {marker}", "w"], capture_output=True)
    assert marker.exists()  # so the marker above tells


def test_every_mistake_of_every_file_at_once(
    tmp_path: Path, witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts").write_text("a slots=1\nb\na slots=1\n")
    (tmp_path / ".deepspeed_env").write_text("A=1\n\nX=$(id)\nHF_TOKEN=abc123\n")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "abc123")
    shown = preflight(tmp_path, "--hostfile", "hosts", path=witness)
    assert shown.returncode == 2
    lines = [line.split(": ")[1] for line in shown.stderr.splitlines()]
    files = tmp_path / ".deepspeed_env"
    sent = "MLFLOW_TRACKING_PASSWORD"
    assert lines == ["hosts:2", "hosts:3", f"{files}:2", f"{files}:3", f"{files}:4", sent]
    assert "abc123" not in shown.stderr
    assert not (witness / "calls").exists()


def test_wrong_words(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\n")
    for words, said in [
        ((), "launch/preflight.py: needs --hostfile, --recipe or --numerics. Give --hostfile FILE"),
        (
            ("--numerics", "--recipe", "no.yaml"),
            "--numerics: cannot be combined with --hostfile or --recipe. Give it alone",
        ),
        (("--numerics", "--expect-ranks", "2"), "--expect-ranks 2: the launcher started 1 rank. "),
        (("--hostfile", "no"), "--hostfile no: cannot be read (No such file or directory); "),
        (
            ("--hostfile", "hosts", "--ssh-port", "0"),
            "--ssh-port 0: is not a port. Give 1 to 65535.",
        ),
        (
            ("--hostfile", "hosts", "--expect-ranks", "8"),
            "--expect-ranks 8: hosts has 2 slots. Correct the hostfile's slots, or the number.",
        ),
        (
            ("--recipe", "no.yaml", "--expect-ranks", "2"),
            "--expect-ranks 2: the launcher started 1 rank. ",
        ),
        (("--recipe", "no.yaml"), "no.yaml: "),
    ]:
        shown = preflight(tmp_path, *words)
        assert shown.returncode == 2, words
        assert shown.stderr.startswith(f"error: {said}")
        assert shown.stdout == ""


def test_a_dry_run_of_the_numerics(tmp_path: Path) -> None:
    shown = preflight(tmp_path, "--local_rank=0", "--numerics", "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shlex.split(shown.stdout)[1:] == [str(REPOSITORY / "launch/preflight.py"), "--numerics"]


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path, witness: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\n")
    words = ["--recipe", "recipes/x.yaml", "--set", "evaluation.sample_prompt=a b;c"]
    port = ["--ssh-port", "2222"]
    shown = preflight(tmp_path, "--hostfile", "hosts", *port, *words, "--dry-run", path=witness)
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    there = f"'cd {tmp_path} && {sys.executable} -V'"
    assert lines[:4] == [
        "ssh -G -p 2222 a",
        f"ssh -o BatchMode=yes -o ConnectTimeout=5 -p 2222 a {there}",
        "ssh -G -p 2222 b",
        f"ssh -o BatchMode=yes -o ConnectTimeout=5 -p 2222 b {there}",
    ]
    own = ["deepspeed", "--hostfile", "hosts", "--ssh_port", "2222", "launch/preflight.py"]
    assert shlex.split(lines[4]) == [*own, *words]
    assert not (witness / "calls").exists()


def test_hosts_that_let_us_in_and_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ssh_server(tmp_path, monkeypatch) as port:
        (tmp_path / "hosts").write_text("good slots=2\nthrough slots=1\n")
        well = preflight(tmp_path, "--hostfile", "hosts")
        (tmp_path / "hosts").write_text("good slots=2\nkeyless slots=1\n")
        ill = preflight(tmp_path, "--hostfile", "hosts")
    assert well.returncode == 0, well.stdout
    rows = [re.split(r"  +", line) for line in well.stdout.splitlines()]
    assert rows[:2] == [["check", "verdict", "found"], ["hostfile", "ok", "2 hosts, 3 ranks"]]
    assert ["host good", "ok", f"127.0.0.1 port {port} lets this user in"] in rows
    assert "deepspeed --hostfile hosts launch/preflight.py --recipe RECIPE" in well.stdout
    assert ill.returncode == 1
    assert f"failed   127.0.0.1 port {port}: no key of this user is accepted" in ill.stdout
    assert ill.stdout.endswith(
        "failed: host keyless: Let this user in there: ssh-copy-id keyless.\n"
    )


def test_a_single_host_that_is_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ssh_server(tmp_path, monkeypatch):
        (tmp_path / "hosts").write_text("through slots=2\n")  # by a proxy; no name knows it here
        another = preflight(tmp_path, "--hostfile", "hosts")
        (tmp_path / "hosts").write_text("good slots=2\n")  # 127.0.0.1
        this = preflight(tmp_path, "--hostfile", "hosts")
    assert another.returncode == this.returncode == 0
    rows = [re.split(r"  +", line) for line in another.stdout.splitlines()]
    found = "through is its only host, and another machine: deepspeed would start the ranks here"
    assert rows[1] == ["hostfile", "warning", found]
    fix = "Start it on through, or give deepspeed --force_multi."
    assert f"warning: hostfile: {fix}\n" in another.stdout
    assert ": deepspeed --force_multi --hostfile hosts launch/preflight.py" in another.stdout
    assert re.search(r"^hostfile +ok +1 host, 2 ranks$", this.stdout, re.M)
    assert ": deepspeed --hostfile hosts launch/preflight.py" in this.stdout


def test_a_host_without_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ssh_server(tmp_path, monkeypatch) as port:
        (tmp_path / "hosts").write_text("good slots=2\n")
        ssh = tmp_path / "tools/ssh"  # the other machine, which shares no disk with this one
        words = f'"${{@//{tmp_path.name}/elsewhere}}"'
        ssh.write_text(ssh.read_text().replace('"$@"', words).replace("/sh\n", "/bash\n", 1))
        shown = preflight(tmp_path, "--hostfile", "hosts")
    assert shown.returncode == 1
    row = rf"^host good +failed +127\.0\.0\.1 port {port} lets this user in: .*No such file"
    assert re.search(row, shown.stdout, re.M), shown.stdout
    assert (
        f"failed: host good: Put the project into {tmp_path} there, too, and its Python to "
        f"{sys.executable}.\n"
    ) in shown.stdout


def test_the_first_half_loads_no_torch() -> None:
    code = (
        "import sys; import gpt2_ds.preflight.arguments, gpt2_ds.preflight.before_ssh;"
        "print([name for name in ('torch', 'deepspeed', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert shown.stdout.strip() == "[]"


@pytest.mark.heavy
def test_the_second_half_through_the_launcher(tmp_path: Path) -> None:
    data, run = small_dataset(tmp_path), tmp_path / "runs/small"
    words = " ".join(f"--set {setting}" for setting in (*SETTINGS, f"data.path={data}"))
    command = (
        f"deepspeed --master_port {free_port()} --num_gpus 2 launch/preflight.py "
        f"--recipe recipes/quickstart.yaml {words} --run-dir {run} --expect-ranks 2"
    )
    extensions = tmp_path / "extensions"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(extensions)}
    well = run_command(command, REPOSITORY, environment)
    assert well.returncode == 0, well.stdout + well.stderr
    for name in ("rendezvous", "dataset", "run directory", "all-reduce inside a node"):
        assert len(re.findall(rf"^{name} +ok ", well.stdout, re.M)) == 1, name  # of rank 0 alone
    assert not run.parent.exists()

    (extensions / "cpu_adam").mkdir(parents=True)
    (extensions / "cpu_adam/lock").touch()
    ill = run_command(command, REPOSITORY, environment)
    assert ill.returncode == 1
    lock = extensions / "cpu_adam/lock"
    said = f"failed: extension locks: If nothing compiles there, delete them: rm {lock}."
    assert said in ill.stdout
    assert "Traceback" not in ill.stderr


@pytest.mark.heavy
def test_the_second_half_alone(tmp_path: Path) -> None:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    recipe = ["--recipe", str(REPOSITORY / "recipes/quickstart.yaml")]
    template = ["--template", str(REPOSITORY / "ds_configs/zero0.json")]
    missing = ["--set", f"data.path={tmp_path}/none", "--run-dir", str(tmp_path / "run")]
    shown = preflight(tmp_path, *recipe, *template, *words, *missing)
    assert shown.returncode == 1
    assert re.search(r"^inputs +failed +[^ ]+ \(rank 0\): .*/none", shown.stdout, re.M)
    prepared = [word.replace("data.prepare=null", "seed=1") for word in words]
    shown = preflight(tmp_path, *recipe, *template, *prepared, *missing)
    assert shown.returncode == 0, shown.stdout
    assert f"warning  {tmp_path}/none is not there yet" in shown.stdout
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "run").exists()
