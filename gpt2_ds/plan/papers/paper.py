"""What the papers print of the models that `recipes/` is named after."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isclose


@dataclass(frozen=True)
class Published:
    """One value, as a paper gives it.

    Args:
        value: what the recipe's key would be; a range: anything in it; None: not published.
        text: as printed.
        source: the section or table.
    """

    value: object
    text: str
    source: str

    def agrees(self, ours: object) -> bool:
        """Whether a recipe's value is the paper's: to the last digit, or within its range."""
        if isinstance(self.value, range):
            return isinstance(ours, int) and ours in self.value
        if isinstance(self.value, float) and isinstance(ours, float):
            return isclose(self.value, ours, rel_tol=1e-9)  # a tenth is not an exact float
        return self.value is not None and self.value == ours


@dataclass(frozen=True)
class Apart:
    """Something that a paper says and no key of a recipe can.

    Args:
        what: its name.
        published: the paper's.
        ours: what is done here.
        why: the reason.
    """

    what: str
    published: Published
    ours: str
    why: str


@dataclass(frozen=True)
class Paper:
    """All that is known of one model.

    Args:
        title: authors and year.
        address: where to read it.
        values: by the recipe's key.
        apart: what no key says.
    """

    title: str
    address: str
    values: dict[str, Published]
    apart: tuple[Apart, ...]


_SILENT = Published(None, "not published", "")

_VOCABULARY = Apart(
    "vocabulary",
    Published(None, "50,257", "GPT-2, section 2.3"),
    "50,304 rows",
    "a multiple of 64 is faster; the 47 rows that stand for no token never enter the loss",
)

# Table 2.1: layers, width, heads, batch in units of 0.1M tokens, peak learning rate.
_GPT3 = {
    "gpt3_125m": (12, 768, 12, 5, 6.0e-4),
    "gpt3_350m": (24, 1024, 16, 5, 3.0e-4),
    "gpt3_760m": (24, 1536, 16, 5, 2.5e-4),
    "gpt3_1.3b": (24, 2048, 24, 10, 2.0e-4),
    "gpt3_2.7b": (32, 2560, 32, 10, 1.6e-4),
    "gpt3_6.7b": (32, 4096, 32, 20, 1.2e-4),
    "gpt3_13b": (40, 5140, 40, 20, 1.0e-4),
    "gpt3_175b": (96, 12288, 96, 32, 0.6e-4),
}

# Table 2, and the heads of the released models: layers, width, heads.
_GPT2 = {
    "gpt2_124m": (12, 768, 12),
    "gpt2_355m": (24, 1024, 16),
    "gpt2_774m": (36, 1280, 20),
    "gpt2_1.5b": (48, 1600, 25),
}


def _gpt3(layers: int, width: int, heads: int, batch: int, lr: float) -> Paper:
    table, training = partial(_as_printed, source="table 2.1"), "appendix B"
    return Paper(
        title="Brown et al. 2020, Language Models are Few-Shot Learners",
        address="https://arxiv.org/abs/2005.14165",
        values={
            "model.n_layer": table(layers),
            "model.n_head": table(heads),
            "model.n_embd": table(width),
            "model.n_positions": Published(2048, "2048", "section 2.1"),
            "tokenizer.name": Published("gpt2", "GPT-2's", "section 2.1"),
            "data.seq_length": Published(2048, "2048", training),
            "data.document_mask": Published(False, "no mask", training),
            "batch.global_batch_tokens": Published(
                batch * 100_000, f"{batch / 10:g}M", "table 2.1"
            ),
            "batch.ramp.start_tokens": Published(32_000, "32k", training),
            "batch.ramp.increment_tokens": Published(None, "linearly", training),
            "batch.ramp.length_tokens": Published(
                range(4_000_000_000, 12_000_000_001), "4-12 billion", training
            ),
            "optimizer.name": Published("adamw", "Adam, decoupled decay", training),
            "optimizer.lr": table(lr),
            "optimizer.betas": Published([0.9, 0.95], "0.9, 0.95", training),
            "optimizer.eps": Published(1e-8, "1e-08", training),
            "optimizer.weight_decay": Published(0.1, "0.1", training),
            "optimizer.gradient_clipping": Published(1.0, "1.0", training),
            "schedule.name": Published("cosine", "cosine", training),
            "schedule.total_tokens": Published(300_000_000_000, "300 billion", "table 2.1"),
            "schedule.warmup_tokens": Published(375_000_000, "375 million", training),
            "schedule.decay_tokens": Published(260_000_000_000, "260 billion", training),
            "schedule.min_lr": Published(lr / 10, "10 % of the peak", training),
            "precision.dtype": Published("fp16", "V100 GPUs: fp16", "section 2.3"),
        },
        apart=(
            Apart(
                "attention",
                Published(None, "dense and banded sparse in turn", "section 2.1"),
                "dense in every layer",
                "fast kernels are for dense attention; the paper gives no size of the bands",
            ),
            Apart(
                "what decays",
                Published(None, "not said", training),
                "matrices; no bias, no LayerNorm",
                "as nanoGPT and Megatron-LM",
            ),
            _VOCABULARY,
            Apart(
                "data",
                Published(None, "Common Crawl, WebText2, books, Wikipedia", "table 2.2"),
                "your own text",
                "the paper's was never released",
            ),
        ),
    )


def _gpt2(layers: int, width: int, heads: int) -> Paper:
    return Paper(
        title="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
        address="https://github.com/openai/gpt-2",
        values={
            "model.n_layer": _as_printed(layers, "table 2"),
            "model.n_head": _as_printed(heads, "hparams.json"),
            "model.n_embd": _as_printed(width, "table 2"),
            "model.n_positions": Published(1024, "1024", "section 2.3"),
            "tokenizer.name": Published("gpt2", "byte pairs, 50,257", "section 2.3"),
            "data.seq_length": Published(1024, "1024", "section 2.3"),
            "batch.global_batch_tokens": Published(524_288, "512 sequences", "section 2.3"),
            "optimizer.name": _SILENT,
            "optimizer.lr": _SILENT,
            "optimizer.betas": _SILENT,
            "optimizer.eps": _SILENT,
            "optimizer.weight_decay": _SILENT,
            "optimizer.gradient_clipping": _SILENT,
            "schedule.name": _SILENT,
            "schedule.total_tokens": _SILENT,
            "schedule.warmup_tokens": _SILENT,
            "schedule.decay_tokens": _SILENT,
            "schedule.min_lr": _SILENT,
            "precision.dtype": _SILENT,
        },
        apart=(
            _VOCABULARY,
            Apart(
                "data",
                Published(None, "WebText", "section 2.1"),
                "your own text",
                "the paper's was never released",
            ),
        ),
    )


def _as_printed(value: float, source: str) -> Published:
    return Published(value, f"{value:g}", source)


PAPERS = {
    **{name: _gpt3(*row) for name, row in _GPT3.items()},
    **{name: _gpt2(*row) for name, row in _GPT2.items()},
}
"""By the name of the recipe."""
