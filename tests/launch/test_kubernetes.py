"""launch/kubernetes.yaml: Kubernetes takes it, and what its pods run trains."""

from __future__ import annotations

import copy
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gpt2_ds.train.start.arguments import parse
from tests.conftest import REPOSITORY
from tests.faults.jobs import newest_step
from tests.launch.together import Started, run_together
from tests.ranks import free_port
from tests.small_run import SETTINGS, metrics_of, small_dataset

MANIFEST = REPOSITORY / "launch/kubernetes.yaml"
VERSIONS = ("1.31", "1.37")  # the oldest that the page names, and the newest there is


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def script_of(job: dict[str, Any]) -> str:
    """What a pod's bash gets."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-euc"]
    (script,) = container["args"]
    return str(script)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_document_is_as_kubernetes_wants_it(version: str) -> None:
    service, job = documents()
    for document in (service, job):
        kubernetes_validate.validate(document, version, strict=True)
    for path, value in (("backoffLimit", "many"), ("backofLimit", 3)):
        wrong = copy.deepcopy(job)
        wrong["spec"][path] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_the_names_of_the_documents_fit_together() -> None:
    service, job = documents()
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    master = f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--master-addr {master} " in script_of(job)
    assert f"--master-port {service['spec']['ports'][0]['port']} " in script_of(job)
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["containerName"] for rule in rules[1:]] == [container["name"]]
    assert pod["restartPolicy"] == "Never"  # Kubernetes takes no podFailurePolicy without it


def test_the_numbers_fit_together_and_the_words_are_ours() -> None:
    _, job = documents()
    spec, script = job["spec"], script_of(job)
    (container,) = spec["template"]["spec"]["containers"]
    (words,) = re.findall(r"^words=\((.*)\)$", script, re.MULTILINE)
    (nodes,) = re.findall(r"--nnodes (\d+)", script)
    (ranks_each,) = re.findall(r"--nproc-per-node (\d+)", script)
    args = parse(shlex.split(words))
    assert (REPOSITORY / args.recipe).is_file()
    assert args.run_dir == Path("/shared/runs/gpt2_124m")
    assert spec["completions"] == spec["parallelism"] == int(nodes)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(ranks_each)
    assert args.expect_ranks == int(nodes) * int(ranks_each)


def run_pods(script: str, **named: Any) -> list[tuple[int, str]]:
    """Exit code and output of the script in the Job's two pods, run here at the same time."""
    return run_together([script] * 2, number="JOB_COMPLETION_INDEX", **named)


def small(script: str, folder: Path, *settings: str) -> str:
    """The script for a small recipe on the CPU: names and numbers replaced, nothing else."""
    sets = (*SETTINGS, "evaluation.sample_prompt=two words", *settings)
    words = " ".join(f"--set {shlex.quote(word)}" for word in sets)
    run = f"--run-dir {folder}/run --expect-ranks 4"
    for old, new in (
        (r"words=\(.*\)", f"words=(--recipe recipes/quickstart.yaml {words} {run})"),
        (r"gpt2-ds-0\.gpt2-ds", "127.0.0.1"),
        (r"--master-port 29500", f"--master-port {free_port()}"),
        (r"--nproc-per-node 8", "--nproc-per-node 2"),
    ):
        script, count = re.subn(old, new, script)
        assert count == 1, old
    return script


@pytest.mark.heavy
def test_a_pod_that_is_taken_away_saves_and_its_successor_goes_on(tmp_path: Path) -> None:
    steps = 240  # some seconds after the third
    settings = (
        f"schedule.total_tokens={256 * steps}",
        "evaluation.interval_steps=20",
        "checkpoint.interval_steps=1000",
    )
    data = small_dataset(tmp_path)
    script = small(script_of(documents()[1]), tmp_path, f"data.path={data}", *settings)
    run_dir = tmp_path / "run"

    def take_away(started: Started) -> None:
        end = time.monotonic() + 120
        while newest_step(run_dir) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        started[1].send_signal(signal.SIGTERM)  # as Kubernetes does: to the first process alone

    for code, text in run_pods(script, meanwhile=take_away):
        assert code == 1, text  # torchrun's, for the ranks' 75: what backoffLimit is for
    stopped_at = newest_step(run_dir)
    assert 3 <= stopped_at < steps
    shown = run_pods(script)
    assert [code for code, _ in shown] == [0, 0], shown
    assert f"resuming from step {stopped_at}" in shown[0][1]
    assert [step for step, _ in metrics_of(run_dir, "step", "loss")] == list(range(1, steps + 1))


@pytest.mark.heavy
def test_wrong_input_ends_a_pod_with_the_code_that_ends_the_job(tmp_path: Path) -> None:
    rules = documents()[1]["spec"]["podFailurePolicy"]["rules"]
    script = small(script_of(documents()[1]), tmp_path, "optimizer.lr=fast")
    for code, text in run_pods(script):
        assert code in rules[1]["onExitCodes"]["values"], text
        assert "optimizer.lr: is 'fast'" in text
