"""Muon: a run that was stopped takes the same steps; on other ranks or stages it is refused."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from gpt2_ds.config.errors import RunError, UserError
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan

MUON = [
    "optimizer.name=muon",
    "optimizer.muon_lr=0.02",
    "optimizer.muon_momentum=0.95",
    "optimizer.gradient_clipping=0",
]
CASES = [("zero1", "fp32"), ("zero2", "bf16"), ("zero3", "bf16")]


def train_all(data: Path, folder: Path, ranks: int) -> dict[str, list[str]]:
    """Each case with a stop after step 3 and without; and what is said to another template."""
    from gpt2_ds.train.run import train

    said: dict[str, list[str]] = {}

    def run(name: str, template: str | Path, dtype: str, until: int) -> None:
        words = [*MUON, f"precision.dtype={dtype}"]
        plan = small_plan(
            data, folder / name, *words, template=template, world_size=ranks, max_steps=until
        )
        try:
            with redirect_stdout(io.StringIO()):
                train(plan, small_corpus(data))
        except UserError as error:
            said.setdefault(name, []).append(str(error))

    if ranks == 2:
        for template, dtype in CASES:
            run(f"{template}_whole", template, dtype, 5)
            run(template, template, dtype, 3)
            run(template, template, dtype, 5)
        run("zero1", "zero2", "fp32", 6)
        text = (REPOSITORY / "ds_configs/zero2.json").read_text()
        other = folder / "other.json"
        other.write_text(text.replace('robin_gradients": false', 'robin_gradients": true'))
        run("zero2", other, "bf16", 6)
    else:
        run("zero2", "zero2", "bf16", 6)
    return said


@pytest.mark.heavy
def test_a_stop_changes_nothing_and_another_layout_is_refused(tmp_path: Path) -> None:
    from gpt2_ds.parallel.states.parameter_states import ParameterStates, load_fp32_weights
    from gpt2_ds.parallel.states.universal import write_universal

    data = small_dataset(tmp_path)
    said = run_ranks(train_all, 2, tmp_path, data, tmp_path, 2)[0]
    for template, _ in CASES:
        whole, stopped = (
            metrics_of(tmp_path / name, "step", "loss") for name in (f"{template}_whole", template)
        )
        assert stopped == whole, template  # to the last bit
        assert [step for step, _ in whole] == [1, 2, 3, 4, 5]
        weights = load_fp32_weights(tmp_path / template / "checkpoints/step_00000005")
        assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    checkpoint = tmp_path / "zero1/checkpoints/step_00000005"
    templates = REPOSITORY / "ds_configs"
    assert said["zero1"] == [
        f"{checkpoint}: a run with Muon resumes only as it was saved, by 2 ranks at ZeRO stage 1; "
        f"this job has 2 ranks at stage 2 with {templates}/zero2.json. Resume with 2 ranks and the "
        "template of stage 1 that it was saved with, or begin a new run with --run-dir runs/NAME."
    ]
    (another,) = said["zero2"]
    assert (
        f"stage 2 with {tmp_path}/other.json and another round_robin_gradients. Resume" in another
    )
    (alone,) = run_ranks(train_all, 1, tmp_path, data, tmp_path, 1)
    assert ", by 2 ranks at ZeRO stage 2; this job has 1 rank at stage 2 with " in alone["zero2"][0]
    with pytest.raises(RunError) as caught:
        write_universal(checkpoint, tmp_path / "out")
    expected = (
        f"{checkpoint}: it was written with optimizer.name muon, and only Adam's state can be read "
        "here; the weights can. Resume with the same template on the same number of ranks."
    )
    assert str(caught.value) == expected
    assert not list(tmp_path.glob("out*"))
    states = ParameterStates(checkpoint)
    for ask in (states.step, lambda name: states.moment(name, "exp_avg")):
        with pytest.raises(RunError, match=r"optimizer\.name muon"):
            ask(states.names()[0])
