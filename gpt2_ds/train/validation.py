"""Validation loss and a sample in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from gpt2_ds.data.reading.loader import validation_batches
from gpt2_ds.evaluation.generation import generate
from gpt2_ds.evaluation.loss import validation_loss
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.agreement import totals
from gpt2_ds.record.terminal import say
from gpt2_ds.train.ready_run import Run


class StoppedEarly(Exception):
    """Some rank was asked to stop; every rank leaves at the same batch."""


def validate(run: Run, step: int) -> dict[str, float]:
    """Loss over the recipe's fixed validation windows of each source. Collective.

    Args:
        run: the run.
        step: after which it validates.

    Returns:
        Nats per token, by the name of the source.

    Raises:
        StoppedEarly: some rank was asked to stop.
    """
    plan = run.plan
    losses = {}
    for name, dataset in run.corpus.datasets.items():
        batches = validation_batches(
            dataset.split("validation"),
            n_windows=plan.derived.evaluation_windows,
            seq_length=plan.recipe.data.seq_length,
            micro_batch_size=plan.recipe.batch.micro_batch_size,
            rank=rank(),
            world_size=plan.derived.world_size,
        )
        losses[name] = validation_loss(
            run.engine,
            _until_stopped(run, step, batches),
            run.device,
            document_eot=run.document_eot,
        )
    return losses


def _until_stopped(
    run: Run, step: int, batches: Iterator[tuple[Tensor, int]]
) -> Iterator[tuple[Tensor, int]]:
    for batch in batches:
        run.health.mark(step, "validating")
        stop, written = totals([run.health.stop_asked, run.checkpoints.written])
        if written == run.plan.derived.world_size:
            run.checkpoints.commit()
        if stop:
            raise StoppedEarly
        yield batch


def show_sample(run: Run, step: int) -> None:
    """Print a continuation of the recipe's prompt.

    Under ZeRO-3 each forward is collective: every rank computes the sample, and none stops early at
    an end-of-text that another rank may not draw.
    """
    evaluation, tokenizer = run.plan.recipe.evaluation, run.corpus.tokenizer
    if evaluation.sample_tokens == 0:
        return
    prompt = [tokenizer.eot_token, *tokenizer.encode(evaluation.sample_prompt).tolist()]
    columns = generate(
        run.engine.module,
        prompt,
        max_new_tokens=evaluation.sample_tokens,
        temperature=0.8,
        top_k=50,
        seed=run.plan.recipe.seed,
    )
    drawn = [int(column[0]) for column in columns]
    ended = drawn.index(tokenizer.eot_token) if tokenizer.eot_token in drawn else len(drawn)
    text = tokenizer.decode(drawn[:ended])
    lines = f"{evaluation.sample_prompt}{text}".rstrip().splitlines()
    say("\n".join([f"sample after step {step}:", *(f"  | {line}" for line in lines)]))
