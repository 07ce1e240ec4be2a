"""`plan.py fit` as a whole: what it prints, what it says to type, and when it gives up."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.plan.cost import fit
from gpt2_ds.plan.cost.gpus import parse_gpus
from gpt2_ds.plan.cost.memory import need
from gpt2_ds.plan.cost.settings import settings, templates
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def run(words: str) -> int:
    parser = argparse.ArgumentParser()
    fit.add_arguments(parser)
    return fit.fit(parser.parse_args(shlex.split(words)))


def command_of(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("  deepspeed ")]
    return shlex.split(line)


def values_of(words: list[str], flag: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == flag]


@pytest.mark.parametrize(
    "recipe, gpus",
    [("gpt2_124m", "8xH100-80"), ("gpt2_124m", "1xL4-24"), ("gpt3_175b", "64xH100-80")],
)
def test_what_it_says_to_type_is_taken_and_fits(
    recipe: str, gpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"--recipe recipes/{recipe}.yaml --gpus {gpus}") == 0
    words, cluster = command_of(capsys.readouterr().out), parse_gpus(gpus)
    assert words[:3] == (
        ["deepspeed", "--hostfile", "hostfile"]
        if cluster.nodes > 1
        else ["deepspeed", "--num_gpus", str(cluster.count)]
    )
    assert values_of(words, "--expect-ranks") == [str(cluster.count)]
    plan = resolve_run(
        Path(values_of(words, "--recipe")[0]),
        world_size=cluster.count,
        template_file=Path(values_of(words, "--template")[0]),
        overrides=values_of(words, "--set"),
    )
    checkpointing = plan.recipe.activation_checkpointing.enabled
    micro = plan.recipe.batch.micro_batch_size
    assert need(plan, cluster, micro, checkpointing=checkpointing).fits(cluster)


def test_every_template_has_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipe recipes/gpt2_124m.yaml --gpus 16xA100-40 --price 2") == 0
    text = capsys.readouterr().out
    assert len(templates()) >= 5
    for template in templates():
        lines = [line for line in text.splitlines() if line.split()[:1] == [template.stem]]
        if template.stem == "zero0":  # 16 bits at stage 0: refused, and said why
            assert not lines
            assert "refused: ds_configs/zero0.json: zero_optimization.stage: is 0" in text
        else:
            assert len(lines) == 4, template  # memory and time, without and with checkpointing
    assert "16 A100-40 (2 x 8, 40.0 GiB each)" in text


def test_days_hours_and_money_belong_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipe recipes/gpt2_124m.yaml --gpus 8xA100-80 --price 2.5 --mfu 0.4") == 0
    header, row = next(
        (lines[i], lines[i + 1])
        for lines in [capsys.readouterr().out.splitlines()]
        for i in range(len(lines))
        if lines[i].startswith("what fits")
    )
    assert header.split()[-4:] == ["MFU", "days", "GPU-hours", "USD"]
    days, hours, usd = (float(cell.replace(",", "")) for cell in row.split()[-3:])
    assert hours == pytest.approx(days * 24 * 8, abs=2)
    assert usd == pytest.approx(hours * 2.5, abs=2)
    # 10B tokens of 860 MFLOP at 40 % of 8 x 312 TFLOP/s
    assert days * 86400 == pytest.approx(9.9997e9 * 860101632 / (0.4 * 8 * 312e12), rel=0.02)


def test_an_assumed_mfu_is_that_of_the_cheapest(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, cluster = Path("recipes/gpt3_175b.yaml"), parse_gpus("64xH100-80")
    estimated, assumed = settings(recipe, cluster), settings(recipe, cluster, mfu=0.3)
    assert estimated.cheapest is not None
    assert assumed.cheapest is not None
    assert assumed.cheapest.plan.template_file == estimated.cheapest.plan.template_file
    assert assumed.cheapest.checkpointing  # what is computed again is no work of the model
    assert assumed.cheapest.mfu(cluster) == pytest.approx(0.3)
    ratios = {
        round(setting.seconds / other.seconds, 6)
        for setting, other in zip(assumed.found, estimated.found, strict=True)
    }
    assert ratios == {round(estimated.cheapest.mfu(cluster) / 0.3, 6)}
    assert run("--recipe recipes/gpt3_175b.yaml --gpus 64xH100-80 --mfu 0.3") == 0
    said = capsys.readouterr().out
    assert "At an assumed MFU of 0.3: 200 days. Validation, saving and restarts come" in said
    assert "as long as predicted" not in said


def test_the_largest_micro_batch_that_fits_and_divides() -> None:
    cluster = parse_gpus("8xA100-40")
    found = settings(
        Path("recipes/gpt2_124m.yaml"), cluster, template=Path("ds_configs/zero1.json")
    )
    assert [setting.checkpointing for setting in found.found] == [False, True]
    for setting in found.found:
        per_rank = setting.plan.derived.global_batch_size // 8
        assert setting.fits
        assert per_rank % setting.micro_batch_size == 0
        larger = [m for m in range(setting.micro_batch_size + 1, per_rank + 1) if per_rank % m == 0]
        for micro in larger:
            assert not need(setting.plan, cluster, micro, checkpointing=setting.checkpointing).fits(
                cluster
            )


def test_the_cheapest_is_simple_and_exact() -> None:
    recipe = Path("recipes/gpt3_1.3b.yaml")
    found = settings(recipe, parse_gpus("16xA100-40"))
    best = found.cheapest
    assert best is not None
    fitting = [setting for setting in found.found if setting.fits]
    assert best.seconds <= 1.02 * min(
        setting.seconds for setting in fitting if "quant" not in setting.plan.template_file
    )
    assert best.plan.template_file == "ds_configs/zero1.json"
    assert not best.checkpointing
    # What does not fit is not the cheapest, however fast.
    one_gpu = settings(Path("recipes/gpt3_2.7b.yaml"), parse_gpus("1xA100-40"))
    assert one_gpu.cheapest is not None
    assert one_gpu.cheapest.fits
    assert any(not setting.fits for setting in one_gpu.found)


def test_quantized_communication_is_not_chosen_for_its_speed() -> None:
    slow = parse_gpus("16xA100-40", node_gbits=10)
    found = settings(Path("recipes/gpt3_2.7b.yaml"), slow)
    assert found.cheapest is not None
    fastest = min(
        (setting for setting in found.found if setting.fits), key=lambda setting: setting.seconds
    )
    assert "quantized" in fastest.plan.template_file
    assert fastest.seconds < 0.9 * found.cheapest.seconds
    assert "quantized" not in found.cheapest.plan.template_file


def test_what_the_linter_says_of_the_cheapest(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--recipe recipes/gpt3_13b.yaml --gpus 4xA100-40"
    warning = "\nwarning: ds_configs/zero3_nvme.json: zero_optimization.offload_optimizer.device: "
    for memory, template, warned in ((300, "zero3_offload", False), (200, "zero3_nvme", True)):
        assert run(f"{words} --node-memory {memory}") == 0
        said = capsys.readouterr().out
        assert f"/{template}.json --expect" in said
        assert (warning in said) == warned


def test_what_was_changed_is_said_and_what_was_given_is_not_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--recipe recipes/gpt3_13b.yaml --gpus 64xH100-80"
    assert run(words) == 0
    said = capsys.readouterr().out
    start = "batch.ramp.start_tokens=131072"
    assert f"Changed, because 64 ranks do not divide the recipe's batches: {start}, " in said
    assert start in values_of(command_of(said), "--set")
    with pytest.raises(UserError, match=r"schedule\.total_tokens: 100000000000 "):
        run(f"{words} --set schedule.total_tokens=100_000_000_000")
    assert run("--recipe recipes/gpt2_124m.yaml --gpus 8xH100-80") == 0
    assert "Changed" not in capsys.readouterr().out


def test_what_a_checkpoint_and_the_tokens_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipe recipes/gpt3_175b.yaml --gpus 64xH100-80") == 0
    gib = 174_604_836_864 * 12 / 2**30  # ZeRO-3 saves fp32 weights and two moments
    assert f"A checkpoint takes {gib:,.1f} GiB" in (said := capsys.readouterr().out)
    assert "tokens 558.8 GiB." in said


def test_logits_that_take_much_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "GiB; --set model.loss_chunk_size=1024 saves nearly all of it"
    words = "--recipe recipes/gpt2_124m.yaml --gpus 8xH100-80"
    for more, hinted in (("", True), (" --set model.loss_chunk_size=1024", False)):
        assert run(words + more) == 0
        assert (hint in capsys.readouterr().out) == hinted


def test_the_users_words_stay_but_for_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--set batch.micro_batch_size=1 --set seed=7"
    assert run(f"--recipe recipes/gpt2_124m.yaml --gpus 8xH100-80 {given}") == 0
    words = values_of(command_of(capsys.readouterr().out), "--set")
    assert words[0] == "seed=7"
    assert [word.split("=")[0] for word in words[1:]] == [
        "batch.micro_batch_size",
        "activation_checkpointing.enabled",
    ]


def test_more_gpus_are_whole_machines(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--recipe recipes/gpt3_175b.yaml --gpus 8xH100-80 --template ds_configs/zero3.json"
    for node_gpus, more in ((8, 48), (32, 64)):
        assert run(f"{words} --node-gpus {node_gpus}") == 1
        assert f"  --gpus {more}xH100-80\n" in capsys.readouterr().out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    template = "--template ds_configs/zero3.json"
    assert run(f"--recipe recipes/gpt3_13b.yaml --gpus 2xA100-40 {template}") == 1
    text = capsys.readouterr().out
    assert "deepspeed" not in text
    assert "Nothing fits. The least that a GPU must hold is" in text
    (more,) = [line.split()[1] for line in text.splitlines() if line.startswith("  --gpus ")]
    assert run(f"--recipe recipes/gpt3_13b.yaml --gpus {more} {template}") == 0
    capsys.readouterr()
    fewer = f"{int(more.split('x')[0]) // 2}x{more.split('x')[1]}"
    assert run(f"--recipe recipes/gpt3_13b.yaml --gpus {fewer} {template}") == 1


def test_other_gpus_and_a_chunk_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    logits = "--set data.seq_length=1024 --set model.pad_vocab_to_multiple_of=1200000"
    words = f"--recipe recipes/gpt2_124m.yaml {logits} --template ds_configs/zero3.json"
    assert run(f"{words} --gpus 8xL4-24") == 1
    text = capsys.readouterr().out
    (others,) = [line for line in text.splitlines() if "another kind" in line]
    assert "H200-141" in others
    assert "L4-24" not in others
    assert "  --set model.loss_chunk_size=256" in text
    assert run(f"{words} --gpus 8xL4-24 --set model.loss_chunk_size=256") == 0


def test_machines_with_more_memory_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--recipe recipes/gpt3_13b.yaml --gpus 2xA100-40"
    words += " --template ds_configs/zero3_offload.json"
    assert run(f"{words} --node-memory 64") == 1
    text = capsys.readouterr().out
    assert "another kind" not in text  # their machines would have as little
    (line,) = [line for line in text.splitlines() if "--node-memory" in line]
    enough = int(line.split(":")[0].split()[-1])
    assert run(f"{words} --node-memory {enough}") == 0
    assert run(f"{words} --node-memory {enough - 2}") == 1


def test_ranks_that_cannot_share_the_batch() -> None:
    said = only_fault(lambda: run("--recipe recipes/gpt2_124m.yaml --gpus 7xH100-80"))
    assert "7 ranks do not divide" in said


@pytest.mark.parametrize(
    "words, said",
    [
        ("--mfu 1.5", "--mfu 1.5: is not between 0 and 1. For example: --mfu 0.4."),
        ("--price -1", "--price -1.0: is not a price. Give USD for one GPU and hour."),
        ("--price inf", "--price inf: is not a price. Give USD for one GPU and hour."),
        ("--price nan", "--price nan: is not a price. Give USD for one GPU and hour."),
        ("--template nowhere.json", "nowhere.json: "),
        ("--template ds_configs/zero0.json", "ds_configs/zero0.json: zero_optimization.stage: "),
        ("--html nowhere/x.html", "--html nowhere/x.html: cannot be written (No such file or "),
    ],
)
def test_words_that_are_wrong(words: str, said: str) -> None:
    given = f"--recipe recipes/gpt2_124m.yaml --gpus 8xH100-80 {words}"
    assert only_fault(lambda: run(given)).startswith(said)


@pytest.mark.parametrize(
    "gpus, took",
    [
        ("128xH100-80", "DeepSpeed's on 8 GPUs took 1.3 to 1.7 times"),
        ("384xH100-80", "ZeRO-3's of 2021 on 384 to 2,240 GPUs took 1.6 to 4.9 times"),
    ],
)
def test_what_published_runs_took(gpus: str, took: str, capsys: pytest.CaptureFixture[str]) -> None:
    ramp, count = shlex.quote("batch.ramp=null"), int(gpus.partition("x")[0])
    overrides = f"--set {ramp} --set batch.global_batch_tokens={count * 2048 * 4}"
    overrides += f" --set schedule.total_tokens={count * 2048 * 4 * 300_000}"
    assert run(f"--recipe recipes/gpt3_175b.yaml --gpus {gpus} {overrides} --price 2") == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("Estimated from FSDP")]
    assert f"{took} as long as predicted: " in line
    low, high = (float(x) for x in took.split(" took ")[1].split(" times")[0].split(" to "))
    found = re.findall(r"([\d.,]+) days and ([\d.,]+) USD", line)
    for kind in (0, 1):
        numbers = [float(pair[kind].replace(",", "")) for pair in found]  # of two digits each
        assert numbers[1] / numbers[0] == pytest.approx(low, rel=0.1)
        assert numbers[2] / numbers[0] == pytest.approx(high, rel=0.1)
    assert "the time is a guess" not in said


def test_a_kind_of_gpu_that_nobody_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--recipe recipes/gpt2_124m.yaml --gpus 1xL4-24") == 0
    said = "No published run on L4-24 was compared: the time is a guess."
    assert said in capsys.readouterr().out


def test_a_secondary_partition_larger_than_the_job() -> None:
    found = settings(Path("recipes/gpt2_124m.yaml"), parse_gpus("8xH100-80"))
    (why,) = [why for file, why in found.refused.items() if file.endswith("zero3_hpz.json")]
    assert "is 8, and the job has 8 ranks, 8 a machine" in why
    found = settings(Path("recipes/gpt2_124m.yaml"), parse_gpus("16xH100-80", node_gpus=4))
    (why,) = [why for file, why in found.refused.items() if file.endswith("zero3_hpz.json")]
    assert "is 8, and the job has 16 ranks, 4 a machine" in why


def test_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fit.html"
    assert run(f"--recipe recipes/gpt2_124m.yaml --gpus 16xH100-80 --html {file}") == 0
    html = file.read_text()
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")  # it needs nothing else
    assert html.count("<svg") == html.count("</svg>") == 3  # memory, learning rate, batch
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    shown = [text.text or "" for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    for template in templates():
        assert (template.stem in shown) == (template.stem != "zero0")
    assert "79.6 GiB" in shown
    assert "The cheapest that fits" in html
    assert capsys.readouterr().out.strip() != ""


def test_neither_torch_nor_deepspeed_is_loaded() -> None:
    code = "import sys, gpt2_ds.plan.cost.fit; "
    code += "print(*{'torch', 'deepspeed', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.benchmark
def test_it_answers_in_two_seconds() -> None:
    code = (
        "import argparse; from gpt2_ds.plan.cost import fit; parser = argparse.ArgumentParser();"
        "fit.add_arguments(parser); fit.fit(parser.parse_args())"
    )
    words = ["--recipe", "recipes/gpt3_175b.yaml", "--gpus", "64xH100-80"]
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", code, *words], check=True, capture_output=True, env=os.environ
    )
    assert time.monotonic() - start < 2
