"""A file that would run something is refused by name, and nothing of it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    hash_file,
    seal,
    step_name,
)
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.states import pickles
from gpt2_ds.parallel.states.pickles import check_pickles, pickle_names, unknown_globals
from tests.checkpoint.saved_files import manifest_of
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import small_plan

RESTORE = "Do not load it; restore a copy that you trust."


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def refusal(checkpoint: Path, name: str) -> str:
    with pytest.raises(UserError) as caught:
        check_pickles(checkpoint, [name])
    where = f"{checkpoint / name}: "
    assert str(caught.value).startswith(where)
    return str(caught.value).removeprefix(where)


def test_tensors_and_plain_values_pass(tmp_path: Path) -> None:
    states = {
        "module": {"w": torch.ones(3, dtype=torch.bfloat16), "p": torch.nn.Parameter(torch.ones(2))}
    } | {"shapes": [torch.Size([3])], "more": [1, 2.5, None, True, "x", b"y", (1,), {2}, 2**70]}
    torch.save(states, tmp_path / "a.pt")
    assert unknown_globals(tmp_path / "a.pt") == []
    check_pickles(tmp_path, ["a.pt"])


def test_a_payload_is_named_and_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"module": {}, "deep": [{"x": Payload(marker)}]}, tmp_path / "a.pt")
    torch.save({"cpu": torch.get_rng_state()}, tmp_path / "b.pt")
    assert unknown_globals(tmp_path / "a.pt") == ["posix.system"]
    with pytest.raises(UserError) as caught:
        check_pickles(tmp_path, ["b.pt", "a.pt"])
    assert str(caught.value) == (
        f"{tmp_path}/a.pt: holds posix.system, which a checkpoint of this project never does. "
        f"Loading it may run a stranger's program. {RESTORE}"
    )
    assert not marker.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert marker.exists()  # so it was a real one


@pytest.mark.parametrize("word", [getattr, eval, exec, Path, __import__])
def test_no_way_to_other_names_passes(tmp_path: Path, word: Any) -> None:
    torch.save([word], tmp_path / "a.pt")
    assert unknown_globals(tmp_path / "a.pt") == [f"{word.__module__}.{word.__qualname__}"]


def archive(path: Path, **records: bytes) -> None:
    """A file in torch's own archive, of these records."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, content in records.items():
        writer.write_record(name.replace("_pkl", ".pkl"), content, len(content))
    writer.write_end_of_file()


def test_what_torch_save_does_not_write_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    payload = [Payload(marker)]
    cases = {}
    torch.save(payload, tmp_path / "old", _use_new_zipfile_serialization=False)
    cases["old"] = "Expected input to be a checkpoint returned by torch.save"
    torch.save(payload, tmp_path / "protocol", pickle_protocol=4)
    cases["protocol"] = "Unsupported operand 149"
    archive(tmp_path / "script", data_pkl=b"\x80\x02].", constants_pkl=b"\x80\x02].")
    cases["script"] = "torchscript"
    archive(tmp_path / "inst", data_pkl=b"\x80\x02(X\x01\x00\x00\x00xiposix\nsystem\n.")
    cases["inst"] = "Unsupported operand 105"
    archive(tmp_path / "cut", data_pkl=b"\x80\x02]")
    cases["cut"] = "EOFError"
    archive(tmp_path / "empty", data_pkl=b"\x80")
    cases["empty"] = "index out of range"
    archive(tmp_path / "short", data_pkl=b"\x80\x02X\x01")
    cases["short"] = "unpack requires"
    archive(tmp_path / "letters", data_pkl=b"\x80\x02c\xff\nx\n.")
    cases["letters"] = "utf-8"
    archive(tmp_path / "other", more=b"x")
    cases["other"] = "file not found"
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 and no more")
    cases["zip"] = "PytorchStreamReader"
    (tmp_path / "nothing").touch()
    cases["nothing"] = "Expected input"
    (tmp_path / "folder").mkdir()
    cases["folder"] = "Is a directory"
    cases["missing"] = "No such file"
    for name, said in cases.items():
        message = refusal(tmp_path, name)
        assert message.startswith("not a file as torch.save writes it ("), name
        assert said in message, name
        assert message.endswith(f"). {RESTORE}")
    assert not marker.exists()


def test_every_file_that_torch_would_load_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.pt", "a.pt", "deep/c.pt", "manifest.json"):
        (tmp_path / name).touch()
    assert pickle_names(tmp_path) == ["a.pt", "b.pt", "deep/c.pt"]


def test_the_list_holds_classes_of_deepspeed_alone() -> None:
    assert pickles._OF_DEEPSPEED
    for name in pickles._OF_DEEPSPEED:
        module, _, attribute = name.rpartition(".")
        assert module.startswith("deepspeed.")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, type)
        assert f"{found.__module__}.{found.__name__}" == name


CASES = [("zero0", "fp32", "fp32"), ("zero1", "bf16", "same"), ("zero3_offload", "bf16", "fp32")]
CASES += [(f"zero{stage}", dtype, "fp32") for stage in (1, 2, 3) for dtype in ("fp32", "bf16")]


def save_every_kind(folder: Path) -> None:
    """One update and one checkpoint of each case."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine

    for template, dtype, sums in CASES:
        name = f"{template}_{dtype}_{sums}"
        settings = (f"precision.dtype={dtype}", f"precision.grad_accum_dtype={sums}")
        plan = small_plan(folder / "data", folder / name, *settings, template=template)
        engine = build_engine(
            GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
            plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
            seed=3,
        )
        for _ in range(plan.derived.gradient_accumulation_steps):
            engine.backward(window_loss(engine, torch.randint(0, 257, (2, 33))))
            engine.step()
        engine.save_checkpoint(str(folder / "checkpoints"), tag=name, save_latest=False)
        engine.destroy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(save_every_kind, 1, folder, folder)
    return folder


@pytest.mark.heavy
def test_every_kind_of_checkpoint_passes_and_a_payload_in_any_file_does_not(
    saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    marker = tmp_path / "ran"
    used: set[str] = set()
    for template, dtype, sums in CASES:
        checkpoint = tmp_path / "checkpoints" / f"{template}_{dtype}_{sums}"
        names = pickle_names(checkpoint)
        assert len(names) == (1 if template == "zero0" else 2)
        check_pickles(checkpoint, names)
        for name in names:
            used |= set(torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint / name))
            states = torch.load(checkpoint / name, weights_only=False)
            states["more"] = Payload(marker)
            torch.save(states, checkpoint / name)
            assert refusal(checkpoint, name).startswith("holds posix.system, which")
    assert not marker.exists()
    # What is on the list is there for a reason; the dynamic one is of fp16, which needs a GPU.
    assert used == {name for name in pickles._OF_DEEPSPEED if "Dynamic" not in name}


@pytest.mark.heavy
def test_generate_runs_no_payload(saved: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "data", tmp_path / "run")
    checkpoint = plan.run_dir / "checkpoints" / step_name(4)
    shutil.copytree(saved / "checkpoints/zero0_fp32_fp32", checkpoint)
    (plan.run_dir / "recipe.yaml").write_text(dump_recipe(plan.recipe))
    load_tokenizer("bytes").save(checkpoint / "tokenizer")
    file = checkpoint / "mp_rank_00_model_states.pt"
    good = torch.load(file, weights_only=False)
    marker = tmp_path / "ran"

    def generate() -> subprocess.CompletedProcess[str]:
        manifest = manifest_of(4, {file.name: hash_file(file)}, world_size=1, zero_stage=0)
        (checkpoint / MANIFEST).write_text(seal(manifest))
        words = ["--run", str(plan.run_dir), "--prompt", "x", "--max-new-tokens", "2"]
        command = [sys.executable, str(REPOSITORY / "launch/generate.py"), *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)

    done = generate()
    assert (done.returncode, done.stderr) == (0, "")
    # A file that the manifest does not name is refused as well: DeepSpeed finds files by name.
    for name in (file.name, "zero_pp_rank_0_mp_rank_00_optim_states.pt", "random_rank_00000.pt"):
        torch.save(good | {"more": Payload(marker)}, checkpoint / name)
        done = generate()
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {checkpoint / name}: holds posix.system, which a")
        assert len(done.stderr.splitlines()) == 1
        torch.save(good, file)
        if name != file.name:
            (checkpoint / name).unlink()
    assert not marker.exists()
