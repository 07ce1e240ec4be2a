"""Set up a run, train, and say what to do next."""

from __future__ import annotations

import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import NoReturn

import torch

from gpt2_ds.checkpoint.checkpoint import Checkpoints, RunFacts
from gpt2_ds.checkpoint.copies import copying, finish_copy, remote_of
from gpt2_ds.checkpoint.manifest import step_name
from gpt2_ds.checkpoint.probe import probe_loss, probe_tokens
from gpt2_ds.checkpoint.remote import Uploader
from gpt2_ds.checkpoint.restore import Restored, load_newest
from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_RUN_FAILED,
    RunError,
    exit_code_of,
)
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.order.skipped import SKIPPED_FILE, Ranges
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.data.reading.loader import TokenLoader
from gpt2_ds.files.trouble import FILE_TROUBLES, file_trouble
from gpt2_ds.health.health import Health
from gpt2_ds.health.stop_request import StopRequest
from gpt2_ds.health.watchdog import Watchdog
from gpt2_ds.hosts.launcher import local_ranks, rank, world_size
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.agreement import by_rank_0, gathered, until_all
from gpt2_ds.parallel.engine import build_engine
from gpt2_ds.parallel.process_group import join, leave
from gpt2_ds.record.ledger import Ledger
from gpt2_ds.record.metrics import Metrics
from gpt2_ds.record.rank_log import keep_log, log_end, log_path
from gpt2_ds.record.run_directory import write_run_files
from gpt2_ds.record.run_lock import RunLock
from gpt2_ds.record.skipped_samples import add_skipped, parse_ranges
from gpt2_ds.record.terminal import say, say_file_trouble
from gpt2_ds.train.loop import evaluation_owed, train_steps
from gpt2_ds.train.ready_run import Run
from gpt2_ds.train.replay import replay
from gpt2_ds.train.start.arguments import TRAIN, StartOptions
from gpt2_ds.train.start.first_checks import check_together, clear_stale_locks, use_cpu_adam
from gpt2_ds.train.start.job_record import headline, note_end, note_fault, note_start
from gpt2_ds.train.start.out_of_memory import out_of_memory

_RENDEZVOUS_SECONDS = 600.0
_UPLOAD_SECONDS_AT_A_STOP = 10.0  # launchers kill after 30


def train_and_leave(plan: RunPlan, corpus: Corpus, options: StartOptions) -> NoReturn:
    """Train, then end this process with the exit code of what happened."""
    if options.replay_step is None:
        keep_log(plan.run_dir, rank())
    threading.excepthook = say_file_trouble

    def run() -> int:
        try:
            return train(plan, corpus, options)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(plan, error) from error
        except OSError as error:
            if error.errno not in FILE_TROUBLES:
                raise
            if not error.filename:  # TensorBoard's writer does not say which
                error = OSError(error.errno, error.strerror, str(plan.run_dir))
            raise RunError(file_trouble(error)) from error

    try:
        code = exit_code_of(run)
    except Exception as error:  # a fault of this project: the others must not wait for this rank
        traceback.print_exc()
        if rank() != 0:
            where = f"all of it is in {log_path(plan.run_dir, rank())}"
            print(f"error (rank {rank()}): {error!r}; {where}", file=sys.stderr)
        code = EXIT_RUN_FAILED
    log_end(code)
    leave(code)


def train(plan: RunPlan, corpus: Corpus, options: StartOptions = TRAIN) -> int:
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
    timeout = plan.recipe.health.timeout_seconds
    # Collectives wait longer than the watchdog, which says which rank it is.
    device = join(
        1 + 2 * timeout / 60, rendezvous_seconds=max(60.0, min(timeout, _RENDEZVOUS_SECONDS))
    )
    # From here on each signal is heard, and a rank or machine that dies is named.
    with StopRequest() as stop, Watchdog(plan.run_dir, timeout) as watchdog, _explained(watchdog):
        if check_together(plan, corpus, watchdog, stop, writes=options.replay_step is None):
            return EXIT_PREEMPTED
        with nullcontext() if options.replay_step else _locked(plan):
            try:
                with _explained(watchdog):
                    return _train(plan, corpus, options, device, stop, watchdog)
            except (RunError, RuntimeError) as error:
                note_fault(plan, options, str(error))
                raise


@contextmanager
def _explained(watchdog: Watchdog) -> Iterator[None]:
    """In place of what torch raises where a peer is gone: which one, and how it ended."""
    try:
        yield
    except RuntimeError as error:
        if sentence := watchdog.what_happened(error):
            raise RunError(sentence) from error
        raise


def _train(
    plan: RunPlan,
    corpus: Corpus,
    options: StartOptions,
    device: torch.device,
    stop: StopRequest,
    watchdog: Watchdog,
) -> int:
    watchdog.mark(0, "starting")
    training = options.replay_step is None  # otherwise nothing is written
    deepspeed_config = plan.deepspeed(cpu_adam=use_cpu_adam(plan))
    clear_stale_locks(plan)
    hosts = gathered(platform.node())
    if training:
        by_rank_0(lambda: write_run_files(plan, deepspeed_config, hosts))
    else:
        deepspeed_config = without_monitors(deepspeed_config)
    recipe, derived = plan.recipe, plan.derived
    engine = build_engine(
        GPT2Config(**model_fields(recipe, derived.vocab_size)),
        deepspeed_config,
        seed=recipe.seed,
        compile_model=recipe.model.compile,
    )
    watchdog.mark(0, "loading")
    torch.manual_seed(recipe.seed + 1 + rank())  # dropout differs between ranks
    document_eot = corpus.tokenizer.eot_token if recipe.data.document_mask else None
    restored = load_newest(
        plan,
        engine,
        data_fingerprint=corpus.fingerprint,
        probe_loss=lambda tokens: probe_loss(engine, tokens, device, document_eot),
        strict=options.strict,
        goes_on=watchdog.goes_on,
        until_step=None if options.replay_step is None else options.replay_step - 1,
    )
    watchdog.mark(0, "beginning")
    start = restored.progress
    ledger = Ledger(plan.run_dir, silent=not training)
    skipped = by_rank_0(lambda: _skip_samples(plan, options, restored, ledger))
    if training:
        note_start(plan, restored, ledger)
    say(headline(plan, start.step))
    samples = corpus.samples(recipe.seed, skipped)
    metrics = Metrics(plan, engine)
    if training:
        metrics.go_on_after(start.step)
    if start.step == plan.last_step and not evaluation_owed(plan, metrics, start.step):
        if training:  # the job before may have ended in it
            finish_copy(plan, start.step, watchdog.goes_on)
        return note_end(plan, start, ledger, "", owed=False)
    began = time.perf_counter()
    with ExitStack() as stack:
        batch = derived.batches.of_step(start.step + 1)
        loader = stack.enter_context(
            TokenLoader(
                samples,
                global_batch_size=batch.global_batch_size,
                micro_batch_size=batch.micro_batch_size,
                rank=rank(),
                world_size=world_size(),
                samples_seen=start.samples_seen,
                pin_memory=device.type == "cuda",
            )
        )
        stack.enter_context(closing(corpus))  # before the loader, which may wait for a download
        last_sample = derived.batches.samples_after(plan.last_step)
        corpus.follow(
            lambda: samples.upcoming(loader.samples_read, last_sample, local_ranks(), world_size())
        )
        pulse = copying(plan, watchdog.goes_on)
        sends = training and rank() == 0 and recipe.checkpoint.copy_to is not None
        uploader = Uploader(remote_of(plan, pulse.beat)) if sends else None
        if uploader is not None:
            stack.callback(uploader.close, _UPLOAD_SECONDS_AT_A_STOP)
            if restored.manifest is not None:  # the job before may have ended in its upload
                uploader.submit(plan.run_dir / "checkpoints" / step_name(start.step))
        probe = probe_tokens(plan, corpus)
        facts = RunFacts(
            data_fingerprint=corpus.fingerprint,
            tokenizer_dir=corpus.tokenizer_directory,
            skipped_samples=list(skipped),
            probe=probe,
            probe_loss=lambda: probe_loss(engine, probe, device, document_eot),
            uploader=uploader,
        )
        run = Run(
            plan=plan,
            corpus=corpus,
            samples=samples,
            engine=engine,
            loader=loader,
            metrics=metrics,
            checkpoints=stack.enter_context(
                closing(
                    Checkpoints(
                        plan,
                        engine,
                        facts,
                        watchdog.goes_on,
                        behind=partial(watchdog.goes_on, behind=True),
                    )
                )
            ),
            health=Health(plan, engine, samples, ledger, stop, watchdog, hosts),
            device=device,
            document_eot=document_eot,
        )
        if options.replay_step is not None:
            replay(run, start, options.replay_step)
            return EXIT_DONE
        end = train_steps(run, start)
        owed = evaluation_owed(plan, metrics, end.step)
        copied = end.step == plan.last_step and recipe.checkpoint.copy_to is not None
        if copied:
            until_all(lambda: stop.reason is not None or uploader is None or uploader.idle, pulse)
        reasons = run.health.stop_reasons()
        owed |= copied and bool(reasons)
    if end.step == plan.last_step and not owed:
        finish_copy(plan, end.step, watchdog.goes_on)
    say(f"Trained for {timedelta(seconds=round(time.perf_counter() - began))}.")
    return note_end(plan, end, ledger, reasons, owed)


@contextmanager
def _locked(plan: RunPlan) -> Iterator[None]:
    """Only one job at a time writes a run directory. Collective."""
    lock = RunLock(plan.run_dir)

    def take() -> None:
        lock.__enter__()

    by_rank_0(take)
    try:
        yield
    finally:
        if rank() == 0:
            lock.__exit__(None, None, None)


def _skip_samples(
    plan: RunPlan, options: StartOptions, restored: Restored, ledger: Ledger
) -> Ranges:
    """The ranges that this run leaves out, with those asked for now written down."""
    start, manifest = restored.progress, restored.manifest
    replaying = options.replay_step is not None
    if manifest is not None and not replaying and not (plan.run_dir / SKIPPED_FILE).exists():
        add_skipped(plan.run_dir, tuple(manifest.skipped_samples), 0)  # from a copy elsewhere
    wanted = () if replaying else parse_ranges(options.skip_samples)
    ranges, fresh = add_skipped(plan.run_dir, wanted, start.samples_seen)
    tokens_seen = start.samples_seen * plan.recipe.data.seq_length
    for first, end in fresh:
        reason = f"--skip-samples {first}:{end}"
        ledger.write("skip_samples", step=start.step, tokens_seen=tokens_seen, reason=reason)
    return ranges
