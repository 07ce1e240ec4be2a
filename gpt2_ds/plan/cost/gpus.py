"""The GPUs that a plan knows, and how they are usually built into machines."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpt2_ds.config.errors import nearest, user_error
from gpt2_ds.plan.flops import peak_bf16_flops
from gpt2_ds.plan.printing import GIB

_GIGA = 10**9
_GBIT = 10**9 / 8


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the machine it usually sits in.

    Args:
        title: what `flops.peak_bf16_flops` knows it by.
        memory_bytes: in all, as nvidia-smi says it.
        memory_bytes_per_second: of its own memory, from the data sheet.
        matmul_efficiency: share of the data sheet's peak that large bf16 matrix products reach
            (`speed` says where from).
        link_bytes_per_second: from one GPU to the others of its machine, one way.
        host_bytes_per_second: from one GPU to the host's memory, one way (PCIe).
        node_gpus: GPUs of a machine.
        node_bytes_per_second: network of a machine, one way, all its cards together.
        node_memory_bytes: host memory of a machine.
    """

    title: str
    memory_bytes: int
    memory_bytes_per_second: float
    matmul_efficiency: float
    link_bytes_per_second: float
    host_bytes_per_second: float
    node_gpus: int
    node_bytes_per_second: float
    node_memory_bytes: int

    @property
    def peak_flops(self) -> float:
        """Dense bf16 peak of one GPU, FLOP/s."""
        peak = peak_bf16_flops(self.title)
        assert peak is not None, self.title
        return peak


def _gpu(
    title: str,
    gib: float,
    hbm: float,
    matmul: float,
    link: float,
    host: float,
    node: tuple[int, float, int],
) -> Gpu:
    """From the units of data sheets: GB/s, Gbit/s of a machine's network, GiB of host memory."""
    gpus, gbits, host_gib = node
    return Gpu(
        title=title,
        memory_bytes=int(gib * GIB),
        memory_bytes_per_second=hbm * _GIGA,
        matmul_efficiency=matmul,
        link_bytes_per_second=link * _GIGA,
        host_bytes_per_second=host * _GIGA,
        node_gpus=gpus,
        node_bytes_per_second=gbits * _GBIT,
        node_memory_bytes=host_gib * GIB,
    )


# Machines: GPUs, network in Gbit/s, host memory in GiB.
_DGX_A100_40 = (8, 1600, 1024)  # DGX A100 data sheet: 8 x 200 Gbit/s, 1 TB
_DGX_A100_80 = (8, 1600, 2048)  # the same with 2 TB
_DGX_H100 = (8, 3200, 2048)  # DGX H100 data sheet: 8 x 400 Gbit/s, 2 TB
_PCIE = (8, 400, 1024)  # ours: a server with PCIe cards differs from the next
_AMPERE, _HOPPER = 0.78, 0.60  # `speed` says where from

# Bandwidths are the vendors' data sheets': memory; NVLink, Infinity Fabric or PCIe, one way (half
# of what the sheet adds up for both); PCIe 4 x16 26 GB/s and PCIe 5 x16 52 GB/s as copies reach.
GPUS = {
    # nvidia.com/en-us/data-center/a100: 1555 and 2039 GB/s, NVLink 600 GB/s
    "A100-40": _gpu("A100", 40, 1555, _AMPERE, 300, 26, _DGX_A100_40),
    "A100-80": _gpu("A100", 80, 2039, _AMPERE, 300, 26, _DGX_A100_80),
    # aws.amazon.com/ec2/instance-types/g5: 600 GB/s, g5.48xlarge has 8, 100 Gbit/s, 768 GiB
    "A10G-24": _gpu("A10G", 22.5, 600, _AMPERE, 13, 13, (8, 100, 768)),
    # nvidia.com/en-us/data-center/l4 and l40s: PCIe only
    "L4-24": _gpu("L4", 22.5, 300, _AMPERE, 26, 26, _PCIE),
    "L40S-48": _gpu("L40S", 45, 864, _AMPERE, 26, 26, _PCIE),
    # nvidia.com/en-us/data-center/h100: SXM 3350 GB/s, NVLink 900; PCIe 2000; NVL 3900, pairs
    "H100-80": _gpu("H100", 79.6, 3350, _HOPPER, 450, 52, _DGX_H100),
    "H100-PCIe-80": _gpu("H100 PCIe", 79.6, 2000, _HOPPER, 52, 52, _PCIE),
    "H100-NVL-94": _gpu("H100 NVL", 93.6, 3900, _HOPPER, 52, 52, _PCIE),
    # nvidia.com/en-us/data-center/h200: 4800 GB/s
    "H200-141": _gpu("H200", 140.4, 4800, _HOPPER, 450, 52, _DGX_H100),
    "H200-NVL-141": _gpu("H200 NVL", 140.4, 4800, _HOPPER, 52, 52, _PCIE),
    # nvidia.com/en-us/data-center/hgx and dgx-b200: 180 GB, 8 TB/s, NVLink 1800
    "B200-180": _gpu("B200", 179, 8000, _HOPPER, 900, 52, _DGX_H100),
    # amd.com: MI250X 128 GB, 3.2 TB/s for two dies, each a device; MI300X 192 GB, 5.3 TB/s
    "MI250X-64": _gpu("MI250X", 64, 1638, 0.5, 50, 26, (8, 800, 512)),
    "MI300X-192": _gpu("MI300X", 192, 5300, 0.5, 448, 52, (8, 3200, 2048)),
}
"""By the name that `--gpus` takes: a product and its memory."""


@dataclass(frozen=True)
class Node:
    """What a machine has that is not usual; None: the usual.

    Args:
        gpus: GPUs of a machine.
        gbits: its network in Gbit/s.
        memory_gib: its host memory in GiB.
    """

    gpus: int | None = None
    gbits: float | None = None
    memory_gib: int | None = None

    def with_gpu(self, name: str) -> Gpu:
        """A GPU of `GPUS` in such a machine."""
        gpu = GPUS[name]
        return replace(
            gpu,
            node_gpus=self.gpus or gpu.node_gpus,
            node_bytes_per_second=self.gbits * _GBIT if self.gbits else gpu.node_bytes_per_second,
            node_memory_bytes=self.memory_gib * GIB if self.memory_gib else gpu.node_memory_bytes,
        )


@dataclass(frozen=True)
class Cluster:
    """Equal machines with equal GPUs.

    Args:
        name: of the GPU, as in `GPUS`.
        count: GPUs of all machines; one rank each.
        node: what the machines have that is not usual.
    """

    name: str
    count: int
    node: Node = Node()

    @property
    def gpu(self) -> Gpu:
        """Its numbers, with those of its machine."""
        return self.node.with_gpu(self.name)

    @property
    def node_ranks(self) -> int:
        """Ranks of one machine."""
        return min(self.gpu.node_gpus, self.count)

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.count // self.gpu.node_gpus)

    def of(self, count: int) -> Cluster:
        """As many of the same GPUs."""
        return replace(self, count=count)

    def with_gpus(self, name: str) -> Cluster:
        """The same machines with other GPUs."""
        return replace(self, name=name)


def read_gpus(word: str, *, named: bool = False) -> tuple[int, str | None]:
    """The count and the name that `--gpus` gives: 8, or 8xH100-80; a name in upper or lower case.

    Args:
        word: as typed.
        named: it must have a name.

    Raises:
        UserError: the word has another form, or the GPU is not known.

    >>> read_gpus("8"), read_gpus("64xh100-80")
    ((8, None), (64, 'H100-80'))
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:x(.+))?", word, flags=re.IGNORECASE)
    if found is None and re.fullmatch(r"-?[0-9]{1,9}", word) and int(word) < 1:
        raise user_error(f"--gpus {word}", "is below 1", "Give at least 1.")
    if found is None or (named and found[2] is None):
        form = "a count, an x and the name of a GPU" if named else "a count of GPUs"
        example = "8xH100-80" if named else "8, or 8xH100-80"
        fix = f"For example: --gpus {example}. Known: {', '.join(GPUS)}."
        raise user_error(f"--gpus {word}", f"is not {form}", fix)
    if found[2] is None:
        return int(found[1]), None
    name = {name.lower(): name for name in GPUS}.get(found[2].lower())
    if name is None:
        close = nearest(found[2].upper(), GPUS)
        known = f"Known here: {', '.join(sorted(GPUS))}."
        fix = close if close == known else f"{close} {known}"
        raise user_error(f"--gpus {word}", f"{found[2]!r} is not a known GPU", fix)
    return int(found[1]), name


def parse_gpus(
    word: str,
    *,
    node_gpus: int | None = None,
    node_gbits: float | None = None,
    node_memory_gib: int | None = None,
) -> Cluster:
    """What `--gpus 64xH100-80` means.

    Args:
        word: as `read_gpus` reads it, with a name.
        node_gpus: GPUs of a machine, where not the usual number.
        node_gbits: network of a machine in Gbit/s, where not the usual one.
        node_memory_gib: host memory of a machine in GiB, where not the usual one.

    Raises:
        UserError: as `read_gpus`, or a number is not above 0.

    >>> parse_gpus("16xA100-80").nodes
    2
    """
    count, name = read_gpus(word, named=True)
    assert name is not None
    for flag, given in (
        ("--node-gpus", node_gpus),
        ("--node-gbits", node_gbits),
        ("--node-memory", node_memory_gib),
    ):
        if given is not None and not given > 0:
            raise user_error(f"{flag} {given}", "is not above 0", "Leave it out for the usual one.")
    return Cluster(name, count, Node(node_gpus, node_gbits, node_memory_gib))
