"""Does a change leave the numbers of all runs as they were? make losses BASE=main.

Trains a fixed set of small runs on the CPU and writes their losses, norms and validations, with all
digits. Each commit is driven by its command line alone, so that its modules may have any names.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shlex
import socket
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "losses"

Rows = dict[tuple[str, int, str], str]
"""What was measured, by run, step and key, as metrics.jsonl writes it."""

NOT_COMPARED = {"tokens_per_second", "step_seconds", "data_wait_seconds", "validation_seconds"}
NOT_COMPARED |= {"mfu", "peak_memory_bytes"}
"""Keys of metrics.jsonl that no two runs have alike."""

SETTINGS = (
    "model={n_layer: 2, n_head: 2, n_embd: 32, n_positions: 32}",
    "data={path: data/code, seq_length: 32}",
    "batch={global_batch_tokens: 256, micro_batch_size: 4}",  # 8 sequences
    "schedule={name: cosine, total_tokens: 2560, warmup_tokens: 512, decay_tokens: 2560, "
    "min_lr: 3e-4}",
    "evaluation={interval_steps: 4, tokens: 352}",  # 11 windows: no even share for two ranks
    "logging.interval_steps=1",
)
"""Of all runs, on top of recipes/quickstart.yaml: 10 steps."""

BF16 = "precision.dtype=bf16"
ACCUMULATION = "batch.micro_batch_size=1"
CHECKPOINTING = "activation_checkpointing.enabled=true"
FP16 = ("precision.dtype=fp16", "precision.initial_loss_scale_power=20")  # so that it falls
DROPOUT = ("model.embd_pdrop=0.1", "model.attn_pdrop=0.1", "model.resid_pdrop=0.1")
MUON = (
    "optimizer.name=muon",
    "optimizer.muon_lr=0.02",
    "optimizer.muon_momentum=0.95",
    "optimizer.gradient_clipping=0",
)
CONSTANT = "schedule={name: constant, total_tokens: 2560, warmup_tokens: 512}"
RAMP = (
    "batch.ramp={start_tokens: 128, increment_tokens: 64, length_tokens: 768}",
    "schedule={name: wsd, total_tokens: 2304, warmup_tokens: 512, stable_tokens: 1024, "
    "decay_tokens: 2048, min_lr: 3e-4}",
)
MIXTURE = (
    "data={seq_length: 32, sources: {code: {path: data/code, weight: 3}, lines: {path: data/lines, "
    "weight: 1}}, phases: [{from_tokens: 1280, weights: {code: 1, lines: 3}}]}"
)
SHORT_DOCUMENTS = ("data.path=data/lines", "data.document_mask=true")


@dataclass(frozen=True)
class Run:
    """One run of the set.

    Args:
        name: in the file of numbers.
        jobs: ranks, template and last step of each job; each goes on from the one before.
        settings: of the recipe, after SETTINGS.
    """

    name: str
    jobs: tuple[tuple[int, str, int], ...]
    settings: tuple[str, ...] = ()


RUNS = (
    Run("zero0_fp32", ((1, "zero0", 10),)),
    Run("zero0_fp32_accumulation", ((2, "zero0", 10),), (ACCUMULATION,)),
    Run("zero1_fp32_untied", ((2, "zero1", 10),), ("model.tie_word_embeddings=false",)),
    Run("zero1_bf16", ((2, "zero1", 10),), (BF16,)),
    Run("zero2_fp32_dropout", ((2, "zero2", 10),), DROPOUT),
    Run("zero2_fp16", ((1, "zero2", 10),), FP16),
    Run("zero2_bf16_accumulation", ((2, "zero2", 10),), (BF16, ACCUMULATION)),
    Run("zero3_fp32", ((2, "zero3", 10),)),
    Run("zero3_bf16_accumulation", ((2, "zero3", 10),), (BF16, ACCUMULATION)),
    Run("zero3_offload", ((2, "zero3_offload", 10),)),
    Run("ramp_resumed", ((2, "zero2", 3), (2, "zero2", 11)), RAMP),
    Run("mixture", ((2, "zero1", 10),), (MIXTURE,)),
    Run("document_mask", ((1, "zero1", 10),), (*SHORT_DOCUMENTS, "model.loss_chunk_size=48")),
    Run("lanes_constant_lr", ((1, "zero0", 10),), ("data.lanes=2", CONSTANT)),
    Run("muon_zero1_bf16", ((2, "zero1", 10),), (*MUON, BF16)),
    Run("muon_zero2_fp32", ((2, "zero2", 10),), MUON),
    Run("checkpointing_zero0_fp32", ((1, "zero0", 10),), (CHECKPOINTING,)),
    Run("checkpointing_zero3_bf16", ((2, "zero3", 10),), (CHECKPOINTING, BF16)),
    Run("resumed_2_to_1_ranks", ((2, "zero3", 5), (1, "zero1", 10))),
    Run("resumed_1_to_2_ranks_bf16", ((1, "zero1", 5), (2, "zero3", 10)), (BF16,)),
)


class LossesError(Exception):
    """A command failed; the message says which, and how."""


def main(words: Sequence[str]) -> int:
    """Train the set on the working tree, and compare it with a commit's where one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", metavar="COMMIT", help="compare with the losses of this commit")
    base = parser.parse_args(words).base
    try:
        commit = git("rev-parse", "--verify", f"{base}^{{commit}}").decode().strip() if base else ""
        new = losses_of(working_tree(), FOLDER / "working_tree.txt", reuse=False)
        if not commit:
            return 0
        old = losses_of(commit, FOLDER / f"{commit[:12]}.txt", reuse=True)
    except LossesError as error:
        print(error, file=sys.stderr)
        return 1
    if found := differences(old, new):
        print(f"not identical, {base} -> working tree:", *found, sep="\n")
        return 1
    print(f"identical: {len(new)} numbers of {len(RUNS)} runs")
    return 0


def losses_of(tree: str, file: Path, *, reuse: bool) -> Rows:
    """Train the set on a commit or tree of git, and write its numbers.

    Args:
        tree: what git archive takes.
        file: where they are written.
        reuse: take them from the file, where the same set wrote it on such a machine.

    Raises:
        LossesError: a command failed.
    """
    head = "".join(f"# {name}: {value}\n" for name, value in circumstances().items())
    if reuse and file.exists() and file.read_text(encoding="utf-8").startswith(head):
        print(f"reused: {file}", flush=True)
        return parse(file.read_text(encoding="utf-8"))
    rows: Rows = {}
    with TemporaryDirectory(prefix="losses_") as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", tree))) as archive:
            archive.extractall(folder, filter="data")
        prepare_data(folder)
        with ThreadPoolExecutor(2) as pool:  # most of a short run is one process's start
            for each, measured in zip(RUNS, pool.map(partial(train, folder), RUNS), strict=True):
                rows |= measured
                print(f"{file.stem}: {each.name}", flush=True)
    file.parent.mkdir(exist_ok=True)
    lines = [f"{run} {step} {key} {value}\n" for (run, step, key), value in rows.items()]
    file.write_text(head + "".join(lines), encoding="utf-8")
    print(f"written: {file}", flush=True)
    return rows


def circumstances() -> dict[str, str]:
    """What the numbers hang on besides the commit."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "set": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "deepspeed", "numpy")},
        "cpu": " ".join(re.findall(r"(?:model name|flags)\s*: (.*)", cpu)[:2]),
    }


def working_tree() -> str:
    """The files as they are now, without those that git ignores, as a tree of git's."""
    with TemporaryDirectory(prefix="losses_") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}  # the user's own stays as it is
        git("read-tree", "HEAD", environment=index)
        git("add", "--all", environment=index)
        return git("write-tree", environment=index).decode().strip()


def prepare_data(folder: Path) -> None:
    """Two small datasets from Python's own library: whole files as documents, and single lines.

    Raises:
        LossesError: the command failed.
    """
    library = Path(sysconfig.get_path("stdlib"))
    lines = filter(str.strip, (library / "argparse.py").read_text(encoding="utf-8").splitlines())
    rows = [json.dumps({"text": line}) + "\n" for line in lines]
    (folder / "lines.jsonl").write_text("".join(rows), encoding="utf-8")
    inputs = {"code": [str(library / "email/*.py")], "lines": ["lines.jsonl"]}
    for name, paths in inputs.items():
        command = [sys.executable, "launch/prepare_data.py", *paths, "--tokenizer", "bytes"]
        options = ["--validation-fraction", "0.1", "--shard-tokens", "50000"]
        execute([*command, *options, "--out", f"data/{name}"], folder)


def train(folder: Path, run: Run) -> Rows:
    """What a run of the commit in a folder measures.

    Raises:
        LossesError: a job of it failed.
    """
    for ranks, template, last_step in run.jobs:
        command = [
            str(Path(sys.executable).with_name("deepspeed")),
            *("--num_gpus", str(ranks), "--master_port", str(free_port()), "launch/train.py"),
            *("--recipe", "recipes/quickstart.yaml"),
            *("--template", f"ds_configs/{template}.json"),
            *("--run-dir", f"runs/{run.name}", "--max-steps", str(last_step)),
            *(word for each in SETTINGS + run.settings for word in ("--set", each)),
        ]
        execute(command, folder)
    return rows_of(run.name, (folder / f"runs/{run.name}/metrics.jsonl").read_text("utf-8"))


def rows_of(run: str, metrics: str) -> Rows:
    """The numbers of a run's metrics.jsonl that two runs can have alike."""
    return {
        (run, line["step"], key): json.dumps(value)
        for line in map(json.loads, metrics.splitlines())
        for key, value in line.items()
        if key != "step" and key not in NOT_COMPARED
    }


def parse(text: str) -> Rows:
    """The rows of a file of numbers."""
    lines = (line.split(" ") for line in text.splitlines() if not line.startswith("#"))
    return {(run, int(step), key): value for run, step, key, value in lines}


def differences(old: Rows, new: Rows) -> list[str]:
    """The first difference of each run that has one, in the order of the set."""
    found = []
    for run in dict.fromkeys(row[0] for row in (*old, *new)):
        rows = dict.fromkeys(row for row in (*old, *new) if row[0] == run)
        for row in sorted(rows, key=itemgetter(1)):
            was, now = old.get(row, "nothing"), new.get(row, "nothing")
            if was != now:
                found.append(f"{run}: step {row[1]}: {row[2]}: {was} -> {now}")
                break
    return found


def free_port() -> int:
    """A port below those that the system hands out by itself."""
    while True:
        port = 10_000 + secrets.randbelow(10_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def git(*words: str, environment: dict[str, str] | None = None) -> bytes:
    """What git prints."""
    return execute(["git", *words], REPOSITORY, environment)


def execute(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> bytes:
    """What a command prints.

    Raises:
        LossesError: it failed.
    """
    fixed = {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "CXX": "no-compiler",  # offload with torch's AdamW everywhere, and nothing to wait for
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **fixed, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        output = (done.stdout[-3000:] + done.stderr[-3000:]).decode(errors="replace")
        raise LossesError(f"{output}\nfailed: {shlex.join(command)}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
