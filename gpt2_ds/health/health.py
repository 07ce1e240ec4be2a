"""Watch a run while it trains: write down what goes wrong, and end the run where it must be."""

from __future__ import annotations

from typing import Any

from gpt2_ds.config.errors import RunError, on_all_ranks
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.health.loss_watch import LossWatch, logged_steps
from gpt2_ds.health.stop_request import StopRequest
from gpt2_ds.health.stragglers import Stragglers
from gpt2_ds.health.watchdog import Watchdog
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.parallel.compute_time import ComputeTime
from gpt2_ds.parallel.process_group import host_group
from gpt2_ds.parallel.replicas import Replicas
from gpt2_ds.parallel.update import Update
from gpt2_ds.record.ledger import Event, Ledger
from gpt2_ds.record.terminal import warn_on_rank_0

_STRAGGLERS_INTERVAL_STEPS = 10


def stop_reasons(stop: StopRequest) -> str:
    """Who asked which rank to stop; empty: nobody. Collective."""
    reasons = [(i, reason) for i, reason in enumerate(gathered(stop.reason)) if reason]
    return ", ".join(f"rank {i}: {reason}" for i, reason in reasons)


class Health:
    """Watches one run on this rank, and tells the other ranks where they must know.

    Args:
        plan: the run.
        engine: whose weights are compared between ranks.
        ledger: where findings are written.
        stop: signals that this rank got.
        watchdog: finds ranks that hang or died.
        hosts: name of each rank's host, by rank.

    Attributes:
        compute_time: around what this rank does in a step, to find stragglers.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Any,
        ledger: Ledger,
        stop: StopRequest,
        watchdog: Watchdog,
        hosts: list[str],
    ) -> None:
        self._plan, self._ledger, self._stop, self._watchdog = plan, ledger, stop, watchdog
        before = by_rank_0(lambda: logged_steps(plan.run_dir))
        self._losses = LossWatch(plan.recipe.health, before)
        self.compute_time = ComputeTime(engine.device, engine.zero_optimization_stage())
        self._stragglers = Stragglers(hosts)
        self._replicas = Replicas(engine, host_group())
        self._first = True

    @property
    def stop_asked(self) -> bool:
        """This rank was asked to stop."""
        return self._stop.reason is not None

    def stop_reasons(self) -> str:
        """Who asked which rank to stop. Collective."""
        return stop_reasons(self._stop)

    def mark(self, step: int, doing: str) -> None:
        """Tell the watchdog where this rank is, and what comes now."""
        self._watchdog.mark(step, doing)

    def before_update(self, step: int) -> None:
        """Compare replicas when it is time to, as the forward has used them. Collective.

        Raises:
            RunError: a rank's weights are not those of the others.
        """
        self.mark(step, "updating")
        if self._replicas_due(step - 1) and not self._first:
            self._compare(step)

    def before_save(self, step: int) -> None:
        """Compare replicas: what is saved must be what all ranks hold. Collective.

        Raises:
            RunError: a rank's weights are not those of the others.
        """
        self.mark(step, "saving")
        if self._plan.recipe.health.replica_check_interval_steps > 0:
            self._compare(step)

    def _compare(self, step: int) -> None:
        if found := self._replicas.check():
            for sentence in found:
                self._note("replica", step, sentence)
            raise on_all_ranks(
                RunError(
                    f"{self._plan.run_dir}: {'; '.join(found)}. Its memory or its device may be "
                    "faulty: run without that host. The same command resumes from the last "
                    "complete checkpoint."
                )
            )

    def after_step(self, step: int) -> None:
        """Look for stragglers, at the same steps on all of them. Collective.

        Args:
            step: that was just taken.
        """
        if self._replicas_due(step):
            self._replicas.remember()
        compute_seconds = self.compute_time.take()
        if not self._first:  # the first step compiles and fills caches
            self._stragglers.add(compute_seconds)
        self._first = False
        if step % _STRAGGLERS_INTERVAL_STEPS == 0:
            for sentence in self._stragglers.names():
                warn_on_rank_0(sentence)
                self._note("slow_rank", step, sentence)

    def look_at(self, step: int, loss: float, update: Update, samples: tuple[int, int]) -> None:
        """Write down a step whose update was skipped, and a loss that jumped. Collective.

        Args:
            step: that was just taken.
            loss: nats per token, mean over the global batch.
            update: what became of it.
            samples: that it was trained on, [first, end).

        Raises:
            RunError: too many updates in a row were skipped.
        """
        first, end = samples
        batch = f"samples {first}:{end}"
        if update.faulty:
            norm = update.gradient_norm
            reason = f"loss {loss}, gradient norm {norm}; {batch}; the update was skipped"
            warn_on_rank_0(f"step {step}: {reason}")
            self._note("skip_update", step, reason)
        for sentence in self._losses.observe(step, loss, not update.faulty):
            warn_on_rank_0(f"{sentence}; {batch}")
            self._note("loss_spike", step, f"{sentence}; {batch}")

    def _replicas_due(self, step: int) -> bool:
        interval = self._plan.recipe.health.replica_check_interval_steps
        return interval > 0 and step % interval == 0

    def _note(self, event: Event, step: int, reason: str) -> None:
        samples_seen = self._plan.derived.batches.samples_after(step)
        tokens = samples_seen * self._plan.recipe.data.seq_length
        self._ledger.write(event, step=step, tokens_seen=tokens, reason=reason)
