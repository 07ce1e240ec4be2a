"""The list of all recipes, against numbers by hand and the paper's own table of FLOPs."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.plan.papers import list_recipes as module
from gpt2_ds.plan.papers.list_recipes import add_arguments, list_recipes, listed
from tests.config.small_recipe import SMALL, only_fault
from tests.conftest import REPOSITORY

RECIPES = REPOSITORY / "recipes"


def words(*given: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(given)


def printed(capsys: pytest.CaptureFixture[str], *given: str) -> list[list[str]]:
    assert list_recipes(words(*given)) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = printed(capsys)
    end = rows.index([])
    names = [row[0] for row in rows[:end]]
    assert head == ["recipe", "parameters", "unpadded", "tokens", "steps", "FLOPs", "GPU-days"]
    assert sorted(names) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert names[-1] == "gpt3_175b"
    work = [float(row[5]) for row in rows[:end]]
    assert work == sorted(work)
    assert " ".join(rows[-1]) == (
        "GPU-days: on H100, 989 TFLOP/s in bf16, at an assumed MFU of 0.4."
    )


def test_gpt2_124m_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # 860,101,632 FLOP a token x 9,999,745,024 = 8.6008e18; / (312e12 x 0.5 x 86,400 s) = 0.6381.
    rows = {row[0]: row for row in printed(capsys, "--gpu", "A100", "--mfu", "0.5") if row}
    assert rows["gpt2_124m"] == [
        "gpt2_124m",
        "124,475,904",
        "124,439,808",
        "9,999,745,024",
        "19,073",
        "8.60e+18",
        "0.64",
    ]
    assert rows["quickstart"][-2:] == ["<", "0.01"]
    last = "GPU-days: on A100, 312 TFLOP/s in bf16, at an assumed MFU of 0.5."
    assert " ".join(rows["GPU-days:"]) == last


def test_gpt3s_work_is_the_papers() -> None:
    """Table D.1 counts 6 N a token; attention and the padded rows come on top here."""
    for name, flops, attention in (
        ("gpt3_125m", 2.25e20, 12 * 12 * 768 * 2048),
        ("gpt3_13b", 2.31e22, 12 * 40 * 5120 * 2048),
        ("gpt3_175b", 3.14e23, 12 * 96 * 12288 * 2048),
    ):
        each = listed(RECIPES / f"{name}.yaml")
        assert each.flops - attention * each.tokens == pytest.approx(flops, rel=0.005)
        # PF-days of the table: 10^15 FLOP/s for a day.
        assert each.gpu_days(1e15, 1.0) == pytest.approx(each.flops / 8.64e19)


@pytest.mark.parametrize(
    "given, message",
    [
        (("--gpu", "H1000"), "--gpu H1000: not known. Did you mean H100?"),
        (("--mfu", "0"), "--mfu 0.0: is not a share of the peak. Give 0.4, for example."),
        (("--mfu", "40"), "--mfu 40.0: is not a share of the peak. Give 0.4, for example."),
        (("--mfu", "nan"), "--mfu nan: is not a share of the peak. Give 0.4, for example."),
    ],
)
def test_what_is_refused(given: tuple[str, ...], message: str) -> None:
    assert only_fault(lambda: list_recipes(words(*given))) == message


def test_a_wrong_recipe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(SMALL.replace("n_head: 4", "n_head: 5"))
    monkeypatch.setattr(module, "RECIPES", tmp_path)
    with pytest.raises(UserError) as caught:
        list_recipes(words())
    assert "mine.yaml: model.n_head: 5 heads do not divide n_embd 64" in str(caught.value)


def test_it_loads_no_torch() -> None:
    code = (
        "import sys, gpt2_ds.plan.papers.diff, gpt2_ds.plan.papers.list_recipes\n"
        "print(*({name.partition('.')[0] for name in sys.modules} & {'torch', 'deepspeed'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
