"""What is caught is what DeepSpeed would have written, and later steps do not change it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch.testing import assert_close

from gpt2_ds.parallel.states import captured_state
from gpt2_ds.parallel.states.captured_state import (
    Buffers,
    _Catcher,
    bytes_of,
    catch_state,
    copy_state,
    fits_in_memory,
)
from gpt2_ds.parallel.states.pickles import unknown_globals
from tests.ranks import run_ranks
from tests.small_run import small_plan


def test_a_copy_does_not_follow_its_original() -> None:
    scaler = SimpleNamespace(scale=4.0)
    weight = torch.arange(6.0)
    state = {"w": weight, "scaler": scaler, "list": [weight[2:4], (1, "x")]}
    copied = copy_state(state)
    weight.zero_()
    scaler.scale = 8.0
    assert copied["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert copied["list"][0].tolist() == [2, 3]
    assert copied["list"][1] == (1, "x")
    assert copied["scaler"].scale == 4.0


def test_a_copy_keeps_what_is_shared_and_leaves_out_what_is_around(tmp_path: Path) -> None:
    large = torch.zeros(100_000)
    state = OrderedDict(a=large[:10], tied=large[:10], b=large[10:20])
    copied = copy_state(state)
    assert type(copied) is OrderedDict
    assert list(copied) == ["a", "tied", "b"]
    assert copied["a"] is copied["tied"]
    assert copied["a"].data_ptr() != copied["b"].data_ptr()
    torch.save(copied, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 5_000  # not the large one
    assert bytes_of(state) == 80


def test_a_parameter_becomes_a_plain_tensor() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    copied = copy_state([parameter])[0]
    assert type(copied) is torch.Tensor
    assert not copied.requires_grad


def test_the_next_copy_is_made_in_the_memory_of_the_last() -> None:
    buffers, weight = Buffers(), torch.arange(6.0)
    state = {"w": weight, "part": weight[::2], "count": torch.tensor(3)}
    first = copy_state(state, buffers)
    weight.neg_()
    meanwhile = copy_state(state, buffers)  # the first one may still be written
    assert [first["w"].tolist(), meanwhile["w"].tolist()] == [
        [0, 1, 2, 3, 4, 5],
        [0, -1, -2, -3, -4, -5],
    ]
    buffers.reuse()
    assert buffers.free_bytes() == 2 * (24 + 12 + 8)
    second = copy_state(state, buffers)
    places = {copied[name].data_ptr() for copied in (first, meanwhile) for name in state}
    assert {tensor.data_ptr() for tensor in second.values()} < places
    assert second["part"].tolist() == [0, -2, -4]
    buffers.reuse()
    assert buffers.free_bytes() == 24 + 12 + 8  # what was not needed again is given back


def test_memory_that_is_there_already_needs_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_state, "free_memory", lambda: 1000)
    state, buffers = {"w": torch.zeros(200)}, Buffers()
    assert fits_in_memory({"w": torch.zeros(199)}, buffers)
    assert not fits_in_memory(state, buffers)  # 800 bytes are 0.8 of it
    copy_state(state, buffers)
    buffers.reuse()
    assert fits_in_memory(state, buffers)


def test_a_stage_is_saved_by_its_value(tmp_path: Path) -> None:
    torch.save([*ZeroStageEnum], tmp_path / "x.pt")  # Debian 12 has Python 3.11.2, see there
    assert unknown_globals(tmp_path / "x.pt") == []
    assert torch.load(tmp_path / "x.pt", weights_only=False) == [0, 1, 2, 3]


def test_the_catcher_does_not_load() -> None:
    with pytest.raises(NotImplementedError):
        _Catcher(lambda state, path: None).load("x")


def caught_and_written(folder: Path, template: str) -> list[tuple[str, bool]]:
    """Files of this rank: are the caught tensors those that DeepSpeed writes itself?"""
    from gpt2_ds.config.derive import model_fields
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.model import GPT2Config
    from gpt2_ds.parallel.engine import build_engine

    plan = small_plan("unused", folder / "run", template=template, world_size=2)
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)), config, seed=1
    )

    def step() -> None:
        for _ in range(plan.derived.gradient_accumulation_steps):
            ids = torch.arange(64).reshape(2, 32) + rank()
            engine.backward(engine(ids, shift_labels=ids, return_logits=False).loss)
            engine.step()

    step()
    files: dict[Path, Any] = {}
    own = engine.checkpoint_engine
    catch_state(engine, folder / "caught", lambda s, path: files.update({path: copy_state(s)}))
    assert engine.checkpoint_engine is own
    engine.save_checkpoint(str(folder), tag="written", save_latest=False)
    step()
    found = []
    for path, state in files.items():
        written = torch.load(folder / "written" / path.name, weights_only=False)
        same = set(written) | {"universal_checkpoint_info"} == set(state) | {
            "universal_checkpoint_info"
        }
        for key in ("module", "optimizer_state_dict"):
            if isinstance(written.get(key), dict):
                assert_close(
                    tensors(state[key]), tensors(written[key]), rtol=0, atol=0, equal_nan=True
                )
        found.append((path.name, same))
    return found


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list, tuple)):
        return []
    return [tensor for item in items for tensor in tensors(item)]


@pytest.mark.heavy
@pytest.mark.parametrize("template", ["zero0", "zero2", "zero3"])
def test_what_is_caught_is_what_deepspeed_writes(template: str, tmp_path: Path) -> None:
    ranks = run_ranks(caught_and_written, 2, tmp_path, tmp_path, template)
    names = [name for files in ranks for name, _ in files]
    assert all(same for files in ranks for _, same in files)
    expected = {"zero0": 1, "zero2": 3, "zero3": 4}[template]  # each rank's model states at stage 3
    assert len(names) == len(set(names)) == expected, names
