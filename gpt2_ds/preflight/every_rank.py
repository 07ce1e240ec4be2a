"""The second half: what the ranks see of each other, on the machines that will train."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.parallel.process_group import join, leave_after
from gpt2_ds.preflight.comparisons import cores, shared_memory, who
from gpt2_ds.preflight.fast import compare
from gpt2_ds.preflight.inputs import open_inputs
from gpt2_ds.preflight.left_locks import extension_locks
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.run_folder import left_as_found, room, run_folder
from gpt2_ds.preflight.speed import matmul, network
from gpt2_ds.preflight.verdicts import Check, exit_code, failed, ok, table, warning

_MINUTES = 2.0
_SPEED_SECONDS = 40.0
_PRINT_SECONDS = 3.0
_NETWORK_FIX = (
    "Name the network device that joins the machines by NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, "
    "and let the machines reach each other at all ports; NCCL_DEBUG=INFO tells more."
)


def check_and_leave(plan: RunPlan) -> NoReturn:
    """Join the other ranks, check everything, print the table, end this process with the code.

    Args:
        plan: of the run that is to be trained here.
    """
    leave_after(lambda: _check(plan))


def _check(plan: RunPlan) -> int:
    fingerprint, mistakes = _inputs(plan)
    device = join(_MINUTES)
    checks, together = check_ranks(plan, device, fingerprint, mistakes)
    if together:
        # A launcher that sees one rank fail ends the others, rank 0 before it has printed.
        by_rank_0(lambda: print(table(checks), flush=True))
    elif rank() == 0:
        print(table(checks), flush=True)
    return exit_code(checks)


def _inputs(plan: RunPlan) -> tuple[str, tuple[Fault, ...]]:
    """The dataset's fingerprint as this rank sees it, and what would keep the run from starting.

    A dataset that the run itself would make is not made: its fingerprint is empty.
    """
    data = plan.recipe.data
    try:
        if data.prepare is not None and data.path is not None and not Path(data.path).exists():
            return "", ()
        corpus = open_inputs(plan)
    except UserError as error:
        return "", error.faults
    except OSError as error:  # of this machine alone, perhaps: a mount that is stale, or not let in
        what = f"cannot be read ({error.strerror or error})"
        fix = "Make it readable for this user on every machine."
        return "", (Fault(str(error.filename or data.path), what, fix),)
    corpus.close()
    return corpus.fingerprint, ()


def check_ranks(
    plan: RunPlan, device: torch.device, fingerprint: str, mistakes: tuple[Fault, ...]
) -> tuple[list[Check], bool]:
    """All checks of the second half, the same on every rank. Collective.

    Args:
        plan: of the run.
        device: of this rank.
        fingerprint: of the dataset, as this rank sees it; empty: none was opened.
        mistakes: what this rank found in the run's inputs.

    Returns:
        The checks; and whether the ranks can still do something together.
    """
    facts = gathered(RankFacts.here(plan, fingerprint))
    with left_as_found(plan.run_dir):
        checks = [
            _rendezvous(facts),
            *compare(facts, plan),
            cores(facts),
            shared_memory(facts),
            *_inputs_of_all(plan.recipe.data.path, facts, mistakes),
            run_folder(plan.run_dir),
            room(plan),
            extension_locks(),
        ]
    speeds, together = _speeds(facts, device)
    return [*checks, *speeds], together


def _speeds(facts: list[RankFacts], device: torch.device) -> tuple[list[Check], bool]:
    """How fast devices and network are; and whether all came to the end of it. Collective.

    Where the network does not work its first use hangs, or fails on one rank and leaves the others
    waiting. Then each rank comes back alone, rank 0 first.
    """
    found: list[Check] = []
    troubles: list[str] = []

    def measure() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        try:
            found.append(matmul(facts, device))
            found.extend(network(facts, device))
        except Exception as error:
            troubles.append(str(error).partition("\n")[0] or repr(error))

    seconds = _SPEED_SECONDS + len({fact.host for fact in facts})  # a group of each pair is made
    end = time.monotonic() + seconds
    measuring = threading.Thread(target=measure, name="speeds", daemon=True)
    measuring.start()
    measuring.join(seconds)
    if measuring.is_alive():
        troubles.append(f"did not end within {seconds:g} s")
    if not troubles:
        return found, True
    if rank() != 0:  # whose end would end rank 0 before it has printed
        time.sleep(max(0.0, end + _PRINT_SECONDS - time.monotonic()))
    name = "all-reduce" if found else "matmul"
    return [*found, failed(name, f"rank {rank()}: {troubles[0]}", _NETWORK_FIX)], False


def _rendezvous(facts: list[RankFacts]) -> Check:
    """Reaching this line means that the port was free and all ranks came."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    nodes = len({fact.node for fact in facts})
    return ok("rendezvous", f"at {address} port {port}; ranks: {len(facts)}, nodes: {nodes}")


def _inputs_of_all(
    path: str | None, facts: list[RankFacts], mistakes: tuple[Fault, ...]
) -> list[Check]:
    """What the ranks found in the run's inputs: each mistake with the ranks that found it."""
    found: dict[Fault, list[RankFacts]] = {}
    for fact, faults in zip(facts, gathered(mistakes), strict=True):
        for fault in faults:
            found.setdefault(fault, []).append(fact)
    if found:
        return [
            failed("inputs", f"{who(ranks)}: {fault.where}: {fault.what.rstrip('.')}", fault.fix)
            for fault, ranks in found.items()
        ]
    if not any(fact.data for fact in facts):
        fix = "Nothing to do: launch/train.py makes it."
        return [warning("inputs", f"{path} is not there yet", fix)]
    return [ok("inputs", "dataset, tokenizer and checkpoints fit the recipe")]
