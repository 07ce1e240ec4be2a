"""`plan.py fit`: does it fit, how long does it take, what does it cost, and what to type."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from math import inf
from pathlib import Path

from gpt2_ds.config.errors import EXIT_DONE, EXIT_RUN_FAILED, user_error
from gpt2_ds.plan.cost.gpus import GPUS, Cluster, parse_gpus
from gpt2_ds.plan.cost.memory import DeviceParts
from gpt2_ds.plan.cost.settings import Setting, Settings, settings
from gpt2_ds.plan.cost.speed import (
    DEEPSPEED_TOOK,
    DEEPSPEED_TOOK_FAR,
    MEASURED_GPUS,
    MEASURED_KINDS,
)
from gpt2_ds.plan.cost.what_would import what_would
from gpt2_ds.plan.picture import Bar, bars, page
from gpt2_ds.plan.printing import GIB, in_gib, size, table, write_file
from gpt2_ds.plan.schedule import curves
from gpt2_ds.plan.show import add_recipe_arguments
from gpt2_ds.plan.states import checkpoint_bytes, disk_bytes

_DAY = 86400
_CHUNK_WORTH = 0.1  # of a GPU: so much of logits is worth a hint
_TOKEN_BYTES = 2
_CHOSEN = ("batch.micro_batch_size=", "activation_checkpointing.enabled=")
_PARTS = [field.name for field in fields(DeviceParts)]


def add_arguments(parser: ArgumentParser) -> None:
    """Of `fit`."""
    add_recipe_arguments(parser)
    add = parser.add_argument
    add("--gpus", required=True, metavar="64xH100-80", help=f"known: {', '.join(GPUS)}")
    add("--price", type=float, metavar="USD", help="of one GPU for one hour")
    add("--mfu", type=float, metavar="F", help="0-1, of the cheapest, instead of the estimate")
    add("--node-gpus", type=int, metavar="N", help="GPUs of a machine (the usual number)")
    add("--node-gbits", type=float, metavar="G", help="network of a machine, Gbit/s (the usual)")
    add("--node-memory", type=int, metavar="GIB", help="host memory of a machine (the usual)")
    add("--html", type=Path, metavar="FILE", help="write bars of the memory, and the schedule")


def fit(args: Namespace) -> int:
    """Print what every template needs, and the cheapest setting that fits.

    Raises:
        UserError: unknown GPUs; a share or price out of range; a recipe that is wrong, or whose
            batch so many ranks do not divide; a file that cannot be written.
    """
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise user_error(f"--mfu {args.mfu}", "is not between 0 and 1", "For example: --mfu 0.4.")
    if args.price is not None and not 0 <= args.price < inf:
        raise user_error(
            f"--price {args.price}", "is not a price", "Give USD for one GPU and hour."
        )
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
        write_file("--html", args.html, _page(all_of_them, cluster, text))
    return EXIT_DONE if cheapest else EXIT_RUN_FAILED


def _heading(found: Settings, cluster: Cluster) -> str:
    if not found.found:
        return ""
    plan, gpu = found.found[0].plan, cluster.gpu
    memory = f"{size(gpu.memory_bytes)} each"
    machines = f"{cluster.nodes} x {cluster.node_ranks}" if cluster.nodes > 1 else "one machine"
    text = (
        f"{plan.loaded.name}: {plan.derived.n_parameters:,} parameters, "
        f"{plan.recipe.schedule.total_tokens:,} tokens in {plan.derived.steps:,} steps, on "
        f"{cluster.count} {cluster.name} ({machines}, {memory})."
    )
    if found.suited:
        changed = ", ".join(found.suited)
        why = f"because {cluster.count} ranks do not divide the recipe's batches"
        text += f"\nChanged, {why}: {changed}."
    return text


def _name(setting: Setting) -> str:
    extra = " + checkpointing" if setting.checkpointing else ""
    return f"{Path(setting.plan.template_file).stem}{extra}"


def _memory_table(found: Settings, cluster: Cluster) -> str:
    header = ["GiB of one GPU", "micro-batch", *_PARTS, "total", "fits", "host", "NVMe"]
    rows = [header]
    for setting in found.found:
        parts = [in_gib(getattr(setting.need.device, part)) for part in _PARTS]
        rows.append(
            [
                _name(setting),
                str(setting.micro_batch_size),
                *parts,
                in_gib(setting.need.device.total),
                "yes" if setting.fits else "no",
                in_gib(setting.need.host_bytes),
                in_gib(setting.need.disk_bytes),
            ]
        )
    limit = in_gib(cluster.gpu.memory_bytes), in_gib(cluster.gpu.node_memory_bytes)
    rows.append(["there is", "", *("" for _ in _PARTS), limit[0], "", limit[1], ""])
    return (
        table(rows, numbers=True)
        + "\n(host and NVMe: GiB of one machine; checkpointing: of activations. A setting "
        "fits when 4 % stay free.)"
    )


def _time_table(found: Settings, cluster: Cluster, price: float | None) -> str:
    money = [] if price is None else ["USD"]
    header = ["what fits", "step s", "waiting", "tokens/s", "MFU", "days", "GPU-hours"]
    rows = [[*header, *money]]
    for setting in found.found:
        if not setting.fits:
            continue
        hours = setting.seconds / 3600 * setting.plan.derived.world_size
        rows.append(
            [
                _name(setting),
                f"{setting.step.total:.3g}",
                f"{1 - setting.step.compute / setting.step.total:.0%}",
                f"{setting.tokens_per_second:,.0f}",
                f"{setting.mfu(cluster):.0%}",
                f"{setting.seconds / _DAY:,.2f}",
                f"{hours:,.0f}",
                *([] if price is None else [f"{hours * price:,.0f}"]),
            ]
        )
    return table(rows, numbers=True) if len(rows) > 1 else ""


def command(setting: Setting, found: Settings, recipe: Path, cluster: Cluster) -> str:
    """What trains with this setting, to paste."""
    words = ["deepspeed"]
    words += ["--hostfile", "hostfile"] if cluster.nodes > 1 else ["--num_gpus", str(cluster.count)]
    words += ["launch/train.py", "--recipe", str(recipe), "--template", setting.plan.template_file]
    words += ["--expect-ranks", str(cluster.count)]
    overrides = [word for word in found.overrides if not word.startswith(_CHOSEN)]
    overrides.append(f"batch.micro_batch_size={setting.micro_batch_size}")
    enabled = "true" if setting.checkpointing else "false"
    overrides.append(f"activation_checkpointing.enabled={enabled}")
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def _cheapest(setting: Setting, found: Settings, args: Namespace, cluster: Cluster) -> str:
    plan, tokens = setting.plan, setting.plan.recipe.schedule.total_tokens
    lines = [
        f"The cheapest that fits (the simplest within 2 % of it): {_name(setting)}, micro-batch "
        f"{setting.micro_batch_size}.",
        _time_and_money(setting, args, cluster),
        f"A checkpoint takes {size(checkpoint_bytes(plan))}, the run directory up to "
        f"{size(disk_bytes(plan))}, and {tokens:,} tokens {size(_TOKEN_BYTES * tokens)}.",
        *_hint(setting, cluster),
        *map(str, plan.warnings),
    ]
    return "\n".join(lines) + f"\n\n  {command(setting, found, args.recipe, cluster)}"


def _time_and_money(setting: Setting, args: Namespace, cluster: Cluster) -> str:
    """What a run takes, and how far published ones were from it."""

    def words(factor: float) -> str:
        text = f"{_about(factor * setting.seconds / _DAY)} days"
        if args.price is None:
            return text
        usd = factor * setting.seconds / 3600 * cluster.count * args.price
        return f"{text} and {_about(usd)} USD"

    apart = "Validation, saving and restarts come on top."
    if args.mfu is not None:
        return f"At an assumed MFU of {args.mfu:g}: {words(1)}. {apart}"
    far = cluster.count > MEASURED_GPUS and setting.plan.template.zero_optimization.stage == 3
    low, high = DEEPSPEED_TOOK_FAR if far else DEEPSPEED_TOOK
    runs = "ZeRO-3's of 2021 on 384 to 2,240 GPUs" if far else "DeepSpeed's on 8 GPUs"
    text = (
        f"Estimated from FSDP's published runs on 8 to {MEASURED_GPUS} GPUs: {words(1)}; {runs} "
        f"took {low:g} to {high:g} times as long as predicted: {words(low)} to {words(high)}. "
        f"{apart}"
    )
    if cluster.name not in MEASURED_KINDS:
        text += f" No published run on {cluster.name} was compared: the time is a guess."
    return f"{text} Measure some steps before you pay: launch/benchmark.py."


def _about(number: float) -> str:
    """Two significant digits.

    >>> [_about(number) for number in (559_160, 145.61, 1.05, 0.1149)]
    ['560,000', '150', '1.1', '0.11']
    """
    rounded = float(f"{number:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _hint(setting: Setting, cluster: Cluster) -> list[str]:
    """What the loss's logits take, where that is much and a key of the recipe would spare it."""
    device = setting.need.device
    if setting.plan.recipe.model.loss_chunk_size or (
        device.logits < _CHUNK_WORTH * cluster.gpu.memory_bytes
    ):
        return []
    return [
        f"Logits take {size(device.logits)}; --set model.loss_chunk_size=1024 saves nearly "
        "all of it and costs one more pass through the head."
    ]


def _page(found: Settings, cluster: Cluster, text: str) -> str:
    rows = [
        Bar(
            _name(setting),
            [getattr(setting.need.device, part) / GIB for part in _PARTS],
            f"{size(setting.need.device.total)}, micro-batch {setting.micro_batch_size}"
            + ("" if setting.fits else ": does not fit"),
        )
        for setting in found.found
    ]
    name = found.found[0].plan.loaded.name if found.found else "nothing"
    title = f"{name} on {cluster.count} x {cluster.name}"
    limit = cluster.gpu.memory_bytes / GIB
    picture = bars("Memory of one GPU", _PARTS, rows, limit=limit, unit="GiB")
    schedule = curves(found.found[0].plan) if found.found else []
    return page(title, [picture, *schedule], text)
