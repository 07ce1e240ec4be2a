"""Turn text into a dataset of token shards that training reads without a network.

examples:
  python launch/prepare_data.py python-stdlib --tokenizer bytes --out data/python_stdlib
  python launch/prepare_data.py books/ web.jsonl "more/*.jsonl.gz" --out data/mine --workers 8
  zcat web.jsonl.gz | python launch/prepare_data.py - --deduplicate --out data/web
  python launch/prepare_data.py hf:wikimedia/wikipedia --config 20231101.en --out data/wikipedia
  python launch/prepare_data.py --adopt data/fineweb10B

Stopped at any moment, the same command resumes where it was.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpt2_ds.config.errors import EXIT_DONE, exit_code_of


def main() -> int:
    """Prepare or adopt, and say what was made."""
    # Here, because each worker process runs what stands above when it starts.
    from gpt2_ds.data.inspection.inspection import summary
    from gpt2_ds.data.preparation.arguments import parse
    from gpt2_ds.data.preparation.prepare import prepare
    from gpt2_ds.data.preparation.request import Request

    asked = parse(__doc__, sys.argv[1:])
    if isinstance(asked, Request):
        out, manifest = asked.out, prepare(asked)
    else:
        from gpt2_ds.data.format.tokenizer import load_tokenizer
        from gpt2_ds.data.preparation.adopt import adopt

        out = asked.directory
        manifest = adopt(out, load_tokenizer(asked.tokenizer))
    print(*summary(manifest, out), sep="\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
