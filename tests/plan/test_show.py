"""What `plan.py show` prints, and `launch/train.py --dry-run`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from gpt2_ds.config.derive import Derived
from gpt2_ds.config.recipe_file import flatten
from gpt2_ds.plan.show import describe
from tests.config.test_run_plan import plan_with


def test_the_description_has_every_key_with_its_origin(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, "model.n_layer=3")
    text = describe(plan)
    table, _, config = text.partition("\n\ndeepspeed.initialize gets:\n")
    rows = [line.split() for line in table.splitlines()]
    origins = {row[0]: row[-1] for row in reversed(rows)}
    file = tmp_path / "small.yaml"
    for key, value in flatten(plan.recipe.model_dump()):
        shown = next(line for line in table.splitlines() if line.startswith(f"{key} "))
        assert json.dumps(value) in shown
        assert shown.endswith(plan.loaded.origin(key))
    assert origins["model.n_layer"] == "--set"
    assert origins["model.n_head"] == f"{file}:5"
    assert origins["model.attn_pdrop"] == "default"
    for field in fields(Derived):
        if field.name != "batches":
            assert origins[field.name] == "derived"
    assert "batches" not in origins
    assert (
        next(row for row in rows if row[0] == "n_parameters")[1] == f"{plan.derived.n_parameters:,}"
    )
    assert next(row for row in rows if row[0] == "run_dir")[1] == str(tmp_path / "run")
    assert json.loads(config) == plan.deepspeed(cpu_adam=False)
