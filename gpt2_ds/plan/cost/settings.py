"""All the ways to spread one recipe over one cluster, each with what it needs and how it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2_ds.config.derive import derive
from gpt2_ds.config.errors import UserError, user_error
from gpt2_ds.config.numbers import divisors
from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from gpt2_ds.plan.cost.gpus import Cluster
from gpt2_ds.plan.cost.memory import Need, need
from gpt2_ds.plan.cost.run_time import run_seconds
from gpt2_ds.plan.cost.speed import StepTime
from gpt2_ds.plan.cost.suited import suited_overrides
from gpt2_ds.plan.flops import flops_per_token, model_flops_utilization

_EQUAL = 1.02
_TEMPLATES = Path(__file__).resolve().parents[3] / "ds_configs"


@dataclass(frozen=True)
class Setting:
    """One template, with or without activation checkpointing, at its best micro-batch.

    Args:
        plan: the run; its own micro-batch is not this one.
        checkpointing: blocks run again in backward.
        micro_batch_size: the largest that fits, or 1.
        need: memory and disk.
        fits: it does.
        step: time of a full-size step.
        seconds: of the whole run.
    """

    plan: RunPlan
    checkpointing: bool
    micro_batch_size: int
    need: Need
    fits: bool
    step: StepTime
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs, at the full batch."""
        return self.plan.recipe.batch.global_batch_tokens / self.step.total

    def mfu(self, cluster: Cluster) -> float:
        """MFU (0-1) at the full batch."""
        model, recipe, derived = self.plan.recipe.model, self.plan.recipe, self.plan.derived
        flops = flops_per_token(
            derived.n_parameters, model.n_layer, model.n_embd, recipe.data.seq_length
        )
        title, count = cluster.gpu.title, cluster.count
        reached = model_flops_utilization(self.tokens_per_second, flops, title, count)
        assert reached is not None
        return reached


@dataclass(frozen=True)
class Settings:
    """What `settings` found.

    Args:
        found: in the order of the templates.
        refused: a template that this recipe or this cluster cannot have, and why.
        overrides: the user's words and those that suit the ranks.
        suited: the latter alone.
    """

    found: list[Setting]
    refused: dict[str, str]
    overrides: list[str]
    suited: list[str]

    @property
    def cheapest(self) -> Setting | None:
        """Of those that fit, the simplest that is no more than 2 % slower than the fastest.

        Simpler is a lower stage. Quantized communication changes the result: it is taken only
        where nothing else fits. None where nothing fits.
        """
        fitting = [setting for setting in self.found if setting.fits]
        exact = [setting for setting in fitting if not _is_quantized(setting.plan)] or fitting
        fastest = min((setting.seconds for setting in exact), default=0.0)
        close = [setting for setting in exact if setting.seconds <= _EQUAL * fastest]
        return min(
            close,
            key=lambda setting: (setting.plan.template.zero_optimization.stage, setting.seconds),
            default=None,
        )


def _is_quantized(plan: RunPlan) -> bool:
    zero = plan.template.zero_optimization
    return zero.zero_quantized_weights or zero.zero_quantized_gradients


def templates() -> list[Path]:
    """The files of ds_configs/, as a command names them."""
    here = Path.cwd()
    return [
        Path(os.path.relpath(file, here)) if file.is_relative_to(here) else file
        for file in sorted(_TEMPLATES.glob("*.json"))
    ]


def settings(
    recipe: Path,
    cluster: Cluster,
    *,
    template: Path | None = None,
    overrides: Sequence[str] = (),
    mfu: float | None = None,
) -> Settings:
    """Every template, with and without activation checkpointing.

    Args:
        recipe: a file of recipes/.
        cluster: the GPUs.
        template: only this one.
        overrides: the user's `--set` words.
        mfu: (0-1) that the cheapest one reaches, instead of the estimate; the others keep their
            proportion to it.

    Raises:
        UserError: the recipe is wrong, or so many ranks do not divide its batch; the one template
            is wrong for them.
    """
    suited = suited_overrides(load_recipe(recipe, overrides), cluster.count)
    words = [*overrides, *suited]
    one_sequence = [*words, "batch.micro_batch_size=1"]
    derive(load_recipe(recipe, one_sequence), cluster.count)
    found, refused = [], {}
    for file in [template] if template else templates():
        try:
            plan = resolve_run(
                recipe, world_size=cluster.count, template_file=file, overrides=one_sequence
            )
            _check_partition(plan, cluster)
        except UserError as error:
            if template:
                raise
            refused[str(file)] = " ".join(map(str, error.faults))
            continue
        for checkpointing in (False, True):
            found.append(_setting(plan, cluster, checkpointing))
    estimated = Settings(found, refused, words, suited)
    best = estimated.cheapest
    if mfu is None or best is None:
        return estimated
    longer = best.mfu(cluster) / mfu
    return replace(
        estimated,
        found=[
            replace(setting, step=setting.step.times(longer), seconds=longer * setting.seconds)
            for setting in found
        ],
    )


def _check_partition(plan: RunPlan, cluster: Cluster) -> None:
    """Refuse a secondary partition that is not for these machines.

    Raises:
        UserError: it does not divide the ranks, is all of them, or spans machines.
    """
    hpz = plan.template.zero_optimization.zero_hpz_partition_size
    if hpz > 1 and (cluster.count % hpz or hpz >= cluster.count or hpz > cluster.node_ranks):
        raise user_error(
            f"{plan.template_file}: zero_optimization.zero_hpz_partition_size",
            f"is {hpz}, and the job has {cluster.count} ranks, {cluster.node_ranks} a machine",
            "It is for several machines: set it to the GPUs of one, or use ds_configs/zero3.json.",
        )


def _setting(plan: RunPlan, cluster: Cluster, checkpointing: bool) -> Setting:
    per_rank = plan.derived.global_batch_size // cluster.count
    micro, needed = 1, need(plan, cluster, 1, checkpointing=checkpointing)
    for larger in divisors(per_rank)[1:]:
        more = need(plan, cluster, larger, checkpointing=checkpointing)
        if not more.fits(cluster):
            break
        micro, needed = larger, more
    step, seconds = run_seconds(plan, cluster, micro, checkpointing=checkpointing)
    return Setting(plan, checkpointing, micro, needed, needed.fits(cluster), step, seconds)
