"""Where DeepSpeed's Muon is wrong, or was not compared with plain torch."""

from __future__ import annotations

from collections.abc import Iterator

from gpt2_ds.config.lint.findings import Finding, Job


def muon(job: Job) -> Iterator[Finding]:
    """What is wrong with Muon; nothing for other optimizers."""
    optimizer, zero = job.recipe.optimizer, job.zero
    if optimizer.name != "muon":
        return
    if optimizer.gradient_clipping > 0:
        yield Finding(
            "error",
            job.loaded.where("optimizer.gradient_clipping"),
            f"is {optimizer.gradient_clipping} with Muon: DeepSpeed clips the update that Muon "
            "made of the gradient, which is as large for any gradient",
            "Set it to 0, which switches clipping off.",
            "seen in 0.19.8: loss 5.141 instead of 4.872 after 20 steps; DeepSpeed #8439",
        )
    if job.recipe.precision.dtype == "fp16":
        yield Finding(
            "error",
            job.loaded.where("precision.dtype"),
            "is fp16, in which Muon was not compared with plain torch",
            "Set it to bf16.",
            "fp32 and bf16 were, in 0.19.8",
        )
    if zero.offload_optimizer is not None and zero.offload_optimizer.device == "nvme":
        yield job.error(
            "offload_optimizer.device",
            "is nvme, with which Muon was not compared with plain torch",
            "Set it to cpu.",
            "cpu was, in 0.19.8",
        )
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(zero, key):
            yield job.error(
                key,
                "is true, with which Muon cannot be trained",
                "Use --template ds_configs/zero3.json.",
                "read in 0.19.8: a ValueError",
            )
