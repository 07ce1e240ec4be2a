"""A model with a tensor that the plan does not know of: no run and no benchmark starts with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from gpt2_ds.config.errors import UserError
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_dataset, small_plan

COUNT = 320 * 32 + 32 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32


def refused(data: Path, folder: Path) -> list[str]:
    """What a run at ZeRO-0, one at ZeRO-3 and a benchmark say, once attention has a QK-norm."""
    from gpt2_ds.model.gpt2 import GPT2Attention
    from gpt2_ds.train.benchmark import benchmark
    from gpt2_ds.train.run import train

    build = GPT2Attention.__init__

    def with_norm(self: GPT2Attention, config: object) -> None:
        build(self, config)  # type: ignore[arg-type]
        self.q_norm = nn.LayerNorm(self.head_dim, bias=False)

    GPT2Attention.__init__ = with_norm  # type: ignore[method-assign]
    plans = [
        small_plan(data, folder / template, template=template, world_size=2)
        for template in ("zero0", "zero3")
    ]
    said = []
    for start in (
        lambda: train(plans[0], small_corpus(data)),
        lambda: train(plans[1], small_corpus(data)),
        lambda: benchmark(plans[1:], steps=1, warmup_steps=0, plain_torch=False),
    ):
        with pytest.raises(UserError) as caught:
            start()
        said.append(str(caught.value))
    return said


@pytest.mark.heavy
def test_a_tensor_that_is_not_described_ends_the_run(tmp_path: Path) -> None:
    names = ", ".join(
        f"transformer.h.{layer}.attn.q_norm.weight (16) is not described" for layer in range(2)
    )
    expected = (
        f"gpt2_ds/config/model_shape.py: describes {COUNT:,} parameters, and the model has "
        f"{COUNT + 32:,}: {names}. Describe there the tensors that gpt2_ds/model/gpt2.py makes: "
        "memory, FLOPs and MFU follow from them."
    )
    for said in run_ranks(refused, 2, tmp_path, small_dataset(tmp_path), tmp_path):
        assert said == [expected] * 3
    assert not list(tmp_path.glob("zero*/checkpoints/*"))
