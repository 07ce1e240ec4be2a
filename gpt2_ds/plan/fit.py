"""`plan.py fit`: does it fit, how long does it take, what does it cost, and what to type."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE, EXIT_RUN_FAILED, user_error
from gpt2_ds.plan.flops import flops_per_token
from gpt2_ds.plan.gpus import GIB, GPUS, Cluster, parse_gpus
from gpt2_ds.plan.memory import DeviceParts
from gpt2_ds.plan.picture import Bar, bars, write_page
from gpt2_ds.plan.schedule import curves
from gpt2_ds.plan.settings import Setting, Settings, settings
from gpt2_ds.plan.show import add_recipe_arguments
from gpt2_ds.plan.speed import MEASURED_GPUS
from gpt2_ds.plan.states import checkpoint_bytes, disk_bytes
from gpt2_ds.plan.what_would import what_would

_DAY = 86400
_FURTHER = (
    "On 384 to 2,240 the ZeRO-3 of 2021 took 1.6 to 5 times as long as predicted "
    "(arxiv.org/abs/2104.04473, table 2): measure a few steps before you pay"
)
_CHOSEN = ("batch.micro_batch_size=", "activation_checkpointing.enabled=")
_PARTS = [field.name for field in fields(DeviceParts)]


def add_arguments(parser: ArgumentParser) -> None:
    """Of `fit`."""
    add_recipe_arguments(parser)
    add = parser.add_argument
    add("--gpus", required=True, metavar="64xH100-80", help=f"known: {', '.join(GPUS)}")
    add("--price", type=float, metavar="USD", help="of one GPU for one hour")
    add("--mfu", type=float, metavar="F", help="0-1, instead of the estimate")
    add("--node-gpus", type=int, metavar="N", help="GPUs of a machine (the usual number)")
    add("--node-gbits", type=float, metavar="G", help="network of a machine, Gbit/s (the usual)")
    add("--node-memory", type=int, metavar="GIB", help="host memory of a machine (the usual)")
    add("--html", type=Path, metavar="FILE", help="write bars of the memory, and the schedule")


def fit(args: Namespace) -> int:
    """Print what every template needs, and the cheapest setting that fits.

    Raises:
        UserError: unknown GPUs, a share or price that is none, a recipe that is wrong or that so
            many ranks cannot share; a file that cannot be written.
    """
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise user_error(f"--mfu {args.mfu}", "is not between 0 and 1", "For example: --mfu 0.4.")
    if args.price is not None and not args.price >= 0:
        raise user_error(f"--price {args.price}", "is below 0", "Give USD for one GPU and hour.")
    cluster = parse_gpus(
        args.gpus,
        node_gpus=args.node_gpus,
        node_gbits=args.node_gbits,
        node_memory_gib=args.node_memory,
    )
    all_of_them = settings(
        args.recipe, cluster, template=args.template, overrides=args.set, mfu=args.mfu
    )
    cheapest = all_of_them.cheapest
    blocks = [
        _heading(all_of_them, cluster),
        _memory_table(all_of_them, cluster),
        _time_table(all_of_them, cluster, args.price),
        *(f"refused: {why}" for why in all_of_them.refused.values()),
        _cheapest(cheapest, all_of_them, args, cluster)
        if cheapest
        else what_would(all_of_them, cluster),
    ]
    text = "\n\n".join(block for block in blocks if block)
    print(text)
    if args.html:
        _write_picture(args.html, all_of_them, cluster, text)
    return EXIT_DONE if cheapest else EXIT_RUN_FAILED


def _heading(found: Settings, cluster: Cluster) -> str:
    if not found.found:
        return ""
    plan, gpu = found.found[0].plan, cluster.gpu
    memory = f"{gpu.memory_bytes / GIB:.1f} GiB each"
    machines = f"{cluster.nodes} x {cluster.node_ranks}" if cluster.nodes > 1 else "one machine"
    return (
        f"{plan.loaded.name}: {plan.derived.n_parameters:,} parameters, "
        f"{plan.recipe.schedule.total_tokens:,} tokens in {plan.derived.steps:,} steps, on "
        f"{cluster.count} {cluster.name} ({machines}, {memory}). A checkpoint takes "
        f"{_gib(checkpoint_bytes(plan))} GiB, the run directory up to {_gib(disk_bytes(plan))} GiB."
    )


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:,.1f}"


def _name(setting: Setting) -> str:
    extra = " + checkpointing" if setting.checkpointing else ""
    return f"{Path(setting.plan.template_file).stem}{extra}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _memory_table(found: Settings, cluster: Cluster) -> str:
    header = ["GiB of one GPU", "micro-batch", *_PARTS, "total", "fits", "host", "NVMe"]
    rows = [header]
    for one in found.found:
        parts = [_gib(getattr(one.need.device, part)) for part in _PARTS]
        rows.append(
            [
                _name(one),
                str(one.micro_batch_size),
                *parts,
                _gib(one.need.device.total),
                "yes" if one.fits else "no",
                _gib(one.need.host_bytes),
                _gib(one.need.disk_bytes),
            ]
        )
    limit = _gib(cluster.gpu.memory_bytes), _gib(cluster.gpu.node_memory_bytes)
    rows.append(["there is", "", *("" for _ in _PARTS), limit[0], "", limit[1], ""])
    return _table(rows) + "\n(host and NVMe: GiB of one machine)"


def _time_table(found: Settings, cluster: Cluster, price: float | None) -> str:
    money = [] if price is None else ["USD"]
    header = ["what fits", "step s", "of it waiting", "tokens/s", "MFU", "days", "GPU-hours"]
    rows = [[*header, *money]]
    for one in found.found:
        if not one.fits:
            continue
        hours = one.seconds / 3600 * one.plan.derived.world_size
        rows.append(
            [
                _name(one),
                f"{one.step.total:.3g}",
                f"{1 - one.step.compute / one.step.total:.0%}",
                f"{one.tokens_per_second:,.0f}",
                f"{_mfu(one, cluster):.0%}",
                f"{one.seconds / _DAY:,.2f}",
                f"{hours:,.0f}",
                *([] if price is None else [f"{hours * price:,.0f}"]),
            ]
        )
    return _table(rows) if len(rows) > 1 else ""


def _mfu(one: Setting, cluster: Cluster) -> float:
    model, data = one.plan.recipe.model, one.plan.recipe.data
    n = one.plan.derived.n_parameters
    flops = flops_per_token(n, model.n_layer, model.n_embd, data.seq_length)
    return one.tokens_per_second * flops / (cluster.gpu.peak_flops * cluster.count)


def command(one: Setting, found: Settings, recipe: Path, cluster: Cluster) -> str:
    """What trains with this setting, to paste."""
    words = ["deepspeed"]
    if cluster.nodes > 1:
        words += ["--hostfile", "hostfile"]
    words += ["launch/train.py", "--recipe", str(recipe), "--template", one.plan.template_file]
    words += ["--expect-ranks", str(cluster.count)]
    overrides = [word for word in found.overrides if not word.startswith(_CHOSEN)]
    overrides.append(f"batch.micro_batch_size={one.micro_batch_size}")
    enabled = "true" if one.checkpointing else "false"
    overrides.append(f"activation_checkpointing.enabled={enabled}")
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def _cheapest(one: Setting, found: Settings, args: Namespace, cluster: Cluster) -> str:
    text = f"The cheapest that fits: {_name(one)}, micro-batch {one.micro_batch_size}"
    days = f"{one.seconds / _DAY:,.2f} days"
    if args.price is not None:
        usd = one.seconds / 3600 * cluster.count * args.price
        days += f", {usd:,.0f} USD"
    if cluster.count > MEASURED_GPUS and one.plan.template.zero_optimization.stage == 3:
        days += f" by published runs on up to {MEASURED_GPUS} GPUs. {_FURTHER}"
    return f"{text}: {days}.\n\n  {command(one, found, args.recipe, cluster)}"


def _write_picture(file: Path, found: Settings, cluster: Cluster, text: str) -> None:
    rows = [
        Bar(
            _name(one),
            [getattr(one.need.device, part) / GIB for part in _PARTS],
            f"{_gib(one.need.device.total)} GiB, micro-batch {one.micro_batch_size}"
            + ("" if one.fits else ": does not fit"),
        )
        for one in found.found
    ]
    name = found.found[0].plan.loaded.name if found.found else "nothing"
    title = f"{name} on {cluster.count} x {cluster.name}"
    limit = cluster.gpu.memory_bytes / GIB
    picture = bars("Memory of one GPU", _PARTS, rows, limit=limit, unit="GiB")
    schedule = curves(found.found[0].plan) if found.found else []
    write_page(file, title, [picture, *schedule], text)
