from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.preparation.arguments import Adoption, parse
from gpt2_ds.data.preparation.request import Request
from tests.data.preparation.prepared_text import (
    COMMAND,
    REPOSITORY,
    documents_of,
    texts,
    write_rows,
)


def command(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(COMMAND), *arguments]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=120)


def test_the_command(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(30))
    out = tmp_path / "out"
    arguments = (str(path), "--out", str(out), "--tokenizer", "bytes", "--workers", "2")
    done = command(*arguments, "--validation-fraction", "0.2")
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(out)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"train: {dataset.split('train').n_tokens:,} tokens, ")
    assert lines[1].startswith(f"validation: {dataset.split('validation').n_tokens:,} tokens, ")
    assert lines[-1] == "  deepspeed launch/train.py --recipe recipes/RECIPE.yaml"
    assert done.stderr.startswith("30 documents, ")
    again = command(*arguments)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        f"error: --out {out}: there already. Name another --out, or delete it.\n"
    )


def test_the_help_has_an_example_and_every_flag() -> None:
    shown = command("--help").stdout
    assert "python launch/prepare_data.py python-stdlib --tokenizer bytes --out" in shown
    flags = (
        "out tokenizer workers text-field validation-fraction validation on-bad config split "
        "revision document-separator deduplicate shuffle-seed shard-tokens adopt"
    )
    assert set(re.findall(r"^  --([a-z-]+)", shown, re.MULTILINE)) == set(flags.split())


def test_what_is_typed_is_what_is_asked_for() -> None:
    asked = Request(inputs=["a", "b"], out=Path("c"))
    assert parse("", ["a", "b", "--out", "c"]) == asked
    assert (asked.tokenizer, asked.workers, asked.shard_tokens) == ("gpt2", 1, 2**25)
    words = (
        "a --out c --text-field t --config en --split s --revision r --document-separator % "
        "--on-bad skip --deduplicate --validation-fraction 0.5 --validation v --validation w "
        "--tokenizer bytes --workers 3 --shuffle-seed 4 --shard-tokens 5"
    )
    assert parse("", words.split()) == Request(
        inputs=["a"],
        out=Path("c"),
        text_field="t",
        config="en",
        split="s",
        revision="r",
        document_separator="%",
        on_bad="skip",
        deduplicate=True,
        validation_fraction=0.5,
        validation=["v", "w"],
        tokenizer="bytes",
        workers=3,
        shuffle_seed=4,
        shard_tokens=5,
    )
    words = "--adopt d --tokenizer bytes"
    assert parse("", words.split()) == Adoption(Path("d"), "bytes")
    assert parse("", ["--adopt", "d"]) == Adoption(Path("d"), "gpt2")


def test_a_killed_preparation_leaves_no_worker_and_no_dataset(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(100) * 500)
    program = (
        "import sys; sys.argv[1:] = "
        f"[{str(path)!r}, '--out', {str(tmp_path / 'out')!r}, "
        "'--tokenizer', 'bytes', '--workers', '2']\n"
        f"import runpy; runpy.run_path({str(REPOSITORY / 'launch/prepare_data.py')!r}, "
        "run_name='__main__')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 30
    while len(workers := children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)  # two workers and the resource tracker
    assert len(workers) == 3
    parent.kill()
    parent.wait()
    while alive := [pid for pid in workers if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial").exists()  # the same command resumes from there


def test_text_needs_no_large_library(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    program = (
        "import sys; from gpt2_ds.data.preparation.prepare import prepare\n"
        "from gpt2_ds.data.preparation.request import Request\n"
        "from pathlib import Path\n"
        f"prepare(Request(inputs=[{str(tmp_path / 'a.txt')!r}], "
        f"out=Path({str(tmp_path / 'out')!r}), tokenizer='bytes', validation_fraction=0))\n"
        "print(*{'torch', 'datasets', 'pyarrow', 'huggingface_hub'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_flags_reach_the_result(tmp_path: Path) -> None:
    documents = texts(60)
    text = "\n%%\n".join([*documents, documents[3]]) + "\n"
    out = tmp_path / "out"
    words = (
        f"- --out {out} --tokenizer bytes --document-separator %% --deduplicate "
        "--shuffle-seed 3 --shard-tokens 2000 --validation-fraction 0"
    )
    done = command(*words.split(), stdin=text)
    assert done.returncode == 0, done.stderr
    assert "duplicates skipped: 1\n" in done.stdout
    source = Dataset.open(out).manifest.source
    assert source is not None
    found = (source.document_separator, source.shuffle_seed, source.duplicates)
    assert found == ("%%", 3, 1)
    read = [text.rstrip("\n") for text in documents_of(out, "train")]
    wanted = [text.rstrip("\n") for text in documents]
    assert read != wanted
    assert sorted(read) == sorted(wanted)
    assert len(list((out / "train").glob("*.bin"))) > 3


def test_what_was_skipped_is_said_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + "{}\n" * 6 + '{"text": ""}\n')
    words = (str(path), "--tokenizer", "bytes", "--out", str(tmp_path / "out"))
    done = command(*words)
    assert done.returncode == 2
    assert (
        "line 2: no field 'text'; there are none. Name the field by --text-field. Or use --on"
        in (done.stderr)
    )
    done = command(*words, "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    places = "; ".join(f"{path}: line {n}" for n in range(2, 7))
    assert f"skipped: 1 empty ({path}: line 8)\n" in done.stdout
    assert f"skipped: 6 no_text_field ({places}; ...)\n" in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "INPUT: none is given. Name one; --help lists the kinds."),
        ("x.txt", "--out: is not given. Say where: --out data/NAME."),
        ("x.txt --adopt d", "--adopt d: x.txt is given too, and to adopt is to leave the files"),
        ("--out y --adopt d", "--adopt d: --out y is given too"),
    ],
)
def test_what_does_not_go_together(words: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse("", words.split())
