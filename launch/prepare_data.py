"""Turn text into a dataset of token shards that training reads without a network.

example:
  python launch/prepare_data.py python-stdlib --tokenizer bytes --out data/python-stdlib
  python launch/prepare_data.py books/ web.jsonl --out data/mine --workers 8
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.errors import EXIT_DONE, exit_code_of
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.tokenizer import load_tokenizer


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="a text file (one document), JSON lines (.jsonl"
        " .ndjson .json; a document a row), a folder of both (recursed, sorted, dot files left "
        "out), or python-stdlib: the sources of this Python's standard library")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="the dataset; must not be there yet")
    add("--tokenizer", default="gpt2", metavar="gpt2|bytes|FILE",
        help="GPT-2's, the 256 bytes, or a file of tiktoken ranks (gpt2)")  # fmt: skip
    add("--workers", type=int, default=1, metavar="N", help="processes that encode (1)")
    add("--text-field", default="text", metavar="NAME", help="of a row of JSON lines (text)")
    add("--validation-fraction", type=float, default=0.001, metavar="X",
        help="share of the documents, chosen by a hash of their text (0.001)")  # fmt: skip
    add("--validation", action="append", default=[], metavar="FILE",
        help="an input that is the validation split, instead; repeatable")  # fmt: skip
    add("--on-bad", choices=("error", "skip"), default="error",
        help="stop at a bad document, or count and leave it out (error)")  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Prepare, and say what was made."""
    args = arguments()
    manifest = prepare(args.inputs, args.out, load_tokenizer(args.tokenizer), workers=args.workers,
        text_field=args.text_field, validation_fraction=args.validation_fraction,
        validation_inputs=args.validation, on_bad=args.on_bad)  # fmt: skip
    for split in ("train", "validation"):
        shards = [shard for shard in manifest.shards if shard.split == split]
        tokens, documents = sum(s.tokens for s in shards), sum(s.documents for s in shards)
        print(f"{split}: {tokens:,} tokens, {documents:,} documents, {len(shards)} shards")
    for why, skipped in manifest.source.skipped.items() if manifest.source else ():
        print(f"skipped: {skipped.count:,} {why}")
    print(f"{args.out} is ready. Next: set data.path to {args.out} in a recipe of recipes/, then\n"
        "  deepspeed launch/train.py --recipe recipes/RECIPE.yaml")  # fmt: skip
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
