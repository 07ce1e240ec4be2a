"""What each optimizer is: the one table that all of the code reads.

To add one: its name and its keys in the recipe's schema, and a row here. A name without a row is
refused wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.recipe import OptimizerSection

Which = Literal["all", "matrices of blocks", "others"]
Params = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What an optimizer keeps between updates: one number for each number of some parameters.

    Args:
        name: its key in the optimizer's state.
        of: which parameters.
        as_gradients: kept in the format in which gradients arrive, where DeepSpeed 0.19.8 updates
            on the device at stages 1 and 2; elsewhere, and without it, fp32.
    """

    name: str
    of: Which = "all"
    as_gradients: bool = False


@dataclass(frozen=True)
class Optimizer:
    """One optimizer.

    Args:
        title: its name in a sentence.
        deepspeed_type: `optimizer.type` for `deepspeed.initialize`.
        params: `optimizer.params` from the recipe's section, and whether DeepSpeedCPUAdam updates.
        states: all that it keeps, but for the fp32 weights and the count of steps.
        elastic: a run can resume on other ranks, at another stage or offload:
            `gpt2_ds/parallel/states` reads and fills these states.
        torch_class: what does the same in `torch.optim` (with lr, betas, eps and fused), for
            `launch/benchmark.py --plain-torch`; None: nothing does.
        zero_optimization: keys that it needs to be so, whatever the template says.
    """

    title: str
    deepspeed_type: str
    params: Callable[[OptimizerSection, bool], Params]
    states: tuple[State, ...]
    elastic: bool
    torch_class: str | None
    zero_optimization: Params = field(default_factory=dict)

    def states_of(self, which: Which) -> list[State]:
        """Those that are kept for some parameters."""
        return [state for state in self.states if state.of in ("all", which)]

    @property
    def tensors_per_parameter(self) -> int:
        """Weight, gradient and states of a parameter, at most."""
        return 2 + max(len(self.states_of("matrices of blocks")), len(self.states_of("others")))


def _adam(optimizer: OptimizerSection, cpu_adam: bool) -> Params:
    return {
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "torch_adam": not cpu_adam,
    }


def _adamw(optimizer: OptimizerSection, cpu_adam: bool) -> Params:
    fused = {} if cpu_adam else {"fused": True}
    return {"lr": optimizer.lr, **_adam(optimizer, cpu_adam), **fused}


def _muon(optimizer: OptimizerSection, cpu_adam: bool) -> Params:
    rates = {"adam_lr": optimizer.lr, "muon_lr": optimizer.muon_lr}
    momentum = {"momentum": optimizer.muon_momentum, "ns_method": "gram"}
    return {**rates, **momentum, **_adam(optimizer, cpu_adam)}


OPTIMIZERS = {
    "adamw": Optimizer(
        title="AdamW",
        deepspeed_type="AdamW",
        params=_adamw,
        states=(State("exp_avg"), State("exp_avg_sq")),
        elastic=True,
        torch_class="AdamW",
    ),
    "muon": Optimizer(
        title="Muon",
        deepspeed_type="Muon",
        params=_muon,
        states=(
            State("momentum_buffer", "matrices of blocks", as_gradients=True),
            State("exp_avg", "others"),
            State("exp_avg_sq", "others"),
        ),
        elastic=False,  # its momentum lies otherwise at each stage
        torch_class=None,  # torch.optim.Muon orthogonalizes in bf16, and takes matrices alone
        # It needs each matrix's whole gradient (DeepSpeed #8090; refused at stage 3 in 0.19.8).
        zero_optimization={"reduce_scatter": False},
    ),
}
"""By `optimizer.name` of a recipe."""


def optimizer_named(name: str) -> Optimizer:
    """The row of an optimizer.

    Raises:
        UserError: there is none: the schema has a name that is not described here.
    """
    if name not in OPTIMIZERS:
        what = f"{name} is not described in gpt2_ds/config/optimizers.py"
        fix = f"Add a row for it there, or use one that has one: {', '.join(OPTIMIZERS)}."
        raise user_error("optimizer.name", what, fix)
    return OPTIMIZERS[name]


def name_of_type(deepspeed_type: str) -> str:
    """The name by which a recipe knows DeepSpeed's type; where none does, the type itself."""
    return next(
        (name for name, row in OPTIMIZERS.items() if row.deepspeed_type == deepspeed_type),
        deepspeed_type,
    )
