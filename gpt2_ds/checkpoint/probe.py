"""The probe batch: tokens whose loss says that what was loaded is what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpt2_ds.config.errors import RunError, on_all_ranks
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.evaluation.loss import validation_loss
from gpt2_ds.parallel.agreement import gathered

PROBE_FILE = "probe.npy"
TOLERANCE = 1e-3  # nats; of the loss itself where that is above one
_TOKENS = 256  # enough to see one wrong tensor, few enough for a CPU

Tokens = npt.NDArray[np.int64]


def probe_tokens(plan: RunPlan, corpus: Corpus) -> Tokens:
    """The first tokens of the validation split: (1, up to 256 + 1), the same for every rank.

    A compiled model gets the shape of its validation batches, so that it compiles nothing more.
    """
    recipe = plan.recipe
    rows, length = 1, min(recipe.data.seq_length, _TOKENS)
    if recipe.model.compile:
        rows, length = recipe.batch.micro_batch_size, recipe.data.seq_length
    split = next(iter(corpus.datasets.values())).split("validation")
    return split.windows(np.zeros(rows, dtype=np.int64), length).astype(np.int64)


def probe_loss(
    engine: Any, tokens: Tokens, device: torch.device, document_eot: int | None
) -> float:
    """Nats per token; every rank computes the same. Collective under ZeRO-3."""
    batch = [(torch.from_numpy(tokens), len(tokens))]
    return validation_loss(engine, batch, device, document_eot=document_eot)


def check_probe(checkpoint: Path, saved: float, loaded: float) -> None:
    """Compare the loss after loading with the loss when the checkpoint was saved. Collective.

    Raises:
        RunError: they differ, on some rank, by more than rounding can explain.
    """
    tolerated = TOLERANCE * max(1.0, abs(saved))
    losses = gathered(loaded)
    if wrong := [i for i, loss in enumerate(losses) if not abs(loss - saved) <= tolerated]:
        where = "" if len(wrong) == len(losses) else f" on rank {wrong[0]}"
        raise on_all_ranks(
            RunError(
                f"{checkpoint / PROBE_FILE}: its loss is {losses[wrong[0]]:.6f} after loading"
                f"{where} and was {saved:.6f} when saved: these are not the weights of that step. "
                "Training stops before it harms the run; go back to the versions that "
                "environment.json names, or report this."
            )
        )
