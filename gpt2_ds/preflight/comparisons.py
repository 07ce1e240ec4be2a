"""What the ranks' facts say together. Pure functions: facts in, checks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2_ds.config.numbers import counted, ranks_named
from gpt2_ds.plan.printing import GIB, size
from gpt2_ds.plan.states import Memory
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.verdicts import Check, failed, ok, warning

_SHM_BYTES = GIB  # what NVIDIA's containers ask for
_FIXES = {
    "Python": "Give all machines the same Python.",
    "NCCL": "Install torch anew where it differs; see what LD_LIBRARY_PATH and LD_PRELOAD name.",
}


def who(facts: Sequence[RankFacts]) -> str:
    """Ranks by their hosts, each host once.

    Args:
        facts: of the ranks that are meant.
    """
    hosts: dict[tuple[int, str], list[int]] = {}
    for fact in facts:
        hosts.setdefault((fact.node, fact.host), []).append(fact.rank)
    return ", ".join(f"{host} ({ranks_named(ranks)})" for (_, host), ranks in hosts.items())


def one_per_node(facts: Sequence[RankFacts]) -> list[RankFacts]:
    """The first rank of each machine."""
    return list({fact.node: fact for fact in reversed(facts)}.values())[::-1]


def alike(
    name: str,
    facts: Sequence[RankFacts],
    value: Callable[[RankFacts], str],
    fix: str,
    differs: Callable[[str, str, str], Check] = failed,
) -> Check:
    """Something that must be the same on all ranks; those that differ from most are named.

    Args:
        name: of the check.
        facts: of all ranks.
        value: what is compared, as a person reads it.
        fix: what to do where it differs.
        differs: makes the check then: `failed` or `warning`.
    """
    holders: dict[str, list[RankFacts]] = {}
    for fact in facts:
        holders.setdefault(value(fact), []).append(fact)
    most = max(holders, key=lambda found: len(holders[found]))  # of equally many, rank 0's
    if len(holders) == 1:
        return ok(name, most)
    others = "; ".join(
        f"{who(holding)} has {found}" for found, holding in holders.items() if found != most
    )
    return differs(name, f"{others}; {who(holders[most])} has {most}", fix)


def versions_alike(facts: Sequence[RankFacts]) -> list[Check]:
    """Python and the packages that must be the same: a check for each."""
    return [
        alike(
            name,
            facts,
            lambda fact, name=name: fact.versions[name],  # type: ignore[misc]
            _FIXES.get(
                name,
                f"Install one version of {name} on all machines: pip install -r requirements.txt.",
            ),
        )
        for name in facts[0].versions
    ]


def gpus_alike(facts: Sequence[RankFacts]) -> list[Check]:
    """Model and driver of the GPUs. A run can live with two, at the pace of the slower."""
    if not any(fact.devices for fact in facts):
        return []
    return [
        alike(
            "GPU model",
            facts,
            lambda fact: fact.device_model,
            "Train without the slower ones: all wait for them in each step.",
            warning,
        ),
        alike(
            "GPU driver",
            facts,
            lambda fact: fact.driver or "none that it shows",
            "Bring them to one release before you look for a slow or failing machine elsewhere.",
            warning,
        ),
    ]


def project_alike(facts: Sequence[RankFacts]) -> list[Check]:
    """This project's code, the recipe as it was resolved, and the dataset."""

    # The files decide: git may be missing on a machine, or refuse another user's folder.
    code: dict[str, str] = {}
    for fact in facts:
        commit, plus, _ = fact.commit.partition("+")
        words = f"commit {commit[:12]}{plus and ' with changes'}, code {fact.sources[:8]}"
        code.setdefault(fact.sources, words)
    checks = [
        alike(
            "code",
            facts,
            lambda fact: code[fact.sources],
            "Bring all machines to one state: git pull, or one shared disk.",
        ),
        alike(
            "recipe",
            facts,
            lambda fact: fact.recipe[:12],
            "Give all machines the same files of recipes/ and ds_configs/.",
        ),
    ]
    if any(fact.data for fact in facts):
        fix = "Copy one dataset to every machine, or put it on a disk that all share."
        checks.append(alike("dataset", facts, lambda fact: fact.data[:12] or "none", fix))
    return checks


def devices(facts: Sequence[RankFacts]) -> Check:
    """Each device has a rank; that each rank has a device, the rendezvous has checked."""
    if not any(fact.devices for fact in facts):
        return ok("devices", "CPUs")
    idle = [node for node in one_per_node(facts) if node.machine_devices > node.node_ranks]
    if idle:
        text = ", ".join(f"{node.host}: {node.machine_devices - node.node_ranks}" for node in idle)
        fix = "Raise their slots in the hostfile, if they are yours."
        return warning("devices", f"devices without a rank on {text}", fix)
    return ok("devices", f"one for each of {counted(len(facts), 'rank')}")


def cores(facts: Sequence[RankFacts]) -> Check:
    """Ranks against CPU cores; only a warning, and only where CPUs train."""
    crowded = [
        node for node in one_per_node(facts) if not node.devices and node.node_ranks > node.cores
    ]
    if crowded:
        text = ", ".join(
            f"{node.host}: {counted(node.node_ranks, 'rank')}, {counted(node.cores, 'core')}"
            for node in crowded
        )
        return warning("cores", text, "Start at most as many ranks on a CPU as it has cores.")
    least = min(fact.cores for fact in facts)
    return ok("cores", f"{least} or more on each machine" if len(facts) > 1 else f"{least}")


@dataclass(frozen=True)
class _Place:
    """Where model states are held: a machine or a device; all in bytes."""

    name: str
    needed: int
    total: int
    free: int


def memory(facts: Sequence[RankFacts], need: Memory) -> list[Check]:
    """Model states against what each machine, and each device, has.

    More than there is at all fails; more than is free now is a warning.
    """
    hosts = [
        _Place(
            node.host,
            node.node_ranks * (need.host_bytes + (0 if node.devices else need.device_bytes)),
            node.memory_bytes,
            node.free_memory_bytes,
        )
        for node in one_per_node(facts)
    ]
    devices = [
        _Place(
            f"{fact.host} device {fact.local_rank}",
            need.device_bytes,
            fact.device_memory_bytes,
            fact.free_device_memory_bytes,
        )
        for fact in facts
        if fact.devices
    ]
    checks = [_room("host memory", hosts)]
    return [*checks, _room("device memory", devices)] if devices else checks


def _room(name: str, places: Sequence[_Place]) -> Check:
    short = [place for place in places if place.needed > place.free]
    text = ", ".join(
        f"{place.name}: {size(place.needed)} of model states, {size(place.free)} free of "
        f"{size(place.total)}"
        for place in short or [min(places, key=lambda place: place.free - place.needed)]
    )
    if any(place.needed > place.total for place in short):
        fix = "Take a template of a higher ZeRO stage, more ranks, or a smaller model."
        return failed(name, text, fix)
    return warning(name, text, "See what else uses it, and end that.") if short else ok(name, text)


def shared_memory(facts: Sequence[RankFacts]) -> Check:
    """/dev/shm, through which ranks with GPUs of one machine talk."""
    small = [
        node
        for node in one_per_node(facts)
        if node.devices and node.node_ranks > 1 and node.shm_bytes < _SHM_BYTES
    ]
    if small:
        text = ", ".join(f"{node.host}: {size(node.shm_bytes)}" for node in small)
        return failed(
            "/dev/shm",
            f"{text}; ranks with GPUs need {size(_SHM_BYTES)}",
            "Start the container with --shm-size=1g or --ipc=host; in Kubernetes mount an "
            "emptyDir of medium Memory there.",
        )
    return ok("/dev/shm", f"{size(min(fact.shm_bytes for fact in facts))} or more")
