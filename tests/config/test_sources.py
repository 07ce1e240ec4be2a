from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.derive import derive
from tests.config.small_recipe import faults_of, load_small

NO_PATH = "data.path=null"
TWO = "data.sources={web: {path: data/web, weight: 3}, books: {path: s3://b/books, weight: 1}}"
PREPARE = "data.prepare={inputs: [x]}"


def said(folder: Path, *overrides: str) -> list[str]:
    return [str(f) for f in faults_of(lambda: derive(load_small(folder, *overrides), world_size=1))]


def test_several_sources_are_taken(tmp_path: Path) -> None:
    phases = "data.phases=[{from_tokens: 1024, weights: {web: 0, books: 1}}]"
    loaded = load_small(tmp_path, NO_PATH, TWO, phases)
    derive(loaded, world_size=1)
    sources = loaded.recipe.data.sources
    assert sources is not None
    assert [(n, s.path, s.weight) for n, s in sources.items()] == [
        ("web", "data/web", 3.0),
        ("books", "s3://b/books", 1.0),
    ]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            [NO_PATH],
            "small.yaml: data: neither path nor sources. Give data.path for one dataset, or "
            "data.sources for several.",
        ),
        (
            [TWO],
            "small.yaml: data: both path and sources. Give data.path for one dataset, or "
            "data.sources for several.",
        ),
        (
            [NO_PATH, TWO, PREPARE],
            "--set: data.prepare: makes the dataset of data.path, and there is none. Prepare "
            "each source with launch/prepare_data.py.",
        ),
        (
            ["data.path=s3://b/c", PREPARE],
            "--set: data.prepare: makes a local dataset, and data.path is s3://b/c. Remove it, "
            "or name a folder.",
        ),
        (
            [NO_PATH, "data.sources={web: {path: x, weight: 0}}"],
            "--set: data.sources: no source has a weight above 0. Give one of them a weight.",
        ),
        (
            [NO_PATH, "data.sources={a: {path: x, weight: 2}, b: {path: x, weight: 0.0001}}"],
            "--set: data.sources: b: weight 0.0001 is less than 1 in 10,000 of all weights, "
            "2.0001. Set it to 0, or to at least 0.00020001.",
        ),
    ],
)
def test_faults_of_sources(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert message in [text.removeprefix(f"{tmp_path}/") for text in said(tmp_path, *overrides)]


@pytest.mark.parametrize(
    "phases, message",
    [
        (
            "{from_tokens: 1000, weights: {web: 1, books: 1}}",
            "from_tokens 1000 is not a multiple of batch.global_batch_tokens 1024. Nearest: 1024.",
        ),
        (
            "{from_tokens: 5000, weights: {web: 1, books: 1}}",
            "from_tokens 5000 is not a multiple of batch.global_batch_tokens 1024. Nearest: 4096 "
            "or 5120.",
        ),
        (
            "{from_tokens: 1024, weights: {wep: 1, books: 1}}",
            "'wep' is not one of data.sources. Did you mean web?",
        ),
        (
            "{from_tokens: 1024, weights: {books: 1}}",
            "no weight for web. Give every source a weight; 0 leaves one out.",
        ),
        (
            "{from_tokens: 1024, weights: {books: 0, web: 0}}",
            "no source has a weight above 0. Give one of them a weight.",
        ),
    ],
)
def test_faults_of_phases(tmp_path: Path, phases: str, message: str) -> None:
    found = said(tmp_path, NO_PATH, TWO, f"data.phases=[{phases}]")
    assert f"--set: data.phases.0: {message}" in found


def test_phases_are_in_order_and_have_sources(tmp_path: Path) -> None:
    one = "{from_tokens: 2048, weights: {web: 1, books: 1}}"
    assert said(tmp_path, NO_PATH, TWO, f"data.phases=[{one}, {one}]") == [
        "--set: data.phases.1: from_tokens 2048 is not above 2048, of the one before. Put the "
        "phases in order."
    ]
    assert said(tmp_path, f"data.phases=[{one}]") == [
        "--set: data.phases.0: there are no data.sources to weigh. Remove it, or give data.sources."
    ]
