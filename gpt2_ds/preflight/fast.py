"""The checks that every run begins with; together a few seconds at most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gpt2_ds.config.errors import UserError, faults_of, on_all_ranks, warn
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.hostfile import check_environment_file, environment_files
from gpt2_ds.hosts.launcher import nodes, rank, world_size
from gpt2_ds.parallel.agreement import gathered
from gpt2_ds.plan.states import model_states
from gpt2_ds.preflight.clocks import clocks
from gpt2_ds.preflight.comparisons import (
    devices,
    gpus_alike,
    memory,
    project_alike,
    versions_alike,
)
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.run_folder import room, run_folder
from gpt2_ds.preflight.verdicts import Check, Verdict


def fast_checks(plan: RunPlan, corpus_fingerprint: str, *, writes: bool = True) -> None:
    """Refuse a run whose machines do not fit each other or the recipe. Collective.

    What a run can live with (little room on the disk, little free memory, clocks a little apart)
    is a warning that rank 0 prints.

    Args:
        plan: the run.
        corpus_fingerprint: of what it reads, as this rank sees it.
        writes: the run writes into its directory; a replay does not.

    Raises:
        UserError: every check that failed, with the hosts.
    """
    facts = gathered(RankFacts.here(plan, corpus_fingerprint))
    checks = compare(facts, plan)
    if writes:
        checks.append(room(plan))
        if world_size() > 1:
            checks.append(run_folder(plan.run_dir))
    if bad := [check.fault() for check in checks if check.verdict is Verdict.FAILED]:
        raise on_all_ranks(UserError(*bad))
    if rank() == 0:
        faults = [check.fault() for check in checks if check.verdict is Verdict.WARNING]
        # What DeepSpeed has sent to other machines, and should not have.
        sent = environment_files() if nodes() > 1 else []
        faults += faults_of(*(partial(check_environment_file, path) for path in sent))
        for fault in faults:
            warn(str(fault))


def compare(facts: Sequence[RankFacts], plan: RunPlan) -> list[Check]:
    """What follows from the ranks' facts alone, and from their clocks. Collective.

    Args:
        facts: of all ranks.
        plan: the run.
    """
    return [
        *versions_alike(facts),
        *gpus_alike(facts),
        *project_alike(facts),
        devices(facts),
        *memory(facts, model_states(plan).total),
        clocks(facts),
    ]
