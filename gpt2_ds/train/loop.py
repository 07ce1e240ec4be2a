"""The training loop, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.corpus import Corpus
from gpt2_ds.data.loader import TokenLoader
from gpt2_ds.data.samples import Samples
from gpt2_ds.evaluation.loss import window_loss
from gpt2_ds.parallel.engine import reduced_gradient_norm, set_learning_rate
from gpt2_ds.train.checkpoint import Progress, save_checkpoint
from gpt2_ds.train.metrics import Metrics
from gpt2_ds.train.schedule import learning_rate
from gpt2_ds.train.validation import show_sample, validate


@dataclass(frozen=True)
class Run:
    """A run that is ready to step.

    Args:
        plan: recipe, template and what follows from them.
        corpus: what it reads.
        samples: in which order it trains on them.
        engine: DeepSpeed's, around the model.
        loader: this rank's micro-batches, from the first one not yet seen.
        metrics: where numbers go.
        device: of this rank.
        document_eot: the token that begins a document, when attention stays inside documents.
    """

    plan: RunPlan
    corpus: Corpus
    samples: Samples
    engine: Any
    loader: TokenLoader
    metrics: Metrics
    device: torch.device
    document_eot: int | None


def train_steps(run: Run, start: Progress) -> Progress:
    """Take every step from `start` to the plan's last one; validate, log and save on the way."""
    plan, recipe, engine, metrics = run.plan, run.plan.recipe, run.engine, run.metrics
    accumulation = plan.derived.gradient_accumulation_steps
    progress = start
    while progress.step < plan.last_step:
        samples_seen = progress.samples_seen + plan.derived.global_batch_size
        progress = Progress(progress.step + 1, samples_seen)
        step, last = progress.step, progress.step == plan.last_step
        save_due = last or step % recipe.checkpoint.interval_steps == 0
        evaluation_due = last or step % recipe.evaluation.interval_steps == 0
        # Logging waits for the device, so no step is timed as a part of what comes after it; and it
        # looks at the loss: once it is no number, nothing is saved any more.
        log_due = save_due or evaluation_due or step % recipe.logging.interval_steps == 0
        log_due |= step == start.step + 1  # which compiles and fills caches

        rate = learning_rate(
            recipe.schedule, recipe.optimizer.lr, samples_seen * recipe.data.seq_length
        )
        set_learning_rate(engine, rate)
        step_loss, norm = torch.zeros((), device=run.device), None
        for micro_step in range(accumulation):
            with metrics.waiting_for_data():
                tokens = next(run.loader)  # (B, T + 1)
            tokens = tokens.to(run.device, non_blocking=True)
            loss = window_loss(engine, tokens, document_eot=run.document_eot)
            engine.backward(loss)  # divides by the accumulation steps itself
            step_loss += loss.detach() / accumulation
            if log_due and micro_step == accumulation - 1:
                norm = reduced_gradient_norm(engine)
            engine.step()  # updates the weights in the last micro-step only
        metrics.step_done()

        if log_due:
            sources = run.samples.tokens_by_source(samples_seen)
            metrics.log_step(step, step_loss, rate, norm, sources)
        with metrics.aside():
            if save_due:
                save_checkpoint(
                    plan,
                    engine,
                    progress,
                    data_fingerprint=run.corpus.fingerprint,
                    tokenizer_dir=run.corpus.tokenizer_directory,
                )
            if evaluation_due:
                metrics.log_validation(step, validate(run), run.samples.weights(samples_seen))
                show_sample(run, step)
    return progress
