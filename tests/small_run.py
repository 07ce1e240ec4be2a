"""A small real run: a dataset made from this project's own sources, and a recipe that reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_ds.config.recipe import DataSection
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.reading.corpus import Corpus
from tests.conftest import REPOSITORY

SETTINGS = [
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.n_positions=32",
    "data.seq_length=32",
    "data.prepare=null",
    "batch.global_batch_tokens=256",  # 8 sequences
    "batch.micro_batch_size=2",
    "schedule.total_tokens=2048",  # 8 steps
    "schedule.warmup_tokens=512",
    "schedule.decay_tokens=2048",
    "evaluation.interval_steps=4",
    "evaluation.tokens=352",  # 11 windows: shared evenly by no number of ranks but 1 and 11
    "evaluation.sample_tokens=3",
    "checkpoint.interval_steps=3",
    "logging.interval_steps=1",
]


def small_dataset(folder: Path) -> Path:
    """About 200,000 byte tokens of Python."""
    path = folder / "data"
    sources = sorted((REPOSITORY / "gpt2_ds").rglob("*.py"))
    prepare(Request(inputs=sources, out=path, tokenizer="bytes", validation_fraction=0.1))
    return path


def small_corpus(data: Path) -> Corpus:
    """What `small_plan` reads."""
    return Corpus.open(DataSection(path=str(data), seq_length=32))


def small_plan(
    data: Path | str,
    run_dir: Path,
    *overrides: str,
    template: str | Path = "zero0",
    world_size: int = 1,
    max_steps: int | None = None,
) -> RunPlan:
    return resolve_run(
        REPOSITORY / "recipes/quickstart.yaml",
        world_size=world_size,
        template_file=REPOSITORY / "ds_configs" / f"{template}.json"
        if isinstance(template, str)
        else template,
        overrides=[*SETTINGS, f"data.path={data}", *overrides],
        run_dir=run_dir,
        max_steps=max_steps,
    )


def metrics_of(run_dir: Path, *names: str) -> list[tuple[Any, ...]]:
    """The named values of every line of metrics.jsonl that has them all, in order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        tuple(line[name] for name in names) for line in lines if all(name in line for name in names)
    ]


def save_checkpoint(plan: RunPlan, engine: Any, step: int, tokenizer_dir: Path) -> None:
    """A complete checkpoint of an engine as it is, as a run would save it. Collective."""
    from gpt2_ds.checkpoint.checkpoint import Checkpoints, Progress, RunFacts
    from gpt2_ds.parallel.agreement import by_rank_0
    from gpt2_ds.record.run_directory import write_run_files

    by_rank_0(lambda: write_run_files(plan, plan.deepspeed(cpu_adam=False), []))
    facts = RunFacts(
        data_fingerprint="",
        tokenizer_dir=tokenizer_dir,
        skipped_samples=[],
        probe=np.zeros((1, 3), dtype=np.int64),
        probe_loss=lambda: 1.0,
    )
    checkpoints = Checkpoints(plan, engine, facts)
    checkpoints.begin(Progress(step, step * plan.derived.global_batch_size))
    checkpoints.finish()
    checkpoints.close()
