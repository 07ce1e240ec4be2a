"""Set up a run, train, and say what to do next."""

from __future__ import annotations

import platform
import time
from contextlib import closing
from datetime import timedelta
from typing import NoReturn, get_args

import torch
import torch.distributed as dist

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import EXIT_DONE, Fault, UserError, exit_code_of, user_error
from gpt2_ds.config.launcher import local_ranks, nodes, rank, world_size
from gpt2_ds.config.recipe import Dtype
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.corpus import Corpus
from gpt2_ds.data.loader import TokenLoader
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.compiled_ops import can_build, clear_stale_lock
from gpt2_ds.parallel.engine import build_engine
from gpt2_ds.parallel.process_group import device_title, join, leave, supports
from gpt2_ds.train.checkpoint import load_newest
from gpt2_ds.train.loop import Run, train_steps
from gpt2_ds.train.metrics import Metrics
from gpt2_ds.train.run_directory import write_run_files
from gpt2_ds.train.terminal import say


def train_and_leave(plan: RunPlan, corpus: Corpus) -> NoReturn:
    """Train, then end this process with the exit code of what happened."""

    def run() -> int:
        train(plan, corpus)
        return EXIT_DONE

    leave(exit_code_of(run))


def train(plan: RunPlan, corpus: Corpus) -> None:
    """Train `plan` from its newest checkpoint, or from the first step.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.

    Raises:
        UserError: a shard is not what the manifest says.
        RunError: the run failed in a way that is understood.
    """
    device = join()
    check_dtype(plan)
    _verify_together(corpus)
    cpu_adam = use_cpu_adam(plan)
    deepspeed_config = plan.deepspeed(cpu_adam=cpu_adam)
    hosts = [""] * world_size()
    dist.all_gather_object(hosts, platform.node())
    if rank() == 0:
        write_run_files(plan, deepspeed_config, hosts)
    recipe, derived = plan.recipe, plan.derived
    engine = build_engine(
        GPT2Config(**model_fields(recipe, derived.vocab_size)),
        deepspeed_config,
        seed=recipe.seed,
        compile_model=recipe.model.compile,
    )
    torch.manual_seed(recipe.seed + 1 + rank())  # dropout differs between ranks
    start = end = load_newest(plan, engine)
    say(_headline(plan, start.step))
    if start.step < plan.last_step:
        began = time.perf_counter()
        samples = corpus.samples(recipe.seed)
        with (
            TokenLoader(
                samples,
                global_batch_size=derived.global_batch_size,
                micro_batch_size=recipe.batch.micro_batch_size,
                rank=rank(),
                world_size=world_size(),
                samples_seen=start.samples_seen,
                pin_memory=device.type == "cuda",
            ) as loader,
            closing(corpus),  # before the loader, which may wait for a download
        ):
            last_sample = plan.last_step * derived.global_batch_size
            corpus.follow(
                lambda: samples.upcoming(
                    loader.samples_read, last_sample, local_ranks(), world_size()
                )
            )
            run = Run(
                plan=plan,
                corpus=corpus,
                samples=samples,
                engine=engine,
                loader=loader,
                metrics=Metrics(plan, engine, start.step),
                device=device,
                document_eot=corpus.tokenizer.eot_token if recipe.data.document_mask else None,
            )
            end = train_steps(run, start)
        say(f"Trained for {timedelta(seconds=round(time.perf_counter() - began))}.")
    say(_next_words(plan, end.step))


def _verify_together(corpus: Corpus) -> None:
    """Hash the shards, shared among the ranks; what one rank finds ends them all. Collective.

    Raises:
        UserError: a shard is damaged, or the ranks see different datasets at one path.
    """
    faults: tuple[Fault, ...] = ()
    try:
        corpus.verify(rank(), world_size())
    except UserError as error:
        faults = error.faults
    found = [(corpus.fingerprint, faults)] * world_size()
    dist.all_gather_object(found, (corpus.fingerprint, faults))
    if others := [i for i, (seen, _) in enumerate(found) if seen != found[0][0]]:
        faults = (
            Fault(
                ", ".join(dataset.address for dataset in corpus.datasets.values()),
                f"rank {others[0]} sees other data there than rank 0",
                "Copy one dataset to every machine, or put it on a disk that all share.",
            ),
        )
        raise UserError(*faults)
    if any(part for _, part in found):
        raise UserError(*(fault for _, part in found for fault in part))


def check_dtype(plan: RunPlan) -> None:
    """Refuse a number format that this device cannot train in.

    Raises:
        UserError: names those that it can.
    """
    dtype, formats = plan.recipe.precision.dtype, get_args(Dtype)
    if not supports(dtype):
        raise user_error(
            plan.loaded.where("precision.dtype"),
            f"{dtype} cannot be trained on {device_title()}",
            f"Set it to {' or '.join(name for name in formats if supports(name))}.",
        )


def use_cpu_adam(plan: RunPlan) -> bool:
    """DeepSpeedCPUAdam under offload, where its op can be built; torch's AdamW otherwise."""
    if plan.template.zero_optimization.offload_optimizer is None:
        return False
    if not can_build():
        say("optimizer: torch's AdamW on the host; DeepSpeedCPUAdam needs a C++ compiler and ninja")
        return False
    say("optimizer: DeepSpeedCPUAdam; compiling it takes a few minutes the first time")
    clear_stale_lock("cpu_adam", nodes=nodes())
    return True


def _headline(plan: RunPlan, step: int) -> str:
    derived, zero = plan.derived, plan.template.zero_optimization.stage
    begin = f"going on after step {step}" if step else "from step 1"
    return (
        f"{plan.loaded.name}: {derived.n_parameters:,} parameters, {derived.steps:,} steps of "
        f"{plan.recipe.batch.global_batch_tokens:,} tokens ({derived.world_size} ranks x "
        f"{plan.recipe.batch.micro_batch_size} sequences x {derived.gradient_accumulation_steps} "
        f"micro-steps), ZeRO stage {zero}, {plan.recipe.precision.dtype}, on {device_title()}; "
        f"{begin}"
    )


def _next_words(plan: RunPlan, step: int) -> str:
    prompt = plan.recipe.evaluation.sample_prompt or "The "
    state = "complete" if step == plan.derived.steps else f"stopped after step {step}, as asked"
    return (
        f"The run in {plan.run_dir} is {state}. Next:\n"
        f"  tensorboard --logdir {plan.run_dir.parent}\n"
        f'  python launch/generate.py --run {plan.run_dir} --prompt "{prompt}"'
    )
