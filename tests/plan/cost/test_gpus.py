"""The table of GPUs, and what `--gpus` takes."""

from __future__ import annotations

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.plan.cost.gpus import GPUS, parse_gpus, read_gpus
from gpt2_ds.plan.printing import GIB
from tests.config.small_recipe import only_fault


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_in_the_table_of_peaks(name: str) -> None:
    gpu = GPUS[name]
    assert 50e12 < gpu.peak_flops < 3e15
    # Its name says its memory: vendors count in GB, or in GiB and keep some for ECC.
    assert (
        0.9 * int(name.split("-")[-1]) * GIB <= gpu.memory_bytes <= int(name.split("-")[-1]) * GIB
    )
    assert 0.3 < gpu.matmul_efficiency < 0.9
    # Slower in this order: the GPU's memory, its link, its way to the host and to other machines.
    assert gpu.memory_bytes_per_second > gpu.link_bytes_per_second >= gpu.host_bytes_per_second


def test_machines() -> None:
    cluster = parse_gpus("20xh100-80")
    assert (cluster.name, cluster.count, cluster.nodes, cluster.node_ranks) == ("H100-80", 20, 3, 8)
    assert parse_gpus("1xL4-24").node_ranks == 1
    assert cluster.gpu.node_bytes_per_second == 400e9  # 3,200 Gbit/s
    assert cluster.of(8).nodes == 1
    other = parse_gpus("16xA100-40", node_gpus=4, node_gbits=100, node_memory_gib=512)
    assert (other.nodes, other.gpu.node_bytes_per_second) == (4, 12.5e9)
    assert other.gpu.node_memory_bytes == 512 * GIB


def test_peaks_are_the_products_own() -> None:
    assert GPUS["H100-80"].peak_flops == 989e12
    assert GPUS["H100-PCIe-80"].peak_flops == 756e12
    assert GPUS["H200-NVL-141"].peak_flops == 835e12


@pytest.mark.parametrize("word", ["8", "8xx", "H100-80", "0xH100-80", "-8xH100-80", "8 H100-80"])
def test_another_form(word: str) -> None:
    said = only_fault(lambda: parse_gpus(word))
    if word == "8xx":
        assert "'x' is not a known GPU" in said
    else:
        assert said.startswith(f"--gpus {word}: is not a count, an x and the name of a GPU")
    assert all(name in said for name in GPUS)


@pytest.mark.parametrize("word, ranks", [("1", 1), ("16", 16), ("16xA100-40", 16), ("8XL4-24", 8)])
def test_a_count_alone_or_with_a_name(word: str, ranks: int) -> None:
    count, name = read_gpus(word)
    assert count == ranks
    assert (name is None) == word.isdigit()


NO_COUNT = ("is not a count of GPUs", "For example: --gpus 8, or 8xH100-80. Known: A100-40, ")
BELOW_1 = ("is below 1", "Give at least 1.")
UNKNOWN = ("is not a known GPU", "Known here: A100-40, ")
WRONG = {
    "16xNonsense": UNKNOWN,
    "8xH100": UNKNOWN,
    "8xx": UNKNOWN,
    "0": BELOW_1,
    "-1": BELOW_1,
    "0x8": NO_COUNT,
    "0xH100-80": NO_COUNT,
    "08": NO_COUNT,
    "+8": NO_COUNT,
    "8x": NO_COUNT,
    "x8": NO_COUNT,
    "xH100-80": NO_COUNT,
    "H100-80": NO_COUNT,
    "1e3": NO_COUNT,
    "8.0": NO_COUNT,
    "1_000": NO_COUNT,
    "٨": NO_COUNT,  # \d matches it
    "8 ": NO_COUNT,
    "8 xH100-80": NO_COUNT,
    "": NO_COUNT,
    "9" * 5000: NO_COUNT,  # int() refuses it with an error of its own
}


def test_what_is_no_count() -> None:
    for word, (what, fix) in WRONG.items():
        with pytest.raises(UserError) as caught:
            read_gpus(word)
        (fault,) = caught.value.faults
        assert fault.where == f"--gpus {word}"
        assert what in fault.what, word
        assert fix in fault.fix, word


def test_the_nearest_name() -> None:
    said = only_fault(lambda: parse_gpus("8xh100"))
    assert "'h100' is not a known GPU. Did you mean H100-80? Known here: A100-40, " in said
    said = only_fault(lambda: parse_gpus("8xT4"))
    assert said.count("Known here") == 1


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--node-gpus 0", {"node_gpus": 0}),
        ("--node-gbits -1.0", {"node_gbits": -1.0}),
        ("--node-memory 0", {"node_memory_gib": 0}),
    ],
)
def test_machines_that_are_none(flag: str, words: dict[str, int]) -> None:
    said = only_fault(lambda: parse_gpus("8xH100-80", **words))
    assert said == f"{flag}: is not above 0. Leave it out for the usual one."
