"""What a template needs of a machine, and what is said where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2_ds.config.lint import template_needs
from gpt2_ds.config.lint.template_needs import check_needs
from gpt2_ds.config.template import Template
from gpt2_ds.config.template_file import load_template
from tests.config.small_recipe import faults_of, only_fault
from tests.conftest import REPOSITORY


def shipped(name: str) -> Template:
    return load_template(REPOSITORY / "ds_configs" / f"{name}.json")


def on_disk(folder: Path) -> Template:
    text = (REPOSITORY / "ds_configs/zero3_nvme.json").read_text()
    path = folder / "t.json"
    path.write_text(text.replace("/local_nvme", str(folder / "nvme")))
    return load_template(path)


def test_quantized_weights_need_gpus() -> None:
    template = shipped("zero3_hpz_quantized")
    assert only_fault(lambda: check_needs(template, "t.json", on_cpu=True)) == (
        "t.json: zero_optimization.zero_quantized_weights: needs GPUs: DeepSpeed 0.19.8 cannot "
        "quantize on a CPU. Use --template ds_configs/zero3_hpz.json here."
    )
    check_needs(template, "t.json", on_cpu=False)


@pytest.mark.parametrize("name", ["zero0", "zero2_offload", "zero3_offload", "zero3_hpz"])
def test_the_others_run_on_a_cpu(name: str) -> None:
    check_needs(shipped(name), "t.json", on_cpu=True)


def test_a_disk_needs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_needs, "find_library", lambda name: f"lib{name}.so.1")
    template = on_disk(tmp_path)
    faults = faults_of(lambda: check_needs(template, "t.json", on_cpu=True))
    assert [str(fault) for fault in faults] == [
        f"t.json: zero_optimization.{name}.nvme_path: {tmp_path / 'nvme'} is not a folder that "
        "this user may write to. Name one on a local NVMe disk of every machine."
        for name in ("offload_optimizer", "offload_param")
    ]
    (tmp_path / "nvme").mkdir()
    check_needs(template, "t.json", on_cpu=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_disk_needs_a_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_needs, "find_library", lambda name: f"lib{name}.so.1")
    (tmp_path / "nvme").mkdir(mode=0o500)
    template = on_disk(tmp_path)
    faults = faults_of(lambda: check_needs(template, "t.json", on_cpu=True))
    assert all("no folder that this user may write to" in fault.what for fault in faults)


def test_a_disk_needs_libaio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(template_needs, "find_library", asked.append)
    (tmp_path / "nvme").mkdir()
    template = on_disk(tmp_path)
    assert only_fault(lambda: check_needs(template, "t.json", on_cpu=False)) == (
        "t.json: zero_optimization: offload to nvme needs the library libaio, which is not "
        "installed. Install it with its headers: apt-get install libaio-dev (yum: libaio-devel)."
    )
    check_needs(shipped("zero3_offload"), "t.json", on_cpu=True)  # needs none
    assert asked == ["aio"]
