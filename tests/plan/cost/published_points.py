"""Speeds that others have published, each with its address: what `speed` is held against.

Widths and layers of llm-foundry's models are its scripts/train/yamls'; the numbers of parameters
its table's. FSDP's full sharding sends what ZeRO-3 sends: "PURE" reduces gradients in 16 bits,
"DEFAULT" in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_ds.plan.cost.gpus import Cluster, parse_gpus
from gpt2_ds.plan.cost.speed import Sharing, Work

FOUNDRY = "github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
LLM_C = "github.com/karpathy/llm.c/discussions/481"
FMS = "github.com/foundation-model-stack/fms-fsdp"
CHENYAOFO = "gist.github.com/chenyaofo/d4cd6a20ab4b95cb3a49491747e2139a"
MEGATRON = "arxiv.org/abs/2104.04473, table 2, ZeRO-3 without model parallelism"
SAHA = "debtirthasaha.github.io/blog/2026/gpt2-124m"


@dataclass(frozen=True)
class Point:
    """One published speed.

    Args:
        name: model and machine.
        address: where it is published.
        tokens_per_second: of one GPU.
        chosen_from: it had a part in the choice of the constants.
    """

    name: str
    address: str
    work: Work
    sharing: Sharing
    cluster: Cluster
    micro_batch_size: int
    micro_steps: int
    tokens_per_second: float
    chosen_from: bool = False


# layers, width, parameters at 2,048 positions
_MPT = {
    "125m": (12, 768, 125_311_488),
    "350m": (24, 1024, 355_985_408),
    "760m": (24, 1536, 760_470_528),
    "1b": (24, 2048, 1_315_950_592),
    "3b": (32, 2560, 2_651_837_440),
    "7b": (32, 4096, 6_658_859_008),
    "13b": (40, 5120, 12_853_954_560),
    "30b": (48, 7168, 29_975_214_080),
    "70b": (80, 8192, 64_862_437_376),
}

# model, positions, GPUs, micro-batch, micro-steps, activation checkpointing, tokens/s of a GPU
_ROWS = {
    "H100-80": [
        ("70b", 2048, 64, 8, 4, True, 1039),
        ("70b", 2048, 32, 2, 16, True, 882),
        ("30b", 2048, 32, 14, 3, True, 2308),
        ("30b", 2048, 8, 3, 21, True, 2002),
        ("30b", 4096, 8, 1, 21, True, 1802),
        ("13b", 2048, 64, 2, 1, False, 4800),
        ("13b", 2048, 8, 2, 1, False, 4792),
        ("13b", 1024, 8, 40, 3, True, 5502),
        ("7b", 2048, 8, 6, 1, False, 10643),
        ("7b", 4096, 8, 16, 2, True, 8611),
        ("3b", 2048, 64, 6, 3, False, 22525),
        ("3b", 2048, 16, 10, 3, False, 24142),
        ("1b", 2048, 64, 20, 1, False, 44402),
        ("1b", 2048, 8, 14, 1, False, 45455),
        ("1b", 8192, 8, 3, 4, False, 29157),
        ("760m", 2048, 32, 24, 1, False, 67971),
        ("760m", 2048, 8, 24, 2, False, 63147),
    ],
    "A100-80": [
        ("70b", 2048, 64, 8, 4, True, 410),
        ("30b", 2048, 8, 3, 21, True, 916),
        ("13b", 2048, 8, 2, 3, False, 2262),
        ("7b", 2048, 8, 6, 2, False, 4641),
        ("7b", 4096, 8, 16, 2, True, 3684),
        ("3b", 2048, 8, 10, 2, False, 10811),
        ("1b", 2048, 8, 14, 4, False, 20513),
        ("1b", 8192, 8, 3, 4, False, 13814),
        ("760m", 2048, 8, 24, 2, False, 32434),
        ("350m", 2048, 8, 32, 2, False, 58782),
        ("125m", 2048, 8, 32, 2, False, 141737),
        ("125m", 1024, 8, 64, 2, False, 156468),
    ],
    "A100-40": [
        ("70b", 2048, 128, 4, 1, True, 376),
        ("30b", 2048, 128, 6, 1, True, 865),
        ("13b", 2048, 128, 16, 1, True, 1972),
        ("7b", 2048, 128, 18, 1, True, 3623),
        ("1b", 2048, 128, 10, 1, False, 18647),
        ("350m", 2048, 128, 18, 1, False, 51934),
        ("125m", 2048, 128, 26, 1, False, 123936),
    ],
}
_CHOSEN = {"350m", "760m", "1b", "3b", "7b"}


def _foundry() -> list[Point]:
    points = []
    for gpu, rows in _ROWS.items():
        for model, positions, gpus, micro, steps, checkpointing, tokens in rows:
            layers, width, n = _MPT[model]
            pure = gpu == "A100-40" or (gpu == "A100-80" and model == "70b")
            work = Work(
                n_parameters=n + (positions - 2048) * width,
                n_layer=layers,
                n_embd=width,
                seq_length=positions,
                vocab_rows=50368,
                checkpointing=checkpointing,
                reduced_bytes=2 if pure else 4,
            )
            chosen = gpu != "A100-40" and gpus == 8 and positions == 2048 and model in _CHOSEN
            points.append(
                Point(
                    f"MPT {model}, T {positions}, {gpus}x{gpu}",
                    FOUNDRY,
                    work,
                    Sharing(stage=3),
                    parse_gpus(f"{gpus}x{gpu}", node_gbits=1600 if "A100" in gpu else None),
                    micro,
                    steps,
                    tokens,
                    chosen,
                )
            )
    return points


def _others() -> list[Point]:
    gpt2 = Work(124_475_904, 12, 768, 1024, 50304)
    llama_7b = Work(6_738_415_616, 32, 4096, 4096, 32000)
    checkpointed = Work(6_738_415_616, 32, 4096, 4096, 32000, checkpointing=True)
    llama_34b = Work(33_743_970_304, 48, 8192, 4096, 32000, checkpointing=True, reduced_bytes=2)
    dgx, a800 = parse_gpus("8xA100-80"), parse_gpus("8xA100-80")
    # "takes ~90 minutes" for 10B tokens; the run of the second address: "1.1M tokens/sec"
    points = [
        Point("llm.c GPT-2 124M, 8xA100-80", LLM_C, gpt2, Sharing(1), dgx, 64, 1, 10e9 / 5400 / 8),
        Point("PyTorch GPT-2 124M, 8xA100", SAHA, gpt2, Sharing(0), dgx, 64, 1, 1.1e6 / 8),
    ]
    for name, gbits, tokens in (("128xA100-80", 400, 700), ("96xH100-80", 800, 1550)):
        cluster = parse_gpus(name, node_gbits=gbits)
        point = Point(f"LLaMA 34B, {name}", FMS, llama_34b, Sharing(3), cluster, 2, 1, tokens)
        points.append(point)
    # DeepSpeed itself; samples of 4,096 tokens a second, of 8 GPUs
    for stage, work, micro, steps, samples in (
        (2, llama_7b, 1, 8, 5.33),
        (2, checkpointed, 1, 8, 4.19),
        (2, checkpointed, 4, 2, 4.69),
        (3, llama_7b, 2, 4, 4.95),
        (3, checkpointed, 2, 4, 4.45),
        (3, checkpointed, 8, 1, 4.73),
    ):
        kind = "checkpointing, " if work.checkpointing else ""
        name = f"DeepSpeed {stage}, LLaMA 7B, {kind}micro-batch {micro}, 8xA800"
        sharing, tokens_each = Sharing(stage), samples * 4096 / 8
        points.append(Point(name, CHENYAOFO, work, sharing, a800, micro, steps, tokens_each))
    for stage, weights_on, micro, steps, samples in (
        (2, None, 1, 8, 1.81),
        (3, None, 2, 4, 2.05),
        (3, "cpu", 4, 2, 2.06),
    ):
        sharing = Sharing(stage, optimizer_on="cpu", parameters_on=weights_on)
        name = f"DeepSpeed {stage}, LLaMA 7B, offload, micro-batch {micro}, 8xA800"
        tokens_each = samples * 4096 / 8
        points.append(
            Point(name, CHENYAOFO, checkpointed, sharing, a800, micro, steps, tokens_each, True)
        )
    return points


def _megatron() -> list[Point]:
    """ZeRO-3 of 2021 over many machines; days for 300B tokens, blocks run forward twice."""
    points = []
    for layers, width, gpus, micro, days in (
        (96, 12288, 384, 4, 90),
        (96, 12288, 768, 2, 74),
        (96, 12288, 1536, 1, 74),
        (105, 20480, 640, 4, 169),
        (105, 20480, 1120, 2, 137),
        (105, 20480, 2240, 1, 140),
    ):
        n = 12 * layers * width**2 + (51200 + 2048) * width
        work = Work(n, layers, width, 2048, 51200, checkpointing=True, reduced_bytes=2)
        points.append(
            Point(
                f"Megatron's ZeRO-3, {n / 1e9:.0f}B, micro-batch {micro}, {gpus}xA100-80",
                MEGATRON,
                work,
                Sharing(3),
                parse_gpus(f"{gpus}xA100-80"),
                micro,
                1,
                300e9 / (days * 86400 * gpus),
            )
        )
    return points


POINTS = [*_foundry(), *_others(), *_megatron()]
