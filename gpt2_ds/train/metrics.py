"""What a run reports: lines on the terminal, metrics.jsonl, and DeepSpeed's monitors."""

from __future__ import annotations

import json
import math
import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.launcher import rank, world_size
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.parallel.engine import gradient_norm, loss_scale
from gpt2_ds.parallel.process_group import device_title, peak_memory_bytes
from gpt2_ds.plan.flops import flops_per_token, model_flops_utilization
from gpt2_ds.train.run_directory import write_text
from gpt2_ds.train.terminal import say


class Metrics:
    """Measures the steps and writes what they gave; the collective calls are the same on all ranks.

    Args:
        plan: the run.
        engine: whose monitors are written to.
        first_step: steps already done by an earlier process.
    """

    def __init__(self, plan: RunPlan, engine: Any, first_step: int) -> None:
        recipe, derived = plan.recipe, plan.derived
        self._plan, self._engine = plan, engine
        self._batch_tokens = recipe.batch.global_batch_tokens
        self._flops = flops_per_token(
            derived.n_parameters,
            recipe.model.n_layer,
            recipe.model.n_embd,
            recipe.data.seq_length,
        )
        self._path = plan.run_dir / "metrics.jsonl"
        self._steps, self._wait, self._aside = 0, 0.0, 0.0
        self._since = time.perf_counter()
        if rank() == 0:
            keep_metrics_until(self._path, first_step)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent here is data_wait_seconds."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time spent here (validation, saving) is no part of a step."""
        start = time.perf_counter()
        yield
        self._aside += time.perf_counter() - start

    def step_done(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def log_step(
        self,
        step: int,
        loss: Tensor,
        learning_rate: float,
        norm: float | None,
        tokens_by_source: dict[str, int],
    ) -> None:
        """Write the step that was just done, and the speed since the last call.

        Args:
            step: optimizer steps done.
            loss: scalar, mean of this rank's micro-steps.
            learning_rate: of this update.
            norm: the gradient norm where the engine keeps none.
            tokens_by_source: seen so far, by the name of the source, where there are several.

        Raises:
            RunError: the loss or the gradient norm is no finite number. In fp16 a norm may be: the
                loss scale finds its size by it, and DeepSpeed leaves such an update out.
        """
        mean = loss.detach().double().reshape(1).clone()
        worst = torch.tensor([self._wait, peak_memory_bytes()], dtype=torch.float64)
        worst = worst.to(loss.device)
        torch.distributed.all_reduce(mean)
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        loss_value = float(mean) / world_size()  # waits for the device: the time below is complete
        now = time.perf_counter()
        step_seconds = (now - self._since - self._aside) / self._steps
        tokens_per_second = self._batch_tokens / step_seconds
        values = {
            "loss": loss_value,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm(self._engine) if norm is None else norm,
            "tokens_seen": step * self._batch_tokens,
            **{f"tokens_seen_{name}": tokens for name, tokens in tokens_by_source.items()},
            "tokens_per_second": tokens_per_second,
            "step_seconds": step_seconds,
            "data_wait_seconds": float(worst[0]) / self._steps,
            "mfu": model_flops_utilization(
                tokens_per_second, self._flops, device_title(), world_size()
            ),
            "peak_memory_bytes": int(worst[1]),
            "loss_scale": loss_scale(self._engine),
        }
        self._steps, self._wait, self._aside, self._since = 0, 0.0, 0.0, now
        self._write("train", step, values)
        left = timedelta(seconds=round(step_seconds * (self._plan.last_step - step)))
        mfu = "" if values["mfu"] is None else f"  mfu {values['mfu']:.3f}"
        say(
            f"step {step:>{len(str(self._plan.last_step))}}/{self._plan.last_step}  "
            f"loss {loss_value:.4f}  lr {learning_rate:.2e}  "
            f"{tokens_per_second:,.0f} tokens/s{mfu}  {left} left"
        )
        watched = {"loss": loss_value}
        if self._plan.recipe.precision.dtype != "fp16":
            watched["gradient norm"] = values["gradient_norm"] or 0.0
        for name, value in watched.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{self._plan.run_dir}: step {step}: the {name} is {value}. The last "
                    "checkpoint is untouched; lower optimizer.lr or look at the data of this step."
                )

    def log_validation(self, step: int, losses: dict[str, float], weights: list[float]) -> None:
        """Write the validation loss and its perplexity, and the loss of each source.

        Args:
            step: optimizer steps done.
            losses: nats per token, by the name of the source.
            weights: of each source in the mean of all.
        """
        loss = sum(map(operator.mul, losses.values(), weights)) / sum(weights)
        perplexity = math.exp(min(loss, 700.0))
        by_source = {f"loss_{name}": each for name, each in losses.items() if name}
        self._write("validation", step, {"loss": loss, "perplexity": perplexity} | by_source)
        words = "".join(f"  {name} {each:.4f}" for name, each in losses.items() if name)
        say(f"validation after step {step}: loss {loss:.4f}  perplexity {perplexity:.2f}{words}")

    def _write(self, kind: str, step: int, values: dict[str, float | None]) -> None:
        if rank() != 0:
            return
        present = {name: value for name, value in values.items() if value is not None}
        prefix = "" if kind == "train" else f"{kind}_"
        line = {"step": step} | {
            # JSON has no word for what is no finite number.
            f"{prefix}{name}": value if math.isfinite(value) else None
            for name, value in present.items()
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._engine.monitor.write_events(
            [(f"{kind}/{name}", value, step) for name, value in present.items()]
        )


def keep_metrics_until(path: Path, step: int) -> None:
    """Take off the lines of steps that will be done again, so that the file holds one curve.

    Args:
        path: metrics.jsonl; may be missing.
        step: the last step that counts.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed process left unfinished
    write_text(path, "".join(f"{line}\n" for line in kept))
