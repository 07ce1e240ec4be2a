"""A run that is ready to step, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2_ds.checkpoint.checkpoint import Checkpoints
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.health.health import Health
from gpt2_ds.parallel.update import Update
from gpt2_ds.record.metrics import Metrics


class MicroBatches(Protocol):
    """Gives this rank's micro-batches, one after the other."""

    micro_batch_size: int
    """Sequences of the next one; set before each optimizer step."""

    def __next__(self) -> Tensor:
        """(micro_batch_size, T + 1) int64."""


@dataclass(frozen=True)
class StepContext:
    """All that an optimizer step needs.

    Args:
        plan: recipe, template and what follows from them.
        engine: DeepSpeed's, around the model.
        loader: this rank's micro-batches, from the first one not yet seen.
        metrics: where numbers go.
        checkpoints: where the state goes.
        health: what is watched for: requests to stop, ranks that hang, numbers not finite.
        device: of this rank.
        document_eot: the token that begins a document, when attention stays inside documents.
    """

    plan: RunPlan
    engine: Any
    loader: MicroBatches
    metrics: Metrics
    checkpoints: Checkpoints
    health: Health
    device: torch.device
    document_eot: int | None


@dataclass(frozen=True)
class Run(StepContext):
    """A run that is ready to step.

    Args:
        corpus: what it reads.
        samples: in which order it trains on them.
    """

    corpus: Corpus
    samples: Samples


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave; the same on every rank.

    Args:
        loss: nats per token, mean over the global batch; nan where some rank's was not finite.
        learning_rate: of the update.
        update: whether it was taken, and the gradient norm.
        stop: some rank was asked to stop.
    """

    loss: float
    learning_rate: float
    update: Update
    stop: bool
