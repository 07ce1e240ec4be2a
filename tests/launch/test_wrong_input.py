"""A wrong input ends `launch/train.py` at once: code 2, what and where, nothing written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.config.recipe_file import dump_recipe, load_recipe
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.config.small_recipe import SMALL

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 2.0  # of a core: a busy machine gives less of one


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Workplace:
    """A folder with a recipe and a dataset, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "small.yaml"
        self.run_dir = folder / "run"
        self.recipe.write_text(SMALL.replace("data/small", str(folder / "dataset")))
        (folder / "text").mkdir()
        for number in range(40):
            (folder / "text" / f"{number}.txt").write_text(f"document {number} " * 30)
        prepare(
            Request(
                inputs=[folder / "text"],
                out=folder / "dataset",
                tokenizer="bytes",
                validation_fraction=0.3,
            )
        )

    def change(self, old: str, new: str) -> None:
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))

    def train(self, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run launch/train.py on the recipe; the seconds of a core that it took."""
        # A torch that cannot be imported: whoever asks for it ends with a traceback.
        poison = self.folder / "poison"
        (poison / "torch").mkdir(parents=True, exist_ok=True)
        (poison / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
        launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"}
        environment = {k: v for k, v in os.environ.items() if k not in launched}
        environment["PYTHONPATH"] = str(poison)
        base = ["--recipe", str(self.recipe), "--run-dir", str(self.run_dir)]
        start = _children_seconds()
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch/train.py"), *base, *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done, _children_seconds() - start

    def refused(self, *words: str) -> str:
        """What is printed: checked for form, time and that nothing was written."""
        before = self.files()
        done, seconds = self.train(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        lines = done.stderr.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines), done.stderr
        assert self.files() == before
        assert seconds < LIMIT_SECONDS
        return done.stderr.replace(f"{self.folder}/", "")

    def files(self) -> dict[str, int]:
        return {
            str(path.relative_to(self.folder)): path.stat().st_size
            for path in self.folder.rglob("*")
            if "poison" not in path.parts
        }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("wrong_input"))


@pytest.fixture
def workplace(prepared: Workplace) -> Workplace:
    """The same folder, as it was."""
    prepared.recipe.write_text(SMALL.replace("data/small", str(prepared.folder / "dataset")))
    if prepared.run_dir.exists():
        (prepared.run_dir / "recipe.yaml").unlink()
        prepared.run_dir.rmdir()
    return prepared


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            "n_head: 4",
            "n_head: 4\n  n_haed: 4",
            "small.yaml: model.n_haed: no such key. Did you mean",
        ),
        ("n_head: 4", "n_head: 5", "small.yaml: model.n_head: 5 heads do not divide n_embd 64."),
        ("seed: 1", "seed: [1", "small.yaml:3: not YAML: "),
        ("seed: 1", "seed: 1\nseed: 2", "small.yaml: seed: given twice, on lines 2 and 3."),
        (
            "name: bytes",
            "name: no.tiktoken",
            "small.yaml: tokenizer.name: 'no.tiktoken' is not a kn",
        ),
        ("name: bytes", "name: gpt2", "small.yaml: tokenizer.name: 'gpt2' has 50257 tokens, and "),
        ("/dataset", "/nothing", "nothing: no such dataset. Make it: python launch/prepare_data"),
        ("tokens: 256", "tokens: 6_400_000", "small.yaml: evaluation.tokens: 6400000 tokens, and"),
        ("zero0.json", "zero9.json", "ds_configs/zero9.json: no such template (from "),
    ],
)
def test_a_wrong_recipe(workplace: Workplace, old: str, new: str, said: str) -> None:
    workplace.change(old, new)
    assert workplace.refused().startswith(f"error: {said}")


@pytest.mark.parametrize(
    "words, said",
    [
        ("--set optimizer.lr=-1", "--set: optimizer.lr: is -1, must be greater than 0."),
        ("--set seed", "--set seed: not of the form section.key=value."),
        ("--max-steps 0", "--max-steps 0: is below 1. Give at least 1."),
        ("--expect-ranks 2", "--expect-ranks 2: the launcher started 1 rank. Check --hostfile"),
        (
            "--dry-run --hostfile launch/hostfile.example --expect-ranks 16",
            "--expect-ranks 16: launch/hostfile.example has 4 slots. Correct the hostfile's slots,",
        ),
        ("--recipe recipes/quikstart.yaml", "recipes/quikstart.yaml: no such recipe (from "),
        ("--recipe recipes", "recipes: cannot be read: Is a directory."),
        ("--recipe gpt2_ds/__init__.py", "gpt2_ds/__init__.py:1: not YAML: "),
        ("--template recipes/quickstart.yaml", "recipes/quickstart.yaml:1: not JSON: "),
        ("--run-dir README.md/x --dry-run --expect-ranks 0", "--expect-ranks 0: is below 1."),
        ("--run-dir launch/train.py/x", "--run-dir launch/train.py/x: launch/train.py is a file."),
    ],
)
def test_a_wrong_flag(workplace: Workplace, words: str, said: str) -> None:
    assert workplace.refused(*words.split()).startswith(f"error: {said}")


def test_a_wrong_template(workplace: Workplace) -> None:
    template = workplace.folder / "t.json"
    template.write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, "zzz": 1}')
    said = workplace.refused("--template", str(template)).splitlines()
    assert said[0].startswith("error: t.json: gradient_clipping: belongs in the recipe.")
    assert said[1].startswith("error: t.json: zzz: no such key.")


def test_all_that_is_wrong_is_said_at_once(workplace: Workplace) -> None:
    workplace.change("n_head: 4", "n_head: 5")
    said = workplace.refused("--template", "no.json", "--set", "schedule.min_lr=1")
    assert [line.split(": ")[1] for line in said.splitlines()] == ["no.json", "small.yaml", "--set"]


def test_a_run_of_another_recipe(workplace: Workplace) -> None:
    workplace.run_dir.mkdir()
    written = workplace.run_dir / "recipe.yaml"
    written.write_text(dump_recipe(load_recipe(workplace.recipe).recipe))
    assert workplace.refused("--set", "seed=5").startswith(
        "error: run/recipe.yaml: seed: this run began with 1, and small.yaml now gives 5."
    )
    written.write_text("model: [")
    assert workplace.refused().startswith("error: run/recipe.yaml:1: not YAML: ")


def test_a_folder_that_holds_no_dataset(workplace: Workplace) -> None:
    workplace.change("/dataset", "/text")
    assert "text: there, but without a manifest.json. Make it: " in workplace.refused()


def test_preparing_over_a_folder_that_is_there(workplace: Workplace) -> None:
    lock = workplace.folder / ".text.lock"
    lock.touch()
    workplace.change("/dataset", "/text")
    said = workplace.refused("--set", "data.prepare.inputs=[x]")
    assert said.startswith("error: small.yaml: data.path: text is there, and holds no dataset.")
    lock.unlink()


@pytest.mark.parametrize("words", [(), ("--expect-ranks", "4"), ("--set", "model.n_layer=3")])
def test_a_dry_run_prints_and_writes_nothing(workplace: Workplace, words: tuple[str, ...]) -> None:
    workplace.change("/dataset", "/nothing")  # it needs no data either
    before = workplace.files()
    done, _ = workplace.train("--dry-run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert workplace.files() == before
    rows = {
        line.split()[0]: line.split() for line in done.stdout.splitlines() if line[:1].islower()
    }
    assert rows["model.n_head"] == ["model.n_head", "4", f"{workplace.recipe}:5"]
    assert rows["model.attn_pdrop"][-1] == "default"
    assert rows["dp_world_size"] == ["dp_world_size", "4" if "4" in words else "1", "derived"]
    assert rows["model.n_layer"][-1] == ("--set" if "--set" in words else f"{workplace.recipe}:4")
    assert "deepspeed.initialize gets:" in done.stdout


def test_a_good_recipe_gets_as_far_as_torch(workplace: Workplace) -> None:
    """Else the tests above would pass with a command that refuses everything."""
    done, _ = workplace.train()
    assert done.returncode == 1
    assert "torch was imported" in done.stderr
