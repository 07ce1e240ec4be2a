"""What a job says and writes down of itself: how it began, and how it ended."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gpt2_ds.checkpoint.checkpoint import Progress
from gpt2_ds.checkpoint.manifest import complete_checkpoints, step_name
from gpt2_ds.checkpoint.restore import Restored
from gpt2_ds.config.errors import EXIT_DONE, EXIT_PREEMPTED
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.hosts.process import Process, launchers
from gpt2_ds.hosts.supervisor import attempt
from gpt2_ds.parallel.process_group import device_title
from gpt2_ds.record.ledger import Event, Ledger
from gpt2_ds.record.terminal import say


def note_start(plan: RunPlan, restored: Restored, ledger: Ledger) -> None:
    """Write down how this job begins, and what differs from the one before."""
    step, manifest = restored.progress.step, restored.manifest
    tokens_seen = restored.progress.samples_seen * plan.recipe.data.seq_length
    ranks = counted(world_size(), "rank")
    stage = plan.template.zero_optimization.stage

    def note(event: Event, reason: str, **more: int) -> None:
        ledger.write(event, step=step, tokens_seen=tokens_seen, reason=reason, **more)

    for found in restored.passed_over:
        note("fall_back", found)
    if attempt() > 0:
        note("restart", f"attempt {attempt()} of this job after a failure")
    if manifest is None:
        interval = plan.recipe.checkpoint.interval_steps  # see `candidates`
        begins = f"{ranks}, ZeRO stage {stage}"
        note("start", begins, checkpoint_interval_steps=interval)
        return
    note("resume", f"from {step_name(step)}, {ranks}, ZeRO stage {stage}")
    if manifest.world_size != world_size():
        note("world_size", f"{counted(manifest.world_size, 'rank')} before, {world_size()} now")
    if manifest.zero_stage != stage:
        note("zero_stage", f"stage {manifest.zero_stage} before, {stage} now")


def note_fault(run_dir: Path, reason: str) -> None:
    """Write down why this job ends, where that can still be written."""
    with suppress(Exception):  # the fault itself is what the user must see
        saved = complete_checkpoints(run_dir)
        step = saved[0][1].step if saved else 0
        tokens_seen = saved[0][1].tokens_seen if saved else 0
        Ledger(run_dir).write("stop", step=step, tokens_seen=tokens_seen, reason=reason)


def note_end(plan: RunPlan, end: Progress, ledger: Ledger, reasons: str, owed: bool) -> int:
    """Write down and say how this job ended."""
    tokens_seen = end.samples_seen * plan.recipe.data.seq_length
    if end.step < plan.last_step or owed:
        ledger.write("stop", step=end.step, tokens_seen=tokens_seen, reason=reasons)
        say(f"Stopped after step {end.step} ({reasons}), and saved. The same command resumes.")
        return EXIT_PREEMPTED
    if end.step == plan.derived.steps:
        ledger.write("done", step=end.step, tokens_seen=tokens_seen, reason="the last step is done")
    say(next_words(plan, end.step))
    return EXIT_DONE


def headline(plan: RunPlan, step: int) -> str:
    """What is about to be trained, in a line."""
    derived, zero = plan.derived, plan.template.zero_optimization.stage
    from_tokens = plan.recipe.batch.ramp and plan.recipe.batch.ramp.start_tokens
    ramp = f"{from_tokens:,} to " if from_tokens else ""
    begin = f"resuming from step {step}" if step else "from step 1"
    return (
        f"{plan.loaded.name}: {derived.n_parameters:,} parameters, {derived.steps:,} steps of "
        f"{ramp}{plan.recipe.batch.global_batch_tokens:,} tokens "
        f"({counted(derived.world_size, 'rank')} x "
        f"{plan.recipe.batch.micro_batch_size} sequences x {derived.gradient_accumulation_steps} "
        f"micro-steps), ZeRO stage {zero}, {plan.recipe.precision.dtype}, on {device_title()}; "
        f"{begin}"
    )


def start_up_words() -> str:
    """After the first step: its seconds from the command, and how many the launcher took.

    The command is `deepspeed` or torchrun where one of them started this process on this machine.
    """
    this = Process.find(os.getpid())
    assert this is not None
    own = this.age_seconds()
    above = launchers(Process.find(os.getppid()))
    if not above:
        return f"first step done {own:.1f} s after the command"
    whole = above[-1].age_seconds()
    launcher = f"{whole - own:.1f} s of it its launcher"
    return f"first step done {whole:.1f} s after the command, {launcher}"


def next_words(plan: RunPlan, step: int) -> str:
    """How the run stands, and what to type next."""
    prompt = plan.recipe.evaluation.sample_prompt or "The "
    state = "complete" if step == plan.derived.steps else f"stopped after step {step}, as asked"
    return (
        f"The run in {plan.run_dir} is {state}. Next:\n"
        f"  tensorboard --logdir {plan.run_dir.parent}\n"
        f'  python launch/generate.py --run {plan.run_dir} --prompt "{prompt}"'
    )
