"""What a run reports: lines on the terminal, metrics.jsonl, and DeepSpeed's monitors."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.parallel.agreement import by_rank_0
from gpt2_ds.parallel.engine import gradient_norm, loss_scale
from gpt2_ds.parallel.process_group import device_title, local_device, peak_memory_bytes
from gpt2_ds.plan.flops import flops_per_token, model_flops_utilization
from gpt2_ds.record.metrics_file import append_metrics, keep_metrics_until
from gpt2_ds.record.tensorboard import end_curves_at
from gpt2_ds.record.terminal import say


class Metrics:
    """Measures the steps and writes what they gave; the collective calls are the same on all ranks.

    Args:
        plan: the run.
        engine: whose monitors are written to.
    """

    def __init__(self, plan: RunPlan, engine: Any) -> None:
        recipe, derived = plan.recipe, plan.derived
        self._plan, self._engine = plan, engine
        self._flops = flops_per_token(
            derived.n_parameters,
            recipe.model.n_layer,
            recipe.model.n_embd,
            recipe.data.seq_length,
        )
        self._steps, self._wait, self._outside = 0, 0.0, 0.0
        self._since = time.perf_counter()
        self._validated_step = 0

    def resume_from(self, step: int) -> None:
        """Remove what an earlier process wrote of steps that this one takes again. Collective.

        Args:
            step: the last step that counts.

        Raises:
            RunError: the file cannot be written.
        """

        def remove() -> int:
            end_curves_at(self._engine.monitor, step)
            return keep_metrics_until(self._plan.run_dir, step)

        self._validated_step = by_rank_0(remove)

    def validated(self, step: int) -> bool:
        """Whether the validation after the last step that counts is written."""
        return step == self._validated_step

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent here is data_wait_seconds."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    @contextmanager
    def outside_steps(self) -> Iterator[None]:
        """Time spent here (validation, saving) does not count as time of a step."""
        start = time.perf_counter()
        yield
        self._outside += time.perf_counter() - start

    def step_done(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def log_step(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        norm: float | None,
        tokens_by_source: dict[str, int],
        skipped_updates: int,
    ) -> None:
        """Write the step that was just done, and the speed since the last call.

        Args:
            step: optimizer steps done.
            loss: nats per token, the mean of all ranks; may be not finite.
            learning_rate: of this update.
            norm: of the gradient, before clipping; may be not finite. None: as the engine keeps it.
            tokens_by_source: seen so far, by the name of the source, where there are several.
            skipped_updates: so far, because loss or gradient was not finite.
        """
        worst = torch.tensor([self._wait, peak_memory_bytes()], dtype=torch.float64)
        worst = worst.to(local_device())
        torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
        longest_wait, peak_memory = worst.tolist()  # waits for the device: the time is complete
        now = time.perf_counter()
        step_seconds = (now - self._since - self._outside) / self._steps
        tokens_seen = self._tokens_after(step)
        tokens = tokens_seen - self._tokens_after(step - self._steps)
        tokens_per_second = tokens / (step_seconds * self._steps)
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm(self._engine) if norm is None else norm,
            "skipped_updates": skipped_updates,
            "global_batch_tokens": tokens_seen - self._tokens_after(step - 1),
            "tokens_seen": tokens_seen,
            **{f"tokens_seen_{name}": tokens for name, tokens in tokens_by_source.items()},
            "tokens_per_second": tokens_per_second,
            "step_seconds": step_seconds,
            "data_wait_seconds": longest_wait / self._steps,
            "mfu": model_flops_utilization(
                tokens_per_second, self._flops, device_title(), world_size()
            ),
            "peak_memory_bytes": int(peak_memory),
            "loss_scale": loss_scale(self._engine),
        }
        self._steps, self._wait, self._outside, self._since = 0, 0.0, 0.0, now
        self._write("train", step, values)
        tokens_left = self._tokens_after(self._plan.last_step) - tokens_seen
        left = timedelta(seconds=round(tokens_left / tokens_per_second))
        mfu = "" if values["mfu"] is None else f"  mfu {values['mfu']:.3f}"
        skipped = f"  skipped updates: {skipped_updates}" if skipped_updates else ""
        say(
            f"step {step:>{len(str(self._plan.last_step))}}/{self._plan.last_step}  "
            f"loss {loss:.4f}  lr {learning_rate:.2e}  "
            f"{tokens_per_second:,.0f} tokens/s{mfu}{skipped}  {left} left"
        )

    def _tokens_after(self, step: int) -> int:
        """Seen by all ranks after a step."""
        plan = self._plan
        return plan.derived.batches.samples_after(step) * plan.recipe.data.seq_length

    def log_validation(
        self, step: int, losses: dict[str, float], weights: list[float], seconds: float
    ) -> None:
        """Write the validation loss and its perplexity, and the loss of each source.

        Args:
            step: optimizer steps done.
            losses: nats per token, by the name of the source.
            weights: of each source in the mean of all.
            seconds: that the validation took.
        """
        self._validated_step = step
        loss = sum(map(operator.mul, losses.values(), weights)) / sum(weights)
        perplexity = math.exp(min(loss, 700.0))
        named = {name: source_loss for name, source_loss in losses.items() if name}
        by_source = {f"loss_{name}": source_loss for name, source_loss in named.items()}
        values = {"loss": loss, "perplexity": perplexity, "seconds": seconds}
        self._write("validation", step, values | by_source)
        words = "".join(f"  {name} {source_loss:.4f}" for name, source_loss in named.items())
        say(f"validation after step {step}: loss {loss:.4f}  perplexity {perplexity:.2f}{words}")

    def _write(self, kind: str, step: int, values: dict[str, float | None]) -> None:
        if rank() != 0:
            return
        present = {name: value for name, value in values.items() if value is not None}
        prefix = "" if kind == "train" else f"{kind}_"
        line = {f"{prefix}{name}": value for name, value in present.items()}
        append_metrics(self._plan.run_dir, step, line)
        self._engine.monitor.write_events(
            [(f"{kind}/{name}", value, step) for name, value in present.items()]
        )
