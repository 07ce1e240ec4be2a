"""Build a run, then train it or replay one of its steps."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import torch

from gpt2_ds.checkpoint.checkpoint import Checkpoints, RunFacts
from gpt2_ds.checkpoint.manifest import step_name
from gpt2_ds.checkpoint.probe import probe_loss, probe_tokens
from gpt2_ds.checkpoint.remote import Uploader, copying, finish_copy, remote_of
from gpt2_ds.checkpoint.restore import Restored, load_newest
from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import EXIT_DONE, EXIT_PREEMPTED
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.order.skipped import SKIPPED_FILE, Ranges, read_skipped
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.data.reading.loader import TokenLoader
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.health.health import Health
from gpt2_ds.hosts.launcher import local_ranks, rank, world_size
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.agreement import by_rank_0, until_all
from gpt2_ds.parallel.engine import build_engine
from gpt2_ds.record.ledger import Ledger
from gpt2_ds.record.metrics import Metrics
from gpt2_ds.record.run_directory import write_run_files
from gpt2_ds.record.skipped_samples import add_skipped
from gpt2_ds.record.terminal import say
from gpt2_ds.train.job import Job, explained, joined, locked, noted
from gpt2_ds.train.loop import evaluation_owed, train_steps
from gpt2_ds.train.ready_run import Run
from gpt2_ds.train.replay import replay
from gpt2_ds.train.start.arguments import RESUME, StartOptions
from gpt2_ds.train.start.first_checks import clear_stale_locks, use_cpu_adam
from gpt2_ds.train.start.job_record import headline, note_end, note_start

_UPLOAD_SECONDS_AT_A_STOP = 10.0  # launchers kill after 30


def train(plan: RunPlan, corpus: Corpus, options: StartOptions = RESUME) -> int:
    """Train `plan` from its newest checkpoint, or from the first step.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.
        options: how this job begins.

    Returns:
        The exit code: done, or stopped by a signal and saved.

    Raises:
        UserError: a shard is not what the manifest says; the machines do not fit.
        RunError: the run failed in a way that is understood.
    """
    with joined(plan, corpus, writes=True) as job:
        if job is None:
            return EXIT_PREEMPTED
        with locked(plan.run_dir), noted(plan.run_dir), explained(job.watchdog):
            config = engine_config(plan)
            by_rank_0(lambda: write_run_files(plan, config, job.hosts))
            engine = new_engine(plan, config)
            restored = _restore(job, engine, strict=options.strict)
            start, ledger = restored.progress, Ledger(plan.run_dir)
            skipped = by_rank_0(lambda: _skip_samples(plan, options, restored, ledger))
            note_start(plan, restored, ledger)
            say(headline(plan, start.step))
            metrics = Metrics(plan, engine)
            metrics.resume_from(start.step)
            if start.step == plan.last_step and not evaluation_owed(plan, metrics, start.step):
                # The job before may have ended in its copy.
                finish_copy(plan, start.step, job.watchdog.heartbeat)
                return note_end(plan, start, ledger, "", owed=False)
            began = time.perf_counter()
            with ExitStack() as stack:
                sending = copying(plan, job.watchdog.heartbeat)
                uploader = _uploader(job, restored, sending, stack)
                run = build_run(job, engine, restored, skipped, metrics, ledger, stack, uploader)
                end = train_steps(run, start)
                owed = evaluation_owed(plan, metrics, end.step)
                copied = end.step == plan.last_step and plan.recipe.checkpoint.copy_to is not None
                if copied:
                    until_all(
                        lambda: job.stop.reason is not None or uploader is None or uploader.idle,
                        sending,
                    )
                reasons = run.health.stop_reasons()
                owed |= copied and bool(reasons)
            if end.step == plan.last_step and not owed:
                finish_copy(plan, end.step, job.watchdog.heartbeat)
            say(f"Trained for {timedelta(seconds=round(time.perf_counter() - began))}.")
            return note_end(plan, end, ledger, reasons, owed)


def replay_step(plan: RunPlan, corpus: Corpus, step: int, *, strict: bool = False) -> int:
    """Take one past step of a run again, and change nothing of it.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.
        step: that is taken again.
        strict: a damaged checkpoint is an error; otherwise the one before it is taken.

    Returns:
        The exit code: done, or stopped by a signal before the step.

    Raises:
        UserError: as `train`; or no checkpoint before the step is left.
        RunError: as `train`.
    """
    with joined(plan, corpus, writes=False) as job:
        if job is None:
            return EXIT_PREEMPTED
        engine = new_engine(plan, without_monitors(engine_config(plan)))
        restored = _restore(job, engine, strict=strict, until_step=step - 1)
        skipped = by_rank_0(lambda: read_skipped(plan.run_dir))
        say(headline(plan, restored.progress.step))
        metrics, ledger = Metrics(plan, engine), Ledger(plan.run_dir, silent=True)
        with ExitStack() as stack:
            run = build_run(job, engine, restored, skipped, metrics, ledger, stack)
            replay(run, restored.progress, step)
    return EXIT_DONE


def build_run(
    job: Job,
    engine: Any,
    restored: Restored,
    skipped: Ranges,
    metrics: Metrics,
    ledger: Ledger,
    stack: ExitStack,
    uploader: Uploader | None = None,
) -> Run:
    """A run that is ready to step from where it was restored.

    Args:
        job: whose run it is.
        engine: that holds what was restored.
        restored: where the run stands.
        skipped: ranges of samples that training skips.
        metrics: where numbers go.
        ledger: where events go.
        stack: closes what is opened here.
        uploader: copies complete checkpoints.
    """
    plan, corpus, start = job.plan, job.corpus, restored.progress
    batches = plan.derived.batches
    batch, last_sample = batches.of_step(start.step + 1), batches.samples_after(plan.last_step)
    samples = corpus.samples(plan.recipe.seed, skipped)
    loader = stack.enter_context(
        TokenLoader(
            samples,
            global_batch_size=batch.global_batch_size,
            micro_batch_size=batch.micro_batch_size,
            rank=rank(),
            world_size=world_size(),
            samples_seen=start.samples_seen,
            pin_memory=job.device.type == "cuda",
        )
    )
    stack.enter_context(closing(corpus))  # before the loader, which may wait for a download
    corpus.follow(
        lambda: samples.upcoming(loader.samples_read, last_sample, local_ranks(), world_size())
    )
    probe = probe_tokens(plan, corpus)
    facts = RunFacts(
        data_fingerprint=corpus.fingerprint,
        tokenizer_dir=corpus.tokenizer_directory,
        skipped_samples=list(skipped),
        probe=probe,
        probe_loss=lambda: probe_loss(engine, probe, job.device, job.document_eot),
        uploader=uploader,
    )
    checkpoints = Checkpoints(plan, engine, facts, job.watchdog.heartbeat)
    return Run(
        plan=plan,
        corpus=corpus,
        samples=samples,
        engine=engine,
        loader=loader,
        metrics=metrics,
        checkpoints=stack.enter_context(closing(checkpoints)),
        health=Health(plan, engine, ledger, job.stop, job.watchdog, job.hosts),
        device=job.device,
        document_eot=job.document_eot,
    )


def engine_config(plan: RunPlan) -> dict[str, Any]:
    """Exactly what `deepspeed.initialize` gets, once its compiled ops can be loaded. Collective."""
    config = plan.deepspeed(cpu_adam=use_cpu_adam(plan.template))
    clear_stale_locks(plan.template)
    return config


def new_engine(plan: RunPlan, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around the run's model with its first weights. Collective."""
    recipe = plan.recipe
    return build_engine(
        GPT2Config(**model_fields(recipe, plan.derived.vocab_size)),
        config,
        seed=recipe.seed,
        compile_model=recipe.model.compile,
    )


def _restore(job: Job, engine: Any, *, strict: bool, until_step: int | None = None) -> Restored:
    """Load the newest checkpoint into the engine. Collective."""
    job.watchdog.mark(0, "loading")
    torch.manual_seed(job.plan.recipe.seed + 1 + rank())  # dropout differs between ranks
    restored = load_newest(
        job.plan,
        engine,
        data_fingerprint=job.corpus.fingerprint,
        probe_loss=lambda tokens: probe_loss(engine, tokens, job.device, job.document_eot),
        strict=strict,
        heartbeat=job.watchdog.heartbeat,
        until_step=until_step,
    )
    job.watchdog.mark(0, "beginning")
    return restored


def _uploader(
    job: Job, restored: Restored, sending: Heartbeat, stack: ExitStack
) -> Uploader | None:
    """Copies complete checkpoints; on rank 0, where the recipe asks for copies."""
    plan = job.plan
    if rank() != 0 or plan.recipe.checkpoint.copy_to is None:
        return None
    uploader = Uploader(remote_of(plan, sending))
    stack.callback(uploader.close, _UPLOAD_SECONDS_AT_A_STOP)
    if restored.manifest is not None:  # the job before may have ended in its upload
        uploader.submit(plan.run_dir / "checkpoints" / step_name(restored.progress.step))
    return uploader


def _skip_samples(
    plan: RunPlan, options: StartOptions, restored: Restored, ledger: Ledger
) -> Ranges:
    """The ranges that this run skips; those asked for now are written down."""
    start, manifest = restored.progress, restored.manifest
    if manifest is not None and not (plan.run_dir / SKIPPED_FILE).exists():
        add_skipped(plan.run_dir, tuple(manifest.skipped_samples), 0)  # from a copy elsewhere
    ranges, fresh = add_skipped(plan.run_dir, options.skip_samples, start.samples_seen)
    tokens_seen = start.samples_seen * plan.recipe.data.seq_length
    for first, end in fresh:
        reason = f"--skip-samples {first}:{end}"
        ledger.write("skip_samples", step=start.step, tokens_seen=tokens_seen, reason=reason)
    return ranges
