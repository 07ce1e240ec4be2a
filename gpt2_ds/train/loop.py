"""The training loop, and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt2_ds.checkpoint.checkpoint import Checkpoints, Progress
from gpt2_ds.config.errors import RunError, on_all_ranks
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.evaluation.loss import window_loss
from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.parallel.agreement import totals
from gpt2_ds.parallel.engine import set_batch, set_learning_rate
from gpt2_ds.parallel.update import apply_update
from gpt2_ds.plan.learning_rate import learning_rate
from gpt2_ds.record.metrics import Metrics
from gpt2_ds.record.terminal import say
from gpt2_ds.train.ready_run import Run, Step, StepContext
from gpt2_ds.train.start.job_record import start_up_words
from gpt2_ds.train.validation import StoppedEarly, show_sample, validate


def train_steps(run: Run, start: Progress) -> Progress:
    """Take every step from `start` to the plan's last one, or until some rank is asked to stop.

    Validates, logs and saves on the way; what it returns is saved.

    Raises:
        RunError: the run failed. Where all ranks say so, what was being saved is complete, or the
            error says why not as well.
    """
    plan, recipe, metrics = run.plan, run.plan.recipe, run.metrics
    progress, stop, saved_step = start, False, start.step
    with _saved_before_the_end(run.checkpoints):
        if evaluation_owed(plan, metrics, start.step):
            stop = evaluate(run, start)
        while progress.step < plan.last_step and not stop:
            step = progress.step + 1
            taken = take_step(run, progress)
            skipped = progress.skipped_updates + taken.update.faulty
            before = progress
            progress = Progress(step, plan.derived.batches.samples_after(step), skipped)
            metrics.step_done()
            if step == start.step + 1:
                say(start_up_words())
            stop = taken.stop

            save_due = (
                stop or step == plan.last_step or step % recipe.checkpoint.interval_steps == 0
            )
            evaluate_now = evaluation_due(plan, step) and not stop
            log_due = save_due or evaluate_now or step % recipe.logging.interval_steps == 0
            log_due |= step == start.step + 1  # which compiles and fills caches
            if log_due:
                sources = run.samples.tokens_by_source(progress.samples_seen)
                norm = taken.update.gradient_norm
                metrics.log_step(step, taken.loss, taken.learning_rate, norm, sources, skipped)
            with metrics.outside_steps():
                samples = run.samples.numbers(before.samples_seen, progress.samples_seen)
                run.health.look_at(step, taken.loss, taken.update, samples)
                if save_due:
                    save(run, progress)
                    saved_step = step
                if evaluate_now:
                    stop = evaluate(run, progress)
        if saved_step < progress.step:  # asked to stop while it validated
            save(run, progress)
        run.health.mark(progress.step, "saving")
        run.checkpoints.finish()
    return progress


@contextmanager
def _saved_before_the_end(checkpoints: Checkpoints) -> Iterator[None]:
    """Let what is being written become complete before an error of all ranks ends the run.

    That checkpoint is sound, whatever the error says of the weights now: the ranks compared it.
    """
    try:
        yield
    except RunError as error:
        if not error.said_by_rank_0:  # the other ranks are elsewhere: no collective would end
            raise
        try:
            checkpoints.finish()
        except RunError as in_saving:
            raise on_all_ranks(RunError(f"{error}\n{in_saving}")) from None
        raise


def take_step(run: StepContext, done: Progress) -> Step:
    """One optimizer step: micro-steps, an agreement of all ranks, the update."""
    recipe, engine, health = run.plan.recipe, run.engine, run.health
    step, batches = done.step + 1, run.plan.derived.batches
    batch = batches.of_step(step)
    samples_seen, accumulation = batches.samples_after(step), batch.gradient_accumulation_steps
    set_batch(engine, batch)
    run.loader.micro_batch_size = batch.micro_batch_size
    rate = learning_rate(
        recipe.schedule, recipe.optimizer.lr, samples_seen * recipe.data.seq_length
    )
    set_learning_rate(engine, rate)
    step_loss = torch.zeros((), device=run.device)
    for micro_step in range(accumulation):
        health.mark(step, "reading data")
        with health.compute_time.alone():
            with run.metrics.waiting_for_data():
                tokens = next(run.loader)  # (B, T + 1)
            health.mark(step, "computing")
            tokens = tokens.to(run.device, non_blocking=True)
            loss = window_loss(engine, tokens, document_eot=run.document_eot)
        with health.compute_time.together():
            engine.backward(loss)  # divides by the accumulation steps itself
            if micro_step < accumulation - 1:
                engine.step()  # counts the micro-step
        step_loss += loss.detach() / accumulation
    own_loss = float(step_loss)  # waits until the device has done the backward
    health.mark(step, "agreeing")
    broken, stop, written, loss_sum = totals(
        [
            not math.isfinite(own_loss),
            health.stop_asked,
            run.checkpoints.written,
            own_loss if math.isfinite(own_loss) else 0.0,
        ]
    )
    health.before_update(step)
    with health.compute_time.together():
        update = apply_update(engine, skip=broken > 0)
    health.after_step(step)
    if written == world_size():
        run.checkpoints.commit()
    return Step(math.nan if broken else loss_sum / world_size(), rate, update, stop > 0)


def save(run: Run, progress: Progress) -> None:
    """Begin to save; what is saved is what all ranks hold."""
    run.health.before_save(progress.step)
    run.checkpoints.begin(progress)


def evaluation_due(plan: RunPlan, step: int) -> bool:
    """Whether a step is followed by a validation."""
    return (
        step == plan.derived.steps
        or step == plan.last_step
        or (step % plan.recipe.evaluation.interval_steps == 0)
    )


def evaluation_owed(plan: RunPlan, metrics: Metrics, step: int) -> bool:
    """Whether the job before saved this step and ended before it had validated."""
    return step > 0 and evaluation_due(plan, step) and not metrics.validated(step)


def evaluate(run: Run, progress: Progress) -> bool:
    """Validate and show a sample; False, or True when some rank was asked to stop meanwhile."""
    began = time.perf_counter()
    try:
        losses = validate(run, progress.step)
    except StoppedEarly:
        return True
    seconds = time.perf_counter() - began
    weights = run.samples.weights(progress.samples_seen)
    run.metrics.log_validation(progress.step, losses, weights, seconds)
    if all(map(math.isfinite, losses.values())):  # or no token can be drawn
        show_sample(run, progress.step)
    return False
