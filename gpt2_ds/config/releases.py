"""Releases of DeepSpeed that compute wrong gradients or updates, and for which runs.

Releases were read from DeepSpeed's changelog, or from the sources of the releases around the fix.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.template import ZeroOptimization

Applies = Callable[[Recipe, ZeroOptimization, int], bool]


@dataclass(frozen=True)
class WrongRelease:
    """What is wrong in some releases.

    Args:
        source: the upstream issue or change.
        first: the first release that has it; "" when it was never right before.
        mended: the first release that does not have it any more.
        what: what goes wrong, behind "DeepSpeed 0.18.9".
        applies: whether a run of a recipe, at a stage, with so many accumulation steps is hit.
    """

    source: str
    first: str
    mended: str
    what: str
    applies: Applies

    def hits(self, installed: str) -> bool:
        """Whether a release has it."""
        return numbers_of(self.first) <= numbers_of(installed) < numbers_of(self.mended)


def numbers_of(release: str) -> tuple[int, ...]:
    """The numbers of a release, to compare.

    >>> numbers_of("2.13.0+cpu") > numbers_of("2.9")
    True
    """
    return tuple(int(word) for word in re.findall(r"\d+", release.partition("+")[0])[:3])


def installed_deepspeed() -> str | None:
    """The release that is installed here, found without an import; None: none is."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


def _offloads(zero: ZeroOptimization) -> bool:
    return zero.offload_optimizer is not None


WRONG_RELEASES = (
    WrongRelease(
        "DeepSpeed #7718",
        "0.17.6",
        "0.18.3",
        "computes wrong gradients at stage 2",
        lambda recipe, zero, accumulation: zero.stage == 2,
    ),
    WrongRelease(
        "DeepSpeed #7707",
        "",
        "0.18.3",
        "goes on with old weights after a checkpoint is loaded with zero_hpz_partition_size",
        lambda recipe, zero, accumulation: zero.stage == 3 and zero.zero_hpz_partition_size > 1,
    ),
    WrongRelease(
        "DeepSpeed #7898",
        "",
        "0.18.8",
        "reads gradients at stage 3 before they are written, with torch 2.10 or newer on GPUs",
        lambda recipe, zero, accumulation: zero.stage == 3,
    ),
    WrongRelease(
        "DeepSpeed #7965",
        "",
        "0.19.0",
        "reuses memory of gradients that are still being reduced, with overlap_comm on GPUs",
        lambda recipe, zero, accumulation: zero.stage in (1, 2) and zero.overlap_comm,
    ),
    WrongRelease(
        "DeepSpeed #7967",
        "",
        "0.19.0",
        "drops the gradients of all micro-steps but one, with offload_optimizer at stages 1 and 2",
        lambda recipe, zero, accumulation: (
            zero.stage in (1, 2) and _offloads(zero) and accumulation > 1
        ),
    ),
    WrongRelease(
        "DeepSpeed #7982",
        "",
        "0.19.0",
        "lets DeepSpeedCPUAdam's step counters drift apart between the parts of sub_group_size",
        lambda recipe, zero, accumulation: zero.stage == 3 and _offloads(zero),
    ),
    WrongRelease(
        "DeepSpeed #7985",
        "",
        "0.19.0",
        "leaves the last micro-step's gradient out of the average over ranks, in bf16 at stage 1",
        lambda recipe, zero, accumulation: (
            zero.stage == 1
            and recipe.precision.dtype == "bf16"
            and recipe.precision.grad_accum_dtype == "fp32"
        ),
    ),
    WrongRelease(
        "DeepSpeed #8061",
        "",
        "0.19.3",
        "reduces gradients before compiled code has written them, with overlap_comm on GPUs",
        lambda recipe, zero, accumulation: (
            zero.stage in (1, 2) and zero.overlap_comm and recipe.model.compile
        ),
    ),
)
"""In the order of the releases that mended them."""
