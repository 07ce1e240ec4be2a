"""Set up a run, train, and say what to do next."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from typing import NoReturn

import torch

from gpt2_ds.config.deepspeed import without_monitors
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import EXIT_DONE, EXIT_PREEMPTED, RunError, exit_code_of
from gpt2_ds.config.launcher import local_ranks, rank, world_size
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.supervisor import attempt
from gpt2_ds.data.corpus import Corpus
from gpt2_ds.data.loader import TokenLoader
from gpt2_ds.data.skipped import SKIPPED_FILE, Ranges
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.agreement import FILE_TROUBLES, by_rank_0, file_trouble, gathered
from gpt2_ds.parallel.engine import build_engine
from gpt2_ds.parallel.process_group import device_title, join, leave
from gpt2_ds.train.arguments import TRAIN, StartOptions
from gpt2_ds.train.checkpoint import Checkpoints, Progress, RunFacts
from gpt2_ds.train.checkpoint_manifest import step_name
from gpt2_ds.train.first_checks import check_dtype, use_cpu_adam, verify_together
from gpt2_ds.train.health import Health
from gpt2_ds.train.ledger import Event, Ledger
from gpt2_ds.train.loop import Run, evaluation_owed, train_steps
from gpt2_ds.train.metrics import Metrics
from gpt2_ds.train.probe import probe_loss, probe_tokens
from gpt2_ds.train.remote_checkpoints import Uploader
from gpt2_ds.train.replay import replay
from gpt2_ds.train.restore import Restored, load_newest, remote_of
from gpt2_ds.train.run_directory import write_run_files
from gpt2_ds.train.run_lock import RunLock
from gpt2_ds.train.skipped_samples import add_skipped, parse_ranges
from gpt2_ds.train.stop_request import StopRequest
from gpt2_ds.train.terminal import say
from gpt2_ds.train.watchdog import Watchdog

_UPLOAD_SECONDS_AT_A_STOP = 10.0  # launchers kill after 30


def train_and_leave(plan: RunPlan, corpus: Corpus, options: StartOptions) -> NoReturn:
    """Train, then end this process with the exit code of what happened."""

    def run() -> int:
        try:
            return train(plan, corpus, options)
        except OSError as error:
            if error.errno not in FILE_TROUBLES:
                raise
            raise RunError(file_trouble(error)) from error

    leave(exit_code_of(run))


def train(plan: RunPlan, corpus: Corpus, options: StartOptions = TRAIN) -> int:
    """Train `plan` from its newest checkpoint, or from the first step.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.
        options: how this job begins.

    Returns:
        The exit code: done, or stopped by a signal and saved.

    Raises:
        UserError: a shard is not what the manifest says.
        RunError: the run failed in a way that is understood.
    """
    # Longer than the watchdog's, which says which rank it is.
    device = join(1 + 2 * plan.recipe.health.timeout_seconds / 60)
    check_dtype(plan)
    verify_together(corpus)
    with (
        StopRequest() as stop,
        Watchdog(plan.run_dir, plan.recipe.health.timeout_seconds) as watchdog,
    ):
        try:
            with nullcontext() if options.replay_step else _locked(plan):
                return _train(plan, corpus, options, device, stop, watchdog)
        except RuntimeError as error:  # what torch raises where a peer is gone
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
        until_step=None if options.replay_step is None else options.replay_step - 1,
    )
    watchdog.mark(0, "beginning")
    start = restored.progress
    ledger = Ledger(plan.run_dir)
    skipped = by_rank_0(lambda: _skip_samples(plan, options, restored, ledger))
    if training:
        _note_start(plan, restored, ledger)
    say(_headline(plan, start.step))
    samples = corpus.samples(recipe.seed, skipped)
    metrics = Metrics(plan, engine)
    if training:
        metrics.go_on_after(start.step)
    if start.step == plan.last_step and not evaluation_owed(plan, metrics, start.step):
        say(_next_words(plan, start.step))
        return EXIT_DONE
    began = time.perf_counter()
    with ExitStack() as stack:
        loader = stack.enter_context(
            TokenLoader(
                samples,
                global_batch_size=derived.global_batch_size,
                micro_batch_size=recipe.batch.micro_batch_size,
                rank=rank(),
                world_size=world_size(),
                samples_seen=start.samples_seen,
                pin_memory=device.type == "cuda",
            )
        )
        stack.enter_context(closing(corpus))  # before the loader, which may wait for a download
        last_sample = plan.last_step * derived.global_batch_size
        corpus.follow(
            lambda: samples.upcoming(loader.samples_read, last_sample, local_ranks(), world_size())
        )
        uploader = Uploader(remote_of(plan)) if _uploads(plan) else None
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
            checkpoints=stack.enter_context(closing(Checkpoints(plan, engine, facts))),
            health=Health(plan, engine, samples, ledger, stop, watchdog, hosts),
            device=device,
            document_eot=document_eot,
        )
        if options.replay_step is not None:
            replay(run, start, options.replay_step)
            return EXIT_DONE
        try:
            end = train_steps(run, start)
        except RunError as error:
            saved = run.checkpoints.last_saved or start.step
            tokens_seen = saved * recipe.batch.global_batch_tokens
            ledger.write("stop", step=saved, tokens_seen=tokens_seen, reason=str(error))
            raise
        reasons = run.health.stop_reasons()
        if uploader is not None and end.step == plan.last_step:
            uploader.close(while_waiting=lambda: run.health.mark(end.step, "copying"))
    say(f"Trained for {timedelta(seconds=round(time.perf_counter() - began))}.")
    return _end(plan, end, ledger, reasons)


def _uploads(plan: RunPlan) -> bool:
    return rank() == 0 and plan.recipe.checkpoint.copy_to is not None


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
    if manifest is not None and not (plan.run_dir / SKIPPED_FILE).exists():
        add_skipped(plan.run_dir, tuple(manifest.skipped_samples), 0)  # from a copy elsewhere
    wanted = parse_ranges(options.skip_samples) if options.replay_step is None else ()
    ranges, fresh = add_skipped(plan.run_dir, wanted, start.samples_seen)
    tokens_seen = start.samples_seen * plan.recipe.data.seq_length
    for first, end in fresh:
        reason = f"--skip-samples {first}:{end}"
        ledger.write("skip_samples", step=start.step, tokens_seen=tokens_seen, reason=reason)
    return ranges


def _note_start(plan: RunPlan, restored: Restored, ledger: Ledger) -> None:
    """Write down how this job begins, and what differs from the one before."""
    step, manifest = restored.progress.step, restored.manifest
    tokens_seen = restored.progress.samples_seen * plan.recipe.data.seq_length
    ranks, stage = world_size(), plan.template.zero_optimization.stage

    def note(event: Event, reason: str) -> None:
        ledger.write(event, step=step, tokens_seen=tokens_seen, reason=reason)

    for found in restored.passed_over:
        note("fall_back", f"{found} is not what was saved")
    if attempt() > 0:
        note("restart", f"attempt {attempt()} of this job after a failure")
    if manifest is None:
        note("start", f"{ranks} ranks, ZeRO stage {stage}")
        return
    note("resume", f"from {step_name(step)}, {ranks} ranks, ZeRO stage {stage}")
    if manifest.world_size != ranks:
        note("world_size", f"{manifest.world_size} ranks before, {ranks} now")
    if manifest.zero_stage != stage:
        note("zero_stage", f"stage {manifest.zero_stage} before, {stage} now")


def _end(plan: RunPlan, end: Progress, ledger: Ledger, reasons: str) -> int:
    """Write down and say how this job ended."""
    tokens_seen = end.samples_seen * plan.recipe.data.seq_length
    if end.step < plan.last_step:
        ledger.write("stop", step=end.step, tokens_seen=tokens_seen, reason=reasons)
        say(f"Stopped after step {end.step} ({reasons}), and saved. The same command goes on.")
        return EXIT_PREEMPTED
    if end.step == plan.derived.steps:
        ledger.write("done", step=end.step, tokens_seen=tokens_seen, reason="the last step is done")
    say(_next_words(plan, end.step))
    return EXIT_DONE


def _headline(plan: RunPlan, step: int) -> str:
    derived, zero = plan.derived, plan.template.zero_optimization.stage
    begin = f"going on after step {step}" if step else "from step 1"
    return (
        f"{plan.loaded.name}: {derived.n_parameters:,} parameters, {derived.steps:,} steps of "
        f"{plan.recipe.batch.global_batch_tokens:,} tokens ({derived.world_size} ranks x "
        f"{plan.recipe.batch.micro_batch_size} sequences x {derived.gradient_accumulation_steps} "
        f"micro-steps), ZeRO stage {zero}, {plan.recipe.precision.dtype}, on {device_title()}; "
        f"{begin}"
    )


def _next_words(plan: RunPlan, step: int) -> str:
    prompt = plan.recipe.evaluation.sample_prompt or "The "
    state = "complete" if step == plan.derived.steps else f"stopped after step {step}, as asked"
    return (
        f"The run in {plan.run_dir} is {state}. Next:\n"
        f"  tensorboard --logdir {plan.run_dir.parent}\n"
        f'  python launch/generate.py --run {plan.run_dir} --prompt "{prompt}"'
    )
