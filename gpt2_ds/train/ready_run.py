"""A run that is ready to step, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gpt2_ds.checkpoint.checkpoint import Checkpoints
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.data.reading.loader import TokenLoader
from gpt2_ds.health.health import Health
from gpt2_ds.parallel.update import Update
from gpt2_ds.record.metrics import Metrics


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
        checkpoints: where the state goes.
        health: what is watched for: a request to stop, ranks that hang, numbers that are none.
        device: of this rank.
        document_eot: the token that begins a document, when attention stays inside documents.
    """

    plan: RunPlan
    corpus: Corpus
    samples: Samples
    engine: Any
    loader: TokenLoader
    metrics: Metrics
    checkpoints: Checkpoints
    health: Health
    device: torch.device
    document_eot: int | None


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave; the same on every rank.

    Args:
        loss: nats per token, mean over the global batch; nan where some part of it was no number.
        learning_rate: of the update.
        update: whether it was taken, and the gradient norm.
        stop: some rank was asked to stop.
    """

    loss: float
    learning_rate: float
    update: Update
    stop: bool
