"""Every mistake in a recipe or in --set is found at once and said in the user's words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from gpt2_ds.config import recipe_file
from gpt2_ds.config.recipe import ConstantSchedule, CosineSchedule, Recipe, Schedule
from gpt2_ds.config.recipe_file import flatten, load_recipe
from tests.config.small_recipe import (
    SMALL,
    faults_of,
    load_small,
    only_fault,
    small_file,
)


def test_a_recipe_is_loaded(tmp_path: Path) -> None:
    loaded = load_small(tmp_path)
    recipe = loaded.recipe
    assert loaded.name == "small"
    assert loaded.file == str(tmp_path / "small.yaml")
    assert (recipe.optimizer.lr, recipe.schedule.total_tokens) == (1e-3, 10_240)
    assert (recipe.logging.interval_steps, recipe.activation_checkpointing.enabled) == (10, False)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("n_head: 4", "n_head: 4\n  n_haed: 4", "model.n_haed: no such key. Did you mean n_head?"),
        ("dtype: fp32", "dtype: fp32\n  zzz: 1", "precision.zzz: no such key. Known here: dtype, "),
        ("seed: 1", "seed: 1\nmodle: {}", "modle: no such key. Did you mean model?"),
        ("  n_layer: 2\n", "", "model.n_layer: missing. Add it. It is: Transformer blocks."),
        ("seed: 1\n", "", "seed: missing. Add it. It is: Of the weights, the order of the data,"),
        ("precision:\n  dtype: fp32\n", "", "precision: missing. Add it."),
        ("n_layer: 2", "n_layer: two", "model.n_layer: is 'two', must be an integer. It is: Tr"),
        ("n_layer: 2", "n_layer: '2'", "model.n_layer: is '2', must be an integer. It is:"),
        ("n_layer: 2", "n_layer: 2.0", "model.n_layer: is 2.0, must be an integer. It is:"),
        ("n_layer: 2", "n_layer: true", "model.n_layer: is true, must be an integer. It is:"),
        ("n_layer: 2", "n_layer:", "model.n_layer: is empty, must be an integer. It is:"),
        ("n_layer: 2", "n_layer: [2]", "model.n_layer: is [2], must be an integer. It is:"),
        ("n_layer: 2", "n_layer: 0", "model.n_layer: is 0, must be greater than 0. It is:"),
        ("n_layer: 2", "n_layer: 1e20", "model.n_layer: is 100000000000000000000, must be less"),
        ("seed: 1", "seed: -1", "seed: is -1, must be greater than or equal to 0. It is: Of"),
        ("lr: 1e-3", "lr: 0", "optimizer.lr: is 0, must be greater than 0. It is: Peak"),
        ("lr: 1e-3", "lr: fast", "optimizer.lr: is 'fast', must be a number. It is: Peak"),
        ("lr: 1e-3", "lr: 1e999", "optimizer.lr: is inf, must be a finite number. It is: Peak"),
        ("lr: 1e-3", "lr: .nan", "optimizer.lr: is '.nan', must be a number. It is: Peak"),
        ("lr: 1e-3", "lr: true", "optimizer.lr: is true, must be a number. It is: Peak"),
        ("0.95]", "0.95, 0.99]", "optimizer.betas: is [0.9, 0.95, 0.99], must have at most 2 i"),
        (", 0.95]", "]", "optimizer.betas: is [0.9], must have at least 2 items. It is: Decay"),
        ("[0.9, 0.95]", "0.9", "optimizer.betas: is 0.9, must be a list. It is: Decay rates of"),
        ("0.95]", "1.0]", "optimizer.betas.1: is 1.0, must be less than 1. It is: Decay rates"),
        ("dtype: fp32", "dtype: float32", "precision.dtype: is 'float32', must be 'fp32', 'bf16'"),
        ("name: bytes", "name: ''", "tokenizer.name: is '', must have at least 1 character. It"),
        ("name: bytes", "name: 5", "tokenizer.name: is 5, must be text. It is: gpt2, bytes (256"),
        ("path: data/small", "path: [a]", "data.path: is ['a'], must be text. It is: Folder that"),
        ("dtype: fp32", "dtype: fp32\nlogging: 5", "logging: is 5, not a section. Give it its ke"),
        ("dtype: fp32", "dtype: fp32\nlogging:", "logging: is empty, not a section. Give it its k"),
        ("seed: 1", "seed: {a: 1}", "seed: is {'a': 1}, must be an integer. It is: Of the weights"),
        ("name: cosine", "name: cosin", "schedule.name: no such schedule: 'cosin'. Known here: c"),
        ("name: cosine", "name:", "schedule.name: no such schedule: empty. Known here: cosine, c"),
        ("name: cosine", "name: [1]", "schedule.name: no such schedule: [1]. Known here: cosine"),
        ("  name: cosine\n", "", "schedule.name: missing. Known here: constant, cosine, wsd."),
        ("min_lr: 1e-4", "min_lr: x", "schedule.min_lr: is 'x', must be a number. It is: Learning"),
        ("min_lr: 1e-4", "min_lt: 1", "schedule.min_lr: missing. Add it. It is: Learning rate fr"),
        (
            "min_lr: 1e-4",
            "min_lr: 1e-4\n  stable_tokens: 5",
            "schedule.stable_tokens: not a key of a cosine schedule. "
            "Remove it, or set schedule.name to wsd.",
        ),
        ("min_lr: 1e-4", "min_lr: 1e-4\n  zzz: 5", "schedule.zzz: no such key. Known here: decay"),
        (
            "seq_length: 64",
            "seq_length: 64\n  prepare: {inputs: []}",
            "data.prepare.inputs: is [], must have at least 1 item. It is: Text files, JSON-lines",
        ),
        ("seq_length: 64", "seq_length: 64\n  prepare: x", "data.prepare: is 'x', not a section."),
        (
            "seq_length: 64",
            "seq_length: 64\n  document_mask: yes",
            "data.document_mask: is 'yes', must be true or false. It is: Attention stays inside",
        ),
        (
            "name: bytes",
            'name: "\\ud800"',
            "tokenizer.name: is '\\ud800', must be text, unable to parse raw data as a unicode",
        ),
    ],
)
def test_one_mistake(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    path = small_file(tmp_path, SMALL.replace(old, new))
    faults = faults_of(lambda: load_recipe(path))
    assert str(faults[0]).startswith(f"{path}: {message}")
    assert len(faults) == (2 if "min_lt" in new else 1)


def test_a_section_as_a_value(tmp_path: Path) -> None:
    text = SMALL.replace("model:", "model: small\nother:")
    assert [str(fault) for fault in faults_of(lambda: load_small(tmp_path, text=text))] == [
        f"{tmp_path / 'small.yaml'}: model: is 'small', not a section. Give it its keys.",
        f"{tmp_path / 'small.yaml'}: other: no such key. Known here: activation_checkpointing, "
        "batch, checkpoint, data, evaluation, health, logging, model, optimizer, precision, "
        "schedule, "
        "seed, template, tokenizer.",
    ]
    faults = faults_of(lambda: load_small(tmp_path, "schedule=5"))
    assert [str(f) for f in faults] == ["--set: schedule: is 5, not a section. Give it its keys."]


def test_keys_of_another_schedule(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    assert [str(f) for f in faults_of(lambda: load_small(tmp_path, "schedule.name=constant"))] == [
        f"{file}: schedule.{key}: not a key of a constant schedule. "
        "Remove it, or set schedule.name to cosine or wsd."
        for key in ("decay_tokens", "min_lr")
    ]
    assert [f.where for f in faults_of(lambda: load_small(tmp_path, "schedule.name=wsd"))] == [
        f"{file}: schedule.stable_tokens"
    ]


def test_a_schedule_that_has_come_is_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Linear(Schedule):
        name: Literal["linear"]
        min_lr: float
        floor_tokens: int

    class WithLinear(Recipe):
        schedule: Annotated[CosineSchedule | ConstantSchedule | Linear, Field(discriminator="name")]  # type: ignore[assignment]

    monkeypatch.setattr(recipe_file, "Recipe", WithLinear)
    file = tmp_path / "small.yaml"
    for overrides, text, said in (
        (
            ["schedule.name=cosin"],
            SMALL,
            "no such schedule: 'cosin'. Known here: cosine, constant, ",
        ),
        (
            [],
            SMALL.replace("  name: cosine\n", ""),
            "missing. Known here: constant, cosine, linear.",
        ),
    ):
        message = only_fault(lambda o=overrides, t=text: load_small(tmp_path, *o, text=t))
        assert message.partition(": ")[2].startswith(f"schedule.name: {said}")
    faults = faults_of(lambda: load_small(tmp_path, "schedule.name=constant"))
    assert [str(fault) for fault in faults] == [
        f"{file}: schedule.{key}: not a key of a constant schedule. "
        f"Remove it, or set schedule.name to {names}."
        for key, names in (("decay_tokens", "cosine"), ("min_lr", "cosine or linear"))
    ]
    faults = faults_of(lambda: load_small(tmp_path, "schedule.name=linear"))
    assert [str(fault) for fault in faults] == [
        f"{file}: schedule.floor_tokens: missing. Add it.",
        f"{file}: schedule.decay_tokens: not a key of a linear schedule. Remove it, or set "
        "schedule.name to cosine.",
    ]


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("n_layer: 2", "n_layer: x").replace("seed: 1", "sead: 1")
    words = ("optimizer.lr=-1", "nothing", "model.n_haed=3", "seed.x=1", "data.path=[")
    faults = faults_of(lambda: load_small(tmp_path, *words, text=text))
    file = tmp_path / "small.yaml"
    assert {fault.where for fault in faults} == {
        "--set nothing",
        "--set data.path",
        f"{file}: model.n_layer",
        f"{file}: sead",
        "--set: seed",
        "--set: optimizer.lr",
        "--set: model.n_haed",
    }


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    message = only_fault(lambda: load_small(tmp_path, f"seed={'9' * 5000}"))
    assert message.startswith(f"--set: seed: is '{'9' * 39}... (5002 characters), must be an int")


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("seed=7", "seed", 7),
        ("model.n_layer=3", "model.n_layer", 3),
        ("optimizer.lr=6e-4", "optimizer.lr", 6e-4),
        ("schedule.total_tokens=300e9", "schedule.total_tokens", 300_000_000_000),
        ("schedule.total_tokens=1_048_576", "schedule.total_tokens", 1_048_576),
        ("optimizer.betas=[0.8, 0.9]", "optimizer.betas", [0.8, 0.9]),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("evaluation.sample_prompt=a=b=", "evaluation.sample_prompt", "a=b="),
        ('evaluation.sample_prompt="a: b #c"', "evaluation.sample_prompt", "a: b #c"),
        ("evaluation.sample_prompt=''", "evaluation.sample_prompt", ""),
        ("evaluation.sample_prompt=no", "evaluation.sample_prompt", "no"),
        ("data.prepare.inputs=[a, b]", "data.prepare.inputs", ["a", "b"]),
        ("data.prepare={inputs: [x]}", "data.prepare.inputs", ["x"]),
        ("logging.interval_steps=3", "logging.interval_steps", 3),
        (" seed = 5 ", "seed", 5),
    ],
)
def test_set(tmp_path: Path, override: str, key: str, value: object) -> None:
    loaded = load_small(tmp_path, override)
    assert dict(flatten(loaded.recipe.model_dump()))[key] == value
    assert loaded.origin(key) == "--set"
    assert loaded.where(key) == f"--set: {key}"


def test_set_a_whole_section(tmp_path: Path) -> None:
    words = "schedule={name: constant, total_tokens: 2048, warmup_tokens: 0}"
    loaded = load_small(tmp_path, words)
    assert loaded.recipe.schedule.model_dump() == {
        "name": "constant",
        "total_tokens": 2048,
        "warmup_tokens": 0,
    }
    assert loaded.origin("schedule.total_tokens") == "--set"
    assert loaded.where("schedule.total_tokens") == "--set: schedule.total_tokens"
    faults = faults_of(lambda: load_small(tmp_path, "model={n_layer: 2}"))
    assert [fault.where for fault in faults] == [
        f"--set: model.{key}" for key in ("n_head", "n_embd", "n_positions")
    ]


def test_set_reaches_into_an_empty_section(tmp_path: Path) -> None:
    text = SMALL.replace("seq_length: 64", "seq_length: 64\n  prepare: null")
    loaded = load_small(tmp_path, "data.prepare.inputs=[a]", text=text)
    assert loaded.recipe.data.prepare is not None
    assert loaded.recipe.data.prepare.inputs == ["a"]


def test_the_last_of_two_sets_wins(tmp_path: Path) -> None:
    assert load_small(tmp_path, "seed=2", "seed=3").recipe.seed == 3
    whole = "data={path: x, seq_length: 32}"
    assert load_small(tmp_path, whole, "data.seq_length=16").recipe.data.seq_length == 16
    assert load_small(tmp_path, "data.seq_length=16", whole).recipe.data.seq_length == 32


_FORM = "not of the form section.key=value. For example: --set seed=2."


@pytest.mark.parametrize(
    "override, message",
    [
        ("seed", f"--set seed: {_FORM}"),
        ("", f"--set : {_FORM}"),
        ("=5", f"--set =5: {_FORM}"),
        ("model.=5", f"--set model.=5: {_FORM}"),
        ("model..x=5", f"--set model..x=5: {_FORM}"),
        ("a b=5", f"--set a b=5: {_FORM}"),
        ("optimizer.betas.0=0.9", f"--set optimizer.betas.0=0.9: {_FORM}"),
        ("seed.x=1", "--set seed.x: seed is a value, not a section. Set seed itself."),
        ("model.n_head.x.y=1", "--set model.n_head.x.y: model.n_head is a value, not a section"),
        ("seed=1\nmodel: 2", "--set seed: more than one value. Give one: --set key=value."),
        ("seed=", "--set: seed: is empty, must be an integer. It is: Of the weights"),
        ("seed=*x", "--set seed: anchors (&), aliases (*) and tags (!) are not read here. Quote"),
        ("data.path=a: b", "--set data.path: not YAML: mapping values are not allowed here. Quote"),
        ("seed=" + "[" * 10_000, "--set seed: nested too deep to be a recipe. Quote text: --set"),
        ("x.y.z=1", "--set: x: no such key. Known here: activation_checkpointing, batch, check"),
        ("model.n_haed=4", "--set: model.n_haed: no such key. Did you mean n_head?"),
    ],
)
def test_set_refusals(tmp_path: Path, override: str, message: str) -> None:
    assert only_fault(lambda: load_small(tmp_path, override)).startswith(message)


def test_origins(tmp_path: Path) -> None:
    loaded = load_small(tmp_path, "model.n_layer=3")
    file = tmp_path / "small.yaml"
    assert loaded.origin("seed") == f"{file}:2"
    assert loaded.origin("model.n_head") == f"{file}:5"
    assert loaded.origin("model.n_layer") == "--set"
    assert loaded.origin("model.attn_pdrop") == "default"
    assert loaded.origin("logging.interval_steps") == "default"
    assert loaded.where("model.n_head") == f"{file}: model.n_head"
    assert loaded.where("model.attn_pdrop") == f"{file}: model.attn_pdrop"


def test_faults_inside_sources_and_phases_name_their_keys(tmp_path: Path) -> None:
    said = faults_of(
        lambda: load_small(
            tmp_path,
            "data.path=null",
            "data.sources={web: {path: x, weigth: 1}, Bad: {path: x, weight: 1}}",
            "data.phases=[{from_tokens: 0, weights: {web: -1}}]",
        )
    )
    assert [str(fault) for fault in said] == [
        "--set: data.sources.web.weight: missing. Add it. It is: Share of the training samples, "
        "to 1 in 10,000; only the ratios of the weights count.",
        "--set: data.sources.web.weigth: no such key. Did you mean weight?",
        "--set: data.sources.Bad.[key]: is 'Bad', must match pattern '^[a-z][a-z0-9_]*$'. "
        "Change it.",
        "--set: data.phases.0.from_tokens: is 0, must be greater than 0. It is: Tokens seen when "
        "the phase begins, at the end of a step. What has not begun may change.",
        "--set: data.phases.0.weights.web: is -1, must be greater than or equal to 0. It is: By "
        "the name of the source: as data.sources.NAME.weight.",
    ]


def test_mistakes_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    sections = [f"{name}: 5" for name in ("modle", "sead", "dtaa")]
    random.Random(0).shuffle(sections)
    faults = faults_of(lambda: load_small(tmp_path, text=SMALL + "\n".join(sections)))
    assert {fault.fix for fault in faults} == {
        "Did you mean model?",
        "Did you mean seed?",
        "Did you mean data?",
    }
