"""Take an optimizer step, or skip it without a trace, at every ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from gpt2_ds.config.errors import RunError
from gpt2_ds.parallel.engine import gradient_norm, reduced_gradient_norm


@dataclass(frozen=True)
class Update:
    """What became of one optimizer step.

    Args:
        applied: the weights and the optimizer's state were updated; otherwise all are as before.
        gradient_norm: L2 norm of the gradient before clipping. Where that is not finite, and where
            it is made to skip a step, DeepSpeed says inf.
        only_loss_scale: skipped because fp16's gradients overflowed at this loss scale, which is
            how the scale finds its size: not a fault.
    """

    applied: bool
    gradient_norm: float
    only_loss_scale: bool = False

    @property
    def faulty(self) -> bool:
        """The step was skipped because its loss or its gradient is not finite."""
        return not self.applied and not self.only_loss_scale


def apply_update(engine: DeepSpeedEngine, *, skip: bool) -> Update:
    """Take the step that the gradients ask for: `engine.step()` of the last micro-step. Collective.

    It is also skipped where the gradient norm is not finite. A skipped step leaves weights,
    moments and their step counters as they are to the last bit; the gradients are cleared, and
    the engine counts the step, so that the next one begins as after any other. In fp16 the loss
    scale goes down, as after any overflow.

    At stages 1 to 3 DeepSpeed 0.19.8 itself skips steps whose gradient norm is not finite. At
    stage 0 it does not, and keeps no norm: there it is computed here, and serves to clip as well.

    Args:
        engine: after the last `engine.backward` of the step, before its `engine.step`.
        skip: this step is bad: some rank's loss is not finite. The same on all ranks.
    """
    optimizer: Any = engine.optimizer
    norm = reduced_gradient_norm(engine)
    finite = norm is None or math.isfinite(norm)
    applied = finite and not skip
    with ExitStack() as changed:
        if norm is not None:
            clip = _clip(engine, norm) if applied else _nothing
            changed.enter_context(_replaced(engine, "clip_fp32_gradients", clip))
            if not applied:
                changed.enter_context(_replaced(optimizer, "step", _nothing))
        elif skip:
            changed.enter_context(_replaced(optimizer, *_infinite_norm(optimizer)))
        try:
            engine.step()
        except Exception as error:
            if "minimum" in str(error):  # DeepSpeed 0.19.8 raises a bare Exception, on all ranks
                raise RunError(
                    "the gradients overflow at the smallest fp16 loss scale: the weights or the "
                    "data are broken. The last checkpoint is untouched. Lower optimizer.lr, or use "
                    "precision.dtype bf16 where the device has it."
                ) from error
            raise
    if norm is None:
        applied, norm = engine.was_step_applied(), gradient_norm(engine)
        if not applied:
            _forget_gradients(optimizer)
    assert norm is not None
    assert not (applied and skip)
    return Update(applied, norm, engine.fp16_enabled() and not applied and not skip)


def _clip(engine: DeepSpeedEngine, norm: float) -> Callable[[], None]:
    """What DeepSpeed does at stage 0, less a second pass over the gradients for their norm."""

    def clip() -> None:
        torch.nn.utils.clip_grads_with_norm_(
            engine.module.parameters(), engine.gradient_clipping(), torch.tensor(norm)
        )

    return clip


def _nothing() -> None:
    """Instead of a step."""


def _infinite_norm(optimizer: Any) -> tuple[str, Callable[..., Any]]:
    """Where one of DeepSpeed's ZeRO optimizers asks for the gradient norm; and inf as the answer.

    It then clears what it gathered and skips the step by itself.
    """
    infinite = torch.tensor(math.inf)
    if isinstance(optimizer, BF16_Optimizer):
        return "get_grads_for_norm", lambda **_: ([infinite], {})
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return "_get_norm_groups", lambda: [infinite]
    return "scaled_global_norm", lambda: infinite


def _forget_gradients(optimizer: Any) -> None:
    """Clear what DeepSpeed 0.19.8 does not at stages 1 and 2 with an offloaded optimizer.

    Its fp32 sums of 16-bit gradients outlive a skipped step, and the next step's gradients are
    added to them: after one NaN no step is ever taken again.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one object inside this block."""
    assert callable(getattr(owner, name))
    assert name not in vars(owner)
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)
