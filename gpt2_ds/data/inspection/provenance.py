"""Where each sample of a training step comes from: shard, offset, documents, text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.data.inspection.inspection import Report
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.order.skipped import read_skipped
from gpt2_ds.data.reading.corpus import Corpus


def where(*, recipe: Path, step: int, set: Sequence[str] = (), characters: int = 200) -> Report:
    """`step_samples` of a recipe. It is the same on any number of devices.

    Samples that the run in the recipe's run directory skips are skipped.

    Raises:
        UserError: the recipe is wrong; or as `step_samples`.
    """
    plan = resolve_run(recipe, world_size=1, overrides=set)
    return Report(list(step_samples(plan, step, characters)))


def step_samples(plan: RunPlan, step: int, n_characters: int) -> Iterator[str]:
    """What an optimizer step reads; the same for any number of ranks.

    Args:
        plan: the run.
        step: 1 is the first.
        n_characters: of each sample's text; 0 shows all of it.

    Yields:
        Per sample a line: its number, dataset, shard, first token and byte, documents; and its
        text.

    Raises:
        UserError: there is no such step, a dataset is missing or broken, or the run's list of
            skipped samples is.
    """
    if not 1 <= step <= plan.derived.steps:
        raise user_error(
            f"--step {step}", "no step of this run", f"It has steps 1 to {plan.derived.steps}."
        )
    corpus = Corpus.open(plan.recipe.data, plan.loaded.where)
    samples = corpus.samples(plan.recipe.seed, read_skipped(plan.run_dir))
    batches = plan.derived.batches
    positions = np.arange(batches.samples_after(step - 1), batches.samples_after(step))
    ids, (sources, windows) = samples.skipped.samples(positions), samples.locate(positions)
    eot_token = corpus.tokenizer.eot_token
    for sample, source, window in zip(
        ids.tolist(), sources.tolist(), windows.tolist(), strict=True
    ):
        tokens, where = _window(samples, source, window, eot_token)
        text = corpus.tokenizer.decode(tokens)
        cut = (
            text if n_characters == 0 or len(text) <= n_characters else f"{text[:n_characters]}..."
        )
        yield f"sample {sample}: {where}"
        yield from (f"  | {line}" for line in cut.splitlines() or [""])


def _window(samples: Samples, source: int, window: int, eot_token: int) -> tuple[list[int], str]:
    """Its tokens, and in words where they are."""
    split, seq_length = samples.splits[source], samples.seq_length
    shard, first = split.place(window, seq_length)
    entry, tokens = split.entries[shard], split.tokens(shard)
    last = first + seq_length
    # The first token belongs to the document whose end-of-text is the last one before it.
    before = int(np.count_nonzero(tokens[: first + 1] == eot_token))
    within = int(np.count_nonzero(tokens[first + 1 : last + 1] == eot_token))
    documents = f"document {max(1, before)}"
    if within:
        documents = f"documents {max(1, before)} to {before + within}"
    offset = entry.bytes - (len(tokens) - first) * tokens.itemsize
    name = f"{samples.names[source]} " if samples.names[source] else ""
    return (
        tokens[first : last + 1].tolist(),
        f"{name}{entry.file}, tokens {first} to {last} (from byte {offset}), {documents}",
    )
