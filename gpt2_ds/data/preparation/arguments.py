"""What can be typed after `launch/prepare_data.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.preparation.request import SHARD_TOKENS

INPUTS = """what to read, in this order. A text file is one document (unless there is a
--document-separator); of JSON lines (.jsonl .ndjson .json) and .parquet a row is one; text and JSON
lines may be packed (.gz .zst). A folder is recursed and sorted, dot files left out; a pattern
("data/*.jsonl.gz", in quotes) is sorted. - is standard input: JSON lines if it begins with {, else
text. hf:OWNER/NAME is a dataset of the Hugging Face hub, read while it is downloaded, and hf:FOLDER
a local one. python-stdlib is the sources of this Python's standard library"""


def parse(description: str | None, words: Sequence[str]) -> argparse.Namespace:
    """What was typed.

    Args:
        description: shown by --help.
        words: after the name of the command.

    Raises:
        UserError: neither inputs and --out nor --adopt alone.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_inputs(parser)
    _add_documents(parser)
    _add_shards(parser)
    args = parser.parse_args(words)
    if args.adopt is not None:
        given = [*args.inputs, *([f"--out {args.out}"] if args.out else [])]
        if given:
            raise user_error(
                f"--adopt {args.adopt}",
                f"{given[0]} is given too, and to adopt is to leave the files where they are",
                "Leave out one of the two.",
            )
    elif not args.inputs:
        raise user_error("INPUT", "none is given", "Name one; --help lists the kinds.")
    elif args.out is None:
        raise user_error("--out", "is not given", "Say where: --out data/NAME.")
    return args


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help=INPUTS)
    add("--out", metavar="DIR", help="the dataset; must not be there yet")
    add(
        "--adopt",
        metavar="DIR",
        help="in place of INPUT and --out: make a folder of token files that were made elsewhere "
        "a dataset, by putting a manifest and the tokenizer beside them",
    )
    add("--text-field", default="text", metavar="NAME", help="of a row, its text (text)")
    add("--config", metavar="NAME", help="of hf:, the dataset's configuration, if it has several")
    add("--split", default="train", metavar="NAME", help="of hf:, which split to read (train)")
    add(
        "--revision",
        metavar="REV",
        help="of hf:, a branch, tag or commit (the newest commit); the manifest has the commit",
    )


def _add_documents(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--document-separator",
        metavar="LINE",
        help="text files are cut into documents at lines equal to it, say '<|endoftext|>'",
    )
    add(
        "--on-bad",
        choices=("error", "skip"),
        default="error",
        help="stop at a bad document, or leave it out and count it (error)",
    )
    add(
        "--deduplicate",
        action="store_true",
        help="leave out a document whose text came before, in either split",
    )
    add(
        "--validation-fraction",
        type=float,
        default=0.001,
        metavar="X",
        help="share of the documents, chosen by a hash of their text (0.001)",
    )
    add(
        "--validation",
        action="append",
        default=[],
        metavar="INPUT",
        help="an input that is the validation split, instead; repeatable",
    )


def _add_shards(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tokenizer",
        default="gpt2",
        metavar="gpt2|bytes|FILE",
        help="GPT-2's, the 256 bytes, or a file of tiktoken ranks (gpt2)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes that encode (1)")
    add(
        "--shuffle-seed",
        type=int,
        metavar="N",
        help="put the documents within each train shard in an order of this seed (as read)",
    )
    add(
        "--shard-tokens",
        type=int,
        default=SHARD_TOKENS,
        metavar="N",
        help=f"about how many tokens a shard has ({SHARD_TOKENS})",
    )
