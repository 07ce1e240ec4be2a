from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.manifest import read_manifest
from gpt2_ds.data.preparation import hub as hub_module
from gpt2_ds.data.preparation.document import Bad, Document
from gpt2_ds.data.preparation.hub import HubDataset, hub_documents
from tests.data.preparation.hub_server import Hub, serve
from tests.data.preparation.prepared_text import (
    COMMAND,
    contents,
    documents_of,
    prepare_texts,
    texts,
)

COMMIT, LATER = "a" * 40, "b" * 40
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: data/train-*.parquet
  - split: held
    path: data/held.parquet
- config_name: de
  data_files: data/held.parquet
---
"""


def write_parquet(path: Path, documents: list[str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": documents, "id": list(range(len(documents)))})
    pyarrow.parquet.write_table(table, path, row_group_size=100)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three shards of 250 rows and a split of its own, in two configurations."""
    folder = tmp_path / "dataset"
    documents = texts(750)
    for shard in range(3):
        write_parquet(folder / f"data/train-{shard}.parquet", [*documents[shard::3]])
    write_parquet(folder / "data/held.parquet", ["held", "back"])
    (folder / "README.md").write_text(CARD)
    return folder


def in_order() -> list[str]:
    documents = texts(750)
    return documents[::3] + documents[1::3] + documents[2::3]


def read(dataset: HubDataset, text_field: str = "text") -> list[Document | Bad]:
    return list(hub_documents(dataset, text_field, None))


def test_a_local_dataset(tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "out"
    name = f"hf:{dataset}"
    manifest = prepare_texts([name], out, config="en", validation_fraction=0, shard_tokens=20_000)
    assert documents_of(out, "train") == in_order()
    assert manifest.source is not None
    (entry,) = manifest.source.inputs
    size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    told = (entry.name, entry.files, entry.bytes, entry.config, entry.split, entry.revision)
    assert told == (name, 5, size, "en", "train", None)
    assert manifest.versions["datasets"] == datasets.__version__
    prepare_texts([name], tmp_path / "held", config="en", split="held", validation_fraction=0)
    assert documents_of(tmp_path / "held", "train") == ["held", "back"]
    with pytest.raises(UserError, match=r"--revision: v1, and .*/dataset is a folder, which has n"):
        prepare_texts([name], tmp_path / "new", config="en", revision="v1")


def test_reading_resumes_after_any_row(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "STATE_ROWS", 64)
    opened = HubDataset(str(dataset), "en", "train", None)
    items = read(opened)
    found = [item.data.decode() for item in items if isinstance(item, Document)]
    assert found == in_order()
    for i in (0, 1, 62, 63, 64, 99, 100, 248, 249, 250, 251, 400, 511, 512, 748, 749):
        place = items[i].place  # type: ignore[union-attr]
        rest = list(hub_documents(opened, "text", place))
        assert [item[:2] for item in rest] == [item[:2] for item in items[i + 1 :]]


def test_bad_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d" / "train.parquet", ["a", None, "", "b"])
    items = read(HubDataset(str(tmp_path / "d"), None, "train", None))
    bad = [(item.why, item.where) for item in items if isinstance(item, Bad)]
    where = f"hf:{tmp_path / 'd'}: row"
    assert bad == [("not_a_string", f"{where} 2"), ("empty", f"{where} 3")]
    assert [item.data for item in items if isinstance(item, Document)] == [b"a", b"b"]


def test_what_it_has_not(tmp_path: Path, dataset: Path) -> None:
    cases = (
        (
            HubDataset(str(dataset), None, "train", None),
            "text",
            "cannot be opened .*Config name is",
        ),
        (HubDataset(str(dataset), "fr", "train", None), "text", "--config fr, .* 'fr' not found"),
        (
            HubDataset(str(dataset), "en", "tests", None),
            "text",
            "--split tests, .*Bad split: tests",
        ),
        (
            HubDataset(str(dataset), "en", "train", None),
            "body",
            "no field 'body'; there are 'text'",
        ),
    )
    for opened, field, message in cases:
        with pytest.raises(UserError, match=message):
            read(opened, field)


def test_reading_that_fails_can_resume(tmp_path: Path, dataset: Path) -> None:
    damaged = dataset / "data" / "train-1.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    arguments = {"config": "en", "validation_fraction": 0, "shard_tokens": 20_000}
    with pytest.raises(
        RunError, match=r"reading failed after row 250 \(.* kept: \d. The same comm"
    ):
        prepare_texts([f"hf:{dataset}"], tmp_path / "out", on_bad="skip", **arguments)  # type: ignore[arg-type]


def test_a_column_that_only_the_rows_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    real = datasets.load_dataset

    def without_columns(*words: object, **more: object) -> datasets.IterableDataset:
        rows = list(real(*words, **more))

        def generate():  # type: ignore[no-untyped-def]
            yield from rows
            yield {"body": "c"}

        opened = datasets.IterableDataset.from_generator(generate)
        assert opened.column_names is None
        return opened

    monkeypatch.setattr(datasets, "load_dataset", without_columns)
    *good, bad = read(HubDataset(str(folder), None, "train", None))
    assert [item.data for item in good if isinstance(item, Document)] == [b"a", b"b"]
    assert isinstance(bad, Bad)
    assert (bad.why, bad.what) == ("no_text_field", "no field 'text'; there are 'body'")


def run(hub: Hub, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    hub.asked.clear()
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, str(COMMAND), "hf:OWNER/NAME", "--out", str(folder / "out")]
    return subprocess.run(
        [*command, "--tokenizer", "bytes", "--config", "en", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.heavy
def test_the_hub(tmp_path: Path, dataset: Path) -> None:
    """Over HTTP: the commit is found once and used; going on asks for no shard that is done."""
    bad: list[str | None] = [*texts(750)[2::3]]
    bad[100] = None
    write_parquet(dataset / "data/train-2.parquet", bad)
    flags = ["--shard-tokens", "20000", "--validation-fraction", "0"]
    with serve(dataset, COMMIT) as hub:
        broken = run(hub, tmp_path, *flags)
        assert broken.returncode == 2
        assert "hf:OWNER/NAME: row 601: its text is null, not a string." in broken.stderr
        first = f"/datasets/OWNER/NAME/resolve/{COMMIT}/data/train-0.parquet"
        assert hub.asked.count(first) == 2  # for the names of the columns, and for the rows
        hub.commit = LATER  # what was begun stays at its commit
        done = run(hub, tmp_path, *flags, "--on-bad", "skip")
        assert done.returncode == 0, done.stderr
        assert not [path for path in hub.asked if LATER in path]
        assert hub.asked.count(first) == 1
        manifest = read_manifest(tmp_path / "out")
        assert manifest.source is not None
        (entry,) = manifest.source.inputs
        told = (entry.name, entry.files, entry.bytes, entry.config, entry.split, entry.revision)
        assert told == ("hf:OWNER/NAME", 0, 0, "en", "train", COMMIT)
        assert manifest.source.skipped["not_a_string"].first == ("hf:OWNER/NAME: row 601",)
        wanted = in_order()
        assert documents_of(tmp_path / "out", "train") == wanted[:600] + wanted[601:]
        assert "left" not in done.stderr

        before = contents(tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / "old")
        again = run(hub, tmp_path, *flags, "--on-bad", "skip", "--revision", COMMIT)
        assert again.returncode == 0, again.stderr
        assert contents(tmp_path / "out") == before


@pytest.mark.heavy
def test_a_revision_that_the_hub_has_not(tmp_path: Path, dataset: Path) -> None:
    with serve(dataset, COMMIT) as hub:
        done = run(hub, tmp_path, "--revision", "nowhere")
    assert done.returncode == 2
    assert "input hf:OWNER/NAME: the Hugging Face hub could not name the commit at 'nowhere' (" in (
        done.stderr
    )
    assert "RevisionNotFound" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.glob("*out*")] == []


def test_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"could not name the commit \(OfflineMode.* Check the name"
    ):
        prepare_texts(["hf:OWNER/NAME"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
