"""What a template needs of the machine that it runs on."""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.template import Template


def check_needs(template: Template, file: str, *, on_cpu: bool) -> None:
    """Refuse a template that this machine cannot run.

    Args:
        template: the template.
        file: as the user named it.
        on_cpu: this rank trains on a CPU.

    Raises:
        UserError: quantized weights without a GPU; NVMe offload without its folder or libaio.
    """
    zero, faults = template.zero_optimization, []
    if on_cpu and zero.zero_quantized_weights:
        faults.append(
            Fault(
                f"{file}: zero_optimization.zero_quantized_weights",
                "needs GPUs: DeepSpeed 0.19.8 cannot quantize on a CPU",
                "Use --template ds_configs/zero3_hpz.json here.",
            )
        )
    paths = {
        f"{file}: zero_optimization.{name}.nvme_path": offload.nvme_path
        for name in ("offload_optimizer", "offload_param")
        if (offload := getattr(zero, name)) is not None and offload.device == "nvme"
    }
    for where, path in paths.items():
        if path is not None and not (Path(path).is_dir() and os.access(path, os.W_OK)):
            what = f"{path} is not a folder that this user may write to"
            faults.append(Fault(where, what, "Name one on a local NVMe disk of every machine."))
    if paths and find_library("aio") is None:
        what = "offload to nvme needs the library libaio, which is not installed"
        fix = "Install it with its headers: apt-get install libaio-dev (yum: libaio-devel)."
        faults.append(Fault(f"{file}: zero_optimization", what, fix))
    if faults:
        raise UserError(*faults)
