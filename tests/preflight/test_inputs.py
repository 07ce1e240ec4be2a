"""What a run reads is checked before it starts, and made once however many ranks ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import MANIFEST, seal, step_name
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.same_run import fingerprint
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.preflight.inputs import open_inputs
from tests.checkpoint.saved_files import manifest_of
from tests.conftest import REPOSITORY
from tests.small_run import SETTINGS, small_dataset, small_plan

PREPARED = "data.prepare={inputs: [%s], validation_fraction: 0.3}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"document {number} " * 20)
    return folder


def refusal(plan: RunPlan) -> str:
    with pytest.raises(UserError) as caught:
        open_inputs(plan)
    return str(caught.value)


def test_the_dataset_of_the_recipe_is_opened(data: Path, tmp_path: Path) -> None:
    assert list(open_inputs(small_plan(data, tmp_path / "run")).datasets) == [""]
    assert not (tmp_path / "run").exists()


def test_no_data(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refusal(small_plan(missing, tmp_path / "run")) == (
        f"{missing}: no such dataset. "
        f"Make it: python launch/prepare_data.py INPUT ... --out {missing}"
    )


def test_data_of_another_tokenizer(data: Path, tmp_path: Path) -> None:
    message = refusal(small_plan(data, tmp_path / "run", "tokenizer.name=gpt2"))
    assert message == (
        f"--set: tokenizer.name: 'gpt2' has 50257 tokens, and {data} was made with 'bytes', which "
        "has 257. Name the tokenizer of the data, or prepare the data again."
    )


def test_a_ranks_file_must_be_that_of_the_data(data: Path, tmp_path: Path) -> None:
    same = data / "tokenizer/ranks.tiktoken"
    assert open_inputs(small_plan(data, tmp_path / "run", f"tokenizer.name={same}"))
    lines = same.read_text().splitlines()
    lines[0], lines[1] = f"{lines[0].split()[0]} 1", f"{lines[1].split()[0]} 0"
    other = tmp_path / "other.tiktoken"  # as large, with two tokens exchanged
    other.write_text("\n".join(lines))
    (tmp_path / "tokenizer.json").write_bytes((data / "tokenizer/tokenizer.json").read_bytes())
    message = refusal(small_plan(data, tmp_path / "run", f"tokenizer.name={other}"))
    assert "has 257 tokens, and" in message


def test_a_prompt_that_the_model_cannot_read_is_refused_before_the_start(
    data: Path, tmp_path: Path
) -> None:
    fits = "x" * 31  # and end-of-text: 32
    assert open_inputs(small_plan(data, tmp_path / "run", f"evaluation.sample_prompt={fits}"))
    message = refusal(small_plan(data, tmp_path / "run", f"evaluation.sample_prompt={fits}x"))
    assert message == (
        "--set: evaluation.sample_prompt: 33 tokens with end-of-text, and model.n_positions is 32. "
        "Shorten it."
    )


def test_more_validation_tokens_than_there_are(data: Path, tmp_path: Path) -> None:
    available = Dataset.open(data).split("validation").n_windows(32) * 32
    assert open_inputs(small_plan(data, tmp_path / "run", f"evaluation.tokens={available}"))
    wanted = available + 32
    assert refusal(small_plan(data, tmp_path / "run", f"evaluation.tokens={wanted}")) == (
        f"--set: evaluation.tokens: {wanted} tokens, and the validation split of {data} holds "
        f"{available} in windows of 32. Set it to at most {available}."
    )


def test_too_little_text(texts: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(Request(inputs=[texts], out=data, tokenizer="bytes", validation_fraction=0.02))
    longest = ("model.n_positions=16384", "data.seq_length=16384", "evaluation.tokens=16384")
    longest += ("batch.global_batch_tokens=16384", "batch.micro_batch_size=1")
    longest += ("schedule.total_tokens=16384", "schedule.decay_tokens=16384")
    assert "Prepare the data again with a larger validation fraction." in refusal(
        small_plan(data, tmp_path / "run", *longest)
    )


def test_too_little_text_to_train_on(texts: Path, tmp_path: Path) -> None:
    data, long = tmp_path / "data", tmp_path / "long.txt"
    long.write_text("words " * 4000)
    prepare(Request(inputs=[texts], out=data, tokenizer="bytes", validation=[long]))
    settings = ("model.n_positions=20480", "data.seq_length=20480", "evaluation.tokens=20480")
    settings += ("batch.global_batch_tokens=20480", "batch.micro_batch_size=1")
    settings += ("schedule.total_tokens=20480", "schedule.decay_tokens=20480")
    assert refusal(small_plan(data, tmp_path / "run", *settings)) == (
        f"--set: data.seq_length: 20480 tokens, and no training shard of {data} is longer. "
        "Prepare more text, or shorten it."
    )


def begun(plan: RunPlan, *, data_fingerprint: str, world_size: int = 1) -> None:
    """A run directory with a complete checkpoint."""
    path = plan.run_dir / "checkpoints" / step_name(3)
    path.mkdir(parents=True)
    (plan.run_dir / "recipe.yaml").write_text(dump_recipe(plan.recipe))
    manifest = manifest_of(
        3,
        {},
        world_size=world_size,
        zero_stage=0,
        dtype="fp32",
        recipe_fingerprint=fingerprint(plan.recipe, 768),
        data_fingerprint=data_fingerprint,
    )
    (path / MANIFEST).write_text(seal(manifest))


def test_another_run_is_in_the_folder(data: Path, tmp_path: Path) -> None:
    begun(small_plan(data, tmp_path / "run"), data_fingerprint="")
    message = refusal(small_plan(data, tmp_path / "run", "optimizer.lr=1e-3"))
    assert message.startswith(f"{tmp_path}/run/recipe.yaml: optimizer.lr: this run began with")
    assert "--run-dir" in message


def test_the_data_has_changed(data: Path, tmp_path: Path) -> None:
    plan, now = small_plan(data, tmp_path / "run"), Dataset.open(data).fingerprint
    begun(plan, data_fingerprint="0" * 64)
    assert f"this run has read 000000000000, and the recipe's data now is {now[:12]}" in refusal(
        plan
    )


def test_the_same_run_goes_on_and_on_another_number_of_ranks(data: Path, tmp_path: Path) -> None:
    plan = small_plan(data, tmp_path / "run")
    begun(plan, data_fingerprint=Dataset.open(data).fingerprint)
    assert open_inputs(plan).datasets[""].path == data
    other = small_plan(data, tmp_path / "run", world_size=2)
    assert open_inputs(other).datasets[""].path == data


def test_the_folder_of_the_data_is_taken(texts: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("precious")
    assert refusal(small_plan(taken, tmp_path / "run", PREPARED % texts)) == (
        f"--set: data.path: {taken} is there, and holds no dataset. "
        "Name another folder, or delete this one: it is made when missing."
    )
    assert (taken / "thesis.tex").read_text() == "precious"


_RANK = """
import sys, time
from pathlib import Path
import gpt2_ds.preflight.inputs as module
from gpt2_ds.config.run_plan import resolve_run

calls, plain = Path(sys.argv[1]), module.prepare

def slow(*args, **kwargs):
    with calls.open("a") as stream:
        stream.write("made\\n")
    time.sleep(1)
    return plain(*args, **kwargs)

module.prepare = slow
plan = resolve_run(Path("recipes/quickstart.yaml"), world_size=2, overrides=sys.argv[2:])
print(module.open_inputs(plan).fingerprint)
"""


def test_ranks_started_together_prepare_once(texts: Path, tmp_path: Path) -> None:
    overrides = [*SETTINGS, f"data.path={tmp_path / 'made'}", PREPARED % texts]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(tmp_path / "calls"), *overrides],
            cwd=REPOSITORY,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    fingerprint = Dataset.open(tmp_path / "made").fingerprint
    assert [lines[-1] for lines in said] == [fingerprint, fingerprint]
    assert (tmp_path / "calls").read_text() == "made\n"
    assert len(said[1]) == 1  # rank 0 alone speaks
